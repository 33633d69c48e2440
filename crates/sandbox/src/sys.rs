//! System calls that no safe wrapper exists for. Every `unsafe` block of this crate outside `netns`
//! is here and below.
//!
//! Must not: decide anything; each function is one call and its error.

pub(crate) mod ptrace;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::weak::{self, Wall};

/// CLONE_INTO_CGROUP of clone3(2); wider than the integer type that libc gives the other CLONE_
/// constants.
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
/// The process must be single-threaded (another thread could hold the allocator's lock), and the
/// child must not return to its caller's caller: it ends in [`exec`] or [`exit_now`].
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
    // SAFETY: `args` is a valid clone_args of the stated size and outlives the call; without
    // CLONE_VM the child has its own copy of memory and stack, and the caller promises a single
    // thread.
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

/// [`fork_with`], into the PID namespace of the process that `container` refers to. Only the child
/// enters it; it stays this process's child.
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

/// Executes this program once more from a read-only mount of its own file, with the same arguments
/// and environment. Returns at once if it runs from one already.
///
/// Whoever a child of this process becomes could otherwise write to the file through
/// `/proc/<pid>/exe` (CVE-2019-5736).
pub(crate) fn run_from_read_only_mount() -> io::Result<()> {
    use std::os::unix::ffi::OsStringExt;

    use rustix::mount::{OpenTreeFlags, open_tree};
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
    // SAFETY: the path is an empty C string; both arrays are null-terminated and point at strings
    // that outlive the call.
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
    // SAFETY: no other thread exists (the caller's promise), so the child's copy of every lock is
    // in a known state.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok((pid != 0).then_some(pid as i32))
}

/// Waits until this process is killed, or its parent ends.
pub(crate) fn wait_for_end() -> ! {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: pause has no preconditions.
        unsafe { libc::pause() };
    }
}

/// Files that this process makes from now on belong to `id` (user and group), on every file system.
/// It keeps its capabilities.
pub(crate) fn make_files_as(id: u32) -> io::Result<()> {
    // SAFETY: both take a number; only this thread's credentials change. They return the previous
    // id, and fail silently.
    let now = unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if now != (id as i32, id as i32) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // Leaving id 0 has made some ineffective (capabilities(7)).
    make_capabilities_effective()
}

/// Makes all capabilities that this thread may use effective.
pub(crate) fn make_capabilities_effective() -> io::Result<()> {
    let held = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(
        None,
        rustix::thread::CapabilitySets {
            effective: held.permitted,
            ..held
        },
    )?;
    Ok(())
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

/// close(2).
///
/// # Safety
/// No live `OwnedFd` of this process may own `fd`, or ever be dropped.
pub(crate) unsafe fn close(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the caller promises that nobody closes it again.
    check(libc::c_long::from(unsafe { libc::close(fd.as_raw_fd()) }))?;
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

/// Closes every descriptor from 3 on but these.
///
/// # Safety
/// No other `OwnedFd` of this process may ever be used or dropped again.
pub(crate) unsafe fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        if number > first {
            // SAFETY: the caller promises that nobody uses these any more.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, number - 1, 0) })?;
        }
        first = first.max(number + 1);
    }
    // SAFETY: likewise.
    unsafe { close_from(first) }
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
    // SAFETY: no handler function is installed, only the two constants; SIGKILL and friends fail
    // with EINVAL and stay as they are.
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
    // SAFETY: the set is initialised before use; the returned descriptor is new and owned by nobody
    // else.
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

/// Sends any signal number (rustix's type holds only named ones) through a pidfd. `Ok(false)`: no
/// such process any more.
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

/// Bytes that were sent on a socket and that its peer has not received yet (SIOCOUTQ, the same
/// number as tty_ioctl(2)'s TIOCOUTQ).
pub(crate) fn unreceived(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to a live variable.
    check(libc::c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes)
    }))?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// mount_setattr(2) on what `mount` refers to.
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    recursive: bool,
) -> io::Result<()> {
    let set = match weak::is_down(Wall::NoDevices) {
        true => set & !libc::MOUNT_ATTR_NODEV,
        false => set,
    };
    set_attributes(
        mount,
        libc::mount_attr {
            attr_set: set,
            attr_clr: 0,
            propagation: 0,
            userns_fd: 0,
        },
        recursive,
    )
}

/// mount_setattr(2) with MOUNT_ATTR_IDMAP: an id on disk is that id inside the user namespace.
/// EINVAL: not on this kind of file system.
pub(crate) fn map_mount_ids(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    set_attributes(
        mount,
        libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: user_namespace.as_raw_fd() as u64,
        },
        recursive,
    )
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
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

/// A new, anonymous session keyring, so that none is shared with the host. Kernels without keys
/// need none.
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

/// Installs a seccomp filter for this thread. Needs no_new_privs, or CAP_SYS_ADMIN in its user
/// namespace.
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
    // SAFETY: `program` describes a live slice of instructions laid out as struct sock_filter; the
    // kernel copies and checks it.
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

