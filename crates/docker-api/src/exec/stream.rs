//! The bytes between a client and a process, in Docker's raw stream: without a terminal, output comes in frames (one byte for the stream,
//! three zero bytes, the length as u32 in big-endian, then the bytes); with one, as it is.
//!
//! Nothing is read that cannot be passed on: a slow client slows the process, and one [`CHUNK`] is all that is held. A client that has gone
//! slows nothing: the process runs on, and its output is dropped, as with Docker.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use wharf_engine::Streams;

/// Most output bytes read, and input bytes held, at a time.
const CHUNK: usize = 32 * 1024;
/// Reads of one stream before the other has its turn.
const TURN: usize = 16;
const HEADER: usize = 8;
/// How long output is waited for after the end of the process: others may hold its streams. Docker's.
const LINGER: Duration = Duration::from_secs(2);
/// What pipes can hold at most (pipe(7)): what is still read when that time is over.
const LEFT: usize = 1 << 20;
/// What a terminal reads as the end of input (^D).
const END_OF_TRANSMISSION: u8 = 4;

/// Which streams the client wants.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Attached {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// Carries until the process has ended (`exit`) and its output is read; then ends the client's stream. Without a client, output is dropped.
pub(super) async fn carry(
    streams: Streams,
    attached: Attached,
    client: Option<impl AsyncRead + AsyncWrite + Unpin>,
    exit: impl Future<Output = ()>,
) -> io::Result<()> {
    let raw = matches!(streams, Streams::Terminal(_));
    let (sink, sources) = split(streams)?;
    let Some(client) = client else {
        Outputs::new(sources, raw, attached, None::<tokio::io::DuplexStream>)
            .run(exit)
            .await;
        return Ok(());
    };
    let (mut from, to) = tokio::io::split(client);
    let mut outputs = Outputs::new(sources, raw, attached, Some(to));
    let input = async {
        if let Some(sink) = sink
            && attached.stdin
        {
            feed(&mut from, sink).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = outputs.run(exit) => {}
        () = input => {}
    }
    if let Some(to) = outputs.client {
        end(from.unsplit(to)).await;
    }
    Ok(())
}

/// Passes input on until its end or the client's. What a process does not take any more is dropped, so that a client that writes before it
/// reads goes on.
async fn feed(from: &mut (impl AsyncRead + Unpin), sink: Sink) {
    let mut sink = Some(sink);
    let mut bytes = vec![0; CHUNK];
    loop {
        // An error is the client's end as well.
        let length = from.read(&mut bytes).await.unwrap_or(0);
        if length == 0 {
            break;
        }
        if let Some(open) = &mut sink
            && open.to.write_all(&bytes[..length]).await.is_err()
        {
            sink = None;
        }
    }
    if let Some(sink) = sink {
        sink.end().await;
    }
}

/// Where input goes.
struct Sink {
    to: pipe::Sender,
    is_terminal: bool,
}

impl Sink {
    /// The end of input: a pipe is closed; a terminal is told as by a keyboard, since closing it would hang up.
    async fn end(mut self) {
        if self.is_terminal {
            // One that has ended needs no word.
            let _ = self.to.write_all(&[END_OF_TRANSMISSION]).await;
        }
    }
}

/// A terminal is no pipe, but is read and written like one.
fn split(streams: Streams) -> io::Result<(Option<Sink>, [Option<pipe::Receiver>; 2])> {
    Ok(match streams {
        Streams::Null => (None, [None, None]),
        Streams::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            let sink = |to| Sink {
                to,
                is_terminal: false,
            };
            let stdin = stdin.map(pipe::Sender::from_owned_fd).transpose()?;
            let source = |fd| pipe::Receiver::from_owned_fd(fd).map(Some);
            (stdin.map(sink), [source(stdout)?, source(stderr)?])
        }
        Streams::Terminal(terminal) => {
            let sink = Sink {
                to: pipe::Sender::from_owned_fd_unchecked(terminal.try_clone()?.into())?,
                is_terminal: true,
            };
            let source = pipe::Receiver::from_owned_fd_unchecked(terminal.into())?;
            (Some(sink), [Some(source), None])
        }
    })
}

