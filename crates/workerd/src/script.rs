//! One script: its machine, who waits, which process is current.
//!
//! Owns: carrying out the machine's effects. Must not: decide; every decision is the machine's.
//!
//! All effects are carried out under one short lock and none of them blocks, so their order is the machine's order, and a request
//! to a ready script costs one lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use wharf_bindings::Entry;

use crate::machine::{Effect, Event, Machine, Phase, ProcessId, Target, Waiter};
use crate::process::{self, Prepared, Process, Purpose, Running, StartError, Stop};
use crate::supervisor::Inner;
use crate::{Desired, Lease, ScriptStatus, WorkerdError};

type Answer = Result<Lease, WorkerdError>;

/// See the module's text.
pub(crate) struct Script {
    name: String,
    inner: Arc<Inner>,
    shared: Mutex<Shared>,
    settled: watch::Sender<(Target, Option<Result<(), String>>)>,
    gone: CancellationToken,
}

struct Shared {
    machine: Machine,
    desired: Arc<Desired>,
    /// What other scripts bind.
    entries: BTreeSet<Entry>,
    /// Of these, what the version does not export.
    missing: BTreeSet<Entry>,
    latest: Target,
    prepared: Option<(Target, Result<Prepared, StartError>)>,
    running: Option<(ProcessId, Arc<Running>)>,
    stops: HashMap<ProcessId, watch::Sender<Stop>>,
    waiters: HashMap<Waiter, oneshot::Sender<Answer>>,
    last_waiter: Waiter,
}

impl Script {
    /// A script that will run `desired` once `after` (the end of an earlier script of that name) has come.
    pub(crate) fn new(
        inner: Arc<Inner>,
        name: String,
        desired: Arc<Desired>,
        entries: BTreeSet<Entry>,
        after: Option<CancellationToken>,
    ) -> Arc<Self> {
        let script = Arc::new(Self {
            name,
            shared: Mutex::new(Shared {
                machine: Machine::new(inner.bounds()),
                desired,
                entries,
                missing: BTreeSet::new(),
                latest: 0,
                prepared: None,
                running: None,
                stops: HashMap::new(),
                waiters: HashMap::new(),
                last_waiter: 0,
            }),
            settled: watch::Sender::new((0, None)),
            gone: CancellationToken::new(),
            inner,
        });
        script.retarget(&mut script.lock(), after);
        script
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing that can panic leaves the state half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what shall run, if it differs.
    pub(crate) fn set(self: &Arc<Self>, desired: Arc<Desired>, entries: BTreeSet<Entry>) {
        let mut shared = self.lock();
        if *shared.desired != *desired {
            shared.desired = desired;
            shared.entries = entries;
            shared.missing.clear();
        } else {
            let before = shared.entries.len();
            shared.entries.extend(entries);
            // A socket too many does no harm, so only a new one is worth a new process.
            if shared.entries.len() == before {
                return;
            }
        }
        self.retarget(&mut shared, None);
    }

    /// Prepares a folder for what shall run now while the old process still serves, then swaps.
    fn retarget(self: &Arc<Self>, shared: &mut Shared, after: Option<CancellationToken>) {
        shared.latest += 1;
        let target = shared.latest;
        self.settled.send_replace((target, None));
        let script = self.clone();
        let (desired, entries) = (shared.desired.clone(), shared.wanted_entries());
        self.inner.spawn(async move {
            if let Some(after) = after {
                after.cancelled().await;
            }
            let prepared = process::prepare(&script.inner, desired, entries, Purpose::Serve).await;
            let outdated = script.swap(target, prepared);
            let _ = tokio::task::spawn_blocking(move || drop(outdated)).await;
        });
    }

    /// Hands a prepared folder over; what is returned is not needed any more.
    fn swap(
        self: &Arc<Self>,
        target: Target,
        prepared: Result<Prepared, StartError>,
    ) -> Option<(Target, Result<Prepared, StartError>)> {
        let mut shared = self.lock();
        let outdated = if shared.latest == target {
            shared.prepared.replace((target, prepared))
        } else {
            Some((target, prepared))
        };
        self.handle(shared, Event::Set(target));
        outdated
    }

    /// What shall run.
    pub(crate) fn desired(&self) -> Arc<Desired> {
        self.lock().desired.clone()
    }

    /// Whether it was removed.
    pub(crate) fn leaving(&self) -> bool {
        self.lock().machine.leaving()
    }

    /// Cancelled once the script was removed and nothing of it runs.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// For people.
    pub(crate) fn status(&self) -> ScriptStatus {
        let shared = self.lock();
        let state = match shared.machine.phase() {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Backoff => "backoff",
        };
        ScriptStatus {
            script: self.name.clone(),
            version: shared.desired.version.id.clone(),
            state: state.to_owned(),
            pid: shared.running.as_ref().map(|(_, running)| running.pid),
            crashes: shared.machine.crashes(),
            last_error: shared.machine.last_error().map(str::to_owned),
        }
    }

    /// A process, waiting for one if need be.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Answer {
        let answer = {
            let mut shared = self.lock();
            shared.last_waiter += 1;
            let waiter = shared.last_waiter;
            let now = self.inner.now_ms();
            let effects = shared.machine.handle(now, Event::Acquire(waiter));
            match effects.into_iter().next() {
                Some(Effect::Grant(_, process)) => return self.lease(&shared, process),
                Some(Effect::Refuse(_, reason)) => return Err(self.refusal(reason)),
                _ => {
                    let (tell, answer) = oneshot::channel();
                    shared.waiters.insert(waiter, tell);
                    answer
                }
            }
        };
        answer.await.unwrap_or_else(|_| Err(self.refusal(None)))
    }

