//! What a node decides.
//!
//! Dialects (Docker's, Cloudflare's) translate what their clients say into calls of this crate;
//! this crate decides; the machines below it (engine, workerd's supervisor, images, snapshots)
//! obey.
//!
//! ```text
//!  docker-api ── StartRequest ──> admission ── Create ──> engine
//!                                    │ what was started         ▲
//!                                    └──> standby ── Create ────┘
//!  control ── "this has changed" ──> reconcile ──> supervisor, engine, standby
//!                                    schedule ───> supervisor
//!                                    housekeeping ──> images, blobs, snapshots
//! ```
//!
//! Owns: who may start what, and with which limits ([`admission`], [`size`]); what is started ahead
//! ([`standby`]); what a change in the store sets in motion ([`reconcile`]); what runs by the clock
//! ([`schedule`]); what is removed in the background ([`housekeeping`]); which Workers have an
//! address ([`addresses`]).
//! Must not: know of HTTP, of Docker's or Cloudflare's fields, or of where a socket is.

pub mod addresses;
pub mod admission;
pub mod application;
pub mod applications;
mod environment;
pub mod housekeeping;
pub mod object;
pub mod recipe;
pub mod reconcile;
pub mod refusal;
pub mod request;
pub mod schedule;
pub mod size;
pub mod standby;

use std::sync::Arc;

use tokio::sync::Notify;
use wharf_engine::Engine;
use wharf_image::ImageStore;
use wharf_snapshot::Snapshots;
use wharf_store::Store;
use wharf_workerd::Supervisor;

use self::addresses::Addresses;
pub use self::admission::{Admitted, Caller, Place};
pub use self::application::ApplicationInfo;
pub use self::applications::{Applications, Observer, Region, StoredApplications};
pub use self::object::Object;
pub use self::recipe::{Recipe, StandbyTarget};
pub use self::refusal::{Refusal, RefusalKind};
pub use self::request::{ImageChoice, StartRequest};
pub use self::size::Size;
pub use self::standby::Standbys;

/// The parts that decisions are carried out by. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    /// What was deployed.
    pub store: Store,
    /// Images.
    pub images: ImageStore,
    /// Snapshots.
    pub snapshots: Snapshots,
    /// Instances.
    pub engine: Engine,
    /// workerd's processes.
    pub supervisor: Supervisor,
    /// Instances that are started ahead.
    pub standbys: Standbys,
    /// Which Workers have an address.
    pub addresses: Addresses,
    /// Told when scripts or their schedules change.
    pub schedules: Arc<Notify>,
}

impl Node {
    /// Ends everything, at the node's end: first what starts something, then what runs.
    pub async fn stop(&self) {
        self.standbys.stop().await;
        self.supervisor.shutdown().await;
        self.engine.remove_all(None).await;
    }
}
