//! One connection to the spawner: a task owns the socket, sends what callers queue, and hands
//! replies and exits to those who wait.
//!
//! Must not: find a spawner, or replace a connection that broke.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::exit::Exit;
use crate::frame::{Arrived, Frame, Inbox, Lost as LostInTransit, Outbox, parse};
use crate::spawner::protocol::{Message, ReplyBody, Request, RequestBody};
use crate::spawner::{SpawnError, SpawnerConfig};

/// One connection.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// The spawner's own process number.
    pub(super) pid: u32,
    pub(super) queue: mpsc::UnboundedSender<Frame>,
    pub(super) state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    requests: u64,
    pending: HashMap<u64, oneshot::Sender<(ReplyBody, Vec<OwnedFd>)>>,
    pub(super) exits: HashMap<String, watch::Sender<Option<Exit>>>,
    /// Ends of processes inside containers, while the daemon has a handle to them.
    pub(super) exec_exits: HashMap<String, watch::Sender<Option<Exit>>>,
    /// Processes whose caller gave up before it learnt of them: forgotten when they have ended.
    unwanted: HashSet<String>,
    pub(super) lost: Option<Lost>,
}

/// Why a connection is gone.
#[derive(Debug, Clone)]
pub(super) enum Lost {
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

pub(super) fn failed(text: impl std::fmt::Display) -> SpawnError {
    SpawnError::Spawner(text.to_string())
}

/// The data is whole after every statement, so a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn unexpected(body: ReplyBody) -> SpawnError {
    match body {
        ReplyBody::Failed { message } => failed(message),
        ReplyBody::Exhausted { message } => SpawnError::Exhausted(message),
        other => failed(format!("unexpected reply {other:?}")),
    }
}

impl Link {
    pub(super) fn usable(self) -> Result<Option<Link>, SpawnError> {
        let lost = lock(&self.state).lost.clone();
        match lost {
            None => Ok(Some(self)),
            Some(Lost::Broken(_)) => Ok(None),
            Some(lost) => Err(failed(lost)),
        }
    }

    pub(super) fn lost_error(&self, id: &str) -> SpawnError {
        match &lock(&self.state).lost {
            Some(lost) => failed(lost),
            None => failed(format!("process {id} was forgotten")),
        }
    }

    pub(super) async fn call(
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

    pub(super) async fn done(&self, body: RequestBody) -> Result<(), SpawnError> {
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
    pub(super) fn discard(&mut self, id: String) -> RequestBody {
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

    pub(super) fn frame(
        &mut self,
        body: RequestBody,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<(u64, Frame)> {
        self.requests += 1;
        let number = self.requests;
        Ok((number, Frame::new(&Request { number, body }, descriptors)?))
    }
}

/// What came with a message.
pub(super) type Descriptors = Result<Vec<OwnedFd>, LostInTransit>;

/// The spawner's socket with its buffers.
pub(super) struct Wire {
    socket: UnixStream,
    inbox: Inbox,
    pub(super) outbox: Outbox,
}

impl Wire {
    pub(super) async fn connect(config: &SpawnerConfig) -> io::Result<Wire> {
        let socket = UnixStream::connect(&config.socket).await?;
        Ok(Wire {
            socket,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
        })
    }

    /// The next message. Cancel-safe: bytes stay in the inbox.
    pub(super) async fn receive(&mut self) -> io::Result<(Message, Descriptors)> {
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
    pub(super) async fn flush(&mut self) -> io::Result<()> {
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
pub(super) async fn drive(
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
