//! Other processes, by their numbers: the argument is one of the host's.

use crate::Probe;
use crate::sys::{attempt, call, errno, number, word};

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("ptrace-host", |args| {
        let pid = number(args, 0);
        let seized = call(libc::SYS_ptrace, &[libc::PTRACE_SEIZE as usize, pid, 0, 0]);
        if seized.is_ok() {
            let _ = call(libc::SYS_ptrace, &[libc::PTRACE_DETACH as usize, pid, 0, 0]);
        }
        word(seized)
    }),
    ("read-memory-host", |args| {
        let pid = number(args, 0);
        // The start of whatever is mapped first, as its own maps say.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let start = maps.split('-').next().unwrap_or_default();
        let start = usize::from_str_radix(start, 16).unwrap_or(4096);
        let mut byte = [0u8; 1];
        let local = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        let remote = libc::iovec {
            iov_base: start as *mut libc::c_void,
            iov_len: 1,
        };
        let args = [
            pid,
            &raw const local as usize,
            1,
            &raw const remote as usize,
            1,
            0,
        ];
        attempt(libc::SYS_process_vm_readv, &args)
    }),
    ("pidfd-getfd-host", |args| {
        match call(libc::SYS_pidfd_open, &[number(args, 0), 0]) {
            Ok(pidfd) => attempt(libc::SYS_pidfd_getfd, &[pidfd as usize, 0, 0]),
            Err(number) => format!("pidfd_open: {}", errno(number)),
        }
    }),
    ("pidfd-getfd", |_| {
        // Of itself: whether the call is there at all.
        match call(libc::SYS_pidfd_open, &[std::process::id() as usize, 0]) {
            Ok(pidfd) => attempt(libc::SYS_pidfd_getfd, &[pidfd as usize, 0, 0]),
            Err(number) => format!("pidfd_open: {}", errno(number)),
        }
    }),
    ("signal-host", |args| {
        attempt(libc::SYS_kill, &[number(args, 0), 0])
    }),
    ("priority-host", |args| {
        let pid = number(args, 0);
        let args = [libc::PRIO_PROCESS as usize, pid, 0];
        attempt(libc::SYS_setpriority, &args)
    }),
    ("limits-host", |args| {
        let mut limit = [0u64; 2];
        let limit = &raw mut limit as usize;
        attempt(
            libc::SYS_prlimit64,
            &[number(args, 0), libc::RLIMIT_NOFILE as usize, 0, limit],
        )
    }),
    ("priority", |_| {
        let higher = -10isize as usize;
        attempt(
            libc::SYS_setpriority,
            &[libc::PRIO_PROCESS as usize, 0, higher],
        )
    }),
    ("processes-seen", |_| {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        match numbers.count() {
            0 => "no /proc".to_owned(),
            1 => "itself".to_owned(),
            _ => "others".to_owned(),
        }
    }),
];
