//! `wrangler dev` against the operator's socket: it builds, starts and serves a container project, and leaves nothing behind.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Child;

use rustix::process::{Pid, Signal};

use self::common::{Node, Project, wait_until};

/// A running `wrangler dev`, ended with its whole process group.
struct Dev {
    child: Child,
    log: PathBuf,
}

impl Dev {
    fn start(node: &Node, version: &str, project: &Project) -> Dev {
        let log = project.path().join("../dev.log");
        let file = File::create(&log).unwrap();
        let child = node
            .wrangler_command(
                version,
                &project.path(),
                &[
                    "dev",
                    "--ip",
                    "127.0.0.1",
                    "--port",
                    "0",
                    "--inspector-port",
                    "0",
                ],
            )
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap();
        Dev { child, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its URL, once it serves.
    fn url(&mut self) -> String {
        wait_until("wrangler dev to serve", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "wrangler dev ended:\n{}", self.said());
            self.said().contains("Ready on http://")
        });
        let said = self.said();
        let (_, rest) = said.split_once("Ready on ").unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        // Gone already is as good.
        let _ = rustix::process::kill_process_group(group, signal);
    }

    /// Its processes that have not ended.
    fn processes(&self) -> Vec<String> {
        let group = self.child.id().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // After the name: state, parent, group.
            let fields: Vec<_> = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.split(' ').collect())
                .unwrap_or_default();
            if let [state, _, of, ..] = fields[..]
                && of == group
                && state != "Z"
            {
                found.push(stat);
            }
        }
        found
    }
}

/// wrangler leaves the removal of its containers to a process in a group of its own, which ends by itself.
fn cleaners(node: &Node) -> usize {
    let socket = node.data_dir().join("run/wharf.sock");
    let socket = socket.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.contains("dev.workerd.session") && command.contains(socket)
        })
        .count()
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- wrangler dev:\n{}", self.said());
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

fn ask(url: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(std::time::Duration::from_secs(60)))
        .build()
        .into();
    let mut answer = agent.get(url).call().unwrap();
    (
        answer.status().as_u16(),
        answer.body_mut().read_to_string().unwrap(),
    )
}

fn hello(compatibility_date: &str) -> Project {
    let project = Project::copy_of("hello");
    project.build_server("dev");
    let file = project.path().join("wrangler.jsonc");
    let config = std::fs::read_to_string(&file).unwrap();
    let config = config.replace("2026-11-01", compatibility_date);
    std::fs::write(&file, config).unwrap();
    project
}

fn serves_and_leaves_nothing(version: &str, compatibility_date: &str) {
    let node = Node::start();
    let project = hello(compatibility_date);
    let mut dev = Dev::start(&node, version, &project);
    let url = dev.url();
    let (status, body) = ask(&format!("{url}/api/hello/anna"));
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("Hello from a container"), "{body}");
    assert!(body.contains(r#""version":"dev""#), "{body}");
    let instances = || node.status()["instances"].as_array().unwrap().clone();
    assert_eq!(instances().len(), 1, "{:?}", instances());
    assert_eq!(instances()[0]["state"], "running");

    dev.signal(Signal::INT);
    wait_until("wrangler dev to end", || {
        dev.child.try_wait().unwrap().is_some()
    });
    wait_until("its processes to end", || dev.processes().is_empty());
    wait_until("its containers to be removed", || instances().is_empty());
    wait_until("the end of the removal", || cleaners(&node) == 0);
}

#[test]
fn wrangler_dev_serves_and_leaves_nothing_behind() {
    serves_and_leaves_nothing("4.164.0", "2026-11-01");
}

#[test]
fn an_older_wrangler_dev_serves_too() {
    // Its own workerd knows no later date.
    serves_and_leaves_nothing("4.86.0", "2026-05-01");
}

/// A node has deployed Workers and a developer's session at the same time: the session's end must not touch the Workers' containers.
#[test]
fn a_dev_session_that_ends_leaves_the_deployed_containers_alone() {
    let node = Node::start();
    let project = hello("2026-11-01");
    node.wrangler_ok("4.164.0", &project.path(), &["deploy"]);
    assert_eq!(node.get("hello", "/api/hello/deployed").status, 200);
    // All but what it uses at the moment.
    let seen = || {
        let mut instances = node.status()["instances"].clone();
        for instance in instances.as_array_mut().unwrap() {
            instance["usage"].take();
        }
        instances
    };
    let before = seen();

    let mut dev = Dev::start(&node, "4.164.0", &project);
    let url = dev.url();
    assert_eq!(ask(&format!("{url}/api/hello/deployed")).0, 200);
    let instances = || node.status()["instances"].as_array().unwrap().len();
    assert_eq!(instances(), 2);
    dev.signal(Signal::INT);
    wait_until("the session's container to be removed", || instances() == 1);
    wait_until("the end of the removal", || cleaners(&node) == 0);
    assert_eq!(seen(), before);
    assert_eq!(node.get("hello", "/api/hello/deployed").status, 200);
}
