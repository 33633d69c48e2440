//! Deploying Workers: versions, deployments, migrations, schedules, deletion, and what happens when a version does not start.
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::sync::atomic::Ordering;

use http::Method;
use serde_json::{Value, json};
use wharf_model::{Binding, ModuleKind};

use self::common::{Node, multipart, upload};

fn deploy_of(version: &str) -> Value {
    json!({"strategy": "percentage", "versions": [{"version_id": version, "percentage": 100}], "annotations": {}})
}

#[tokio::test]
async fn a_first_deploy_is_what_every_endpoint_then_tells() {
    let node = Node::new();
    let body = multipart(&[
        (
            "index.js",
            Some("index.js"),
            Some("application/javascript+module"),
            b"export default {}",
        ),
        (
            "lib/add.wasm",
            Some("./lib/add.wasm"),
            Some("application/wasm"),
            b"\0asm",
        ),
        (
            "index.js.map",
            Some("index.js.map"),
            Some("application/source-map"),
            b"{}",
        ),
        (
            "metadata",
            None,
            None,
            json!({
                "main_module": "index.js",
                "compatibility_date": "2026-01-01",
                "compatibility_flags": ["nodejs_compat"],
                "bindings": [
                    {"type": "plain_text", "name": "A", "text": "one"},
                    {"type": "json", "name": "B", "json": {"x": 1}},
                    {"type": "service", "name": "ME", "service": "hello"},
                    {"type": "version_metadata", "name": "VERSION"},
                ],
                "annotations": {"workers/message": "first", "workers/tag": "t"},
                "observability": {"enabled": true},
            })
            .to_string()
            .as_bytes(),
        ),
    ]);
    let result = node
        .form(Method::PUT, "workers/scripts/hello", body)
        .await
        .ok();
    let id = node.deployed("hello").unwrap();
    // wrangler puts the dashes back.
    assert_eq!(result["deployment_id"], id.replace('-', ""));
    assert_eq!(node.effects.take_calls(), ["script_changed hello"]);

    let version = node.store.version(&id).unwrap().unwrap();
    let modules: Vec<_> = version
        .modules
        .iter()
        .map(|m| (m.name.as_str(), m.kind))
        .collect();
    assert_eq!(
        modules,
        [
            ("index.js", ModuleKind::EsModule),
            ("lib/add.wasm", ModuleKind::Wasm)
        ]
    );
    assert_eq!(
        node.store.read_blob(&version.modules[1].blob).unwrap(),
        b"\0asm"
    );

    let shown = node
        .get(&format!("workers/scripts/hello/versions/{id}"))
        .await
        .ok();
    assert_eq!(shown["id"], id);
    assert_eq!(shown["number"], 1);
    assert_eq!(shown["metadata"]["source"], "wrangler");
    assert_eq!(shown["annotations"]["workers/message"], "first");
    assert_eq!(shown["resources"]["bindings"][1]["json"], json!({"x": 1}));
    assert_eq!(
        shown["resources"]["script_runtime"]["compatibility_flags"],
        json!(["nodejs_compat"])
    );
    let list = node
        .get("workers/scripts/hello/versions?deployable=true")
        .await
        .ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);

    let deployments = node.get("workers/scripts/hello/deployments").await.ok();
    assert_eq!(
        deployments["deployments"][0]["versions"],
        json!([{"version_id": id, "percentage": 100}])
    );
    assert_eq!(
        deployments["deployments"][0]["annotations"]["workers/message"],
        "first"
    );

    let service = node.get("workers/services/hello").await.ok();
    assert_eq!(
        service["default_environment"]["script"]["last_deployed_from"],
        "wrangler"
    );
    let settings = node.get("workers/scripts/hello/settings").await.ok();
    assert_eq!(settings["bindings"].as_array().unwrap().len(), 4);
    assert_eq!(settings["observability"]["enabled"], true);

    // Until the client asks for an address, there is none, as at Cloudflare.
    let before = node.get("workers/scripts/hello/subdomain").await.ok();
    assert_eq!(before["enabled"], false);
    let subdomain = json!({"enabled": true, "previews_enabled": null});
    let set = node
        .json(Method::POST, "workers/scripts/hello/subdomain", subdomain)
        .await
        .ok();
    assert_eq!(set, json!({"enabled": true, "previews_enabled": false}));
    let calls = node.effects.take_calls();
    assert_eq!(calls.last().unwrap(), "address_changed hello");
    let previews = json!({"enabled": true, "previews_enabled": true});
    node.json(Method::POST, "workers/scripts/hello/subdomain", previews)
        .await
        .error(400, 10501);
    let worker = node.get("workers/workers/hello").await.ok();
    assert_eq!(worker["subdomain"]["url"], "http://hello.localhost:8080");
    assert_eq!(worker["subdomain"]["enabled"], true);
}

