//! The container engine: instances, from create to removal, each owned by one task.
//!
//! Owns: the instance table, lifecycle (a pure state machine in [`lifecycle`]), per-instance
//! directories, output logs, adoption after a restart. Must not: speak HTTP or know of scripts; the
//! caller's identity is an opaque [`Owner`].

mod adopt;
mod cleanup;
mod create;
mod directories;
mod disks;
mod exec;
mod files;
mod follow;
mod instance;
pub mod isolation;
pub mod lifecycle;
mod log;
mod merge;
mod object;
mod own_network;
mod preload;
mod record;
pub mod resources;
mod standby;
mod surroundings;
mod table;
mod types;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
pub use wharf_model::Isolation;
pub use wharf_sandbox::{ExecProcess, ExecStreams, Limits, Streams, Terminal, TerminalSize, Tmpfs};

pub use self::exec::{Exec, ExecError};
pub use self::files::{Files, FromSnapshot, Held, Volume, VolumeMount};
pub use self::follow::Follower;
pub use self::log::Entry;
pub use self::merge::parse_signal;
pub use self::object::StartOptions;
pub use self::own_network::{OwnNetwork, Published};
pub use self::preload::Preload;
pub use self::record::owns;
pub use self::standby::{Standby, StandbyEvent};
pub use self::surroundings::Surroundings;
pub use self::types::{Application, Create, EngineConfig, EngineError, Inspect, Owner, Refusal};
pub use self::usage::Usage;
use crate::instance::{Ask, Handle, Instance};
use crate::lifecycle::{Answer, EndedBy, Fault, Until};
use crate::record::{InstanceSpec, InstanceStatus};

/// How often the host gets back what instances have removed from their disks.
const TRIM_EVERY: Duration = Duration::from_secs(60);

/// The engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What the engine and the tasks of its instances share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) spawner: wharf_sandbox::Spawner,
    pub(crate) images: wharf_image::ImageStore,
    pub(crate) networks: wharf_net::Networks,
    pub(crate) disks: Arc<disks::Disks>,
    pub(crate) directories: Arc<directories::Directories>,
    cleanup: Arc<cleanup::Cleanup>,
    pub(crate) preloads: preload::Preloads,
    readings: Arc<resources::reading::Reader>,
    table: Mutex<table::Table>,
    standbys: Mutex<standby::Pool>,
}

impl Shared {
    pub(crate) fn table(&self) -> MutexGuard<'_, table::Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the machine has enough of everything for one more start. A refusal is remembered,
    /// for people.
    pub(crate) fn admit(&self, application: Option<&Application>) -> Result<(), EngineError> {
        let figures = self.readings.for_start(self.spawner.pid());
        let admitted = resources::admit(&figures, || self.table().biggest_user());
        admitted.map_err(|shortage| self.short(application, shortage.to_string()))
    }

    /// The error for a start that something is missing for, which is also remembered.
    pub(crate) fn short(&self, application: Option<&Application>, reason: String) -> EngineError {
        let repeated = match application {
            Some(application) => self.table().refused(application, &reason),
            None => false,
        };
        if !repeated {
            tracing::warn!(reason, "instance refused");
        }
        EngineError::Limit(reason)
    }

    pub(crate) fn standbys(&self) -> MutexGuard<'_, standby::Pool> {
        self.standbys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts the engine and adopts what an earlier daemon left: running instances are adopted,
    /// exited ones recorded as such, directories without a process are removed, except those of the
    /// operator's containers that do not run. Survivors that are not the engine's ([`owns`]) are
    /// left alone.
    pub async fn start(
        config: EngineConfig,
        spawner: wharf_sandbox::Spawner,
        survivors: Vec<wharf_sandbox::Survivor>,
        images: wharf_image::ImageStore,
        networks: wharf_net::Networks,
    ) -> Result<Engine, EngineError> {
        // Disks' files are there, and so is what they must not fill.
        let cleanup = Arc::new(cleanup::Cleanup::default());
        let (dir, for_disks) = (config.dir.clone(), cleanup.clone());
        let disks = blocking(move || {
            std::fs::create_dir_all(&dir).map(|()| Arc::new(disks::Disks::open(&dir, for_disks)))
        })
        .await?
        .map_err(|e| EngineError::Internal(format!("{}: {e}", config.dir.display())))?;
        let shared = Arc::new(Shared {
            directories: Arc::new(directories::Directories::new(&config.dir, cleanup.clone())),
            cleanup,
            preloads: preload::Preloads::new(config.preloads),
            readings: Arc::new(resources::reading::Reader::new(&config.dir)),
            config,
            spawner,
            images,
            networks,
            disks,
            table: Mutex::default(),
            standbys: Mutex::default(),
        });
        adopt::adopt(&shared, survivors).await?;
        tokio::spawn(keep_trimmed(Arc::downgrade(&shared)));
        Ok(Engine { shared })
    }

