//! All scripts together: who binds whom, reaping what an earlier daemon left, and the end of everything.
//!
//! Owns: the map of scripts, numbers of processes, the run directory. Must not: know the states of a script.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;
use wharf_bindings::{Entry, bound_entries};
use wharf_net::Networks;
use wharf_sandbox::{Spawner, Survivor};

use crate::machine::Bounds;
use crate::process::{self, LABEL_PREFIX, Process, Purpose, Stop};
use crate::script::Script;
use crate::walls::Program;
use crate::{
    Desired, ScheduledOutcome, ScriptStatus, Sockets, Supervisor, WorkerdConfig, WorkerdError,
};

/// A process that does not listen by then is ended.
const START_MS: u64 = 30_000;
/// A process that does not end by then after SIGTERM is killed.
const TERM_MS: u64 = 5_000;
/// Most bytes of the dispatcher's answer.
const OUTCOME_BYTES: usize = 64 * 1024;

type Scripts = BTreeMap<String, Arc<Script>>;

/// What all parts share.
pub(crate) struct Inner {
    pub(crate) config: WorkerdConfig,
    pub(crate) spawner: Spawner,
    pub(crate) networks: Networks,
    program: OnceLock<Program>,
    pub(crate) sockets: Arc<dyn Sockets>,
    scripts: RwLock<Scripts>,
    last_process: AtomicU64,
    closed: AtomicBool,
    runtime: tokio::runtime::Handle,
    tasks: TaskTracker,
    clock: tokio::time::Instant,
}

