//! What can be seen of a process from outside: its walls, its cgroups, whether anything of it is left, and memory.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::LinkNameSpaceType;

use crate::http;

/// How long "gone" may take.
const GONE: Duration = Duration::from_secs(10);

/// When the app of process `pid` answered: a thread joins the process's network namespace and asks there.
pub(crate) fn first_byte_inside(pid: i32, port: u16) -> Result<Instant> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = fs::File::open(&path).context(path)?;
    if fs::metadata("/proc/self/ns/net")?.ino() == namespace.metadata()?.ino() {
        bail!("the container has no network of its own");
    }
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            rustix::thread::move_into_link_name_space(
                namespace.as_fd(),
                Some(LinkNameSpaceType::Network),
            )
            .context("joining the container's network")?;
            http::first_byte_of(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        });
        asking
            .join()
            .unwrap_or_else(|_| bail!("the thread that asks has panicked"))
    })
}

/// The walls around a process: what it has that this process has not.
pub(crate) fn isolation(pid: i32) -> String {
    let mut walls = Vec::new();
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"] {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).ok();
        if link(&pid.to_string()) != link("self") {
            walls.push(kind);
        }
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_whitespace().nth(1))
            .unwrap_or("?")
    };
    let caps = u64::from_str_radix(field("CapBnd:"), 16).map_or(0, u64::count_ones);
    format!(
        "{}; seccomp {}; no_new_privs {}; {caps} capabilities",
        if walls.is_empty() {
            "no namespaces".to_owned()
        } else {
            walls.join(" ")
        },
        if field("Seccomp:") == "2" {
            "yes"
        } else {
            "no"
        },
        if field("NoNewPrivs:") == "1" {
            "yes"
        } else {
            "no"
        },
    )
}

/// The cgroup directories of a process that are its own: deeper than those of this process, in every hierarchy.
pub(crate) fn cgroups(pid: i32) -> Vec<PathBuf> {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
        return Vec::new();
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    text.lines()
        .filter(|line| !own.lines().any(|it| it == *line))
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let hierarchy = match controllers.strip_prefix("name=") {
                Some(name) => name,
                None if controllers.is_empty() && Path::new("/sys/fs/cgroup/unified").is_dir() => {
                    "unified"
                }
                None => controllers,
            };
            let base = Path::new("/sys/fs/cgroup").join(hierarchy);
            Some(base.join(path.trim_start_matches('/')))
        })
        .collect()
}

/// Whether a process runs. A zombie has ended.
pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits until the process has ended and its cgroups are removed, or are empty (kept for the next one).
pub(crate) fn wait_gone(pid: i32, cgroups: &[PathBuf]) -> Result<()> {
    let deadline = Instant::now() + GONE;
    let is_left = |dir: &PathBuf| {
        fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty())
    };
    while is_alive(pid) || cgroups.iter().any(is_left) {
        if Instant::now() > deadline {
            bail!("process {pid} or its cgroup is still there after {GONE:?}");
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Memory of a process, KiB: its share of everything it maps, and its share of what is no file.
pub(crate) fn memory(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    };
    (field("Pss:"), field("Pss_Anon:"))
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Memory of the machine that is no process's, KiB: the kernel's own for namespaces, mounts, sockets, threads, and files that are in memory only.
pub(crate) fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    };
    let kinds = ["Slab:", "KernelStack:", "PageTables:", "Percpu:", "Shmem:"];
    kinds.into_iter().map(field).sum()
}

/// How many descriptors a process may have.
pub(crate) fn descriptor_limit(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find(|l| l.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Processes whose command line contains `text`, this one left out.
pub(crate) fn processes_with(text: &str) -> Vec<i32> {
    let own = std::process::id() as i32;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}