    /// Starts of an application's image are to be expected: if it asks for imports done ahead, they
    /// are done now.
    pub async fn expect_image(
        &self,
        application: &str,
        reference: &str,
        image: wharf_image::Image,
        limits: Limits,
    ) -> Result<(), EngineError> {
        let images = self.shared.images.clone();
        let (image, lower) = blocking(move || {
            let lower = images.lower_dirs(&image.layers);
            (image, lower)
        })
        .await?;
        let lower = lower.map_err(|error| EngineError::Internal(error.to_string()))?;
        let wanted = preload::expected(&image, lower, reference, application, limits);
        if let Some(wanted) = wanted {
            preload::Preloads::want(&self.shared, wanted);
        }
        Ok(())
    }

    /// The interpreters with their imports done ahead, and what became of the starts of their
    /// images.
    pub fn preloads(&self) -> Vec<Preload> {
        self.shared.preloads.list()
    }

    /// Creates; returns the id.
    pub async fn create(&self, request: Create) -> Result<String, EngineError> {
        let shared = self.shared.clone();
        // A task of its own: a caller who goes away in the middle leaves no half-made instance.
        let created = tokio::spawn(async move { create::create(&shared, request).await });
        created
            .await
            .map_err(|error| EngineError::Internal(format!("create: {error}")))?
    }

    /// Starts. `reference` is a name, an id or a unique id prefix, among what the owner may see,
    /// here and below.
    pub async fn start_instance(&self, owner: &Owner, reference: &str) -> Result<(), EngineError> {
        self.act(owner, reference, Ask::Start).await
    }

    /// Sends a signal to the main process.
    pub async fn signal(
        &self,
        owner: &Owner,
        reference: &str,
        signal: i32,
    ) -> Result<(), EngineError> {
        self.act(owner, reference, Ask::Signal(signal)).await
    }

    /// The image's stop signal (or SIGTERM), then SIGKILL after the grace (`None`: the engine's).
    pub async fn stop(
        &self,
        owner: &Owner,
        reference: &str,
        grace_ms: Option<u64>,
    ) -> Result<(), EngineError> {
        let grace_ms = grace_ms.unwrap_or(self.shared.config.stop_grace_ms);
        let by = EndedBy::Stop;
        self.act(owner, reference, Ask::Stop { grace_ms, by }).await
    }

    /// Removes; running only with `force` (SIGKILL).
    pub async fn remove(
        &self,
        owner: &Owner,
        reference: &str,
        force: bool,
    ) -> Result<(), EngineError> {
        let by = EndedBy::Destroy;
        self.act(owner, reference, Ask::Remove { force, by }).await
    }

    /// Waits for the exit (of the running or last process), or, with `removed`, for the removal.
    pub async fn wait(
        &self,
        owner: &Owner,
        reference: &str,
        removed: bool,
    ) -> Result<wharf_sandbox::Exit, EngineError> {
        let until = if removed {
            Until::Removed
        } else {
            Until::NotRunning
        };
        self.wait_until(owner, reference, until).await
    }

    /// Waits with any of Docker's conditions.
    pub async fn wait_until(
        &self,
        owner: &Owner,
        reference: &str,
        until: Until,
    ) -> Result<wharf_sandbox::Exit, EngineError> {
        let handle = self.find(owner, reference)?;
        match handle.ask(Ask::Wait(until)).await? {
            Answer::Exit(exit) => Ok(exit),
            _ => Err(missing(&handle.spec.name)),
        }
    }

    /// Looks at one.
    pub async fn inspect(&self, owner: &Owner, reference: &str) -> Result<Inspect, EngineError> {
        Ok(inspect(&*self.find(owner, reference)?))
    }

    /// All, of one owner or of everyone, oldest first.
    pub async fn list(&self, owner: Option<&Owner>) -> Vec<Inspect> {
        let handles = self.shared.table().all(owner);
        handles.iter().map(|handle| inspect(handle)).collect()
    }

