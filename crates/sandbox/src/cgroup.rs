//! cgroups v1 (memory, cpu, pids, freezer controllers, each its own hierarchy) and v2 behind one face.
//!
//! Owns: finding the hierarchies, the directory `<cgroup_name>` in each and one cgroup per process below it (some made ahead), limits, counting of
//! memory kills, killing a whole cgroup, and removal.
//! Must not: move a process by writing another's number (waits for an RCU grace period); a process enters by CLONE_INTO_CGROUP
//! (v2) or by writing "0" to `tasks` itself (v1).
//!
//! A v2 hierarchy is used for killing even when v1 holds all controllers.

mod discover;
mod files;
mod usage;

use crate::spec::Limits;
use discover::{Hierarchies, Hierarchy};
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use usage::Counts;
pub use usage::Usage;

/// Kept ready.
const SPARE: usize = 32;

/// A kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Bytes of memory.
    Memory,
    /// CPU time.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }
}

/// Which version of cgroups enforces something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy of its own per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// Which limits this machine can enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// Memory limits.
    pub memory: Option<Version>,
    /// CPU limits.
    pub cpu: Option<Version>,
    /// Limits on the number of processes.
    pub pids: Option<Version>,
    /// Whether processes can be tracked and killed as a group at all; nothing runs without.
    pub tracking: bool,
}

impl Support {
    /// A line for the operator when some limit cannot be enforced.
    pub fn warning(&self) -> Option<String> {
        let missing: Vec<&str> = [
            (self.memory, "memory"),
            (self.cpu, "cpu"),
            (self.pids, "pids"),
        ]
        .into_iter()
        .filter(|(version, _)| version.is_none())
        .map(|(_, name)| name)
        .collect();
        if !self.tracking {
            return Some("no writable cgroup hierarchy: mount cgroup2 at /sys/fs/cgroup, or run where it is writable".to_owned());
        }
        (!missing.is_empty()).then(|| {
            format!(
                "this machine does not enforce {} limits: enable the cgroup controller{} (v2: cgroup.subtree_control of the parent; v1: mount it below /sys/fs/cgroup)",
                missing.join(", "),
                if missing.len() == 1 { "" } else { "s" },
            )
        })
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |version: Option<Version>| match version {
            Some(Version::V1) => "cgroup v1",
            Some(Version::V2) => "cgroup v2",
            None => "not enforced",
        };
        write!(
            f,
            "memory: {}, cpu: {}, pids: {}",
            word(self.memory),
            word(self.cpu),
            word(self.pids)
        )
    }
}

/// Tells which limits this machine can enforce, without changing anything.
pub fn describe() -> Support {
    match Hierarchies::find() {
        Ok(found) => {
            let version = |controller: Controller| {
                if found.v1.iter().any(|h| h.holds(controller.name())) {
                    Some(Version::V1)
                } else if found
                    .v2
                    .as_ref()
                    .is_some_and(|h| h.holds(controller.name()))
                {
                    Some(Version::V2)
                } else {
                    None
                }
            };
            Support {
                memory: version(Controller::Memory),
                cpu: version(Controller::Cpu),
                pids: version(Controller::Pids),
                tracking: found.v2.is_some() || !found.v1.is_empty(),
            }
        }
        Err(_) => Support {
            memory: None,
            cpu: None,
            pids: None,
            tracking: false,
        },
    }
}

/// The directories `<cgroup_name>` of one spawner, in every hierarchy that it uses.
#[derive(Debug)]
pub(crate) struct Manager {
    name: String,
    v2: Option<Base>,
    v1: Vec<Base>,
    /// Made ahead: making one takes some 300 us, setting its limits a tenth.
    spare: Vec<Cgroup>,
    /// How many were made.
    made: u64,
    /// After a failure: not tried again in the background.
    broken: bool,
}

/// `<cgroup_name>` in one hierarchy.
#[derive(Debug)]
struct Base {
    dir: PathBuf,
    /// v1: the controllers of the hierarchy. v2: those that are enabled below `dir`.
    controllers: Vec<String>,
    mount_point: PathBuf,
}

