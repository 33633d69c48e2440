//! The bundle's config.json (OCI runtime-spec, config.md), with the walls and limits that Docker gives.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::class::{self, Class};

/// Docker's default seccomp profile as Debian ships it (package golang-github-containers-common, which podman needs).
const SECCOMP: &str = "/usr/share/containers/seccomp.json";
/// Docker's default capabilities.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What Docker writes for its runtime (runtime-spec, config.md), over a plain read-only root: an overlay would be more work than this.
pub(super) fn config(class: &Class, rootfs: &Path, cgroup: &str) -> Result<Value> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| {
        json!({
            "destination": target, "type": kind, "source": source, "options": options
        })
    };
    let devices = [
        ("c", 1, 3),
        ("c", 1, 5),
        ("c", 1, 7),
        ("c", 1, 8),
        ("c", 1, 9),
        ("c", 5, 0),
        ("c", 5, 2),
    ];
    let devices = devices
        .map(|(kind, major, minor)| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rwm"}));
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(devices);
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let namespaces = namespaces.map(|kind| json!({"type": kind}));
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": class.argv,
            "env": class.env(class::PORT),
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": true},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {
                "devices": rules,
                "memory": {"limit": class::MEMORY},
                "cpu": {"quota": class::CPU_MILLIS * 100, "period": 100_000},
                "pids": {"limit": class::PIDS},
            },
            "maskedPaths": [
                "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp()?,
        },
    }))
}

/// The profile in runtime-spec's form: without the entries that are for other machines or for capabilities that are not given.
fn seccomp() -> Result<Value> {
    let text = fs::read_to_string(SECCOMP).context(SECCOMP)?;
    let profile: Value = serde_json::from_str(&text).context(SECCOMP)?;
    let has = |list: &Value, wanted: &[&str]| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter()
            .filter_map(Value::as_str)
            .any(|it| wanted.contains(&it))
    };
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let entries = profile["syscalls"]
        .as_array()
        .context("a seccomp profile without syscalls")?;
    let mut syscalls = Vec::new();
    for entry in entries {
        let (includes, excludes) = (&entry["includes"], &entry["excludes"]);
        let applies = (is_empty(&includes["arches"]) || has(&includes["arches"], &["amd64"]))
            && (is_empty(&includes["caps"]) || has(&includes["caps"], CAPABILITIES))
            && !has(&excludes["arches"], &["amd64"])
            && !has(&excludes["caps"], CAPABILITIES);
        if applies {
            let mut kept = json!({"names": entry["names"], "action": entry["action"]});
            for key in ["args", "errnoRet"] {
                if !entry[key].is_null() && !is_empty(&entry[key]) || entry[key].is_number() {
                    kept[key] = entry[key].clone();
                }
            }
            syscalls.push(kept);
        }
    }
    let mut filter = json!({
        "defaultAction": profile["defaultAction"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    });
    if profile["defaultErrnoRet"].is_number() {
        filter["defaultErrnoRet"] = profile["defaultErrnoRet"].clone();
    }
    Ok(filter)
}
