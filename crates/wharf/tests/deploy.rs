//! What a user does with wrangler, with the real one in both pinned versions, a real workerd and real containers.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use self::common::{Node, Project, WRANGLERS, wait_until};

fn hello(node: &Node) -> serde_json::Value {
    let answer = node.get("hello", "/api/hello");
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, node.log());
    answer.json()
}

/// Deploys the example, redeploys it with another server binary, and takes it down again.
fn whole_story(wrangler: &str) {
    let node = Node::start();
    let project = Project::copy_of("hello");
    project.build_server("one");
    node.wrangler_ok(wrangler, &project.path(), &["deploy"]);

    let first = hello(&node);
    assert_eq!(first["version"], "one");
    assert_eq!(first["message"], "Hello from a container");
    let page = node.get("hello", "/");
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type")
            .is_some_and(|t| t.starts_with("text/html")),
        "{:?}",
        page.headers
    );
    assert_eq!(node.get("hello", "/api/count").json()["count"], 1);
    assert_eq!(node.get("hello", "/api/count").json()["count"], 2);

    // Another name is another object, and another container.
    let other = node.get("hello", "/api/hello/other").json();
    assert_ne!(other["hostname"], first["hostname"]);
    assert_eq!(node.status()["instances"].as_array().unwrap().len(), 2);

    // A changed binary is what serves after the next deploy; the counter goes on.
    project.build_server("two");
    node.wrangler_ok(wrangler, &project.path(), &["deploy"]);
    assert_eq!(hello(&node)["version"], "two");
    assert_eq!(node.get("hello", "/api/count").json()["count"], 3);

    // An unchanged project deploys again, and still serves.
    node.wrangler_ok(wrangler, &project.path(), &["deploy"]);
    assert_eq!(hello(&node)["version"], "two");

    let listed = node.wrangler_ok(wrangler, &project.path(), &["deployments", "list"]);
    assert!(listed.matches("Created:").count() >= 3, "{listed}");
    let who = node.wrangler_ok(wrangler, &project.path(), &["whoami"]);
    assert!(who.to_lowercase().contains("wharf"), "{who}");

    node.wrangler_ok(wrangler, &project.path(), &["delete", "--force"]);
    assert_eq!(node.get("hello", "/api/hello").status, 404);
    wait_until("the containers to go", || {
        node.status()["instances"].as_array().unwrap().is_empty()
    });
}

#[test]
fn hello_with_wrangler_for_node_20() {
    whole_story(WRANGLERS[0]);
}

#[test]
fn hello_with_current_wrangler() {
    whole_story(WRANGLERS[1]);
}

#[test]
fn secrets_services_and_crons() {
    let node = Node::start();
    let back = Project::new(&[
        (
            "wrangler.json",
            r#"{"name":"back","main":"w.js","compatibility_date":"2026-11-01"}"#,
        ),
        (
            "w.js",
            r#"import { WorkerEntrypoint } from "cloudflare:workers";
               export default class extends WorkerEntrypoint {
                 async fetch(request) { return new Response("back saw " + new URL(request.url).pathname); }
                 async add(a, b) { return a + b; }
               }"#,
        ),
    ]);
    let front = Project::new(&[
        (
            "wrangler.json",
            r#"{"name":"front","main":"w.js","compatibility_date":"2026-11-01","vars":{"PLAIN":"p"},
                "services":[{"binding":"BACK","service":"back"}],
                "durable_objects":{"bindings":[{"name":"RUNS","class_name":"Runs"}]},
                "migrations":[{"tag":"v1","new_sqlite_classes":["Runs"]}],
                "triggers":{"crons":["* * * * *"]}}"#,
        ),
        (
            "w.js",
            r#"import { DurableObject } from "cloudflare:workers";
               export class Runs extends DurableObject {
                 async ran(cron) { await this.ctx.storage.put("runs", [...await this.runs(), cron]); }
                 async runs() { return (await this.ctx.storage.get("runs")) ?? []; }
               }
               export default {
                 async fetch(request, env) {
                   const path = new URL(request.url).pathname;
                   if (path == "/secret") return new Response(`${env.PLAIN} ${env.SECRET}`);
                   if (path == "/back") return env.BACK.fetch("http://back/hi");
                   if (path == "/add") return new Response(String(await env.BACK.add(2, 3)));
                   if (path == "/runs") return Response.json(await env.RUNS.getByName("x").runs());
                   return new Response("front");
                 },
                 async scheduled(event, env) { await env.RUNS.getByName("x").ran(event.cron); },
               };"#,
        ),
    ]);
    let v = WRANGLERS[1];
    node.wrangler_ok(v, &back.path(), &["deploy"]);
    node.wrangler_ok(v, &front.path(), &["deploy"]);
    assert_eq!(node.get("front", "/back").body, "back saw /hi");
    assert_eq!(node.get("front", "/add").body, "5");
    assert_eq!(node.get("front", "/secret").body, "p undefined");

    let mut put = node.wrangler_command(v, &front.path(), &["secret", "put", "SECRET"]);
    let mut put = put.stdin(std::process::Stdio::piped()).spawn().unwrap();
    use std::io::Write;
    put.stdin.take().unwrap().write_all(b"s3cret\n").unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(node.get("front", "/secret").body, "p s3cret");
    // A deploy without the secret keeps it.
    node.wrangler_ok(v, &front.path(), &["deploy"]);
    assert_eq!(node.get("front", "/secret").body, "p s3cret");

    // The other side of a service binding is found by name at each call: a redeploy of it shows.
    let script = std::fs::read_to_string(back.path().join("w.js")).unwrap();
    back.write("w.js", &script.replace("back saw", "new back saw"));
    node.wrangler_ok(v, &back.path(), &["deploy"]);
    assert_eq!(node.get("front", "/back").body, "new back saw /hi");

    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(90);
    loop {
        let runs = node.get("front", "/runs").json();
        if runs.as_array().is_some_and(|r| !r.is_empty()) {
            assert_eq!(runs[0], "* * * * *");
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the cron trigger did not run within 90 s\n{}",
            node.log()
        );
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}

