//! Service bindings between scripts with the real workerd: fetch, RPC, WebSockets, and both through swaps.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use wharf_model::{AssetFile, Assets, Binding};
use wharf_testkit::eventually;

use self::support::{World, get, service};

const CALLEE: &str = r#"
import { WorkerEntrypoint, RpcTarget } from "cloudflare:workers";
class Tally extends RpcTarget { n = 0; inc() { return ++this.n; } }
export class Api extends WorkerEntrypoint {
  add(a, b) { return a + b; }
  props() { return this.ctx.props; }
  tally() { return new Tally(); }
  async twice(f) { return (await f(1)) + (await f(2)); }
}
export class Echo extends WorkerEntrypoint {
  fetch(request) {
    const [client, server] = Object.values(new WebSocketPair());
    server.accept();
    server.addEventListener("message", (event) => server.send("echo " + event.data));
    return new Response(null, { status: 101, webSocket: client });
  }
}
export default class extends WorkerEntrypoint {
  async fetch(request) {
    await scheduler.wait(5);
    return new Response(`${VERSION} ${request.method} ${request.url} ${await request.text()} ${JSON.stringify(request.cf ?? null)}`);
  }
  async version() { await scheduler.wait(5); return VERSION; }
}
const VERSION = "v1";
"#;

const CALLER: &str = r#"
export default { async fetch(request, env) {
  const path = new URL(request.url).pathname;
  try {
    switch (path) {
      case "/fetch": return await env.CALLEE.fetch("https://inner.example/x?y", { method: "POST", body: "body", cf: { a: 1 } });
      case "/version": return new Response(await env.CALLEE.version());
      case "/add": return new Response(await env.API.add(2, 3));
      case "/props": return Response.json(await env.PROPS.props());
      case "/tally": {
        using tally = await env.API.tally();
        await tally.inc();
        return new Response(await tally.inc());
      }
      case "/callback": return new Response(await env.API.twice((n) => n * 10));
      case "/ws": {
        const socket = (await env.ECHO.fetch("http://x/", { headers: { upgrade: "websocket" } })).webSocket;
        socket.accept();
        const answer = new Promise((resolve) => socket.addEventListener("message", (event) => resolve(event.data)));
        socket.send("hi");
        return new Response(await answer);
      }
      case "/missing": return await env.MISSING.fetch(request);
    }
  } catch (error) {
    return new Response(String(error), { status: 500 });
  }
} };
"#;

fn caller(world: &World) -> wharf_workerd::Desired {
    let mut caller = world.desired("caller", 1, CALLER);
    caller.version.bindings = vec![
        service("CALLEE", "callee", None),
        service("API", "callee", Some("Api")),
        service("ECHO", "callee", Some("Echo")),
        Binding::Service {
            name: "PROPS".into(),
            service: "callee".into(),
            entrypoint: Some("Api".into()),
            props: Some(serde_json::json!({"who": "caller"})),
        },
    ];
    caller
}

fn callee(world: &World, version: &str) -> wharf_workerd::Desired {
    world.desired(
        "callee",
        2,
        &CALLEE.replace("\"v1\"", &format!("\"{version}\"")),
    )
}

#[tokio::test]
async fn another_script_is_called_by_fetch_rpc_and_web_socket() {
    let world = World::new().await;
    // The callee runs before anyone binds its entrypoints.
    world.deploy(callee(&world, "v1")).await;
    world.deploy(caller(&world)).await;
    world.supervisor.settled("callee").await.unwrap();
    for (path, expected) in [
        ("/fetch", "v1 POST https://inner.example/x?y body {\"a\":1}"),
        ("/version", "v1"),
        ("/add", "5"),
        ("/tally", "2"),
        ("/callback", "30"),
        ("/ws", "echo hi"),
        ("/props", "{\"who\":\"caller\"}"),
    ] {
        assert_eq!(world.text("caller", path).await, expected, "{path}");
    }
    world.close().await;
}

