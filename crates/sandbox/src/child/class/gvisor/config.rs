//! What `runsc` is told: an OCI runtime configuration, and the description of one process. Pure but
//! for [`has_tmp`].

use std::path::Path;

use rustix::fs::{FileType, lstat};
use serde_json::{Value, json};

use super::{Capabilities, Prepared};
use crate::spec::ProcessSpec;

/// Whether the root's /tmp is a directory, not a link. Then it is mounted by name: over an empty
/// one gVisor would put one in memory.
pub(super) fn has_tmp(rootfs: &Path) -> bool {
    lstat(rootfs.join("tmp"))
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// `config.json` of a container.
pub(super) fn bundle(prepared: &Prepared, spec: &ProcessSpec, tmp: bool) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| {
        json!({
            "destination": destination,
            "type": kind,
            "source": kind,
            "options": options,
        })
    };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "nodev", "noexec"]),
        mount("/sys", "sysfs", &["nosuid", "nodev", "noexec", "ro"]),
        mount("/dev", "tmpfs", &["nosuid", "noexec", "mode=755"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec"]),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"],
        ),
    ];
    if tmp {
        mounts.push(json!({
            "destination": "/tmp",
            "type": "bind",
            "source": format!("{}/tmp", super::ROOTFS),
            "options": ["rbind", "rw"],
        }));
    }
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": process(prepared, spec.capabilities, spec.limits.nofile, false),
        "root": {"path": super::ROOTFS},
        "hostname": spec.hostname.as_deref().unwrap_or("localhost"),
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    })
}

/// `process` of a configuration, or what `runsc exec --process` reads.
pub(super) fn process(
    prepared: &Prepared,
    capabilities: Capabilities,
    nofile: Option<u64>,
    terminal: bool,
) -> Value {
    let user = &prepared.user;
    let allowed: Vec<String> = capabilities.names();
    // As execve(2) would have it: only root keeps them.
    let held: &[String] = if user.uid == 0 { &allowed } else { &[] };
    let rlimits = nofile.map(|n| json!({"type": "RLIMIT_NOFILE", "hard": n, "soft": n}));
    json!({
        "terminal": terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": prepared.argv,
        "env": prepared.env,
        "cwd": prepared.cwd,
        "capabilities": {
            "bounding": allowed,
            "effective": held,
            "permitted": held,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": rlimits.into_iter().collect::<Vec<_>>(),
        "noNewPrivileges": true,
    })
}
