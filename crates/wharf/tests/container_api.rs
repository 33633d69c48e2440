//! `ctx.container` from a real Worker, without a package in between: what workerd keeps to itself, and what is documented of the rest.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use serde_json::{Value, json};

use self::common::direct::World;
use self::common::{Node, WRANGLERS, kill, wait_until};

/// A file of the process's cgroup: version 1's, else version 2's.
fn cgroup(pid: &Value, controller: &str, v1: &str, v2: &str) -> String {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in lines.lines() {
        let mut parts = line.splitn(3, ':');
        let (controllers, path) = (parts.nth(1).unwrap(), parts.next().unwrap());
        let file = match controllers {
            "" => format!("/sys/fs/cgroup{path}/{v2}"),
            some if some.split(',').any(|c| c == controller) => {
                format!("/sys/fs/cgroup/{controller}{path}/{v1}")
            }
            _ => continue,
        };
        if let Ok(text) = std::fs::read_to_string(file) {
            return text.trim().to_owned();
        }
    }
    panic!("{controller} in {lines}");
}

fn memory_mib(pid: &Value) -> u64 {
    let text = cgroup(pid, "memory", "memory.limit_in_bytes", "memory.max");
    text.parse::<u64>().unwrap() >> 20
}

/// Quota over period.
fn cores(pid: &Value) -> f64 {
    let text = cgroup(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    let (quota, period) = match text.split_once(' ') {
        Some((quota, period)) => (quota.to_owned(), period.to_owned()),
        None => (text, cgroup(pid, "cpu", "cpu.cfs_period_us", "")),
    };
    quota.parse::<f64>().unwrap() / period.parse::<f64>().unwrap()
}

fn refusal(node: &Node) -> String {
    let status = node.status();
    let refusals = status["refusals"].as_array().unwrap();
    refusals[0]["reason"].as_str().unwrap().to_owned()
}

#[test]
fn start_options_are_enforced() {
    let world = World::new();
    let ask = |object, operation, argument| world.ask(object, operation, argument);

    // Variables: the platform's have real values, and what carries the options is not there.
    let instance = world.start("env", json!({"env": {"A": "1"}, "enableInternet": false}));
    let env = world.app("env", "/env");
    let value = |name: &str| {
        let line = env
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("{name} in {env}")).to_owned()
    };
    assert_eq!(value("A"), "1");
    assert!(!env.contains("WHARF"), "{env}");
    assert_eq!(value("CLOUDFLARE_APPLICATION_ID"), instance["application"]);
    assert_eq!(
        value("CLOUDFLARE_DURABLE_OBJECT_ID"),
        ask("env", "id", Value::Null)
    );
    assert_eq!(value("CLOUDFLARE_LOCATION"), "vie01");
    assert_eq!(value("CLOUDFLARE_REGION"), "EEUR");
    assert_eq!(value("CLOUDFLARE_COUNTRY_A2"), "AT");
    let deployments = world.node.wrangler_ok(
        WRANGLERS[1],
        &world.project.path(),
        &["deployments", "list", "--json"],
    );
    let list: Value = serde_json::from_str(&deployments[deployments.find('[').unwrap()..]).unwrap();
    assert_eq!(
        value("CLOUDFLARE_DEPLOYMENT_ID"),
        list.as_array().unwrap().last().unwrap()["id"]
    );

    // Sizes: the application's (basic), a named one, a smaller one of its own, and one that is too large.
    assert_eq!(memory_mib(&instance["pid"]), 1024);
    let lite = world.start("lite", json!({"instance": "lite"}));
    assert_eq!(memory_mib(&lite["pid"]), 256);
    let lite = cores(&lite["pid"]);
    assert!((0.06..0.0626).contains(&lite), "{lite}");
    let custom = json!({"vcpu": 0.125, "memoryMib": 100, "diskMb": 500});
    let small = world.start("small", json!({"instance": custom}));
    assert_eq!(memory_mib(&small["pid"]), 100);
    let custom = json!({"vcpu": 2, "memoryMib": 2048, "diskMb": 500});
    assert_eq!(ask("large", "start", json!({"instance": custom})), true);
    let end = world.end("large");
    assert!(
        end.starts_with(
            "Container failed to start: start({instance}) asks for more than application \"direct-box\" has: 2 vCPU of at most 0.25, 2048 MiB"
        ),
        "{end}"
    );
    assert_eq!(ask("large", "running", Value::Null), false);
    assert!(
        refusal(&world.node).contains("2 vCPU of at most 0.25, 2048 MiB of memory of at most 1024"),
        "{}",
        refusal(&world.node)
    );
    assert_eq!(
        ask("large", "start", json!({"instance": "huge"})),
        "error: TypeError: Invalid container instance type."
    );
    assert_eq!(
        ask("large", "start", json!({"env": {"__WHARF_START": "{}"}})),
        "error: TypeError: The environment variable __WHARF_START is reserved for the platform; give yours another name."
    );

    // A hard timeout: SIGTERM, and SIGKILL for who does not listen to it.
    world.start("short", json!({"hardTimeout": 1000}));
    world.start(
        "stubborn",
        json!({"hardTimeout": 1000, "env": {"STUBBORN": "1"}}),
    );
    assert_eq!(world.end("short"), "exited with 0");
    let end = world.end("stubborn");
    assert!(end.contains("exitCode 137"), "{end}");
    assert!(world.app("env", "/who").contains("8080"), "others run on");
}

