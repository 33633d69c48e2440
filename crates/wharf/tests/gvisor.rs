//! Isolation class gvisor by the whole path: wrangler, workerd, the engine, runsc.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use common::direct::World;
use common::{WRANGLERS, wait_until};
use serde_json::{Value, json};

impl World {
    fn deploy(&self, settings: Value, label: &str) -> std::process::Output {
        let file = self.project.path().join("wrangler.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config["containers"][0]["unsafe"] = json!({"configuration": {"wharf": settings}});
        self.project.write("wrangler.json", &config.to_string());
        let dockerfile =
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY app /app\nENTRYPOINT [\"/app\"]\n";
        self.project
            .write("app/Dockerfile", &format!("{dockerfile}{label}"));
        self.node
            .wrangler(WRANGLERS[1], &self.project.path(), &["deploy"])
    }

    fn deployed(&self, settings: Value, label: &str) {
        let out = self.deploy(settings, label);
        assert!(out.status.success(), "{}\n{}", text(&out), self.node.log());
    }
}

fn text(out: &std::process::Output) -> String {
    let both = [&out.stdout[..], &out.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn kernel(world: &World, object: &str) -> String {
    world.app(object, "/file/proc/version")
}

#[test]
fn a_deployed_application_runs_on_another_kernel() {
    let mut world = World::new();
    let host = std::fs::read_to_string("/proc/version").unwrap();
    let before = world.start("a", Value::Null);
    assert_eq!(before["isolation"], "namespace");
    assert_eq!(kernel(&world, "a"), host);

    // Another class is another deploy: what runs is ended, its object starts the new one.
    world.deployed(json!({"isolation": "gvisor"}), "");
    wait_until("the rollout", || world.node.running("").is_none());
    let instance = world.start("a", json!({"env": {"GREETING": "hi there"}}));
    assert_eq!(instance["isolation"], "gvisor");
    let inside = kernel(&world, "a");
    assert!(
        inside != host && inside.starts_with("Linux version"),
        "{inside}"
    );
    assert!(world.app("a", "/env").contains("GREETING=hi there"));

    // The daemon dies and comes back: the same process serves on.
    let who = world.app("a", "/who");
    world.node.kill_9();
    world.node.launch();
    wait_until("workerd", || {
        world.node.get("direct", "/a/nothing").status != 502
    });
    assert_eq!(world.ask("a", "running", Value::Null), true);
    assert_eq!(world.app("a", "/who"), who);

    world.ask("a", "monitor", Value::Null);
    assert_eq!(world.ask("a", "signal", json!(10)), Value::Null);
    assert!(world.end("a").contains("exitCode 42"), "{}", world.end("a"));

    // By the image's label, where the application says nothing.
    world.deployed(json!({}), "LABEL wharf.isolation=gvisor\n");
    let instance = world.start("b", Value::Null);
    assert_eq!(instance["isolation"], "gvisor");
    assert_eq!(kernel(&world, "b"), inside);
    world.ask("b", "destroy", Value::Null);
}

#[test]
fn what_this_node_cannot_give_is_refused_in_words() {
    let world = World::new();
    let out = world.deploy(json!({"isolation": "microvm"}), "");
    assert!(!out.status.success());
    assert!(text(&out).contains("microvm"), "{}", text(&out));
    let out = world.deploy(json!({}), "LABEL wharf.isolation=kata\n");
    assert!(!out.status.success());
    assert!(
        text(&out).contains("kata") && text(&out).contains("no isolation class"),
        "{}",
        text(&out)
    );
    // What served before still does.
    assert_eq!(world.start("a", Value::Null)["isolation"], "namespace");
}
