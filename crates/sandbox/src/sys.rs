//! System calls that no safe wrapper exists for. Every `unsafe` block of this crate outside `netns` is here.
//!
//! Must not: decide anything; each function is one call and its error.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// CLONE_INTO_CGROUP of clone3(2); wider than the integer type that libc gives the other CLONE_ constants.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// One instruction of classic BPF (`struct sock_filter`, linux/filter.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BpfInstruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// Where a clone returned.
pub(crate) enum Forked {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// clone3(2) like fork(2), with namespaces, a pidfd and, if asked for, straight into a v2 cgroup.
///
/// # Safety
/// The process must be single-threaded (another thread could hold the allocator's lock), and the child must not return to its
/// caller's caller: it ends in [`exec`] or [`exit_now`].
pub(crate) unsafe fn fork_with(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    #[repr(C, align(8))]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let mut flags = namespaces | libc::CLONE_PIDFD as u64;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let args = CloneArgs {
        flags,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` is a valid clone_args of the stated size and outlives the call; without CLONE_VM the child has its own copy of
    // memory and stack, and the caller promises a single thread.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has written a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent {
        pid: pid as i32,
        pidfd,
    })
}

/// [`fork_with`], into the PID namespace of the process that `container` refers to. Only the child enters it; it stays this process's child.
///
/// # Safety
/// As [`fork_with`].
pub(crate) unsafe fn fork_inside(
    container: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Forked> {
    let own = rustix::fs::open(
        "/proc/self/ns/pid",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    // Of a PID namespace that was entered, only children to come are members (setns(2)).
    let pid_namespace = rustix::thread::ThreadNameSpaceType::PROCESS_ID;
    rustix::thread::move_into_thread_name_spaces(container, pid_namespace)?;
    // SAFETY: the caller's promise.
    let forked = unsafe { fork_with(0, cgroup) };
    if matches!(forked, Ok(Forked::Child)) {
        return forked;
    }
    let back = rustix::thread::LinkNameSpaceType::ProcessID;
    if let Err(error) = rustix::thread::move_into_link_name_space(own.as_fd(), Some(back)) {
        // Whatever was started from now on would be inside this container.
        eprintln!("spawner: it does not leave a container's PID namespace: {error}");
        exit_now(1);
    }
    forked
}

/// Executes this program once more from a read-only mount of its own file, with the same arguments and environment. Returns at once if it
/// runs from one already.
///
/// Whoever a child of this process becomes could otherwise write to the file through `/proc/<pid>/exe` (CVE-2019-5736).
pub(crate) fn run_from_read_only_mount() -> io::Result<()> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    use std::os::unix::ffi::OsStringExt;
    let exe = "/proc/self/exe";
    if rustix::fs::statvfs(exe)?
        .f_flag
        .contains(rustix::fs::StatVfsMountFlags::RDONLY)
    {
        return Ok(());
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(rustix::fs::CWD, exe, flags)?;
    set_mount_attributes(copy.as_fd(), libc::MOUNT_ATTR_RDONLY, false)?;
    let strings = |texts: Vec<std::ffi::OsString>| -> io::Result<Vec<CString>> {
        let strings = texts.into_iter().map(|t| CString::new(t.into_vec()));
        Ok(strings.collect::<Result<_, _>>()?)
    };
    let argv = strings(std::env::args_os().collect())?;
    let env = std::env::vars_os().map(|(mut entry, value)| {
        entry.push("=");
        entry.push(value);
        entry
    });
    let env = strings(env.collect())?;
    let (argv, env) = (pointers(&argv), pointers(&env));
    // SAFETY: the path is an empty C string; both arrays are null-terminated and point at strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            copy.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

/// fork(2). `Ok(None)` in the child.
///
/// # Safety
/// The process must be single-threaded.
pub(crate) unsafe fn fork() -> io::Result<Option<i32>> {
    // SAFETY: no other thread exists (the caller's promise), so the child's copy of every lock is in a known state.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok((pid != 0).then_some(pid as i32))
}

/// _exit(2): no destructors, no flushing of buffers that the parent also has.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// An array as execve(2) wants it.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// execve(2); returns only with an error.
pub(crate) fn exec(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays are null-terminated and point at strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// dup2(2): `target` refers to what `fd` does and stays open across exec.
///
/// # Safety
/// No live `OwnedFd` of this process may own `target`.
pub(crate) unsafe fn dup_onto(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: replacing `target` closes what was there; the caller promises that nobody owns it.
    check(libc::c_long::from(unsafe {
        libc::dup2(fd.as_raw_fd(), target)
    }))?;
    Ok(())
}

/// Marks every descriptor from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags change; no descriptor is closed.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// No live object of this process may own one of them.
pub(crate) unsafe fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller promises that nobody owns these descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// What a signal does when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    Default,
    Ignore,
}

/// Sets the disposition of one signal. Numbers that cannot be changed are skipped.
pub(crate) fn set_signal(signal: i32, disposition: Disposition) {
    let handler = match disposition {
        Disposition::Default => libc::SIG_DFL,
        Disposition::Ignore => libc::SIG_IGN,
    };
    // SAFETY: no handler function is installed, only the two constants; SIGKILL and friends fail with EINVAL and stay as they are.
    unsafe { libc::signal(signal, handler) };
}

/// Blocks exactly these signals.
pub(crate) fn block_signals(signals: &[i32]) -> io::Result<()> {
    // SAFETY: sigset_t is plain data and sigemptyset initialises it before use.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut())
    };
    check(libc::c_long::from(result))?;
    Ok(())
}

/// signalfd(2), non-blocking, for these (blocked) signals.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; the returned descriptor is new and owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Length of `struct signalfd_siginfo`; its first four bytes are the signal's number.
pub(crate) const SIGNAL_RECORD: usize = size_of::<libc::signalfd_siginfo>();

/// Sends any signal number (rustix's type holds only named ones) through a pidfd. `Ok(false)`: no such process any more.
pub(crate) fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<bool> {
    // SAFETY: a null siginfo is allowed (pidfd_send_signal(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match check(result) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// mount_setattr(2) on what `mount` refers to.
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the attributes live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// A new, anonymous session keyring, so that none is shared with the host. Kernels without keys need none.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring (keyctl_join_session_keyring(3)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    match check(result) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// Installs a seccomp filter for this thread. Needs no_new_privs.
pub(crate) fn install_seccomp(program: &[BpfInstruction]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const BpfInstruction,
    }
    let len =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = Program {
        len,
        filter: program.as_ptr(),
    };
    // SAFETY: `program` describes a live slice of instructions laid out as struct sock_filter; the kernel copies and checks it.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    })?;
    Ok(())
}

/// Leaves the shared mount namespace and file system attributes of this thread behind.
///
/// # Safety
/// The calling thread must be the caller's own: nothing else may run on it afterwards that relies on paths or the working directory.
pub(crate) unsafe fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the caller owns the thread.
    check(libc::c_long::from(unsafe {
        libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS)
    }))?;
    Ok(())
}

/// A new cgroup namespace, rooted where the process is now.
pub(crate) fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: a cgroup namespace changes only what this process sees in /proc/*/cgroup and cgroup mounts.
    check(libc::c_long::from(unsafe {
        libc::unshare(libc::CLONE_NEWCGROUP)
    }))?;
    Ok(())
}

/// A descriptor number as something to borrow.
///
/// # Safety
/// `fd` must be open for `'a`.
pub(crate) unsafe fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the caller promises that it is open.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
