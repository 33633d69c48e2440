//! Anything that speaks the Docker Engine API: create, start, look up the process, ask inside its network. The same four calls for everyone.

use std::time::Instant;

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::Runtime;
use crate::class::{self, Class};
use crate::http::Api;
use crate::look;

/// A Docker Engine API.
pub(crate) struct ApiRuntime {
    name: &'static str,
    api: Api,
    /// Names a cgroup and the limits of a process; Wharf refuses both by name.
    cgroup_parent: Option<String>,
    container: Option<(String, i32)>,
}

impl ApiRuntime {
    pub(crate) fn new(name: &'static str, api: Api, cgroup_parent: Option<String>) -> ApiRuntime {
        ApiRuntime {
            name,
            api,
            cgroup_parent,
            container: None,
        }
    }
}

/// A create's body. Other engines are told limits of open files and processes: podman would
/// otherwise raise them, which not every machine allows.
fn body(class: &Class, cgroup_parent: Option<&str>) -> Value {
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
    let limit = |name: &str, most: u64| json!({"Name": name, "Soft": most, "Hard": most});
    let mut body = json!({
        "Image": class.image(),
        "Entrypoint": [],
        "Cmd": class.argv,
        "Env": class.env(class::PORT),
        "HostConfig": {
            "NetworkMode": "none",
            "Memory": class::MEMORY,
            "NanoCpus": class::CPU_MILLIS * 1_000_000,
            "PidsLimit": class::PIDS,
        },
    });
    if let Some(parent) = cgroup_parent {
        let limits = json!([limit("nofile", files), limit("nproc", class::PIDS)]);
        body["HostConfig"]["CgroupParent"] = parent.into();
        body["HostConfig"]["Ulimits"] = limits;
    }
    body
}

impl Runtime for ApiRuntime {
    fn name(&self) -> &'static str {
        self.name
    }

    fn level(&self) -> &'static str {
        "docker-api"
    }

    fn start(&mut self, class: &Class, name: &str) -> Result<Instant> {
        let body = body(class, self.cgroup_parent.as_deref());
        let path = format!("/containers/create?name={name}");
        self.container = Some((name.to_owned(), 0));
        self.api.call("POST", &path, Some(&body))?;
        self.api
            .call("POST", &format!("/containers/{name}/start"), None)?;
        let seen = self
            .api
            .call("GET", &format!("/containers/{name}/json"), None)?;
        let pid = seen["State"]["Pid"].as_i64().filter(|pid| *pid > 0);
        let pid = i32::try_from(pid.context("no process after a start that succeeded")?)?;
        self.container = Some((name.to_owned(), pid));
        look::first_byte_inside(pid, class::PORT)
    }

    fn pid(&mut self) -> Result<i32> {
        let container = self.container.as_ref();
        Ok(container.context("no container")?.1)
    }

    fn stop(&mut self) -> Result<()> {
        if let Some((name, _)) = self.container.take() {
            self.api
                .call("DELETE", &format!("/containers/{name}?force=1"), None)?;
        }
        Ok(())
    }
}

impl Drop for ApiRuntime {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the container of {}: {error:#}", self.name);
        }
    }
}
