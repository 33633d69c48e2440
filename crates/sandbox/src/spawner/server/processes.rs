//! Processes: from the request to the end of the last one in the cgroup.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};

use super::connections::is_connected;
use super::{DRAIN_TICK, Entry, Outcome, Requester, Server, State, no_such};
use crate::child::MAX_REPORT;
use crate::child::class::{SignalRoute, SignalTarget};
use crate::exhaustion;
use crate::microvm::LastWords;
use crate::spawner::Exit;
use crate::spawner::launch::{self, Given};
use crate::spawner::protocol::{Message, ReplyBody};
use crate::spawner::restorer::ORDINARY_START;
use crate::spec::Root;
use crate::sys;

impl Server {
    pub(super) fn spawn(
        &mut self,
        spec: &crate::spec::ProcessSpec,
        mut given: Given,
        requester: Requester,
    ) -> Result<(), ReplyBody> {
        let refuse = |message: String| ReplyBody::Refused {
            message,
            exit_code: 125,
        };
        if self.ending.is_some() {
            return Err(ReplyBody::Failed {
                message: "the spawner is ending".to_owned(),
            });
        }
        launch::check(spec, &given).map_err(refuse)?;
        if self.entries.contains_key(&spec.id) || self.execs.contains_key(&spec.id) {
            return Err(refuse(format!(
                "a process with the id {} exists already",
                spec.id
            )));
        }
        let is_container = spec.root.is_container();
        let launched = match self.ahead.start(&mut self.manager, spec, &given) {
            Ok(Some(launched)) => Ok(launched),
            Ok(None) => launch::launch(&mut self.manager, &mut self.walls, spec, &given),
            Err(error) => Err(error),
        };
        let launched = launched.map_err(|error| failure(&spec.id, &error))?;
        // In a virtual machine there is one.
        if matches!(spec.root, Root::Overlay { .. }) {
            self.ahead.expect_more(&spec.limits);
        }
        let state = State::Starting {
            report: launched.report,
            text: Vec::new(),
            stdin: launched.stdin,
            requester,
            reaped: None,
        };
        let at_first = spec.isolation.limits(&spec.limits);
        let no_new_privileges = spec.gains_no_privileges(launched.users.is_some());
        let entry = Entry {
            label: spec.label.clone(),
            pid: launched.pid,
            pidfd: launched.pidfd,
            stdout: launched.stdout,
            stderr: launched.stderr,
            cgroup: launched.cgroup,
            users: launched.users,
            disk: given.disk.take(),
            usage: None,
            is_container,
            capabilities: spec.capabilities,
            no_new_privileges,
            class: spec.isolation.class(),
            last_words: launched.last_words,
            cpu_millis: spec
                .limits
                .cpu_millis
                .filter(|_| at_first.cpu_millis.is_none()),
            state,
            abandoned: false,
            frozen: false,
            replaced: false,
        };
        self.entries.insert(spec.id.clone(), entry);
        Ok(())
    }

    pub(super) fn signal(&mut self, id: &str, signal: i32) -> ReplyBody {
        let Some(entry) = self.entries.get(id) else {
            return no_such(id);
        };
        if matches!(entry.state, State::Draining(_) | State::Ended(_)) {
            return ReplyBody::Signalled(false);
        }
        if let SignalRoute::Program(argv) = entry.class.signal(SignalTarget::Main, signal) {
            return self.signal_by_program(id, signal, argv);
        }
        match sys::signal_process(entry.pidfd.as_fd(), signal) {
            Ok(found) => ReplyBody::Signalled(found),
            Err(error) => ReplyBody::Failed {
                message: format!("signal {signal} to process {id}: {error}"),
            },
        }
    }

    pub(super) fn usage(&self, id: &str) -> ReplyBody {
        let Some(entry) = self.entries.get(id) else {
            return no_such(id);
        };
        match entry.usage.clone().map_or_else(|| entry.cgroup.usage(), Ok) {
            Ok(usage) => ReplyBody::Usage(Box::new(usage)),
            Err(error) => ReplyBody::Failed {
                message: format!("the usage of process {id}: {error}"),
            },
        }
    }

    /// Asked until the answer is that they stand still.
    pub(super) fn freeze(&mut self, id: &str) -> ReplyBody {
        let Some(entry) = self.entries.get_mut(id) else {
            return no_such(id);
        };
        if !matches!(entry.state, State::Running) {
            return ReplyBody::Failed {
                message: format!("process {id} does not run"),
            };
        }
        entry.frozen = true;
        match entry.cgroup.freeze() {
            Ok(still) => ReplyBody::Frozen(still),
            Err(error) => ReplyBody::Failed {
                message: format!("freezing process {id}: {error}"),
            },
        }
    }

