//! Processes made ahead: children behind walls of their own that wait to be told which container
//! they are.
//!
//! Owns: how many there are, and what becomes of those that nobody needs. Must not: know of
//! requests' owners.
//!
//! ```text
//! (none) --make--> ready --start--> a container's process (the caller's)
//!                    \--end, or its own end--> ending --reaped, cgroup removed--> (none)
//! ```
//! Each has a cgroup and a range of ids of its own. Its limits of memory and processes are those of
//! the last start, since most are alike; if they are others, they are changed with the start. The
//! limit of CPU comes with the start: at a hundredth of a core, what is made ahead would take long.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{PipeFlags, pipe_with};

use super::launch::{self, Launched, Walls};
use crate::cgroup::{Cgroup, Manager};
use crate::child::{
    self,
    ahead::{Ahead, Given},
    scratch,
};
use crate::spec::{Limits, Mount, ProcessSpec, Root};
use crate::sys::{self, Forked};
use crate::userns::UserNamespace;

/// How many are kept ready. What each takes is in BENCHMARKS.md, "Beyond single starts".
const READY: usize = 8;

/// A process that was made ahead, and waits.
#[derive(Debug)]
struct Waiting {
    pid: i32,
    pidfd: OwnedFd,
    /// Closed, it ends.
    orders: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    report: OwnedFd,
    cgroup: Cgroup,
    /// What it is held to already.
    held: Limits,
    users: Option<UserNamespace>,
}

/// Not needed any more.
#[derive(Debug)]
struct Ending {
    pid: i32,
    is_reaped: bool,
    cgroup: Cgroup,
    users: Option<UserNamespace>,
}

/// All of a spawner.
#[derive(Debug, Default)]
pub(super) struct Pool {
    ready: VecDeque<Waiting>,
    ending: Vec<Ending>,
    /// Whether more are expected. The first container sets it: where none was ever started, none is
    /// expected.
    wanted: bool,
    /// Limits of the last container, as far as they are set ahead.
    expected: Limits,
}

impl Pool {
    /// Whether [`Pool::refill`] has something to do. The last ranges of ids are for those who ask
    /// for one.
    pub(super) fn is_short(&self, walls: &Walls) -> bool {
        let ids = walls.users.as_ref();
        self.wanted && self.ready.len() < READY && ids.is_none_or(|ids| ids.left() > 2 * READY)
    }

    /// Whether [`Pool::settle`] has something to do, or will.
    pub(super) fn is_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    /// A container was started: more are expected, with the same limits.
    pub(super) fn expect_more(&mut self, limits: &Limits) {
        self.wanted = true;
        // Who has none could not become one with it, so those of others stay.
        if limits.memory_bytes.is_some() && limits.pids.is_some() {
            self.expected = Limits {
                memory_bytes: limits.memory_bytes,
                pids: limits.pids,
                ..Limits::default()
            };
        }
    }

    /// Makes one more. To be called when nobody waits.
    pub(super) fn refill(&mut self, manager: &mut Manager, walls: &mut Walls) {
        match make(manager, walls, self.expected.clone()) {
            Ok(waiting) => self.ready.push_back(waiting),
            Err(error) => {
                self.wanted = false; // Until the next start.
                eprintln!("spawner: making a process ahead: {error}");
            }
        }
    }

    /// Starts the process, if one is ready that can become it; `None`: it is to be started in the
    /// ordinary way. It may still fail; see [`Launched::report`].
    pub(super) fn start(
        &mut self,
        manager: &mut Manager,
        spec: &ProcessSpec,
        given: &launch::Given,
    ) -> io::Result<Option<Launched>> {
        let limits = spec.isolation.limits(&spec.limits);
        let fits = |it: &Waiting| missing(&it.held, &limits).is_some();
        let useful = self.ready.front().is_some_and(fits) && can_become(spec, given);
        let Some(netns) = given.netns.as_ref().filter(|_| useful) else {
            return Ok(None);
        };
        let (child_stdin, stdin) = launch::stdin(spec)?;
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let order = Given {
            netns: netns.try_clone()?,
            sys: copy(&given.sys)?,
            disk: copy(&given.disk)?,
            stdin: child_stdin,
        };
        let Some(order) = order.to(spec)? else {
            return Ok(None);
        };
        let Some(waiting) = self.take() else {
            return Ok(None);
        };
        let begun = missing(&waiting.held, &limits)
            .ok_or_else(|| io::Error::other("it is held to more than the container"))
            .and_then(|missing| manager.limit(&waiting.cgroup, &missing))
            .and_then(|()| child::ahead::send(waiting.orders.as_fd(), order));
        if let Err(error) = begun {
            eprintln!("spawner: a process made ahead was of no use: {error}");
            self.end_one(waiting);
            return Ok(None);
        }
        Ok(Some(Launched {
            pid: waiting.pid,
            pidfd: waiting.pidfd,
            stdout: waiting.stdout,
            stderr: waiting.stderr,
            stdin,
            report: waiting.report,
            last_words: None,
            cgroup: waiting.cgroup,
            users: waiting.users,
        }))
    }

