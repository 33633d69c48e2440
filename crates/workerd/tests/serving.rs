//! One script with the real workerd: what it serves, how it swaps, crashes and comes back.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::json;
use wharf_model::{AssetFile, Assets, Binding, Module, ModuleKind};
use wharf_testkit::{eventually, kill};
use wharf_workerd::WorkerdError;

use self::support::{World, get, with_class};

const COUNTER: &str = r#"
import { DurableObject } from "cloudflare:workers";
export class Counter extends DurableObject {
  async fetch(request) {
    const n = ((await this.ctx.storage.get("n")) ?? 0) + 1;
    await this.ctx.storage.put("n", n);
    return new Response(VERSION + n);
  }
}
const VERSION = "v1:";
export default { fetch(request, env) { return env.COUNTER.getByName("a").fetch(request); } };
"#;

#[tokio::test]
async fn a_worker_sees_its_bindings_whatever_they_contain() {
    let world = World::new().await;
    let code = r#"
import text from "./some dir/\u00e9\"x.txt";
import data from "d.json";
import bytes from "b.bin";
export default { fetch(request, env) {
  return Response.json({ env, text, data, bytes: [...new Uint8Array(bytes)], url: request.url, cf: request.cf });
} };"#;
    let mut desired = world.desired("hello", 1, code);
    let text = "quote\" back\\slash\nnul\0 é 😀";
    for (name, kind, content) in [
        ("some dir/é\"x.txt", ModuleKind::Text, text.as_bytes()),
        ("d.json", ModuleKind::Json, b"{\"a\": [1]}"),
        ("b.bin", ModuleKind::Data, b"\xff\0\x01"),
    ] {
        desired.version.modules.push(Module {
            name: name.into(),
            kind,
            blob: world.blob(content),
        });
    }
    let mut expected = serde_json::Map::new();
    let mut runner = TestRunner::deterministic();
    let strings = proptest::collection::vec(proptest::prelude::any::<char>(), 0..40);
    for i in 0..150 {
        let value: String = strings
            .new_tree(&mut runner)
            .unwrap()
            .current()
            .into_iter()
            .collect();
        let name = format!("T{i}");
        expected.insert(name.clone(), json!(value));
        desired.version.bindings.push(match i % 3 {
            0 => Binding::Json {
                name,
                json: json!(value),
            },
            1 if !value.contains('\0') => Binding::SecretText { name, text: value },
            _ => Binding::PlainText { name, text: value },
        });
    }
    world.deploy(desired).await;
    let answer: serde_json::Value =
        serde_json::from_str(&world.text("hello", "/p?q").await).unwrap();
    assert_eq!(answer["env"], serde_json::Value::Object(expected));
    assert_eq!(answer["text"], text);
    assert_eq!(answer["data"], json!({"a": [1]}));
    assert_eq!(answer["bytes"], json!([255, 0, 1]));
    assert_eq!(answer["url"], "http://hello.localhost/p?q");
    world.close().await;
}

#[tokio::test]
async fn a_process_runs_as_its_own_user_and_its_secrets_are_not_on_disk() {
    let world = World::new().await;
    let code = "export default { fetch(r, env) { return new Response(env.KEY) } }";
    let mut desired = world.desired("hello", 7, code);
    desired.version.bindings.push(Binding::SecretText {
        name: "KEY".into(),
        text: "tr0ub4dor&3".into(),
    });
    world.deploy(desired).await;
    assert_eq!(world.text("hello", "/").await, "tr0ub4dor&3");
    let pid = world.pid("hello");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("\nUid:\t2000007\t2000007\t2000007\t2000007\n"));
    assert!(status.contains("\nCapEff:\t0000000000000000\n"));
    let grep = std::process::Command::new("grep")
        .args(["-r", "--devices=skip", "tr0ub4dor"])
        .arg(world.place.dir.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
    world.close().await;
}

#[tokio::test]
async fn stored_objects_survive_a_new_version_and_a_crash() {
    let world = World::new().await;
    world
        .deploy(with_class(world.desired("hello", 1, COUNTER), "Counter"))
        .await;
    assert_eq!(world.text("hello", "/").await, "v1:1");
    let v2 = COUNTER.replace("v1:", "v2:");
    world
        .deploy(with_class(world.desired("hello", 1, &v2), "Counter"))
        .await;
    assert_eq!(world.text("hello", "/").await, "v2:2");
    let pid = world.pid("hello");
    kill(pid);
    eventually("the crash is noticed", async || {
        (world.status("hello").crashes == 1).then_some(())
    })
    .await;
    // No error in between: requests wait for the next process.
    assert_eq!(world.text("hello", "/").await, "v2:3");
    let status = world.status("hello");
    assert_ne!(status.pid, Some(pid));
    assert!(status.last_error.unwrap().contains("killed (signal 9)"));
    world.close().await;
}

