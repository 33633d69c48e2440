//! Who gets in, how much may be sent, and how everything else is refused.
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use axum::body::Body;
use http::{Method, Request, header};
use serde_json::json;

use self::common::{Node, multipart, upload};

#[tokio::test]
async fn a_wrong_token_gets_401_and_code_10000_everywhere() {
    let node = Node::new();
    for path in [
        "/user".to_owned(),
        format!("/accounts/{}/workers/scripts", node.account),
        format!("/accounts/{}/nowhere", node.account),
        format!("/accounts/{}/workers/assets/upload", node.account),
    ] {
        for token in [
            None,
            Some("Bearer nonsense"),
            Some("Basic Zm9v"),
            Some("Bearer "),
        ] {
            let mut request = Request::builder()
                .method(Method::POST)
                .uri(format!("/client/v4{path}"));
            if let Some(token) = token {
                request = request.header(header::AUTHORIZATION, token);
            }
            let reply = node.send(request.body(Body::empty()).unwrap()).await;
            let message = reply.error(401, 10000);
            assert!(
                message.starts_with("Authentication error"),
                "{path} {token:?}: {message}"
            );
        }
    }
}

#[tokio::test]
async fn the_token_counts_as_an_api_key_too() {
    let node = Node::new();
    let request = Request::builder()
        .uri("/client/v4/user")
        .header("X-Auth-Key", &node.token)
        .header("X-Auth-Email", "me@example.org")
        .body(Body::empty())
        .unwrap();
    node.send(request).await.ok();
}

#[tokio::test]
async fn whoami_finds_its_answers() {
    let node = Node::new();
    assert_eq!(
        node.get("/user/tokens/verify").await.ok()["status"],
        "active"
    );
    assert!(node.get("/user").await.ok()["email"].is_string());
    assert_eq!(node.get("/accounts").await.ok()[0]["id"], node.account);
    assert_eq!(
        node.get("/memberships").await.ok()[0]["account"]["id"],
        node.account
    );
    // Pages end.
    for list in [
        "/accounts?page=2",
        "/memberships?page=2&per_page=50",
        "storage/kv/namespaces?page=1",
    ] {
        assert_eq!(node.get(list).await.ok(), json!([]), "{list}");
    }
}

#[tokio::test]
async fn another_accounts_id_is_told_the_right_one() {
    let node = Node::new();
    let message = node
        .get("/accounts/ffffffffffffffffffffffffffffffff/workers/scripts")
        .await
        .error(404, 7003);
    assert!(
        message.contains(&format!("CLOUDFLARE_ACCOUNT_ID={}", node.account)),
        "{message}"
    );
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_name() {
    let node = Node::new();
    for (path, name) in [
        ("r2/buckets", "R2 buckets"),
        ("storage/kv/namespaces/x/values/y", "KV namespaces"),
        ("d1/database", "D1 databases"),
        ("queues?name=q&page=1", "Queues"),
        ("workers/dispatch/namespaces/x", "dispatch namespaces"),
        ("workers/scripts/hello/tails", "live tails"),
        ("/zones?name=example.com", "routes and zones"),
    ] {
        let message = node.get(path).await.error(400, 10501);
        assert_eq!(
            message,
            format!("{name} are not supported by this Wharf yet")
        );
    }
    node.json(Method::POST, "storage/kv/namespaces", json!({"title": "x"}))
        .await
        .error(400, 10501);
    let unknown = node.get("no/such/thing").await.error(404, 7003);
    assert!(
        unknown.contains("GET") && unknown.contains("/no/such/thing"),
        "{unknown}"
    );
    let method = node
        .json(Method::PATCH, "workers/subdomain", json!({}))
        .await
        .error(404, 7003);
    assert!(method.contains("PATCH"), "{method}");
}

#[tokio::test]
async fn a_malformed_query_is_refused_in_the_envelope_too() {
    let node = Node::new();
    let message = node
        .get("workers/scripts?page=first")
        .await
        .error(400, 10004);
    assert!(message.contains("page"), "{message}");
}

#[tokio::test]
async fn a_worker_that_does_not_exist_has_the_code_that_wrangler_knows() {
    let node = Node::new();
    for path in [
        "workers/workers/hello",
        "workers/scripts/hello/deployments",
        "workers/scripts/hello/versions",
        "workers/scripts/hello/settings",
        "workers/scripts/hello/script-settings",
        "workers/scripts/hello/secrets",
        "workers/scripts/hello/schedules",
        "workers/scripts/hello/subdomain",
        "workers/scripts/hello/references",
    ] {
        node.get(path).await.error(404, 10007);
    }
    node.form(
        Method::POST,
        "workers/scripts/hello/versions",
        upload(json!({})),
    )
    .await
    .error(404, 10007);
    node.json(
        Method::PUT,
        "workers/scripts/hello/secrets",
        json!({"name": "A", "text": "b", "type": "secret_text"}),
    )
    .await
    .error(404, 10007);
    node.delete("workers/scripts/hello?force=true")
        .await
        .error(404, 10007);
    // Wranglers before 4.58 know a Worker that is not there yet by this code alone.
    node.get("workers/services/hello").await.error(404, 10090);
    node.delete("workers/services/hello?force=true")
        .await
        .error(404, 10090);
}

#[tokio::test]
async fn too_much_is_refused_with_the_limit() {
    let node = Node::new();
    node.put("hello", json!({})).await.ok();
    let text = "x".repeat((1 << 20) + 1);
    let message = node
        .json(
            Method::PUT,
            "workers/scripts/hello/secrets",
            json!({"name": "A", "text": text}),
        )
        .await
        .error(413, 10027);
    assert!(message.contains("1 MiB"), "{message}");

    let module = vec![b' '; (64 << 20) + 1];
    let kind = Some("application/octet-stream");
    let body = multipart(&[
        ("metadata", None, None, b"{}"),
        ("a.bin", Some("a.bin"), kind, &module),
    ]);
    let message = node
        .form(Method::PUT, "workers/scripts/hello", body)
        .await
        .error(413, 10027);
    assert!(
        message.contains("64 MiB") && message.contains("a.bin"),
        "{message}"
    );

    let half = &module[..40 << 20];
    let body = multipart(&[
        ("metadata", None, None, b"{}"),
        ("a.bin", Some("a.bin"), kind, half),
        ("b.bin", Some("b.bin"), kind, half),
    ]);
    let message = node
        .form(Method::PUT, "workers/scripts/hello", body)
        .await
        .error(413, 10027);
    assert!(
        message.contains("64 MiB") && message.contains("total"),
        "{message}"
    );
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be_are_named() {
    let node = Node::new();
    let request = node
        .request(Method::PUT, "workers/scripts/hello")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from("{}"))
        .unwrap();
    let message = node.send(request).await.error(400, 10004);
    assert!(message.contains("multipart/form-data"), "{message}");

    let broken =
        b"------test\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n{".to_vec();
    node.form(Method::PUT, "workers/scripts/hello", broken)
        .await
        .error(400, 10004);
    node.form(Method::PUT, "workers/scripts/hello", multipart(&[]))
        .await
        .error(400, 10004);
    let not_json = multipart(&[("metadata", None, None, b"{nope")]);
    node.form(Method::PUT, "workers/scripts/hello", not_json)
        .await
        .error(400, 10004);
    node.put("Hello", json!({})).await.error(400, 10016);
    assert_eq!(node.deployed("hello"), None);
    assert!(node.effects.take_calls().is_empty());
}
