//! What callers of the engine say and are told: whose an instance is, what it is created from, how
//! it stands, and what can go wrong. Plain data. Must not: do anything.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::isolation::MicrovmConfig;
use crate::lifecycle::{self, EndedBy};
use crate::{
    FromSnapshot, Isolation, Limits, OwnNetwork, Published, StartOptions, Surroundings, VolumeMount,
};

/// Whom an instance belongs to. A script's lookups are within its own, so that none can see
/// another's; the operator sees everyone's.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Owner {
    /// A script, by name.
    Script(String),
    /// An instance that is started ahead for the script of this name. It is the script's only when
    /// it is handed over.
    Standby(String),
    /// The operator's own containers.
    Operator,
}

/// As it is written in records and messages: `script hello`, `operator`.
impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Owner::Script(name) => write!(f, "script {name}"),
            Owner::Standby(name) => write!(f, "standby of script {name}"),
            Owner::Operator => f.write_str("operator"),
        }
    }
}

/// The application that an instance counts against.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Application {
    /// Its id.
    pub id: String,
    /// Its name, for error texts.
    pub name: String,
    /// The most instances of it that may run at a time.
    pub max_instances: u32,
}

/// An instance that an application was not given: its limit was reached, or the process did not
/// start.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// The application's id.
    pub application: String,
    /// Its name.
    pub application_name: String,
    /// The limit with its figures, or why the process did not start.
    pub reason: String,
    /// Unix ms.
    pub at_ms: i64,
}

/// A request to create an instance. Image config is merged in here by the engine as Docker does.
#[derive(Debug, Clone)]
pub struct Create {
    /// The owner.
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
    /// Network to join; `None` makes one with each start, which is like `own_network`.
    pub network: Option<wharf_net::Network>,
    /// What its own network is like.
    pub own_network: OwnNetwork,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// Application it counts against.
    pub application: Option<Application>,
    /// Directories of its own that are mounted, in this order.
    pub volumes: Vec<VolumeMount>,
    /// What to start from instead of the bare image.
    pub snapshot: Option<FromSnapshot>,
    /// What a Durable Object said with its start.
    pub start: StartOptions,
    /// What separates it from the machine; `None` leaves it to the image's label
    /// ([`crate::isolation::LABEL`]) and the node.
    pub isolation: Option<Isolation>,
    /// Whether no program gains privileges when it is executed (as
    /// [`wharf_sandbox::ProcessSpec::no_new_privileges`]).
    pub no_new_privileges: bool,
    /// Its root, host name and files about the network, where they are not as usual.
    pub surroundings: Surroundings,
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
    /// The owner.
    pub owner: Owner,
    /// Image reference as asked for.
    pub image: String,
    /// Image id it runs (config digest).
    pub image_id: String,
    /// Application id.
    pub application: Option<String>,
    /// Application name.
    pub application_name: Option<String>,
    /// What separates it from the machine.
    pub isolation: Isolation,
    /// As [`Create::no_new_privileges`].
    pub no_new_privileges: bool,
    /// As [`Create::surroundings`].
    pub surroundings: Surroundings,
    /// State.
    pub state: lifecycle::State,
    /// Host pid while running.
    pub pid: Option<i32>,
    /// Whether its process was started ahead and handed to it.
    pub handed: bool,
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
    /// Labels of the image and of the create, and the object's over them.
    pub labels: BTreeMap<String, String>,
    /// The labels among them that the Durable Object has given.
    pub object_labels: BTreeMap<String, String>,
    /// Who or what ended its last process, or is about to end the one that runs.
    pub ended_by: Option<EndedBy>,
    /// Its ports that the host shows while it runs.
    pub published: Vec<Published>,
    /// Why it did not start, or what else is to be known of its end.
    pub error: Option<String>,
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

/// Where the engine keeps things.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// `<data>/instances`.
    pub dir: PathBuf,
    /// The most bytes of output that are kept per instance (the oldest go first).
    pub log_bytes: u64,
    /// SIGTERM to SIGKILL, milliseconds.
    pub stop_grace_ms: u64,
    /// How long a script's instance runs on while its owner does not ask for it, after the daemon
    /// or the owner's process has gone, milliseconds. Then it is removed: the Durable Object that
    /// it belongs to has not woken.
    pub adopt_idle_ms: u64,
    /// What an instance with one CPU may send, and as much receive, bytes a second; with more or
    /// less of a CPU, in proportion. `None`: no limit. Without a CPU limit there is none either.
    pub bandwidth_per_cpu: Option<u64>,
    /// The class of instances for which none is said, and the weakest that an image's label can
    /// choose.
    pub isolation: Isolation,
    /// How many interpreters with their imports done ahead (label `wharf.preload`) are kept; 0:
    /// none.
    pub preloads: usize,
    /// What instances of class microvm need.
    pub microvm: MicrovmConfig,
}

impl EngineConfig {
    /// What an instance with these limits may send, and receive, bytes a second.
    pub(crate) fn bandwidth(&self, limits: &Limits) -> Option<u64> {
        let millis = limits.cpu_millis?;
        let rate = self.bandwidth_per_cpu?.saturating_mul(millis) / 1000;
        Some(rate.max(1))
    }
}
