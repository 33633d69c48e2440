//! More rights than the process began with.

use std::fs;

use crate::Probe;
use crate::sys::{attempt, word};

pub(crate) const PROBES: &[(&str, Probe)] = &[
    // As the set-user-id copy of this program, by a user who is not root.
    ("setuid-program", |_| match unsafe { libc::geteuid() } {
        0 => "root".to_owned(),
        _ => "not root".to_owned(),
    }),
    // As the copy of this program with file capabilities, by a user who has none.
    ("file-capabilities", |_| match status("CapEff") {
        0 => "none".to_owned(),
        _ => "some".to_owned(),
    }),
    ("capabilities", |_| {
        // Docker's default set.
        let more = (status("CapEff") | status("CapPrm") | status("CapBnd")) & !0xa804_25fb;
        if more == 0 {
            "Docker's at most"
        } else {
            "more"
        }
        .to_owned()
    }),
    ("raise-capability", |_| {
        // Version 3 of the header: CAP_SYS_ADMIN, effective and permitted.
        let header: [u32; 2] = [0x2008_0522, 0];
        let sets: [u32; 6] = [1 << 21, 1 << 21, 0, 0, 0, 0];
        attempt(
            libc::SYS_capset,
            &[&raw const header as usize, &raw const sets as usize],
        )
    }),
    ("host-user", |_| {
        // What the id 0 is to the host: the second number of the map.
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        match map.split_whitespace().nth(1) {
            Some("0") => "the host's root".to_owned(),
            Some(_) => "nobody".to_owned(),
            None => "no map".to_owned(),
        }
    }),
    ("big-user-id", |_| {
        // An id of the host that is none inside.
        attempt(libc::SYS_setresuid, &[70_000, 70_000, 70_000])
    }),
    ("more-open-files", |_| {
        let limit: [u64; 2] = [1 << 20, 1 << 20];
        word(crate::sys::call(
            libc::SYS_prlimit64,
            &[
                0,
                libc::RLIMIT_NOFILE as usize,
                &raw const limit as usize,
                0,
            ],
        ))
    }),
    ("core-dump", |_| {
        // At 0 it writes no file, and starts the handler all the same.
        let limit: [u64; 2] = [0, 0];
        let resource = libc::RLIMIT_CORE as usize;
        let _ = attempt(
            libc::SYS_prlimit64,
            &[0, resource, &raw const limit as usize, 0],
        );
        let mut now = [0u64; 2];
        let _ = attempt(
            libc::SYS_prlimit64,
            &[0, resource, 0, &raw mut now as usize],
        );
        // At 1 the kernel writes no file and starts no handler (core(5)).
        if now == [1, 1] {
            "stays at 1"
        } else {
            "changed"
        }
        .to_owned()
    }),
];

fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    u64::from_str_radix(line.unwrap_or("").trim(), 16).unwrap_or(0)
}
