//! The daemon's handle.
//!
//! One task owns the socket: it sends what callers queue, and hands replies and exits to whoever waits. A connection that breaks
//! is made anew by the next [`Spawner::spawn`]; what ran under the broken one is ended, as its callers have been told so.

mod exec;

pub use exec::{ExecProcess, Streams, Terminal};

use super::process::READY;
use super::protocol::{Message, ReplyBody, Request, RequestBody, VERSION};
use super::{Exit, Process, SpawnError, SpawnerConfig, Survivor};
use crate::IdRanges;
use crate::cgroup::Usage;
use crate::frame::{Arrived, Frame, Inbox, Lost as LostInTransit, Outbox, parse};
use crate::spec::{ProcessSpec, SpawnFds};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

/// How often to look for a spawner, start one, and look again (one may be ending at the same time).
const ATTEMPTS: u32 = 200;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);
/// How long a freeze may take.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// Handle to the spawner process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spawner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: SpawnerConfig,
    link: Mutex<Link>,
    /// Held while a broken connection is replaced.
    reconnecting: tokio::sync::Mutex<()>,
}

/// One connection.
#[derive(Debug, Clone)]
struct Link {
    /// Of the spawner.
    pid: u32,
    queue: mpsc::UnboundedSender<Frame>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    requests: u64,
    pending: HashMap<u64, oneshot::Sender<(ReplyBody, Vec<OwnedFd>)>>,
    exits: HashMap<String, watch::Sender<Option<Exit>>>,
    /// Of processes inside containers, while the daemon has a handle to them.
    exec_exits: HashMap<String, watch::Sender<Option<Exit>>>,
    /// Processes whose caller gave up before it learnt of them: forgotten when they have ended.
    unwanted: HashSet<String>,
    lost: Option<Lost>,
}

/// Why a connection is gone.
#[derive(Debug, Clone)]
enum Lost {
    ShutDown,
    Replaced,
    Broken(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lost::ShutDown => f.write_str("it was shut down"),
            Lost::Replaced => f.write_str("another daemon has taken over its processes; two must not use the same data directory"),
            Lost::Broken(reason) => write!(f, "the connection to it is gone: {reason}"),
        }
    }
}

fn failed(text: impl std::fmt::Display) -> SpawnError {
    SpawnError::Spawner(text.to_string())
}

