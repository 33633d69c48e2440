//! Instances that are started ahead: prepared, kept frozen, and handed to whoever creates exactly
//! the same.
//!
//! ```text
//!  prepare ──> starting ──> (a port listens, or time is over) ──> frozen, in the pool
//!                  │ ends by itself: an error                          │ ends, discard: gone
//!                                                           hand_over ─┘──> the object's instance
//! ```
//!
//! Owns: the pool, what "exactly the same" means ([`same_process`]), and that nothing is handed
//! twice: who takes one out of the pool is the only one who has it. Must not: decide how many there
//! are, nor of what.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::instance::{Ask, Handle, NewLife};
use crate::lifecycle::{Answer, EndedBy, State};
use crate::record::{Handover, InstanceSpec};
use crate::{Create, Engine, EngineError, Isolation, Owner, Shared, merge};

/// How long after its start one that listens on no port is taken to be ready. Not everything that
/// is waited for listens.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait after the first port listens: there may be more, and a program may do something
/// just after.
const SETTLES: Duration = Duration::from_millis(200);
/// Time between two looks at the ports.
const LOOK: Duration = Duration::from_millis(20);

/// An instance that was started ahead and is ready.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Standby {
    /// The instance's id, also when it is an object's.
    pub id: String,
    /// What it holds, bytes; 0 where the machine does not count.
    pub memory_bytes: u64,
    /// Time from its start until it was ready, milliseconds.
    pub ready_ms: u64,
}

/// What became of one that was ready, without its being discarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyEvent {
    /// An object has it now.
    Handed {
        /// Which.
        id: String,
    },
    /// The instance has ended.
    Ended {
        /// Which.
        id: String,
    },
}

/// The instances that are ready.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    ready: Vec<Ready>,
    watcher: Option<mpsc::UnboundedSender<StandbyEvent>>,
}

#[derive(Debug)]
struct Ready {
    handle: Arc<Handle>,
    /// The application that it is for.
    application: String,
}

impl Pool {
    /// Takes out the first that will do. It is the caller's then, and nobody else's.
    fn take(&mut self, will_do: impl Fn(&Ready) -> bool) -> Option<Ready> {
        let at = self.ready.iter().position(will_do)?;
        Some(self.ready.remove(at))
    }

    fn tell(&self, event: StandbyEvent) {
        if let Some(watcher) = &self.watcher {
            // Nobody keeps any then.
            let _ = watcher.send(event);
        }
    }

    /// An instance has ended; it may be one of these.
    pub(crate) fn ended(&mut self, id: &str) {
        if self.take(|ready| ready.handle.spec.id == id).is_some() {
            self.tell(StandbyEvent::Ended { id: id.to_owned() });
        }
    }
}

