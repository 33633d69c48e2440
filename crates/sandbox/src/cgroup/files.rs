//! The files of a cgroup directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::spec::Limits;

/// Length of a CPU accounting period, microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses smaller quotas, microseconds.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// Adds the path to an error.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        // The number is what callers decide by, so it is kept.
        Some(libc::EBUSY | libc::ENOENT | libc::ENODEV | libc::ESRCH) => error,
        _ => io::Error::new(error.kind(), format!("{}: {error}", path.display())),
    }
}

pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|e| at(path, e))?;
    file.write_all(text.as_bytes()).map_err(|e| at(path, e))
}

/// v2 (kernel: admin-guide/cgroup-v2.rst). Only what the enabled controllers can enforce.
pub(super) fn limit_v2(dir: &Path, controllers: &[String], limits: &Limits) -> io::Result<()> {
    let enabled = |name: &str| controllers.iter().any(|c| c == name);
    if let Some(bytes) = limits.memory_bytes.filter(|_| enabled("memory")) {
        write(&dir.join("memory.max"), &bytes.to_string())?;
        let swap = dir.join("memory.swap.max");
        if swap.exists() {
            write(&swap, "0")?;
        }
    }
    if let Some(millis) = limits.cpu_millis.filter(|_| enabled("cpu")) {
        write(
            &dir.join("cpu.max"),
            &format!("{} {CPU_PERIOD_US}", quota(millis)),
        )?;
    }
    if let Some(pids) = limits.pids.filter(|_| enabled("pids")) {
        write(&dir.join("pids.max"), &pids.to_string())?;
    }
    Ok(())
}

/// v1 (kernel: admin-guide/cgroup-v1/).
pub(super) fn limit_v1(dir: &Path, controllers: &[String], limits: &Limits) -> io::Result<()> {
    let bound = |name: &str| controllers.iter().any(|c| c == name);
    if let Some(bytes) = limits.memory_bytes.filter(|_| bound("memory")) {
        let alone = dir.join("memory.limit_in_bytes");
        let with_swap = dir.join("memory.memsw.limit_in_bytes");
        let is_set = write(&alone, &bytes.to_string());
        if with_swap.exists() {
            write(&with_swap, &bytes.to_string())?;
            // Above the other one's earlier value it is refused.
            is_set.or_else(|_| write(&alone, &bytes.to_string()))?;
        } else {
            is_set?;
            write(&dir.join("memory.swappiness"), "0")?;
        }
    }
    if let Some(millis) = limits.cpu_millis.filter(|_| bound("cpu")) {
        // The period is that of a new one; to write it, too, would make the kernel look at all
        // cgroups once more.
        write(&dir.join("cpu.cfs_quota_us"), &quota(millis).to_string())?;
    }
    if let Some(pids) = limits.pids.filter(|_| bound("pids")) {
        write(&dir.join("pids.max"), &pids.to_string())?;
    }
    Ok(())
}

/// The limit of CPU alone, where `dir` has one.
pub(super) fn limit_cpu(dir: &Path, millis: u64) -> io::Result<()> {
    let (v2, v1) = (dir.join("cpu.max"), dir.join("cpu.cfs_quota_us"));
    if v2.exists() {
        write(&v2, &format!("{} {CPU_PERIOD_US}", quota(millis)))?;
    } else if v1.exists() {
        write(&v1, &quota(millis).to_string())?;
    }
    Ok(())
}

fn quota(millis: u64) -> u64 {
    millis
        .saturating_mul(CPU_PERIOD_US / 1000)
        .max(CPU_QUOTA_MIN_US)
}

/// Directories directly below.
pub(super) fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(at(dir, error)),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

pub(super) fn processes(dir: &Path) -> io::Result<Vec<i32>> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|l| l.parse().ok())
            .filter(|pid| *pid > 0)
            .collect()),
        // ENODEV: removed while it was read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(at(dir, error)),
    }
}

/// Kills all processes in `dir` and below: at once with v2's cgroup.kill (Linux 5.14), else one by
/// one.
pub(super) fn kill_tree(dir: &Path) -> io::Result<()> {
    match write(&dir.join("cgroup.kill"), "1") {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for child in children(dir)? {
        kill_tree(&child)?;
    }
    for pid in processes(dir)? {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Whether no live process is in `dir`.
pub(super) fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(processes(dir)?.is_empty())
}

/// Removes `dir` and the directories below. `Ok(false)` while processes are in them.
pub(super) fn remove_tree(dir: &Path) -> io::Result<bool> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) => return Err(at(dir, error)),
    }
    let below = children(dir)?;
    if below.is_empty() {
        return Ok(false);
    }
    for child in below {
        if !remove_tree(&child)? {
            return Ok(false);
        }
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) => Err(at(dir, error)),
    }
}

/// Moves all processes of `from` into `to`, which is made.
pub(super) fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    match fs::create_dir(to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(to, error)),
        _ => {}
    }
    for pid in processes(from)? {
        match write(&to.join("cgroup.procs"), &pid.to_string()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The counter `oom_kill` of v2's memory.events or v1's memory.oom_control.
pub(super) fn oom_kills(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file).map_err(|e| at(file, e))?;
    Ok(text
        .lines()
        .find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas() {
        assert_eq!(quota(1000), 100_000);
        assert_eq!(quota(250), 25_000);
        assert_eq!(quota(1), CPU_QUOTA_MIN_US);
    }

    #[test]
    fn oom_counters_of_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let v1 = dir.path().join("memory.oom_control");
        fs::write(&v1, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        assert_eq!(oom_kills(&v1).unwrap(), 3);
        let v2 = dir.path().join("memory.events");
        fs::write(
            &v2,
            "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n",
        )
        .unwrap();
        assert_eq!(oom_kills(&v2).unwrap(), 1);
    }

    /// A directory with these (empty) files, as the kernel would make it.
    fn cgroup(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        dir
    }

    #[test]
    fn limits_in_the_words_of_both_versions() {
        let limits = Limits {
            memory_bytes: Some(1 << 20),
            cpu_millis: Some(1500),
            pids: Some(7),
            nofile: None,
            disk_bytes: None,
        };
        let all = ["memory", "cpu", "pids"].map(str::to_owned);
        let dir = cgroup(&["memory.max", "memory.swap.max", "cpu.max", "pids.max"]);
        let read = |dir: &tempfile::TempDir, name: &str| {
            fs::read_to_string(dir.path().join(name)).unwrap()
        };
        limit_v2(dir.path(), &all, &limits).unwrap();
        assert_eq!(
            ["memory.max", "memory.swap.max", "cpu.max", "pids.max"].map(|n| read(&dir, n)),
            ["1048576", "0", "150000 100000", "7"]
        );
        let files = [
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "cpu.cfs_quota_us",
            "pids.max",
        ];
        let dir = cgroup(&files);
        limit_v1(dir.path(), &all, &limits).unwrap();
        assert_eq!(
            files.map(|n| read(&dir, n)),
            ["1048576", "1048576", "150000", "7"]
        );
        // A file that should be there and is not, is an error, not a limit that silently does not
        // hold.
        assert!(limit_v2(cgroup(&[]).path(), &all, &limits).is_err());
        limit_v2(cgroup(&[]).path(), &[], &limits).unwrap();
    }
}
