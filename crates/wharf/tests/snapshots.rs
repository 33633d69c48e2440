//! Snapshots as a Worker takes and restores them: wrangler, workerd, the node and its containers are the real ones.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use self::common::{Node, Project, WRANGLERS, wait_until};

/// `/<object>/<operation>` with the argument as JSON.
const WORKER: &str = r#"import { DurableObject } from "cloudflare:workers";
const file = (verb, path, body = "") => `http://box/cgi-bin/file/${verb}${path}?${encodeURIComponent(body)}`;
export class Box extends DurableObject {
  async call(operation, argument) {
    const container = this.ctx.container;
    switch (operation) {
      case "start": {
        container.start({ enableInternet: false, ...argument });
        const ended = container.monitor().then(() => "ended", (error) => error.message);
        for (;;) {
          const serves = container.getTcpPort(8080).fetch(file("ping", "/pong")).then((r) => (r.ok ? "serves" : null), () => null);
          const state = await Promise.race([ended, serves]);
          if (state) return state;
          await scheduler.wait(20);
        }
      }
      case "destroy": await container.destroy(); return "destroyed";
      case "snapshotDirectory": return await container.snapshotDirectory(argument);
      case "snapshotContainer": return await container.snapshotContainer(argument);
      default: {
        const answer = await container.getTcpPort(8080).fetch(file(operation, argument.path, argument.body));
        return answer.ok ? await answer.text() : null;
      }
    }
  }
}
export default {
  async fetch(request, env) {
    const [, object, operation] = new URL(request.url).pathname.split("/");
    try {
      return Response.json({ ok: await env.BOX.getByName(object).call(operation, await request.json()) });
    } catch (error) {
      return Response.json({ error: error.message });
    }
  },
};
"#;

/// Reads and writes files of the container over HTTP.
const CGI: &str = r#"#!/bin/sh
rest=${PATH_INFO#/}; verb=${rest%%/*}; path=/${rest#*/}
case $verb in
ping) ;;
write) mkdir -p "${path%/*}"; printf %s "$QUERY_STRING" > "$path" ;;
fill) mkdir -p "${path%/*}"; dd if=/dev/urandom of="$path" bs=1M count="$QUERY_STRING" 2>/dev/null ;;
remove) rm -r "$path" ;;
read) [ -e "$path" ] || { printf 'Status: 404 Not Found\r\n\r\n'; exit 0; } ;;
esac
printf 'Content-Type: text/plain\r\n\r\n'
if [ "$verb" = read ]; then cat "$path"; fi
"#;

fn config(name: &str) -> String {
    json!({
        "name": name, "main": "w.js", "compatibility_date": "2026-11-01",
        // workerd hides snapshotDirectory() without it.
        "compatibility_flags": ["experimental"],
        "containers": [{"class_name": "Box", "image": "./Dockerfile", "max_instances": 9, "instance_type": "basic"}],
        "durable_objects": {"bindings": [{"name": "BOX", "class_name": "Box"}]},
        "migrations": [{"tag": "v1", "new_sqlite_classes": ["Box"]}],
    })
    .to_string()
}

const DOCKERFILE: &str = "FROM busybox:1\nCOPY --chmod=755 file /www/cgi-bin/file\nRUN mkdir -p /app/image && echo image > /app/image/file\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n";

struct Site {
    node: Node,
    projects: Vec<Project>,
}

impl Site {
    /// A node with one Worker of each name.
    fn new(scripts: &[&str]) -> Site {
        let node = Node::start();
        let tar = node.dir.path().join("busybox.tar");
        std::fs::write(&tar, wharf_testkit::busybox::tar()).unwrap();
        let mut import = node.command();
        import.args(["image", "import", "busybox:1"]).arg(&tar);
        assert!(import.output().unwrap().status.success());
        let mut site = Site {
            node,
            projects: Vec::new(),
        };
        for script in scripts {
            let files = [
                ("wrangler.json", config(script)),
                ("w.js", WORKER.to_owned()),
                ("file", CGI.to_owned()),
                ("Dockerfile", DOCKERFILE.to_owned()),
            ];
            let files: Vec<(&str, &str)> = files.iter().map(|(n, c)| (*n, c.as_str())).collect();
            site.projects.push(Project::new(&files));
            site.deploy(site.projects.len() - 1);
        }
        site
    }

    fn deploy(&self, project: usize) {
        let path = self.projects[project].path();
        self.node.wrangler_ok(WRANGLERS[1], &path, &["deploy"]);
    }

    fn ask(&self, script: &str, object: &str, operation: &str, argument: Value) -> Value {
        let path = format!("/{object}/{operation}");
        let answer = self
            .node
            .request("POST", script, &path, &[], &argument.to_string());
        answer.json()
    }

