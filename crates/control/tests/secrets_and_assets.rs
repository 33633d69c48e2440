//! Secrets and static assets.
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::collections::BTreeMap;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Method, header};
use serde_json::{Value, json};
use wharf_model::{Binding, Version};

use self::common::{BOUNDARY, Node, Reply, multipart};

fn secrets(version: &Version) -> BTreeMap<&str, &str> {
    version
        .bindings
        .iter()
        .filter_map(|binding| match binding {
            Binding::SecretText { name, text } => Some((name.as_str(), text.as_str())),
            _ => None,
        })
        .collect()
}

async fn put_secret(node: &Node, name: &str, text: &str) -> Value {
    let body = json!({"name": name, "text": text, "type": "secret_text"});
    node.json(Method::PUT, "workers/scripts/hello/secrets", body)
        .await
        .ok()
}

#[tokio::test]
async fn a_secret_is_deployed_at_once_never_shown_and_survives_deploys() {
    let node = Node::new();
    node.put(
        "hello",
        json!({"bindings": [{"type": "plain_text", "name": "A", "text": "1"}]}),
    )
    .await
    .ok();
    node.effects.take_calls();
    assert_eq!(
        put_secret(&node, "KEY", "hunter2").await,
        json!({"name": "KEY", "type": "secret_text"})
    );
    assert_eq!(node.effects.take_calls(), ["script_changed hello"]);
    let version = node.deployed_version("hello");
    assert_eq!(version.number, 2);
    assert_eq!(version.bindings.len(), 2);
    assert_eq!(secrets(&version), BTreeMap::from([("KEY", "hunter2")]));

    for path in [
        "workers/scripts/hello/secrets".to_owned(),
        "workers/scripts/hello/settings".to_owned(),
        "workers/scripts/hello/versions".to_owned(),
        "workers/scripts/hello/deployments".to_owned(),
        format!("workers/scripts/hello/versions/{}", version.id),
    ] {
        let reply = node.get(&path).await;
        assert!(!reply.body.to_string().contains("hunter2"), "{path}");
        reply.ok();
    }
    let deployments = node.get("workers/scripts/hello/deployments").await.ok();
    assert_eq!(
        deployments["deployments"][0]["annotations"]["workers/triggered_by"],
        "secret"
    );

    // wrangler 4.86 sends no keep_bindings.
    node.put("hello", json!({})).await.ok();
    let version = node.deployed_version("hello");
    assert_eq!(secrets(&version), BTreeMap::from([("KEY", "hunter2")]));

    node.delete("workers/scripts/hello/secrets/NOPE?url_encoded=true")
        .await
        .error(404, 10056);
    node.delete("workers/scripts/hello/secrets/KEY?url_encoded=true")
        .await
        .ok();
    let version = node.deployed_version("hello");
    assert_eq!(secrets(&version), BTreeMap::new());
    assert_eq!(
        node.get("workers/scripts/hello/secrets").await.ok(),
        json!([])
    );
    // A name that is a variable can't be a secret too.
    node.put(
        "hello",
        json!({"bindings": [{"type": "plain_text", "name": "A", "text": "1"}]}),
    )
    .await
    .ok();
    let body = json!({"name": "A", "text": "x", "type": "secret_text"});
    node.json(Method::PUT, "workers/scripts/hello/secrets", body)
        .await
        .error(400, 10053);
}

#[tokio::test]
async fn a_secret_that_stops_the_worker_from_starting_is_taken_back() {
    let node = Node::new();
    node.put("hello", json!({})).await.ok();
    node.effects.fail_next("throws at start");
    let body = json!({"name": "KEY", "text": "bad", "type": "secret_text"});
    node.json(Method::PUT, "workers/scripts/hello/secrets", body)
        .await
        .error(400, 10021);
    assert_eq!(
        node.get("workers/scripts/hello/secrets").await.ok(),
        json!([])
    );
    assert_eq!(node.deployed_version("hello").number, 1);
}

