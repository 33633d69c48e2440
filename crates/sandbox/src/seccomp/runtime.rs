//! What a runtime may not do that a container may: workerd runs JavaScript, no programs, so it
//! starts no process, changes no user, traces nobody and has no business with the kernel's older
//! ways to talk between processes. V8 compiles, so memory may be made executable.
//!
//! Taken away from the containers' list rather than listed anew: what a library does on a path that
//! no test takes still works.

use super::{NO_FAMILY, REFUSE, Test, Verdict};

/// Its own sockets, and the internet. The C library looks at interfaces by netlink and does
/// without.
const FAMILIES: &[u32] = &[
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
];

/// Refused on every architecture. execve is not among them: the filter is there before the program
/// is; nothing else to execute is in its root.
#[rustfmt::skip]
const REFUSED: &[i64] = &[
    // Users, roots, devices.
    libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid, libc::SYS_setresgid, libc::SYS_setgroups,
    libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_capset, libc::SYS_chroot, libc::SYS_mknodat, libc::SYS_personality,
    // Other processes.
    libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_mrelease,
    libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_setsid, libc::SYS_setpgid,
    // System V and POSIX message queues, semaphores, shared memory.
    libc::SYS_msgctl, libc::SYS_msgget, libc::SYS_msgrcv, libc::SYS_msgsnd, libc::SYS_semctl, libc::SYS_semget, libc::SYS_semop,
    libc::SYS_semtimedop, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt, libc::SYS_shmget, libc::SYS_mq_getsetattr, libc::SYS_mq_notify,
    libc::SYS_mq_open, libc::SYS_mq_timedreceive, libc::SYS_mq_timedsend, libc::SYS_mq_unlink,
    // Parts of the kernel that no server needs.
    libc::SYS_io_cancel, libc::SYS_io_destroy, libc::SYS_io_getevents, libc::SYS_io_setup, libc::SYS_io_submit, libc::SYS_vmsplice,
    libc::SYS_tee, libc::SYS_remap_file_pages, libc::SYS_memfd_secret, libc::SYS_name_to_handle_at, libc::SYS_seccomp,
    libc::SYS_landlock_add_rule, libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self, libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
];

/// As well where the architecture still has them.
#[cfg(target_arch = "x86_64")]
const REFUSED_LEGACY: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_LEGACY: &[i64] = &[];

pub(super) fn verdict(number: i64) -> Verdict {
    match number {
        // A thread never has a namespace of its own.
        libc::SYS_clone => Verdict::Argument {
            index: 0,
            test: Test::BitsSet(libc::CLONE_THREAD as u32),
        },
        libc::SYS_socket => Verdict::Argument {
            index: 0,
            test: Test::Listed(FAMILIES, NO_FAMILY),
        },
        n if REFUSED.contains(&n) || REFUSED_LEGACY.contains(&n) => Verdict::Return(REFUSE),
        n => super::verdict(n),
    }
}