    /// One more lease of this very process, if it still takes requests.
    pub(crate) fn join(self: &Arc<Self>, process: ProcessId) -> Option<Lease> {
        let mut shared = self.lock();
        if !shared.machine.join(process) {
            return None;
        }
        self.lease(&shared, process).ok()
    }

    /// Takes note of the end of a lease.
    pub(crate) fn release(self: &Arc<Self>, process: ProcessId) {
        self.handle(self.lock(), Event::Release(process));
    }

    /// Ends the process at once, or after the requests in flight; `gone` tells when.
    pub(crate) fn leave(self: &Arc<Self>, drain: bool) {
        let event = if drain {
            Event::Shutdown
        } else {
            Event::Remove
        };
        self.handle(self.lock(), event);
    }

    /// Waits until what was set last is ready or has failed to start.
    pub(crate) async fn settled(&self) -> Result<(), WorkerdError> {
        let mut settled = self.settled.subscribe();
        tokio::select! {
            result = settled.wait_for(|(_, result)| result.is_some()) => match result.as_deref() {
                Ok((_, Some(Err(reason)))) => Err(WorkerdError::Broken(reason.clone())),
                Ok(_) => Ok(()),
                Err(_) => Err(self.refusal(None)),
            },
            () = self.gone.cancelled() => Err(self.refusal(None)),
        }
    }

    fn refusal(&self, reason: Option<String>) -> WorkerdError {
        match reason {
            Some(reason) => WorkerdError::Broken(reason),
            None => WorkerdError::NoScript(self.name.clone()),
        }
    }

    fn lease(self: &Arc<Self>, shared: &Shared, process: ProcessId) -> Answer {
        match &shared.running {
            Some((p, running)) if *p == process => {
                Ok(Lease::new(self.clone(), process, running.clone()))
            }
            _ => Err(self.refusal(Some("the process has just ended".into()))),
        }
    }

    /// Lets the machine decide and carries out what it says.
    fn handle(self: &Arc<Self>, mut shared: MutexGuard<'_, Shared>, event: Event) {
        let effects = shared.machine.handle(self.inner.now_ms(), event);
        // Who went away while waiting: dropping their leases takes the lock again.
        let mut unheard = Vec::new();
        for effect in effects {
            match effect {
                Effect::Start(process, target) => self.start(&mut shared, process, target),
                Effect::Drain(process) => {
                    if let Some((p, running)) = &shared.running
                        && *p == process
                    {
                        running.draining.cancel();
                    }
                }
                Effect::Terminate(process) => shared.stop(process, Stop::Terminate),
                Effect::Kill(process) => shared.stop(process, Stop::Kill),
                Effect::Timer(number, after_ms) => {
                    let script = Arc::downgrade(self);
                    self.inner.spawn_timer(async move {
                        tokio::time::sleep(Duration::from_millis(after_ms)).await;
                        if let Some(script) = script.upgrade() {
                            script.handle(script.lock(), Event::Timer(number));
                        }
                    });
                }
                Effect::Grant(waiter, process) => {
                    let lease = self.lease(&shared, process);
                    if let Some(tell) = shared.waiters.remove(&waiter) {
                        unheard.extend(tell.send(lease).err());
                    } else {
                        unheard.push(lease);
                    }
                }
                Effect::Refuse(waiter, reason) => {
                    if let Some(tell) = shared.waiters.remove(&waiter) {
                        unheard.extend(tell.send(Err(self.refusal(reason))).err());
                    }
                }
                Effect::Settled(target, result) => {
                    self.settled.send_if_modified(|settled| {
                        let current = settled.0 == target && settled.1.is_none();
                        if current {
                            settled.1 = Some(result);
                        }
                        current
                    });
                }
                Effect::Gone => {
                    shared.prepared = None;
                    self.gone.cancel();
                }
            }
        }
        drop(shared);
        drop(unheard);
    }

