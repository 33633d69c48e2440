//! cgroups v1 (memory, cpu, pids, freezer controllers, each its own hierarchy) and v2 behind one
//! face.
//!
//! Owns: the cgroup of one process: what it has used, how it is frozen, killed as a whole, and
//! removed. Where cgroups are made: `manager`. What this machine can enforce: `support`.
//! Must not: move a process by writing another's number (waits for an RCU grace period); a process
//! enters by CLONE_INTO_CGROUP (v2) or by writing "0" to `tasks` itself (v1).
//!
//! A v2 hierarchy is used for killing even when v1 holds all controllers.

mod discover;
mod files;
mod manager;
mod support;
mod usage;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub(crate) use self::manager::Manager;
pub use self::support::{Controller, Support, Version, describe};
use self::usage::Counts;
pub use self::usage::Usage;

/// The cgroup of one process, in every hierarchy.
#[derive(Debug)]
pub(crate) struct Cgroup {
    v2: Option<Joined>,
    v1: Vec<Joined>,
    memory_events: Option<PathBuf>,
}

#[derive(Debug)]
struct Joined {
    dir: PathBuf,
    mount_point: PathBuf,
    counts: Counts,
}

impl Cgroup {
    /// The v2 directory, for CLONE_INTO_CGROUP.
    pub(crate) fn open_v2(&self) -> io::Result<Option<OwnedFd>> {
        let Some(joined) = &self.v2 else {
            return Ok(None);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Some(rustix::fs::open(&joined.dir, flags, Mode::empty())?))
    }

    /// Moves the calling, single-threaded process into the v1 cgroups.
    pub(crate) fn enter_v1(&self) -> io::Result<()> {
        for joined in &self.v1 {
            files::write(&joined.dir.join("tasks"), "0")?;
        }
        Ok(())
    }

    /// What to show below /sys/fs/cgroup: the directory on the host, and its place.
    pub(crate) fn views(&self) -> Vec<(&Path, PathBuf)> {
        if self.v1.is_empty() {
            return self
                .v2
                .iter()
                .map(|j| (j.dir.as_path(), PathBuf::new()))
                .collect();
        }
        self.v1
            .iter()
            .filter_map(|j| Some((j.dir.as_path(), PathBuf::from(j.mount_point.file_name()?))))
            .collect()
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.v2.iter().chain(&self.v1).map(|j| j.dir.as_path())
    }

    /// Sets the limit of CPU of one that was made without, in thousandths of a core.
    pub(crate) fn limit_cpu(&self, millis: u64) -> io::Result<()> {
        self.dirs()
            .try_for_each(|dir| files::limit_cpu(dir, millis))
    }

    /// Kills every process in it. Repeat until [`Cgroup::is_empty`]: without v2, one that forks
    /// meanwhile may escape a round.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match &self.v2 {
            Some(joined) => files::kill_tree(&joined.dir),
            None => {
                // A frozen process cannot fork; the signal waits for the thaw.
                let freezer = self
                    .dirs()
                    .map(|d| d.join("freezer.state"))
                    .find(|f| f.exists());
                if let Some(freezer) = &freezer {
                    files::write(freezer, "FROZEN")?;
                }
                let killed = self.dirs().try_for_each(files::kill_tree);
                if let Some(freezer) = &freezer {
                    files::write(freezer, "THAWED")?;
                }
                killed
            }
        }
    }

    /// Lets no process in it run any more. Returns whether all stand still already; ask again until
    /// they do.
    pub(crate) fn freeze(&self) -> io::Result<bool> {
        match self.freezer()? {
            Freezer::V2(dir) => {
                files::write(&dir.join("cgroup.freeze"), "1")?;
                let events = std::fs::read_to_string(dir.join("cgroup.events"))?;
                Ok(events.lines().any(|line| line == "frozen 1"))
            }
            Freezer::V1(file) => {
                files::write(&file, "FROZEN")?;
                Ok(std::fs::read_to_string(file)?.trim() == "FROZEN")
            }
        }
    }

    /// Lets them run again.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        match self.freezer()? {
            Freezer::V2(dir) => files::write(&dir.join("cgroup.freeze"), "0"),
            Freezer::V1(file) => files::write(&file, "THAWED"),
        }
    }

    fn freezer(&self) -> io::Result<Freezer> {
        if let Some(joined) = &self.v2
            && joined.dir.join("cgroup.freeze").exists()
        {
            return Ok(Freezer::V2(joined.dir.clone()));
        }
        let of_v1 = self.v1.iter().map(|j| j.dir.join("freezer.state"));
        let found = of_v1.into_iter().find(|file| file.exists());
        found.map(Freezer::V1).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "this machine cannot freeze processes: mount cgroup2 (Linux 5.2), or the v1 freezer",
            )
        })
    }

    /// Whether no process is left in it. Whatever is in one of v1 is in that of v2, where there is
    /// one: it was born there.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        if let Some(joined) = &self.v2 {
            return files::is_empty(&joined.dir);
        }
        for dir in self.dirs() {
            if !files::is_empty(dir)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for joined in &self.v1 {
            usage.add_v1(&joined.dir, joined.counts)?;
        }
        if let Some(joined) = &self.v2 {
            usage.add_v2(&joined.dir, joined.counts)?;
        }
        Ok(usage)
    }

    /// Processes that the kernel killed at the memory limit.
    pub(crate) fn oom_kills(&self) -> io::Result<u64> {
        self.memory_events
            .as_deref()
            .map_or(Ok(0), files::oom_kills)
    }

    /// Removes it. `Ok(false)`: still busy, try again.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        let mut gone = true;
        for dir in self.dirs() {
            gone &= files::remove_tree(dir)?;
        }
        Ok(gone)
    }
}

/// What stops all processes of a cgroup: v2's directory, or v1's file.
enum Freezer {
    V2(PathBuf),
    V1(PathBuf),
}