    pub(super) fn thaw(&mut self, id: &str) -> ReplyBody {
        // One that was forgotten while it was frozen needs no more.
        let Some(entry) = self.entries.get_mut(id) else {
            return ReplyBody::Done;
        };
        if !std::mem::take(&mut entry.frozen) {
            return ReplyBody::Done;
        }
        match entry.cgroup.thaw() {
            // It has ended meanwhile, and its cgroup is gone.
            Err(error) if error.kind() != io::ErrorKind::NotFound => ReplyBody::Failed {
                message: format!("thawing process {id}: {error}"),
            },
            _ => ReplyBody::Done,
        }
    }

    /// A daemon that is gone can let nothing run again.
    pub(super) fn thaw_all(&mut self) {
        let frozen = self.entries.iter().filter(|(_, e)| e.frozen);
        let ids: Vec<String> = frozen.map(|(id, _)| id.clone()).collect();
        for id in ids {
            if let ReplyBody::Failed { message } = self.thaw(&id) {
                eprintln!("spawner: {message}");
            }
        }
    }

    /// Kills the process and its cgroup; what escapes a round is killed while draining.
    pub(super) fn kill(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if matches!(entry.state, State::Ended(_)) {
            return;
        }
        let main = if matches!(entry.state, State::Draining(_)) {
            Ok(false)
        } else {
            // A process that has just been cloned may not be in its v1 cgroups yet.
            sys::signal_process(entry.pidfd.as_fd(), libc::SIGKILL)
        };
        if let Err(error) = main.and_then(|_| entry.cgroup.kill()) {
            eprintln!("spawner: killing {id}: {error}");
        }
        self.replace |= !std::mem::replace(&mut entry.replaced, true);
    }

