//! The spawner process and the daemon's handle to it.
//!
//! Owns: the protocol, the spawner's loop ([`run`]), starting and finding it ([`Spawner::start`]).
//! Must not: know why a process is to run.

mod ahead;
mod client;
mod exec;
mod launch;
mod lock;
mod process;
pub(crate) mod protocol;
mod restorer;
mod server;
mod warden;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use self::client::{ExecProcess, Spawner, Streams, Terminal};
pub use self::process::run;
use crate::exit::Exit;

/// How to start or find the spawner.
#[derive(Debug, Clone)]
pub struct SpawnerConfig {
    /// Unix socket where the spawner listens; its parent exists.
    pub socket: PathBuf,
    /// Command that ends up in [`run`]: usually `/proc/self/exe` with one hidden argument;
    /// `socket`, `grace_ms`, `cgroup_name` and `ids` are appended by this crate.
    pub command: Vec<String>,
    /// How long the spawner keeps processes alive without a daemon, milliseconds.
    pub grace_ms: u64,
    /// Name of the cgroup below which all processes are put, e.g. `wharf-1a2b3c4d`. Distinct per
    /// data directory.
    pub cgroup_name: String,
    /// The ids that containers get, a range each. `None`: no user namespaces, so that root in a
    /// container is the host's root, held by nothing but the other walls.
    pub ids: Option<crate::IdRanges>,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The request itself, or the program: the caller's to mend (Docker answers 400 and exit code
    /// 126/127).
    #[error("{message}")]
    Refused {
        /// What failed, for a person, e.g. `exec: "/server": no such file or directory`.
        message: String,
        /// Exit code that a shell would give: 127 not found, 126 not executable, else 125.
        exit_code: i32,
    },
    /// The container that a process was to be started in is not running, or not in this generation
    /// (Docker answers 409).
    #[error("{0}")]
    NotRunning(String),
    /// Something that there is only so much of is used up; what, in words. Later it may work (503).
    #[error("{0}")]
    Exhausted(String),
    /// The machine or the spawner failed.
    #[error("the spawner failed: {0}")]
    Spawner(String),
}

/// A process that the spawner runs. Dropping it does not end the process.
#[derive(Debug)]
pub struct Process {
    /// As asked for.
    pub id: String,
    /// Its number in the host's PID namespace.
    pub pid: i32,
    /// Read end of standard output.
    pub stdout: OwnedFd,
    /// Read end of standard error.
    pub stderr: OwnedFd,
    /// Write end of standard input, if asked for. The spawner keeps no copy, so survivors have
    /// none: theirs ended with the daemon.
    pub stdin: Option<OwnedFd>,
    /// Why it did not begin from the [`crate::ProcessImage`] that it was given, but as any other.
    pub not_restored: Option<String>,
}

/// A process (or the exit of one) that an earlier daemon left.
#[derive(Debug)]
pub struct Survivor {
    /// [`crate::ProcessSpec::label`].
    pub label: String,
    /// The process.
    pub process: Process,
    /// Set when it has exited meanwhile.
    pub exit: Option<Exit>,
    /// The mount of its disk, if it has one.
    pub disk: Option<OwnedFd>,
}
