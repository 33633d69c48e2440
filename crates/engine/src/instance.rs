//! The task that owns one instance: it feeds the lifecycle machine with requests and with what
//! happens, and carries out its effects.

mod handle;
mod handover;
mod start;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use wharf_net::Target;
use wharf_sandbox::{Exit, Process, SpawnError};

use self::handle::Request;
pub(crate) use self::handle::{Ask, Handle, NewLife, View};
use self::handover::Ahead;
use self::start::{Started, start_process};
use crate::disks::DiskLease;
use crate::lifecycle::{
    Answer, Effect, EndedBy, Event, Fault, HardTimeout, Machine, State, Token, describe,
};
use crate::own_network::Published;
use crate::record::{InstanceSpec, InstanceStatus, Record};
use crate::{EngineError, Shared, Usage, log, now_ms};

/// How long an exit waits for the rest of the output. Its processes are dead, so the pipes end as
/// soon as they are read empty.
const DRAIN: Duration = Duration::from_secs(1);
/// How long the removal of an instance that ended waits for readers of its output.
const LAST_READ: Duration = Duration::from_secs(5);
/// Requests that may wait for one instance.
const QUEUE: usize = 64;

/// What happens to an instance by itself.
#[derive(Debug)]
enum InternalEvent {
    Spawned {
        generation: u64,
        result: Result<Started, SpawnError>,
    },
    Exited {
        generation: u64,
        result: Result<Exit, SpawnError>,
        usage: Option<wharf_sandbox::Usage>,
    },
    GraceElapsed {
        generation: u64,
    },
    HardTimeout {
        generation: u64,
    },
    Thawed {
        generation: u64,
        result: Result<(), SpawnError>,
    },
}

/// An instance about to get its task.
#[derive(Debug)]
pub(crate) struct Instance {
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    machine: Machine,
    status: InstanceStatus,
    pid: Option<i32>,
    /// Whether its process was another daemon's.
    adopted: bool,
    /// What was started ahead, and not for this instance.
    ahead: Option<Ahead>,
    /// Whether the network was made for it alone and goes with its process.
    own_network: bool,
    published: Vec<Published>,
    view: watch::Sender<View>,
    requests: mpsc::Receiver<Request>,
    internal_events: mpsc::UnboundedReceiver<InternalEvent>,
    internal_sender: mpsc::UnboundedSender<InternalEvent>,
    /// When which start's time is over.
    hard_timeout: Option<(u64, Instant)>,
    waiting: HashMap<Token, oneshot::Sender<Result<Answer, EngineError>>>,
    last_token: Token,
    was_live: bool,
}

impl Instance {
    pub(crate) fn new(
        shared: Arc<Shared>,
        record: Record,
        dir: PathBuf,
        state: State,
        network: Option<wharf_net::Network>,
        own_network: bool,
        disk: Option<DiskLease>,
    ) -> Self {
        let Record { spec, status } = record;
        let (view_sender, view) = watch::channel(View {
            state: state.clone(),
            pid: None,
            status: status.clone(),
            published: Vec::new(),
        });
        let (requests_sender, requests) = mpsc::channel(QUEUE);
        let (internal_sender, internal_events) = mpsc::unbounded_channel();
        let was_live = state.is_live();
        let hard_timeout = spec.hard_timeout_ms.map(|ms| HardTimeout {
            ms,
            grace_ms: shared.config.stop_grace_ms,
        });
        Instance {
            machine: Machine::new(state, status.generation, spec.stop_signal)
                .with_hard_timeout(hard_timeout),
            handle: Arc::new(Handle {
                spec,
                dir,
                view,
                network: Mutex::new(network),
                disk: disk.map(Arc::new),
                files: Arc::default(),
                touches: AtomicU64::new(0),
                grown: watch::Sender::default(),
                requests: requests_sender,
            }),
            shared,
            status,
            pid: None,
            adopted: false,
            ahead: None,
            own_network,
            published: Vec::new(),
            view: view_sender,
            requests,
            internal_events,
            internal_sender,
            hard_timeout: None,
            waiting: HashMap::new(),
            last_token: 0,
            was_live,
        }
    }

