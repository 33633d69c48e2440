//! The system call filters: of containers, what Docker's default profile allows, everything else
//! refused; of runtimes (workerd), less than that ([`runtime`]).
//!
//! Owns: the list, and its compilation to a small BPF program (a binary search over number ranges,
//! then shared returns). Must not: depend on the request; there is one filter for all containers,
//! and one for all runtimes.
//!
//! Answers: allowed; EPERM for what is known and refused; ENOSYS for clone3 (its flags lie behind a
//! pointer that a filter cannot read, and the C library falls back to clone only on ENOSYS), for
//! numbers newer than this list (programs then fall back as on an older kernel), and for foreign
//! architectures (x32, i386); EAFNOSUPPORT for socket families other than those that programs use.
//! Stricter than Docker's in the families and the architectures.
//!
//! Changing the limit on core dumps seems to work and does nothing: it stays at the one value at
//! which the kernel neither writes a file nor starts the host's handler (core(5)), and gpg ends
//! when it is refused.

mod runtime;

use crate::sys::BpfInstruction;

/// Which kind of process a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// A container's.
    Container,
    /// A program of one process that runs foreign code without foreign programs.
    Runtime,
    /// What runs a virtual machine: a container's, and threads that have a working directory of
    /// their own (virtiofsd).
    Machine,
}

/// Not named by the libc crate.
#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: i64 = 333;
#[cfg(target_arch = "aarch64")]
const IO_PGETEVENTS: i64 = 292;

// Numbers that are the same on every architecture and that the libc crate does not name everywhere.
const CACHESTAT: i64 = 451;
const FCHMODAT2: i64 = 452;
const MAP_SHADOW_STACK: i64 = 453;
const STATMOUNT: i64 = 457;
const LISTMOUNT: i64 = 458;
const LSM_GET_SELF_ATTR: i64 = 459;
const LSM_LIST_MODULES: i64 = 461;
const FUTEX_WAKE: i64 = 454;
const FUTEX_WAIT: i64 = 455;
const FUTEX_REQUEUE: i64 = 456;
const MSEAL: i64 = 462;
const SETXATTRAT: i64 = 463;
const GETXATTRAT: i64 = 464;
const LISTXATTRAT: i64 = 465;
const REMOVEXATTRAT: i64 = 466;
/// The newest number that this list has an opinion on.
const NEWEST: i64 = 466;