#[tokio::test]
async fn a_callee_with_assets_is_reached_through_its_router() {
    let world = World::new().await;
    let mut site = callee(&world, "v1");
    site.version.assets = Some(Assets {
        files: vec![AssetFile {
            path: "/x".into(),
            blob: world.blob("an asset"),
            size: 8,
        }],
        config: serde_json::json!({}),
    });
    let code = CALLER.replace(r#", { method: "POST", body: "body", cf: { a: 1 } }"#, "");
    let mut reader = caller(&world);
    reader.version.modules[0].blob = world.blob(code);
    world
        .supervisor
        .set_all(vec![("callee".into(), site), ("caller".into(), reader)]);
    assert_eq!(world.text("caller", "/fetch").await, "an asset");
    assert_eq!(world.text("caller", "/version").await, "v1");
    assert_eq!(world.text("caller", "/add").await, "5");
    world.close().await;
}

#[tokio::test]
async fn both_sides_may_be_swapped_and_no_call_is_lost() {
    let world = Arc::new(World::new().await);
    world.supervisor.set_all(vec![
        ("caller".into(), caller(&world)),
        ("callee".into(), callee(&world, "v0")),
    ]);
    world.supervisor.settled("callee").await.unwrap();
    let process = world.supervisor.acquire("callee").await.unwrap().process;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..8 {
        let (world, stop, served) = (world.clone(), stop.clone(), served.clone());
        clients.spawn(async move {
            let path = ["/fetch", "/version", "/add", "/callback"][i % 4];
            while !stop.load(Ordering::Relaxed) {
                let lease = world.supervisor.acquire("caller").await.unwrap();
                let answer = get(&lease, path).await.unwrap();
                assert_eq!(answer.status, 200, "{path}: {}", answer.text);
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for n in 1..=5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        world.deploy(callee(&world, &format!("v{n}"))).await;
        if n == 3 {
            world.deploy(caller(&world)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert!(served.load(Ordering::Relaxed) > 0);
    assert_eq!(world.text("caller", "/version").await, "v5");
    let last = world.supervisor.acquire("callee").await.unwrap().process;
    assert!(last > process);
    Arc::into_inner(world).unwrap().close().await;
}

#[tokio::test]
async fn a_callee_that_crashed_is_found_again() {
    let world = World::new().await;
    world.supervisor.set_all(vec![
        ("caller".into(), caller(&world)),
        ("callee".into(), callee(&world, "v1")),
    ]);
    assert_eq!(world.text("caller", "/version").await, "v1");
    wharf_testkit::kill(world.pid("callee"));
    eventually("the crash is noticed", async || {
        (world.status("callee").crashes == 1).then_some(())
    })
    .await;
    assert_eq!(world.text("caller", "/version").await, "v1");
    assert!(world.text("caller", "/fetch").await.starts_with("v1 "));
    world.close().await;
}

#[tokio::test]
async fn a_binding_to_nothing_says_so_and_harms_only_itself() {
    let world = World::new().await;
    let mut bad = world.desired("caller", 1, CALLER);
    bad.version.bindings = vec![
        service("CALLEE", "callee", None),
        service("MISSING", "callee", Some("Nope")),
    ];
    world.supervisor.set_all(vec![
        ("callee".into(), callee(&world, "v1")),
        ("caller".into(), bad),
    ]);
    world.supervisor.settled("callee").await.unwrap();
    assert_eq!(world.text("caller", "/version").await, "v1");
    let answer = world.get("caller", "/missing").await;
    assert_eq!(answer.status, 502);
    assert_eq!(
        answer.text,
        "Worker \"callee\" exports no entrypoint \"Nope\"\n"
    );
    assert_eq!(world.status("callee").crashes, 0);

    world.supervisor.remove("callee", false).await;
    let answer = world.get("caller", "/fetch").await;
    assert_eq!(answer.status, 502);
    assert!(
        answer
            .text
            .contains("\"callee\", which is not deployed here"),
        "{}",
        answer.text
    );
    world.close().await;
}
