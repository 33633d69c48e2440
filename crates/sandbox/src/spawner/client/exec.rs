//! Processes inside containers: the daemon's handle to one, and its terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::termios::Winsize;
use tokio::sync::watch;

use super::Spawner;
use super::link::{Link, failed, lock, unexpected};
use crate::spawner::protocol::{ReplyBody, RequestBody};
use crate::spawner::{Exit, SpawnError};
use crate::spec::{ExecSpec, ExecStreams, TerminalSize};

/// A process inside a container. Dropping the handle does not end it.
#[derive(Debug)]
pub struct ExecProcess {
    id: String,
    /// Its number in the host's PID namespace.
    pub pid: i32,
    /// Its number in the container's PID namespace.
    pub inside_pid: i32,
    link: Link,
    exit: watch::Receiver<Option<Exit>>,
}

/// The daemon's ends of the standard streams. Nobody else has copies: closing them is what the
/// process notices.
#[derive(Debug)]
pub enum Streams {
    /// No streams: the process has /dev/null.
    Null,
    /// Pipes.
    Pipes {
        /// Write end, if asked for.
        stdin: Option<OwnedFd>,
        /// Read end.
        stdout: OwnedFd,
        /// Read end.
        stderr: OwnedFd,
    },
    /// A terminal. Closing it hangs up (SIGHUP).
    Terminal(Terminal),
}

/// The master of a terminal (pty(7)), non-blocking.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Another handle to the same terminal.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn try_clone(&self) -> io::Result<Terminal> {
        self.0.try_clone().map(Terminal)
    }

    /// Changes the size; the foreground processes get SIGWINCH.
    ///
    /// # Errors
    /// The terminal has gone.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(&self.0, size)?)
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Terminal> for OwnedFd {
    fn from(terminal: Terminal) -> OwnedFd {
        terminal.0
    }
}

impl ExecProcess {
    /// Waits for its end; any number of waiters.
    ///
    /// # Errors
    /// The connection to the spawner broke before: nobody will know.
    pub async fn wait(&self) -> Result<Exit, SpawnError> {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => Ok(exit),
            _ => Err(self.link.lost_error(&self.id)),
        }
    }

    /// Sends a signal (by pidfd). `Ok(false)` when it has ended.
    ///
    /// # Errors
    /// The number is none, or the spawner failed.
    pub async fn signal(&self, signal: i32) -> Result<bool, SpawnError> {
        let body = RequestBody::SignalExec {
            id: self.id.clone(),
            signal,
        };
        match self.link.call(body, Vec::new()).await? {
            (ReplyBody::Signalled(found), _) => Ok(found),
            (other, _) => Err(unexpected(other)),
        }
    }
}

impl Drop for ExecProcess {
    fn drop(&mut self) {
        lock(&self.link.state).exec_exits.remove(&self.id);
    }
}

impl Spawner {
    /// Starts a process inside a running container; returns when `execve` has succeeded or failed.
    /// When the caller gives up meanwhile, the process is killed.
    ///
    /// It runs on when the handle is dropped and when the daemon is gone, and ends with the
    /// container at the latest (by SIGKILL).
    ///
    /// # Errors
    /// [`SpawnError::NotRunning`] when the container is not: its id names one start, so that
    /// nothing gets into a later one.
    pub async fn exec(&self, spec: &ExecSpec) -> Result<(ExecProcess, Streams), SpawnError> {
        // Not over a new connection: no container lives to see one.
        let link = self.current();
        let body = RequestBody::Exec {
            spec: Box::new(spec.clone()),
        };
        match link.call(body, Vec::new()).await? {
            (
                ReplyBody::ExecStarted {
                    id,
                    pid,
                    inside_pid,
                },
                ends,
            ) => {
                // There since the reply came, until the handle is dropped, or lost with the
                // connection.
                let exit = lock(&link.state)
                    .exec_exits
                    .get(&id)
                    .map(watch::Sender::subscribe);
                let exit = exit.ok_or_else(|| link.lost_error(&id))?;
                let process = ExecProcess {
                    id,
                    pid,
                    inside_pid,
                    link,
                    exit,
                };
                Ok((process, streams(spec.streams, ends)?))
            }
            (ReplyBody::Refused { message, exit_code }, _) => {
                Err(SpawnError::Refused { message, exit_code })
            }
            (ReplyBody::NotRunning { message }, _) => Err(SpawnError::NotRunning(message)),
            (other, _) => Err(unexpected(other)),
        }
    }
}

/// The descriptors of a reply, by what was asked for.
fn streams(asked: ExecStreams, ends: Vec<OwnedFd>) -> Result<Streams, SpawnError> {
    let mut ends = ends.into_iter();
    let mut next = || {
        ends.next()
            .ok_or_else(|| failed("it sent too few descriptors"))
    };
    Ok(match asked {
        ExecStreams::Null => Streams::Null,
        ExecStreams::Pipes { stdin } => Streams::Pipes {
            stdout: next()?,
            stderr: next()?,
            stdin: stdin.then(next).transpose()?,
        },
        ExecStreams::Terminal(_) => Streams::Terminal(Terminal(next()?)),
    })
}