/// The data is whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spawner {
    /// Connects to the spawner that listens at `config.socket`, or starts one. Also removes what a spawner that died left:
    /// every process in the cgroup is killed, empty cgroups are removed.
    pub async fn start(config: SpawnerConfig) -> Result<(Spawner, Vec<Survivor>), SpawnError> {
        let socket = std::path::absolute(&config.socket).map_err(failed)?;
        let config = SpawnerConfig { socket, ..config };
        let (link, survivors) = connect_or_start(&config).await?;
        let shared = Shared {
            config,
            link: Mutex::new(link),
            reconnecting: tokio::sync::Mutex::new(()),
        };
        Ok((
            Spawner {
                shared: Arc::new(shared),
            },
            survivors,
        ))
    }

    /// The spawner's own process number.
    pub fn pid(&self) -> u32 {
        self.current().pid
    }

    /// Starts a process; returns when `execve` has succeeded or failed. When the caller gives up meanwhile, the process is ended.
    pub async fn spawn(&self, spec: &ProcessSpec, fds: SpawnFds) -> Result<Process, SpawnError> {
        let link = self.live().await?;
        let (netns, sys, image) = (fds.netns.is_some(), fds.sys.is_some(), fds.image.is_some());
        let (inherit, inherited): (Vec<i32>, Vec<OwnedFd>) = fds.inherit.into_iter().unzip();
        let descriptors = fds
            .netns
            .into_iter()
            .chain(fds.sys)
            .chain(fds.disk)
            .chain(fds.image)
            .chain(inherited)
            .collect();
        let body = RequestBody::Spawn {
            spec: Box::new(spec.clone()),
            netns,
            sys,
            image,
            inherit,
        };
        match link.call(body, descriptors).await? {
            (
                ReplyBody::Spawned {
                    id,
                    pid,
                    not_restored,
                },
                streams,
            ) => Ok(Process {
                not_restored,
                ..process(id, pid, streams)?
            }),
            (ReplyBody::Refused { message, exit_code }, _) => {
                Err(SpawnError::Refused { message, exit_code })
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Waits for the end of a process; any number of waiters, also after the end until [`Spawner::forget`].
    /// For a container, its whole cgroup is dead when this returns.
    pub async fn wait(&self, id: &str) -> Result<Exit, SpawnError> {
        let link = self.current();
        let mut exit = {
            let state = lock(&link.state);
            if let Some(lost) = &state.lost {
                return Err(failed(lost));
            }
            state
                .exits
                .get(id)
                .ok_or_else(|| failed(format!("there is no process {id}")))?
                .subscribe()
        };
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => Ok(exit),
            _ => Err(link.lost_error(id)),
        }
    }

    /// Sends a signal to the process (by pidfd). `Ok(false)` when it has ended.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<bool, SpawnError> {
        match self
            .current()
            .call(
                RequestBody::Signal {
                    id: id.to_owned(),
                    signal,
                },
                Vec::new(),
            )
            .await?
        {
            (ReplyBody::Signalled(found), _) => Ok(found),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Kills every process of its cgroup.
    pub async fn kill(&self, id: &str) -> Result<(), SpawnError> {
        self.current()
            .done(RequestBody::Kill { id: id.to_owned() })
            .await
    }

    /// What the process and all that it started has used: now, or, after the end until [`Spawner::forget`], altogether.
    pub async fn usage(&self, id: &str) -> Result<Usage, SpawnError> {
        match self
            .current()
            .call(RequestBody::Usage { id: id.to_owned() }, Vec::new())
            .await?
        {
            (ReplyBody::Usage(usage), _) => Ok(*usage),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Stops every process of its cgroup where it is, until [`Spawner::thaw`], its end, or the end of this connection. Returns when
    /// all stand still; one that hangs in the kernel makes it an error after five seconds, and then they run on.
    pub async fn freeze(&self, id: &str) -> Result<(), SpawnError> {
        let start = tokio::time::Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            let body = RequestBody::Freeze { id: id.to_owned() };
            match self.current().call(body, Vec::new()).await? {
                (ReplyBody::Frozen(true), _) => return Ok(()),
                (ReplyBody::Frozen(false), _) if start.elapsed() < FREEZE_LIMIT => {}
                (ReplyBody::Frozen(false), _) => {
                    self.thaw(id).await?;
                    return Err(failed(format!("the processes of {id} do not stand still")));
                }
                (other, _) => return Err(unexpected(other)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Lets frozen processes run again; of no effect on others.
    pub async fn thaw(&self, id: &str) -> Result<(), SpawnError> {
        self.current()
            .done(RequestBody::Thaw { id: id.to_owned() })
            .await
    }

    /// Lets go of an ended process: its exit is dropped, its cgroup removed.
    pub async fn forget(&self, id: &str) -> Result<(), SpawnError> {
        let link = self.current();
        link.done(RequestBody::Forget { id: id.to_owned() }).await?;
        lock(&link.state).exits.remove(id);
        Ok(())
    }

    /// Ends every process and the spawner itself; nothing is left.
    pub async fn shutdown(&self) -> Result<(), SpawnError> {
        let link = self.current();
        link.done(RequestBody::Shutdown).await?;
        lock(&link.state).lost = Some(Lost::ShutDown);
        Ok(())
    }

    fn current(&self) -> Link {
        lock(&self.shared.link).clone()
    }

    /// A connection that works: the current one, or a new one in place of a broken one.
    async fn live(&self) -> Result<Link, SpawnError> {
        if let Some(link) = self.current().usable()? {
            return Ok(link);
        }
        let _alone = self.shared.reconnecting.lock().await;
        if let Some(link) = self.current().usable()? {
            return Ok(link);
        }
        tracing::warn!("the connection to the spawner is gone; connecting anew");
        let (link, survivors) = connect_or_start(&self.shared.config).await?;
        for survivor in survivors {
            let mut state = lock(&link.state);
            let body = state.discard(survivor.process.id);
            let (_, frame) = state.frame(body, Vec::new()).map_err(failed)?;
            link.queue
                .send(frame)
                .map_err(|_| failed("the connection's task has ended"))?;
        }
        *lock(&self.shared.link) = link.clone();
        Ok(link)
    }
}

fn process(id: String, pid: i32, streams: Vec<OwnedFd>) -> Result<Process, SpawnError> {
    let mut streams = streams.into_iter();
    let (Some(stdout), Some(stderr)) = (streams.next(), streams.next()) else {
        return Err(failed("it sent no output descriptors"));
    };
    Ok(Process {
        id,
        pid,
        stdout,
        stderr,
        stdin: streams.next(),
        not_restored: None,
    })
}

fn unexpected(body: ReplyBody) -> SpawnError {
    match body {
        ReplyBody::Failed { message } => failed(message),
        ReplyBody::Exhausted { message } => SpawnError::Exhausted(message),
        other => failed(format!("unexpected reply {other:?}")),
    }
}

impl Link {
    fn usable(self) -> Result<Option<Link>, SpawnError> {
        let lost = lock(&self.state).lost.clone();
        match lost {
            None => Ok(Some(self)),
            Some(Lost::Broken(_)) => Ok(None),
            Some(lost) => Err(failed(lost)),
        }
    }

    fn lost_error(&self, id: &str) -> SpawnError {
        match &lock(&self.state).lost {
            Some(lost) => failed(lost),
            None => failed(format!("process {id} was forgotten")),
        }
    }

    async fn call(
        &self,
        body: RequestBody,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(ReplyBody, Vec<OwnedFd>), SpawnError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            if let Some(lost) = &state.lost {
                return Err(failed(lost));
            }
            let (number, frame) =
                state
                    .frame(body, descriptors)
                    .map_err(|e| SpawnError::Refused {
                        message: e.to_string(),
                        exit_code: 125,
                    })?;
            state.pending.insert(number, sender);
            self.queue
                .send(frame)
                .map_err(|_| failed("the connection's task has ended"))?;
        }
        receiver.await.map_err(|_| match &lock(&self.state).lost {
            Some(lost) => failed(lost),
            None => failed("the connection's task has ended"),
        })
    }

    async fn done(&self, body: RequestBody) -> Result<(), SpawnError> {
        match self.call(body, Vec::new()).await? {
            (ReplyBody::Done, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }
}

impl State {
    /// One message of the spawner. May call for a request of our own.
    fn handle(
        &mut self,
        message: Message,
        descriptors: Descriptors,
    ) -> Result<Option<RequestBody>, Lost> {
        match message {
            Message::Reply { number, body } => {
                let descriptors = match descriptors {
                    Ok(descriptors) => descriptors,
                    Err(lost) => return Ok(self.started_in_vain(number, body, lost)),
                };
                // Known before its exit can arrive.
                if let ReplyBody::Spawned { id, .. } = &body {
                    self.exits.insert(id.clone(), watch::Sender::new(None));
                }
                if let ReplyBody::ExecStarted { id, .. } = &body {
                    self.exec_exits.insert(id.clone(), watch::Sender::new(None));
                }
                let unheard = self
                    .pending
                    .remove(&number)
                    .and_then(|sender| sender.send((body, descriptors)).err());
                Ok(match unheard {
                    Some((ReplyBody::Spawned { id, .. }, _)) => Some(self.discard(id)),
                    Some((ReplyBody::ExecStarted { id, .. }, _)) => {
                        self.exec_exits.remove(&id);
                        let signal = libc::SIGKILL;
                        Some(RequestBody::SignalExec { id, signal })
                    }
                    _ => None,
                })
            }
            Message::Exited { id, exit } => {
                if let Some(sender) = self.exits.get(&id) {
                    sender.send_replace(Some(exit));
                }
                if self.unwanted.remove(&id) {
                    self.exits.remove(&id);
                    return Ok(Some(RequestBody::Forget { id }));
                }
                Ok(None)
            }
            Message::ExecExited { id, exit } => {
                if let Some(sender) = self.exec_exits.get(&id) {
                    sender.send_replace(Some(exit));
                }
                Ok(None)
            }
            Message::Replaced => Err(Lost::Replaced),
            Message::Welcome { .. } | Message::Survivor { .. } => {
                Err(Lost::Broken("it welcomed twice".to_owned()))
            }
        }
    }

    /// A reply without its descriptors: the caller is told, and the process that it cannot have
    /// ends.
    fn started_in_vain(
        &mut self,
        number: u64,
        body: ReplyBody,
        lost: LostInTransit,
    ) -> Option<RequestBody> {
        if let Some(caller) = self.pending.remove(&number) {
            let message = format!("the daemon is {lost}");
            // The caller may have gone.
            let _ = caller.send((ReplyBody::Exhausted { message }, Vec::new()));
        }
        match body {
            ReplyBody::Spawned { id, .. } => {
                self.exits.insert(id.clone(), watch::Sender::new(None));
                Some(self.discard(id))
            }
            ReplyBody::ExecStarted { id, .. } => Some(RequestBody::SignalExec {
                id,
                signal: libc::SIGKILL,
            }),
            _ => None,
        }
    }

    /// What to ask so that a process that nobody waits for ends and is forgotten.
    fn discard(&mut self, id: String) -> RequestBody {
        if self
            .exits
            .get(&id)
            .is_some_and(|exit| exit.borrow().is_some())
        {
            self.exits.remove(&id);
            RequestBody::Forget { id }
        } else {
            self.unwanted.insert(id.clone());
            RequestBody::Kill { id }
        }
    }

    fn frame(&mut self, body: RequestBody, descriptors: Vec<OwnedFd>) -> io::Result<(u64, Frame)> {
        self.requests += 1;
        let number = self.requests;
        Ok((number, Frame::new(&Request { number, body }, descriptors)?))
    }
}

/// What came with a message.
type Descriptors = Result<Vec<OwnedFd>, LostInTransit>;

/// The spawner's socket with its buffers.
struct Wire {
    socket: UnixStream,
    inbox: Inbox,
    outbox: Outbox,
}

impl Wire {
    async fn connect(config: &SpawnerConfig) -> io::Result<Wire> {
        let socket = UnixStream::connect(&config.socket).await?;
        Ok(Wire {
            socket,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
        })
    }

    /// The next message. Cancel-safe: bytes stay in the inbox.
    async fn receive(&mut self) -> io::Result<(Message, Descriptors)> {
        loop {
            if let Some(Arrived {
                payload,
                descriptors,
            }) = self.inbox.next()?
            {
                return Ok((parse(&payload)?, descriptors));
            }
            self.socket.readable().await?;
            match self
                .socket
                .try_io(Interest::READABLE, || self.inbox.fill(self.socket.as_fd()))
            {
                Ok(true) => {}
                Ok(false) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends what waits. Cancel-safe: what is left stays in the outbox.
    async fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            self.socket.writable().await?;
            match self.socket.try_io(Interest::WRITABLE, || {
                self.outbox.flush(self.socket.as_fd())
            }) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a select over the wire and the queue brought.
enum Event {
    Received(io::Result<(Message, Descriptors)>),
    Queued(Option<Frame>),
}

/// The connection's task. It ends with the connection, or when the last handle is dropped.
async fn drive(
    mut wire: Wire,
    state: Arc<Mutex<State>>,
    mut queue: mpsc::UnboundedReceiver<Frame>,
) {
    let lost = loop {
        if let Err(error) = wire.flush().await {
            break Lost::Broken(error.to_string());
        }
        let event = tokio::select! {
            received = wire.receive() => Event::Received(received),
            frame = queue.recv() => Event::Queued(frame),
        };
        match event {
            Event::Received(Ok((message, descriptors))) => {
                let mut state = lock(&state);
                let next = state
                    .handle(message, descriptors)
                    .and_then(|body| match body {
                        Some(body) => state
                            .frame(body, Vec::new())
                            .map(Some)
                            .map_err(|e| Lost::Broken(e.to_string())),
                        None => Ok(None),
                    });
                match next {
                    Ok(frame) => wire.outbox.extend(frame.map(|(_, frame)| frame)),
                    Err(lost) => break lost,
                }
            }
            Event::Received(Err(error)) => break Lost::Broken(error.to_string()),
            Event::Queued(Some(frame)) => wire.outbox.push(frame),
            Event::Queued(None) => break Lost::ShutDown,
        }
    };
    let mut state = lock(&state);
    state.lost.get_or_insert(lost);
    // Dropping the senders wakes everybody who waits.
    state.pending.clear();
    state.exits.clear();
    state.exec_exits.clear();
}

async fn connect_or_start(config: &SpawnerConfig) -> Result<(Link, Vec<Survivor>), SpawnError> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match Wire::connect(config).await {
            Ok(wire) => match greet(wire).await {
                Ok(Some(greeted)) => return Ok(greeted),
                Ok(None) => last = "one of another version does not end".to_owned(),
                Err(error) => last = error.to_string(), // It was ending.
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                launch(config).await?;
                continue;
            }
            Err(error) => return Err(failed(format!("{}: {error}", config.socket.display()))),
        }
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
    }
    Err(failed(format!(
        "no connection at {}: {last}",
        config.socket.display()
    )))
}

/// The first messages. `Ok(None)`: it was of another version and has been asked to end.
async fn greet(mut wire: Wire) -> io::Result<Option<(Link, Vec<Survivor>)>> {
    wire.outbox.push(Frame::new(
        &Request {
            number: 0,
            body: RequestBody::Hello,
        },
        Vec::new(),
    )?);
    wire.flush().await?;
    let (
        Message::Welcome {
            version,
            pid,
            survivors: count,
        },
        _,
    ) = wire.receive().await?
    else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no welcome"));
    };
    if version != VERSION {
        tracing::warn!(
            version,
            "a spawner of another version runs; ending it and its processes"
        );
        wire.outbox.push(Frame::new(
            &Request {
                number: 0,
                body: RequestBody::Shutdown,
            },
            Vec::new(),
        )?);
        wire.flush().await?;
        while wire.receive().await.is_ok() {}
        return Ok(None);
    }
    let mut state = State::default();
    let mut survivors = Vec::new();
    for _ in 0..count {
        let (
            Message::Survivor {
                id,
                label,
                pid,
                exit,
            },
            streams,
        ) = wire.receive().await?
        else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no survivor"));
        };
        let mut streams = streams?;
        let disk = (streams.len() > 2).then(|| streams.remove(2));
        let process = process(id.clone(), pid, streams).map_err(io::Error::other)?;
        state.exits.insert(id, watch::Sender::new(exit));
        survivors.push(Survivor {
            label,
            process,
            exit,
            disk,
        });
    }
    let (sender, queue) = mpsc::unbounded_channel();
    let link = Link {
        pid,
        queue: sender,
        state: Arc::new(Mutex::new(state)),
    };
    tokio::spawn(drive(wire, Arc::clone(&link.state), queue));
    Ok(Some((link, survivors)))
}

/// Starts the executable and waits until the spawner listens.
async fn launch(config: &SpawnerConfig) -> Result<(), SpawnError> {
    let Some((program, arguments)) = config.command.split_first() else {
        return Err(failed("no command to start it with"));
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .arg(&config.socket)
        .arg(config.grace_ms.to_string())
        .arg(&config.cgroup_name)
        .arg(IdRanges::to_argument(config.ids))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env_clear()
        .spawn()
        .map_err(|e| failed(format!("starting {program}: {e}")))?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).await.map_err(failed)?;
    }
    child.wait().await.map_err(failed)?; // Only the process that detaches it; the spawner lives on.
    match said.trim() {
        READY => Ok(()),
        "" => Err(failed(format!("{program} ended without a word"))),
        reason => Err(failed(reason)),
    }
}