    /// What each instance uses, or has used in the end, by id.
    pub async fn usage(&self) -> HashMap<String, Usage> {
        let handles = self.shared.table().all(None);
        let mut found = HashMap::new();
        for handle in handles {
            if let Some(usage) = handle.usage(&self.shared.spawner).await {
                found.insert(handle.spec.id.clone(), usage);
            }
        }
        found
    }

    /// Why this machine does not hold instances to [`Limits::disk_bytes`], if it does not; for the
    /// operator.
    pub fn disks_unsupported(&self) -> Option<&str> {
        self.shared.disks.unsupported()
    }

    /// Makes disks of this size ready: instances with it will be created. In the background.
    pub fn expect_disks(&self, bytes: u64) {
        let disks = self.shared.disks.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = disks.expect(bytes) {
                tracing::warn!(%error, "no disk could be made ahead");
            }
        });
    }

    /// How much of everything that runs out is in use on this node, and which application or script
    /// has most instances.
    pub fn resources(&self) -> (Vec<resources::Figure>, Option<resources::User>) {
        let figures = self.shared.readings.figures(self.shared.spawner.pid());
        (figures, self.shared.table().biggest_user())
    }

    /// The last refusal of each application since the daemon's start, oldest first.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.shared.table().refusals()
    }

    /// The kept output: `(is_stderr, unix_ms, bytes)` in order.
    pub async fn logs(&self, owner: &Owner, reference: &str) -> Result<Vec<Entry>, EngineError> {
        // Not the owner, but somebody who looks at its instance.
        let dir = self.shared.table().find(owner, reference)?.dir.clone();
        blocking(move || log::read(&dir))
            .await?
            .map_err(|error| EngineError::Internal(format!("output log: {error}")))
    }

    /// Its output as it is written: from the oldest that is kept, or from now on. It ends with the
    /// process; an instance that was not started yet is waited for.
    pub async fn follow(
        &self,
        owner: &Owner,
        reference: &str,
        from_now: bool,
    ) -> Result<Follower, EngineError> {
        let handle = self.shared.table().find(owner, reference)?;
        Follower::new(
            handle.dir.clone(),
            handle.grown.subscribe(),
            handle.view.clone(),
            from_now,
        )
        .map_err(|error| EngineError::Internal(format!("output log: {error}")))
    }

    /// Its network: the one it was created with, or its own while it runs.
    pub async fn network(
        &self,
        owner: &Owner,
        reference: &str,
    ) -> Result<wharf_net::Network, EngineError> {
        let handle = self.find_to_touch(owner, reference)?;
        handle.network().ok_or_else(|| {
            EngineError::Conflict(format!("container {} is not running", handle.spec.name))
        })
    }

    /// The TCP ports that an instance (by its whole id) listens on; `None` if it does not run or
    /// the kernel cannot say. The look does not count as its owner's.
    pub fn listening(&self, id: &str) -> Option<Vec<u16>> {
        let handle = self.shared.table().by_id(id)?;
        let runs = handle.view.borrow().pid.is_some();
        handle.network().filter(|_| runs)?.listening()
    }

    /// Which of these references is the image with this id now.
    pub async fn image_among(
        &self,
        references: Vec<String>,
        image_id: String,
    ) -> Result<Option<String>, EngineError> {
        let images = self.shared.images.clone();
        blocking(move || {
            references.into_iter().find(|reference| {
                let found = images.resolve(reference);
                found.is_ok_and(|image| image.id.as_str() == image_id)
            })
        })
        .await
    }

    /// Stops (with grace) all running instances of an application whose image id, class or
    /// [`Create::no_new_privileges`] is another. Returns how many, after their end.
    pub async fn roll(
        &self,
        application: &str,
        image_id: &str,
        class: Isolation,
        no_new_privileges: bool,
    ) -> usize {
        self.shared.preloads.rolled(application, Some(image_id));
        self.stop_all(application, EndedBy::Rollout, |of| {
            of.image_id != image_id
                || of.isolation != class
                || of.no_new_privileges != no_new_privileges
        })
        .await
    }

    /// The isolation class of instances of an image, where `asked` is the application's setting.
    ///
    /// # Errors
    /// The image's label names none, or this machine cannot give it.
    pub fn isolation_class(
        &self,
        image: &wharf_image::Image,
        asked: Option<Isolation>,
    ) -> Result<Isolation, EngineError> {
        let image = merge::ImageDefaults::of(&image.config);
        let config = &self.shared.config;
        let class = isolation::class(asked, isolation::label_of(&image), config.isolation)?;
        isolation::check(class, &config.microvm)?;
        Ok(class)
    }

    /// Stops (with grace) all running instances of an application that was deleted. Returns how
    /// many, after their end.
    pub async fn end_application(&self, application: &str) -> usize {
        self.shared.preloads.rolled(application, None);
        self.stop_all(application, EndedBy::Deletion, |_| true)
            .await
    }

    /// Stops the application's instances that match.
    async fn stop_all(
        &self,
        application: &str,
        by: EndedBy,
        is_meant: impl Fn(&InstanceSpec) -> bool,
    ) -> usize {
        let mut handles = self.shared.table().all(None);
        handles.retain(|handle| {
            let spec = &handle.spec;
            let application_of = spec.application.as_ref();
            application_of.is_some_and(|a| a.id == application)
                && is_meant(spec)
                && handle.view.borrow().state.is_live()
        });
        let grace_ms = self.shared.config.stop_grace_ms;
        let mut stops = JoinSet::new();
        for handle in handles {
            stops.spawn(async move { handle.ask(Ask::Stop { grace_ms, by }).await });
        }
        let stopped = stops.join_all().await;
        stopped
            .iter()
            .filter(|r| matches!(r, Ok(Answer::Done)))
            .count()
    }

    /// Stops and removes everything of an owner, and what was started ahead for it, or of all
    /// owners.
    pub async fn remove_all(&self, owner: Option<&Owner>) {
        let grace_ms = self.shared.config.stop_grace_ms;
        let by = match owner {
            Some(_) => EndedBy::Deletion,
            None => EndedBy::Daemon,
        };
        let mut removals = JoinSet::new();
        let handles = {
            let table = self.shared.table();
            let mut handles = table.all(owner);
            if let Some(Owner::Script(name)) = owner {
                handles.extend(table.all(Some(&Owner::Standby(name.clone()))));
            }
            handles
        };
        for handle in handles {
            removals.spawn(async move {
                // What stands still would not hear it.
                if !matches!(handle.spec.owner, Owner::Standby(_)) {
                    // Any answer will do: what is not stopped now is killed by the removal.
                    let _ = handle.ask(Ask::Stop { grace_ms, by }).await;
                }
                if let Err(error) = handle.ask(Ask::Remove { force: true, by }).await {
                    tracing::debug!(instance = handle.spec.id, %error, "removed by somebody else");
                }
            });
        }
        removals.join_all().await;
        if owner.is_none() {
            let cleanup = self.shared.cleanup.clone();
            if let Err(error) = blocking(move || cleanup.finish()).await {
                tracing::warn!(%error, "what instances leave stays until the next start");
            }
        }
    }

    /// Layers (diff ids) that instances use: not to be collected as garbage.
    pub fn layers_in_use(&self) -> Vec<wharf_image::Digest> {
        let handles = self.shared.table().all(None);
        let mut diff_ids: Vec<_> = handles
            .iter()
            .flat_map(|handle| &handle.spec.diff_ids)
            .filter_map(|id| wharf_image::Digest::parse(id).ok())
            .collect();
        diff_ids.sort();
        diff_ids.dedup();
        diff_ids
    }

    fn find(&self, owner: &Owner, reference: &str) -> Result<Arc<Handle>, EngineError> {
        let handle = self.shared.table().find(owner, reference)?;
        if handle.spec.owner == *owner {
            handle.touch();
        }
        Ok(handle)
    }

    /// Like [`Engine::find`], of what may be touched: an instance that is started ahead is to be
    /// handed over as it is.
    fn find_to_touch(&self, owner: &Owner, reference: &str) -> Result<Arc<Handle>, EngineError> {
        let handle = self.find(owner, reference)?;
        let spec = &handle.spec;
        match spec.owner {
            Owner::Standby(_) if spec.owner != *owner => Err(EngineError::Conflict(format!(
                "container {} was started ahead, and waits for an object to be handed to: it can be looked at, stopped and removed, and nothing else",
                spec.name
            ))),
            _ => Ok(handle),
        }
    }

    async fn act(&self, owner: &Owner, reference: &str, ask: Ask) -> Result<(), EngineError> {
        let handle = match ask {
            Ask::Stop { .. } | Ask::Remove { .. } => self.find(owner, reference)?,
            _ => self.find_to_touch(owner, reference)?,
        };
        let name = &handle.spec.name;
        let starting = matches!(ask, Ask::Start);
        match handle.ask(ask).await? {
            Answer::Done | Answer::Exit(_) => Ok(()),
            Answer::NotModified => Err(EngineError::NotModified(if starting {
                format!("container {name} is already started")
            } else {
                format!("container {name} is already stopped")
            })),
            Answer::StartFailed { fault, message } => Err(match fault {
                Fault::Request => EngineError::Invalid(message),
                Fault::Shortage => EngineError::Limit(message),
                Fault::Machine => EngineError::Internal(message),
            }),
            Answer::NotRunning => Err(EngineError::Conflict(format!(
                "container {name} is not running"
            ))),
            Answer::StillRunning => Err(EngineError::Conflict(format!(
                "cannot remove container \"/{name}\": container is running: stop the container before removing or force remove"
            ))),
            Answer::BeingRemoved => Err(EngineError::Conflict(format!(
                "removal of container {name} is already in progress"
            ))),
            Answer::Gone => Err(missing(name)),
        }
    }
}