    pub(super) fn take_signals(&mut self) -> io::Result<()> {
        let mut record = [0u8; sys::SIGNAL_RECORD];
        loop {
            match rustix::io::read(&self.signals, &mut record) {
                Ok(_) => {
                    let [a, b, c, d, ..] = record;
                    // The daemon decides about a SIGTERM that goes to the whole service; alone, the
                    // spawner obeys.
                    if u32::from_ne_bytes([a, b, c, d]) == libc::SIGTERM as u32
                        && self.daemon.is_none()
                    {
                        self.end();
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.reaped(pid.as_raw_nonzero().get(), status),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn reaped(&mut self, pid: i32, status: WaitStatus) {
        let alive = |e: &Entry| {
            matches!(
                e.state,
                State::Starting { reaped: None, .. } | State::Running | State::Refused { .. }
            )
        };
        let is_warden = self.warden.as_mut().is_some_and(|w| w.reaped(pid));
        if is_warden
            || self.exec_reaped(pid, status)
            || self.kill_reaped(pid, status)
            || self.ahead.reaped(pid)
        {
            return;
        }
        // Others are orphans that a process of ours left (this is their subreaper).
        let Some(id) = self
            .entries
            .iter()
            .find(|(_, e)| e.pid == pid && alive(e))
            .map(|(id, _)| id.clone())
        else {
            return;
        };
        if let Some(Entry {
            state: State::Starting { reaped, .. },
            ..
        }) = self.entries.get_mut(&id)
        {
            // Before its end, the requester must learn of its start.
            *reaped = Some(status);
            self.read_report(&id);
            return;
        }
        self.ended(&id, status);
    }

    /// Its main process has been reaped, and its requester knows of its start or will learn of its
    /// refusal.
    fn ended(&mut self, id: &str, status: WaitStatus) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let outcome = match std::mem::replace(&mut entry.state, State::Running) {
            State::Refused {
                requester,
                message,
                exit_code,
            } => Outcome::Refusal {
                requester,
                message,
                exit_code,
            },
            _ => Outcome::Exit(exit_of(status)),
        };
        entry.state = State::Draining(outcome);
        self.tick = DRAIN_TICK.0;
    }

    /// Moves every draining process on whose cgroup is empty.
    pub(super) fn drain(&mut self) {
        self.ahead.settle(&mut self.walls);
        let draining: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.state, State::Draining(_)))
            .map(|(id, _)| id.clone())
            .collect();
        if draining.is_empty() {
            return;
        }
        for id in draining {
            match self.settle(&id) {
                Ok(true) => self.tick = DRAIN_TICK.0,
                Ok(false) => self.tick = (self.tick * 2).min(DRAIN_TICK.1),
                Err(error) => {
                    eprintln!("spawner: ending the cgroup of {id}: {error}");
                    self.tick = DRAIN_TICK.1;
                }
            }
        }
    }

    /// `Ok(true)` when the process has left the state Draining.
    pub(super) fn settle(&mut self, id: &str) -> io::Result<bool> {
        let Some(entry) = self.entries.get_mut(id) else {
            return Ok(true);
        };
        let State::Draining(outcome) = &mut entry.state else {
            return Ok(true);
        };
        if !entry.cgroup.is_empty()? {
            entry.cgroup.kill()?;
            return Ok(false);
        }
        if let Outcome::Exit(exit) = outcome {
            match entry.cgroup.oom_kills() {
                Ok(kills) => {
                    exit.oom_killed |= kills > 0;
                    let mut usage = entry.cgroup.usage()?;
                    if let Some(words) = entry.last_words.take().and_then(|it| last_words(&it)) {
                        words.apply(exit, &mut usage);
                    }
                    entry.usage = Some(usage);
                }
                // Read in an earlier round, removed since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if !entry.cgroup.remove()? {
            return Ok(false);
        }
        if let (Some(pool), Some(users)) = (&mut self.walls.users, entry.users.take()) {
            pool.give_back(users);
        }
        match std::mem::replace(&mut entry.state, State::Running) {
            State::Draining(Outcome::Exit(exit)) if !entry.abandoned => {
                entry.state = State::Ended(exit);
                self.send(
                    &Message::Exited {
                        id: id.to_owned(),
                        exit,
                    },
                    Vec::new(),
                );
            }
            State::Draining(Outcome::Refusal {
                requester,
                message,
                exit_code,
            }) => {
                self.entries.remove(id);
                self.reply(
                    requester,
                    ReplyBody::Refused { message, exit_code },
                    Vec::new(),
                );
            }
            _ => {
                self.entries.remove(id);
            }
        }
        Ok(true)
    }

    /// Reads what a starting process reports. At the end of it, exec has succeeded or failed.
    pub(super) fn read_report(&mut self, id: &str) {
        if let Some(Some(status)) = self.report(id) {
            self.ended(id, status);
        }
    }

    /// `None`: there is more to come. Else whether it has been reaped already.
    fn report(&mut self, id: &str) -> Option<Option<WaitStatus>> {
        let entry = self.entries.get_mut(id)?;
        let State::Starting { report, text, .. } = &mut entry.state else {
            return None;
        };
        if !read_to_end(report, text, id) {
            return None;
        }
        let State::Starting {
            text,
            stdin,
            requester,
            reaped,
            ..
        } = std::mem::replace(&mut entry.state, State::Running)
        else {
            return None;
        };
        let mut not_restored = None;
        if let Some((exit_code, message)) = text.split_first() {
            let message = String::from_utf8_lossy(message).into_owned();
            if *exit_code == ORDINARY_START {
                not_restored = Some(message);
            } else {
                entry.state = State::Refused {
                    requester,
                    message,
                    exit_code: i32::from(*exit_code),
                };
                return Some(reaped);
            }
        }
        let limited = match entry.cpu_millis.take() {
            Some(millis) => entry.cgroup.limit_cpu(millis),
            None => Ok(()),
        };
        let streams = limited
            .and_then(|()| entry.stdout.try_clone())
            .and_then(|out| Ok(vec![out, entry.stderr.try_clone()?]));
        match streams {
            Ok(mut streams) if is_connected(&self.daemon, requester) => {
                streams.extend(stdin);
                let body = ReplyBody::Spawned {
                    id: id.to_owned(),
                    pid: entry.pid,
                    not_restored,
                };
                self.reply(requester, body, streams);
            }
            other => {
                entry.abandoned = true;
                if let Err(error) = other {
                    self.reply(requester, failure(id, &error), Vec::new());
                }
                self.kill(id);
            }
        }
        Some(reaped)
    }
}

/// Reads what a starting process reports. `false`: there may be more.
pub(super) fn read_to_end(report: &OwnedFd, text: &mut Vec<u8>, id: &str) -> bool {
    let mut chunk = [0u8; 4096];
    loop {
        match rustix::io::read(report, &mut chunk) {
            Ok(0) => return true,
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(error) => {
                eprintln!("spawner: reading the report of {id}: {error}");
                return true;
            }
        }
    }
}

/// What a virtual machine has said of its end. Nothing, if it was killed.
fn last_words(from: &OwnedFd) -> Option<LastWords> {
    let mut text = [0; MAX_REPORT];
    match rustix::io::read(from, &mut text) {
        Ok(length @ 1..) => serde_json::from_slice(&text[..length]).ok(),
        _ => None,
    }
}

pub(super) fn exit_of(status: WaitStatus) -> Exit {
    let signal = status.terminating_signal();
    let code = status.exit_status();
    Exit {
        code: code.unwrap_or_else(|| 128 + signal.unwrap_or_default()),
        signal,
        oom_killed: false,
    }
}

/// Why a process was not started by this machine.
pub(super) fn failure(id: &str, error: &io::Error) -> ReplyBody {
    match exhaustion::resource(error) {
        Some(resource) => ReplyBody::Exhausted {
            message: format!("{resource}{error}"),
        },
        None => ReplyBody::Failed {
            message: format!("starting process {id}: {error}"),
        },
    }
}
