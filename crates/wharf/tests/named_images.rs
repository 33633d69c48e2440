//! Containers whose Worker chooses the image with each start: `"scheduling_policy": "durable_object"` with named images, by the real wrangler.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use serde_json::{Value, json};

use self::common::{Node, Project, WRANGLERS};

/// The only pinned wrangler that knows named images.
const V: &str = WRANGLERS[1];

const WORKER: &str = r#"import { DurableObject } from "cloudflare:workers";
export class Box extends DurableObject {
  async images() { return this.ctx.container.images; }
  async start(options) {
    const { container } = this.ctx;
    if (container.running) await container.destroy();
    try {
      container.start(options);
      const ended = container.monitor().then(() => { throw new Error("it ended"); });
      ended.catch(() => {});
      for (let tries = 0; ; tries++) {
        try {
          const page = container.getTcpPort(8080).fetch("http://box/index.html");
          return (await (await Promise.race([page, ended])).text()).trim();
        } catch (error) {
          if (tries == 20 || !container.running) { await ended; throw error; }
          await new Promise(resolve => setTimeout(resolve, 100));
        }
      }
    } catch (error) { return "error: " + error.message; }
  }
  async page() {
    const { container } = this.ctx;
    if (!container.running) return "not running";
    return (await (await container.getTcpPort(8080).fetch("http://box/index.html")).text()).trim();
  }
  async kept(image) {
    const { container } = this.ctx;
    const containerSnapshot = await container.snapshotContainer({});
    return await this.start({ containerSnapshot });
  }
}
export default {
  async fetch(request, env) {
    const [, verb, object] = new URL(request.url).pathname.split("/");
    const box = env.BOX.getByName(object);
    const options = JSON.parse(await request.text() || "{}");
    if (options.named) { options.image = (await box.images())[options.named]; delete options.named; }
    return Response.json(await box[verb](options));
  },
};"#;

struct Site {
    node: Node,
    project: Project,
}

impl Site {
    fn new() -> Site {
        let node = Node::start();
        let tar = node.dir.path().join("busybox.tar");
        std::fs::write(&tar, wharf_testkit::busybox::tar()).unwrap();
        let mut import = node.command();
        import.args(["image", "import", "busybox:1"]).arg(&tar);
        assert!(import.output().unwrap().status.success());
        let project = Project::new(&[("w.js", WORKER)]);
        Site { node, project }
    }

    fn dockerfile(&self, name: &str, page: &str) {
        let text = format!(
            "FROM busybox:1\nRUN mkdir -p /www && echo {page} > /www/index.html\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n"
        );
        self.project.write(&format!("{name}/Dockerfile"), &text);
    }

    fn config(&self, container: Value) {
        let config = json!({
            "name": "named", "main": "w.js", "compatibility_date": "2026-11-01",
            "compatibility_flags": ["experimental"],
            "containers": [container],
            "durable_objects": {"bindings": [{"name": "BOX", "class_name": "Box"}]},
            "migrations": [{"tag": "v1", "new_sqlite_classes": ["Box"]}],
        });
        self.project.write("wrangler.json", &config.to_string());
    }

    fn images(&self, images: Value) {
        self.config(
            json!({"class_name": "Box", "scheduling_policy": "durable_object", "images": images}),
        );
    }

    fn wrangler(&self, args: &[&str]) -> String {
        self.node.wrangler_ok(V, &self.project.path(), args)
    }

    /// What wrangler says when it is refused.
    fn refused(&self, args: &[&str]) -> String {
        let out = self.node.wrangler(V, &self.project.path(), args);
        let text = String::from_utf8_lossy(&out.stdout).into_owned()
            + &String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{text}");
        text
    }

    fn call(&self, verb: &str, object: &str, options: Value) -> Value {
        let path = format!("/{verb}/{object}");
        let answer = self
            .node
            .request("POST", "named", &path, &[], &options.to_string());
        assert_eq!(answer.status, 200, "{}\n{}", answer.body, self.node.log());
        answer.json()
    }