impl Inner {
    pub(crate) fn next_process(&self) -> u64 {
        self.last_process.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What the binary needs; found once. Blocks.
    pub(crate) fn program(&self) -> std::io::Result<&Program> {
        if let Some(program) = self.program.get() {
            return Ok(program);
        }
        let found = Program::find(&self.config.binary)?;
        Ok(self.program.get_or_init(|| found))
    }

    pub(crate) fn storage(&self, script_number: u32) -> PathBuf {
        self.config.storage_dir.join(script_number.to_string())
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            start_ms: START_MS,
            drain_ms: self.config.drain_ms,
            term_ms: TERM_MS,
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn script(&self, name: &str) -> Option<Arc<Script>> {
        self.scripts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn all(&self) -> Vec<Arc<Script>> {
        self.scripts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Runs work that [`Supervisor::shutdown`] waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Runs work that nobody waits for.
    pub(crate) fn spawn_timer(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }
}

/// What others bind of each script.
fn bound(all: &BTreeMap<String, Arc<Desired>>) -> BTreeMap<String, BTreeSet<Entry>> {
    let mut out: BTreeMap<String, BTreeSet<Entry>> = BTreeMap::new();
    for desired in all.values() {
        for (service, entry) in bound_entries(&desired.version) {
            out.entry(service.to_owned()).or_default().insert(entry);
        }
    }
    out
}

impl Supervisor {
    /// A supervisor with nothing to run yet. Call it within a tokio runtime, and [`Supervisor::reap`] before the first `set`.
    pub fn new(
        config: WorkerdConfig,
        spawner: Spawner,
        networks: Networks,
        sockets: Arc<dyn Sockets>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                spawner,
                networks,
                program: OnceLock::new(),
                sockets,
                scripts: RwLock::default(),
                last_process: AtomicU64::new(0),
                closed: AtomicBool::new(false),
                runtime: tokio::runtime::Handle::current(),
                tasks: TaskTracker::new(),
                clock: tokio::time::Instant::now(),
            }),
        }
    }

    /// Whether a process that the spawner knows by this label is this crate's.
    pub fn owns(label: &str) -> bool {
        label.starts_with(LABEL_PREFIX)
    }

    /// Ends the workerd processes that an earlier daemon left, so that new ones may open their storage, and removes their folders.
    /// They are killed, not asked: asked to end, workerd would delete its containers. Give it only what [`Supervisor::owns`].
    pub async fn reap(&self, survivors: Vec<Survivor>) {
        let spawner = &self.inner.spawner;
        for survivor in &survivors {
            if survivor.exit.is_none()
                && let Err(error) = spawner.kill(&survivor.process.id).await
            {
                tracing::error!(%error, process = survivor.process.id, "cannot end a workerd process of an earlier daemon");
            }
        }
        for survivor in survivors {
            let id = &survivor.process.id;
            let ended = match survivor.exit {
                Some(_) => Ok(()),
                None => spawner.wait(id).await.map(drop),
            };
            if let Err(error) = ended.and(spawner.forget(id).await) {
                tracing::error!(%error, process = id, "cannot forget a workerd process of an earlier daemon");
            }
        }
        self.clean().await;
    }

    async fn clean(&self) {
        let dir = self.inner.config.run_dir.clone();
        let cleaned = tokio::task::spawn_blocking(move || remove_content(&dir)).await;
        if let Ok(Err(error)) = cleaned {
            tracing::warn!(%error, dir = %self.inner.config.run_dir.display(), "cannot clean the run directory");
        }
    }

    /// Sets what a script shall run; returns at once. The new version's process replaces the old: requests in flight are drained, new ones held.
    /// Setting what runs already changes nothing. When the version binds an entrypoint of another script that no one bound before,
    /// that script's process is replaced too.
    pub fn set(&self, script: &str, desired: Desired) {
        self.set_all(vec![(script.to_owned(), desired)]);
    }

    /// [`Supervisor::set`] for several scripts at once: at a daemon's start, so that bindings among them need no second start.
    pub fn set_all(&self, scripts: Vec<(String, Desired)>) {
        let mut known = self
            .inner
            .scripts
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if self.inner.closed.load(Ordering::Relaxed) {
            return;
        }
        let mut all: BTreeMap<String, Arc<Desired>> = known
            .iter()
            .filter(|(_, script)| !script.leaving())
            .map(|(name, script)| (name.clone(), script.desired()))
            .collect();
        for (name, desired) in scripts {
            all.insert(name, Arc::new(desired));
        }
        let mut bound = bound(&all);
        for (name, desired) in all {
            let entries = bound.remove(&name).unwrap_or_default();
            let after = match known.get(&name) {
                Some(script) if !script.leaving() => {
                    script.set(desired, entries);
                    continue;
                }
                Some(leaving) => Some(leaving.gone()),
                None => None,
            };
            let script = Script::new(self.inner.clone(), name.clone(), desired, entries, after);
            known.insert(name, script);
        }
    }

    /// Ends a script's process and forgets the script; with `delete_storage` its objects' storage goes too.
    /// Requests in flight have the few seconds that workerd takes to end.
    pub async fn remove(&self, script: &str, delete_storage: bool) {
        let Some(removed) = self.inner.script(script) else {
            return;
        };
        removed.leave(false);
        removed.gone().cancelled().await;
        self.inner
            .scripts
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, s| !Arc::ptr_eq(s, &removed));
        if delete_storage {
            let path = self.inner.storage(removed.desired().script_number);
            let result = tokio::task::spawn_blocking({
                let path = path.clone();
                move || std::fs::remove_dir_all(path)
            })
            .await;
            match result {
                Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::error!(%error, path = %path.display(), "cannot delete the storage of a removed Worker");
                }
                _ => {}
            }
        }
    }

    /// A ready process, waiting while one starts or is replaced.
    pub async fn acquire(&self, script: &str) -> Result<crate::Lease, WorkerdError> {
        match self.inner.script(script) {
            Some(script) => script.acquire().await,
            None => Err(WorkerdError::NoScript(script.to_owned())),
        }
    }

    /// Waits until the version set last is ready or has failed to start.
    pub async fn settled(&self, script: &str) -> Result<(), WorkerdError> {
        match self.inner.script(script) {
            Some(script) => script.settled().await,
            None => Err(WorkerdError::NoScript(script.to_owned())),
        }
    }

    /// Whether a version starts, tried in a process of its own beside the one that serves: with its code and bindings, but
    /// objects in memory and no containers. The error has workerd's own words (syntax errors, unknown modules, missing entrypoints).
    pub async fn check(&self, script: &str, desired: Desired) -> Result<(), WorkerdError> {
        self.trial(script, desired).await.map(|_| ())
    }

    /// Which of the classes in `desired.namespaces` the version's code does not export as Durable
    /// Object classes, in workerd's judgement. Tried as in [`Self::check`].
    ///
    /// # Errors
    /// The version does not start.
    pub async fn missing_classes(
        &self,
        script: &str,
        mut desired: Desired,
    ) -> Result<BTreeSet<String>, WorkerdError> {
        // The prelude exports every container class, whether the Worker does or not.
        desired.version.container_classes.clear();
        let classes: Vec<String> = desired.namespaces.keys().cloned().collect();
        let output = self.trial(script, desired).await?;
        let missing = |class: &String| {
            let complaint = format!("referenced the class \"{class}\", but no such");
            output.iter().any(|line| line.contains(&complaint))
        };
        Ok(classes.into_iter().filter(missing).collect())
    }

    /// Starts a version in a process of its own, and ends it. What it printed.
    async fn trial(&self, script: &str, desired: Desired) -> Result<Vec<String>, WorkerdError> {
        let broken = |error: process::StartError| WorkerdError::Broken(error.to_string());
        let inner = &self.inner;
        let prepared = process::prepare(inner, Arc::new(desired), BTreeSet::new(), Purpose::Trial)
            .await
            .map_err(broken)?;
        let (inner, script) = (inner.clone(), script.to_owned());
        let (tell, answer) = tokio::sync::oneshot::channel();
        // On its own, so that the process ends even when nobody waits any more.
        self.inner.spawn(async move {
            let (stop, mut stopped) = tokio::sync::watch::channel(Stop::No);
            let late = inner.runtime.spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(START_MS)).await;
                stop.send_replace(Stop::Kill);
            });
            let tried =
                Process::start(&inner, &script, prepared, Purpose::Trial, &mut stopped).await;
            let result = match tried {
                Ok(mut process) => {
                    process.finish().await;
                    Ok(process.printed())
                }
                Err(error) => Err(broken(error)),
            };
            late.abort();
            // Nobody may be waiting.
            let _ = tell.send(result);
        });
        answer
            .await
            .unwrap_or_else(|_| Err(WorkerdError::Broken("the trial start was given up".into())))
    }

    /// Runs the `scheduled` handler.
    pub async fn scheduled(
        &self,
        script: &str,
        cron: &str,
        time_ms: i64,
    ) -> Result<ScheduledOutcome, WorkerdError> {
        let lease = self.acquire(script).await?;
        let Some(socket) = lease.dispatcher() else {
            return Err(WorkerdError::Broken(format!(
                "Worker \"{script}\" has only static assets and no `scheduled` handler"
            )));
        };
        let body = serde_json::json!({"cron": cron, "scheduledTime": time_ms}).to_string();
        dispatch(socket, body).await.map_err(|error| {
            WorkerdError::Broken(format!(
                "the `scheduled` event \"{cron}\" of Worker \"{script}\" was lost: {error}"
            ))
        })
    }

    /// All scripts.
    pub fn status(&self) -> Vec<ScriptStatus> {
        self.inner.all().iter().map(|s| s.status()).collect()
    }

    /// Drains and ends everything; nothing is started any more.
    pub async fn shutdown(&self) {
        {
            let _scripts = self
                .inner
                .scripts
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            self.inner.closed.store(true, Ordering::Relaxed);
        }
        let all = self.inner.all();
        for script in &all {
            script.leave(true);
        }
        for script in &all {
            script.gone().cancelled().await;
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner
            .scripts
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.clean().await;
    }
}

fn remove_content(dir: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

async fn dispatch(
    socket: &Path,
    body: String,
) -> Result<ScheduledOutcome, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post("/")
        .header(header::HOST, "scheduled")
        .body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), OUTCOME_BYTES);
        let bytes = body.collect().await?.to_bytes();
        if !status.is_success() {
            return Err(format!("workerd answered {status}").into());
        }
        Ok(serde_json::from_slice(&bytes)?)
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The answer says more than the connection's end, whichever comes first.
        _ = &mut connection => answer.await,
    }
}