#[test]
fn labels_are_kept_with_the_container() {
    let world = World::new();
    let ask = |operation, argument| world.ask("a", operation, argument);
    assert_eq!(ask("inspect", Value::Null), Value::Null);
    assert_eq!(
        ask("labels", json!({"k": "v"})),
        "error: Error: setLabels() cannot be called on a container that is not running."
    );
    let before = world.start("a", json!({"labels": {"team": "a=b", "emoji": "🧪"}}));
    let labels = || ask("inspect", Value::Null)["labels"].clone();
    assert_eq!(labels(), json!({"team": "a=b", "emoji": "🧪"}));
    assert_eq!(before["labels"], labels(), "wharf status shows them");

    // Replaced whole; the last of two that are under way at once is the one that stays.
    assert_eq!(ask("twice", json!([{"a": "1"}, {"b": "2"}])), Value::Null);
    assert_eq!(labels(), json!({"b": "2"}));
    for (wrong, error) in [
        (json!({"": "x"}), "Label names cannot be empty"),
        (
            json!({"seventeen letters": "x"}),
            "Label names cannot exceed 16 bytes",
        ),
        (
            json!({"a": "v".repeat(65)}),
            "Label values cannot exceed 64 bytes",
        ),
        (
            json!({"a\u{1}": "x"}),
            "Label names cannot contain control characters",
        ),
    ] {
        let answer = ask("labels", wrong);
        let answer = answer.as_str().unwrap();
        assert!(answer.contains(error), "{answer}");
    }
    assert_eq!(labels(), json!({"b": "2"}));

    // The operator sees them as Docker's.
    let socket = world.node.data_dir().join("run/wharf.sock");
    let name = before["id"].as_str().unwrap();
    let docker = docker_get(&socket, &format!("/containers/{name}/json"));
    assert_eq!(docker["Config"]["Labels"]["b"], "2");

    // workerd is killed: its next process finds container and labels.
    kill(world.node.workerd("direct"));
    wait_until("the next process", || {
        world.node.get("direct", "/").status != 502
    });
    assert_eq!(labels(), json!({"b": "2"}));
    ask("labels", json!({"c": "3"}));
    let id = ask("id", Value::Null);
    let after = world.node.running(id.as_str().unwrap()).unwrap();
    assert_eq!(after["pid"], before["pid"]);
    assert_eq!(after["labels"], json!({"c": "3"}));

    // A new start has only its own.
    ask("destroy", Value::Null);
    assert_eq!(ask("inspect", Value::Null), Value::Null);
    world.start("a", json!({}));
    assert_eq!(labels(), json!({}));
}

/// A GET on the operator's socket.
fn docker_get(socket: &std::path::Path, path: &str) -> Value {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let json = &body[body.find('{').unwrap()..=body.rfind('}').unwrap()];
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

#[test]
fn signals_ends_and_idle_objects_are_as_documented() {
    let world = World::new();
    let ask = |object, operation, argument| world.ask(object, operation, argument);

    // signal: the number arrives; monitor tells how it ended.
    world.start("a", Value::Null);
    assert_eq!(ask("a", "signal", json!(10)), Value::Null);
    let end = world.end("a");
    assert!(end.contains("exitCode 42"), "{end}");
    assert_eq!(
        ask("a", "signal", json!(10)),
        "error: Error: signal() cannot be called on a container that is not running."
    );
    world.start("a", Value::Null);
    assert_eq!(
        ask("a", "signal", json!(65)),
        "error: RangeError: Invalid signal number."
    );
    ask("a", "signal", json!(15));
    assert_eq!(world.end("a"), "exited with 0");
    world.start("a", Value::Null);
    ask("a", "signal", json!(9));
    let end = world.end("a");
    assert!(end.contains("exitCode 137"), "{end}");

    // An exit of its own, and destroy with a reason.
    world.start("a", Value::Null);
    ask("a", "app", json!("/exit/7"));
    let end = world.end("a");
    assert!(end.contains("exitCode 7"), "{end}");
    world.start("a", json!({"entrypoint": ["/app", "--flag", "8080"]}));
    assert!(world.app("a", "/who").contains("\"args\":\"--flag 8080\""));
    ask("a", "destroy", json!("no longer needed"));
    assert_eq!(world.end("a"), "reason no longer needed");
    assert_eq!(ask("a", "running", Value::Null), false);
    assert_eq!(ask("a", "destroy", Value::Null), Value::Null);

    // Without an object there is no container, unless it may be inactive for a while.
    world.start("short", Value::Null);
    let held = world.start("held", Value::Null);
    assert_eq!(
        ask("held", "inactivity", json!(0)),
        "error: TypeError: setInactivityTimeout() cannot be called with a durationMs <= 0"
    );
    ask("held", "inactivity", json!(60_000));
    for object in ["short", "held"] {
        let path = format!("/{object}/abort");
        world.node.request("POST", "direct", &path, &[], "null");
    }
    wait_until("the end of what is not held", || {
        ask("short", "running", Value::Null) == false
    });
    assert_eq!(ask("held", "running", Value::Null), true);
    assert_eq!(ask("held", "monitor", Value::Null), true);
    let id = ask("held", "id", Value::Null);
    let after = world.node.running(id.as_str().unwrap()).unwrap();
    assert_eq!(after["pid"], held["pid"]);
}
