//! The container's processes, as the agent outside wants them.
//!
//! Owns: the way between a process of the spawner and a stream of frames. Must not: keep a process
//! whose stream is gone.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::fd::{AsFd, OwnedFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wharf_sandbox::microvm::{ExecRequest, LastWords, Request};
use wharf_sandbox::{
    ExecSpec, ExecStreams, IsolationSpec, ProcessSpec, Root, SpawnError, SpawnFds, Spawner,
    Streams, Terminal, TerminalSize, Usage,
};

use super::network;
use crate::mux::Stream;
use crate::wire::{CHUNK, Frame, ToGuest, Word, receive, receive_frame, send_frame};

/// The container's id for the spawner inside, which has no other.
const MAIN: &str = "main";
/// Frames under way to the outside.
const UNDER_WAY: usize = 4;

pub(super) struct Container {
    pub(super) spawner: Spawner,
    /// Its network.
    pub(super) namespace: OwnedFd,
    /// Where its files are.
    pub(super) root: PathBuf,
}

/// What arrives besides the main process.
pub(super) async fn answer(container: Arc<Container>, mut stream: Stream) {
    let outcome = match receive(&mut stream).await {
        Ok(ToGuest::Port(port)) => network::enter_port(stream, port).await,
        Ok(ToGuest::Exec {
            request,
            stdin,
            terminal,
        }) => exec(&container, request, stdin, terminal, stream).await,
        Ok(ToGuest::Ipv6) => {
            let added = network::add_ipv6(container.namespace.as_fd());
            added.inspect_err(|error| eprintln!("wharf: IPv6: {error}"))
        }
        Ok(ToGuest::Main { .. }) => Err(io::Error::other("there is a container already")),
        Err(error) => Err(error),
    };
    // The stream is closed, which the other side notices.
    drop(outcome);
}

/// The container itself, to its end.
pub(super) async fn main(container: &Container, request: Request, stream: Stream) -> Result<()> {
    let spawner = &container.spawner;
    let spec = ProcessSpec {
        id: MAIN.to_owned(),
        label: String::new(),
        argv: request.argv,
        env: request.env,
        cwd: request.cwd,
        user: request.user,
        root: Root::Directory(container.root.clone()),
        // One at least, so that the machine's own is never seen.
        hostname: Some(request.hostname.unwrap_or_else(|| "localhost".to_owned())),
        mounts: Vec::new(),
        limits: request.limits,
        stdin_pipe: request.stdin_pipe,
        disk: None,
        capabilities: request.capabilities,
        no_new_privileges: request.no_new_privileges,
        read_only: false,
        isolation: IsolationSpec::Namespace,
    };
    let fds = SpawnFds {
        netns: Some(container.namespace.try_clone()?),
        sys: None,
        ..SpawnFds::default()
    };
    let (from, to) = tokio::io::split(stream);
    let frames = sender(to);
    let process = match spawner.spawn(&spec, fds).await {
        Ok(process) => process,
        Err(error) => {
            refuse(frames, error).await;
            return wait_for_end(from).await;
        }
    };
    frames.put(Frame::Word(Word::Started)).await;
    let output = [
        read(process.stdout, Frame::Output, frames.queue.clone())?,
        read(process.stderr, Frame::Error, frames.queue.clone())?,
    ];
    let control = Control {
        input: process.stdin.map(writable).transpose()?,
        terminal: None,
    };
    let signal = async |number| spawner.signal(MAIN, number).await.map(drop);
    let controlled = control.run(from, signal);
    tokio::pin!(controlled);
    let exit = tokio::select! {
        exit = spawner.wait(MAIN) => exit.context("waiting for the container")?,
        () = &mut controlled => {
            spawner.kill(MAIN).await.context("ending the container")?;
            spawner.wait(MAIN).await.context("waiting for the container")?
        }
    };
    for reader in output {
        let _ = reader.await;
    }
    let usage = spawner.usage(MAIN).await.unwrap_or_default();
    // What it wrote by mappings of files is outside then.
    tokio::task::spawn_blocking(rustix::fs::sync).await?;
    frames.end(LastWords { exit, usage }).await;
    // The other side ends the machine. Its end of the stream comes first, if it does not.
    controlled.await;
    Ok(())
}

/// The outside reads what it was told, and ends the machine.
async fn wait_for_end(mut from: ReadHalf<Stream>) -> Result<()> {
    while receive_frame(&mut from).await?.is_some() {}
    Ok(())
}

