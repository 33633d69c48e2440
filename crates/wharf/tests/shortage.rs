//! A node that runs out of something: what runs is served on, what would start is refused with the
//! reason, and all is well as soon as there is room again.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use common::direct::World;
use common::{spawner_of, wait_until};
use rustix::process::{Pid, Resource, Rlimit};
use serde_json::{Value, json};

/// Sets how many files a process may have open.
fn limit_files(pid: i32, files: u64) {
    let limit = Rlimit {
        current: Some(files),
        maximum: Some(20_000.max(files)),
    };
    rustix::process::prlimit(Pid::from_raw(pid), Resource::Nofile, limit).unwrap();
}

fn figure(world: &World, resource: &str) -> Value {
    let status = world.node.status();
    let figures = status["resources"].as_array().unwrap();
    figures
        .iter()
        .find(|f| f["resource"] == resource)
        .unwrap()
        .clone()
}

fn used(world: &World, resource: &str) -> u64 {
    figure(world, resource)["used"].as_u64().unwrap()
}

#[test]
fn out_of_descriptors_starts_are_refused_and_what_runs_is_served() {
    let world = World::new();
    world.start("a", Value::Null);
    let daemon = world.node.pid() as i32;
    // Room for two more or so.
    limit_files(daemon, (used(&world, "descriptors") + 60) * 4 / 3);
    let mut started = 1;
    let refusal = loop {
        assert!(
            started < 15,
            "never refused: {}",
            figure(&world, "descriptors")
        );
        let refusal = failure(&world, &format!("b{started}"));
        if !refusal.is_empty() {
            break refusal;
        }
        started += 1;
    };
    for part in ["file descriptors", "are kept for what runs", "uses most"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    let short = figure(&world, "descriptors");
    assert_eq!(short["short"], true, "{short}");
    assert_eq!(short["most"]["instances"], started);
    assert!(
        world.app("a", "/who").contains("8080"),
        "what runs is served"
    );

    // Nothing is left at all: nobody can be served then, but nobody's process is taken for dead.
    let workerd = world.node.workerd("direct");
    limit_files(daemon, 16);
    std::thread::sleep(std::time::Duration::from_secs(2));
    limit_files(daemon, 4096);
    assert_eq!(world.node.workerd("direct"), workerd);
    assert!(world.app("a", "/who").contains("8080"));
    world.start("after", Value::Null);

    // The same of the spawner.
    let (spawner, _) = spawner_of(&world.node);
    limit_files(spawner, 16);
    assert_ne!(failure(&world, "c"), "");
    limit_files(spawner, 4096);
    wait_until("the spawner to have room", || {
        failure(&world, "d").is_empty()
    });
    assert!(world.app("d", "/who").contains("8080"));
    assert_eq!(spawner_of(&world.node).0, spawner, "{}", world.node.log());
    assert!(world.app("a", "/who").contains("8080"));
}

/// Why a start failed; empty if it did not.
fn failure(world: &World, object: &str) -> String {
    world.ask(object, "start", Value::Null);
    let answer = world.ask(object, "app", json!("/who"));
    match answer["status"] == 200 {
        true => String::new(),
        false => format!("{answer} {}", world.end(object)),
    }
}

#[test]
fn an_idle_container_holds_few_descriptors() {
    /// The daemon's: two pipes of output, the disk, the listeners for what comes in and goes out,
    /// the DNS socket, and the connection on which workerd waits for the end. The spawner's: two
    /// pipes, the disk, the process and its user namespace.
    const PROCESSES: [(&str, u64); 2] = [("descriptors", 7), ("spawner_descriptors", 5)];
    let world = World::new();
    let at_rest = || {
        let mut before = [0; 2];
        wait_until("descriptors at rest", || {
            std::thread::sleep(std::time::Duration::from_millis(6_000));
            let now = PROCESSES.map(|(process, _)| used(&world, process));
            std::mem::replace(&mut before, now) == before
        });
        before
    };
    world.start("a", Value::Null);
    let before = at_rest();
    for n in 0..8 {
        world.start(&format!("b{n}"), Value::Null);
    }
    let after = at_rest();
    for (n, (process, most)) in PROCESSES.into_iter().enumerate() {
        let each = (after[n] - before[n]).div_ceil(8);
        assert!(each <= most, "{process}: {each} each");
    }
    assert!(world.app("b0", "/who").contains("8080"));
}