/// Both outputs of a process on their way to a client.
struct Outputs<W> {
    sources: [Option<pipe::Receiver>; 2],
    wanted: [bool; 2],
    /// A terminal's bytes have no header.
    raw: bool,
    /// `None`: it has gone.
    client: Option<W>,
}

impl<W: AsyncWrite + Unpin> Outputs<W> {
    fn new(
        sources: [Option<pipe::Receiver>; 2],
        raw: bool,
        attached: Attached,
        client: Option<W>,
    ) -> Self {
        Outputs {
            raw,
            wanted: [attached.stdout, attached.stderr],
            sources,
            client,
        }
    }

    /// Until the process has ended and both streams, too; but not longer than [`LINGER`] for the streams.
    async fn run(&mut self, exit: impl Future<Output = ()>) {
        tokio::pin!(exit);
        let mut exited = false;
        let overdue = tokio::time::sleep(LINGER);
        tokio::pin!(overdue);
        loop {
            let [out, err] = &self.sources;
            if exited && out.is_none() && err.is_none() {
                return;
            }
            let ready = tokio::select! {
                () = readable(out.as_ref()), if out.is_some() => 0,
                () = readable(err.as_ref()), if err.is_some() => 1,
                () = &mut exit, if !exited => {
                    exited = true;
                    overdue.as_mut().reset(tokio::time::Instant::now() + LINGER);
                    continue;
                }
                () = &mut overdue, if exited => {
                    self.pass_on(0, LEFT / CHUNK).await;
                    return self.pass_on(1, LEFT / CHUNK).await;
                }
            };
            self.pass_on(ready, TURN).await;
        }
    }

    /// Reads what is there, at most so many times.
    async fn pass_on(&mut self, index: usize, times: usize) {
        // Allocated only while there is something to read: most processes are silent most of the time.
        let mut bytes = vec![0; HEADER + CHUNK];
        for _ in 0..times {
            let Some(source) = &self.sources[index] else {
                return;
            };
            match source.try_read(&mut bytes[HEADER..]) {
                Ok(0) => self.sources[index] = None,
                Ok(length) => self.send(index, &mut bytes[..HEADER + length]).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // EIO: no process has the terminal any more (pty(7)).
                Err(_) if self.raw => self.sources[index] = None,
                Err(error) => {
                    tracing::warn!(%error, "output of an exec cannot be read");
                    self.sources[index] = None;
                }
            }
        }
    }

    /// `bytes` begin with room for a header.
    async fn send(&mut self, index: usize, bytes: &mut [u8]) {
        let Some(client) = self.client.as_mut().filter(|_| self.wanted[index]) else {
            return;
        };
        let frame = if self.raw {
            &bytes[HEADER..]
        } else {
            put_header(bytes, index);
            bytes
        };
        if client.write_all(frame).await.is_err() {
            self.client = None;
        }
    }
}

async fn readable(source: Option<&pipe::Receiver>) {
    if let Some(source) = source {
        // An error shows again in the read that follows.
        let _ = source.readable().await;
    }
}

fn put_header(bytes: &mut [u8], index: usize) {
    let length = u32::try_from(bytes.len() - HEADER).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&[1 + u8::from(index == 1), 0, 0, 0]);
    bytes[4..HEADER].copy_from_slice(&length.to_be_bytes());
}

/// A short text as the whole output: why there is no process.
pub(super) async fn say(
    text: &str,
    is_error: bool,
    raw: bool,
    mut client: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(text.as_bytes());
    put_header(&mut bytes, usize::from(is_error));
    let frame = if raw { &bytes[HEADER..] } else { &bytes };
    client.write_all(frame).await?;
    end(client).await;
    Ok(())
}

/// Ends the output. With input unread, closing would be a reset, and the client might not get to the end of the output: it closes when it has.
async fn end(mut client: impl AsyncRead + AsyncWrite + Unpin) {
    if client.shutdown().await.is_ok() {
        let mut rest = [0; 4096];
        while client.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    }
}
