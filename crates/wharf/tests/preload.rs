//! Python applications whose image has its imports done ahead (LABEL wharf.preload), by the real wrangler.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use serde_json::{Value, json};

use self::common::{Node, Project, WRANGLERS, tools, wait_until};

const WORKER: &str = r#"import { DurableObject } from "cloudflare:workers";
export class Box extends DurableObject {
  async fetch(request) {
    const { container } = this.ctx;
    if (!container.running) container.start({ enableInternet: false, env: { OBJECT: new URL(request.url).pathname.split("/")[1] } });
    for (let tries = 0; ; tries++) {
      try { return await container.getTcpPort(8000).fetch(request.url); } catch (error) {
        if (tries == 400 || request.url.includes("/end/")) throw error;
        await new Promise(resolve => setTimeout(resolve, 25));
      }
    }
  }
};
export default {
  fetch: (request, env) => env.BOX.getByName(new URL(request.url).pathname.split("/")[1]).fetch(request),
};"#;

/// Says all that tells one instance from another, and how it is held.
const APP: &str = r#"
import os, random, socket
import numpy
from fastapi import FastAPI
app = FastAPI()
begun = random.random()
@app.get("/{name}/end/{code}")
def end(name: str, code: int):
    os._exit(code)
@app.get("/{name}")
def index(name: str):
    made = os.path.exists("/made")
    open("/made", "w").close()
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {
        "object": os.environ["OBJECT"], "pid": os.getpid(), "processes": [n for n in os.listdir("/proc") if n.isdigit()],
        "held": {key: status[key].strip() for key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters")},
        "apart": [begun, float(numpy.random.random()), socket.gethostname(), open("/proc/self/uid_map").read()]
            + [os.readlink(f"/proc/self/ns/{n}") for n in ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")],
        "made": made, "sum": float(numpy.arange(1000.0).reshape(10, 100).dot(numpy.ones(100)).sum()),
        "exe": os.readlink("/proc/self/exe"), "command": open("/proc/self/cmdline").read(),
    }
"#;

fn import(node: &Node) {
    let images = std::fs::read_dir(tools().join("images")).unwrap().flatten();
    let tar = images
        .map(|e| e.path())
        .find(|p| {
            p.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("numpy-")
        })
        .expect("run `cargo xtask base-image numpy`");
    let mut command = node.command();
    let out = command
        .args(["image", "import", "wharf/numpy:3.11"])
        .arg(&tar)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
}

fn project(label: &str) -> Project {
    let dockerfile = format!(
        "FROM wharf/numpy:3.11\n{label}\nWORKDIR /app\nENV OPENBLAS_NUM_THREADS=1\nCOPY main.py .\nEXPOSE 8000\nCMD [\"python3\", \"-m\", \"uvicorn\", \"main:app\", \"--host\", \"0.0.0.0\", \"--port\", \"8000\"]\n"
    );
    let config = json!({
        "name": "boxes", "main": "worker.js", "compatibility_date": "2026-11-01",
        "containers": [{"class_name": "Box", "image": "./Dockerfile", "instance_type": "basic", "max_instances": 5}],
        "durable_objects": {"bindings": [{"name": "BOX", "class_name": "Box"}]},
        "migrations": [{"tag": "v1", "new_sqlite_classes": ["Box"]}],
    });
    Project::new(&[
        ("Dockerfile", &dockerfile),
        ("main.py", APP),
        ("worker.js", WORKER),
        ("wrangler.json", &config.to_string()),
    ])
}

fn deploy(node: &Node, project: &Project) {
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
}

fn preloads(node: &Node) -> Vec<Value> {
    node.status()["preloads"].as_array().unwrap().clone()
}

/// The processes of the instances that run.
fn running(node: &Node) -> Vec<Value> {
    let all = node.instances();
    let pids = all.iter().map(|i| i["pid"].clone());
    pids.filter(|pid| !pid.is_null()).collect()
}

fn answer(node: &Node, object: &str) -> Value {
    let answer = node.get("boxes", &format!("/{object}"));
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, node.log());
    answer.json()
}

#[test]
fn instances_begin_with_their_imports_done_and_share_nothing_else() {
    let mut node = Node::start();
    import(&node);
    let project = project(r#"LABEL wharf.preload="numpy, fastapi, uvicorn, random""#);
    deploy(&node, &project);
    wait_until("the imports are done", || {
        preloads(&node)[0]["state"] == "ready"
    });
    let (one, two) = (answer(&node, "one"), answer(&node, "two"));
    let made = &preloads(&node)[0];
    assert_eq!(
        (&made["restored"], &made["ordinary"]),
        (&json!(2), &json!(0)),
        "{made}"
    );
    for (answer, object) in [(&one, "one"), (&two, "two")] {
        assert_eq!(answer["object"], object);
        assert_eq!(
            (&answer["pid"], &answer["processes"]),
            (&json!(1), &json!(["1"]))
        );
        assert_eq!(
            (&answer["made"], &answer["sum"]),
            (&json!(false), &json!(499500.0))
        );
        assert_eq!(answer["exe"], "/usr/bin/python3.11");
        assert!(
            answer["command"]
                .as_str()
                .unwrap()
                .starts_with("python3\0-m\0uvicorn\0")
        );
    }
    let apart = |answer: &Value| answer["apart"].as_array().unwrap().clone();
    for (a, b) in apart(&one).iter().zip(apart(&two)) {
        assert_ne!(*a, b);
    }
    let ended = node.get("boxes", "/two/end/9");
    assert_ne!(ended.status, 200);
    wait_until("its end is seen", || running(&node).len() == 1);

    // A killed daemon: what runs lives on; its imports are done anew.
    let before = running(&node);
    node.kill_9();
    node.launch();
    assert_eq!(running(&node), before);
    assert!(preloads(&node).is_empty());
    let three = answer(&node, "three");
    assert_eq!(
        three["held"], one["held"],
        "an ordinary start is held as a restored one"
    );
    assert_eq!(preloads(&node)[0]["restored"], 0);
    wait_until("the imports are done again", || {
        preloads(&node)[0]["state"] == "ready"
    });

    // Another image: the old one's imports are given up.
    let old = preloads(&node)[0]["image_id"].clone();
    project.write(
        "main.py",
        &APP.replace("499500", "0")
            .replace("\"made\": made", "\"made\": made, \"new\": True"),
    );
    deploy(&node, &project);
    wait_until("only the new image's imports are kept", || {
        let all = preloads(&node);
        all.len() == 1 && all[0]["image_id"] != old && all[0]["state"] == "ready"
    });
    assert_eq!(answer(&node, "four")["new"], true);
    assert_eq!(preloads(&node)[0]["restored"], 1);
    node.stop();
}

#[test]
fn a_wrong_label_is_told_and_breaks_nothing() {
    let mut node = Node::start();
    import(&node);
    deploy(
        &node,
        &project(r#"LABEL wharf.preload="fastapi, nothing_like_this""#),
    );
    wait_until("the failure is told", || {
        let all = preloads(&node);
        all[0]["state"] == "failed"
            && all[0]["reason"]
                .as_str()
                .unwrap()
                .contains("No module named 'nothing_like_this'")
    });
    assert_eq!(answer(&node, "one")["pid"], 1);
    assert!(node.log().contains("nothing_like_this"));
    node.stop();
}