#[tokio::test]
async fn a_redeploy_and_a_rollback_move_what_serves() {
    let node = Node::new();
    node.put("hello", json!({})).await.ok();
    let first = node.deployed("hello").unwrap();
    let uploaded = node
        .form(
            Method::POST,
            "workers/scripts/hello/versions?bindings_inherit=strict",
            upload(json!({})),
        )
        .await
        .ok();
    let second = uploaded["id"].as_str().unwrap().to_owned();
    assert!(uploaded["resources"]["script"].is_object());
    assert_eq!(
        node.deployed("hello").as_deref(),
        Some(&*first),
        "an upload alone deploys nothing"
    );

    node.json(
        Method::POST,
        "workers/scripts/hello/deployments",
        deploy_of(&second),
    )
    .await
    .ok();
    assert_eq!(node.deployed("hello").as_deref(), Some(&*second));
    let tags = json!({"tags": ["a"], "observability": {"enabled": false}});
    node.json(Method::PATCH, "workers/scripts/hello/script-settings", tags)
        .await
        .ok();
    assert_eq!(
        node.get("workers/services/hello").await.ok()["default_environment"]["script"]["tags"],
        json!(["a"])
    );

    let back = node
        .json(
            Method::POST,
            "workers/scripts/hello/deployments",
            deploy_of(&first),
        )
        .await
        .ok();
    assert_eq!(back["annotations"]["workers/triggered_by"], "rollback");
    assert_eq!(node.deployed("hello").as_deref(), Some(&*first));
    let deployments = node.get("workers/scripts/hello/deployments").await.ok();
    let order: Vec<_> = deployments["deployments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["versions"][0]["version_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(order, [&*first, &second, &first], "newest first");

    let split = json!({"strategy": "percentage", "versions": [
        {"version_id": first, "percentage": 50}, {"version_id": second, "percentage": 50}]});
    node.json(Method::POST, "workers/scripts/hello/deployments", split)
        .await
        .error(400, 10501);
    node.json(
        Method::POST,
        "workers/scripts/hello/deployments",
        deploy_of("nope"),
    )
    .await
    .error(404, 10092);
}

#[tokio::test]
async fn a_version_that_does_not_start_leaves_the_old_one_serving() {
    let node = Node::new();
    node.put(
        "hello",
        json!({"bindings": [{"type": "secret_text", "name": "KEY", "text": "old"}]}),
    )
    .await
    .ok();
    let first = node.deployed("hello").unwrap();
    node.effects.take_calls();

    node.effects.fail_next("SyntaxError: Unexpected token");
    let message = node
        .put(
            "hello",
            json!({
                "bindings": [{"type": "secret_text", "name": "KEY", "text": "new"}],
                "migrations": {"new_tag": "v1", "steps": [{"new_sqlite_classes": ["A"]}]},
            }),
        )
        .await
        .error(400, 10021);
    assert!(
        message.contains("SyntaxError: Unexpected token"),
        "{message}"
    );
    assert!(
        message.contains("previous deployment serves on"),
        "{message}"
    );
    assert_eq!(node.deployed("hello").as_deref(), Some(&*first));
    assert_eq!(
        node.effects.take_calls(),
        ["script_changed hello"; 2],
        "the old one is started again"
    );
    assert_eq!(node.store.secrets("hello").unwrap()["KEY"], "old");
    assert_eq!(node.store.namespaces("hello").unwrap(), []);
    let deployments = node.get("workers/scripts/hello/deployments").await.ok();
    assert_eq!(deployments["deployments"].as_array().unwrap().len(), 1);
    assert_eq!(
        node.store.versions("hello", 10, 0).unwrap().len(),
        2,
        "the version is kept"
    );
}

#[tokio::test]
async fn a_first_version_that_does_not_start_can_be_mended_and_deployed_again() {
    let node = Node::new();
    let metadata =
        json!({"migrations": {"new_tag": "v1", "steps": [{"new_sqlite_classes": ["A"]}]}});
    node.effects.fail_next("no default export");
    node.put("hello", metadata.clone()).await.error(400, 10021);
    assert_eq!(node.deployed("hello"), None);
    assert_eq!(
        node.get("workers/scripts/hello/deployments").await.ok(),
        json!({"deployments": []})
    );
    let service = node.get("workers/services/hello").await.ok();
    assert_eq!(
        service["default_environment"]["script"].get("migration_tag"),
        None
    );
    // wrangler sends the same migrations again.
    node.put("hello", metadata).await.ok();
    assert!(node.deployed("hello").is_some());
}

#[tokio::test]
async fn a_deploy_runs_to_its_end_when_the_client_goes_away() {
    let node = Node::new();
    node.put("hello", json!({})).await.ok();
    let first = node.deployed("hello").unwrap();
    let held = node.effects.gate.lock().await;
    node.effects.fail_next("does not start");
    let request = node.form_request(Method::PUT, "workers/scripts/hello", upload(json!({})));
    let router = node.router.clone();
    let client = tokio::spawn(tower::ServiceExt::oneshot(router, request));
    // The new version is committed, and is being started.
    until(|| node.deployed("hello").as_ref() != Some(&first)).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    drop(held);
    // The start fails; the change is taken back without anybody there to be told.
    until(|| node.deployed("hello").as_ref() == Some(&first)).await;
}

/// Waits for something that another task does; gives up when it can't be coming any more.
async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), wait)
        .await
        .expect("it never happened");
}

