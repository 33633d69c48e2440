//! How long a container lives: beyond workerd, beyond a redeploy of its Worker, not beyond its image or an object that never wakes. And what is left of it.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::io::{Read, Write};

use serde_json::{Value, json};

use self::common::direct::World;
use self::common::{Node, WRANGLERS, kill, wait_until};

#[test]
fn containers_outlive_workerd_and_are_reaped_if_their_object_does_not_wake() {
    let world = World::with_grace(3_000);
    let woken = world.start("woken", Value::Null);
    let patient = world.start("patient", Value::Null);
    world.ask("patient", "inactivity", json!(60_000));
    let forgotten = world.start("forgotten", Value::Null);
    kill(world.node.workerd("direct"));
    wait_until("the next process", || {
        world.node.get("direct", "/").status != 502
    });
    assert_eq!(world.ask("woken", "running", Value::Null), true);
    assert_eq!(world.ask("woken", "monitor", Value::Null), true);
    let runs = |instance: &Value| {
        let all = world.node.instances();
        all.iter()
            .any(|i| i["id"] == instance["id"] && i["pid"] == instance["pid"])
    };
    wait_until("the reaper", || {
        // Also objects fall asleep: this one is kept awake.
        world.app("woken", "/who");
        !runs(&forgotten)
    });
    assert!(runs(&woken) && runs(&patient));
}

/// A tunnel to the app inside as workerd's, made by root: what comes of `/ticks`.
fn ticks(node: &Node) -> std::net::TcpStream {
    let ingress = node.ingresses("direct")[0];
    let mut stream = node.dial_as("direct", ingress).unwrap();
    let bound = Some(std::time::Duration::from_secs(20));
    stream.set_read_timeout(bound).unwrap();
    stream
        .write_all(
            b"CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: x\r\nX-Dst-Addr: 127.0.0.1:8080\r\n\r\n",
        )
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
        .write_all(b"GET /ticks HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    next_tick(&mut stream);
    stream
}

/// Reads away what has come, and waits for more.
fn next_tick(stream: &mut std::net::TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let mut some = [0; 4096];
    while stream.read(&mut some).is_ok_and(|n| n > 0) {}
    stream.set_nonblocking(false).unwrap();
    stream.read_exact(&mut some[..16]).unwrap();
}

#[test]
fn a_redeploy_keeps_what_runs_the_same_image_and_rolls_the_rest() {
    let world = World::new();
    let before = world.start("a", Value::Null);
    let mut tunnel = ticks(&world.node);
    let deploy = || {
        world
            .node
            .wrangler_ok(WRANGLERS[1], &world.project.path(), &["deploy"])
    };
    // Only the Worker's code changes.
    let code = std::fs::read_to_string(world.project.path().join("worker.js")).unwrap();
    let changed = code.replace(
        "running: (box) =>",
        "fresh: () => true,\n  running: (box) =>",
    );
    world.project.write("worker.js", &changed);
    deploy();
    assert_eq!(world.ask("a", "fresh", Value::Null), true);
    assert_eq!(world.ask("a", "monitor", Value::Null), true);
    assert!(world.app("a", "/who").contains("8080"));
    let id = world.ask("a", "id", Value::Null);
    let kept = world.node.running(id.as_str().unwrap()).unwrap();
    assert_eq!((&kept["id"], &kept["pid"]), (&before["id"], &before["pid"]));
    next_tick(&mut tunnel);

    // Nor does a crash of workerd touch it.
    kill(world.node.workerd("direct"));
    wait_until("the next process", || {
        world.node.get("direct", "/").status != 502
    });
    assert_eq!(world.ask("a", "monitor", Value::Null), true);
    next_tick(&mut tunnel);

    // Another image: the old container is asked to end, and the next request starts the new one.
    let dockerfile = world.project.path().join("app/Dockerfile");
    let text = std::fs::read_to_string(&dockerfile).unwrap();
    world
        .project
        .write("app/Dockerfile", &format!("{text}ENV RELEASE=two\n"));
    deploy();
    wait_until("the old one to end", || {
        world.node.running(id.as_str().unwrap()).is_none()
    });
    let old = world.node.instances();
    let old = old.iter().find(|i| i["id"] == before["id"]);
    assert!(
        old.is_none_or(|i| i["exit"]["code"] == 0),
        "SIGTERM ended it: {old:?}"
    );
    wait_until("its end to be known", || {
        world.ask("a", "running", Value::Null) == false
    });
    world.start("a", Value::Null);
    assert!(world.app("a", "/env").contains("RELEASE=two"));
}

/// What the node holds: descriptors of daemon and spawner, processes, namespaces of the network, cgroups, directories.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    daemon_fds: usize,
    processes: usize,
    namespaces: usize,
    cgroups: usize,
    directories: usize,
    mounts: usize,
}

fn holdings(node: &Node) -> Holdings {
    let entries = |dir: &std::path::Path| std::fs::read_dir(dir).map_or(0, Iterator::count);
    let processes = node.processes();
    let mut namespaces = std::collections::BTreeSet::new();
    for pid in processes.iter().chain([&node.pid()]) {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/net"));
        namespaces.extend(link.ok());
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        let links = fds
            .flatten()
            .filter_map(|e| std::fs::read_link(e.path()).ok());
        namespaces.extend(
            links.filter(|l| l.starts_with("net:") || l.to_string_lossy().starts_with("net:[")),
        );
    }
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", processes[0])).unwrap();
    let memory = cgroup
        .lines()
        .find(|l| l.contains(":memory:") || l.starts_with("0::"))
        .unwrap();
    let path = memory.rsplit(':').next().unwrap();
    let parent = std::path::Path::new(path).parent().unwrap();
    let root = match memory.starts_with("0::") {
        true => format!("/sys/fs/cgroup{}", parent.display()),
        false => format!("/sys/fs/cgroup/memory{}", parent.display()),
    };
    Holdings {
        daemon_fds: entries(std::path::Path::new(&format!("/proc/{}/fd", node.pid()))),
        processes: processes.len(),
        namespaces: namespaces.len(),
        cgroups: entries(std::path::Path::new(&root)),
        directories: node.instance_directories(),
        mounts: std::fs::read_to_string(format!("/proc/{}/mountinfo", node.pid()))
            .unwrap()
            .lines()
            .count(),
    }
}

#[test]
fn starts_and_stops_leave_nothing() {
    let world = World::new();
    let cycle = |n: usize| {
        let object = format!("o{}", n % 4);
        world.start(
            &object,
            json!({"hardTimeout": 3_600_000, "labels": {"n": n.to_string()}}),
        );
        match n % 3 {
            0 => world.ask(&object, "destroy", Value::Null),
            1 => world.ask(&object, "signal", json!(15)),
            _ => world.ask(&object, "signal", json!(9)),
        };
        world.end(&object);
    };
    // Objects go to sleep after ten quiet seconds, and their sidecars with them; ended instances go when their name is used again.
    let rest = || {
        for n in 0..4 {
            let path = format!("/o{n}/abort");
            world.node.request("POST", "direct", &path, &[], "null");
        }
        world.node.get("direct", "/");
    };
    (0..8).for_each(cycle);
    rest();
    let mut before = holdings(&world.node);
    // Until what goes away by itself has gone.
    wait_until("a quiet node", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = holdings(&world.node);
        std::mem::replace(&mut before, holdings(&world.node)) == now
    });
    (0..40).for_each(cycle);
    rest();
    let mut last = None;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(40);
    while last.as_ref() != Some(&before) {
        assert!(
            std::time::Instant::now() < deadline,
            "before {before:?}, now {last:?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
        last = Some(holdings(&world.node));
    }
}
