//! A directory for all that the runtimes keep, and the sweep after them: processes, mounts, cgroups, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::class::Class;
use crate::look;

const CGROUPS: &str = "/sys/fs/cgroup";
/// What dockerd, podman and their helpers make outside the directory. What was there before stays.
const ELSEWHERE: [&str; 2] = ["/etc/docker/key.json", "/etc/docker"];
/// The same in each cgroup hierarchy.
const CGROUP_NAMES: [&str; 3] = ["docker", "libpod_parent", "machine.slice"];

/// The place. Dropped last.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    before: Vec<PathBuf>,
}

impl Place {
    /// Makes the directory.
    pub(crate) fn new() -> Result<Place> {
        let dir = tempfile::Builder::new()
            .prefix("wharf-start-bench-")
            .tempdir()?
            .keep();
        let before = foreign().into_iter().filter(|p| p.exists()).collect();
        Ok(Place { dir, before })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Parent cgroup for the others' containers: `/wharf-start-bench-<pid>`.
    pub(crate) fn cgroup(&self) -> String {
        format!("/wharf-start-bench-{}", std::process::id())
    }

    /// Base cgroup of the engine in this process; a name, not a path.
    pub(crate) fn engine_cgroup(&self) -> String {
        format!("wharf-start-bench-{}-engine", std::process::id())
    }

    /// Cgroups below that, in all hierarchies.
    pub(crate) fn engine_cgroups(&self) -> usize {
        let name = self.engine_cgroup();
        let bases = hierarchies().into_iter().map(|dir| dir.join(&name));
        bases.map(|base| count_directories(&base)).sum()
    }

    /// A class's root file system, unpacked.
    pub(crate) fn rootfs(&self, class: &Class) -> PathBuf {
        self.dir.join(format!("rootfs-{}", class.name))
    }

    /// Unpacks a class, with the devices and the /proc that its program needs when it runs in a plain chroot.
    pub(crate) fn unpack(&self, class: &Class) -> Result<()> {
        let root = self.rootfs(class);
        for dir in ["dev", "proc", "sys"] {
            fs::create_dir_all(root.join(dir))?;
        }
        run(Command::new("tar")
            .arg("-xpf")
            .arg(&class.rootfs)
            .arg("-C")
            .arg(&root))?;
        if class.name != "static" {
            // Their own file systems, never the machine's: this directory is removed afterwards, with all that is in it.
            let dev = root.join("dev");
            run(Command::new("mount")
                .args(["-t", "tmpfs", "tmpfs"])
                .arg(&dev))?;
            for (name, minor) in [("null", "3"), ("zero", "5"), ("urandom", "9")] {
                run(Command::new("mknod")
                    .args(["-m", "666"])
                    .arg(dev.join(name))
                    .args(["c", "1", minor]))?;
            }
            run(Command::new("mount")
                .args(["-t", "proc", "proc"])
                .arg(root.join("proc")))?;
        }
        Ok(())
    }

    fn sweep(&self) -> Result<()> {
        let text = self.dir.display().to_string();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            // Shims and monitors: this run's directory is in their command lines.
            let left = look::processes_with(&text);
            let left: Vec<_> = left.into_iter().filter(|p| look::is_alive(*p)).collect();
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                bail!("processes {left:?} do not end");
            }
            for pid in left {
                eprintln!("  a process was left and is killed: {pid}");
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for path in mounts_below(&self.dir)?.iter().rev() {
            rustix::mount::unmount(path, UnmountFlags::DETACH)
                .with_context(|| format!("unmounting {}", path.display()))?;
        }
        if let Some(path) = mounts_below(&self.dir)?.first() {
            bail!("{} is still mounted", path.display());
        }
        self.sweep_cgroups()?;
        for path in ELSEWHERE.map(PathBuf::from) {
            if !path.exists() || self.before.contains(&path) {
                continue;
            }
            if path.is_dir() {
                // Not if somebody put something in.
                let _ = fs::remove_dir(&path);
            } else {
                fs::remove_file(&path)?;
            }
        }
        fs::remove_dir_all(&self.dir)?;
        Ok(())
    }

    /// Monitors that have ended keep their cgroup until process 1 has reaped them.
    fn sweep_cgroups(&self) -> Result<()> {
        let own = self.cgroup();
        let own = hierarchies()
            .into_iter()
            .map(|dir| dir.join(own.trim_start_matches('/')));
        let foreign = foreign()
            .into_iter()
            .filter(|path| path.starts_with(CGROUPS) && !self.before.contains(path));
        let all: Vec<_> = own.chain(foreign).collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            all.iter().for_each(|dir| remove_cgroup(dir));
            let Some(left) = all.iter().find(|dir| dir.exists()) else {
                return Ok(());
            };
            if Instant::now() > deadline {
                bail!("the cgroup {} can't be removed", left.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        eprintln!("cleaning up");
        if let Err(error) = self.sweep() {
            eprintln!(
                "something is left of the bench, in {}: {error:#}",
                self.dir.display()
            );
        }
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{program} can't be started"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn hierarchies() -> Vec<PathBuf> {
    let base = PathBuf::from(CGROUPS);
    let below = fs::read_dir(&base).into_iter().flatten().flatten();
    let mut all: Vec<_> = below
        .map(|e| e.path())
        .filter(|p| p.join("cgroup.procs").exists())
        .collect();
    if base.join("cgroup.procs").exists() {
        all.push(base);
    }
    all
}

fn foreign() -> Vec<PathBuf> {
    let in_hierarchies = hierarchies()
        .into_iter()
        .flat_map(|dir| CGROUP_NAMES.map(|name| dir.join(name)));
    ELSEWHERE
        .iter()
        .map(PathBuf::from)
        .chain(in_hierarchies)
        .collect()
}

fn count_directories(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.map(|e| e.path()).filter(|p| p.is_dir());
    dirs.map(|dir| 1 + count_directories(&dir)).sum()
}

/// Removes empty cgroups; one with a process in it stays, as rmdir(2) refuses.
fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// In the order of their mounting.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let paths = text.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(paths
        .map(PathBuf::from)
        .filter(|p| p.starts_with(dir))
        .collect())
}