    /// Takes one that lives.
    fn take(&mut self) -> Option<Waiting> {
        loop {
            let waiting = self.ready.pop_front()?;
            let mut fd = [PollFd::new(&waiting.pidfd, PollFlags::IN)];
            // Readable at its end (pidfd_open(2)), which may not have been told yet.
            match rustix::event::poll(&mut fd, Some(&Timespec::default())) {
                Ok(0) => return Some(waiting),
                _ => self.end_one(waiting),
            }
        }
    }

    /// Ends all that wait.
    pub(super) fn end(&mut self) {
        self.wanted = false;
        while let Some(waiting) = self.ready.pop_front() {
            self.end_one(waiting);
        }
    }

    fn end_one(&mut self, waiting: Waiting) {
        let Waiting {
            pid,
            pidfd,
            cgroup,
            users,
            ..
        } = waiting;
        if let Err(error) = sys::signal_process(pidfd.as_fd(), libc::SIGKILL) {
            eprintln!("spawner: killing a process made ahead: {error}");
        }
        self.ending.push(Ending {
            pid,
            is_reaped: false,
            cgroup,
            users,
        });
    }

    /// A child has ended; whether it was one of these.
    pub(super) fn reaped(&mut self, pid: i32) -> bool {
        if let Some(at) = self.ready.iter().position(|it| it.pid == pid)
            && let Some(waiting) = self.ready.remove(at)
        {
            // Killed by somebody, or it failed: not tried again before the next start.
            self.wanted = false;
            eprintln!(
                "spawner: a process made ahead has ended: {}",
                said(&waiting)
            );
            self.end_one(waiting);
        }
        match self.ending.iter_mut().find(|it| it.pid == pid) {
            Some(ending) => {
                ending.is_reaped = true;
                true
            }
            None => false,
        }
    }

    /// Removes the cgroups of those that have ended, as far as that can be done now.
    pub(super) fn settle(&mut self, walls: &mut Walls) {
        for mut ending in std::mem::take(&mut self.ending) {
            let is_gone = ending.is_reaped
                && ending.cgroup.remove().unwrap_or_else(|error| {
                    eprintln!("spawner: removing a cgroup: {error}");
                    false
                });
            match (is_gone, &mut walls.users, ending.users.take()) {
                (true, Some(pool), Some(users)) => pool.give_back(users),
                (true, ..) => {}
                (false, _, users) => self.ending.push(Ending { users, ..ending }),
            }
        }
    }
}

/// What it says of its failure.
fn said(waiting: &Waiting) -> String {
    let mut text = [0; child::MAX_REPORT];
    match rustix::io::read(&waiting.report, &mut text) {
        Ok(length @ 1..) => String::from_utf8_lossy(&text[1..length]).into_owned(),
        _ => "no reason is known".to_owned(),
    }
}

/// Whether nothing in the request was to be known earlier.
fn can_become(spec: &ProcessSpec, given: &launch::Given) -> bool {
    let is_container =
        matches!(spec.root, Root::Overlay { .. }) && spec.isolation.class().is_on_host_kernel();
    let shows_host = |mount: &Mount| matches!(mount, Mount::Bind { .. });
    is_container
        && spec.hostname.is_some()
        && given.image.is_none()
        && given.inherit.is_empty()
        && !spec.mounts.iter().any(shows_host)
        && scratch::content(&spec.mounts) <= scratch::FILES
}

/// The limits that are still to be set where `held` is set already. `None`: `held` has one that
/// `limits` has not.
fn missing(held: &Limits, limits: &Limits) -> Option<Limits> {
    let mut limits = limits.clone();
    for (held, limit) in [
        (held.memory_bytes, &mut limits.memory_bytes),
        (held.pids, &mut limits.pids),
    ] {
        if held.is_some() && limit.is_none() {
            return None;
        }
        if held == *limit {
            *limit = None;
        }
    }
    Some(limits)
}

fn make(manager: &mut Manager, walls: &mut Walls, held: Limits) -> io::Result<Waiting> {
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (report, child_report) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&report, true)?;
    let (orders, child_orders) = UnixStream::pair()?;
    let cgroup = manager.create(&held)?;
    let users = match walls.users.as_mut().map(|pool| pool.take()).transpose() {
        Ok(users) => users,
        Err(error) => {
            cgroup.remove()?;
            return Err(error);
        }
    };
    let namespaces = super::launch::namespaces(true);
    let forked = cgroup.open_v2().and_then(|v2| {
        // SAFETY: the spawner has one thread, and the child goes to `child::ahead::run`, which does
        // not return.
        unsafe { sys::fork_with(namespaces, v2.as_ref().map(AsFd::as_fd)) }
    });
    match forked {
        Ok(Forked::Child) => child::ahead::run(&Ahead {
            cgroup: &cgroup,
            users: users.as_ref(),
            orders: child_orders.as_fd(),
            streams: [child_stdout.as_fd(), child_stderr.as_fd()],
            report: child_report.as_fd(),
            filter: &walls.filters.container,
            landlock: walls.landlock.as_ref().map(AsFd::as_fd),
        }),
        Ok(Forked::Parent { pid, pidfd }) => Ok(Waiting {
            pid,
            pidfd,
            orders: orders.into(),
            stdout,
            stderr,
            report,
            cgroup,
            held,
            users,
        }),
        Err(error) => {
            if let (Some(pool), Some(users)) = (&mut walls.users, users) {
                pool.give_back(users);
            }
            cgroup.remove()?;
            Err(error)
        }
    }
}