    pub(crate) fn handle(&self) -> Arc<Handle> {
        self.handle.clone()
    }

    fn spec(&self) -> &InstanceSpec {
        &self.handle.spec
    }

    /// Takes over a process that runs already.
    pub(crate) fn adopt(&mut self, process: Process, published: Vec<Published>) {
        self.published = published;
        self.pid = Some(process.pid);
        self.watch_process(self.machine.generation(), process);
        self.adopted = true;
    }

    /// Runs until the instance is removed.
    pub(crate) async fn run(mut self) {
        self.publish();
        if matches!(self.machine.state(), State::Exited(_)) {
            self.remove_if_asked();
        }
        if self.adopted {
            let started_ms = self.status.started_ms.unwrap_or_else(now_ms);
            let ran_ms = u64::try_from(now_ms() - started_ms).unwrap_or(0);
            self.feed(Event::Adopted { ran_ms }).await;
        }
        while *self.machine.state() != State::Removed {
            let event = tokio::select! {
                internal_event = next_internal_event(&mut self.internal_events, self.hard_timeout) => self.event_of(internal_event),
                request = self.requests.recv() => match request {
                    Some(request) => self.event_of_request(request),
                    // The engine is gone.
                    None => return,
                },
            };
            if let Some(event) = event {
                self.feed(event).await;
            }
        }
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            let _ = request.reply.send(Ok(Answer::Gone));
        }
    }

    fn event_of_request(&mut self, Request { ask, reply }: Request) -> Option<Event> {
        let ask = match ask {
            Ask::SetLabels(labels) => {
                self.note(reply, |status| status.object_labels = labels);
                return None;
            }
            Ask::SetInactivity(ms) => {
                self.note(reply, |status| status.inactivity_ms = Some(ms));
                return None;
            }
            Ask::Become(life) => {
                let answer = self.become_another(*life);
                // The caller may have gone: then nobody starts what it has asked for.
                let _ = reply.send(answer);
                return None;
            }
            ask => ask,
        };
        if matches!(ask, Ask::Start)
            && !self.machine.state().is_live()
            && !self.machine.is_removing()
        {
            let spec = self.handle.spec.clone();
            if let Err(short) = self.admit(&spec) {
                let _ = reply.send(Err(short));
                return None;
            }
            // Counted here, by the only one who also counts it off: what is checked is what then
            // runs.
            let mut table = self.shared.table();
            if let Some(application) = &spec.application {
                if let Err(limit) = table.check_limit(application) {
                    let _ = reply.send(Err(limit));
                    return None;
                }
                table.running(Some(application), &spec.id);
            }
        }
        self.last_token += 1;
        let token = self.last_token;
        self.waiting.insert(token, reply);
        Some(match ask {
            Ask::Start => Event::Start(token),
            Ask::Signal(signal) => Event::Signal { signal, token },
            Ask::Stop { grace_ms, by } => Event::Stop {
                grace_ms,
                by,
                token,
            },
            Ask::Remove { force, by } => Event::Remove { force, by, token },
            Ask::Wait(until) => {
                self.drop_abandoned();
                Event::Wait { until, token }
            }
            Ask::SetLabels(_) | Ask::SetInactivity(_) | Ask::Become(_) => return None,
        })
    }

    /// Checks that the machine has what a start takes; a process that was started ahead has it.
    fn admit(&self, spec: &InstanceSpec) -> Result<(), EngineError> {
        match self.ahead {
            Some(_) => Ok(()),
            None => self.shared.admit(spec.application.as_ref()),
        }
    }

    /// Records what its object says of it while it lives; what is acknowledged a new daemon knows
    /// too.
    fn note(
        &mut self,
        reply: oneshot::Sender<Result<Answer, EngineError>>,
        change: impl FnOnce(&mut InstanceStatus),
    ) {
        let answer = if self.machine.is_removing() || !self.machine.state().is_live() {
            Ok(Answer::NotRunning)
        } else {
            change(&mut self.status);
            self.publish();
            let dir = self.handle.dir.display();
            match self.record().write(&self.handle.dir) {
                Ok(()) => Ok(Answer::Done),
                Err(error) => Err(EngineError::Internal(format!("{dir}: {error}"))),
            }
        };
        // The caller may have gone.
        let _ = reply.send(answer);
    }

    fn record(&self) -> Record {
        Record {
            spec: self.handle.spec.clone(),
            status: self.status.clone(),
        }
    }

    /// Forgets waiters whose caller has gone, so that a long-lived instance does not collect them.
    fn drop_abandoned(&mut self) {
        let gone: Vec<Token> = self
            .waiting
            .iter()
            .filter(|(_, reply)| reply.is_closed())
            .map(|(token, _)| *token)
            .collect();
        if !gone.is_empty() {
            self.waiting.retain(|token, _| !gone.contains(token));
            self.machine.handle(Event::Abandoned(gone));
        }
    }

    fn event_of(&mut self, internal_event: InternalEvent) -> Option<Event> {
        match self.in_order(internal_event)? {
            InternalEvent::Spawned { generation, result } => Some(self.spawned(generation, result)),
            InternalEvent::Exited {
                generation,
                result,
                usage,
            } => {
                let generation = self.generation_now(generation)?;
                let exit_seen = result.is_ok();
                let exit = result.unwrap_or_else(|error| {
                    self.status.error = Some(format!("its end was not seen: {error}"));
                    unseen_exit()
                });
                self.account(exit, usage);
                let by = match exit_seen {
                    true => self.machine.cause(&exit),
                    false => EndedBy::Unseen,
                };
                self.ended(exit, Some(by));
                Some(Event::Exited { generation, exit })
            }
            InternalEvent::Thawed { generation, result } => Some(self.thawed(generation, result)),
            InternalEvent::GraceElapsed { generation } => Some(Event::GraceElapsed { generation }),
            InternalEvent::HardTimeout { generation } => {
                self.hard_timeout = None;
                Some(Event::HardTimeout { generation })
            }
        }
    }

    fn spawned(&mut self, generation: u64, result: Result<Started, SpawnError>) -> Event {
        match result {
            Ok(Started {
                process,
                network,
                published,
            }) => {
                self.published = published;
                network.set_target(Target::Running(Instant::now()));
                self.handle.set_network(Some(network));
                self.pid = Some(process.pid);
                self.status.started_ms = Some(now_ms());
                self.watch_process(generation, process);
                Event::Spawned { generation }
            }
            Err(error) => {
                let (code, fault) = match &error {
                    SpawnError::Refused { exit_code, .. } => (*exit_code, Fault::Request),
                    SpawnError::Exhausted(_) => (125, Fault::Shortage),
                    SpawnError::NotRunning(_) | SpawnError::Spawner(_) => (125, Fault::Machine),
                };
                let message = error.to_string();
                // workerd tells the Worker no more than that its container failed to start.
                tracing::warn!(
                    application = self.spec().application.as_ref().map(|a| a.name.as_str()),
                    name = self.spec().name,
                    error = message,
                    "instance not started"
                );
                // A failed instance is soon removed by workerd, and its reason with it.
                if let Some(application) = &self.spec().application {
                    self.shared.table().refused(application, &message);
                }
                self.status.error = Some(message.clone());
                let exit = Exit {
                    code,
                    signal: None,
                    oom_killed: false,
                };
                self.ended(exit, None);
                Event::SpawnFailed {
                    generation,
                    code,
                    fault,
                    message,
                }
            }
        }
    }

    /// Keeps what the ended process has used, and says so if a limit had a part in its end.
    fn account(&mut self, exit: Exit, usage: Option<wharf_sandbox::Usage>) {
        let Some(process) = usage else { return };
        let usage = Usage::new(process, self.handle.disk_usage());
        if let Some(reason) = usage.explain(exit, &self.spec().limits) {
            tracing::warn!(
                application = self.spec().application.as_ref().map(|a| a.name.as_str()),
                name = self.spec().name,
                code = exit.code,
                "instance ended: {reason}"
            );
            self.status.error.get_or_insert(reason);
        }
        self.status.usage = Some(usage);
    }

    /// `by`: `None` if there was no process.
    fn ended(&mut self, exit: Exit, by: Option<EndedBy>) {
        self.pid = None;
        self.hard_timeout = None;
        self.status.exit = Some(exit);
        self.status.ended_by = by;
        self.status.finished_ms = Some(now_ms());
        if let Some(network) = self.handle.network() {
            let how = match &self.status.error {
                Some(error) => error.clone(),
                None => describe(&exit, by),
            };
            network.set_target(Target::Ended(how.into()));
        }
        if self.own_network {
            self.handle.set_network(None);
        }
        self.published.clear();
        self.remove_if_asked();
    }

    /// `AutoRemove`: whoever reads its output along may read the rest first.
    fn remove_if_asked(&self) {
        if !self.spec().auto_remove {
            return;
        }
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(LAST_READ, handle.grown.closed()).await;
            // Gone already is as good.
            let _ = handle
                .ask(Ask::Remove {
                    force: false,
                    by: EndedBy::Destroy,
                })
                .await;
        });
    }

    /// Keeps its output and reports its end.
    fn watch_process(&self, generation: u64, process: Process) {
        let Process {
            id, stdout, stderr, ..
        } = process;
        let writer = log::Writer::new(
            &self.handle.dir,
            self.shared.config.log_bytes,
            self.handle.grown.clone(),
        );
        let output: JoinHandle<()> = tokio::spawn(log::pump(writer, stdout, stderr));
        let spawner = self.shared.spawner.clone();
        let internal_sender = self.internal_sender.clone();
        tokio::spawn(async move {
            let result = spawner.wait(&id).await;
            // A program that handed its output to something outside its cgroup must not hold up its
            // own end.
            let _ = tokio::time::timeout(DRAIN, output).await;
            let usage = spawner.usage(&id).await;
            let usage = usage
                .inspect_err(
                    |error| tracing::warn!(process = id, %error, "what it used is not known"),
                )
                .ok();
            let _ = internal_sender.send(InternalEvent::Exited {
                generation,
                result,
                usage,
            });
        });
    }

    async fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let effects = self.machine.handle(event);
            self.status.generation = self.machine.generation();
            if self.machine.state().is_live() {
                self.status.exit = None;
                self.status.ended_by = self.machine.ending();
            }
            self.publish();
            // Before the answers: who hears of an end may count on its place.
            self.note_idle();
            for effect in effects {
                if let Some(next) = self.carry_out(effect).await {
                    events.push_back(next);
                }
            }
        }
    }

    fn publish(&self) {
        self.view.send_replace(View {
            state: self.machine.state().clone(),
            pid: self.pid,
            status: self.status.clone(),
            published: self.published.clone(),
        });
    }

    fn note_idle(&mut self) {
        let live = self.machine.state().is_live();
        if live == std::mem::replace(&mut self.was_live, live) {
            return;
        }
        let excess = {
            let spec = &self.handle.spec;
            let mut table = self.shared.table();
            table.set_idle(&spec.id, !live);
            if live {
                return;
            }
            table.stopped(spec.application.as_ref(), &spec.id);
            table.excess(&spec.owner, now_ms())
        };
        // After its end was published: who puts it in looks at that first.
        self.shared.standbys().ended(&self.spec().id);
        crate::drop_excess(excess);
    }

    async fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Spawn { generation } => self.spawn(generation),
            Effect::Signal {
                generation,
                signal,
                token,
            } => {
                let id = self.spec().process(generation);
                let sent = self.shared.spawner.signal(&id, signal).await;
                match (token, sent) {
                    (Some(token), Ok(true)) => self.answer(token, Ok(Answer::Done)),
                    (Some(token), Ok(false)) => self.answer(token, Ok(Answer::NotRunning)),
                    (Some(token), Err(error)) => {
                        self.answer(token, Err(EngineError::Internal(error.to_string())));
                    }
                    (None, Ok(_)) => {}
                    (None, Err(error)) => {
                        tracing::warn!(instance = self.spec().id, %error, "stop signal not sent");
                    }
                }
            }
            Effect::ArmTimer { generation, ms } => {
                let internal_sender = self.internal_sender.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    let _ = internal_sender.send(InternalEvent::GraceElapsed { generation });
                });
            }
            Effect::ArmHardTimeout { generation, ms } => {
                // A time beyond what the clock can say never comes.
                let at = Instant::now().checked_add(Duration::from_millis(ms));
                self.hard_timeout = at.map(|at| (generation, at));
            }
            Effect::NoteHardTimeout { ms } => {
                tracing::info!(
                    name = self.spec().name,
                    hard_timeout_ms = ms,
                    "hard timeout: stopped"
                );
                self.status.error = Some(format!("stopped: its hardTimeout of {ms} ms is over"));
                self.publish();
            }
            Effect::KillAll { generation } => {
                let id = self.spec().process(generation);
                if let Err(error) = self.shared.spawner.kill(&id).await {
                    tracing::error!(instance = self.spec().id, %error, "instance not killed");
                }
            }
            Effect::Persist => {
                // Whoever was just answered goes first.
                tokio::task::yield_now().await;
                if let Err(error) = self.record().write(&self.handle.dir) {
                    tracing::warn!(dir = %self.handle.dir.display(), %error, "instance.json not written");
                }
            }
            Effect::Forget { generation } => {
                let id = self.spec().process(generation);
                if let Err(error) = self.shared.spawner.forget(&id).await {
                    tracing::warn!(instance = self.spec().id, %error, "the spawner keeps an ended process");
                }
            }
            Effect::CleanUp => {
                self.end_what_is_ahead().await;
                self.handle.set_network(None);
                let directories = &self.shared.directories;
                directories.discard(&self.handle.dir, self.handle.disk.is_some());
                if let Some(disk) = &self.handle.disk {
                    disk.free();
                }
                self.shared.table().remove(&self.spec().id);
                return Some(Event::Cleaned);
            }
            Effect::Reply { token, answer } => self.answer(token, Ok(answer)),
        }
        None
    }

    fn answer(&mut self, token: Token, answer: Result<Answer, EngineError>) {
        if let Some(reply) = self.waiting.remove(&token) {
            // The caller may have gone.
            let _ = reply.send(answer);
        }
    }

    fn spawn(&mut self, generation: u64) {
        if self.start_what_is_ahead(generation) {
            return;
        }
        // What was started ahead has used the directories, also if it ended before its start.
        let first = self.status.started_ms.is_none() && self.ahead.is_none();
        self.status.error = None;
        self.status.finished_ms = None;
        let network = self.handle.network();
        if let Some(network) = &network {
            network.set_target(Target::Pending);
        }
        let handle = self.handle.clone();
        let shared = self.shared.clone();
        let internal_sender = self.internal_sender.clone();
        tokio::spawn(async move {
            let result = start_process(&shared, &handle, generation, first, network).await;
            let _ = internal_sender.send(InternalEvent::Spawned { generation, result });
        });
    }
}

/// What happens next. Cancel safe.
async fn next_internal_event(
    internal_events: &mut mpsc::UnboundedReceiver<InternalEvent>,
    hard_timeout: Option<(u64, Instant)>,
) -> InternalEvent {
    let timeout = async {
        match hard_timeout {
            Some((generation, at)) => {
                tokio::time::sleep_until(at.into()).await;
                InternalEvent::HardTimeout { generation }
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Some(internal_event) = internal_events.recv() => internal_event,
        internal_event = timeout => internal_event,
    }
}

/// Docker's exit code for a container whose end nobody saw.
pub(crate) fn unseen_exit() -> Exit {
    Exit {
        code: 255,
        signal: None,
        oom_killed: false,
    }
}
