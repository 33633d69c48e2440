//! The spawner's loop: one thread, one `poll`.
//!
//! ```text
//! a process:   Starting --report closed--> Running --reaped--> Draining --cgroup empty, removed--> Ended --forget--> (gone)
//!                 \--report has an error--> Refused --reaped--> Draining --cgroup removed, reply--> (gone)
//! the spawner: waiting (grace period) <--connection lost / Hello--> serving
//!                 \--grace over, SIGTERM--> ending --no process left--> exit        serving --Shutdown--> ending
//! ```
//! A process whose requester is gone before it learnt of it is *abandoned*: killed, and forgotten when it has ended.

use super::Exit;
use super::launch::{self, Given};
use super::protocol::{
    Frame, Inbox, Message, Outbox, ReplyBody, Request, RequestBody, VERSION, parse,
};
use crate::cgroup::{Cgroup, Manager};
use crate::sys::{self, BpfInstruction};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Between looks at cgroups that do not get empty: doubles from the first to the second.
const DRAIN_TICK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));
/// When processes do not end by SIGKILL (they hang in the kernel), the spawner ends without them.
const ENDING_LIMIT: Duration = Duration::from_secs(30);

/// Who waits for a reply: the connection's number and the request's.
#[derive(Debug, Clone, Copy)]
struct Requester {
    connection: u64,
    number: u64,
}

#[derive(Debug)]
enum State {
    Starting {
        report: OwnedFd,
        text: Vec<u8>,
        stdin: Option<OwnedFd>,
        requester: Requester,
    },
    Running,
    Refused {
        requester: Requester,
        message: String,
        exit_code: i32,
    },
    Draining(Outcome),
    Ended(Exit),
}

#[derive(Debug)]
enum Outcome {
    Exit(Exit),
    Refusal {
        requester: Requester,
        message: String,
        exit_code: i32,
    },
}

#[derive(Debug)]
struct Entry {
    label: String,
    pid: i32,
    pidfd: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    cgroup: Cgroup,
    state: State,
    abandoned: bool,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    socket: UnixStream,
    inbox: Inbox,
    outbox: Outbox,
}

pub(super) struct Server {
    listener: UnixListener,
    signals: OwnedFd,
    manager: Manager,
    filter: Vec<BpfInstruction>,
    grace: Duration,
    entries: BTreeMap<String, Entry>,
    daemon: Option<Connection>,
    /// Connected, has not said Hello yet.
    newcomer: Option<Connection>,
    connections: u64,
    /// When everything ends if no daemon comes.
    deadline: Option<Instant>,
    /// Set while ending: since when.
    ending: Option<Instant>,
    shutdown_requests: Vec<Requester>,
    tick: Duration,
}

/// What `poll` reported.
#[derive(Default)]
struct Ready {
    signals: bool,
    listener: bool,
    daemon: bool,
    newcomer: bool,
    reports: Vec<String>,
}

impl Server {
    pub(super) fn new(
        listener: UnixListener,
        signals: OwnedFd,
        manager: Manager,
        filter: Vec<BpfInstruction>,
        grace: Duration,
    ) -> Server {
        Server {
            listener,
            signals,
            manager,
            filter,
            grace,
            entries: BTreeMap::new(),
            daemon: None,
            newcomer: None,
            connections: 0,
            deadline: Some(Instant::now() + grace),
            ending: None,
            shutdown_requests: Vec::new(),
            tick: DRAIN_TICK.0,
        }
    }

