//! Starting one process inside a running container: its streams, and the clone into the container's
//! PID namespace and cgroup.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::launch::check_id;
use crate::cgroup::Cgroup;
use crate::child::class::IsolationClass;
use crate::child::{self, Place, Plan, Program};
use crate::spec::{Capabilities, ExecSpec, ExecStreams, TerminalSize};
use crate::sys::{self, BpfInstruction, Forked};
use crate::userns::UserNamespace;

/// devpts (linux/magic.h).
const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;

/// The container that it is to run in.
pub(super) struct Container<'a> {
    pub(super) pid: i32,
    pub(super) pidfd: BorrowedFd<'a>,
    pub(super) cgroup: &'a Cgroup,
    pub(super) users: Option<&'a UserNamespace>,
    pub(super) capabilities: Capabilities,
    pub(super) no_new_privileges: bool,
    pub(super) class: IsolationClass,
}

/// A process between clone and exec.
pub(super) struct LaunchedExec {
    pub(super) pid: i32,
    /// Its number in the container's PID namespace.
    pub(super) inside_pid: i32,
    pub(super) pidfd: OwnedFd,
    /// As [`super::launch::Launched::report`].
    pub(super) report: OwnedFd,
    /// Descriptors for the daemon: nothing; output, error and, if asked for, input; or the
    /// terminal.
    pub(super) ends: Vec<OwnedFd>,
}

/// Why a request cannot be carried out as it stands.
pub(super) fn check(spec: &ExecSpec) -> Result<(), String> {
    check_id(&spec.id)?;
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err("no command: give a program to execute".to_owned());
    }
    Ok(())
}

/// Both sides of the standard streams.
struct Streams {
    /// Input, output, error; `None` is the container's /dev/null.
    inside: [Option<OwnedFd>; 3],
    terminal: bool,
    ends: Vec<OwnedFd>,
}

/// Starts the process. ESRCH and ENOMEM of the clone may mean that the container ends at this
/// moment.
pub(super) fn launch(
    container: &Container<'_>,
    filter: &[BpfInstruction],
    spec: &ExecSpec,
) -> io::Result<LaunchedExec> {
    let streams = open_streams(container.pid, spec.streams)?;
    let (report, child_report) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&report, true)?;
    let v2 = container.cgroup.open_v2()?;
    // SAFETY: the spawner has one thread, and the child goes to `child::run`, which does not
    // return.
    let forked = unsafe { sys::fork_inside(container.pidfd, v2.as_ref().map(AsFd::as_fd)) }?;
    let (pid, pidfd) = match forked {
        Forked::Child => child::run(&Plan {
            program: Program {
                argv: &spec.argv,
                env: &spec.env,
                cwd: &spec.cwd,
                user: &spec.user,
                nofile: spec.nofile,
                capabilities: container.capabilities,
                no_new_privileges: container.no_new_privileges,
            },
            place: Place::Joined {
                container: container.pidfd,
            },
            cgroup: container.cgroup,
            users: container.users,
            streams: streams
                .inside
                .each_ref()
                .map(|s| s.as_ref().map(AsFd::as_fd)),
            terminal: streams.terminal,
            inherit: &[],
            image: None,
            report: child_report.as_fd(),
            filter,
            landlock: None,
            class: container.class,
        }),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    match number_inside(pidfd.as_fd()) {
        Ok(inside_pid) => Ok(LaunchedExec {
            pid,
            inside_pid,
            pidfd,
            report,
            ends: streams.ends,
        }),
        Err(error) => {
            sys::signal_process(pidfd.as_fd(), libc::SIGKILL)?;
            Err(error)
        }
    }
}

/// Starts a program of the container's class beside the container, with these arguments, and
/// returns its process id.
pub(super) fn launch_beside(
    container: &Container<'_>,
    filter: &[BpfInstruction],
    argv: &[String],
) -> io::Result<i32> {
    // Nobody reads it; that the process fails shows in its exit code.
    let (_report, child_report) = pipe_with(PipeFlags::CLOEXEC)?;
    let v2 = container.cgroup.open_v2()?;
    // SAFETY: the spawner has one thread, and the child goes to `child::run`, which does not
    // return.
    match unsafe { sys::fork_inside(container.pidfd, v2.as_ref().map(AsFd::as_fd)) }? {
        Forked::Child => child::run(&Plan {
            program: Program {
                argv,
                env: &[],
                cwd: "/",
                user: "",
                nofile: None,
                capabilities: Capabilities::NONE,
                no_new_privileges: true,
            },
            place: Place::Beside {
                container: container.pidfd,
            },
            cgroup: container.cgroup,
            users: container.users,
            streams: [None, None, None],
            terminal: false,
            inherit: &[],
            image: None,
            report: child_report.as_fd(),
            filter,
            landlock: None,
            class: container.class,
        }),
        Forked::Parent { pid, .. } => Ok(pid),
    }
}

fn open_streams(container: i32, streams: ExecStreams) -> io::Result<Streams> {
    match streams {
        ExecStreams::Null => Ok(Streams {
            inside: [None, None, None],
            terminal: false,
            ends: Vec::new(),
        }),
        ExecStreams::Pipes { stdin } => {
            let (out, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
            let (err, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
            let mut ends = vec![out, err];
            let mut child_stdin = None;
            if stdin {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                child_stdin = Some(read);
                ends.push(write);
            }
            Ok(Streams {
                inside: [child_stdin, Some(stdout), Some(stderr)],
                terminal: false,
                ends,
            })
        }
        ExecStreams::Terminal(size) => {
            let (master, terminal) = open_terminal(container, size)
                .map_err(|e| io::Error::new(e.kind(), format!("opening a terminal: {e}")))?;
            Ok(Streams {
                inside: [
                    Some(terminal.try_clone()?),
                    Some(terminal.try_clone()?),
                    Some(terminal),
                ],
                terminal: true,
                ends: vec![master],
            })
        }
    }
}

/// A new terminal of the container's own devpts, so that its name means the same inside. The mount
/// cannot be replaced from inside, which takes CAP_SYS_ADMIN; what else the container did below
/// /dev does not matter.
fn open_terminal(container: i32, size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{container}/root"), directory, Mode::empty())?;
    let master = rustix::fs::openat2(
        &root,
        "dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    )?;
    if rustix::fs::fstatfs(&master)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("the container's /dev/pts is no devpts"));
    }
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal, size)?;
    Ok((master, terminal))
}

/// The process's number in the innermost PID namespace (`NSpid`, proc_pid_fdinfo(5)). It is not
/// reaped yet, so it has one.
fn number_inside(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    text.lines()
        .find_map(|l| {
            l.strip_prefix("NSpid:")?
                .split_whitespace()
                .last()?
                .parse()
                .ok()
        })
        .ok_or_else(|| io::Error::other(format!("no NSpid in {text:?}")))
}
