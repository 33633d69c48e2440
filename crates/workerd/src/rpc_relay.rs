//! A Cap'n Proto connection from one script's process to whatever process of another script is current.
//!
//! Owns: when calls are held and when the far end is exchanged. Must not: change messages.
//!
//! ```text
//!   Joined ──draining──> Leaving ──nothing in flight, and quiet──> Apart ──a message waits──> Joined (to the next process)
//! ```
//! `Joined`: bytes pass; a lease is held while calls are in flight and until the connection is quiet. `Leaving`: what belongs to calls in flight passes, what would
//! begin something new is held. `Apart`: connected to nothing.
//!
//! The exchange works because a quiet connection has no state but its bootstrap capability: workerd asks for that once, at the start
//! of the connection, and makes every new call on it. The relay repeats that first exchange with the next process; the answer must
//! be the same, byte for byte. Where this does not hold, the connection is closed, and the caller sees a lost connection.

use crate::Lease;
use crate::config::{CONNECT_HOST, Entry};
use crate::rpc::{Calls, Head, Lost, On, Piece, Splitter};
use crate::script::Script;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// After the last call, the messages that let go of its capabilities still come; the connection is quiet after this.
const QUIET_MS: u64 = 20;
/// A larger first exchange is not kept.
const GREETING_BYTES: usize = 4096;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Script(#[from] crate::WorkerdError),
    #[error("{0}")]
    Other(&'static str),
}

/// A connection to a process, past the `CONNECT`.
pub(crate) struct Far {
    stream: UnixStream,
    lease: Option<Lease>,
    process: u64,
    draining: tokio_util::sync::WaitForCancellationFutureOwned,
    closing: tokio_util::sync::WaitForCancellationFutureOwned,
}

impl Far {
    /// Connects.
    pub(crate) async fn open(lease: Lease, socket: &Path) -> Result<Self, Failure> {
        let mut stream = UnixStream::connect(socket).await?;
        let request = format!("CONNECT {CONNECT_HOST} HTTP/1.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // Up to the empty line, not a byte further.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > GREETING_BYTES {
                return Err(Failure::Other("workerd's answer does not end"));
            }
            head.push(stream.read_u8().await?);
        }
        if !head.starts_with(b"HTTP/1.1 200 ") {
            return Err(Failure::Other("workerd refused the connection"));
        }
        Ok(Self {
            stream,
            process: lease.machine_process(),
            draining: lease.draining(),
            closing: lease.closing(),
            lease: Some(lease),
        })
    }
}

/// The connection's first exchange.
#[derive(Default)]
struct Greeting {
    bootstrap: Vec<u8>,
    question: Option<u32>,
    answer: Vec<u8>,
    answered: bool,
    finish: Vec<u8>,
    finished: bool,
    /// Where the pieces that follow belong.
    recording: Option<Part>,
}

#[derive(Clone, Copy)]
enum Part {
    Bootstrap,
    Answer,
    Finish,
}

impl Greeting {
    fn caller_sent(&mut self, piece: &Piece) {
        match piece.head {
            Some(Head::Bootstrap(id)) if self.question.is_none() => {
                self.question = Some(id);
                self.recording = Some(Part::Bootstrap);
            }
            Some(Head::Finish(id)) if self.question == Some(id) && !self.finished => {
                self.finished = true;
                self.recording = Some(Part::Finish);
            }
            Some(_) => self.recording = None,
            None => {}
        }
        match self.recording {
            Some(Part::Bootstrap) => self.bootstrap.extend_from_slice(&piece.bytes),
            Some(Part::Finish) => self.finish.extend_from_slice(&piece.bytes),
            Some(Part::Answer) | None => {}
        }
    }

    fn callee_sent(&mut self, piece: &Piece) {
        if let Some(head) = piece.head {
            self.recording = match head {
                Head::Return(id) if self.question == Some(id) && !self.answered => {
                    self.answered = true;
                    Some(Part::Answer)
                }
                _ => None,
            };
        }
        if matches!(self.recording, Some(Part::Answer)) {
            self.answer.extend_from_slice(&piece.bytes);
        }
    }

    /// Repeats the exchange with another process.
    async fn repeat(&self, stream: &mut UnixStream) -> Result<(), Failure> {
        let complete = self.answered && self.finished && !self.bootstrap.is_empty();
        if !complete || self.answer.len() > GREETING_BYTES {
            return Err(Failure::Other("the connection's start is not known"));
        }
        stream.write_all(&self.bootstrap).await?;
        let mut answer = vec![0; self.answer.len()];
        stream.read_exact(&mut answer).await?;
        if answer != self.answer {
            return Err(Failure::Other("the next process answers differently"));
        }
        stream.write_all(&self.finish).await?;
        Ok(())
    }
}

/// Everything of one connection but the streams.
#[derive(Default)]
struct State {
    calls: Calls,
    greeting: Greeting,
    leaving: bool,
    /// What waits for the next process, and the questions in it.
    held: Vec<u8>,
    held_questions: HashSet<u32>,
    /// Whether the message that is just passing is held.
    holding: bool,
}