/// Allowed with any arguments, on every architecture.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_adjtimex, libc::SYS_bind, libc::SYS_brk, CACHESTAT, libc::SYS_capget, libc::SYS_capset,
    libc::SYS_chdir, libc::SYS_chroot, libc::SYS_clock_adjtime, libc::SYS_clock_getres, libc::SYS_clock_gettime, libc::SYS_clock_nanosleep,
    libc::SYS_close, libc::SYS_close_range, libc::SYS_connect, libc::SYS_copy_file_range, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_execve,
    libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_fadvise64,
    libc::SYS_fallocate, libc::SYS_fchdir, libc::SYS_fchmod, libc::SYS_fchmodat, FCHMODAT2, libc::SYS_fchown, libc::SYS_fchownat,
    libc::SYS_fcntl, libc::SYS_fdatasync, libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_fremovexattr,
    libc::SYS_fsetxattr, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_ftruncate, libc::SYS_futex, FUTEX_WAKE, FUTEX_WAIT,
    FUTEX_REQUEUE, libc::SYS_futex_waitv, libc::SYS_getcpu, libc::SYS_getcwd, libc::SYS_getdents64, libc::SYS_getegid, libc::SYS_geteuid,
    libc::SYS_getgid, libc::SYS_getgroups, libc::SYS_getitimer, libc::SYS_getpeername, libc::SYS_getpgid, libc::SYS_getpid,
    libc::SYS_getppid, libc::SYS_getpriority, libc::SYS_getrandom, libc::SYS_getresgid, libc::SYS_getresuid, libc::SYS_getrlimit,
    libc::SYS_get_robust_list, libc::SYS_getrusage, libc::SYS_getsid, libc::SYS_getsockname, libc::SYS_getsockopt, libc::SYS_gettid,
    libc::SYS_gettimeofday, libc::SYS_getuid, libc::SYS_getxattr, GETXATTRAT, libc::SYS_inotify_add_watch, libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch, libc::SYS_io_cancel, libc::SYS_io_destroy, libc::SYS_io_getevents, IO_PGETEVENTS,
    libc::SYS_io_setup, libc::SYS_io_submit, libc::SYS_ioprio_get, libc::SYS_ioprio_set, libc::SYS_kill, libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self, libc::SYS_lgetxattr, libc::SYS_linkat, libc::SYS_listen,
    libc::SYS_listxattr, LISTXATTRAT, libc::SYS_llistxattr, libc::SYS_lremovexattr, libc::SYS_lseek, libc::SYS_lsetxattr, libc::SYS_madvise,
    MAP_SHADOW_STACK, libc::SYS_membarrier, libc::SYS_memfd_create, libc::SYS_memfd_secret, libc::SYS_mincore, libc::SYS_mkdirat,
    libc::SYS_mknodat, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mlockall, libc::SYS_mmap, libc::SYS_mprotect,
    libc::SYS_mq_getsetattr, libc::SYS_mq_notify, libc::SYS_mq_open, libc::SYS_mq_timedreceive, libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink, libc::SYS_mremap, MSEAL, libc::SYS_msgctl, libc::SYS_msgget, libc::SYS_msgrcv, libc::SYS_msgsnd,
    libc::SYS_msync, libc::SYS_munlock, libc::SYS_munlockall, libc::SYS_munmap, libc::SYS_name_to_handle_at, libc::SYS_nanosleep,
    libc::SYS_newfstatat, libc::SYS_openat, libc::SYS_openat2, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_pipe2,
    libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect, libc::SYS_ppoll, libc::SYS_prctl, libc::SYS_pread64,
    libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_process_mrelease, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_pselect6, libc::SYS_ptrace,
    libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_read, libc::SYS_readahead, libc::SYS_readlinkat,
    libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmmsg, libc::SYS_recvmsg, libc::SYS_remap_file_pages, libc::SYS_removexattr, REMOVEXATTRAT,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo, libc::SYS_sched_getaffinity, libc::SYS_sched_getattr, libc::SYS_sched_getparam,
    libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_sched_getscheduler, libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity, libc::SYS_sched_setattr, libc::SYS_sched_setparam, libc::SYS_sched_setscheduler, libc::SYS_sched_yield,
    libc::SYS_seccomp, libc::SYS_semctl, libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_sendfile,
    libc::SYS_sendmmsg, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_setfsgid, libc::SYS_setfsuid, libc::SYS_setgid,
    libc::SYS_setgroups, libc::SYS_setitimer, libc::SYS_setpgid, libc::SYS_setpriority, libc::SYS_setregid, libc::SYS_setresgid,
    libc::SYS_setresuid, libc::SYS_setreuid, libc::SYS_set_robust_list, libc::SYS_setsid, libc::SYS_setsockopt,
    libc::SYS_set_tid_address, libc::SYS_setuid, libc::SYS_setxattr, SETXATTRAT, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt,
    libc::SYS_shmget, libc::SYS_shutdown, libc::SYS_sigaltstack, libc::SYS_signalfd4, libc::SYS_socketpair, libc::SYS_splice,
    libc::SYS_statfs, libc::SYS_statx, libc::SYS_symlinkat, libc::SYS_sync, libc::SYS_sync_file_range, libc::SYS_syncfs,
    libc::SYS_sysinfo, libc::SYS_tee, libc::SYS_tgkill, libc::SYS_timer_create, libc::SYS_timer_delete, libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime, libc::SYS_timer_settime, libc::SYS_timerfd_create, libc::SYS_timerfd_gettime, libc::SYS_timerfd_settime,
    libc::SYS_times, libc::SYS_tkill, libc::SYS_truncate, libc::SYS_umask, libc::SYS_uname, libc::SYS_unlinkat, libc::SYS_utimensat,
    libc::SYS_vmsplice, libc::SYS_wait4, libc::SYS_waitid, libc::SYS_write, libc::SYS_writev,
];

