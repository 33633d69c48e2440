//! Instances started ahead (`min_instances`), with the real wrangler and workerd.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use self::common::{Node, Project, WRANGLERS, wait_until};

/// Adds `"unsafe"` to the first container of a project.
fn keep(project: &Project, min_instances: u32) {
    let path = project.path().join("wrangler.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["containers"][0]["unsafe"] =
        json!({"configuration": {"wharf": {"min_instances": min_instances}}});
    std::fs::write(path, config.to_string()).unwrap();
}

fn standbys(node: &Node) -> Value {
    node.status()["standbys"][0].clone()
}

fn wait_for_ready(node: &Node, n: u64) {
    wait_until(&format!("{n} started ahead"), || {
        let it = standbys(node);
        it["ready"].as_u64() >= Some(n) && it["preparing"] == false
    });
}

fn ask(node: &Node, object: &str, operation: &str, argument: Value) -> Value {
    let path = format!("/{object}/{operation}");
    let answer = node.request("POST", "direct", &path, &[], &argument.to_string());
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, node.log());
    answer.json()["value"].clone()
}

/// Starts an object's container; what the app inside says at `path`.
fn start(node: &Node, object: &str, path: &str) -> String {
    assert_eq!(ask(node, object, "start", Value::Null), true);
    app(node, object, path)
}

fn app(node: &Node, object: &str, path: &str) -> String {
    let answer = ask(node, object, "app", json!(path));
    assert_eq!(answer["status"], 200, "{answer}\n{}", node.log());
    answer["text"].as_str().unwrap().to_owned()
}

fn was_ahead(node: &Node, object: &str) -> bool {
    let id = ask(node, object, "id", Value::Null);
    let running = node.running(id.as_str().unwrap()).unwrap();
    running["started_ahead"].as_bool().unwrap()
}

#[test]
fn objects_get_what_was_started_ahead_each_its_own_and_of_what_is_deployed() {
    let mut node = Node::start();
    let project = Project::fixture("direct", None);
    keep(&project, 3);
    let deploy = |node: &Node| node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    deploy(&node);
    // Before any request.
    wait_for_ready(&node, 3);
    assert!(node.instances().is_empty(), "they are nobody's yet");
    // This Worker starts without internet, which nobody could know: the first start teaches it.
    start(&node, "first", "/who");
    assert!(!was_ahead(&node, "first"));
    wait_until("three of that kind", || {
        let object = format!("o{}", uuid());
        let who = start(&node, &object, "/who");
        assert!(who.contains("8080"));
        let handed = was_ahead(&node, &object);
        ask(&node, &object, "destroy", Value::Null);
        handed
    });
    wait_for_ready(&node, 3);
    let before = standbys(&node)["handed"].as_u64().unwrap();

    // Nineteen at once besides the first: each has its own.
    let hosts = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..19)
            .map(|n| {
                let node = &node;
                scope.spawn(move || start(node, &format!("b{n}"), "/file/etc/hostname"))
            })
            .collect();
        let hosts = starts.into_iter().map(|start| start.join().unwrap());
        hosts.collect::<BTreeSet<String>>()
    });
    assert_eq!(hosts.len(), 19);
    let ahead = (0..19)
        .filter(|n| was_ahead(&node, &format!("b{n}")))
        .count() as u64;
    assert!(ahead >= 3, "{ahead}");
    assert_eq!(standbys(&node)["handed"], before + ahead);
    let env = app(&node, "b0", "/env");
    assert!(!env.contains("DURABLE_OBJECT_ID") && env.contains("CLOUDFLARE_APPLICATION_ID="));
    (0..19).for_each(|n| {
        ask(&node, &format!("b{n}"), "destroy", Value::Null);
    });
    wait_for_ready(&node, 3);

    // The daemon dies: what an object has lives on, what nobody has does not.
    let kept = app(&node, "first", "/who");
    node.kill_9();
    node.launch();
    wait_for_ready(&node, 3);
    assert_eq!(ask(&node, "first", "monitor", Value::Null), true);
    assert_eq!(app(&node, "first", "/who"), kept);

    // Another image: nothing of the old one is handed.
    let dockerfile = project.path().join("app/Dockerfile");
    let text = std::fs::read_to_string(&dockerfile).unwrap();
    project.write("app/Dockerfile", &format!("{text}ENV RELEASE=two\n"));
    deploy(&node);
    assert!(start(&node, "c0", "/env").contains("RELEASE=two"));
    wait_until("one of the new image", || {
        let object = format!("o{}", uuid());
        assert!(start(&node, &object, "/env").contains("RELEASE=two"));
        let handed = was_ahead(&node, &object);
        ask(&node, &object, "destroy", Value::Null);
        handed
    });

    // And the end of all with the application: nothing is started any more.
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["delete", "--force"]);
    wait_until("an end", || node.status()["standbys"] == json!([]));
    wait_until("no process", || {
        let out = node
            .command()
            .args(["docker", "ps", "-q"])
            .output()
            .unwrap();
        out.status.success() && out.stdout.is_empty()
    });
}

fn uuid() -> u128 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed).into()
}

#[test]
fn the_packages_first_request_finds_one_ready_and_a_crash_at_start_is_told() {
    let node = Node::start();
    let project = Project::fixture("package", Some("0.3.7"));
    keep(&project, 1);
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    wait_for_ready(&node, 1);
    let answer = node.get("package", "/hooked/a/app/who");
    assert_eq!(answer.json()["port"], 8080);
    let instances = node.instances();
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0]["started_ahead"], true);
    // It sleeps, and what comes then is ready as well, behind the same object.
    wait_until("its sleep", || {
        node.instances().iter().all(|i| i["pid"].is_null())
    });
    wait_for_ready(&node, 1);
    assert_eq!(node.get("package", "/hooked/a/app/who").status, 200);
    let running = node.instances();
    let running: Vec<_> = running.iter().filter(|i| !i["pid"].is_null()).collect();
    assert_eq!(running.len(), 1);
    assert_eq!(running[0]["started_ahead"], true);

    let dockerfile = project.path().join("app/Dockerfile");
    let text = std::fs::read_to_string(&dockerfile).unwrap();
    project.write(
        "app/Dockerfile",
        &format!("{text}ENTRYPOINT [\"/bin/busybox\", \"false\"]\n"),
    );
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    wait_until("a reason", || {
        let reason = standbys(&node)["reason"].clone();
        reason
            .as_str()
            .is_some_and(|r| r.contains("ended before it was ready") && r.contains("again in"))
    });
    let out = node.command().arg("status").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.contains("fewer than wanted: ended before it was ready"),
        "{text}"
    );
}
