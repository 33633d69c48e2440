//! Container applications, rollouts, and passwords for the registry.
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use http::Method;
use serde_json::{Value, json};

use self::common::Node;

/// A Worker with a container class; returns its namespace's id as `wrangler deploy` finds it.
async fn worker(node: &Node, script: &str) -> String {
    let metadata = json!({
        "bindings": [{"type": "durable_object_namespace", "name": "C", "class_name": "C"}],
        "migrations": {"new_tag": "v1", "steps": [{"new_sqlite_classes": ["C"]}]},
        "containers": [{"class_name": "C", "name": "web"}],
    });
    let result = node.put(script, metadata).await.ok();
    let hex = result["deployment_id"].as_str().unwrap();
    let id = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-");
    let version = node
        .get(&format!("workers/scripts/{script}/versions/{id}"))
        .await
        .ok();
    let binding = &version["resources"]["bindings"][0];
    assert_eq!(
        (&binding["type"], &binding["class_name"]),
        (&json!("durable_object_namespace"), &json!("C"))
    );
    assert_eq!(
        node.store
            .deployed_version(script)
            .unwrap()
            .unwrap()
            .container_classes,
        ["C"]
    );
    binding["namespace_id"].as_str().unwrap().to_owned()
}

/// A new application's id.
async fn create(node: &Node, sent: Value) -> String {
    let made = node.json(Method::POST, "containers/applications", sent);
    made.await.ok()["id"].as_str().unwrap().to_owned()
}

fn application(namespace: &str, image: &str) -> Value {
    json!({
        "name": "web",
        "scheduling_policy": "default",
        "configuration": {"image": image, "instance_type": "lite"},
        "instances": 0,
        "max_instances": 3,
        "constraints": {"tiers": [1, 2]},
        "durable_objects": {"namespace_id": namespace},
        "rollout_active_grace_period": 0,
    })
}

#[tokio::test]
async fn an_application_is_echoed_as_it_was_sent_so_that_nothing_seems_changed() {
    let node = Node::new();
    let namespace = worker(&node, "hello").await;
    assert_eq!(node.get("containers/applications").await.ok(), json!([]));
    node.effects.take_calls();
    let sent = application(&namespace, "127.0.0.1:7400/acc/web:1");
    let made = node
        .json(Method::POST, "containers/applications", sent.clone())
        .await
        .ok();
    let id = made["id"].as_str().unwrap().to_owned();
    assert_eq!(
        node.effects.take_calls(),
        [
            "check_image 127.0.0.1:7400/acc/web:1".to_owned(),
            format!("application_changed {id}")
        ]
    );
    let listed = node.get("containers/applications").await.ok();
    for (key, value) in sent.as_object().unwrap() {
        assert_eq!(&listed[0][key], value, "{key}");
    }
    assert_eq!(listed[0]["health"]["instances"]["active"], 1);
    assert_eq!(
        node.get(&format!("containers/applications/{id}"))
            .await
            .ok(),
        listed[0]
    );
    assert_eq!(
        node.store
            .application_by_namespace(&namespace)
            .unwrap()
            .unwrap()
            .id,
        id
    );

    let dash = node
        .get("containers/dash/applications?per_page=25")
        .await
        .ok();
    assert_eq!(
        (&dash[0]["name"], &dash[0]["instances"]),
        (&json!("web"), &json!(1))
    );
    let instances = node
        .get(&format!("containers/dash/applications/{id}/instances"))
        .await
        .ok();
    assert_eq!(instances["instances"][0]["id"], format!("{id}-1"));
}