/// Puts an instance into the table and starts its task.
pub(crate) fn insert(shared: &Shared, instance: Instance) -> Result<Arc<Handle>, EngineError> {
    let handle = instance.handle();
    let live = handle.view.borrow().state.is_live();
    let excess = {
        let spec = &handle.spec;
        let mut table = shared.table();
        table.insert(handle.clone())?;
        if live {
            table.running(spec.application.as_ref(), &spec.id);
        } else {
            table.set_idle(&spec.id, true);
        }
        table.excess(&spec.owner, now_ms())
    };
    drop_excess(excess);
    tokio::spawn(instance.run());
    Ok(handle)
}

/// Removes instances that have ended and are too many, in the background.
pub(crate) fn drop_excess(excess: Vec<Arc<Handle>>) {
    for handle in excess {
        tokio::spawn(async move {
            tracing::debug!(
                instance = handle.spec.id,
                "one of too many without a process: removed"
            );
            // It may have been started or removed meanwhile: then it stays, or is gone.
            let _ = handle
                .ask(Ask::Remove {
                    force: false,
                    by: EndedBy::Destroy,
                })
                .await;
        });
    }
}

fn inspect(handle: &Handle) -> Inspect {
    let view = handle.view.borrow().clone();
    let spec = &handle.spec;
    Inspect {
        id: spec.id.clone(),
        generation: view.status.generation,
        name: spec.name.clone(),
        owner: spec.owner.clone(),
        image: spec.image.clone(),
        image_id: spec.image_id.clone(),
        application: spec.application.as_ref().map(|a| a.id.clone()),
        application_name: spec.application.as_ref().map(|a| a.name.clone()),
        isolation: spec.isolation,
        no_new_privileges: spec.no_new_privileges,
        surroundings: spec.surroundings.clone(),
        state: view.state,
        pid: view.pid,
        handed: spec.handover.is_some(),
        created_ms: spec.created_ms,
        started_ms: view.status.started_ms,
        finished_ms: view.status.finished_ms,
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        labels: labels(spec, &view.status),
        object_labels: view.status.object_labels,
        ended_by: view.status.ended_by,
        published: view.published,
        error: view.status.error,
    }
}

fn labels(spec: &InstanceSpec, status: &InstanceStatus) -> BTreeMap<String, String> {
    let mut labels = spec.labels.clone();
    labels.extend(status.object_labels.clone());
    labels
}

fn missing(name: &str) -> EngineError {
    EngineError::NotFound(format!("No such container: {name}"))
}

/// Gives back to the host, again and again, what instances have removed from their disks; as long
/// as there is an engine.
async fn keep_trimmed(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(TRIM_EVERY).await;
        let Some(handles) = shared.upgrade().map(|shared| shared.table().all(None)) else {
            return;
        };
        let trim = move || {
            for handle in handles {
                if let Some(Err(error)) = handle.disk().map(wharf_sandbox::Disk::trim) {
                    tracing::warn!(instance = handle.spec.id, %error, "what was removed from its disk stays in use on the host");
                }
            }
        };
        if let Err(error) = blocking(trim).await {
            tracing::warn!(%error, "trimming the disks of instances");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| EngineError::Internal(format!("a background task failed: {error}")))
}

/// Unix time, milliseconds.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
