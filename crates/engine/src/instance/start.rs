//! The whole way from a created instance to its process: network, label, mounts, the request to the
//! spawner.

use wharf_sandbox::{Mount, Process, ProcessSpec, Root, SpawnError, SpawnFds};

use super::Handle;
use crate::own_network::Published;
use crate::record::Label;
use crate::{Shared, files, isolation, now_ms};

/// A start that succeeded.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) process: Process,
    pub(super) network: wharf_net::Network,
    pub(super) published: Vec<Published>,
}

/// Starts the process of this generation. `first`: the instance was never started.
pub(super) async fn start_process(
    shared: &Shared,
    handle: &Handle,
    generation: u64,
    first: bool,
    network: Option<wharf_net::Network>,
) -> Result<Started, SpawnError> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| SpawnError::Spawner(format!("{what}: {error}"));
    let spec = &handle.spec;
    let isolation = isolation::spec(spec.isolation, &shared.config.microvm)
        .await
        .map_err(|error| SpawnError::Refused {
            message: error.to_string(),
            exit_code: 125,
        })?;
    let _turn = handle.files.lock().await;
    let (network, published) = match network {
        Some(network) => (network, Vec::new()),
        None => {
            let made = spec.own_network.make(&shared.networks).await;
            made.map_err(|e| failed("network", &e))?
        }
    };
    network.limit_bandwidth(shared.config.bandwidth(&spec.limits));
    if !first {
        files::renew_work(spec, &handle.writable()).map_err(|e| failed("work directory", &e))?;
    }
    let label = Label {
        id: spec.id.clone(),
        generation,
        ingress: network.ingress(),
        ca: Some(network.ca().key()),
        started_ms: now_ms(),
    };
    let hostname = spec.hostname().to_owned();
    let file = |target: &str, content: String| Mount::File {
        target: target.into(),
        content,
    };
    let disk = handle.disk_mount();
    let at = disk.as_ref().map_or(handle.dir.as_path(), |disk| &disk.at);
    let mut mounts = files::volume_mounts(spec, at);
    let surroundings = &spec.surroundings;
    mounts.extend(surroundings.tmpfs.iter().cloned().map(Mount::Tmpfs));
    // A mount inside another one comes after it.
    mounts.sort_by_key(|mount| match mount {
        Mount::Bind { target, .. } | Mount::File { target, .. } => target.components().count(),
        Mount::Overlay { target, .. } => target.components().count(),
        Mount::Tmpfs(tmpfs) => tmpfs.target.components().count(),
    });
    mounts.extend([
        file(
            "/etc/resolv.conf",
            surroundings.resolv_conf(network.resolv_conf()),
        ),
        file("/etc/hosts", surroundings.hosts(&hostname)),
        file("/etc/hostname", format!("{hostname}\n")),
    ]);
    let request = ProcessSpec {
        id: spec.process(generation),
        label: label.encode().map_err(|e| failed("label", &e))?,
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        cwd: spec.working_dir.clone(),
        user: spec.user.clone(),
        root: Root::Overlay {
            lower: spec.lower.clone(),
            upper: at.join("upper"),
            work: at.join("work"),
        },
        mounts,
        hostname: Some(hostname),
        limits: spec.limits.clone(),
        stdin_pipe: false,
        disk,
        capabilities: wharf_sandbox::Capabilities::default(),
        no_new_privileges: spec.no_new_privileges,
        read_only: spec.surroundings.read_only,
        isolation,
    };
    let netns = network.namespace().map_err(|e| failed("network", &e))?;
    let mut sys = network
        .system_files()
        .filter(|_| request.isolation.class().is_on_host_kernel());
    let mut fds = |image| -> Result<SpawnFds, SpawnError> {
        let mount = handle.disk().map(|d| d.mount().try_clone_to_owned());
        Ok(SpawnFds {
            netns: Some(netns.try_clone().map_err(|e| failed("network", &e))?),
            sys: sys.take(),
            disk: mount.transpose().map_err(|e| failed("disk", &e))?,
            image,
            inherit: Vec::new(),
        })
    };
    // What an earlier start has written may have changed what was imported.
    let image = shared.preloads.take(spec).filter(|_| first);
    let restored = image.is_some();
    let process = match shared.spawner.spawn(&request, fds(image)?).await {
        Err(SpawnError::Refused { message, .. }) if restored => {
            shared.preloads.broken(spec, &message);
            files::renew_work(spec, &handle.writable())
                .map_err(|e| failed("work directory", &e))?;
            shared.spawner.spawn(&request, fds(None)?).await?
        }
        other => other?,
    };
    if restored {
        let outcome = process.not_restored.as_deref().map_or(Ok(()), Err);
        shared.preloads.started(spec, outcome);
    }
    Ok(Started {
        process,
        network,
        published,
    })
}