    fn start(self: &Arc<Self>, shared: &mut Shared, process: ProcessId, target: Target) {
        let prepared = match shared.prepared.take() {
            Some((t, prepared)) if t == target => Some(prepared),
            other => {
                shared.prepared = other;
                None
            }
        };
        let (tell, stop) = watch::channel(Stop::No);
        shared.stops.insert(process, tell);
        let script = self.clone();
        self.inner
            .spawn(async move { script.run(process, prepared, stop).await });
    }

    /// The life of one process.
    async fn run(
        self: Arc<Self>,
        process: ProcessId,
        mut prepared: Option<Result<Prepared, StartError>>,
        mut stop: watch::Receiver<Stop>,
    ) {
        let reason = loop {
            let made = match prepared.take() {
                Some(made) => made,
                None => {
                    let (desired, entries) = {
                        let shared = self.lock();
                        (shared.desired.clone(), shared.wanted_entries())
                    };
                    process::prepare(&self.inner, desired, entries, Purpose::Serve).await
                }
            };
            let started = match made {
                Ok(prepared) => {
                    Process::start(&self.inner, &self.name, prepared, Purpose::Serve, &mut stop)
                        .await
                }
                Err(error) => Err(error),
            };
            match started {
                Ok(mut running) => {
                    tracing::info!(
                        script = self.name,
                        process = running.running.number,
                        pid = running.running.pid,
                        "workerd is ready"
                    );
                    self.started(process, running.running.clone());
                    let hung = |reason: String| {
                        tracing::warn!(script = self.name, reason, "a workerd process is ended");
                        self.handle(self.lock(), Event::Hung(process, reason));
                    };
                    let reason = running.run(&mut stop, hung).await;
                    self.ended(process, reason);
                    // Its folder may hold many files.
                    let _ = tokio::task::spawn_blocking(move || drop(running)).await;
                    return;
                }
                // Another script's mistake must not keep this one from starting.
                Err(StartError::Ended { missing, .. })
                    if !missing.is_empty() && *stop.borrow() == Stop::No =>
                {
                    for entry in &missing {
                        tracing::warn!(script = self.name, entrypoint = ?entry.entrypoint, "another Worker binds an entrypoint that this Worker does not export");
                    }
                    self.lock().missing.extend(missing);
                }
                Err(error) => break error.to_string(),
            }
        };
        self.ended(process, reason);
    }

    fn started(self: &Arc<Self>, process: ProcessId, running: Arc<Running>) {
        let mut shared = self.lock();
        shared.running = Some((process, running));
        self.handle(shared, Event::Started(process));
    }

    fn ended(self: &Arc<Self>, process: ProcessId, reason: String) {
        let mut shared = self.lock();
        shared.stops.remove(&process);
        shared.running.take_if(|(p, _)| *p == process);
        let phase = shared.machine.phase();
        if matches!(phase, Phase::Starting | Phase::Ready) {
            tracing::warn!(script = self.name, reason, "a workerd process failed");
        }
        self.handle(shared, Event::Ended(process, reason));
    }
}

impl Shared {
    fn stop(&self, process: ProcessId, how: Stop) {
        if let Some(stop) = self.stops.get(&process) {
            stop.send_if_modified(|current| {
                let more = how > *current;
                *current = (*current).max(how);
                more
            });
        }
    }

    fn wanted_entries(&self) -> BTreeSet<Entry> {
        self.entries.difference(&self.missing).cloned().collect()
    }
}
