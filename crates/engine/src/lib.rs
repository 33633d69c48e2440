//! The container engine: instances, from create to removal, each owned by one task.
//!
//! Owns: the instance table, lifecycle (a pure state machine in [`lifecycle`]), per-instance directories, output logs, adoption after a restart.
//! Must not: speak HTTP or know of scripts; the caller's identity is an opaque [`Owner`].

use std::collections::BTreeMap;
use std::path::PathBuf;

pub mod lifecycle;

/// Whom an instance belongs to. Lookups are always within one owner, so that none can see another's.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Owner {
    /// A script, by name.
    Script(String),
    /// The operator's own containers.
    Operator,
}

/// A request to create an instance. Image config is merged in here by the engine as Docker does.
#[derive(Debug, Clone)]
pub struct Create {
    /// Whose.
    pub owner: Owner,
    /// Unique within the owner.
    pub name: String,
    /// Image reference as resolved by the caller's policy.
    pub image: String,
    /// Replaces the image's command, if not empty. `entrypoint` likewise.
    pub cmd: Vec<String>,
    /// Replaces the image's entrypoint, if given.
    pub entrypoint: Option<Vec<String>>,
    /// `K=V`, over the image's.
    pub env: Vec<String>,
    /// User, if not the image's.
    pub user: Option<String>,
    /// Working directory, if not the image's.
    pub working_dir: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Limits.
    pub limits: wharf_sandbox::Limits,
    /// Network to join; `None` makes one.
    pub network: Option<wharf_net::Network>,
    /// Application it counts against: id and the most instances that may run at a time.
    pub application: Option<(String, u32)>,
}

/// Where the state is in an instance's life, with what a caller may want to know.
#[derive(Debug, Clone)]
pub struct Inspect {
    /// 64 hex.
    pub id: String,
    /// Counts starts of this name; operations are pinned to it.
    pub generation: u64,
    /// Name.
    pub name: String,
    /// Whose.
    pub owner: Owner,
    /// Image reference as asked for.
    pub image: String,
    /// Image id it runs (config digest).
    pub image_id: String,
    /// Application id.
    pub application: Option<String>,
    /// State.
    pub state: lifecycle::State,
    /// Host pid while running.
    pub pid: Option<i32>,
    /// Unix ms.
    pub created_ms: i64,
    /// Unix ms.
    pub started_ms: Option<i64>,
    /// Unix ms.
    pub finished_ms: Option<i64>,
    /// As merged.
    pub argv: Vec<String>,
    /// As merged.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Engine errors, by what the dialect answers.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such container or image (404).
    #[error("{0}")]
    NotFound(String),
    /// Name in use, or not in the right state (409).
    #[error("{0}")]
    Conflict(String),
    /// Already so (304).
    #[error("{0}")]
    NotModified(String),
    /// The request is wrong (400).
    #[error("{0}")]
    Invalid(String),
    /// A limit is reached, with the figure (503).
    #[error("{0}")]
    Limit(String),
    /// The machine failed (500).
    #[error("{0}")]
    Internal(String),
}

/// The engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {}

/// Where the engine keeps things.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// `<data>/instances`.
    pub dir: PathBuf,
    /// Most bytes of output kept per instance (oldest dropped).
    pub log_bytes: u64,
    /// SIGTERM to SIGKILL, milliseconds.
    pub stop_grace_ms: u64,
}

impl Engine {
    /// Starts the engine and adopts what an earlier daemon left: running instances are adopted, directories without a process are removed.
    pub async fn start(
        config: EngineConfig,
        spawner: wharf_sandbox::Spawner,
        survivors: Vec<wharf_sandbox::Survivor>,
        images: wharf_image::ImageStore,
        networks: wharf_net::Networks,
    ) -> Result<Engine, EngineError> {
        let _ = (config, spawner, survivors, images, networks);
        todo!()
    }
    /// Creates; returns the id.
    pub async fn create(&self, request: Create) -> Result<String, EngineError> {
        let _ = request;
        todo!()
    }
    /// Starts. `reference` is a name, an id or a unique id prefix, within the owner, here and below.
    pub async fn start_instance(&self, owner: &Owner, reference: &str) -> Result<(), EngineError> {
        let _ = (owner, reference);
        todo!()
    }
    /// Sends a signal to the main process.
    pub async fn signal(
        &self,
        owner: &Owner,
        reference: &str,
        signal: i32,
    ) -> Result<(), EngineError> {
        let _ = (owner, reference, signal);
        todo!()
    }
    /// The image's stop signal (or SIGTERM), then SIGKILL after the grace (`None`: the engine's).
    pub async fn stop(
        &self,
        owner: &Owner,
        reference: &str,
        grace_ms: Option<u64>,
    ) -> Result<(), EngineError> {
        let _ = (owner, reference, grace_ms);
        todo!()
    }
    /// Removes; running only with `force` (SIGKILL).
    pub async fn remove(
        &self,
        owner: &Owner,
        reference: &str,
        force: bool,
    ) -> Result<(), EngineError> {
        let _ = (owner, reference, force);
        todo!()
    }
    /// Waits for the exit (of the running or last process), or, with `removed`, for the removal.
    pub async fn wait(
        &self,
        owner: &Owner,
        reference: &str,
        removed: bool,
    ) -> Result<wharf_sandbox::Exit, EngineError> {
        let _ = (owner, reference, removed);
        todo!()
    }
    /// Looks at one.
    pub async fn inspect(&self, owner: &Owner, reference: &str) -> Result<Inspect, EngineError> {
        let _ = (owner, reference);
        todo!()
    }
    /// All, of one owner or of everyone.
    pub async fn list(&self, owner: Option<&Owner>) -> Vec<Inspect> {
        let _ = owner;
        todo!()
    }
    /// The kept output: `(is_stderr, unix_ms, bytes)` in order.
    pub async fn logs(
        &self,
        owner: &Owner,
        reference: &str,
    ) -> Result<Vec<(bool, i64, Vec<u8>)>, EngineError> {
        let _ = (owner, reference);
        todo!()
    }
    /// Its network.
    pub async fn network(
        &self,
        owner: &Owner,
        reference: &str,
    ) -> Result<wharf_net::Network, EngineError> {
        let _ = (owner, reference);
        todo!()
    }
    /// Stops (with grace) all running instances of an application whose image id is not `image_id`. Returns how many.
    pub async fn roll(&self, application: &str, image_id: &str) -> usize {
        let _ = (application, image_id);
        todo!()
    }
    /// Stops and removes everything of an owner, or of all owners.
    pub async fn remove_all(&self, owner: Option<&Owner>) {
        let _ = owner;
        todo!()
    }
}
pub use wharf_sandbox::Limits;
