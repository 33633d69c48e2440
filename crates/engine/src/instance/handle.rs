//! The way to an instance's task, and what everybody may see of it. Must not: change anything; that
//! is the task's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};
use wharf_sandbox::{Disk, DiskMount, DiskUsage, Spawner};

use crate::directories::DISK;
use crate::disks::DiskLease;
use crate::lifecycle::{Answer, EndedBy, State, Until};
use crate::log::Grown;
use crate::own_network::Published;
use crate::record::{InstanceSpec, InstanceStatus};
use crate::{EngineError, Usage};

/// What everybody may see of an instance; the task publishes it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) state: State,
    pub(crate) pid: Option<i32>,
    pub(crate) status: InstanceStatus,
    /// Its ports that the host shows now.
    pub(crate) published: Vec<Published>,
}

impl View {
    /// Whether no output will come: its process has ended. One that was not started yet may write.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Exited(_) | State::Removed)
    }
}

/// The way to an instance's task.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) spec: Arc<InstanceSpec>,
    pub(crate) dir: PathBuf,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) network: Mutex<Option<wharf_net::Network>>,
    /// What it writes is here; without, in its directory.
    pub(super) disk: Option<Arc<DiskLease>>,
    /// Held by the one task that needs the files to itself: a start, a writer from outside, a copy.
    pub(crate) files: Arc<tokio::sync::Mutex<()>>,
    /// Counts what its owner asks for, and its being orphaned: who sees the same figure twice knows
    /// that nobody has asked in between.
    pub(super) touches: AtomicU64,
    /// How far its output has grown. Who reads it along holds a receiver.
    pub(crate) grown: watch::Sender<Grown>,
    pub(super) requests: mpsc::Sender<Request>,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Start,
    Signal(i32),
    Stop {
        grace_ms: u64,
        by: EndedBy,
    },
    Remove {
        force: bool,
        by: EndedBy,
    },
    Wait(Until),
    /// Replaces the labels that its object has given it.
    SetLabels(BTreeMap<String, String>),
    /// How long it may run on while nobody asks for it, milliseconds.
    SetInactivity(u64),
    /// Makes an instance that was started ahead into this one.
    Become(Box<NewLife>),
}

/// What an instance that was started ahead becomes.
#[derive(Debug, Clone)]
pub(crate) struct NewLife {
    pub(crate) spec: Arc<InstanceSpec>,
    /// The last generation of the name.
    pub(crate) generation: u64,
    pub(crate) object_labels: BTreeMap<String, String>,
    pub(crate) network: wharf_net::Network,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) reply: oneshot::Sender<Result<Answer, EngineError>>,
}

impl Handle {
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Answer, EngineError> {
        let gone = || EngineError::NotFound(format!("No such container: {}", self.spec.name));
        let (reply, answer) = oneshot::channel();
        let request = Request { ask, reply };
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Takes note that its owner asks for it; a figure for [`Handle::touches`].
    pub(crate) fn touch(&self) -> u64 {
        self.touches.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn touches(&self) -> u64 {
        self.touches.load(Ordering::Relaxed)
    }

    pub(crate) fn network(&self) -> Option<wharf_net::Network> {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.clone()
    }

    pub(crate) fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()?.disk()
    }

    /// Where `upper` and `work` are, for this process, and while this value lives.
    pub(crate) fn writable(&self) -> PathBuf {
        match self.disk() {
            Some(disk) => disk.path(),
            None => self.dir.clone(),
        }
    }

    /// The disk's mount for the mount namespace of the process; `upper` and `work` lie on it.
    pub(crate) fn disk_mount(&self) -> Option<DiskMount> {
        self.disk().map(|disk| DiskMount {
            device: disk.device().to_owned(),
            at: self.dir.join(DISK),
        })
    }

    /// What it uses, or has used in the end.
    pub(crate) async fn usage(&self, spawner: &Spawner) -> Option<Usage> {
        let view = self.view.borrow().clone();
        if !view.state.is_live() {
            return view.status.usage;
        }
        let id = self.spec.process(view.status.generation);
        // Not started yet, or gone by now.
        let process = spawner.usage(&id).await.ok()?;
        Some(Usage::new(process, self.disk_usage()))
    }

    pub(super) fn disk_usage(&self) -> Option<DiskUsage> {
        let usage = self.disk()?.usage();
        usage
            .inspect_err(|error| tracing::warn!(instance = self.spec.id, %error, "disk's usage"))
            .ok()
    }

    pub(super) fn set_network(&self, network: Option<wharf_net::Network>) {
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = network;
    }
}
