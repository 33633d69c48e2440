//! The published @cloudflare/containers does on this node what its README shows: the version that older apps pin, and a current one.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::common::{Node, Project, WRANGLERS, wait_until};

struct World {
    node: Node,
    script: &'static str,
    _project: Project,
}

impl World {
    fn new(script: &'static str, package: &str) -> World {
        let node = Node::start();
        let project = Project::fixture(script, Some(package));
        node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
        World {
            node,
            script,
            _project: project,
        }
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.node.get(self.script, path);
        assert_eq!(
            answer.status,
            200,
            "{path}: {}\n{}",
            answer.body,
            self.node.log()
        );
        answer.json()
    }

    /// A method of an object.
    fn call(&self, object: &str, method: &str, argument: Value) -> Value {
        let path = format!("/{object}/{method}");
        let answer = self
            .node
            .request("POST", self.script, &path, &[], &argument.to_string());
        assert_eq!(
            answer.status,
            200,
            "{path}: {}\n{}",
            answer.body,
            self.node.log()
        );
        answer.json()
    }

    fn events(&self, object: &str) -> Vec<String> {
        let events = self.call(object, "events", Value::Null);
        serde_json::from_value(events).unwrap()
    }

    fn wait_for_event(&self, object: &str, event: &str) {
        wait_until(&format!("{event} of {object}"), || {
            self.events(object).iter().any(|e| e == event)
        });
    }

    /// Hooks, by what happened to the container; with the last stop as this version tells it of a SIGKILL.
    fn lifecycle(&self) {
        let first = self.get("/hooked/a/app/who");
        assert_eq!(first["port"], 8080);
        assert_eq!(self.events("hooked/a"), ["start"]);
        assert_eq!(self.call("hooked/a", "status", Value::Null), "healthy");

        // SIGTERM by stop(): the app ends with 0.
        self.call("hooked/a", "halt", Value::Null);
        self.wait_for_event("hooked/a", "stop 0 exit");
        // The next request starts it again.
        let second = self.get("/hooked/a/app/who");
        assert_ne!(second["started"], first["started"]);
        assert_eq!(self.events("hooked/a"), ["start", "stop 0 exit", "start"]);

        // A crash, with its exit code.
        self.node.get(self.script, "/hooked/a/app/exit/9");
        self.wait_for_event("hooked/a", "stop 9 exit");

        // Variables and command for one start alone; then its sleep, after three quiet seconds.
        let options = json!({"envVars": {"ONLY": "now"}, "entrypoint": ["/app", "--once", "8080"]});
        self.call("hooked/b", "begin", options);
        let env = self.node.get(self.script, "/hooked/b/app/env").body;
        assert!(env.contains("ONLY=now\n"), "{env}");
        assert_eq!(self.get("/hooked/b/app/who")["args"], "--once 8080");

        // A task: also without a request in between.
        let made = self.call(
            "hooked/c",
            "later",
            json!({"seconds": 1, "payload": {"n": 1}}),
        );
        assert_eq!(made, json!({"type": "delayed", "callback": "fired"}));
        self.wait_for_event("hooked/c", "fired {\"n\":1}");

        self.wait_for_event("hooked/b", "stop 0 exit");
        assert_eq!(self.call("hooked/b", "status", Value::Null), "stopped");
    }

    fn ports(&self) {
        for (path, port) in [("/api/x", 3000), ("/admin", 8080), ("/", 80)] {
            let who = self.get(&format!("/ports/a{path}"));
            assert_eq!((&who["path"], &who["port"]), (&json!(path), &json!(port)));
        }
        self.websocket("/ports/a/ws", "3000:");
    }