#[tokio::test]
async fn the_image_changes_with_the_rollout_and_not_before() {
    let node = Node::new();
    let namespace = worker(&node, "hello").await;
    let id = &create(&node, application(&namespace, "web:1")).await;
    let path = format!("containers/applications/{id}");
    let target = json!({"image": "web:2", "instance_type": "basic"});

    node.json(
        Method::PATCH,
        &path,
        json!({"configuration": target, "max_instances": 9}),
    )
    .await
    .ok();
    let stored = node.store.application(id).unwrap().unwrap();
    assert_eq!(
        (stored.image(), stored.max_instances, stored.version),
        (Some("web:1"), 9, 2)
    );

    let rollout = json!({"description": "Progressive update", "strategy": "rolling", "kind": "full_auto",
        "target_configuration": target, "steps": [{"step_size": {"percentage": 10}}, {"step_size": {"percentage": 100}}]});
    node.effects.take_calls();
    let made = node
        .json(Method::POST, &format!("{path}/rollouts"), rollout.clone())
        .await
        .ok();
    assert_eq!(made["status"], "completed");
    assert_eq!(
        node.effects.take_calls(),
        [
            "check_image web:2".to_owned(),
            format!("application_changed {id}")
        ]
    );
    let stored = node.store.application(id).unwrap().unwrap();
    assert_eq!((stored.image(), stored.version), (Some("web:2"), 3));
    assert_eq!(node.get(&path).await.ok()["configuration"], target);
    let rollouts = node.get(&format!("{path}/rollouts")).await.ok();
    assert_eq!(rollouts.as_array().unwrap().len(), 1);
    assert_eq!(
        node.get(&format!("{path}/rollouts/{}", made["id"].as_str().unwrap()))
            .await
            .ok(),
        rollouts[0]
    );

    // The old instances can't be replaced: everything is as before.
    let mut third = rollout.clone();
    third["target_configuration"]["image"] = "web:3".into();
    node.effects.fail_next("out of disk");
    let message = node
        .json(Method::POST, &format!("{path}/rollouts"), third)
        .await
        .error(400, 10004);
    assert!(message.contains("out of disk"), "{message}");
    assert_eq!(node.store.application(id).unwrap().unwrap(), stored);
    assert_eq!(
        node.get(&format!("{path}/rollouts"))
            .await
            .ok()
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let mut manual = rollout;
    manual["kind"] = "full_manual".into();
    node.json(Method::POST, &format!("{path}/rollouts"), manual)
        .await
        .error(400, 10501);
}

#[tokio::test]
async fn what_can_not_run_is_refused_when_it_is_asked_for() {
    let node = Node::new();
    let namespace = worker(&node, "hello").await;
    node.effects
        .bad_images
        .lock()
        .unwrap()
        .push("web:bad".into());
    let good = application(&namespace, "web:1");
    let with = |path: &str, value: Value| {
        let mut sent = good.clone();
        *sent.pointer_mut(path).unwrap() = value;
        sent
    };
    for (sent, code, part) in [
        (
            application(&namespace, "web:bad"),
            10004,
            "no such image on this node",
        ),
        (application("0123", "web:1"), 10004, "namespace"),
        (application(&namespace, ""), 10004, "image"),
        (
            with("/configuration/instance_type", json!("huge")),
            10004,
            "standard-4",
        ),
        (with("/max_instances", json!(0)), 10004, "max_instances"),
        (
            with("/durable_objects", json!(null)),
            10501,
            "Durable Object",
        ),
        (
            with("/scheduling_policy", json!("durable_object")),
            10004,
            "come with start()",
        ),
    ] {
        let message = node
            .json(Method::POST, "containers/applications", sent)
            .await
            .error(400, code);
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(node.store.applications().unwrap(), []);
    node.effects.fail_next("no room");
    node.json(Method::POST, "containers/applications", good.clone())
        .await
        .error(400, 10004);
    assert_eq!(node.store.applications().unwrap(), []);

    let id = create(&node, good.clone()).await;
    node.json(Method::POST, "containers/applications", good)
        .await
        .error(400, 10004);
    let path = format!("containers/applications/{id}");
    let patch = json!({"configuration": {"image": "web:bad"}});
    node.json(Method::PATCH, &path, patch.clone())
        .await
        .error(400, 10004);
    let rollout = json!({"target_configuration": patch["configuration"]});
    node.json(Method::POST, &format!("{path}/rollouts"), rollout)
        .await
        .error(400, 10004);
    node.json(Method::PATCH, &path, json!({"name": "other"}))
        .await
        .error(400, 10004);
    assert_eq!(node.store.application(&id).unwrap().unwrap().version, 1);
    node.get("containers/applications/nope")
        .await
        .error(404, 1000);
}

#[tokio::test]
async fn a_deleted_workers_application_goes_when_it_is_told_to_or_replaced() {
    let node = Node::new();
    let namespace = worker(&node, "hello").await;
    let first = create(&node, application(&namespace, "web:1")).await;
    node.delete("workers/services/hello?force=true").await.ok();
    assert_eq!(
        node.get("containers/applications").await.ok(),
        json!([]),
        "a deploy does not see it"
    );
    assert_eq!(
        node.get("containers/dash/applications").await.ok()[0]["id"],
        first,
        "its owner does"
    );

    let namespace = worker(&node, "hello").await;
    node.effects.take_calls();
    let second = create(&node, application(&namespace, "web:1")).await;
    assert_ne!(first, second);
    let calls = node.effects.take_calls();
    assert_eq!(
        calls[1..],
        [
            format!("application_changed {first}"),
            format!("application_changed {second}")
        ]
    );
    node.delete(&format!("containers/applications/{second}"))
        .await
        .ok();
    assert_eq!(node.store.applications().unwrap(), []);
    assert_eq!(
        node.effects.take_calls(),
        [format!("application_changed {second}")]
    );
    node.delete(&format!("containers/applications/{second}"))
        .await
        .error(404, 1000);
}

#[tokio::test]
async fn the_registry_gets_passwords_that_it_accepts() {
    let node = Node::new();
    let me = node.get("containers/me").await.ok();
    assert_eq!(me["external_account_id"], node.account);
    assert!(me["limits"]["disk_mb_per_deployment"].as_u64().unwrap() >= 20_000);

    let ask = json!({"expiration_minutes": 15, "permissions": ["push", "pull"]});
    let path = "containers/registries/127.0.0.1:7400/credentials";
    let given = node.json(Method::POST, path, ask.clone()).await.ok();
    assert_eq!(given["username"], "v1");
    assert_eq!(given["account_id"], node.account);
    let password = given["password"].as_str().unwrap();
    assert!(node.store.registry_token(password).unwrap().push);
    assert!(!node.store.check_token(password), "it is no API token");
    let pull = json!({"expiration_minutes": 15, "permissions": ["pull"]});
    let given = node.json(Method::POST, path, pull).await.ok();
    assert!(
        !node
            .store
            .registry_token(given["password"].as_str().unwrap())
            .unwrap()
            .push
    );

    let message = node
        .json(
            Method::POST,
            "containers/registries/registry.cloudflare.com/credentials",
            ask,
        )
        .await
        .error(404, 1000);
    assert!(
        message.contains("CLOUDFLARE_CONTAINER_REGISTRY=127.0.0.1:7400"),
        "{message}"
    );
    for minutes in [0, -1, 100_000] {
        node.json(Method::POST, path, json!({"expiration_minutes": minutes}))
            .await
            .error(400, 10004);
    }
}

/// A Worker that chooses between two images; returns its namespace's id.
async fn choosing(node: &Node, script: &str) -> String {
    let metadata = json!({
        "bindings": [{"type": "durable_object_namespace", "name": "C", "class_name": "C"}],
        "migrations": {"new_tag": "v1", "steps": [{"new_sqlite_classes": ["C"]}]},
        "containers": [{"class_name": "C", "name": "web", "images": {"one": "r/a/one:1", "two": "r/a/two:1"}}],
    });
    node.put(script, metadata).await.ok();
    node.store.namespaces(script).unwrap()[0].id.clone()
}

fn managed(namespace: &str) -> Value {
    json!({
        "name": "web",
        "scheduling_policy": "durable_object",
        "durable_objects": {"namespace_id": namespace},
    })
}

#[tokio::test]
async fn named_images_are_prepared_kept_with_the_version_and_shown() {
    let node = Node::new();
    let prepare = |image: &str| {
        let body = json!({"image": image});
        node.json(Method::POST, "containers/image-preparations", body)
    };
    assert_eq!(prepare("r/a/one:1").await.ok()["status"], "ready");
    node.effects.bad_images.lock().unwrap().push("r/bad".into());
    let refused = prepare("r/bad").await.ok();
    assert_eq!(
        (&refused["status"], &refused["reason"]),
        (&json!("error"), &json!("no such image on this node"))
    );
    node.effects.take_calls();
    choosing(&node, "hello").await;
    let calls = node.effects.take_calls();
    assert_eq!(
        calls,
        [
            "prepare_image r/a/one:1",
            "prepare_image r/a/two:1",
            "script_changed hello"
        ]
    );
    let version = node.store.deployed_version("hello").unwrap().unwrap();
    let shown = node
        .get(&format!("workers/scripts/hello/versions/{}", version.id))
        .await
        .ok();
    assert_eq!(
        shown["resources"]["script_runtime"]["containers"],
        json!([{"name": "web", "class_name": "C", "images": {"one": "r/a/one:1", "two": "r/a/two:1"}}])
    );

    // One that is not here is named, and nothing changes.
    let bad =
        json!({"containers": [{"class_name": "C", "name": "web", "images": {"one": "r/bad"}}]});
    let text = node.put("hello", bad).await.error(400, 10004);
    assert!(
        text.contains("\"one\"") && text.contains("no such image"),
        "{text}"
    );
    let after = node.store.deployed_version("hello").unwrap().unwrap();
    assert_eq!(after.id, version.id);
}

#[tokio::test]
async fn an_application_that_its_objects_manage_has_the_id_of_its_namespace() {
    let node = Node::new();
    let namespace = choosing(&node, "hello").await;
    let path = format!("containers/applications/{namespace}");
    assert_eq!(node.get(&path).await.status, 404);
    assert_eq!(create(&node, managed(&namespace)).await, namespace);
    let shown = node.get(&path).await.ok();
    assert_eq!(shown["id"], namespace.as_str());
    assert_eq!(shown["durable_objects"]["namespace_id"], namespace.as_str());
    assert_eq!(shown["scheduling_policy"], "durable_object");
    assert_eq!(shown["name"], "web");
    assert!(shown.get("max_instances").is_none(), "{shown}");

    let patch = json!({"observability": {"logs": {"enabled": true}}});
    let patched = node.json(Method::PATCH, &path, patch).await.ok();
    assert_eq!(patched["observability"]["logs"]["enabled"], true);
    for wrong in [
        json!({"max_instances": 3}),
        json!({"configuration": {"image": "a:1"}}),
        json!({"scheduling_policy": "default"}),
    ] {
        let reply = node.json(Method::PATCH, &path, wrong.clone()).await;
        assert_eq!(reply.status, 400, "{wrong}");
    }
    let rollout = json!({"target_configuration": {"image": "a:1"}});
    let rollouts = format!("{path}/rollouts");
    let reply = node.json(Method::POST, &rollouts, rollout).await;
    assert_eq!(reply.status, 400);

    // A Worker without named images has no such application.
    let other = worker(&node, "other").await;
    let mut sent = managed(&other);
    sent["name"] = json!("other");
    let reply = node
        .json(Method::POST, "containers/applications", sent)
        .await;
    let text = reply.error(400, 10501);
    assert!(text.contains("without named"), "{text}");
}