#[tokio::test]
async fn deploys_of_one_script_wait_for_each_other() {
    let node = Node::new();
    let put = |_: usize| node.put("hello", json!({}));
    let replies = futures_util::future::join_all((0..5).map(put)).await;
    for reply in replies {
        reply.ok();
    }
    assert_eq!(node.effects.most_inside.load(Ordering::SeqCst), 1);
    let numbers: Vec<u32> = node
        .store
        .versions("hello", 10, 0)
        .unwrap()
        .iter()
        .map(|v| v.number)
        .collect();
    assert_eq!(numbers, [5, 4, 3, 2, 1]);
    assert_eq!(node.deployed_version("hello").number, 5);
}

#[tokio::test]
async fn deploys_through_two_nodes_of_one_store_wait_for_each_other() {
    let node = Node::new();
    let other = node.beside();
    let puts = (0..6).map(|n| {
        let request = node.form_request(Method::PUT, "workers/scripts/hello", upload(json!({})));
        let router = if n % 2 == 0 { &node.router } else { &other };
        tower::ServiceExt::oneshot(router.clone(), request)
    });
    for response in futures_util::future::join_all(puts).await {
        assert_eq!(response.unwrap().status(), 200);
    }
    assert_eq!(node.effects.most_inside.load(Ordering::SeqCst), 1);
    assert_eq!(node.deployed_version("hello").number, 6);
}

