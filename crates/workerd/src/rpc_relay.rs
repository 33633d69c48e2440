//! A Cap'n Proto connection from one script's process to whatever process of another script is current.
//!
//! Owns: when calls are held and when the far end is exchanged. Must not: change messages.
//!
//! ```text
//!   Joined ──draining──> Leaving ──idle──> Apart ──a message waits──> Joined (to the next process)
//! ```
//! `Joined`: messages pass; a lease is held until the connection is idle: no call in flight, no capability held. `Leaving`: what
//! belongs to calls in flight passes, what would begin something new is held. `Apart`: connected to nothing.
//!
//! The exchange works because an idle connection has no state but its bootstrap capability: workerd asks for that once, at the start
//! of the connection, and makes every new call on it. The relay repeats that first exchange with the next process; the answer must
//! be the same, byte for byte. Where this does not hold, the connection is closed, and the caller sees a lost connection.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use wharf_bindings::Entry;

use crate::Lease;
use crate::config::CONNECT_HOST;
use crate::rpc::{Books, Head, Lost, Message, On, Splitter};
use crate::script::Script;

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
    lease: Lease,
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
            lease,
        })
    }
}

/// The connection's first exchange.
#[derive(Default)]
struct Greeting {
    question: Option<u32>,
    bootstrap: Vec<u8>,
    answer: Vec<u8>,
    finish: Vec<u8>,
}

impl Greeting {
    fn caller_sent(&mut self, message: &Message) {
        match message.head {
            Head::Bootstrap(id) if self.question.is_none() => {
                self.question = Some(id);
                self.bootstrap.clone_from(&message.bytes);
            }
            Head::Finish(id) if self.question == Some(id) && self.finish.is_empty() => {
                self.finish.clone_from(&message.bytes);
            }
            _ => {}
        }
    }

    fn callee_sent(&mut self, message: &Message) {
        if let Head::Return(id) = message.head
            && self.question == Some(id)
            && self.answer.is_empty()
        {
            self.answer.clone_from(&message.bytes);
        }
    }

    /// Repeats the exchange with another process.
    async fn repeat(&self, stream: &mut UnixStream) -> Result<(), Failure> {
        if self.bootstrap.is_empty() || self.answer.is_empty() || self.finish.is_empty() {
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
    /// The caller's direction.
    splitter: Splitter,
    books: Books,
    greeting: Greeting,
    leaving: bool,
    /// What waits for the next process, and the questions in it.
    held: Vec<Message>,
    held_questions: HashSet<u32>,
}

impl State {
    /// Takes a message from the caller; it comes back if it may pass.
    fn sort(&mut self, message: Message) -> Option<Message> {
        if self.leaving && self.begins(message.head) {
            if let Head::Bootstrap(id) | Head::Call(id, _) = message.head {
                self.held_questions.insert(id);
            }
            self.held.push(message);
            return None;
        }
        self.pass(&message);
        Some(message)
    }

    fn pass(&mut self, message: &Message) {
        self.books.caller_sent(message);
        self.greeting.caller_sent(message);
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
    let mut far = far;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let over = joined(far, &script, &mut state, &mut from_caller, &mut to_caller).await?;
        if over {
            return Ok(to_caller.shutdown().await?);
        }
        // Apart: everything that comes now is for the next process.
        while state.held.is_empty() {
            let n = from_caller.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            state.splitter.feed(&buffer[..n], &mut state.held)?;
        }
        let lease = script.acquire().await?;
        let socket = lease
            .entry(&entry)
            .ok_or(Failure::Other("the entrypoint is no longer exported"))?;
        far = Far::open(lease, &socket).await?;
        state.greeting.repeat(&mut far.stream).await?;
        state.leaving = false;
        state.held_questions.clear();
        for message in std::mem::take(&mut state.held) {
            state.pass(&message);
            far.stream.write_all(&message.bytes).await?;
        }
    }
}

/// Carries messages to one process; true when the connection is over, false when it is to be joined to the next process.
async fn joined(
    far: Far,
    script: &Arc<Script>,
    state: &mut State,
    from_caller: &mut (impl AsyncRead + Unpin),
    to_caller: &mut (impl AsyncWrite + Unpin),
) -> Result<bool, Failure> {
    let Far {
        stream,
        lease,
        process,
        draining,
        closing,
    } = far;
    tokio::pin!(draining, closing);
    let mut lease = Some(lease);
    let (mut from_callee, mut to_callee) = stream.into_split();
    let mut splitter = Splitter::default();
    let (mut ask, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    // The connection was opened for a call, whose lease is held until that has come and gone.
    let mut used = !state.books.idle();
    let mut messages = Vec::new();
    loop {
        let idle = used && state.books.idle();
        if idle {
            if state.leaving {
                return Ok(false);
            }
            lease = None;
        }
        tokio::select! {
            read = from_caller.read(&mut ask) => {
                let n = read?;
                if n == 0 { return Ok(true) }
                state.splitter.feed(&ask[..n], &mut messages)?;
                if messages.is_empty() { continue }
                used = true;
                if lease.is_none() && !state.leaving {
                    lease = script.join(process);
                    // It is being replaced.
                    state.leaving = lease.is_none();
                }
                for message in messages.drain(..) {
                    if let Some(message) = state.sort(message) {
                        to_callee.write_all(&message.bytes).await?;
                    }
                }
            }
            read = from_callee.read(&mut answer) => {
                let n = match read {
                    Ok(n) => n,
                    Err(_) if idle => return Ok(false),
                    Err(error) => return Err(error.into()),
                };
                // The process has ended; between calls nobody needs to know.
                if n == 0 { return Ok(!idle) }
                if let Some(lease) = &lease {
                    lease.answered();
                }
                splitter.feed(&answer[..n], &mut messages)?;
                for message in messages.drain(..) {
                    state.books.callee_sent(&message);
                    state.greeting.callee_sent(&message);
                }
                to_caller.write_all(&answer[..n]).await?;
            }
            () = &mut draining, if !state.leaving => state.leaving = true,
            () = &mut closing => return Ok(!idle),
        }
    }
}
