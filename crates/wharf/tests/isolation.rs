//! Isolation classes by the whole path: wrangler, workerd, the engine, and runsc or QEMU.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use serde_json::{Value, json};

use self::common::direct::World;
use self::common::{WRANGLERS, wait_until};

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
fn a_deployed_application_runs_on_gvisors_kernel() {
    runs_on_another_kernel("gvisor");
}

#[test]
fn a_deployed_application_runs_in_a_virtual_machine() {
    runs_on_another_kernel("microvm");
}

/// Machines are emulated, as not every machine has KVM.
fn emulated(kernel_root: &str) -> String {
    format!("microvm = \"emulated\"\nguest_kernel = {kernel_root:?}")
}

fn runs_on_another_kernel(class: &str) {
    let kernel_root = wharf_testkit::guest_kernel();
    let mut world = World::with(60_000, &emulated(kernel_root.to_str().unwrap()));
    let host = std::fs::read_to_string("/proc/version").unwrap();
    let before = world.start("a", Value::Null);
    assert_eq!(before["isolation"], "namespace");
    assert_eq!(kernel(&world, "a"), host);

    // Another class is another deploy: what runs is ended, its object starts the new one.
    world.deployed(json!({"isolation": class}), "");
    wait_until("the rollout", || world.node.running("").is_none());
    let instance = world.start("a", json!({"env": {"GREETING": "hi there"}}));
    assert_eq!(instance["isolation"], class);
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
    let label = format!("LABEL wharf.isolation={class}\n");
    world.deployed(json!({}), &label);
    let instance = world.start("b", Value::Null);
    assert_eq!(instance["isolation"], class);
    assert_eq!(kernel(&world, "b"), inside);
    world.ask("b", "destroy", Value::Null);
}

#[test]
fn an_application_that_asks_for_no_new_privileges_has_them_from_its_next_start_on() {
    let world = World::with(60_000, "");
    let flag = |object: &str| {
        let status = world.app(object, "/file/proc/self/status");
        let line = status.lines().find_map(|l| l.strip_prefix("NoNewPrivs:"));
        line.expect(&status).trim().to_owned()
    };
    let before = world.start("a", Value::Null);
    assert_eq!(before["no_new_privileges"], false);
    assert_eq!(flag("a"), "0");
    // What runs is ended, its object starts the new one.
    world.deployed(json!({"no_new_privileges": true}), "");
    wait_until("the rollout", || world.node.running("").is_none());
    let instance = world.start("a", Value::Null);
    assert_eq!(instance["no_new_privileges"], true);
    assert_eq!(flag("a"), "1");
    let out = world.deploy(json!({"no_new_privileges": "yes"}), "");
    assert!(!out.status.success());
    assert!(text(&out).contains("no_new_privileges"), "{}", text(&out));
    world.ask("a", "destroy", Value::Null);
}

#[test]
fn what_this_node_cannot_give_is_refused_in_words() {
    let world = World::with(60_000, &emulated("/nowhere"));
    let out = world.deploy(json!({"isolation": "microvm"}), "");
    assert!(!out.status.success());
    assert!(text(&out).contains("wharf guest-kernel"), "{}", text(&out));
    let out = world.deploy(json!({"isolation": "kata"}), "");
    assert!(!out.status.success());
    assert!(text(&out).contains("kata"), "{}", text(&out));
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
