//! A Worker that takes too much, seen by its clients, its operator and the other Worker's clients.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use self::common::{Node, Project, WRANGLERS, wait_until};

const GREEDY: &str = r#"
let kept = [];
export default {
  fetch(request) {
    const { pathname } = new URL(request.url);
    if (pathname === "/loop") for (;;) {}
    if (pathname === "/eat") for (;;) kept.push(new Uint8Array(1 << 20).fill(7));
    return new Response("serves");
  },
};"#;

const KIND: &str = "export default { fetch() { return new Response('kind') } }";

fn deploy(node: &Node, name: &str, code: &str) -> Project {
    deploy_with(node, name, code, json!({}))
}

fn deploy_with(node: &Node, name: &str, code: &str, limits: Value) -> Project {
    let project = Project::fixture("direct", None);
    let config = json!({
        "name": name, "main": "w.js", "compatibility_date": "2026-11-01", "limits": limits,
    });
    project.write("wrangler.json", &config.to_string());
    project.write("w.js", code);
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    project
}

/// Also when the test fails.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_greedy_worker_is_ended_with_the_reason_and_others_serve_on() {
    let mut node = Node::start();
    node.stop();
    let config = node.dir.path().join("wharf.toml");
    let text = "[workerd]\nwatchdog_ms = 500\nmemory_mib = 256\n";
    std::fs::write(&config, text).unwrap();
    node.set_extra(&["--config", config.to_str().unwrap()]);
    node.launch();
    let node = node;
    let _greedy = deploy(&node, "greedy", GREEDY);
    let _kind = deploy(&node, "kind", KIND);
    assert_eq!(node.get("greedy", "/").body, "serves");
    let kind = node.workerd("kind");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = node.get("kind", "/");
                assert_eq!((answer.status, answer.body.as_str()), (200, "kind"));
                answers += 1;
            }
            answers
        });
        let stopper = Stopper(&stop);
        for (crashes, path, reason) in [
            (1, "/loop", "without a pause"),
            (2, "/eat", "more than its 256 MiB of memory"),
        ] {
            let answer = node.get("greedy", path);
            assert_eq!(answer.status, 503, "{}", answer.body);
            for part in ["\"greedy\"", "error 1102", reason] {
                assert!(answer.body.contains(part), "{part}: {}", answer.body);
            }
            wait_until("the operator to be told", || {
                let status = node.status();
                let scripts = status["scripts"].as_array().unwrap();
                let script = scripts.iter().find(|s| s["script"] == "greedy").unwrap();
                let told = script["last_error"].as_str().unwrap_or_default();
                script["crashes"] == crashes && told.contains(reason)
            });
            assert!(node.log().contains(reason));
            wait_until("it to serve again", || {
                node.get("greedy", "/").body == "serves"
            });
        }
        drop(stopper);
        assert!(asked.join().unwrap() > 0);
    });
    assert_eq!(node.workerd("kind"), kind, "it was not touched");
}

/// Computes for as long as it is told; the clock stands still meanwhile, so it counts.
const BUSY: &str = r#"
export default {
  fetch(request) {
    let sum = 0;
    const turns = Number(new URL(request.url).searchParams.get("turns"));
    for (let n = 0; n < turns; n++) sum += Math.sqrt(n);
    return new Response("done " + (sum > 0));
  },
};"#;

#[test]
fn a_worker_may_say_how_long_it_computes() {
    let mut node = Node::start();
    node.stop();
    let config = node.dir.path().join("wharf.toml");
    std::fs::write(&config, "[workerd]\nwatchdog_ms = 1000\n").unwrap();
    node.set_extra(&["--config", config.to_str().unwrap()]);
    node.launch();
    let node = node;
    let _short = deploy_with(&node, "short", GREEDY, json!({"cpu_ms": 100}));
    let _long = deploy_with(&node, "long", BUSY, json!({"cpu_ms": 300_000}));
    let answer = node.get("short", "/loop");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("limits.cpu_ms"), "{}", answer.body);
    // Some seconds on any machine: more than the node allows to others.
    let answer = node.get("long", "/?turns=3000000000");
    assert_eq!((answer.status, answer.body.as_str()), (200, "done true"));
    wait_until("it to serve again", || {
        node.get("short", "/").body == "serves"
    });
}
