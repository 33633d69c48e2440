//! Makes the image of one interpreter, from its start on.

use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use wharf_sandbox::{
    Capabilities, DiskMount, IsolationSpec, Limits, PYTHON_RESUME, ProcessImage, ProcessSpec, Root,
    SpawnFds,
};

use super::Wanted;
use crate::directories::{DISK, GONE_PREFIX};
use crate::disks::DiskLease;
use crate::{OwnNetwork, Shared, blocking};

/// How long imports may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Largest image, whatever the instance's memory.
const MAX_BYTES: u64 = 1 << 30;
/// The most bytes that are read of what it says.
const MAX_TEXT: usize = 2000;
/// The descriptor where it tells how far it is; see `PYTHON_RESUME`.
const TELLS: i32 = 3;
/// Processes and threads: it computes nothing.
const MAX_PROCESSES: u64 = 256;

/// The error is for the image's author, or the operator.
pub(super) async fn make(shared: &Arc<Shared>, wanted: &Wanted) -> Result<ProcessImage, String> {
    let id = format!("preload-{}", uuid::Uuid::new_v4().simple());
    // The name of a directory that goes: whatever happens, the next daemon removes it.
    let dir = shared.config.dir.join(format!("{GONE_PREFIX}{id}"));
    let disks = shared.disks.clone();
    let disk = match wanted.limits.disk_bytes {
        Some(bytes) => blocking(move || disks.take(bytes))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|error| format!("a disk: {error}"))?,
        None => None,
    };
    let made = match directories(&dir, disk.is_some()) {
        Ok(()) => run(shared, wanted, &id, &dir, disk).await,
        Err(error) => Err(format!("{}: {error}", dir.display())),
    };
    let gone = blocking(move || std::fs::remove_dir_all(&dir)).await;
    if let Ok(Err(error)) = gone {
        tracing::warn!(%error, "the directory of an interpreter stays until the next start");
    }
    made
}

fn directories(dir: &Path, has_disk: bool) -> std::io::Result<()> {
    std::fs::create_dir(dir)?;
    if has_disk {
        return std::fs::create_dir(dir.join(DISK));
    }
    let upper = dir.join("upper");
    std::fs::create_dir(&upper)?;
    std::fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
    std::fs::create_dir(dir.join("work"))
}

async fn run(
    shared: &Arc<Shared>,
    wanted: &Wanted,
    id: &str,
    dir: &Path,
    lease: Option<DiskLease>,
) -> Result<ProcessImage, String> {
    let (network, _) = OwnNetwork::default()
        .make(&shared.networks)
        .await
        .map_err(|e| format!("a network: {e}"))?;
    let disk = lease.as_ref().and_then(DiskLease::disk);
    let mount = disk.map(|disk| DiskMount {
        device: disk.device().to_owned(),
        at: dir.join(DISK),
    });
    let at = mount.as_ref().map_or(dir, |mount| &mount.at);
    let argv = ["python3", "-c", PYTHON_RESUME].map(str::to_owned);
    let spec = ProcessSpec {
        id: id.to_owned(),
        // Not an instance's: if this daemon dies, the next one ends it.
        label: "preload".to_owned(),
        argv: argv.into_iter().chain(wanted.modules.clone()).collect(),
        env: wanted.env.clone(),
        cwd: wanted.working_dir.clone(),
        user: wanted.key.user.clone(),
        root: Root::Overlay {
            lower: wanted.lower.clone(),
            upper: at.join("upper"),
            work: at.join("work"),
        },
        mounts: Vec::new(),
        hostname: Some("preload".to_owned()),
        limits: Limits {
            cpu_millis: Some(1000),
            pids: Some(MAX_PROCESSES),
            ..wanted.limits.clone()
        },
        stdin_pipe: true,
        disk: mount,
        capabilities: Capabilities::NONE,
        no_new_privileges: true,
        read_only: false,
        isolation: IsolationSpec::Namespace,
    };
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let (says, tells) = std::io::pipe().map_err(|e| failed("a pipe", &e))?;
    let fds = SpawnFds {
        netns: Some(network.namespace().map_err(|e| failed("a network", &e))?),
        sys: network.system_files(),
        disk: disk
            .map(|disk| disk.mount().try_clone_to_owned())
            .transpose()
            .map_err(|e| failed("a disk", &e))?,
        inherit: vec![(TELLS, OwnedFd::from(tells))],
        image: None,
    };
    let process = shared
        .spawner
        .spawn(&spec, fds)
        .await
        .map_err(|e| e.to_string())?;
    let output = tokio::spawn(text(process.stdout, 0));
    let errors = tokio::spawn(text(process.stderr, MAX_TEXT));
    let said = tokio::time::timeout(LIMIT, text(says.into(), MAX_TEXT)).await;
    let largest = wanted
        .limits
        .memory_bytes
        .unwrap_or(MAX_BYTES)
        .min(MAX_BYTES);
    let pid = process.pid;
    let made = match said.as_deref() {
        Ok("ready") => blocking(move || ProcessImage::capture(pid, largest))
            .await
            .map_err(|e| e.to_string())
            .and_then(|image| image.map_err(|e| e.to_string())),
        Ok("") => Err("the interpreter ended before it had imported them".to_owned()),
        Ok(reason) => Err(reason.to_owned()),
        Err(_) => Err(format!(
            "the imports were not done after {} s",
            LIMIT.as_secs()
        )),
    };
    // Whatever of it still lives; its input is open until here.
    let ended = async {
        shared.spawner.kill(id).await?;
        shared.spawner.wait(id).await?;
        shared.spawner.forget(id).await
    };
    match (ended.await, &lease) {
        (Ok(()), Some(lease)) => lease.free(),
        (Ok(()), None) => {}
        (Err(error), _) => tracing::warn!(%error, "an interpreter was not ended"),
    }
    drop(process.stdin);
    output.abort();
    match made {
        Ok(image) => Ok(image),
        Err(reason) => match errors.await.unwrap_or_default().trim() {
            "" => Err(reason),
            text => Err(format!("{reason} ({text})")),
        },
    }
}

/// What comes out of a pipe, to its end; what is beyond the limit is read and dropped.
async fn text(pipe: OwnedFd, limit: usize) -> String {
    let Ok(mut pipe) = Receiver::from_owned_fd(pipe) else {
        return String::new();
    };
    let (mut kept, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        let room = limit.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..length.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}