/// Allowed as well where the architecture still has them.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_LEGACY: &[i64] = &[
    libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_chown, libc::SYS_creat, libc::SYS_dup2,
    libc::SYS_epoll_create, libc::SYS_epoll_ctl_old, libc::SYS_epoll_wait, libc::SYS_epoll_wait_old, libc::SYS_eventfd, libc::SYS_fork,
    libc::SYS_futimesat, libc::SYS_getdents, libc::SYS_getpgrp, libc::SYS_get_thread_area, libc::SYS_inotify_init, libc::SYS_lchown,
    libc::SYS_link, libc::SYS_lstat, libc::SYS_mkdir, libc::SYS_mknod, libc::SYS_modify_ldt, libc::SYS_open, libc::SYS_pause,
    libc::SYS_pipe, libc::SYS_poll, libc::SYS_readlink, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_select, libc::SYS_set_thread_area,
    libc::SYS_signalfd, libc::SYS_stat, libc::SYS_symlink, libc::SYS_time, libc::SYS_unlink, libc::SYS_utime, libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_LEGACY: &[i64] = &[];

/// AUDIT_ARCH_* (linux/audit.h) of this build.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Every CLONE_NEW* flag, the time namespace's bit apart (in clone(2) it is part of the exit
/// signal).
const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}
const REFUSE: u32 = errno(libc::EPERM);
const UNKNOWN: u32 = errno(libc::ENOSYS);
const NO_FAMILY: u32 = errno(libc::EAFNOSUPPORT);
/// The call is left out, and its caller told that it worked.
const PRETEND: u32 = errno(0);