    /// Runs until everything has ended.
    pub(super) fn run(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.signals {
                self.take_signals()?;
            }
            for id in ready.reports {
                self.read_report(&id);
            }
            if ready.newcomer {
                self.hear_newcomer();
            }
            if ready.daemon {
                self.hear_daemon();
            }
            if ready.listener {
                self.accept();
            }
            if self.deadline.is_some_and(|d| d <= Instant::now()) {
                self.deadline = None;
                self.end();
            }
            self.drain();
            if let Some(since) = self.ending {
                if self
                    .entries
                    .values()
                    .all(|e| matches!(e.state, State::Ended(_)))
                {
                    return Ok(());
                }
                if since.elapsed() > ENDING_LIMIT {
                    return Err(io::Error::other(
                        "processes do not end although they were killed; their cgroups stay",
                    ));
                }
            }
        }
    }

    /// After [`Server::run`]: removes the cgroups' parents.
    pub(super) fn remove_cgroups(&self) -> io::Result<()> {
        self.manager.remove()
    }

    /// After everything is removed: answers those who asked for the end.
    pub(super) fn say_goodbye(&mut self) {
        for requester in std::mem::take(&mut self.shutdown_requests) {
            self.reply(requester, ReplyBody::Done, Vec::new());
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let draining = self
            .entries
            .values()
            .any(|e| matches!(e.state, State::Draining(_)));
        let mut timeout = self
            .deadline
            .map(|d| d.saturating_duration_since(Instant::now()));
        if draining || self.ending.is_some() {
            timeout = Some(timeout.map_or(self.tick, |t| t.min(self.tick)));
        }
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: i64::from(t.subsec_nanos()),
        });

        let mut ids = Vec::new();
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let connections = [&self.daemon, &self.newcomer];
        for connection in connections.into_iter().flatten() {
            let mut flags = PollFlags::IN;
            if !connection.outbox.is_empty() {
                flags |= PollFlags::OUT;
            }
            fds.push(PollFd::new(&connection.socket, flags));
        }
        for (id, entry) in &self.entries {
            if let State::Starting { report, .. } = &entry.state {
                ids.push(id);
                fds.push(PollFd::new(report, PollFlags::IN));
            }
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut fired = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || fired.next().unwrap_or(false);
        let mut ready = Ready {
            signals: next(),
            listener: next(),
            ..Ready::default()
        };
        ready.daemon = self.daemon.is_some() && next();
        ready.newcomer = self.newcomer.is_some() && next();
        ready.reports = ids.into_iter().filter(|_| next()).cloned().collect();
        Ok(ready)
    }

    // ---- signals and ends of processes

    fn take_signals(&mut self) -> io::Result<()> {
        let mut record = [0u8; sys::SIGNAL_RECORD];
        loop {
            match rustix::io::read(&self.signals, &mut record) {
                Ok(_) => {
                    let [a, b, c, d, ..] = record;
                    // The daemon decides about a SIGTERM that goes to the whole service; alone, the spawner obeys.
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

    fn reaped(&mut self, pid: i32, status: WaitStatus) {
        let alive = |e: &Entry| {
            matches!(
                e.state,
                State::Starting { .. } | State::Running | State::Refused { .. }
            )
        };
        // Others are orphans that a process of ours left (this is their subreaper).
        let Some(id) = self
            .entries
            .iter()
            .find(|(_, e)| e.pid == pid && alive(e))
            .map(|(id, _)| id.clone())
        else {
            return;
        };
        self.read_report(&id); // Before its end, the requester must learn of its start.
        let Some(entry) = self.entries.get_mut(&id) else {
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
            _ => {
                let signal = status.terminating_signal();
                let code = status
                    .exit_status()
                    .unwrap_or_else(|| 128 + signal.unwrap_or_default());
                Outcome::Exit(Exit {
                    code,
                    signal,
                    oom_killed: false,
                })
            }
        };
        entry.state = State::Draining(outcome);
        self.tick = DRAIN_TICK.0;
    }

    /// Moves every draining process on whose cgroup is empty.
    fn drain(&mut self) {
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
    fn settle(&mut self, id: &str) -> io::Result<bool> {
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
                Ok(kills) => exit.oom_killed |= kills > 0,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // Read in an earlier round, removed since.
                Err(error) => return Err(error),
            }
        }
        if !entry.cgroup.remove()? {
            return Ok(false);
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
    fn read_report(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let State::Starting { report, text, .. } = &mut entry.state else {
            return;
        };
        let mut chunk = [0u8; 4096];
        loop {
            match rustix::io::read(&*report, &mut chunk) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(&chunk[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    eprintln!("spawner: reading the report of {id}: {error}");
                    break;
                }
            }
        }
        let State::Starting {
            text,
            stdin,
            requester,
            ..
        } = std::mem::replace(&mut entry.state, State::Running)
        else {
            return;
        };
        if let Some((exit_code, message)) = text.split_first() {
            let message = String::from_utf8_lossy(message).into_owned();
            entry.state = State::Refused {
                requester,
                message,
                exit_code: i32::from(*exit_code),
            };
            return;
        }
        let known = self
            .daemon
            .as_ref()
            .is_some_and(|d| d.number == requester.connection);
        let streams = entry
            .stdout
            .try_clone()
            .and_then(|out| Ok(vec![out, entry.stderr.try_clone()?]));
        match streams {
            Ok(mut streams) if known => {
                streams.extend(stdin);
                let body = ReplyBody::Spawned {
                    id: id.to_owned(),
                    pid: entry.pid,
                };
                self.reply(requester, body, streams);
            }
            other => {
                entry.abandoned = true;
                if let Err(error) = other {
                    self.reply(
                        requester,
                        ReplyBody::Failed {
                            message: format!("copying the output's descriptors: {error}"),
                        },
                        Vec::new(),
                    );
                }
                self.kill(id);
            }
        }
    }

    // ---- connections

    fn accept(&mut self) {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return;
            }
            Err(error) => {
                eprintln!("spawner: accept: {error}");
                return;
            }
        };
        // The socket's mode keeps others out; a descriptor that was handed on would not.
        let trusted = rustix::net::sockopt::socket_peercred(&socket)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if trusted && self.ending.is_none() {
            self.connections += 1;
            self.newcomer = Some(Connection {
                number: self.connections,
                socket,
                inbox: Inbox::default(),
                outbox: Outbox::default(),
            });
        }
    }

    fn hear_newcomer(&mut self) {
        let Some(connection) = &mut self.newcomer else {
            return;
        };
        let request = match hear(connection) {
            Ok(requests) if requests.is_empty() => return,
            Ok(requests) => requests,
            Err(_) => {
                self.newcomer = None; // Left before it became anything.
                return;
            }
        };
        if !matches!(
            request.first(),
            Some((
                Request {
                    body: RequestBody::Hello,
                    ..
                },
                _
            ))
        ) {
            self.newcomer = None;
            return;
        }
        self.send(&Message::Replaced, Vec::new());
        self.daemon = self.newcomer.take();
        self.deadline = None;
        self.welcome();
        for (request, descriptors) in request.into_iter().skip(1) {
            self.handle(request, descriptors);
        }
    }

    fn welcome(&mut self) {
        let known = |e: &&Entry| {
            !e.abandoned
                && matches!(
                    e.state,
                    State::Running | State::Draining(Outcome::Exit(_)) | State::Ended(_)
                )
        };
        let mut messages = Vec::new();
        for (id, entry) in self.entries.iter().filter(|(_, e)| known(e)) {
            let exit = if let State::Ended(exit) = entry.state {
                Some(exit)
            } else {
                None
            };
            match entry
                .stdout
                .try_clone()
                .and_then(|out| Ok(vec![out, entry.stderr.try_clone()?]))
            {
                Ok(streams) => {
                    let message = Message::Survivor {
                        id: id.clone(),
                        label: entry.label.clone(),
                        pid: entry.pid,
                        exit,
                    };
                    messages.push((message, streams));
                }
                Err(error) => {
                    eprintln!("spawner: copying the output's descriptors of {id}: {error}")
                }
            }
        }
        self.send(
            &Message::Welcome {
                version: VERSION,
                pid: std::process::id(),
                survivors: messages.len(),
            },
            Vec::new(),
        );
        for (message, streams) in messages {
            self.send(&message, streams);
        }
    }

    fn hear_daemon(&mut self) {
        let Some(connection) = &mut self.daemon else {
            return;
        };
        match hear(connection) {
            Ok(requests) => {
                for (request, descriptors) in requests {
                    self.handle(request, descriptors);
                }
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    eprintln!("spawner: the daemon's connection: {error}");
                }
                self.lose_daemon();
            }
        }
    }

    fn lose_daemon(&mut self) {
        self.daemon = None;
        if self.ending.is_none() {
            self.deadline = Some(Instant::now() + self.grace);
        }
    }

    /// To the daemon, if there is one.
    fn send(&mut self, message: &Message, descriptors: Vec<OwnedFd>) {
        let Some(connection) = &mut self.daemon else {
            return;
        };
        let sent = Frame::new(message, descriptors).and_then(|frame| {
            connection.outbox.push(frame);
            flush(connection)
        });
        if let Err(error) = sent {
            if error.kind() != io::ErrorKind::BrokenPipe {
                eprintln!("spawner: the daemon's connection: {error}");
            }
            self.lose_daemon();
        }
    }

    fn reply(&mut self, requester: Requester, body: ReplyBody, descriptors: Vec<OwnedFd>) {
        if self
            .daemon
            .as_ref()
            .is_some_and(|d| d.number == requester.connection)
        {
            self.send(
                &Message::Reply {
                    number: requester.number,
                    body,
                },
                descriptors,
            );
        }
    }

    // ---- requests

    fn handle(&mut self, request: Request, descriptors: Vec<OwnedFd>) {
        let Some(connection) = self.daemon.as_ref().map(|d| d.number) else {
            return;
        };
        let requester = Requester {
            connection,
            number: request.number,
        };
        let body = match request.body {
            RequestBody::Spawn {
                spec,
                netns,
                inherit,
            } => {
                let mut descriptors = descriptors.into_iter();
                let netns = if netns { descriptors.next() } else { None };
                let given = Given {
                    netns,
                    inherit: inherit.into_iter().zip(descriptors).collect(),
                };
                match self.spawn(&spec, &given, requester) {
                    Ok(()) => return, // The report decides.
                    Err(body) => body,
                }
            }
            RequestBody::Signal { id, signal } => self.signal(&id, signal),
            RequestBody::Kill { id } => match self.entries.contains_key(&id) {
                true => {
                    self.kill(&id);
                    ReplyBody::Done
                }
                false => no_such(&id),
            },
            RequestBody::Forget { id } => match self.entries.get(&id).map(|e| &e.state) {
                None => no_such(&id),
                Some(State::Ended(_)) => {
                    self.entries.remove(&id);
                    ReplyBody::Done
                }
                Some(_) => ReplyBody::Failed {
                    message: format!(
                        "process {id} has not ended; only an ended one can be forgotten"
                    ),
                },
            },
            RequestBody::Shutdown => {
                self.shutdown_requests.push(requester);
                self.end();
                return;
            }
            RequestBody::Hello => ReplyBody::Failed {
                message: "already welcome".to_owned(),
            },
        };
        self.reply(requester, body, Vec::new());
    }

    fn spawn(
        &mut self,
        spec: &crate::spec::ProcessSpec,
        given: &Given,
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
        launch::check(spec, given).map_err(refuse)?;
        if self.entries.contains_key(&spec.id) {
            return Err(refuse(format!(
                "a process with the id {} exists already",
                spec.id
            )));
        }
        let launched = launch::launch(&self.manager, &self.filter, spec, given).map_err(|e| {
            ReplyBody::Failed {
                message: format!("starting process {}: {e}", spec.id),
            }
        })?;
        let state = State::Starting {
            report: launched.report,
            text: Vec::new(),
            stdin: launched.stdin,
            requester,
        };
        let entry = Entry {
            label: spec.label.clone(),
            pid: launched.pid,
            pidfd: launched.pidfd,
            stdout: launched.stdout,
            stderr: launched.stderr,
            cgroup: launched.cgroup,
            state,
            abandoned: false,
        };
        self.entries.insert(spec.id.clone(), entry);
        Ok(())
    }

    fn signal(&self, id: &str, signal: i32) -> ReplyBody {
        let Some(entry) = self.entries.get(id) else {
            return no_such(id);
        };
        if matches!(entry.state, State::Draining(_) | State::Ended(_)) {
            return ReplyBody::Signalled(false);
        }
        match sys::signal_process(entry.pidfd.as_fd(), signal) {
            Ok(found) => ReplyBody::Signalled(found),
            Err(error) => ReplyBody::Failed {
                message: format!("signal {signal} to process {id}: {error}"),
            },
        }
    }

    /// Kills the process and its cgroup; what escapes a round is killed while draining.
    fn kill(&mut self, id: &str) {
        let Some(entry) = self.entries.get(id) else {
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
    }

    fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Instant::now());
        self.newcomer = None;
        let ids: Vec<String> = self.entries.keys().cloned().collect();
        for id in ids {
            self.kill(&id);
        }
    }
}

fn no_such(id: &str) -> ReplyBody {
    ReplyBody::Failed {
        message: format!("there is no process {id}"),
    }
}

/// Sends what waits, and reads all whole requests. UnexpectedEof when the other side is gone.
fn hear(connection: &mut Connection) -> io::Result<Vec<(Request, Vec<OwnedFd>)>> {
    flush(connection)?;
    let open = match connection.inbox.fill(connection.socket.as_fd()) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => false,
        Err(error) => return Err(error),
    };
    if !open {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut requests = Vec::new();
    while let Some((payload, descriptors)) = connection.inbox.next()? {
        requests.push((parse(&payload)?, descriptors));
    }
    Ok(requests)
}

fn flush(connection: &mut Connection) -> io::Result<()> {
    match connection.outbox.flush(connection.socket.as_fd()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other,
    }
}
