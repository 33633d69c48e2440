//! Nothing acknowledged is lost when the daemon is killed, and nothing is left behind.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::os::unix::process::CommandExt;
use std::time::Duration;

use self::common::direct::World;
use self::common::{Node, Project, WRANGLERS, wait_until};

/// A Worker without containers whose answer is `version`.
fn worker(version: &str) -> String {
    format!(
        r#"import {{ DurableObject }} from "cloudflare:workers";
           export class Count extends DurableObject {{
             async next() {{ const n = ((await this.ctx.storage.get("n")) ?? 0) + 1; await this.ctx.storage.put("n", n); return n; }}
           }}
           export default {{ async fetch(request, env) {{
             if (new URL(request.url).pathname == "/count") return new Response(String(await env.COUNT.getByName("a").next()));
             return new Response("version {version}");
           }} }};"#
    )
}

const CONFIG: &str = r#"{"name":"app","main":"w.js","compatibility_date":"2026-11-01",
  "durable_objects":{"bindings":[{"name":"COUNT","class_name":"Count"}]},
  "migrations":[{"tag":"v1","new_sqlite_classes":["Count"]}]}"#;

#[test]
fn containers_outlive_the_daemon_and_are_adopted() {
    let mut node = Node::start();
    let project = Project::copy_of("hello");
    project.build_server("one");
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    let before = node.get("hello", "/api/hello").json();
    assert_eq!(node.get("hello", "/api/count").json()["count"], 1);
    let pid = node.status()["instances"][0]["pid"].clone();

    node.kill_9();
    node.launch();
    let after = node.get("hello", "/api/hello").json();
    assert_eq!(
        after["hostname"], before["hostname"],
        "the same container answers"
    );
    assert_eq!(node.status()["instances"][0]["pid"], pid);
    assert_eq!(node.get("hello", "/api/count").json()["count"], 2);
}

/// An object that starts its container and has no alarm: nothing wakes it after a restart.
const SLEEPER: &str = r#"import { DurableObject } from "cloudflare:workers";
export class Hello extends DurableObject {
  async fetch() { this.ctx.container.start(); return new Response("started"); }
}
export class Counter extends DurableObject {}
export default { fetch: (request, env) => env.HELLO.getByName("a").fetch(request) };"#;

fn running(node: &Node) -> usize {
    let status = node.status();
    status["instances"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|i| !i["pid"].is_null())
        .count()
}

#[test]
fn an_adopted_container_that_nobody_asks_for_is_ended() {
    let mut node = Node::start();
    let project = Project::copy_of("hello");
    project.build_server("one");
    project.write("src/index.ts", SLEEPER);
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    assert_eq!(node.get("hello", "/api/any").body, "started");
    wait_until("the container", || running(&node) == 1);
    node.kill_9();
    let config = node.dir.path().join("wharf.toml");
    std::fs::write(&config, "[containers]\norphan_grace_ms = 2000\n").unwrap();
    node.set_extra(&["--config", config.to_str().unwrap()]);
    node.launch();
    assert_eq!(running(&node), 1, "adopted");
    wait_until("the reaper", || running(&node) == 0);
}

#[test]
fn without_a_daemon_nothing_stays() {
    let mut node = Node::start();
    node.stop();
    std::fs::write(
        node.dir.path().join("wharf.toml"),
        "[containers]\norphan_grace_ms = 1000\n",
    )
    .unwrap();
    let config = node.dir.path().join("wharf.toml");
    node.set_extra(&["--config", config.to_str().unwrap()]);
    node.launch();
    let project = Project::new(&[("wrangler.json", CONFIG), ("w.js", &worker("1"))]);
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    node.kill_9();
    wait_until("the spawner to end what it runs", || {
        node.processes().is_empty()
    });
    node.launch();
    assert_eq!(node.get("app", "/").body, "version 1");
}

/// Loop devices that show a file of this node.
fn loop_devices(node: &Node) -> usize {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    let files =
        devices.filter_map(|d| std::fs::read_to_string(d.path().join("loop/backing_file")).ok());
    let data = node.data_dir();
    files.filter(|f| f.contains(data.to_str().unwrap())).count()
}

#[test]
fn nothing_stays_of_a_node_whose_daemon_and_spawner_are_killed() {
    let mut world = World::with_grace(1_000);
    world.start("a", serde_json::Value::Null);
    let (spawner, name) = common::spawner_of(&world.node);
    assert!(common::cgroups_of(&name) > 0 && loop_devices(&world.node) > 0);
    world.node.kill_9();
    common::kill(spawner);
    let node = &world.node;
    wait_until("everything to end", || node.processes().is_empty());
    wait_until("its cgroups to go", || common::cgroups_of(&name) == 0);
    wait_until("its loop devices to go", || loop_devices(node) == 0);
    // And the next daemon finds nothing in its way.
    world.node.launch();
    world.start("a", serde_json::Value::Null);
}

/// Kills the daemon at many points of a deploy. After each restart either the old or the new version serves, whole, and a deploy that
/// wrangler saw succeed is the one that serves.
#[test]
fn a_kill_at_any_point_of_a_deploy_leaves_a_whole_version() {
    let mut node = Node::start();
    let project = Project::new(&[("wrangler.json", CONFIG), ("w.js", &worker("0"))]);
    let v = WRANGLERS[0];
    node.wrangler_ok(v, &project.path(), &["deploy"]);
    // How long a deploy takes here, to spread the kills over it.
    let started = std::time::Instant::now();
    node.wrangler_ok(v, &project.path(), &["deploy"]);
    let whole = started.elapsed();

    let mut serving = 0;
    let mut count = 0;
    let rounds = 8;
    for round in 1..=rounds {
        project.write("w.js", &worker(&round.to_string()));
        let mut command = node.wrangler_command(v, &project.path(), &["deploy"]);
        let mut deploy = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        // wrangler's own start takes half of it; the requests are in the other half.
        let share = 0.4 + 0.6 * f64::from(round) / f64::from(rounds);
        std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * share));
        let acknowledged = deploy.try_wait().unwrap().is_some_and(|s| s.success());
        node.kill_9();
        // With the process that it started: that one would try again and deploy after the restart.
        let group = rustix::process::Pid::from_child(&deploy);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = deploy.wait();
        node.launch();
        let body = node.get("app", "/").body;
        let version: i32 = body
            .strip_prefix("version ")
            .unwrap_or_else(|| panic!("{body}"))
            .parse()
            .unwrap();
        assert!(
            version == serving || version == round,
            "round {round}: {version} serves after {serving}"
        );
        if acknowledged {
            assert_eq!(version, round, "an acknowledged deploy was lost");
        }
        serving = version;
        // The object's storage is as it was acknowledged.
        count += 1;
        assert_eq!(node.get("app", "/count").body, count.to_string());
    }
}
