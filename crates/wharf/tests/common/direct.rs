//! A node with the project `direct`: `ctx.container` by remote control.

use serde_json::{Value, json};

use super::{Node, Project, WRANGLERS};

const CONFIG: &str = "[containers]\nstop_grace_ms = 500\norphan_grace_ms = GRACE\nMORE\n[node]\nlocation = \"vie01\"\nregion = \"EEUR\"\ncountry = \"AT\"\n";

/// A node with the project `direct`.
pub struct World {
    pub node: Node,
    pub project: Project,
}

impl World {
    pub fn new() -> World {
        World::with_grace(60_000)
    }

    /// Containers are kept for so many milliseconds while their objects sleep after the end of their workerd.
    pub fn with_grace(ms: u64) -> World {
        World::with(ms, "")
    }

    /// With more lines in the configuration's `[containers]`.
    pub fn with(ms: u64, more: &str) -> World {
        World::on(Node::start(), ms, more)
    }

    /// On a node that runs already, and is started again.
    pub fn on(mut node: Node, ms: u64, more: &str) -> World {
        node.stop();
        let config = node.dir.path().join("wharf.toml");
        let text = CONFIG
            .replace("GRACE", &ms.to_string())
            .replace("MORE", more);
        std::fs::write(&config, text).unwrap();
        node.set_extra(&["--config", config.to_str().unwrap()]);
        node.launch();
        let project = Project::fixture("direct", None);
        node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
        World { node, project }
    }

    /// An operation of an object; its value, or `error: ...`.
    pub fn ask(&self, object: &str, operation: &str, argument: Value) -> Value {
        let path = format!("/{object}/{operation}");
        let answer = self
            .node
            .request("POST", "direct", &path, &[], &argument.to_string());
        assert_eq!(
            answer.status,
            200,
            "{path}: {}\n{}",
            answer.body,
            self.node.log()
        );
        let answer = answer.json();
        match &answer["error"] {
            Value::Null => answer["value"].clone(),
            error => json!(format!("error: {}", error.as_str().unwrap())),
        }
    }

    pub fn start(&self, object: &str, options: Value) -> Value {
        assert_eq!(self.ask(object, "start", options), true);
        self.app(object, "/who");
        let id = self.ask(object, "id", Value::Null);
        self.node.running(id.as_str().unwrap()).unwrap()
    }

    /// Text of the app inside.
    pub fn app(&self, object: &str, path: &str) -> String {
        let answer = self.ask(object, "app", json!(path));
        assert_eq!(answer["status"], 200, "{answer}\n{}", self.node.log());
        answer["text"].as_str().unwrap().to_owned()
    }

    /// How its container ended.
    pub fn end(&self, object: &str) -> String {
        let end = self.ask(object, "end", Value::Null);
        end.as_str().unwrap().to_owned()
    }
}