// Offsets in struct seccomp_data (linux/seccomp.h); arguments are little-endian 64-bit words.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const fn offset_argument(index: u32) -> u32 {
    16 + 8 * index
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// What happens with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Return(u32),
    /// Decided by the low half of one argument.
    Argument {
        index: u32,
        test: Test,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    /// Refused when one of these bits is set.
    BitsClear(u32),
    /// Refused when none of these bits is set.
    BitsSet(u32),
    /// Allowed only when it is one of these; what others get.
    Listed(&'static [u32], u32),
    /// Refused when it is one of these; what these get.
    Unlisted(&'static [u32], u32),
    /// As `Unlisted`, but allowed when the pointer in this argument is null.
    UnlistedUnlessNull(&'static [u32], u32, u32),
}

/// PER_LINUX, PER_LINUX32, UNAME26 with each, and the query (personality(2)).
const PERSONALITIES: &[u32] = &[0, 8, 0x0002_0000, 0x0002_0008, 0xffff_ffff];
/// What a container's network has. All others are kernel code that hardly any program needs: the
/// hypervisor's sockets, the crypto API, industrial and historical protocols.
const FAMILIES: &[u32] = &[
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
    libc::AF_PACKET as u32,
];
const CORE_LIMIT: &[u32] = &[libc::RLIMIT_CORE];
/// Typing into somebody's terminal.
const REFUSED_IOCTLS: &[u32] = &[0x5412 /* TIOCSTI */, 0x541c /* TIOCLINUX */];

/// The verdicts of [`Profile::Machine`].
fn machine(number: i64) -> Verdict {
    match number {
        libc::SYS_unshare => Verdict::Argument {
            index: 0,
            test: Test::Listed(&[libc::CLONE_FS as u32], REFUSE),
        },
        _ => verdict(number),
    }
}

fn verdict(number: i64) -> Verdict {
    match number {
        libc::SYS_clone => Verdict::Argument {
            index: 0,
            test: Test::BitsClear(NAMESPACE_FLAGS),
        },
        libc::SYS_personality => Verdict::Argument {
            index: 0,
            test: Test::Listed(PERSONALITIES, REFUSE),
        },
        libc::SYS_socket => Verdict::Argument {
            index: 0,
            test: Test::Listed(FAMILIES, NO_FAMILY),
        },
        libc::SYS_setrlimit => Verdict::Argument {
            index: 0,
            test: Test::Unlisted(CORE_LIMIT, PRETEND),
        },
        libc::SYS_prlimit64 => Verdict::Argument {
            index: 1,
            test: Test::UnlistedUnlessNull(CORE_LIMIT, PRETEND, 2),
        },
        libc::SYS_ioctl => Verdict::Argument {
            index: 1,
            test: Test::Unlisted(REFUSED_IOCTLS, REFUSE),
        },
        libc::SYS_clone3 | STATMOUNT | LISTMOUNT => Verdict::Return(UNKNOWN),
        LSM_GET_SELF_ATTR..=LSM_LIST_MODULES => Verdict::Return(UNKNOWN),
        n if n > NEWEST => Verdict::Return(UNKNOWN),
        n if ALLOWED.contains(&n) || ALLOWED_LEGACY.contains(&n) => Verdict::Return(ALLOW),
        _ => Verdict::Return(REFUSE),
    }
}

/// A jump that is not resolved yet.
#[derive(Clone, Copy)]
enum Target {
    Next,
    /// The code that carries out this verdict.
    Verdict(Verdict),
    /// The instruction with this number.
    At(usize),
}

struct Draft {
    code: Vec<(u16, u32, Target, Target)>,
}

impl Draft {
    /// A binary search over `ranges` (each from its number up to the next one's). Left halves
    /// follow their test directly.
    fn search(&mut self, ranges: &[(u32, Verdict)]) -> Target {
        if let [(_, only)] = ranges {
            return Target::Verdict(*only);
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let here = self.code.len();
        self.code
            .push((JUMP_AT_LEAST, high[0].0, Target::Next, Target::Next));
        let below = self.search(low);
        let above = self.search(high);
        self.code[here].2 = above;
        self.code[here].3 = below;
        Target::At(here)
    }

    /// Whether the loaded word is one of `values`.
    fn compare(&mut self, values: &[u32], hit: Target, miss: Target) {
        for (position, value) in values.iter().enumerate() {
            let last = position + 1 == values.len();
            let otherwise = if last { miss } else { Target::Next };
            self.code.push((JUMP_EQUAL, *value, hit, otherwise));
        }
    }
}

/// A filter.
pub(crate) fn program(profile: Profile) -> Vec<BpfInstruction> {
    let verdict = match profile {
        Profile::Container => verdict,
        Profile::Runtime => runtime::verdict,
        Profile::Machine => machine,
    };
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for number in 0..=NEWEST + 1 {
        let verdict = verdict(number);
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number as u32, verdict));
        }
    }
    let mut draft = Draft { code: Vec::new() };
    draft
        .code
        .push((LOAD, OFFSET_ARCHITECTURE, Target::Next, Target::Next));
    draft.code.push((
        JUMP_EQUAL,
        ARCHITECTURE,
        Target::Next,
        Target::Verdict(Verdict::Return(UNKNOWN)),
    ));
    draft
        .code
        .push((LOAD, OFFSET_NUMBER, Target::Next, Target::Next));
    draft.search(&ranges);

    // The blocks that decide by an argument, then the returns; shared by all jumps.
    let mut places: Vec<(Verdict, usize)> = Vec::new();
    for (_, verdict) in &ranges {
        let Verdict::Argument { index, test } = verdict else {
            continue;
        };
        places.push((*verdict, draft.code.len()));
        draft
            .code
            .push((LOAD, offset_argument(*index), Target::Next, Target::Next));
        let answer = |value| Target::Verdict(Verdict::Return(value));
        match test {
            Test::BitsClear(bits) => {
                let code = (JUMP_BITS, *bits, answer(REFUSE), answer(ALLOW));
                draft.code.push(code);
            }
            Test::BitsSet(bits) => {
                let code = (JUMP_BITS, *bits, answer(ALLOW), answer(REFUSE));
                draft.code.push(code);
            }
            Test::Listed(values, others) => draft.compare(values, answer(ALLOW), answer(*others)),
            Test::Unlisted(values, these) => draft.compare(values, answer(*these), answer(ALLOW)),
            Test::UnlistedUnlessNull(values, these, pointer) => {
                // The values' block, then what comes behind it: both halves of the pointer.
                let behind = Target::At(draft.code.len() + values.len());
                draft.compare(values, behind, answer(ALLOW));
                for (half, null) in [(0, Target::Next), (4, answer(ALLOW))] {
                    let load = offset_argument(*pointer) + half;
                    draft.code.push((LOAD, load, Target::Next, Target::Next));
                    draft.code.push((JUMP_EQUAL, 0, null, answer(*these)));
                }
            }
        }
    }
    for value in [ALLOW, REFUSE, UNKNOWN, NO_FAMILY, PRETEND] {
        places.push((Verdict::Return(value), draft.code.len()));
        draft.code.push((RETURN, value, Target::Next, Target::Next));
    }

    let resolve = |target: Target, from: usize| -> u8 {
        let to = match target {
            Target::Next => from + 1,
            Target::At(place) => place,
            Target::Verdict(wanted) => places
                .iter()
                .find(|(v, _)| *v == wanted)
                .map_or(usize::MAX, |(_, place)| *place),
        };
        // A conditional jump reaches 255 instructions; the test `program_fits` holds the program
        // below that.
        u8::try_from(to.wrapping_sub(from + 1)).unwrap_or(u8::MAX)
    };
    draft
        .code
        .iter()
        .enumerate()
        .map(|(at, (code, k, yes, no))| BpfInstruction {
            code: *code,
            jt: resolve(*yes, at),
            jf: resolve(*no, at),
            k: *k,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tiny machine for the instructions that `program` uses.
    fn run(architecture: u32, number: i64, arguments: [u64; 6]) -> u32 {
        run_in(Profile::Container, architecture, number, arguments)
    }

    fn run_in(profile: Profile, architecture: u32, number: i64, arguments: [u64; 6]) -> u32 {
        let program = program(profile);
        let load = |offset: u32| -> u32 {
            match offset {
                OFFSET_NUMBER => number as u32,
                OFFSET_ARCHITECTURE => architecture,
                other => {
                    let (word, half) = ((other - 16) / 8, (other - 16) % 8 / 4);
                    (arguments[word as usize] >> (32 * half)) as u32
                }
            }
        };
        let (mut at, mut a) = (0, 0u32);
        loop {
            let i = program[at];
            let jump = |taken: bool| at + 1 + usize::from(if taken { i.jt } else { i.jf });
            at = match i.code {
                LOAD => {
                    a = load(i.k);
                    at + 1
                }
                RETURN => return i.k,
                JUMP_EQUAL => jump(a == i.k),
                JUMP_AT_LEAST => jump(a >= i.k),
                JUMP_BITS => jump(a & i.k != 0),
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    fn call(number: i64, first: u64) -> u32 {
        run(ARCHITECTURE, number, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn programs_fit() {
        for profile in [Profile::Container, Profile::Runtime] {
            let program = program(profile);
            assert!(
                program.len() < 255,
                "{profile:?}: {} instructions: a jump might not reach",
                program.len()
            );
        }
    }

    #[test]
    fn every_number_gets_its_verdict() {
        for number in 0..NEWEST + 100 {
            if let Verdict::Return(expected) = verdict(number) {
                assert_eq!(call(number, 0), expected, "system call {number}");
            }
            if let Verdict::Return(expected) = runtime::verdict(number) {
                let answer = run_in(Profile::Runtime, ARCHITECTURE, number, [0; 6]);
                assert_eq!(answer, expected, "system call {number} of a runtime");
            }
        }
    }

    #[test]
    fn a_runtime_makes_threads_and_no_processes() {
        let call = |number, first: u64| {
            run_in(
                Profile::Runtime,
                ARCHITECTURE,
                number,
                [first, 0, 0, 0, 0, 0],
            )
        };
        assert_eq!(call(libc::SYS_clone, 0x003d_0f00), ALLOW, "a thread");
        assert_eq!(call(libc::SYS_clone, libc::SIGCHLD as u64), REFUSE, "fork");
        assert_eq!(call(libc::SYS_clone3, 0), UNKNOWN, "falls back to clone");
        for number in [
            libc::SYS_ptrace,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setuid,
        ] {
            assert_eq!(call(number, 0), REFUSE, "system call {number}");
        }
        for (family, answer) in [
            (libc::AF_UNIX, ALLOW),
            (libc::AF_INET, ALLOW),
            (libc::AF_INET6, ALLOW),
            (libc::AF_NETLINK, NO_FAMILY),
            (libc::AF_PACKET, NO_FAMILY),
        ] {
            assert_eq!(call(libc::SYS_socket, family as u64), answer, "{family}");
        }
    }

    #[test]
    fn threads_work_and_namespaces_do_not() {
        assert_eq!(call(libc::SYS_clone, 0x003d_0f00), ALLOW);
        assert_eq!(call(libc::SYS_clone, libc::CLONE_NEWUSER as u64), REFUSE);
        assert_eq!(call(libc::SYS_clone3, 0), UNKNOWN);
        assert_eq!(call(libc::SYS_unshare, 0), REFUSE);
        assert_eq!(call(libc::SYS_setns, 0), REFUSE);
    }

    #[test]
    fn dangerous_calls_are_refused() {
        for number in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_reboot,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_pivot_root,
            libc::SYS_swapon,
        ] {
            assert_eq!(call(number, 0), REFUSE, "system call {number}");
        }
    }

    #[test]
    fn arguments_decide() {
        assert_eq!(call(libc::SYS_socket, libc::AF_INET as u64), ALLOW);
        for family in [
            libc::AF_ALG,
            libc::AF_VSOCK,
            libc::AF_CAN,
            libc::AF_TIPC,
            99,
        ] {
            assert_eq!(call(libc::SYS_socket, family as u64), NO_FAMILY);
        }
        assert_eq!(call(libc::SYS_personality, 0xffff_ffff), ALLOW);
        assert_eq!(call(libc::SYS_personality, 0x0004_0000), REFUSE);
        assert_eq!(
            run(ARCHITECTURE, libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]),
            REFUSE
        );
        assert_eq!(
            run(ARCHITECTURE, libc::SYS_ioctl, [0, 0x5413, 0, 0, 0, 0]),
            ALLOW
        );
    }

    #[test]
    fn the_limit_on_core_dumps_stays() {
        let core = u64::from(libc::RLIMIT_CORE);
        assert_eq!(call(libc::SYS_setrlimit, core), PRETEND);
        let files = u64::from(libc::RLIMIT_NOFILE);
        assert_eq!(call(libc::SYS_setrlimit, files), ALLOW);
        let prlimit = |resource, new| {
            run(
                ARCHITECTURE,
                libc::SYS_prlimit64,
                [0, resource, new, 0, 0, 0],
            )
        };
        assert_eq!(prlimit(core, 0), ALLOW, "reading it");
        assert_eq!(prlimit(core, 0x10), PRETEND);
        assert_eq!(prlimit(core, 1 << 40), PRETEND, "a pointer is 64 bits");
        assert_eq!(prlimit(files, 0x10), ALLOW);
    }

    #[test]
    fn foreign_architectures_have_no_system_calls() {
        assert_eq!(run(0x4000_0003, 11, [0; 6]), UNKNOWN);
        assert_eq!(call(0x4000_0000 + libc::SYS_read, 0), UNKNOWN);
    }
}