#[tokio::test]
async fn an_alarm_fires_after_a_restart() {
    let world = World::new().await;
    let code = r#"
import { DurableObject } from "cloudflare:workers";
export class Clock extends DurableObject {
  async fetch(request) {
    if (new URL(request.url).pathname == "/set") await this.ctx.storage.setAlarm(Date.now() + 1500);
    return new Response((await this.ctx.storage.get("rang")) ?? "no");
  }
  async alarm() { await this.ctx.storage.put("rang", "yes"); }
}
export default { fetch(request, env) { return env.CLOCK.getByName("a").fetch(request); } };"#;
    world
        .deploy(with_class(world.desired("hello", 1, code), "Clock"))
        .await;
    assert_eq!(world.text("hello", "/set").await, "no");
    kill(world.pid("hello"));
    eventually("the crash is noticed", async || {
        (world.status("hello").crashes == 1).then_some(())
    })
    .await;
    eventually("the alarm", async || {
        (world.text("hello", "/").await == "yes").then_some(())
    })
    .await;
    world.close().await;
}

#[tokio::test]
async fn deploys_under_load_lose_no_request() {
    let world = Arc::new(World::new().await);
    let code = |n: u32| {
        COUNTER.replace("v1:", &format!("v{n}:")).replace(
            "async fetch(request) {",
            "async fetch(request) { await scheduler.wait(5);",
        )
    };
    world
        .deploy(with_class(world.desired("hello", 1, &code(0)), "Counter"))
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (world, stop, served) = (world.clone(), stop.clone(), served.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let lease = world.supervisor.acquire("hello").await.unwrap();
                let answer = get(&lease, "/").await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text);
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for n in 1..=5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        world
            .deploy(with_class(world.desired("hello", 1, &code(n)), "Counter"))
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let counted = world.text("hello", "/").await;
    let total = served.load(Ordering::Relaxed) + 1;
    assert_eq!(
        counted,
        format!("v5:{total}"),
        "every request counted exactly once"
    );
    Arc::into_inner(world).unwrap().close().await;
}

#[tokio::test]
async fn a_version_that_does_not_start_says_why_and_a_mended_one_serves() {
    let world = World::new().await;
    let good = "export default { fetch() { return new Response('good') } }";
    world.deploy(world.desired("hello", 1, good)).await;
    let bad = world.desired("hello", 1, "export default { fetch( {{ }");
    let error = world
        .supervisor
        .check("hello", bad.clone())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("SyntaxError: Unexpected token"), "{error}");
    assert_eq!(
        world.text("hello", "/").await,
        "good",
        "a trial disturbs nothing"
    );

    world.supervisor.set("hello", bad);
    let error = world
        .supervisor
        .settled("hello")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("SyntaxError: Unexpected token") && error.contains("main.js:1:25"),
        "{error}"
    );
    let refused = world.supervisor.acquire("hello").await.unwrap_err();
    assert!(matches!(refused, WorkerdError::Broken(text) if text.contains("SyntaxError")));
    assert_eq!(world.status("hello").state, "backoff");

    let good = world.desired("hello", 1, good);
    world.supervisor.check("hello", good.clone()).await.unwrap();
    world.deploy(good).await;
    assert_eq!(world.text("hello", "/").await, "good");
    world.close().await;
}

#[tokio::test]
async fn the_last_words_of_a_crashed_process_are_kept() {
    let world = World::new().await;
    let code = "export default { fetch() { console.error('about to give up'); return new Response('x') } }";
    world.deploy(world.desired("hello", 1, code)).await;
    world.text("hello", "/").await;
    kill(world.pid("hello"));
    let error = eventually("the reason", async || world.status("hello").last_error).await;
    assert!(error.contains("about to give up"), "{error}");
    world.close().await;
}

#[tokio::test]
async fn the_scheduled_handler_runs() {
    let world = World::new().await;
    let code = r#"
let seen = [];
export default {
  fetch() { return Response.json(seen) },
  async scheduled(event) {
    if (event.cron == "bad") throw new Error("boom");
    seen.push([event.cron, event.scheduledTime]);
  },
}"#;
    world.deploy(world.desired("hello", 1, code)).await;
    let ran = world
        .supervisor
        .scheduled("hello", "*/5 * * * *", 1_700_000_100_000)
        .await
        .unwrap();
    assert_eq!(ran.outcome, "ok");
    assert_eq!(
        world.text("hello", "/").await,
        r#"[["*/5 * * * *",1700000100000]]"#
    );
    let failed = world.supervisor.scheduled("hello", "bad", 0).await.unwrap();
    assert_eq!(failed.outcome, "exception");
    let none = world.supervisor.scheduled("nobody", "bad", 0).await;
    assert!(matches!(none, Err(WorkerdError::NoScript(name)) if name == "nobody"));
    world.close().await;
}