    fn start(&self, object: &str, image: &str) -> Value {
        self.call("start", object, json!({"named": image}))
    }

    fn error(&self, options: Value) -> String {
        let text = self.call("start", "wrong", options);
        let text = text.as_str().unwrap();
        assert!(text.starts_with("error: "), "{text}");
        text.to_owned()
    }

    /// Pushes an image that no version names, by Docker's command as the environment has it; its reference with the digest.
    fn pushed(&self, name: &str) -> String {
        let env = self.node.env();
        let of = |key: &str| env.iter().find(|(k, _)| k == key).unwrap().1.clone();
        let repository = format!(
            "{}/{}/{name}",
            of("CLOUDFLARE_CONTAINER_REGISTRY"),
            of("CLOUDFLARE_ACCOUNT_ID")
        );
        let tagged = format!("{repository}:1");
        let docker = |args: &[&str]| {
            let mut command = std::process::Command::new(of("WRANGLER_DOCKER_BIN"));
            let out = command
                .args(args)
                .current_dir(self.project.path())
                .envs(env.clone())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{args:?} {text}");
            String::from_utf8(out.stdout).unwrap()
        };
        docker(&["build", "-t", &tagged, name]);
        docker(&["push", &tagged]);
        let digests = docker(&[
            "image",
            "inspect",
            &tagged,
            "--format",
            "{{json .RepoDigests}}",
        ]);
        let digests: Vec<String> = serde_json::from_str(digests.trim()).unwrap();
        let mut of_it = digests.into_iter().filter(|d| d.starts_with(&repository));
        of_it.next().unwrap()
    }
}

