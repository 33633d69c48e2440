//! workerd processes: their configuration, their start, their replacement by a new version, their restart after a crash.
//!
//! Owns: the generated config, the process's sockets and run directory, the dispatcher Worker, the relays of service bindings.
//! Must not: read the store or speak the control API; it is told what to run. It does not know what serves the Docker socket: it asks [`Sockets`].
//!
//! One process per script. `machine` decides for each script; `script` carries out; `process` is one workerd from folder to end;
//! `config` is what it reads; `relay` connects scripts with each other.

pub mod config;
mod folder;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod machine;
mod output;
pub mod prelude;
mod probe;
mod process;
mod relay;
mod rpc;
mod rpc_relay;
mod script;
mod supervisor;
pub mod text;
mod walls;
mod watchdog;

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::WaitForCancellationFutureOwned;
use wharf_net::Network;

/// Request header whose JSON value becomes `request.cf`. The gateway removes it from clients' requests and sets it.
pub const CF_BLOB_HEADER: &str = "cf-wharf-cf-blob";
/// Request header (`http` or `https`) that decides the scheme of `request.url`. The gateway removes it from clients' requests and sets it.
pub const FORWARDED_PROTO_HEADER: &str = "x-forwarded-proto";

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

/// A Docker API socket that closes when this is dropped.
pub type DockerSocket = Box<dyn Any + Send + Sync>;

/// Where the engine is reached by one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnginePaths {
    /// The Docker API that workerd calls.
    pub docker: PathBuf,
    /// What the prelude tells and asks: labels, and for how long an idle container is kept.
    pub prelude: PathBuf,
}

/// What the supervisor needs from the daemon around it.
pub trait Sockets: Send + Sync + 'static {
    /// Opens the engine's sockets for one process of a script (connectable by `uid`), which runs in `network`; they close when the result is
    /// dropped, which is when the process has ended.
    fn docker(
        &self,
        script: &str,
        paths: EnginePaths,
        uid: u32,
        network: Network,
    ) -> Pin<Box<dyn Future<Output = std::io::Result<DockerSocket>> + Send + '_>>;
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
    /// Whether Workers may connect to private addresses (RFC 1918, ...) with `fetch` and `connect`. Otherwise only to public ones. What their network
    /// allows is said to [`wharf_net::NetConfig`]; this is workerd's own rule.
    pub allow_private: bool,
    /// Memory of one process, bytes; above it the kernel ends the process. `None` is unlimited.
    pub memory_bytes: Option<u64>,
    /// Most open descriptors of one process; an object with SQLite storage needs three.
    pub nofile: u64,
    /// Most threads of one process.
    pub pids: u64,
    /// Thousandths of a core that one process may use; `None` is unlimited.
    pub cpu_millis: Option<u64>,
    /// A process whose JavaScript computes for so long without a pause, CPU milliseconds, is ended.
    pub watchdog_ms: u64,
}

impl WorkerdConfig {
    /// Defaults: user ids from 2000000, 10 s to drain, public addresses only, 1 GiB, 65536 descriptors, 512 threads, two cores, 10 s
    /// to compute without a pause.
    pub fn new(binary: PathBuf, run_dir: PathBuf, storage_dir: PathBuf) -> Self {
        Self {
            binary,
            run_dir,
            storage_dir,
            uid_base: 2_000_000,
            drain_ms: 10_000,
            allow_private: false,
            memory_bytes: Some(1 << 30),
            nofile: 65_536,
            pids: 512,
            cpu_millis: Some(2000),
            watchdog_ms: 10_000,
        }
    }
}

/// The supervisor of all scripts. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    inner: Arc<supervisor::Inner>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}

/// A ready process, in use until dropped. A process is not replaced while it is in use (within `drain_ms`).
pub struct Lease {
    /// HTTP socket.
    pub socket: PathBuf,
    /// Distinguishes processes.
    pub process: u64,
    running: Arc<process::Running>,
    machine_process: machine::ProcessId,
    held: Option<Arc<script::Script>>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("socket", &self.socket)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl Lease {
    fn new(
        script: Arc<script::Script>,
        machine_process: machine::ProcessId,
        running: Arc<process::Running>,
    ) -> Self {
        running.load.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            socket: running.http.clone(),
            process: running.number,
            running,
            machine_process,
            held: Some(script),
        }
    }

    /// The request became a tunnel (a WebSocket), which may stay for hours: from now on the process is replaced without waiting for it.
    /// Close the tunnel when [`Lease::closing`] resolves; workerd does not end before its tunnels do, and is killed after a few seconds.
    pub fn upgraded(&mut self) {
        if let Some(script) = self.held.take() {
            self.running.load.in_flight.fetch_sub(1, Ordering::Relaxed);
            script.release(self.machine_process);
        }
    }

    /// Resolves right before the process is told to end, or when it has ended.
    pub fn closing(&self) -> WaitForCancellationFutureOwned {
        self.running.closing.clone().cancelled_owned()
    }

    /// The head of a response has come, or anything else that shows that JavaScript has come to an end. Who does not say so may have the process taken
    /// for one that computes without end while it has much to do.
    pub fn answered(&self) {
        self.running.load.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// For a request whose connection broke off: why the process has ended without being asked to. `None` at once while it lives on (what the
    /// connection was about failed), and if it was asked to end.
    pub fn end_reason(&self) -> impl Future<Output = Option<String>> + Send + use<> {
        let running = self.running.clone();
        async move { running.end_reason().await }
    }

    /// Resolves when the process takes no new requests.
    fn draining(&self) -> WaitForCancellationFutureOwned {
        self.running.draining.clone().cancelled_owned()
    }

    fn entry(&self, entry: &wharf_bindings::Entry) -> Option<PathBuf> {
        self.running.entries.get(entry).cloned()
    }

    fn dispatcher(&self) -> Option<&std::path::Path> {
        self.running.dispatcher.as_deref()
    }

    fn machine_process(&self) -> machine::ProcessId {
        self.machine_process
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upgraded();
    }
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
