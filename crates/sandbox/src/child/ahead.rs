//! A process that is made before it is known what it shall be: behind all walls that do not depend
//! on it, waiting for one message.
//!
//! Owns: the message, and the way to it. Must not: look at anything of a container before, or hold
//! anything of another one meanwhile.
//!
//! ```text
//! made --message--> as every other process from there on
//!   \--the other end is closed--> gone
//! ```

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::stage::Stage;
use super::{
    Failure, Mounted, Place, Plan, Program, Step, begin, end, enter_network, enter_new,
    leave_cgroups, leave_spawner, mounts,
};
use crate::cgroup::Cgroup;
use crate::frame::{Arrived, Frame, Inbox, Outbox, parse};
use crate::spec::ProcessSpec;
use crate::sys::{self, BpfInstruction};
use crate::userns::UserNamespace;
use crate::weak::{self, Wall};

/// Longer ones would not fit into the socket at once (net.core.wmem_default, 208 KiB), and the
/// spawner does not wait.
const MAX_MESSAGE: usize = 64 * 1024;

/// What it has from the beginning.
pub(crate) struct Ahead<'a> {
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) users: Option<&'a UserNamespace>,
    /// Where the message comes from.
    pub(crate) orders: BorrowedFd<'a>,
    /// Standard output and error.
    pub(crate) streams: [BorrowedFd<'a>; 2],
    /// As [`Plan::report`].
    pub(crate) report: BorrowedFd<'a>,
    pub(crate) filter: &'a [BpfInstruction],
    pub(crate) landlock: Option<BorrowedFd<'a>>,
}

/// What it is to become.
#[derive(Serialize, Deserialize)]
struct Order<S> {
    spec: S,
    sys: bool,
    stdin: bool,
}

/// The descriptors that go with the order, in this order.
pub(crate) struct Given {
    pub(crate) netns: OwnedFd,
    /// As [`crate::SpawnFds::sys`].
    pub(crate) sys: Option<OwnedFd>,
    /// A mount of the disk, if it is to have one.
    pub(crate) disk: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
}

impl Given {
    /// The message that tells a process what to become. `None`: it would be too long.
    pub(crate) fn to(self, spec: &ProcessSpec) -> io::Result<Option<Frame>> {
        let order = Order {
            spec,
            sys: self.sys.is_some(),
            stdin: self.stdin.is_some(),
        };
        let descriptors = std::iter::once(self.netns)
            .chain(self.sys)
            .chain(self.disk)
            .chain(self.stdin)
            .collect();
        let frame = Frame::new(&order, descriptors)?;
        Ok((frame.len() <= MAX_MESSAGE).then_some(frame))
    }
}

/// Sends it. Does not block.
///
/// # Errors
/// The process is gone.
pub(crate) fn send(orders: BorrowedFd<'_>, order: Frame) -> io::Result<()> {
    let mut outbox = Outbox::default();
    outbox.push(order);
    outbox.flush(orders)
}

/// Runs in the child. Never returns, not even by panic.
pub(crate) fn run(ahead: &Ahead<'_>) -> ! {
    end(ahead.report, |report| {
        begin();
        set_up(ahead, report)
    })
}

fn set_up<'a>(ahead: &Ahead<'a>, report: &Cell<BorrowedFd<'a>>) -> Result<Infallible, Failure> {
    let mut kept = vec![
        ahead.orders,
        ahead.streams[0],
        ahead.streams[1],
        ahead.report,
    ];
    kept.extend(ahead.users.map(AsFd::as_fd));
    kept.extend(ahead.landlock);
    if !weak::is_down(Wall::Descriptors) {
        // SAFETY: whatever else the parent's memory image owns is never dropped here, as this
        // process ends only by exec or _exit.
        unsafe { sys::close_all_but(&kept) }.step(|| "closing descriptors".to_owned())?;
    }
    leave_spawner(ahead.cgroup)?;
    leave_cgroups(ahead.users)?;
    mounts::follow_propagation()?;
    let root = ahead.users.map_or(0, |users| users.root);
    let mut stage = Stage::make(ahead.cgroup, root, &[])?;
    stage.become_root()?;
    let Some((order, descriptors)) =
        receive(ahead.orders).step(|| "waiting for the request".to_owned())?
    else {
        sys::exit_now(0)
    };
    let mut descriptors = descriptors.into_iter();
    let netns = descriptors.next();
    let spec = &order.spec;
    let sys = if order.sys { descriptors.next() } else { None };
    let disk = spec.disk.as_ref().and_then(|_| descriptors.next());
    let mounted = Mounted {
        sys: sys.as_ref().map(AsFd::as_fd),
        disk: disk.as_ref().map(AsFd::as_fd),
    };
    let stdin = descriptors.next().filter(|_| order.stdin);
    let plan = Plan {
        program: Program::of(spec, ahead.users),
        place: Place::New {
            spec,
            netns: netns.as_ref().map(AsFd::as_fd),
            mounted,
            last_words: None,
        },
        cgroup: ahead.cgroup,
        users: ahead.users,
        streams: [
            stdin.as_ref().map(AsFd::as_fd),
            Some(ahead.streams[0]),
            Some(ahead.streams[1]),
        ],
        terminal: false,
        inherit: &[],
        image: None,
        report: ahead.report,
        filter: ahead.filter,
        landlock: ahead.landlock,
        class: spec.isolation.class(),
    };
    enter_network(netns.as_ref().map(AsFd::as_fd))?;
    enter_new(spec, mounted, &plan, Some(stage))?;
    plan.class.become_program(&plan, report)
}

/// `None`: the spawner has no use for it, or is gone.
fn receive(orders: BorrowedFd<'_>) -> io::Result<Option<(Order<ProcessSpec>, Vec<OwnedFd>)>> {
    let mut inbox = Inbox::default();
    loop {
        if let Some(Arrived {
            payload,
            descriptors,
        }) = inbox.next()?
        {
            return Ok(Some((parse(&payload)?, descriptors?)));
        }
        match poll(&mut [PollFd::new(&orders, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match inbox.fill(orders) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