impl Base {
    fn holds(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

impl Manager {
    /// Makes the directories. What an earlier spawner of this name left in them is killed and removed.
    pub(crate) fn open(name: &str) -> io::Result<Manager> {
        Manager::open_in(Hierarchies::find()?, name)
    }

    fn open_in(found: Hierarchies, name: &str) -> io::Result<Manager> {
        let mut v2 = None;
        if let Some(hierarchy) = &found.v2
            && let Some(dir) = make_base(hierarchy, name)
        {
            let controllers = enable_controllers(&dir, name);
            v2 = Some(Base {
                dir,
                controllers,
                mount_point: hierarchy.mount_point.clone(),
            });
        }
        let mut v1 = Vec::new();
        for hierarchy in &found.v1 {
            let needed = Controller::ALL.iter().any(|c| hierarchy.holds(c.name()))
                || (v2.is_none() && hierarchy.holds("freezer"));
            if !needed {
                continue;
            }
            if let Some(dir) = make_base(hierarchy, name) {
                v1.push(Base {
                    dir,
                    controllers: hierarchy.controllers.clone(),
                    mount_point: hierarchy.mount_point.clone(),
                });
            }
        }
        if v2.is_none() && v1.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no writable cgroup hierarchy: mount cgroup2 at /sys/fs/cgroup, or run where it is writable",
            ));
        }
        let manager = Manager {
            name: name.to_owned(),
            v2,
            v1,
            spare: Vec::new(),
            made: 0,
            broken: false,
        };
        manager.clear()?;
        Ok(manager)
    }

    fn bases(&self) -> impl Iterator<Item = &Base> {
        self.v2.iter().chain(&self.v1)
    }

    /// Kills and removes all cgroups below the bases.
    fn clear(&self) -> io::Result<()> {
        let mut waited = 0;
        loop {
            let mut left = None;
            for base in self.bases() {
                for child in files::children(&base.dir)? {
                    files::kill_tree(&child)?;
                    if !files::remove_tree(&child)? {
                        left = Some(child);
                    }
                }
            }
            let Some(left) = left else { return Ok(()) };
            if waited >= 2000 {
                return Err(io::Error::other(format!(
                    "processes of an earlier run in {} do not end",
                    left.display()
                )));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            waited += 1;
        }
    }

    /// The cgroup of one process, limits set, nothing in it: one that was made ahead, or else a new one.
    pub(crate) fn create(&mut self, limits: &Limits) -> io::Result<Cgroup> {
        let cgroup = self.take()?;
        if let Err(error) = self.limit(&cgroup, limits) {
            let _ = cgroup.remove(); // The first error is the one to tell.
            return Err(error);
        }
        Ok(cgroup)
    }

    /// One without limits.
    fn take(&mut self) -> io::Result<Cgroup> {
        match self.spare.pop() {
            Some(cgroup) => Ok(cgroup),
            None => self.make(),
        }
    }

    /// Whether fewer are ready than should be.
    pub(crate) fn is_short(&self) -> bool {
        self.spare.len() < SPARE && !self.broken
    }

    /// Makes one ahead.
    pub(crate) fn refill(&mut self) {
        match self.make() {
            Ok(cgroup) => self.spare.push(cgroup),
            Err(error) => {
                self.broken = true;
                eprintln!("spawner: making a cgroup ahead: {error}");
            }
        }
    }

    /// They have numbers, not the names of processes: v2 cannot rename.
    fn make(&mut self) -> io::Result<Cgroup> {
        self.made += 1;
        let mut cgroup = Cgroup {
            v2: None,
            v1: Vec::new(),
            memory_events: None,
        };
        match self.fill(&mut cgroup, &format!("c{}", self.made)) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                let _ = cgroup.remove(); // The first error is the one to tell.
                Err(error)
            }
        }
    }

    fn fill(&self, cgroup: &mut Cgroup, name: &str) -> io::Result<()> {
        let make = |base: &Base| -> io::Result<Joined> {
            let dir = base.dir.join(name);
            std::fs::create_dir(&dir).map_err(|e| files::at(&dir, e))?;
            Ok(Joined {
                dir,
                mount_point: base.mount_point.clone(),
                counts: Counts::of(|controller| base.holds(controller)),
            })
        };
        if let Some(base) = &self.v2 {
            let joined = cgroup.v2.insert(make(base)?);
            if base.holds("memory") {
                cgroup.memory_events = Some(joined.dir.join("memory.events"));
            }
        }
        for base in &self.v1 {
            let joined = make(base)?;
            if base.holds("memory") {
                cgroup.memory_events = Some(joined.dir.join("memory.oom_control"));
            }
            cgroup.v1.push(joined);
        }
        Ok(())
    }

    /// Sets the limits that are given; others stay.
    pub(crate) fn limit(&self, cgroup: &Cgroup, limits: &Limits) -> io::Result<()> {
        if let (Some(base), Some(joined)) = (&self.v2, &cgroup.v2) {
            files::limit_v2(&joined.dir, &base.controllers, limits)?;
        }
        let v1 = self.v1.iter().zip(&cgroup.v1);
        v1.into_iter()
            .try_for_each(|(base, joined)| files::limit_v1(&joined.dir, &base.controllers, limits))
    }

    /// Removes the bases. All cgroups in them are gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for base in self.bases() {
            if !files::remove_tree(&base.dir)? {
                return Err(io::Error::other(format!(
                    "{} still holds processes",
                    base.dir.display()
                )));
            }
            // The leaf that held the daemon's own processes (see `enable_controllers`); it stays while they run.
            let leaf = base.dir.with_file_name(leaf_name(&self.name));
            if leaf.exists() {
                files::remove_tree(&leaf)?;
            }
        }
        Ok(())
    }
}

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

    /// Kills every process in it. Repeat until [`Cgroup::is_empty`]: without v2, one that forks meanwhile may escape a round.
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

    /// Lets no process in it run any more. Returns whether all stand still already; ask again until they do.
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

    /// Whether no process is left in it. Whatever is in one of v1 is in that of v2, where there is one: it was born there.
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

