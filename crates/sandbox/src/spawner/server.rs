//! The spawner's loop: one thread, one `poll`.
//!
//! ```text
//! a process:   Starting --report closed--> Running --reaped--> Draining --cgroup removed--> Ended
//!                 |                                                     Ended --forget--> (gone)
//!                 \--report has an error--> Refused --reaped--> Draining
//!                                                      Draining --cgroup removed, reply--> (gone)
//! the spawner: waiting (grace period) <--connection lost / Hello--> serving --Shutdown--> ending
//!                 \--grace over, SIGTERM--> ending --no process left--> exit
//! ```
//! What runs inside a container beside its main process: [`execs`].
//!
//! A process whose requester is gone before it learnt of it is *abandoned*: killed, and forgotten
//! when it has ended.

mod connections;
mod execs;
mod processes;
mod runsc;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::WaitStatus;

use super::launch::Walls;
use super::protocol::ReplyBody;
use super::warden::Warden;
use super::{Exit, ahead};
use crate::cgroup::{Cgroup, Manager, Usage};
use crate::child::class::IsolationClass;
use crate::frame::{Inbox, Outbox};
use crate::spec::Capabilities;
use crate::userns::{Pool, UserNamespace};

/// Time between looks at cgroups that do not get empty: doubles from the first to the second.
const DRAIN_TICK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));
/// How long nothing must have happened before pools are filled: a start that has just taken
/// something is more urgent.
const QUIET: Duration = Duration::from_millis(10);
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
        /// The process has ended already, but the one that restores its memory has not told yet.
        reaped: Option<WaitStatus>,
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
    /// The container's, until none of its processes lives.
    users: Option<UserNamespace>,
    disk: Option<OwnedFd>,
    /// At the end, as its cgroup is gone by then.
    usage: Option<Usage>,
    is_container: bool,
    /// Capabilities of the process, and of those that join it.
    capabilities: Capabilities,
    no_new_privileges: bool,
    class: IsolationClass,
    /// What a virtual machine says of its end.
    last_words: Option<OwnedFd>,
    /// The limit of CPU that it gets when its program has started.
    cpu_millis: Option<u64>,
    state: State,
    abandoned: bool,
    frozen: bool,
    /// What it was made from has been, or is just being.
    replaced: bool,
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
    walls: Walls,
    grace: Duration,
    entries: BTreeMap<String, Entry>,
    /// Inside containers; see [`execs`].
    execs: BTreeMap<String, execs::Exec>,
    kills: Vec<runsc::Kill>,
    /// What may become one of `entries`.
    ahead: ahead::Pool,
    /// There is time to replace what a process was made from: another one's end is waited for. The
    /// next start may come right after it.
    replace: bool,
    daemon: Option<Connection>,
    /// Connected, has not said Hello yet.
    newcomer: Option<Connection>,
    connections: u64,
    /// After a failed accept: newcomers wait until then.
    deaf_until: Option<Instant>,
    /// When everything ends if no daemon comes.
    deadline: Option<Instant>,
    /// Set while ending: since when.
    ending: Option<Instant>,
    shutdown_requests: Vec<Requester>,
    tick: Duration,
    /// `None` when it has been told of the spawner's end.
    warden: Option<Warden>,
}

/// What `poll` reported.
#[derive(Default)]
struct Ready {
    signals: bool,
    listener: bool,
    daemon: bool,
    newcomer: bool,
    reports: Vec<String>,
    /// Nothing happened for a while.
    quiet: bool,
    exec_reports: Vec<String>,
}

impl Server {
    pub(super) fn new(
        listener: UnixListener,
        signals: OwnedFd,
        manager: Manager,
        walls: Walls,
        grace: Duration,
        warden: Warden,
    ) -> Server {
        Server {
            listener,
            signals,
            manager,
            walls,
            grace,
            entries: BTreeMap::new(),
            execs: BTreeMap::new(),
            kills: Vec::new(),
            ahead: ahead::Pool::default(),
            replace: false,
            daemon: None,
            newcomer: None,
            connections: 0,
            deaf_until: None,
            deadline: Some(Instant::now() + grace),
            ending: None,
            shutdown_requests: Vec::new(),
            tick: DRAIN_TICK.0,
            warden: Some(warden),
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
            for id in ready.exec_reports {
                self.read_exec_report(&id);
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
            if let Some(warden) = &mut self.warden {
                warden.replace_if_due();
            }
            self.drain();
            if ready.quiet {
                self.refill();
            }
            if std::mem::take(&mut self.replace)
                && self.ending.is_none()
                && self.ahead.is_short(&self.walls)
            {
                self.ahead.refill(&mut self.manager, &mut self.walls);
            }
            if let Some(since) = self.ending {
                let all_ended = |e: &Entry| matches!(e.state, State::Ended(_));
                if self.entries.values().all(all_ended) && !self.ahead.is_ending() {
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

    /// After everything is removed: nothing is left for the warden to end.
    pub(super) fn dismiss_warden(&mut self) {
        if let Some(warden) = self.warden.take() {
            warden.dismiss();
        }
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
        if let Some(due) = self.warden.as_ref().and_then(Warden::due_in) {
            timeout = Some(timeout.map_or(due, |t| t.min(due)));
        }
        let deaf = self
            .deaf_until
            .map(|until| until.saturating_duration_since(Instant::now()))
            .filter(|left| !left.is_zero());
        if let Some(left) = deaf {
            timeout = Some(timeout.map_or(left, |t| t.min(left)));
        }
        if draining || self.ending.is_some() || self.ahead.is_ending() {
            timeout = Some(timeout.map_or(self.tick, |t| t.min(self.tick)));
        }
        if self.is_short() {
            timeout = Some(timeout.map_or(QUIET, |t| t.min(QUIET)));
        }
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: i64::from(t.subsec_nanos()),
        });

        let (mut ids, mut exec_ids) = (Vec::new(), Vec::new());
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(
                &self.listener,
                if deaf.is_some() {
                    PollFlags::empty()
                } else {
                    PollFlags::IN
                },
            ),
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
        for (id, exec) in &self.execs {
            if let Some(report) = exec.report() {
                exec_ids.push(id);
                fds.push(PollFd::new(report, PollFlags::IN));
            }
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => {
                return Ok(Ready {
                    quiet: true,
                    ..Ready::default()
                });
            }
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
        ready.exec_reports = exec_ids.into_iter().filter(|_| next()).cloned().collect();
        Ok(ready)
    }

    /// Whether something that is made ahead is missing.
    fn is_short(&self) -> bool {
        let users = self.walls.users.as_ref();
        self.ending.is_none()
            && (self.manager.is_short()
                || users.is_some_and(Pool::is_short)
                || self.ahead.is_short(&self.walls))
    }

    /// Makes one thing ahead.
    fn refill(&mut self) {
        if !self.is_short() {
            return;
        }
        match self.walls.users.as_mut().filter(|pool| pool.is_short()) {
            Some(pool) => pool.refill(),
            None if self.manager.is_short() => self.manager.refill(),
            None => self.ahead.refill(&mut self.manager, &mut self.walls),
        }
    }

    fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Instant::now());
        self.newcomer = None;
        self.ahead.end();
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
