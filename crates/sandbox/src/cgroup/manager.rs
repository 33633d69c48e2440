//! The cgroups of one spawner: the directory `<cgroup_name>` in each hierarchy, and one cgroup for
//! each process below it.
//!
//! Owns: making them (some ahead), their limits, and removing what an earlier spawner has left.

use std::io;
use std::path::{Path, PathBuf};

use super::discover::{Hierarchies, Hierarchy};
use super::support::Controller;
use super::usage::Counts;
use super::{Cgroup, Joined, files};
use crate::spec::Limits;

/// How many cgroups are kept ready.
const SPARE: usize = 32;

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
    /// Makes the directories. What an earlier spawner of this name left in them is killed and
    /// removed.
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

    /// The cgroup of one process, limits set, nothing in it: one that was made ahead, or else a new
    /// one.
    pub(crate) fn create(&mut self, limits: &Limits) -> io::Result<Cgroup> {
        let cgroup = self.take()?;
        if let Err(error) = self.limit(&cgroup, limits) {
            let _ = cgroup.remove(); // The first error is the one to tell.
            return Err(error);
        }
        Ok(cgroup)
    }

    /// A cgroup without limits.
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

    /// Cgroups have numbers, not the names of processes: v2 cannot rename.
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
            // The leaf that held the daemon's own processes (see `enable_controllers`); it stays
            // while they run.
            let leaf = base.dir.with_file_name(leaf_name(&self.name));
            if leaf.exists() {
                files::remove_tree(&leaf)?;
            }
        }
        Ok(())
    }
}

/// Makes `name` below the hierarchy's root, or below the own cgroup where the root is not ours.
fn make_base(hierarchy: &Hierarchy, name: &str) -> Option<PathBuf> {
    for parent in hierarchy.parents() {
        let dir = parent.join(name);
        match std::fs::create_dir(&dir) {
            Ok(()) => return Some(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Some(dir),
            // Not ours; the next candidate. That none is left is reported by `describe` or `open`.
            Err(_) => {}
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
            // No internal processes: a cgroup other than the root either holds processes or hands
            // down controllers. The processes (the daemon's own, in a delegated cgroup) move into a
            // leaf.
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
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

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
        // SAFETY: the closure only writes to files; the test's other threads hold no lock that it
        // needs.
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
}
