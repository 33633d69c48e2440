//! The spawner process and the daemon's handle to it.

use crate::spec::{ProcessSpec, SpawnFds};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// How to start or find the spawner.
#[derive(Debug, Clone)]
pub struct SpawnerConfig {
    /// Unix socket where the spawner listens; its parent exists.
    pub socket: PathBuf,
    /// Command that ends up in [`run`]: usually `/proc/self/exe` with one hidden argument; `socket`, `grace_ms` and `cgroup_name` are appended by this crate.
    pub command: Vec<String>,
    /// How long the spawner keeps processes alive without a daemon, milliseconds.
    pub grace_ms: u64,
    /// Name of the cgroup below which all processes are put, e.g. `wharf-1a2b3c4d`. Distinct per data directory.
    pub cgroup_name: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The exit code; 128 + n after signal n (Docker's convention).
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the cgroup's memory limit killed a process in it.
    pub oom_killed: bool,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The request itself, or the program: the caller's to mend (Docker answers 400 and exit code 126/127).
    #[error("{message}")]
    Refused {
        /// What failed, for a person, e.g. `exec: "/server": no such file or directory`.
        message: String,
        /// Exit code that a shell would give: 127 not found, 126 not executable, else 125.
        exit_code: i32,
    },
    /// The machine or the spawner failed.
    #[error("the spawner failed: {0}")]
    Spawner(String),
}

/// Handle to the spawner process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spawner {}

/// A process that the spawner runs. Dropping it does not end the process.
#[derive(Debug)]
pub struct Process {
    /// As asked for.
    pub id: String,
    /// In the host's PID namespace.
    pub pid: i32,
    /// Read end of standard output.
    pub stdout: OwnedFd,
    /// Read end of standard error.
    pub stderr: OwnedFd,
    /// Write end of standard input, if asked for.
    pub stdin: Option<OwnedFd>,
}

/// A process (or the exit of one) that an earlier daemon left.
#[derive(Debug)]
pub struct Survivor {
    /// [`ProcessSpec::label`].
    pub label: String,
    /// The process.
    pub process: Process,
    /// Set when it has exited meanwhile.
    pub exit: Option<Exit>,
}

impl Spawner {
    /// Connects to the spawner that listens at `config.socket`, or starts one. Also removes what a spawner that died left:
    /// every process in the cgroup is killed, empty cgroups are removed.
    pub async fn start(config: SpawnerConfig) -> Result<(Spawner, Vec<Survivor>), SpawnError> {
        let _ = config;
        todo!()
    }

    /// Starts a process; returns when `execve` has succeeded or failed.
    pub async fn spawn(&self, spec: &ProcessSpec, fds: SpawnFds) -> Result<Process, SpawnError> {
        let _ = (spec, fds);
        todo!()
    }

    /// Waits for the end of a process; any number of waiters, also after the end until [`Spawner::forget`].
    /// For a container, its whole cgroup is dead when this returns.
    pub async fn wait(&self, id: &str) -> Result<Exit, SpawnError> {
        let _ = id;
        todo!()
    }

    /// Sends a signal to the process (by pidfd). `Ok(false)` when it has ended.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<bool, SpawnError> {
        let _ = (id, signal);
        todo!()
    }

    /// Kills every process of its cgroup.
    pub async fn kill(&self, id: &str) -> Result<(), SpawnError> {
        let _ = id;
        todo!()
    }

    /// Lets go of an ended process: its exit is dropped, its cgroup removed.
    pub async fn forget(&self, id: &str) -> Result<(), SpawnError> {
        let _ = id;
        todo!()
    }

    /// Ends every process and the spawner itself; nothing is left.
    pub async fn shutdown(&self) -> Result<(), SpawnError> {
        todo!()
    }
}

/// The spawner's main: called by the executable before it starts threads. Never returns normally to the caller's program flow.
pub fn run(args: &[String]) -> std::process::ExitCode {
    let _ = args;
    todo!()
}
