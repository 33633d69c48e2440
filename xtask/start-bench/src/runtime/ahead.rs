//! The whole path with instances started ahead: the same request, of a Worker whose applications have `min_instances`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Runtime;
use super::whole::{Node, Whole};
use crate::class::Class;

/// How long one may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// One object at a time.
pub(crate) struct Ahead {
    node: Node,
    whole: Whole,
}

impl Ahead {
    pub(crate) fn new(node: Node) -> Ahead {
        let whole = Whole::new(node.clone());
        Ahead { node, whole }
    }
}

/// What the node says of those of a class, when it has as many as it wants.
///
/// # Errors
/// It does not get so far.
pub(crate) fn ready(node: &Node, class: &Class) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let status = node.api.call("GET", "/wharf/status", None)?;
        let all = status["standbys"].as_array().context("no standbys")?;
        let of_class = all.iter().find(|it| {
            let name = it["application_name"].as_str().unwrap_or_default();
            name.to_lowercase().ends_with(&format!("-{}", class.name))
        });
        let of_class = of_class.context("no application of the class")?;
        if of_class["ready"].as_u64() >= of_class["min_instances"].as_u64()
            && of_class["preparing"] == false
        {
            return Ok(of_class.clone());
        }
        if begun.elapsed() > PATIENCE {
            bail!("not ready in {PATIENCE:?}: {of_class}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Runtime for Ahead {
    fn name(&self) -> &'static str {
        "wharf, standby"
    }

    fn level(&self) -> &'static str {
        "whole"
    }

    fn prepare(&mut self, class: &Class) -> Result<()> {
        ready(&self.node, class).map(drop)
    }

    fn start(&mut self, class: &Class, name: &str) -> Result<Instant> {
        self.whole.start(class, name)
    }

    fn pid(&mut self) -> Result<i32> {
        self.whole.pid()
    }

    fn stop(&mut self) -> Result<()> {
        self.whole.stop()
    }
}
