//! The whole path: a request to the gateway whose Worker and Durable Object start the container.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result};

use super::Runtime;
use crate::class::Class;
use crate::http::{self, Api};

/// The node under measurement.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Its gateway.
    pub(crate) gateway: SocketAddr,
    /// The Worker's host name.
    pub(crate) host: String,
    /// The operator's socket.
    pub(crate) api: Api,
    /// Part of the command line of each of its processes.
    pub(crate) data_dir: String,
}

impl Node {
    /// A request that a fresh object `name` of the class answers out of its container.
    pub(crate) fn ask(&self, class: &Class, name: &str) -> Result<Instant> {
        let path = format!("/{}/{name}", class.name);
        http::gateway(self.gateway, &self.host, "GET", &path)
    }

    /// The object destroys its container.
    pub(crate) fn destroy(&self, class: &Class, name: &str) -> Result<()> {
        let path = format!("/{}/{name}", class.name);
        http::gateway(self.gateway, &self.host, "DELETE", &path).map(drop)
    }

    /// Processes of the containers that run.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        let list = self.api.call("GET", "/containers/json", None)?;
        let mut pids = Vec::new();
        for container in list.as_array().context("no list of containers")? {
            // Nobody's yet: started ahead.
            if container["Names"][0]
                .as_str()
                .is_some_and(|name| name.starts_with("/standby-"))
            {
                continue;
            }
            let id = container["Id"].as_str().unwrap_or_default();
            let seen = self
                .api
                .call("GET", &format!("/containers/{id}/json"), None)?;
            let pid = seen["State"]["Pid"].as_i64().unwrap_or(0);
            if pid > 0 {
                pids.push(i32::try_from(pid)?);
            }
        }
        Ok(pids)
    }
}

/// One object at a time.
pub(crate) struct Whole {
    node: Node,
    object: Option<(Class, String)>,
}

impl Whole {
    pub(crate) fn new(node: Node) -> Whole {
        Whole { node, object: None }
    }
}

impl Runtime for Whole {
    fn name(&self) -> &'static str {
        "wharf"
    }

    fn level(&self) -> &'static str {
        "whole"
    }

    fn start(&mut self, class: &Class, name: &str) -> Result<Instant> {
        self.object = Some((class.clone(), name.to_owned()));
        self.node.ask(class, name)
    }

    fn pid(&mut self) -> Result<i32> {
        let pids = self.node.pids()?;
        pids.last().copied().context("no container runs")
    }

    fn stop(&mut self) -> Result<()> {
        match self.object.take() {
            Some((class, name)) => self.node.destroy(&class, &name),
            None => Ok(()),
        }
    }
}