#[tokio::test]
async fn several_secrets_at_once_are_one_version_in_both_dialects() {
    let node = Node::new();
    node.put(
        "hello",
        json!({"bindings": [{"type": "plain_text", "name": "V", "text": "1"}]}),
    )
    .await
    .ok();
    let bulk = json!({"secrets": {"A": {"name": "A", "text": "1", "type": "secret_text"}, "B": {"text": "2"}, "GONE": null}});
    node.json(Method::PATCH, "workers/scripts/hello/secrets-bulk", bulk)
        .await
        .ok();
    let version = node.deployed_version("hello");
    assert_eq!(
        (version.number, secrets(&version)),
        (2, BTreeMap::from([("A", "1"), ("B", "2")]))
    );

    // Before 4.125: the bindings that stay, by type and name, and the secrets.
    let settings = json!({"bindings": [
        {"type": "plain_text", "name": "V"},
        {"type": "secret_text", "name": "A"},
        {"type": "secret_text", "name": "C", "text": "3"},
    ]});
    let form = multipart(&[("settings", None, None, settings.to_string().as_bytes())]);
    node.form(Method::PATCH, "workers/scripts/hello/settings", form)
        .await
        .ok();
    let version = node.deployed_version("hello");
    assert_eq!(
        (version.number, secrets(&version)),
        (3, BTreeMap::from([("A", "1"), ("C", "3")]))
    );
    assert_eq!(version.bindings[0].name(), "V");
    assert_eq!(node.store.secrets("hello").unwrap().len(), 2);

    // `versions secret put`: a version that does not serve yet.
    let patch = json!({"env": {"D": {"type": "secret_text", "text": "4"}, "A": null}, "annotations": {"workers/tag": "t"}});
    let made = node
        .json(
            Method::PATCH,
            "workers/workers/hello/versions/latest",
            patch,
        )
        .await
        .ok();
    assert_eq!(made["number"], 4);
    let made = node
        .store
        .version(made["id"].as_str().unwrap())
        .unwrap()
        .unwrap();
    assert_eq!(secrets(&made), BTreeMap::from([("C", "3"), ("D", "4")]));
    assert_eq!(node.deployed_version("hello").number, 3);
}

#[tokio::test]
async fn a_rollback_over_changed_secrets_wants_to_be_meant() {
    let node = Node::new();
    node.put("hello", json!({})).await.ok();
    let first = node.deployed("hello").unwrap();
    put_secret(&node, "B", "1").await;
    put_secret(&node, "A", "1").await;
    let body =
        json!({"strategy": "percentage", "versions": [{"version_id": first, "percentage": 100}]});
    let path = "workers/scripts/hello/deployments";
    let message = node
        .json(Method::POST, path, body.clone())
        .await
        .error(400, 10220);
    assert_eq!(message, "The following secrets have changed: A, B");
    node.json(Method::POST, &format!("{path}?force=true"), body)
        .await
        .ok();
    assert_eq!(node.deployed("hello").as_deref(), Some(&*first));
    assert_eq!(
        node.get("workers/scripts/hello/secrets").await.ok(),
        json!([])
    );
}

/// As wrangler: blake3 of the base64 text and the extension, cut to 32 digits.
fn client_hash(content: &[u8], extension: &str) -> String {
    blake3::hash(format!("{}{extension}", BASE64.encode(content)).as_bytes()).to_hex()[..32]
        .to_owned()
}

async fn start(node: &Node, script: &str, files: &[(&str, &[u8], &str)]) -> Value {
    let manifest: serde_json::Map<String, Value> = files
        .iter()
        .map(|(path, content, extension)| {
            let entry = json!({"hash": client_hash(content, extension), "size": content.len()});
            ((*path).to_owned(), entry)
        })
        .collect();
    let path = format!("workers/scripts/{script}/assets-upload-session");
    node.json(Method::POST, &path, json!({"manifest": manifest}))
        .await
        .ok()
}

async fn send_file(node: &Node, jwt: &str, name: &str, content: &[u8]) -> Reply {
    let text = BASE64.encode(content);
    let form = multipart(&[(name, Some(name), Some("text/html"), text.as_bytes())]);
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(format!(
            "/client/v4/accounts/{}/workers/assets/upload?base64=true",
            node.account
        ))
        .header(header::AUTHORIZATION, format!("Bearer {jwt}"))
        .header(
            header::CONTENT_TYPE,
            format!("multipart/form-data; boundary={BOUNDARY}"),
        )
        .body(Body::from(form))
        .unwrap();
    node.send(request).await
}