#[tokio::test]
async fn assets_are_served_with_their_type_and_the_worker_gets_the_rest() {
    let world = World::new().await;
    let code = r#"export default { fetch(request, env) {
  if (new URL(request.url).pathname == "/via") return env.ASSETS.fetch("http://x/css/site.css");
  return new Response("worker");
} }"#;
    let mut desired = world.desired("hello", 1, code);
    let mut files = Vec::new();
    for (path, content) in [
        ("/index.html", "<h1>hi</h1>"),
        ("/css/site.css", "body{}"),
        ("/a b é.json", "{}"),
    ] {
        files.push(AssetFile {
            path: path.into(),
            blob: world.blob(content),
            size: content.len() as u64,
        });
    }
    desired.version.assets = Some(Assets {
        files,
        config: json!({"html_handling": "auto-trailing-slash", "run_worker_first": ["/css/first.css"],
            "_headers": "/css/*\n  X-From: headers\n", "_redirects": "/old /css/site.css 302\n"}),
    });
    desired.version.bindings.push(Binding::Assets {
        name: "ASSETS".into(),
    });
    world.deploy(desired).await;
    for (path, status, kind, text) in [
        ("/", 200, "text/html; charset=utf-8", "<h1>hi</h1>"),
        ("/css/site.css", 200, "text/css; charset=utf-8", "body{}"),
        ("/a%20b%20%C3%A9.json", 200, "application/json", "{}"),
        ("/nothing", 200, "text/plain;charset=UTF-8", "worker"),
        ("/via", 200, "text/css; charset=utf-8", "body{}"),
    ] {
        let answer = world.get("hello", path).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers["content-type"], kind, "{path}");
        assert_eq!(answer.text, text, "{path}");
    }
    let css = world.get("hello", "/css/site.css").await;
    assert_eq!(css.headers["x-from"], "headers");
    let old = world.get("hello", "/old").await;
    assert_eq!(old.status, 302);
    assert_eq!(old.headers["location"], "/css/site.css");
    world.close().await;
}

#[tokio::test]
async fn assets_need_no_code() {
    let world = World::new().await;
    let mut desired = world.desired("site", 1, "");
    desired.version.modules.clear();
    desired.version.assets = Some(Assets {
        files: vec![AssetFile {
            path: "/page.html".into(),
            blob: world.blob("page"),
            size: 4,
        }],
        config: json!({}),
    });
    world.deploy(desired).await;
    assert_eq!(world.text("site", "/page").await, "page");
    assert_eq!(world.get("site", "/nothing").await.status, 404);
    let error = world.supervisor.scheduled("site", "* * * * *", 0).await;
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("only static assets")
    );
    world.close().await;
}

#[tokio::test]
async fn an_open_web_socket_does_not_hold_up_a_deploy() {
    let world = World::with(|config| config.drain_ms = 3_600_000).await;
    let code = r#"export default { fetch(request) {
  const [client, server] = Object.values(new WebSocketPair());
  server.accept();
  return new Response(null, { status: 101, webSocket: client });
} }"#;
    world.deploy(world.desired("hello", 1, code)).await;
    let mut lease = world.supervisor.acquire("hello").await.unwrap();
    let mut socket = tokio::net::UnixStream::connect(&lease.socket)
        .await
        .unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    socket
        .write_all(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await
        .unwrap();
    let mut head = [0; 12];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    lease.upgraded();
    let closing = lease.closing();
    let holder = tokio::spawn(async move {
        closing.await;
        drop(socket);
    });
    world
        .deploy(world.desired(
            "hello",
            1,
            "export default { fetch() { return new Response('new') } }",
        ))
        .await;
    assert_eq!(world.text("hello", "/").await, "new");
    holder.await.unwrap();
    world.close().await;
}

#[tokio::test]
async fn a_removed_script_is_gone_with_its_storage() {
    let world = World::new().await;
    world
        .deploy(with_class(world.desired("hello", 4, COUNTER), "Counter"))
        .await;
    world.text("hello", "/").await;
    let pid = world.pid("hello");
    let storage = world.place.dir.path().join("scripts/4");
    assert!(storage.join("do").exists());
    world.supervisor.remove("hello", true).await;
    assert!(!storage.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let refused = world.supervisor.acquire("hello").await;
    assert!(matches!(refused, Err(WorkerdError::NoScript(_))));
    assert!(world.supervisor.status().is_empty());
    // The name is free again.
    world
        .deploy(with_class(world.desired("hello", 5, COUNTER), "Counter"))
        .await;
    assert_eq!(world.text("hello", "/").await, "v1:1");
    world.close().await;
}

#[tokio::test]
async fn a_new_daemon_ends_what_the_old_one_left_before_it_starts_anew() {
    let mut world = World::new().await;
    let desired = with_class(world.desired("hello", 1, COUNTER), "Counter");
    world.deploy(desired.clone()).await;
    assert_eq!(world.text("hello", "/").await, "v1:1");
    let pid = world.pid("hello");
    let survivors = world.new_daemon().await;
    assert_eq!(survivors.len(), 1);
    assert!(wharf_workerd::Supervisor::owns(&survivors[0].label));
    world.supervisor.reap(survivors).await;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    world.deploy(desired).await;
    assert_eq!(world.text("hello", "/").await, "v1:2");
    world.close().await;
}

#[tokio::test]
async fn a_directory_that_is_roots_alone_is_no_obstacle() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    let closed = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(world.place.dir.path(), closed).unwrap();
    let desired = with_class(world.desired("hello", 1, COUNTER), "Counter");
    world.deploy(desired).await;
    assert_eq!(world.text("hello", "/").await, "v1:1");
    world.close().await;
}