    fn ok(&self, script: &str, object: &str, operation: &str, argument: Value) -> Value {
        let answer = self.ask(script, object, operation, argument);
        let ok = answer.get("ok");
        let ok = ok.unwrap_or_else(|| panic!("{operation}: {answer}\n{}", self.node.log()));
        ok.clone()
    }

    fn start(&self, script: &str, object: &str, options: Value) {
        let state = self.ok(script, object, "start", options);
        assert_eq!(state, "serves", "{}", self.node.log());
    }

    fn write(&self, script: &str, object: &str, path: &str, body: &str) {
        self.ok(script, object, "write", json!({"path": path, "body": body}));
    }

    fn read(&self, script: &str, object: &str, path: &str) -> Value {
        self.ok(script, object, "read", json!({"path": path}))
    }

    fn destroy(&self, script: &str, object: &str) {
        self.ok(script, object, "destroy", json!({}));
    }

    /// Directories that the store keeps, and those on their way.
    fn on_disk(&self) -> (usize, usize) {
        let count = |name: &str| {
            let dir: PathBuf = self.node.data_dir().join("snapshots").join(name);
            std::fs::read_dir(dir).unwrap().count()
        };
        (count("kept"), count("tmp"))
    }
}

#[test]
fn directories_come_back_in_any_object_and_after_the_daemon_was_killed() {
    let mut site = Site::new(&["snap"]);
    let s = "snap";
    site.start(s, "a", json!({}));
    site.write(s, "a", "/app/data/file", "one");
    site.write(s, "a", "/app/data/deep/er/file", "two");
    site.write(s, "a", "/app/other/file", "three");
    let data = site.ok(
        s,
        "a",
        "snapshotDirectory",
        json!({"dir": "/app/data", "name": "named"}),
    );
    assert_eq!(
        (&data["dir"], &data["name"]),
        (&json!("/app/data"), &json!("named"))
    );
    // What an archive of three directories' and two files' worth has.
    assert_eq!(data["size"], 1024 + 4 * 512 + 2 * 512);
    let other = site.ok(s, "a", "snapshotDirectory", json!({"dir": "/app/other"}));
    let image = site.ok(s, "a", "snapshotDirectory", json!({"dir": "/app/image"}));
    let missing = site.ask(
        s,
        "a",
        "snapshotDirectory",
        json!({"dir": "/does/not/exist"}),
    );
    assert!(
        missing["error"]
            .as_str()
            .unwrap()
            .contains("directory not found"),
        "{missing}"
    );
    // What is written after it is not in it.
    site.write(s, "a", "/app/data/file", "later");
    site.destroy(s, "a");

    site.node.kill_9();
    site.node.launch();
    // Same object, several directories, one at another place.
    let restore = json!({"directorySnapshots": [
        {"snapshot": data}, {"snapshot": other, "mountPoint": "/app/data/deep/mount"}, {"snapshot": image, "mountPoint": "/img"},
    ]});
    site.start(s, "a", restore);
    assert_eq!(site.read(s, "a", "/app/data/file"), "one");
    assert_eq!(site.read(s, "a", "/app/data/deep/er/file"), "two");
    assert_eq!(site.read(s, "a", "/app/data/deep/mount/file"), "three");
    assert_eq!(site.read(s, "a", "/img/file"), "image\n");
    assert_eq!(site.read(s, "a", "/app/other/file"), Value::Null);
    site.write(s, "a", "/app/data/file", "changed");
    // Another object, while the first has it; nothing is shared.
    let restore = json!({"directorySnapshots": [{"snapshot": data, "mountPoint": "/x"}, {"snapshot": other, "mountPoint": "/app/image"}]});
    site.start(s, "b", restore);
    assert_eq!(site.read(s, "b", "/x/file"), "one");
    assert_eq!(site.read(s, "b", "/app/image/file"), "three");
    site.write(s, "b", "/app/image/file", "own");
    let again = site.ok(s, "b", "snapshotDirectory", json!({"dir": "/app/image"}));
    site.destroy(s, "a");
    site.destroy(s, "b");
    site.start(
        s,
        "c",
        json!({"directorySnapshots": [{"snapshot": again, "mountPoint": "/y"}]}),
    );
    assert_eq!(site.read(s, "c", "/y/file"), "own");
    site.destroy(s, "c");
    assert_eq!(site.on_disk(), (4, 0));

    // An id that never was.
    let fake = json!({"id": "deadbeef-0000-4000-8000-000000000000", "size": 1, "dir": "/app/data"});
    let state = site.ok(
        s,
        "a",
        "start",
        json!({"directorySnapshots": [{"snapshot": fake}]}),
    );
    assert_eq!(state, "Container failed to start");
    let usage = &site.node.status()["snapshots"][0];
    assert_eq!(
        (&usage["owner"], &usage["count"]),
        (&json!("script snap"), &json!(4))
    );
    assert!(usage["bytes"].as_u64().unwrap() < 100, "{usage}");

    // The Worker goes, and what it had.
    site.node.wrangler_ok(
        WRANGLERS[1],
        &site.projects[0].path(),
        &["delete", "--force"],
    );
    assert_eq!(site.on_disk(), (0, 0));
}