#[tokio::test]
async fn assets_are_checked_asked_for_once_and_deployed() {
    let node = Node::new();
    let files: [(&str, &[u8], &str); 3] = [
        ("/index.html", b"<h1>hi</h1>", "html"),
        ("/copy.html", b"<h1>hi</h1>", "html"),
        ("/LICENSE", b"free", ""),
    ];
    let started = start(&node, "hello", &files).await;
    let jwt = started["jwt"].as_str().unwrap();
    let (page, licence) = (client_hash(files[0].1, "html"), client_hash(files[2].1, ""));
    let asked: Vec<&str> = started["buckets"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|b| b.as_array().unwrap())
        .map(|h| h.as_str().unwrap())
        .collect();
    assert_eq!(asked.len(), 2, "the same content is asked for once");

    // The wrong content, a file that nobody asked for, no base64.
    assert!(
        send_file(&node, jwt, &page, b"<h1>HI</h1>")
            .await
            .error(400, 10004)
            .contains("hash")
    );
    assert!(
        send_file(&node, jwt, &page, b"longer than that")
            .await
            .error(400, 10004)
            .contains("bytes")
    );
    send_file(&node, jwt, &client_hash(b"x", ""), b"x")
        .await
        .error(400, 10004);
    // A session that is not complete can't be deployed; its token is none for a version.
    let deploy = |jwt: &str| {
        json!({"assets": {"jwt": jwt, "config": {"html_handling": "none"}},
        "bindings": [{"type": "assets", "name": "ASSETS"}]})
    };
    node.put("hello", deploy(jwt)).await.error(401, 10000);

    assert_eq!(
        send_file(&node, jwt, &page, files[0].1).await.ok(),
        json!({})
    );
    let completed = send_file(&node, jwt, &licence, files[2].1).await.ok();
    let completion = completed["jwt"].as_str().unwrap();
    send_file(&node, completion, &page, files[0].1)
        .await
        .error(401, 10000);
    node.put("other", deploy(completion))
        .await
        .error(400, 10021);
    node.put("hello", deploy(completion)).await.ok();

    let version = node.deployed_version("hello");
    let assets = version.assets.unwrap();
    let paths: Vec<&str> = assets.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, ["/LICENSE", "/copy.html", "/index.html"]);
    assert_eq!(
        node.store.read_blob(&assets.files[2].blob).unwrap(),
        files[0].1
    );
    assert_eq!(assets.config, json!({"html_handling": "none"}));

    // Nothing new: complete from the start, for any script.
    let again = start(&node, "other", &files).await;
    assert_eq!(again["buckets"], json!([]));
    node.put("other", deploy(again["jwt"].as_str().unwrap()))
        .await
        .ok();
    // An upload that keeps them, and one that drops them.
    node.put("hello", json!({"keep_assets": true})).await.ok();
    assert_eq!(node.deployed_version("hello").assets.unwrap(), assets);
    node.put("hello", json!({})).await.ok();
    assert_eq!(node.deployed_version("hello").assets, None);
}

#[tokio::test]
async fn a_project_of_assets_alone_gets_a_worker_that_serves_them() {
    let node = Node::new();
    let started = start(&node, "site", &[("/index.html", b"hi", "html")]).await;
    let hash = client_hash(b"hi", "html");
    let completed = send_file(&node, started["jwt"].as_str().unwrap(), &hash, b"hi")
        .await
        .ok();
    let metadata = json!({"assets": {"jwt": completed["jwt"], "config": {}}, "compatibility_date": "2026-01-01"});
    let form = multipart(&[("metadata", None, None, metadata.to_string().as_bytes())]);
    node.form(Method::PUT, "workers/scripts/site", form)
        .await
        .ok();
    let version = node.store.deployed_version("site").unwrap().unwrap();
    assert_eq!(version.modules.len(), 1);
    assert_eq!(version.main_module, version.modules[0].name);
    assert_eq!(
        version.bindings,
        [Binding::Assets {
            name: "ASSETS".into()
        }]
    );
}