#[test]
fn a_worker_starts_images_by_name() {
    let site = Site::new();
    for (name, page) in [("one", "first"), ("two", "second"), ("other", "foreign")] {
        site.dockerfile(name, page);
    }
    let (two, other) = (site.pushed("two"), site.pushed("other"));
    site.images(json!({"one": {"dockerfile": "./one/Dockerfile"}, "two": {"image": two}}));
    site.wrangler(&["deploy"]);

    let images = site.call("images", "a", json!({}));
    assert_eq!(images["two"], two);
    assert!(images["one"].as_str().unwrap().contains("@sha256:"));
    assert_eq!(site.start("a", "one"), "first");
    assert_eq!(site.start("b", "two"), "second");
    // The same object goes over to another image.
    assert_eq!(site.start("a", "two"), "second");
    assert_eq!(site.start("a", "one"), "first");

    // Nothing else can be started.
    let none = site.error(json!({}));
    assert!(none.contains("image"), "{none}");
    let foreign = site.error(json!({"image": other}));
    assert!(foreign.contains("may not use it"), "{foreign}");
    let local = site.error(json!({"image": "busybox:1"}));
    assert!(local.contains("may not use it"), "{local}");

    // Sizes come with the start, up to the largest that there is.
    let big = json!({"named": "two", "instance": {"vcpu": 1, "memoryMib": 4096, "diskMb": 4000}});
    assert_eq!(site.call("start", "b", big), "second");
    let huge = json!({"named": "two", "instance": {"vcpu": 4, "memoryMib": 16384, "diskMb": 4000}});
    let huge = site.error(huge);
    assert!(huge.contains("standard-4"), "{huge}");

    // A container snapshot fits its image without naming it.
    assert_eq!(site.call("kept", "a", json!({})), "first");

    let listed = site.wrangler(&["containers", "list"]);
    assert!(listed.contains("named-box"), "{listed}");
    // Nothing changed: the same again.
    site.wrangler(&["deploy"]);
    assert_eq!(site.start("a", "one"), "first");

    // A new image comes with the next start; what runs stays.
    site.dockerfile("one", "third");
    site.wrangler(&["deploy"]);
    assert_eq!(site.call("page", "a", json!({})), "first");
    assert_eq!(site.start("a", "one"), "third");
    site.wrangler(&["rollback", "--yes", "--message", "back"]);
    assert_eq!(site.start("a", "one"), "first");

    // A version that is uploaded, and deployed later.
    site.dockerfile("one", "fourth");
    let uploaded = site.wrangler(&["versions", "upload"]);
    let id = uploaded
        .lines()
        .find_map(|line| line.split("Worker Version ID: ").nth(1))
        .unwrap()
        .trim()
        .to_owned();
    assert_eq!(site.start("a", "one"), "first");
    site.wrangler(&["versions", "deploy", &format!("{id}@100%"), "--yes"]);
    assert_eq!(site.start("a", "one"), "fourth");
    // Without a rollout the images are those of before.
    site.dockerfile("one", "fifth");
    site.wrangler(&["deploy", "--containers-rollout=none"]);
    assert_eq!(site.start("a", "one"), "fourth");

    let mut site = site;
    site.node.stop();
    site.node.launch();
    assert_eq!(site.start("a", "one"), "fourth");
    assert_eq!(site.start("b", "two"), "second");
    site.wrangler(&["delete", "--force"]);
    assert_eq!(site.node.get("named", "/images/a").status, 404);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let site = Site::new();
    site.dockerfile("one", "first");
    // Not on this node.
    let env = site.node.env();
    let registry = env
        .iter()
        .find(|(k, _)| k == "CLOUDFLARE_CONTAINER_REGISTRY")
        .unwrap();
    let missing = format!("{}/acc/none@sha256:{}", registry.1, "0".repeat(64));
    site.images(json!({"one": {"image": missing}}));
    let text = site.refused(&["deploy"]);
    assert!(text.contains("is not in this node's registry"), "{text}");

    // No image at all.
    site.config(json!({"class_name": "Box", "scheduling_policy": "durable_object"}));
    let text = site.refused(&["deploy"]);
    assert!(text.contains("not fully applied"), "{text}");
    // wrangler keeps the reason to itself.
    let log = site.node.log();
    assert!(log.contains("without named"), "{log}");

    site.images(json!({"one": {"dockerfile": "./one/Dockerfile"}}));
    site.wrangler(&["deploy"]);
    assert_eq!(site.start("a", "one"), "first");
    site.config(json!({"class_name": "Box", "scheduling_policy": "durable_object"}));
    let text = site.refused(&["deploy"]);
    assert!(text.contains("says no named images"), "{text}");
    assert_eq!(site.start("b", "one"), "first");

    // Settings that would do nothing.
    for (key, value, says) in [
        ("ssh", json!({"enabled": true}), "SSH"),
        (
            "unsafe",
            json!({"configuration": {"experimental_flags": ["x"]}}),
            "experimental flags",
        ),
    ] {
        let mut container = json!({"class_name": "Box", "scheduling_policy": "durable_object",
            "images": {"one": {"dockerfile": "./one/Dockerfile"}}});
        container[key] = value;
        site.config(container);
        site.refused(&["deploy"]);
        let log = site.node.log();
        assert!(log.contains(says), "{log}");
    }
    // An application with an image of its own is another application, in both directions.
    let go_over = |says: &str| {
        let text = site.refused(&["deploy"]);
        assert!(text.contains(says), "{text}");
        let (_, after) = text.split_once("wrangler containers delete ").unwrap();
        let id = after.split('`').next().unwrap().to_owned();
        site.wrangler(&["containers", "delete", &id]);
        let status = site.node.status();
        for instance in status["instances"].as_array().unwrap() {
            assert!(
                instance["application"] != id || instance["pid"].is_null(),
                "what belonged to it has ended: {instance}"
            );
        }
        site.wrangler(&["deploy"]);
    };
    site.config(json!({"class_name": "Box", "image": "./one/Dockerfile"}));
    go_over("has named images");
    assert_eq!(site.call("start", "c", json!({})), "first");
    site.images(json!({"one": {"dockerfile": "./one/Dockerfile"}}));
    go_over("has one image of its own");
    assert_eq!(site.start("c", "one"), "first");
}
