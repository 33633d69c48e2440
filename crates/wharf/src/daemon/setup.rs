//! What a node needs of its machine before any part starts: descriptors, directories, the lock,
//! addresses, workerd's executable, and what it writes for people.
//!
//! Owns: those, with errors that name the remedy. Must not: start anything.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};

use crate::config::Config;

/// As many descriptors as the system allows: the usual first limit, 1024, is for programs that use
/// select(2).
pub(super) fn raise_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        ..limits
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

pub(super) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

pub(super) fn prepare_directories(config: &Config) -> anyhow::Result<()> {
    let data = &config.data_dir;
    let make = |dir: &Path, mode: u32| -> anyhow::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .with_context(|| format!("the directory {} can't be made", dir.display()))
    };
    // Who runs wrangler must be able to pass through to bin/docker.
    make(data, 0o711)?;
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o711))?;
    make(&config.run_dir(), 0o711)?;
    make(&config.run_dir().join("w"), 0o700)?;
    make(&data.join("scripts"), 0o700)?;
    make(&data.join("bin"), 0o755)?;
    // What steps of builds left, which may be set-user-id programs of the host's root. Also where it was made open once.
    let build = data.join("build");
    make(&build, 0o700)?;
    std::fs::set_permissions(&build, std::fs::Permissions::from_mode(0o700))?;
    let longest = config.run_dir().join("w/99999/docker.sock");
    if longest.as_os_str().len() > 100 {
        anyhow::bail!(
            "the data directory's path is too long for Unix sockets ({} would have {} bytes, 108 is the system's limit); choose a shorter --data-dir",
            longest.display(),
            longest.as_os_str().len()
        );
    }
    let link = data.join("bin/docker");
    let executable = std::env::current_exe()?;
    if std::fs::read_link(&link).ok().as_ref() != Some(&executable) {
        let fresh = data.join("bin/.docker");
        let _ = std::fs::remove_file(&fresh);
        std::os::unix::fs::symlink(&executable, &fresh)?;
        std::fs::rename(&fresh, &link)?;
    }
    Ok(())
}

/// One daemon per data directory.
pub(super) fn lock(run_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = run_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow::anyhow!("another `wharf up` runs with the data directory of {}; stop it, or choose another --data-dir", path.display())
    })?;
    Ok(file)
}

pub(super) async fn bind(
    address: std::net::SocketAddr,
    what: &str,
    setting: &str,
) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "the {what}'s address {address} is in use; stop what listens there (`ss -ltnp`), or choose another with {setting}"
        ),
        _ => anyhow::anyhow!("the {what} can't listen on {address}: {e}; choose another with {setting}"),
    })
}

/// The pinned workerd: configured, in WHARF_WORKERD, beside this executable, where `cargo xtask setup` puts it, or in PATH.
pub(super) fn workerd_binary(config: &Config) -> anyhow::Result<PathBuf> {
    let mut tried = Vec::new();
    tried.extend(config.workerd.binary.clone());
    tried.extend(std::env::var_os("WHARF_WORKERD").map(PathBuf::from));
    if tried.is_empty() {
        let executable = std::env::current_exe()?;
        for dir in executable.ancestors().skip(1).take(2) {
            tried.push(dir.join("workerd"));
            tried.push(dir.join("tools/workerd"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        tried.extend(std::env::split_paths(&path).map(|d| d.join("workerd")));
    }
    match tried.iter().find(|p| p.is_file()) {
        Some(found) => own_copy(&found.canonicalize()?, &config.data_dir.join("bin/workerd")),
        None => anyhow::bail!(
            "no workerd: run `cargo xtask setup`, or name the executable in workerd.binary or WHARF_WORKERD (looked in {})",
            tried
                .iter()
                .take(4)
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// Links (or copies) workerd into the data directory: a node keeps its workerd when the folder changes where it was installed.
fn own_copy(source: &Path, own: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let describe = |path: &Path| -> std::io::Result<(u64, i64)> {
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.len(), metadata.mtime()))
    };
    let wanted = describe(source).with_context(|| source.display().to_string())?;
    if describe(own).is_ok_and(|found| found == wanted) {
        return Ok(own.to_owned());
    }
    let fresh = own.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    if std::fs::hard_link(source, &fresh).is_err() {
        let file = std::fs::File::create(&fresh)?;
        std::io::copy(&mut std::fs::File::open(source)?, &mut &file)
            .with_context(|| format!("copying {} to {}", source.display(), fresh.display()))?;
        let modified = std::fs::metadata(source)?.modified()?;
        file.set_modified(modified)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
    }
    std::fs::rename(&fresh, own)?;
    Ok(own.to_owned())
}

/// Binds a Unix socket, replacing a stale one.
pub(crate) fn bind_unix(
    path: &Path,
    mode: u32,
    owner: Option<u32>,
) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if let Some(uid) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(uid))?;
    }
    Ok(listener)
}
