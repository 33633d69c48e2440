//! The messages between daemon and spawner. How they travel: [`crate::frame`].

use serde::{Deserialize, Serialize};

use super::Exit;
use crate::cgroup::Usage;
use crate::spec::{ExecSpec, ProcessSpec};

/// Changes whenever daemon and spawner of two builds could misunderstand each other.
pub(super) const VERSION: u32 = 7;

/// A message from the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// Comes back in the reply.
    pub(super) number: u64,
    pub(super) body: RequestBody,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum RequestBody {
    /// The first one: from now on this is the daemon. Answered by [`Message::Welcome`].
    Hello,
    /// Descriptors: the network namespace if `netns`, its sysfs if `sys`, the disk's mount if the
    /// request has a disk, the process image if `image`, then one per number in `inherit`.
    Spawn {
        spec: Box<ProcessSpec>,
        netns: bool,
        sys: bool,
        image: bool,
        inherit: Vec<i32>,
    },
    /// A process inside a container.
    Exec {
        spec: Box<ExecSpec>,
    },
    Signal {
        id: String,
        signal: i32,
    },
    /// To one that [`RequestBody::Exec`] started. An unknown one has ended.
    SignalExec {
        id: String,
        signal: i32,
    },
    Kill {
        id: String,
    },
    Usage {
        id: String,
    },
    /// Freezes the container until [`RequestBody::Thaw`], or until this daemon is gone.
    Freeze {
        id: String,
    },
    Thaw {
        id: String,
    },
    Forget {
        id: String,
    },
    Shutdown,
}

/// A message from the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// The first one; `survivors` messages of that kind follow.
    Welcome {
        version: u32,
        pid: u32,
        survivors: usize,
    },
    /// Descriptors: standard output, standard error, the disk's mount if there is one.
    Survivor {
        id: String,
        label: String,
        pid: i32,
        exit: Option<Exit>,
    },
    Reply {
        number: u64,
        body: ReplyBody,
    },
    /// A process has ended, and all of its cgroup with it.
    Exited {
        id: String,
        exit: Exit,
    },
    /// A process inside a container has ended, and is forgotten.
    ExecExited {
        id: String,
        exit: Exit,
    },
    /// Another daemon took this one's place.
    Replaced,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ReplyBody {
    /// Descriptors: standard output, standard error, standard input if it is a pipe.
    Spawned {
        id: String,
        pid: i32,
        not_restored: Option<String>,
    },
    /// Descriptors: none for no streams; standard output, error and, if it is a pipe, input; or the
    /// terminal.
    ExecStarted {
        id: String,
        pid: i32,
        inside_pid: i32,
    },
    /// The container that a process was to run in does not.
    NotRunning {
        message: String,
    },
    Refused {
        message: String,
        exit_code: i32,
    },
    Failed {
        message: String,
    },
    /// Something that the machine or this process has only so much of is used up.
    Exhausted {
        message: String,
    },
    Usage(Box<Usage>),
    /// Whether the signal found a process.
    Signalled(bool),
    /// Whether all processes stand still by now.
    Frozen(bool),
    Done,
}