#[test]
fn containers_come_back_on_their_image_alone_and_for_their_script_alone() {
    let site = Site::new(&["snap", "other"]);
    let s = "snap";
    site.start(s, "a", json!({}));
    site.write(s, "a", "/app/full", "full");
    site.write(s, "a", "/app/target/file", "hidden");
    site.write(s, "a", "/src/file", "mounted");
    site.ok(s, "a", "remove", json!({"path": "/app/image"}));
    let dir = site.ok(s, "a", "snapshotDirectory", json!({"dir": "/src"}));
    let full = site.ok(s, "a", "snapshotContainer", json!({"name": "full"}));
    assert!(
        full["size"].as_u64().unwrap() > 0 && full["name"] == "full",
        "{full}"
    );
    site.destroy(s, "a");

    // With a directory on top, in another object; then a snapshot of that: one layer more, without the mount.
    let restore = json!({"containerSnapshot": full, "directorySnapshots": [{"snapshot": dir, "mountPoint": "/app/target"}]});
    site.start(s, "b", restore);
    assert_eq!(site.read(s, "b", "/app/full"), "full");
    assert_eq!(site.read(s, "b", "/app/target/file"), "mounted");
    assert_eq!(site.read(s, "b", "/app/image/file"), Value::Null);
    site.write(s, "b", "/app/second", "second");
    let second = site.ok(s, "b", "snapshotContainer", json!({}));
    site.destroy(s, "b");
    site.start(s, "c", json!({"containerSnapshot": second}));
    assert_eq!(site.read(s, "c", "/app/full"), "full");
    assert_eq!(site.read(s, "c", "/app/second"), "second");
    assert_eq!(site.read(s, "c", "/app/target/file"), "hidden");
    assert_eq!(site.read(s, "c", "/app/image/file"), Value::Null);
    site.destroy(s, "c");

    // Another script has the ids, and gets nothing.
    for options in [
        json!({"containerSnapshot": full}),
        json!({"directorySnapshots": [{"snapshot": dir}]}),
    ] {
        let state = site.ok("other", "a", "start", options);
        assert_eq!(state, "Container failed to start");
    }

    // Another image: refused, with the reason where people look.
    let project = &site.projects[0];
    project.write("Dockerfile", &format!("{DOCKERFILE}ENV NEW=1\n"));
    site.deploy(0);
    let state = site.ok(s, "d", "start", json!({"containerSnapshot": full}));
    let reason = state.as_str().unwrap();
    assert!(
        reason.starts_with("Container failed to start: the container snapshot")
            && reason.contains("was taken of the image"),
        "{reason}"
    );
    let status = site.node.status();
    let refusal = status["refusals"][0]["reason"].as_str().unwrap_or_default();
    assert!(refusal.contains("was taken of the image"), "{status}");
    // Its directories still fit.
    site.start(s, "d", json!({"directorySnapshots": [{"snapshot": dir}]}));
    assert_eq!(site.read(s, "d", "/src/file"), "mounted");
    site.destroy(s, "d");
    // Back to the first image: it fits again.
    project.write("Dockerfile", DOCKERFILE);
    site.deploy(0);
    site.start(s, "e", json!({"containerSnapshot": full}));
    assert_eq!(site.read(s, "e", "/app/full"), "full");
    site.destroy(s, "e");
}

#[test]
fn a_kill_while_a_snapshot_is_taken_leaves_nothing_half_done() {
    let mut site = Site::new(&["snap"]);
    let s = "snap";
    site.start(s, "a", json!({}));
    site.ok(s, "a", "fill", json!({"path": "/data/big", "body": "300"}));
    let url = format!("http://{}/a/snapshotDirectory", site.node.gateway);
    for _ in 0..3 {
        let mut asking = Command::new("curl")
            .args([
                "-s",
                "-H",
                "Host: snap.localhost",
                "-d",
                "{\"dir\":\"/data\"}",
                &url,
            ])
            .spawn()
            .unwrap();
        wait_until("the copy", || site.on_disk().1 > 0);
        site.node.kill_9();
        asking.wait().unwrap();
        site.node.launch();
        let (kept, temporary) = site.on_disk();
        assert_eq!(temporary, 0);
        let listed = site.node.status()["snapshots"][0]["count"].as_u64();
        assert_eq!(listed.unwrap_or(0), kept as u64);
        // The container that stood still runs again.
        assert_eq!(site.read(s, "a", "/www/cgi-bin/file"), CGI);
    }
}