/// Makes `name` below the hierarchy's root, or below the own cgroup where the root is not ours.
fn make_base(hierarchy: &Hierarchy, name: &str) -> Option<PathBuf> {
    for parent in hierarchy.parents() {
        let dir = parent.join(name);
        match std::fs::create_dir(&dir) {
            Ok(()) => return Some(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Some(dir),
            Err(_) => {} // Not ours; the next candidate. That none is left is reported by `describe` or `open`.
        }
    }
    None
}

fn leaf_name(name: &str) -> String {
    format!("{name}-daemon")
}

/// v2: hands the controllers down to the children of `dir`; returns those that arrived.
fn enable_controllers(dir: &Path, name: &str) -> Vec<String> {
    let Some(parent) = dir.parent() else {
        return Vec::new();
    };
    for controller in Controller::ALL {
        let word = format!("+{}", controller.name());
        let above = parent.join("cgroup.subtree_control");
        if let Err(error) = files::write(&above, &word)
            && error.raw_os_error() == Some(libc::EBUSY)
        {
            // No internal processes: a cgroup other than the root either holds processes or hands down controllers. The
            // processes (the daemon's own, in a delegated cgroup) move into a leaf.
            if files::move_all(parent, &parent.join(leaf_name(name))).is_ok() {
                let _ = files::write(&above, &word); // Whether it worked is read below.
            }
        }
        let _ = files::write(&dir.join("cgroup.subtree_control"), &word); // Likewise.
    }
    let enabled = std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    enabled.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    /// Removes what a failed test leaves.
    struct Guard(Manager);

    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.clear();
            let _ = self.0.remove();
        }
    }

    fn open(found: Hierarchies, name: &str) -> Guard {
        Guard(Manager::open_in(found, &format!("{name}-{}", std::process::id())).unwrap())
    }

    #[test]
    fn without_v2_a_process_that_forks_all_the_time_is_killed() {
        let mut found = Hierarchies::find().unwrap();
        found.v2 = None;
        if found.v1.is_empty() {
            eprintln!("this machine has no v1 hierarchies");
            return;
        }
        let mut manager = open(found, "wharf-test-v1");
        let limits = Limits {
            pids: Some(200),
            ..Limits::default()
        };
        let cgroup = manager.0.create(&limits).unwrap();
        assert!(cgroup.open_v2().unwrap().is_none());
        let tasks: Vec<PathBuf> = cgroup.v1.iter().map(|j| j.dir.join("tasks")).collect();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "f() { f & f & sleep 0.01; }; f; while :; do f; done"])
            .stderr(Stdio::null());
        // SAFETY: the closure only writes to files; the test's other threads hold no lock that it needs.
        unsafe {
            command.pre_exec(move || tasks.iter().try_for_each(|t| files::write(t, "0")));
        }
        let mut child = command.spawn().unwrap();
        while files::processes(&cgroup.v1[0].dir).unwrap().len() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        while !cgroup.is_empty().unwrap() {
            cgroup.kill().unwrap();
            let _ = child.try_wait().unwrap();
        }
        child.wait().unwrap();
        while !cgroup.remove().unwrap() {}
        manager.0.remove().unwrap();
        assert!(manager.0.bases().all(|b| !b.dir.exists()));
    }

    #[test]
    fn what_an_earlier_spawner_left_is_killed_and_removed() {
        let mut first = open(Hierarchies::find().unwrap(), "wharf-test-left");
        let cgroup = first.0.create(&Limits::default()).unwrap();
        let dirs: Vec<PathBuf> = cgroup.dirs().map(Path::to_owned).collect();
        let entries: Vec<PathBuf> = dirs.iter().map(|d| d.join("cgroup.procs")).collect();
        let mut command = Command::new("/bin/sleep");
        command.arg("1000");
        // SAFETY: as above.
        unsafe {
            command.pre_exec(move || entries.iter().try_for_each(|t| files::write(t, "0")));
        }
        let mut child = command.spawn().unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        let again = open(Hierarchies::find().unwrap(), "wharf-test-left");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&reaper.join().unwrap()),
            Some(9)
        );
        assert!(dirs.iter().all(|d| !d.exists()));
        again.0.remove().unwrap();
    }

    #[test]
    fn a_limit_that_nothing_enforces_is_told() {
        let all = Support {
            memory: Some(Version::V2),
            cpu: Some(Version::V1),
            pids: Some(Version::V2),
            tracking: true,
        };
        assert_eq!(all.warning(), None);
        assert_eq!(
            all.to_string(),
            "memory: cgroup v2, cpu: cgroup v1, pids: cgroup v2"
        );
        let warning = Support {
            memory: None,
            pids: None,
            ..all
        }
        .warning()
        .unwrap();
        assert!(warning.contains("memory, pids"), "{warning}");
    }
}