/// The number of a loop device that nobody uses at the moment (loop(4)).
pub(crate) fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
    // SAFETY: takes no argument.
    let number = check(libc::c_long::from(unsafe {
        libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE)
    }))?;
    Ok(number as u32)
}

/// Makes a free loop device show `file`, past the page cache where possible, until its last user is
/// gone. EBUSY: not free any more.
pub(crate) fn configure_loop_device(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const LO_FLAGS_DIRECT_IO: u32 = 16;
    /// `struct loop_config` with its `struct loop_info64` (linux/loop.h).
    #[repr(C)]
    struct Config {
        fd: u32,
        block_size: u32,
        device: [u64; 3],
        offset: u64,
        size_limit: u64,
        number: u32,
        encryption: [u32; 2],
        flags: u32,
        names: [u8; 64 + 64 + 32],
        init: [u64; 2],
        reserved: [u64; 8],
    }
    let config = Config {
        fd: file.as_raw_fd() as u32,
        block_size: 4096,
        device: [0; 3],
        offset: 0,
        size_limit: 0,
        number: 0,
        encryption: [0; 2],
        flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        names: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: `config` is laid out as struct loop_config and lives through the call.
    check(libc::c_long::from(unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config)
    }))?;
    Ok(())
}

/// Ends an ext4 file system where it stands: what is not written out yet is dropped
/// (EXT4_IOC_SHUTDOWN, linux/ext4.h).
pub(crate) fn shut_down_ext4(file: BorrowedFd<'_>) -> io::Result<()> {
    const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d;
    const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;
    let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
    // SAFETY: the kernel reads one u32, which lives through the call.
    check(libc::c_long::from(unsafe {
        libc::ioctl(file.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags)
    }))?;
    Ok(())
}

/// Gives the blocks of a file system that hold nothing back to what is below it (FITRIM,
/// linux/fs.h; fstrim(8)). Nothing happens where that cannot be done.
pub(crate) fn trim(file: BorrowedFd<'_>) -> io::Result<()> {
    const FITRIM: libc::Ioctl = 0xc018_5879;
    /// `struct fstrim_range`, bytes.
    #[repr(C)]
    struct Range {
        start: u64,
        len: u64,
        minlen: u64,
    }
    let mut range = Range {
        start: 0,
        len: u64::MAX,
        minlen: 64 << 10,
    };
    // SAFETY: the kernel reads and writes one such struct, which lives through the call.
    let done = check(libc::c_long::from(unsafe {
        libc::ioctl(file.as_raw_fd(), FITRIM, &raw mut range)
    }));
    match done {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other.map(drop),
    }
}

/// A Landlock rule set that restricts nothing but the reach of signals and of abstract Unix
/// sockets. `None`: not with this kernel (Linux 6.12).
pub(crate) fn landlock_scopes() -> io::Result<Option<OwnedFd>> {
    const CREATE_RULESET_VERSION: u32 = 1;
    const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
    const SCOPE_SIGNAL: u64 = 2;
    /// `struct landlock_ruleset_attr` (linux/landlock.h).
    #[repr(C)]
    struct Attributes {
        handled_access_fs: u64,
        handled_access_net: u64,
        scoped: u64,
    }
    let create = |attributes: *const Attributes, size: usize, flags: u32| {
        // SAFETY: `attributes` is null, with size 0 and the flag that asks for the version, or a
        // live struct of this size.
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes, size, flags) })
    };
    match create(std::ptr::null(), 0, CREATE_RULESET_VERSION) {
        Ok(version) if version >= 6 => {}
        Ok(_) => return Ok(None),
        // Not built in, or not enabled at boot.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let attributes = Attributes {
        handled_access_fs: 0,
        handled_access_net: 0,
        scoped: SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL,
    };
    let fd = create(&raw const attributes, size_of::<Attributes>(), 0)?;
    // SAFETY: the kernel has made a new descriptor (always marked close-on-exec) that nobody else
    // owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
}

/// Puts this thread under a Landlock rule set, for good. Needs no_new_privs, or CAP_SYS_ADMIN in
/// its user namespace.
pub(crate) fn landlock_restrict(rules: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })?;
    Ok(())
}

/// Leaves the shared mount namespace and file system attributes of this thread behind.
///
/// # Safety
/// The calling thread must be the caller's own: nothing else may run on it afterwards that relies
/// on paths or the working directory.
pub(crate) unsafe fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the caller owns the thread.
    check(libc::c_long::from(unsafe {
        libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS)
    }))?;
    Ok(())
}

/// A new cgroup namespace, rooted where the process is now.
pub(crate) fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: a cgroup namespace changes only what this process sees in /proc/*/cgroup and cgroup
    // mounts.
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

/// A descriptor that this process was executed with.
///
/// # Safety
/// Nobody else may own it.
pub(crate) unsafe fn take(fd: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: any number may be asked about.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) })?;
    // SAFETY: it is open, and the caller promises that nobody owns it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// The processor's time stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn tsc() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and it only reads.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

/// The processor's time stamp counter.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn tsc() -> Option<u64> {
    None
}