    /// A WebSocket from outside through the gateway, the Worker and the object to the app, and its close.
    fn websocket(&self, path: &str, prefix: &str) {
        let mut socket = std::net::TcpStream::connect(self.node.gateway).unwrap();
        let bound = Some(Duration::from_secs(20));
        socket.set_read_timeout(bound).unwrap();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: {}.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.script
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        for text in ["one", "two", "three"] {
            // A masked text frame (RFC 6455, 5.2), mask 0.
            socket
                .write_all(&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0])
                .unwrap();
            socket.write_all(text.as_bytes()).unwrap();
            let wanted = format!("{prefix}{text}");
            let mut frame = vec![0; 2 + wanted.len()];
            socket.read_exact(&mut frame).unwrap();
            assert_eq!(frame[..2], [0x81, wanted.len() as u8]);
            assert_eq!(frame[2..], *wanted.as_bytes());
        }
        // Close with 1000, which comes back.
        socket
            .write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8])
            .unwrap();
        let mut frame = [0; 4];
        socket.read_exact(&mut frame).unwrap();
        assert_eq!(frame, [0x88, 2, 0x03, 0xe8]);
    }

    fn configured(&self) -> Value {
        let who = self.get("/configured/a/who");
        assert_eq!(who["args"], "--config production.json 9000");
        let env = self.node.get(self.script, "/configured/a/env").body;
        assert!(env.contains("NODE_ENV=production\n") && env.contains("LOG_LEVEL=info\n"));
        let echo = self.call("configured/a", "echo-rpc", json!({"query": "example"}));
        assert_eq!(echo, json!({"first": {"query": "example"}, "port": 9000}));
        who
    }

    fn load_balancing(&self) {
        let mut seen = BTreeSet::new();
        // Thirty of one in three that all miss one: once in 10^13.
        for _ in 0..30 {
            seen.insert(self.get("/random/who")["host"].as_str().unwrap().to_owned());
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
    }

    /// Whatever is quiet for longer than workerd keeps an idle object runs on.
    fn still_runs(&self, who: &Value, since: Instant) {
        std::thread::sleep(Duration::from_secs(14).saturating_sub(since.elapsed()));
        assert_eq!(self.get("/configured/a/who")["started"], who["started"]);
    }
}

#[test]
fn the_version_that_older_apps_pin() {
    let world = World::new("package-old", "0.0.13");
    let who = world.configured();
    let since = Instant::now();
    world.lifecycle();
    world.ports();
    world.still_runs(&who, since);
    world.load_balancing();
}

#[test]
fn the_current_version() {
    let world = World::new("package", "0.3.7");
    let who = world.configured();
    let since = Instant::now();
    world.lifecycle();
    assert_eq!(
        world.events("hooked/b"),
        ["start", "expired", "stop 0 exit"]
    );
    // destroy() is no error in this version; its labels are the container's.
    world.get("/hooked/d/app/who");
    let labels = world.call("hooked/d", "shown", Value::Null);
    assert_eq!(labels, json!({"hooked": "yes"}));
    world.call("hooked/d", "kill", Value::Null);
    world.wait_for_event("hooked/d", "stop 137 exit");

    world.ports();
    // One more than max_instances: the package waits for its turn, and then says so.
    let more = world.node.get(world.script, "/ports/b/");
    assert_eq!(more.status, 503, "{}", more.body);
    assert!(
        more.body
            .contains("reached your max concurrent instance count"),
        "{}",
        more.body
    );
    world.still_runs(&who, since);
    world.load_balancing();
}

#[test]
fn outbound_handlers() {
    let world = World::new("package", "0.3.7");
    let get = |object: &str, url: &str| {
        let path = format!("/guarded/{object}/app/get/{url}");
        let answer = world.node.get(world.script, &path);
        (answer.status, answer.body)
    };
    let (status, body) = get("a", "http://named.example/x");
    assert_eq!(status, 200, "{body}\n{}", world.node.log());
    assert!(body.starts_with("named /x "), "{body}");
    // Allowed by a pattern, and handled by nobody else.
    assert_eq!(
        get("a", "http://www.caught.example/y"),
        (200, "caught http://www.caught.example/y".to_owned())
    );
    // Denied goes before allowed; what is not allowed is refused.
    for refused in ["http://denied.example/", "http://elsewhere.example/"] {
        let (status, body) = get("a", refused);
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("520"), "{body}");
    }
    // HTTPS, with a certificate of the instance's own authority, which is where the documentation says.
    let (status, body) = get("a", "https://named.example/tls");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("named /tls "), "{body}");
    let file = "/guarded/a/app/file/etc/cloudflare/certs/cloudflare-containers-ca.crt";
    let certificate = world.node.get(world.script, file).body;
    assert!(
        certificate.starts_with("-----BEGIN CERTIFICATE-----"),
        "{certificate}"
    );
    // Switched while the container runs.
    world.call("guarded/a", "switchHost", Value::Null);
    assert_eq!(
        get("a", "http://switched.example/"),
        (200, "switched".to_owned())
    );
    world.call("guarded/a", "allow", json!("elsewhere.example"));
    let (_, body) = get("a", "http://elsewhere.example/");
    assert_eq!(body, "caught http://elsewhere.example/");
    world.call("guarded/a", "switchAll", Value::Null);
    assert_eq!(
        get("a", "http://www.caught.example/"),
        (200, "switched".to_owned())
    );
}