#[tokio::test]
async fn uploads_that_make_no_sense_are_refused_before_anything_changes() {
    let node = Node::new();
    for (metadata, code, part) in [
        (json!({"main_module": "other.js"}), 10021, "other.js"),
        (json!({"main_module": "../index.js"}), 10021, ".."),
        (
            json!({"compatibility_date": "yesterday"}),
            10021,
            "YYYY-MM-DD",
        ),
        (json!({"compatibility_date": "2999-01-01"}), 10021, "future"),
        (
            json!({"bindings": [{"type": "kv_namespace", "name": "MY_KV", "namespace_id": "x"}]}),
            10501,
            "MY_KV",
        ),
        (
            json!({"bindings": [{"type": "service", "name": "S", "service": "gone"}]}),
            10143,
            "gone",
        ),
        (
            json!({"bindings": [{"type": "inherit", "name": "S"}]}),
            10057,
            "'S'",
        ),
        (
            json!({"bindings": [{"type": "durable_object_namespace", "name": "C", "class_name": "C"}]}),
            10061,
            "new_sqlite_classes",
        ),
        (
            json!({"containers": [{"class_name": "C"}]}),
            10061,
            "container",
        ),
        (
            json!({"containers": [{"class_name": "C"}], "migrations": {"new_tag": "v1", "new_classes": ["C"]}}),
            10021,
            "new_sqlite_classes",
        ),
        (
            json!({"tail_consumers": [{"service": "x"}]}),
            10501,
            "tail consumers",
        ),
        (json!({"logpush": true}), 10501, "Logpush"),
        (json!({"keep_assets": true}), 10021, "keep_assets"),
        (
            json!({"assets": {"jwt": "nonsense"}}),
            10000,
            "asset upload",
        ),
    ] {
        let reply = node.put("hello", metadata.clone()).await;
        let status = if code == 10000 { 401 } else { 400 };
        let message = reply.error(status, code);
        assert!(message.contains(part), "{metadata}: {message}");
    }
    for (kind, code) in [
        ("text/x-python", 10501),
        ("image/png", 10021),
        ("application/javascript", 10021),
    ] {
        let body = multipart(&[
            ("metadata", None, None, br#"{"main_module":"a"}"#),
            ("a", Some("a"), Some(kind), b"x"),
        ]);
        node.form(Method::PUT, "workers/scripts/hello", body)
            .await
            .error(400, code);
    }
    assert_eq!(node.store.scripts().unwrap(), []);
    assert!(node.effects.take_calls().is_empty());
}

#[tokio::test]
async fn namespaces_keep_their_ids_over_deploys_and_renames() {
    let node = Node::new();
    let binding = |class: &str| json!([{"type": "durable_object_namespace", "name": "C", "class_name": class}]);
    node.put("hello", json!({"bindings": binding("A"), "migrations": {"new_tag": "v1", "steps": [{"new_sqlite_classes": ["A"]}]}}))
        .await
        .ok();
    let namespaces = node
        .get("workers/durable_objects/namespaces?per_page=1000")
        .await
        .ok();
    let id = namespaces[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 32);
    assert_eq!(
        (&namespaces[0]["class"], &namespaces[0]["script"]),
        (&json!("A"), &json!("hello"))
    );
    assert_eq!(
        node.get("workers/services/hello").await.ok()["default_environment"]["script"]["migration_tag"],
        "v1"
    );
    assert_eq!(
        node.get("workers/scripts").await.ok()[0]["migration_tag"],
        "v1"
    );
    let first = node.deployed("hello").unwrap();

    node.put("hello", json!({"bindings": binding("A")}))
        .await
        .ok();
    let wrong = json!({"migrations": {"new_tag": "v1", "steps": [{"new_sqlite_classes": ["A"]}]}});
    node.put("hello", wrong).await.error(412, 10079);
    let twice = json!({"migrations": {"old_tag": "v1", "new_tag": "v2", "steps": [{"new_sqlite_classes": ["A"]}]}});
    node.put("hello", twice).await.error(400, 10074);
    node.form(
        Method::POST,
        "workers/scripts/hello/versions",
        upload(json!({"migrations": {"old_tag": "v1", "new_tag": "v2"}})),
    )
    .await
    .error(400, 10211);

    let rename = json!({"bindings": binding("B"), "migrations": {"old_tag": "v1", "new_tag": "v2",
        "steps": [{"renamed_classes": [{"from": "A", "to": "B"}]}]}});
    node.put("hello", rename).await.ok();
    let version = node.deployed_version("hello");
    let bound = Binding::DurableObjectNamespace {
        name: "C".into(),
        class_name: "B".into(),
        namespace_id: id,
    };
    assert_eq!(version.bindings, [bound]);
    // What needs the old class can't serve any more.
    let message = node
        .json(
            Method::POST,
            "workers/scripts/hello/deployments",
            deploy_of(&first),
        )
        .await
        .error(400, 10061);
    assert!(message.contains("'A'"), "{message}");
}

#[tokio::test]
async fn exports_follow_migrations_and_not_the_other_way() {
    let node = Node::new();
    let migrations = json!({"new_tag": "v1", "steps": [{"new_sqlite_classes": ["A"]}]});
    node.put("hello", json!({"migrations": migrations}))
        .await
        .ok();
    let id = node.store.namespaces("hello").unwrap()[0].id.clone();

    let live = json!({"type": "durable-object", "storage": "sqlite"});
    let both = json!({"migrations": migrations, "exports": {"A": live}});
    node.put("hello", both).await.error(400, 10021);
    let result = node
        .put("hello", json!({"exports": {"A": live}}))
        .await
        .ok();
    assert_eq!(result["exports_reconciliation"]["created"], json!([]));
    assert_eq!(node.store.namespaces("hello").unwrap()[0].id, id);
    // wrangler finds no tag, so it sends all its migrations and is told.
    let script = node.store.script("hello").unwrap().unwrap();
    assert_eq!((script.migration_tag, script.class_exports), (None, true));
    let message = node
        .put("hello", json!({"migrations": migrations}))
        .await
        .error(400, 10021);
    assert!(message.contains("\"exports\""), "{message}");

    // Without either, the classes stay.
    node.put("hello", json!({})).await.ok();
    assert_eq!(node.store.namespaces("hello").unwrap()[0].id, id);
}

#[tokio::test]
async fn a_deploy_that_does_not_start_leaves_the_classes_as_they_were() {
    let node = Node::new();
    let migrations = json!({"new_tag": "v1", "steps": [{"new_sqlite_classes": ["A"]}]});
    node.put("hello", json!({"migrations": migrations}))
        .await
        .ok();
    let before = node.store.namespaces("hello").unwrap();
    let exports = json!({
        "A": {"type": "durable-object", "state": "renamed", "renamed_to": "B"},
        "B": {"type": "durable-object", "storage": "sqlite"},
    });
    node.effects.fail_next("boom");
    node.put("hello", json!({"exports": exports}))
        .await
        .error(400, 10021);
    assert_eq!(node.store.namespaces("hello").unwrap(), before);
    let script = node.store.script("hello").unwrap().unwrap();
    assert_eq!(script.migration_tag.as_deref(), Some("v1"));
    assert!(!script.class_exports);
}

#[tokio::test]
async fn a_container_and_its_class_name_each_other_consistently() {
    let node = Node::new();
    let class = json!({"type": "durable-object", "storage": "sqlite", "container": "c"});
    for (containers, part) in [
        (json!([]), "does not have"),
        (json!([{"name": "d", "class_name": "A"}]), "does not have"),
        (json!([{"name": "c", "class_name": "B"}]), "\"A\""),
        (json!([{"name": "c"}, {"name": "d"}]), "\"class_name\""),
    ] {
        let upload = json!({"exports": {"A": class}, "containers": containers});
        let message = node.put("hello", upload).await.error(400, 10021);
        assert!(message.contains(part), "{message}");
    }
    let upload = json!({"exports": {"A": class}, "containers": [{"name": "c"}]});
    node.put("hello", upload).await.ok();
    let version = node.deployed_version("hello");
    assert_eq!(version.container_classes, ["A"]);
}

#[tokio::test]
async fn schedules_are_checked_and_kept() {
    let node = Node::new();
    node.put("hello", json!({})).await.ok();
    let path = "workers/scripts/hello/schedules";
    let message = node
        .json(
            Method::PUT,
            path,
            json!([{"cron": "* * * * *"}, {"cron": "61 * * * *"}]),
        )
        .await
        .error(400, 10100);
    assert!(message.contains("61 * * * *"), "{message}");
    assert_eq!(node.get(path).await.ok()["schedules"], json!([]));
    node.json(
        Method::PUT,
        path,
        json!([{"cron": "*/5 * * * *"}, {"cron": "*/5 * * * *"}]),
    )
    .await
    .ok();
    assert_eq!(
        node.store.script("hello").unwrap().unwrap().schedules,
        ["*/5 * * * *"]
    );

    node.effects.fail_next("no scheduled handler");
    let message = node
        .json(Method::PUT, path, json!([{"cron": "0 0 * * *"}]))
        .await
        .error(400, 10021);
    assert!(message.contains("no scheduled handler"), "{message}");
    assert_eq!(
        node.store.script("hello").unwrap().unwrap().schedules,
        ["*/5 * * * *"]
    );
    // A redeploy does not touch them.
    node.put("hello", json!({})).await.ok();
    assert_eq!(
        node.get(path).await.ok()["schedules"][0]["cron"],
        "*/5 * * * *"
    );
}

#[tokio::test]
async fn deleting_asks_who_uses_the_worker_and_tells_the_daemon() {
    let node = Node::new();
    node.put("auth", json!({})).await.ok();
    node.put(
        "web",
        json!({"bindings": [{"type": "service", "name": "AUTH", "service": "auth"}]}),
    )
    .await
    .ok();
    let references = node.get("workers/scripts/auth/references").await.ok();
    assert_eq!(references["services"]["incoming"][0]["service"], "web");
    assert_eq!(
        node.get("workers/tails/by-consumer/auth").await.ok(),
        json!([])
    );
    let message = node
        .delete("workers/services/auth?force=false")
        .await
        .error(400, 10064);
    assert!(
        message.contains("web") && message.contains("AUTH"),
        "{message}"
    );
    node.effects.take_calls();
    node.delete("workers/services/auth?force=true").await.ok();
    node.delete("workers/services/web?force=false").await.ok();
    assert_eq!(
        node.effects.take_calls(),
        ["script_deleted auth", "script_deleted web"]
    );
    assert_eq!(node.get("workers/scripts").await.ok(), json!([]));
}
