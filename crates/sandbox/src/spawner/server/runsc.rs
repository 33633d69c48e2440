//! What `runsc` does beside a container on gVisor's kernel, whose processes are not this machine's:
//! it sends signals, and `runsc exec` reports the number that its process has inside.
//!
//! A `runsc kill` is started and forgotten: its end is reaped, and told to nobody but the log.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::WaitStatus;

use super::execs::{Exec, ExecState};
use super::{Server, State};
use crate::child::MAX_REPORT;
use crate::spawner::exec::{self, Container};
use crate::spawner::protocol::ReplyBody;

/// The most bytes that are kept of what `runsc exec` says when it fails.
const MAX_WORDS: usize = 4096;

/// A `runsc kill` under way.
#[derive(Debug)]
pub(super) struct Kill {
    pid: i32,
    container: String,
    signal: i32,
}

impl Server {
    /// Sends a signal to a process of a container by a program with these arguments, or says why
    /// that cannot be ([`crate::child::class::SignalRoute::Program`]).
    pub(super) fn signal_by_program(
        &mut self,
        container: &str,
        signal: i32,
        argv: Result<Vec<String>, String>,
    ) -> ReplyBody {
        let Some(entry) = self
            .entries
            .get(container)
            .filter(|e| matches!(e.state, State::Running))
        else {
            return ReplyBody::Signalled(false);
        };
        let place = Container {
            pid: entry.pid,
            pidfd: entry.pidfd.as_fd(),
            cgroup: &entry.cgroup,
            users: entry.users.as_ref(),
            capabilities: entry.capabilities,
            no_new_privileges: entry.no_new_privileges,
            class: entry.class,
        };
        let argv = match argv {
            Ok(argv) => argv,
            Err(message) => return ReplyBody::Failed { message },
        };
        match exec::launch_beside(&place, &self.walls.filters.container, &argv) {
            Ok(pid) => {
                self.kills.push(Kill {
                    pid,
                    container: container.to_owned(),
                    signal,
                });
                ReplyBody::Signalled(true)
            }
            // Its main process has ended, and is about to be reaped.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOMEM)) => {
                ReplyBody::Signalled(false)
            }
            Err(error) => ReplyBody::Failed {
                message: format!("signal {signal} to process {container}: {error}"),
            },
        }
    }

    /// `false` when the process is none of these.
    pub(super) fn kill_reaped(&mut self, pid: i32, status: WaitStatus) -> bool {
        let Some(index) = self.kills.iter().position(|kill| kill.pid == pid) else {
            return false;
        };
        let kill = self.kills.swap_remove(index);
        let entry = self.entries.get(&kill.container);
        let runs = entry.is_some_and(|e| matches!(e.state, State::Running));
        // With the container its processes end, this one among them.
        if runs && status.exit_status() != Some(0) && status.terminating_signal().is_none() {
            eprintln!(
                "spawner: runsc did not send signal {} to {} (its process may have ended)",
                kill.signal, kill.container
            );
        }
        true
    }
}

/// What the report of a process on gVisor says.
pub(super) enum Report {
    /// Not yet whether it runs.
    Unfinished,
    /// Its number inside.
    Started(i32),
    /// As others report a failure.
    Failed,
    /// `runsc exec` ended without a word here.
    Nothing,
}

/// Reads once. `runsc exec` holds the other end: whoever has broken out of gVisor may write to it
/// what and as much as it likes.
pub(super) fn read_report(report: &OwnedFd, text: &mut Vec<u8>) -> Report {
    let mut chunk = [0; MAX_REPORT];
    let at_end = match rustix::io::read(report, &mut chunk) {
        Ok(length) => {
            text.extend_from_slice(&chunk[..length]);
            length == 0
        }
        Err(Errno::INTR | Errno::AGAIN) => false,
        Err(_) => true,
    };
    // A failure begins with an exit code, which is no digit.
    let number = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    match number {
        Some(inside) if inside > 0 => Report::Started(inside),
        _ if text.len() > MAX_REPORT => Report::Failed,
        _ if !at_end => Report::Unfinished,
        _ if text.is_empty() => Report::Nothing,
        _ => Report::Failed,
    }
}

/// An end that came before the start was reported: what was said about it, there or, by `runsc`, on
/// standard error, of which the other end is here. Does nothing to one that runs.
pub(super) fn never_started(exec: &mut Exec) {
    let ExecState::Starting { ends, text, .. } = &exec.state else {
        return;
    };
    if let Some((exit_code, message)) = text.split_first() {
        exec.state = ExecState::Refused {
            message: String::from_utf8_lossy(message).into_owned(),
            exit_code: i32::from(*exit_code),
        };
        return;
    }
    let said = ends.get(1).or(ends.first()).map(words).unwrap_or_default();
    let message = match said.trim() {
        "" => "runsc exec ended before the process had started".to_owned(),
        said => format!("runsc: {said}"),
    };
    exec.state = ExecState::Refused {
        message,
        exit_code: 126,
    };
}

fn words(from: &OwnedFd) -> String {
    let mut bytes = vec![0; MAX_WORDS];
    let read = rustix::io::ioctl_fionbio(from, true).and_then(|()| {
        loop {
            match rustix::io::read(from, &mut bytes) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    });
    // Nothing there is as good as nothing said.
    bytes.truncate(read.unwrap_or(0));
    String::from_utf8_lossy(&bytes).into_owned()
}