#[test]
fn a_worker_without_workers_dev_is_reached_by_service_bindings_alone() {
    let mut node = Node::start();
    let config = |workers_dev: &str| {
        format!(
            r#"{{"name":"inner","main":"w.js","compatibility_date":"2026-11-01"{workers_dev}}}"#
        )
    };
    let off = config(r#","workers_dev":false,"preview_urls":false"#);
    let inner = Project::new(&[
        ("wrangler.json", off.as_str()),
        (
            "w.js",
            r#"export default { fetch() { return new Response("inner answers"); } };"#,
        ),
    ]);
    let front = Project::new(&[
        (
            "wrangler.json",
            r#"{"name":"front","main":"w.js","compatibility_date":"2026-11-01",
                "services":[{"binding":"INNER","service":"inner"}]}"#,
        ),
        (
            "w.js",
            r#"export default { fetch(request, env) { return env.INNER.fetch("http://inner/"); } };"#,
        ),
    ]);
    let process = |node: &Node, script: &str| {
        let status = node.status();
        let scripts = status["scripts"].as_array().unwrap().clone();
        scripts.into_iter().find(|s| s["script"] == script).unwrap()
    };
    for wrangler in WRANGLERS {
        inner.write("wrangler.json", &off);
        node.wrangler_ok(wrangler, &inner.path(), &["deploy"]);
        node.wrangler_ok(wrangler, &front.path(), &["deploy"]);
        assert_eq!(node.get("inner", "/").status, 404, "with {wrangler}");
        assert_eq!(node.get("front", "/").body, "inner answers");
        assert!(process(&node, "inner")["url"].is_null());
        let said = node.command().arg("status").output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let line = said.lines().find(|l| l.starts_with("inner")).unwrap();
        assert!(line.contains("workers_dev is false"), "{said}");

        // It keeps to that after a crash of the node.
        node.kill_9();
        node.launch();
        assert_eq!(node.get("inner", "/").status, 404);
        assert_eq!(node.get("front", "/").body, "inner answers");

        // Without the key it is public, since it has no routes.
        inner.write("wrangler.json", &config(""));
        node.wrangler_ok(wrangler, &inner.path(), &["deploy"]);
        assert_eq!(node.get("inner", "/").body, "inner answers");
        assert!(process(&node, "inner")["url"].is_string());
    }

    // A Worker that is deleted takes its address with it.
    node.wrangler_ok(WRANGLERS[1], &front.path(), &["delete", "--force"]);
    node.wrangler_ok(WRANGLERS[1], &inner.path(), &["delete", "--force"]);
    assert_eq!(node.get("inner", "/").status, 404);
    inner.write("wrangler.json", &off);
    node.wrangler_ok(WRANGLERS[1], &inner.path(), &["deploy"]);
    assert_eq!(node.get("inner", "/").status, 404);
}

#[test]
fn refusals_say_why() {
    let node = Node::start();
    let project = Project::new(&[
        (
            "wrangler.json",
            r#"{"name":"kv","main":"w.js","compatibility_date":"2026-11-01","kv_namespaces":[{"binding":"STORE","id":"0123456789abcdef0123456789abcdef"}]}"#,
        ),
        (
            "w.js",
            r#"export default { fetch() { return new Response("kv"); } };"#,
        ),
    ]);
    let v = WRANGLERS[1];
    let out = node.wrangler(v, &project.path(), &["deploy"]);
    let text =
        String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success());
    assert!(
        text.contains("KV") && text.contains("not supported"),
        "{text}"
    );
    assert_eq!(node.get("kv", "/").status, 404);

    // A Worker that does not compile is refused with workerd's words, and what served before still serves.
    project.write(
        "wrangler.json",
        r#"{"name":"kv","main":"w.js","compatibility_date":"2026-11-01"}"#,
    );
    node.wrangler_ok(v, &project.path(), &["deploy"]);
    assert_eq!(node.get("kv", "/").body, "kv");
    project.write(
        "w.js",
        "throw new Error('boom at start'); export default {};",
    );
    let out = node.wrangler(v, &project.path(), &["deploy"]);
    let text =
        String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success(), "{text}");
    assert!(text.contains("boom at start"), "{text}");
    assert_eq!(node.get("kv", "/").body, "kv");

    // A wrong token is told so.
    let mut command = node.wrangler_command(v, &project.path(), &["deploy"]);
    let out = command
        .env("CLOUDFLARE_API_TOKEN", "wrong")
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success());
    assert!(text.contains("10000"), "{text}");
}

#[test]
fn a_websocket_reaches_the_worker_and_back() {
    let node = Node::start();
    let project = Project::new(&[
        (
            "wrangler.json",
            r#"{"name":"ws","main":"w.js","compatibility_date":"2026-11-01"}"#,
        ),
        (
            "w.js",
            r#"export default { fetch() {
                 const [client, server] = Object.values(new WebSocketPair());
                 server.accept();
                 server.addEventListener("message", (m) => server.send("echo " + m.data));
                 return new Response(null, { status: 101, webSocket: client });
               } };"#,
        ),
    ]);
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(node.gateway).unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    write!(
        socket,
        "GET / HTTP/1.1\r\nHost: ws.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    // One masked text frame "hi" (RFC 6455, 5.2), mask 0.
    socket
        .write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'])
        .unwrap();
    let mut frame = [0; 9];
    socket.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\x81\x07echo hi");
}
