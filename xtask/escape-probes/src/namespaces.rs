//! Namespaces: new ones, and others'.

use crate::Probe;
use crate::sys::{attempt, call, errno, in_child, text, word};

const NEWTIME: i32 = 0x80;

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("unshare-user", |_| unshare(libc::CLONE_NEWUSER)),
    ("unshare-mount", |_| unshare(libc::CLONE_NEWNS)),
    ("unshare-net", |_| unshare(libc::CLONE_NEWNET)),
    ("unshare-pid", |_| unshare(libc::CLONE_NEWPID)),
    ("unshare-cgroup", |_| unshare(libc::CLONE_NEWCGROUP)),
    ("unshare-time", |_| unshare(NEWTIME)),
    ("clone-user", |_| clone(libc::CLONE_NEWUSER)),
    ("clone-mount", |_| clone(libc::CLONE_NEWNS)),
    ("user-then-mount", |_| {
        match call(
            libc::SYS_unshare,
            &[(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as usize],
        ) {
            Ok(_) => {
                let args = [text("none"), text("/tmp"), text("tmpfs"), 0, 0];
                format!("mount {}", attempt(libc::SYS_mount, &args))
            }
            Err(number) => errno(number),
        }
    }),
    ("setns", |_| {
        let cwd = libc::AT_FDCWD as isize as usize;
        let own = call(libc::SYS_openat, &[cwd, text("/proc/self/ns/uts"), 0, 0]);
        match own {
            Ok(fd) => attempt(libc::SYS_setns, &[fd as usize, 0]),
            Err(number) => format!("opening: {}", errno(number)),
        }
    }),
    ("setns-pidfd", |_| {
        match call(libc::SYS_pidfd_open, &[std::process::id() as usize, 0]) {
            Ok(fd) => attempt(libc::SYS_setns, &[fd as usize, libc::CLONE_NEWUTS as usize]),
            Err(number) => format!("pidfd_open: {}", errno(number)),
        }
    }),
    ("hostname", |_| {
        let name = b"escape";
        attempt(libc::SYS_sethostname, &[name.as_ptr() as usize, name.len()])
    }),
];

fn unshare(flags: i32) -> String {
    attempt(libc::SYS_unshare, &[flags as usize])
}

/// By clone, whose flags a filter reads from a register.
fn clone(flags: i32) -> String {
    let cloned = call(
        libc::SYS_clone,
        &[(flags | libc::SIGCHLD) as usize, 0, 0, 0, 0],
    );
    if cloned == Ok(0) {
        unsafe { libc::_exit(0) };
    }
    let _ = in_child(|| 0);
    word(cloned)
}
