//! workerd processes: their configuration, their start, their replacement by a new version, their restart after a crash.
//!
//! Owns: one supervisor task per script, the generated config, the process's sockets and run directory, the dispatcher Worker.
//! Must not: read the store or speak the control API; it is told what to run. It does not know what serves the Docker socket: it asks [`Sockets`].

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

/// What a script shall run: a version with all that was resolved for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The version.
    pub version: wharf_model::Version,
    /// The script's number: its user id is `uid_base + number`.
    pub script_number: u32,
    /// Namespaces of the script by class name.
    pub namespaces: BTreeMap<String, wharf_model::DurableObjectNamespace>,
}

/// What the supervisor needs from the daemon around it.
pub trait Sockets: Send + Sync + 'static {
    /// Opens the Docker API socket for one process of a script at `path` (connectable by `uid`); it closes when the result is dropped.
    fn docker(
        &self,
        script: &str,
        path: PathBuf,
        uid: u32,
    ) -> Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Any + Send + Sync>>> + Send + '_>>;
    /// Path of a blob (module or asset) by its hash.
    fn blob(&self, hash: &str) -> PathBuf;
}

/// Settings.
#[derive(Debug, Clone)]
pub struct WorkerdConfig {
    /// The pinned binary.
    pub binary: PathBuf,
    /// `<data>/run/w`: sockets and configs, one folder per process. Short: Unix socket paths are limited to 108 bytes.
    pub run_dir: PathBuf,
    /// `<data>/scripts`: Durable Object storage, one folder per script.
    pub storage_dir: PathBuf,
    /// First user id for workerd processes.
    pub uid_base: u32,
    /// Longest wait for requests in flight when a version is replaced, milliseconds.
    pub drain_ms: u64,
}

/// The supervisor of all scripts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Supervisor {}

/// A ready process, in use until dropped.
#[derive(Debug)]
pub struct Lease {
    /// HTTP socket.
    pub socket: PathBuf,
    /// Distinguishes processes.
    pub process: u64,
}

/// Why no process is ready.
#[derive(Debug, thiserror::Error)]
pub enum WorkerdError {
    /// No such script.
    #[error("no Worker named \"{0}\" is deployed here")]
    NoScript(String),
    /// It does not start or crashed; with workerd's own words.
    #[error("{0}")]
    Broken(String),
}

/// How a `scheduled` event ended.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct ScheduledOutcome {
    /// `ok`, `exception`, ...
    pub outcome: String,
}

/// For people and the API.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ScriptStatus {
    /// Script name.
    pub script: String,
    /// Version id that shall run.
    pub version: String,
    /// `starting`, `ready`, `draining`, `backoff`.
    pub state: String,
    /// Host pid.
    pub pid: Option<i32>,
    /// Crashes since the version was deployed.
    pub crashes: u32,
    /// Why the last process ended, with the tail of its output.
    pub last_error: Option<String>,
}

impl Supervisor {
    /// A supervisor with nothing to run yet.
    pub fn new(
        config: WorkerdConfig,
        spawner: wharf_sandbox::Spawner,
        sockets: Arc<dyn Sockets>,
    ) -> Self {
        let _ = (config, spawner, sockets);
        todo!()
    }
    /// Sets what a script shall run; returns at once. The new version's process replaces the old: requests in flight are drained, new ones held.
    pub fn set(&self, script: &str, desired: Desired) {
        let _ = (script, desired);
        todo!()
    }
    /// Ends a script's process and forgets the script; with `delete_storage` its objects' storage goes too.
    pub async fn remove(&self, script: &str, delete_storage: bool) {
        let _ = (script, delete_storage);
        todo!()
    }
    /// A ready process, waiting while one starts or is replaced.
    pub async fn acquire(&self, script: &str) -> Result<Lease, WorkerdError> {
        let _ = script;
        todo!()
    }
    /// Waits until the version set last is ready or has failed to start.
    pub async fn settled(&self, script: &str) -> Result<(), WorkerdError> {
        let _ = script;
        todo!()
    }
    /// Runs the `scheduled` handler.
    pub async fn scheduled(
        &self,
        script: &str,
        cron: &str,
        time_ms: i64,
    ) -> Result<ScheduledOutcome, WorkerdError> {
        let _ = (script, cron, time_ms);
        todo!()
    }
    /// All scripts.
    pub fn status(&self) -> Vec<ScriptStatus> {
        todo!()
    }
    /// Drains and ends everything.
    pub async fn shutdown(&self) {
        todo!()
    }
}
