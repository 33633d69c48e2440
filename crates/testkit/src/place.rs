//! A directory with its own spawner.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use wharf_sandbox::{IdRanges, Spawner, SpawnerConfig, Survivor};

use crate::{is_alive, kill, until};

/// A directory, a cgroup name, and whatever spawner runs there. Also after a failed test nothing stays.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub dir: TempDir,
    program: String,
    cgroup_name: String,
    /// Of the last spawner that was started here; 0 before that.
    spawner_pid: AtomicU32,
}

impl Place {
    /// With an executable that is nothing but a spawner: the calling crate's `CARGO_BIN_EXE_...`.
    ///
    /// # Panics
    /// Without root.
    pub fn new(program: &str) -> Place {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces and cgroups: run them as root"
        );
        // Short: sockets' paths have a limit.
        let dir = tempfile::Builder::new()
            .prefix("wh")
            .tempdir_in("/tmp")
            .unwrap();
        // Not by the process's number, which another PID namespace has, too.
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        Place {
            cgroup_name: format!("wharf-test-{name}"),
            program: program.to_owned(),
            dir,
            spawner_pid: AtomicU32::new(0),
        }
    }

    /// Of the spawner here.
    pub fn config(&self, grace_ms: u64) -> SpawnerConfig {
        SpawnerConfig {
            socket: self.dir.path().join("spawner.sock"),
            command: vec![self.program.clone()],
            grace_ms,
            cgroup_name: self.cgroup_name.clone(),
            ids: Some(IdRanges::default()),
        }
    }

    /// Starts the spawner, or finds it if it runs: what a daemon does at its start.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(&self, grace_ms: u64) -> (Spawner, Vec<Survivor>) {
        let started = Spawner::start(self.config(grace_ms)).await.unwrap();
        self.spawner_pid.store(started.0.pid(), Ordering::Relaxed);
        started
    }

    /// A directory here; made if it is missing.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Shuts down and checks that nothing is left.
    ///
    /// # Panics
    /// Something is.
    pub async fn finish(&self, spawner: &Spawner) {
        let pid = spawner.pid();
        spawner.shutdown().await.unwrap();
        self.assert_gone(pid).await;
    }

    /// Waits for the spawner's end and checks that it left nothing.
    ///
    /// # Panics
    /// It did, or does not end.
    pub async fn assert_gone(&self, spawner_pid: u32) {
        until("the spawner ends", || !is_alive(spawner_pid as i32)).await;
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        let left: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("spawner.sock"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        // Its pid may soon be somebody else's.
        self.spawner_pid.store(0, Ordering::Relaxed);
    }

    /// This place's directories in all cgroup hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let base = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(base)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_dir());
        std::iter::once(base.to_owned())
            .chain(hierarchies)
            .map(|h| h.join(&self.cgroup_name))
            .filter(|p| p.exists())
            .collect()
    }
}

impl Drop for Place {
    /// After a failed test: the spawner and all it runs.
    fn drop(&mut self) {
        let pid = *self.spawner_pid.get_mut() as i32;
        if fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.trim() == "wharf-spawner")
        {
            kill(pid);
        }
        for base in self.cgroups() {
            for _ in 0..200 {
                let children: Vec<_> = fs::read_dir(&base)
                    .into_iter()
                    .flatten()
                    .filter_map(|e| Some(e.ok()?.path()))
                    .filter(|p| p.is_dir())
                    .collect();
                for child in children {
                    for pid in fs::read_to_string(child.join("cgroup.procs"))
                        .unwrap_or_default()
                        .lines()
                    {
                        kill(pid.parse().unwrap());
                    }
                    let _ = fs::remove_dir(&child);
                }
                if fs::remove_dir(&base).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