impl State {
    /// Sorts a piece from the caller: true when it may pass.
    fn sort(&mut self, piece: &Piece) -> bool {
        if let Some(head) = piece.head {
            self.holding = self.leaving && self.begins(head);
            if self.holding {
                if let Head::Bootstrap(id) | Head::Call(id, _) = head {
                    self.held_questions.insert(id);
                }
            } else {
                self.calls.client_sent(head);
            }
        }
        if self.holding {
            self.held.extend_from_slice(&piece.bytes);
        } else {
            self.greeting.caller_sent(piece);
        }
        !self.holding
    }

    /// Whether a message begins something new or belongs to what is held.
    fn begins(&self, head: Head) -> bool {
        match head {
            Head::Bootstrap(_) => true,
            // The bootstrap capability is the first one given out, which has number 0.
            Head::Call(_, On::Given(capability)) => capability == 0,
            Head::Call(_, On::AnswerTo(question)) | Head::Finish(question) => {
                self.held_questions.contains(&question)
            }
            Head::Return(_) | Head::Other => false,
        }
    }
}

/// Carries a connection until either side is done with it.
pub(crate) async fn carry(
    caller: impl AsyncRead + AsyncWrite,
    script: Arc<Script>,
    entry: Entry,
    far: Far,
) -> Result<(), Failure> {
    let (mut from_caller, mut to_caller) = tokio::io::split(caller);
    let mut state = State::default();
    let mut splitter = Splitter::default();
    let mut far = Some(far);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match far.take() {
            Some(joined) => {
                let ended = stay(
                    joined,
                    &script,
                    &mut state,
                    &mut splitter,
                    &mut from_caller,
                    &mut to_caller,
                )
                .await?;
                if ended {
                    return Ok(to_caller.shutdown().await?);
                }
            }
            None => {
                if state.held.is_empty() {
                    let n = from_caller.read(&mut buffer).await?;
                    if n == 0 {
                        return Ok(());
                    }
                    let mut pieces = Vec::new();
                    splitter.feed(&buffer[..n], &mut pieces)?;
                    // Everything that comes now is for the next process.
                    for piece in pieces {
                        state.held.extend_from_slice(&piece.bytes);
                        state.calls_of_held(&piece);
                    }
                    continue;
                }
                let lease = script.acquire().await?;
                let socket = lease
                    .entry(&entry)
                    .ok_or(Failure::Other("the entrypoint is no longer exported"))?;
                let mut next = Far::open(lease, &socket).await?;
                state.greeting.repeat(&mut next.stream).await?;
                next.stream
                    .write_all(&std::mem::take(&mut state.held))
                    .await?;
                state.join();
                far = Some(next);
            }
        }
    }
}

impl State {
    /// While connected to nothing: notes questions, so that they count once they are sent.
    fn calls_of_held(&mut self, piece: &Piece) {
        if let Some(Head::Bootstrap(id) | Head::Call(id, _)) = piece.head {
            self.held_questions.insert(id);
        }
        if let Some(Head::Finish(id)) = piece.head {
            self.held_questions.remove(&id);
        }
    }

    /// What was held is sent: it is in flight now.
    fn join(&mut self) {
        self.leaving = false;
        self.holding = false;
        for id in self.held_questions.drain() {
            self.calls.client_sent(Head::Call(id, On::Given(0)));
        }
    }
}

/// Carries bytes to one process; true when the connection is over, false when it is to be joined to the next process.
async fn stay(
    far: Far,
    script: &Arc<Script>,
    state: &mut State,
    splitter: &mut Splitter,
    from_caller: &mut (impl AsyncRead + Unpin),
    to_caller: &mut (impl AsyncWrite + Unpin),
) -> Result<bool, Failure> {
    let Far {
        stream,
        mut lease,
        process,
        draining,
        closing,
    } = far;
    tokio::pin!(draining, closing);
    let (mut from_callee, mut to_callee) = stream.into_split();
    let mut back = Splitter::default();
    let (mut ask, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    // The connection was opened for a call, whose lease is held until that has come and gone.
    let mut used = state.calls.in_flight();
    let mut pieces = Vec::new();
    let quiet = Duration::from_millis(QUIET_MS);
    loop {
        let busy = !used || state.calls.in_flight();
        tokio::select! {
            read = from_caller.read(&mut ask) => {
                let n = read?;
                if n == 0 { return Ok(true) }
                used = true;
                splitter.feed(&ask[..n], &mut pieces)?;
                if lease.is_none() && !state.leaving {
                    lease = script.join(process);
                    // It is being replaced.
                    state.leaving = lease.is_none();
                }
                for piece in pieces.drain(..) {
                    if state.sort(&piece) {
                        to_callee.write_all(&piece.bytes).await?;
                    }
                }
            }
            read = from_callee.read(&mut answer) => {
                let n = match read {
                    Ok(n) => n,
                    Err(_) if !busy => return Ok(false),
                    Err(error) => return Err(error.into()),
                };
                // The process has ended; between calls nobody needs to know.
                if n == 0 { return Ok(busy) }
                back.feed(&answer[..n], &mut pieces)?;
                for piece in pieces.drain(..) {
                    if let Some(head) = piece.head {
                        state.calls.server_sent(head);
                    }
                    state.greeting.callee_sent(&piece);
                }
                to_caller.write_all(&answer[..n]).await?;
            }
            () = &mut draining, if !state.leaving => state.leaving = true,
            () = tokio::time::sleep(quiet), if !busy && (state.leaving || lease.is_some()) => {
                if state.leaving { return Ok(false) }
                lease = None;
            }
            () = &mut closing => return Ok(busy),
        }
    }
}
