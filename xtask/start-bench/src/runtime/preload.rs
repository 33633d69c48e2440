//! The whole path with a Python interpreter's imports done ahead: the same request, of a Worker whose image has `LABEL wharf.preload`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Runtime;
use super::whole::{Node, Whole};
use crate::class::Class;

/// How long the imports may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One object at a time.
pub(crate) struct Preloaded {
    node: Node,
    whole: Whole,
    /// Starts of the class that began from it, before the one that counts.
    restored: u64,
}

impl Preloaded {
    pub(crate) fn new(node: Node) -> Preloaded {
        let whole = Whole::new(node.clone());
        Preloaded {
            node,
            whole,
            restored: 0,
        }
    }

    /// What the node says of the class's image.
    fn preload(&self, class: &Class) -> Result<Value> {
        let status = self.node.api.call("GET", "/wharf/status", None)?;
        let all = status["preloads"].as_array().context("no preloads")?;
        // By tag or by digest.
        let names = [":", "@"].map(|end| format!("-{}{end}", class.name));
        let of_class = all.iter().find(|it| {
            let image = it["image"].as_str().unwrap_or_default();
            names.iter().any(|name| image.contains(name))
        });
        of_class.cloned().with_context(|| {
            format!(
                "no preload of the class {}: {}",
                class.name, status["preloads"]
            )
        })
    }
}

impl Runtime for Preloaded {
    fn name(&self) -> &'static str {
        "wharf, imports ahead"
    }

    fn level(&self) -> &'static str {
        "whole"
    }

    fn prepare(&mut self, class: &Class) -> Result<()> {
        let begun = Instant::now();
        loop {
            let preload = self.preload(class);
            match &preload {
                Ok(it) if it["state"] == "ready" => {
                    self.restored = it["restored"].as_u64().unwrap_or(0);
                    return Ok(());
                }
                Ok(it) if it["state"] == "failed" => bail!("the imports failed: {it}"),
                Ok(it) if begun.elapsed() > PATIENCE => bail!("not ready in {PATIENCE:?}: {it}"),
                Err(error) if begun.elapsed() > PATIENCE => {
                    bail!("not ready in {PATIENCE:?}: {error}")
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn start(&mut self, class: &Class, name: &str) -> Result<Instant> {
        let answered = self.whole.start(class, name)?;
        let after = self.preload(class)?;
        if after["restored"].as_u64().unwrap_or(0) <= self.restored {
            bail!("an ordinary start: {after}");
        }
        Ok(answered)
    }

    fn pid(&mut self) -> Result<i32> {
        self.whole.pid()
    }

    fn stop(&mut self) -> Result<()> {
        self.whole.stop()
    }
}