async fn exec(
    container: &Container,
    request: ExecRequest,
    stdin: bool,
    terminal: Option<TerminalSize>,
    stream: Stream,
) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let spec = ExecSpec {
        id: format!("exec-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        container: MAIN.to_owned(),
        argv: request.argv,
        env: request.env,
        cwd: request.cwd,
        user: request.user,
        nofile: request.nofile,
        streams: match terminal {
            Some(size) => ExecStreams::Terminal(size),
            None => ExecStreams::Pipes { stdin },
        },
    };
    let (from, to) = tokio::io::split(stream);
    let frames = sender(to);
    let (process, streams) = match container.spawner.exec(&spec).await {
        Ok(started) => started,
        Err(error) => {
            refuse(frames, error).await;
            return Ok(());
        }
    };
    frames.put(Frame::Word(Word::Started)).await;
    let mut output = Vec::new();
    let mut control = Control {
        input: None,
        terminal: None,
    };
    match streams {
        Streams::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            output.push(read(stdout, Frame::Output, frames.queue.clone())?);
            output.push(read(stderr, Frame::Error, frames.queue.clone())?);
            control.input = stdin.map(writable).transpose()?;
        }
        Streams::Terminal(terminal) => {
            let (read_from, write_to) = (terminal.try_clone()?, terminal.try_clone()?);
            output.push(read(read_from.into(), Frame::Output, frames.queue.clone())?);
            control.input = Some(writable(write_to.into())?);
            control.terminal = Some(terminal);
        }
        Streams::Null => {}
    }
    let signal = async |number| process.signal(number).await.map(drop);
    let controlled = control.run(from, signal);
    tokio::pin!(controlled);
    let exit = tokio::select! {
        exit = process.wait() => exit.map_err(io::Error::other)?,
        // Nobody is there for it any more.
        () = &mut controlled => {
            process.signal(9).await.map_err(io::Error::other)?;
            process.wait().await.map_err(io::Error::other)?
        }
    };
    for reader in output {
        let _ = reader.await;
    }
    let usage = Usage::default();
    frames.end(LastWords { exit, usage }).await;
    // What still comes is taken: a stream that is dropped with something in it is reset, and its
    // last frame lost.
    controlled.await;
    Ok(())
}

/// What comes from outside for a process.
struct Control {
    input: Option<pipe::Sender>,
    terminal: Option<Terminal>,
}

impl Control {
    /// Serves until the stream ends.
    async fn run<F: Future<Output = Result<(), SpawnError>>>(
        mut self,
        mut from: ReadHalf<Stream>,
        signal: impl Fn(i32) -> F,
    ) {
        loop {
            match receive_frame(&mut from).await {
                Ok(Some(Frame::Input(bytes))) => {
                    if let Some(input) = &mut self.input
                        && input.write_all(&bytes).await.is_err()
                    {
                        self.input = None; // Nobody reads it any more.
                    }
                }
                Ok(Some(Frame::Word(Word::InputEnds))) => {
                    self.input = None;
                    // Nothing is left that holds a terminal: it hangs up.
                    self.terminal = None;
                }
                Ok(Some(Frame::Word(Word::Signal(number)))) => {
                    if let Err(error) = signal(number).await {
                        eprintln!("wharf: signal {number}: {error}");
                    }
                }
                Ok(Some(Frame::Word(Word::Resize(size)))) => {
                    if let Some(terminal) = &self.terminal {
                        let _ = terminal.resize(size); // It may have gone.
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

async fn refuse(frames: Sender, error: SpawnError) {
    let (exit_code, message) = match error {
        SpawnError::Refused { message, exit_code } => (exit_code, message),
        other => (125, other.to_string()),
    };
    let word = Word::Refused { exit_code, message };
    frames.put(Frame::Word(word)).await;
    frames.finish().await;
}

/// The way to the outside; several write to it.
struct Sender {
    queue: mpsc::Sender<Frame>,
    task: JoinHandle<WriteHalf<Stream>>,
}

fn sender(mut to: WriteHalf<Stream>) -> Sender {
    let (queue, mut frames) = mpsc::channel(UNDER_WAY);
    let task = tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if send_frame(&mut to, &frame).await.is_err() {
                break; // The other half tells.
            }
        }
        to
    });
    Sender { queue, task }
}

impl Sender {
    async fn put(&self, frame: Frame) {
        let _ = self.queue.send(frame).await; // Broken: the other half tells.
    }

    async fn end(self, words: LastWords) {
        self.put(Frame::Word(Word::Ended(words))).await;
        self.finish().await;
    }

    /// All is written.
    async fn finish(self) {
        drop(self.queue);
        let _ = self.task.await;
    }
}

/// A pipe's end, or a terminal, which for this is one.
fn writable(fd: OwnedFd) -> io::Result<pipe::Sender> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    pipe::Sender::from_file_unchecked(fd.into())
}

/// Reads to the end, into frames.
fn read(
    fd: OwnedFd,
    frame: fn(Vec<u8>) -> Frame,
    frames: mpsc::Sender<Frame>,
) -> io::Result<JoinHandle<()>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    let mut from = pipe::Receiver::from_file_unchecked(fd.into())?;
    Ok(tokio::spawn(async move {
        let mut bytes = vec![0; CHUNK];
        // An error is EIO: nobody has the terminal open any more.
        while let Ok(length @ 1..) = from.read(&mut bytes).await {
            if frames.send(frame(bytes[..length].to_vec())).await.is_err() {
                return;
            }
        }
    }))
}
