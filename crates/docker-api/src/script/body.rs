//! The body of a create, as the clients of Docker's API write it, and the start that it asks for.
//!
//! Owns: the wire's fields, and their way into [`StartRequest`]. Must not: decide whether the caller
//! may have it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use wharf_engine::{Isolation, Limits, OwnNetwork};
use wharf_model::names::APPLICATION_IMAGE;
use wharf_node::{Caller, ImageChoice, StartRequest};

use super::security::no_new_privileges;
use crate::errors::ApiError;
use crate::ports::{self, Bindings};
use crate::storage::{HelperBody, is_snapshot};

/// The body. workerd writes scalar defaults (0, "") for what is not set, and Docker clients write
/// null: both are unset.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Body {
    pub(super) image: Option<String>,
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, Value>>,
    pub(super) hostname: Option<String>,
    pub(super) host_config: Option<HostConfig>,
}

/// What of `HostConfig` counts; [`crate::fields::create`] has all of it. workerd's `PidMode` does
/// not: the host's processes are nobody's. Nor does its `RestartPolicy`: an exit must be told by
/// `wait`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    pub(super) network_mode: Option<String>,
    memory: Option<i64>,
    nano_cpus: Option<i64>,
    pids_limit: Option<i64>,
    pub(super) mounts: Option<Vec<Value>>,
    binds: Option<Vec<String>>,
    security_opt: Option<Vec<String>>,
    port_bindings: Option<Bindings>,
    pub(super) auto_remove: Option<bool>,
    runtime: Option<String>,
    pub(super) readonly_rootfs: Option<bool>,
    pub(super) tmpfs: Option<BTreeMap<String, String>>,
    pub(super) shm_size: Option<i64>,
    pub(super) extra_hosts: Option<Vec<String>>,
    pub(super) dns_search: Option<Vec<String>>,
    pub(super) dns_options: Option<Vec<String>>,
}

impl HostConfig {
    /// What a network of the container's own is like.
    pub(crate) fn own_network(&self) -> Result<OwnNetwork, ApiError> {
        let publish = self.port_bindings.as_ref().map(ports::parse).transpose()?;
        Ok(OwnNetwork {
            internet: self.network_mode.as_deref() != Some("none"),
            publish: publish.unwrap_or_default(),
        })
    }

    /// Zero and negative figures are unset.
    fn limits(&self) -> Limits {
        let set = |figure: Option<i64>, unit: u64| {
            let figure = figure.and_then(|n| u64::try_from(n).ok());
            figure.filter(|n| *n > 0).map(|n| (n / unit).max(1))
        };
        Limits {
            memory_bytes: set(self.memory, 1),
            cpu_millis: set(self.nano_cpus, 1_000_000),
            pids: set(self.pids_limit, 1),
            ..Limits::default()
        }
    }
}

impl Body {
    /// What runs. `start({entrypoint})` of a Durable Object arrives as Cmd: on Cloudflare that is
    /// what runs, instead of the image's ENTRYPOINT and CMD, and so it is here (`by_workerd`).
    pub(super) fn start(
        &self,
        caller: &Caller,
        by_workerd: bool,
    ) -> Result<StartRequest, ApiError> {
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let entrypoint = Some(list(&self.entrypoint)).filter(|words| !words.is_empty());
        let (entrypoint, cmd) = match (entrypoint, list(&self.cmd)) {
            (None, cmd) if by_workerd && !cmd.is_empty() => (Some(cmd), Vec::new()),
            both => both,
        };
        let none = HostConfig::default();
        let host = self.host_config.as_ref().unwrap_or(&none);
        let options = host.security_opt.as_deref().unwrap_or_default();
        let isolation = match caller {
            Caller::Operator => isolation(host.runtime.as_deref())?,
            Caller::Script { .. } => None,
        };
        Ok(StartRequest {
            image: image(caller, self.image.as_deref().unwrap_or_default()),
            entrypoint,
            cmd,
            env: list(&self.env),
            user: text(&self.user),
            working_dir: text(&self.working_dir),
            limits: host.limits(),
            isolation,
            no_new_privileges: no_new_privileges(options)?,
            ..StartRequest::default()
        })
    }

    pub(super) fn as_helper(&self) -> HelperBody<'_> {
        let host = self.host_config.as_ref();
        HelperBody {
            entrypoint: self.entrypoint.as_deref().unwrap_or_default(),
            cmd: self.cmd.as_deref().unwrap_or_default(),
            binds: host.and_then(|h| h.binds.as_deref()).unwrap_or_default(),
        }
    }

    /// Whether it has the command and the port of workerd's network sidecar (contract: workerd,
    /// 1.3).
    pub(super) fn is_sidecars(&self, port: u16) -> bool {
        let cmd = self.cmd.as_deref().unwrap_or_default();
        let ports = self.exposed_ports.as_ref();
        cmd.first()
            .is_some_and(|first| first == "--http-egress-port")
            && ports.is_some_and(|ports| ports.contains_key(&format!("{port}/tcp")))
    }
}

/// Which image a name means. Only in a script's mouth does the application's have a name.
fn image(caller: &Caller, name: &str) -> ImageChoice {
    if is_snapshot(name) {
        ImageChoice::Snapshot(name.to_owned())
    } else if caller.is_script() && name == APPLICATION_IMAGE {
        ImageChoice::Application
    } else {
        ImageChoice::Named(name.to_owned())
    }
}

/// Docker's `--runtime`: an isolation class.
fn isolation(runtime: Option<&str>) -> Result<Option<Isolation>, ApiError> {
    let Some(name) = runtime.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    Isolation::parse(name).map(Some).ok_or_else(|| {
        ApiError::bad_request(format!(
            "unknown or invalid runtime name: {name}; there are namespace, gvisor and microvm"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_are_not_positive_ask_for_nothing() {
        let limits = |memory, nano_cpus, pids_limit| {
            let host = HostConfig {
                memory: Some(memory),
                nano_cpus: Some(nano_cpus),
                pids_limit: Some(pids_limit),
                ..HostConfig::default()
            };
            let limits = host.limits();
            (limits.memory_bytes, limits.cpu_millis, limits.pids)
        };
        assert_eq!(limits(0, 0, 0), (None, None, None));
        assert_eq!(limits(-1, -1, -1), (None, None, None));
        assert_eq!(
            limits(1 << 20, 500_000_000, 7),
            (Some(1 << 20), Some(500), Some(7))
        );
    }

    #[test]
    fn an_objects_command_replaces_the_images_entrypoint_and_an_operators_does_not() {
        let body = Body {
            cmd: Some(vec!["run".to_owned()]),
            entrypoint: Some(Vec::new()),
            ..Body::default()
        };
        let of = |by_workerd| {
            let start = body.start(&Caller::Operator, by_workerd).unwrap();
            (start.entrypoint, start.cmd)
        };
        assert_eq!(of(true), (Some(vec!["run".to_owned()]), Vec::new()));
        assert_eq!(of(false), (None, vec!["run".to_owned()]));
    }
}