impl Engine {
    /// Starts an instance ahead, of what [`Create`] says. Its name, network, labels, token and hard
    /// timeout do not count: those are of whoever gets it. Returns when it is ready and stands
    /// still.
    ///
    /// # Errors
    /// The request is not a script's, names no application, or asks for what cannot be started
    /// ahead (volumes, a snapshot); it does not start; or it ends by itself before it is ready.
    pub async fn prepare_standby(&self, request: Create) -> Result<Standby, EngineError> {
        let (Owner::Script(script), Some(application), true, None) = (
            &request.owner,
            &request.application,
            request.volumes.is_empty(),
            &request.snapshot,
        ) else {
            return Err(EngineError::Invalid(
                "only a script's instance of an application can be started ahead, without volumes or a snapshot".to_owned(),
            ));
        };
        let owner = Owner::Standby(script.clone());
        let application = application.id.clone();
        let name = format!("standby-{}", uuid::Uuid::new_v4().simple());
        let id = self
            .create(Create {
                owner: owner.clone(),
                name: name.clone(),
                network: None,
                // It goes as soon as it ends.
                auto_remove: true,
                // It is not one of the instances that are counted.
                application: None,
                ..request
            })
            .await?;
        let begun = Instant::now();
        let prepared = async {
            self.start_instance(&owner, &name).await?;
            let handle = self.find(&owner, &name)?;
            ready(&handle).await?;
            // It may have been asked to end meanwhile.
            let generation = handle.view.borrow().status.generation;
            let process = handle.spec.process(generation);
            let frozen = self.shared.spawner.freeze(&process).await;
            frozen.map_err(|error| EngineError::Internal(error.to_string()))?;
            let usage = handle.usage(&self.shared.spawner).await;
            let mut pool = self.shared.standbys();
            // Told apart under the lock that an end takes too: what has ended never comes in.
            if handle.view.borrow().state != State::Running {
                return Err(ended(&handle));
            }
            pool.ready.push(Ready {
                handle,
                application,
            });
            Ok(Standby {
                id: id.clone(),
                memory_bytes: usage.and_then(|u| u.process.memory_bytes).unwrap_or(0),
                ready_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
        };
        let prepared = prepared.await;
        if prepared.is_err() {
            let by = EndedBy::Destroy;
            // It may have removed itself.
            let _ = self
                .act(&owner, &name, Ask::Remove { force: true, by })
                .await;
        }
        prepared
    }

    /// Ends one that is ready; returns whether it was still there.
    pub async fn discard_standby(&self, id: &str) -> bool {
        let taken = self
            .shared
            .standbys()
            .take(|ready| ready.handle.spec.id == id);
        match taken {
            Some(Ready { handle, .. }) => {
                remove(&handle).await;
                true
            }
            None => false,
        }
    }

    /// Tells from now on what becomes of those that are ready. There is one who is told: the last
    /// who asked.
    pub fn watch_standbys(&self) -> mpsc::UnboundedReceiver<StandbyEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.shared.standbys().watcher = Some(sender);
        receiver
    }
}

/// Waits until it is ready to be asked.
async fn ready(handle: &Handle) -> Result<(), EngineError> {
    let mut view = handle.view.clone();
    let settled = async {
        let begun = Instant::now();
        let listens = || handle.network().and_then(|network| network.listening());
        while begun.elapsed() < READY_WITHIN {
            if listens().is_some_and(|ports| !ports.is_empty()) {
                tokio::time::sleep(SETTLES).await;
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = settled => Ok(()),
        _ = view.wait_for(|view| view.state != State::Running) => Err(ended(handle)),
    }
}

fn ended(handle: &Handle) -> EngineError {
    let view = handle.view.borrow();
    let how = match (&view.status.error, &view.status.exit) {
        (Some(error), _) => error.clone(),
        (None, Some(exit)) => crate::lifecycle::describe(exit, view.status.ended_by),
        (None, None) => "removed".to_owned(),
    };
    EngineError::Conflict(format!("ended before it was ready: {how}"))
}

async fn remove(handle: &Handle) {
    let by = EndedBy::Destroy;
    // Gone already is as good.
    let _ = handle.ask(Ask::Remove { force: true, by }).await;
}

/// Gives the request one that was started ahead, if there is one that is exactly what it asks for.
/// Returns its id.
pub(crate) async fn hand_over(
    shared: &Arc<Shared>,
    request: &Create,
    image: &wharf_image::Image,
    lower: &[PathBuf],
    isolation: Isolation,
) -> Result<Option<String>, EngineError> {
    let (Owner::Script(script), Some(application), Some(network)) =
        (&request.owner, &request.application, &request.network)
    else {
        return Ok(None);
    };
    let owner = Owner::Standby(script.clone());
    // What the instance would be, in the place of one that is ready.
    let asked = |ready: &Handle| -> Result<InstanceSpec, EngineError> {
        let defaults = merge::ImageDefaults::of(&image.config);
        let merged = merge::merge(&defaults, request, ready.spec.hostname())?;
        Ok(InstanceSpec::new(
            request.clone(),
            image,
            lower.to_vec(),
            merged,
            ready.spec.id.clone(),
            isolation,
            ready.spec.device.clone(),
        ))
    };
    loop {
        let taken = shared.standbys().take(|ready| {
            ready.application == application.id
                && ready.handle.spec.owner == owner
                && asked(&ready.handle).is_ok_and(|asked| same_process(&asked, &ready.handle.spec))
                && ready
                    .handle
                    .network()
                    .is_some_and(|ahead| network.is_plain(&ahead.policy()))
        });
        let Some(Ready { handle, .. }) = taken else {
            return Ok(None);
        };
        let generation = shared
            .table()
            .last_generation(&request.owner, &request.name);
        let mut spec = asked(&handle)?;
        spec.handover = Some(Handover {
            process: handle.spec.process(handle.view.borrow().status.generation),
            generation: generation + 1,
            ingress: network.ingress(),
        });
        let id = spec.id.clone();
        let life = NewLife {
            spec: Arc::new(spec),
            generation,
            object_labels: request.start.labels.clone(),
            network: network.clone(),
        };
        let answer = handle.ask(Ask::Become(Box::new(life))).await;
        if let Ok(Answer::Done) = answer {
            shared
                .standbys()
                .tell(StandbyEvent::Handed { id: id.clone() });
            return Ok(Some(id));
        }
        // It has just ended, or could not be made another: then it is nobody's any more.
        tracing::debug!(instance = id, ?answer, "not handed over");
        remove(&handle).await;
        shared.standbys().tell(StandbyEvent::Ended { id });
    }
}

/// Whether a process that was started for `ahead` is one that would be started for `asked`.
/// Everything that a process can see or is held to is compared; the rest is the engine's own
/// knowledge of it, and can change hands.
fn same_process(asked: &InstanceSpec, ahead: &InstanceSpec) -> bool {
    let InstanceSpec {
        // Of the standby, as its host name is.
        id: _,
        // The owners are compared by the caller; the others are names.
        owner: _,
        name: _,
        image: _,
        application: _,
        image_id,
        diff_ids,
        lower,
        snapshot,
        volumes,
        argv,
        env,
        user,
        working_dir,
        // Nothing inside knows these.
        stop_signal: _,
        labels: _,
        start_token: _,
        hard_timeout_ms: _,
        created_ms: _,
        limits,
        device,
        // The network is the sidecar's; the caller compares what it may reach.
        own_network,
        auto_remove,
        isolation,
        no_new_privileges,
        surroundings,
        // How it begins; what it then is, the others say.
        preload: _,
        handover,
    } = asked;
    *image_id == ahead.image_id
        && *diff_ids == ahead.diff_ids
        && *lower == ahead.lower
        && snapshot.is_none()
        && ahead.snapshot.is_none()
        && volumes.is_empty()
        && ahead.volumes.is_empty()
        && *argv == ahead.argv
        && *env == ahead.env
        && *user == ahead.user
        && *working_dir == ahead.working_dir
        && *limits == ahead.limits
        && *device == ahead.device
        && own_network.publish.is_empty()
        && !auto_remove
        && *isolation == ahead.isolation
        && *no_new_privileges == ahead.no_new_privileges
        && *surroundings == ahead.surroundings
        && handover.is_none()
        && ahead.handover.is_none()
}
