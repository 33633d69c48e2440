//! The first process of a container on gVisor: it starts `runsc`, says that the program runs, and
//! ends as the program does.
//!
//! Owns: the processes of `runsc`, which become its children when `runsc run` has ended: the kernel
//! (`runsc-sandbox`, whose exit code is the program's) and the server of files (`runsc-gofer`).
//! When it ends, the Linux kernel ends whatever is left of them. Must not: hold anything but the
//! report: its memory is a copy of the spawner's, so no process may look at it (it is not
//! dumpable), and it has no descriptors, no capabilities and nothing to read.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Pid, WaitOptions, WaitStatus, wait};

use super::{Failure, LOG, PID, Step, execute};
use crate::child::caps;
use crate::sys;

/// Where the report goes.
const REPORT: i32 = 3;

/// Starts `runsc` with these arguments, and stays until the program has ended.
pub(super) fn run(argv: &[CString], report: &Cell<BorrowedFd<'_>>) -> Result<Infallible, Failure> {
    // SAFETY: this process was cloned from one with a single thread and has made none; the child
    // executes, or ends, right here.
    let forked = unsafe { sys::fork() }.step(|| "fork".to_owned())?;
    let Some(runner) = forked else {
        return Err(execute(argv));
    };
    let_go(report)?;
    let mut ended: BTreeMap<i32, WaitStatus> = BTreeMap::new();
    loop {
        let (pid, status) = reap()?;
        if pid == runner {
            if status.exit_status() != Some(0) {
                return match refusal(status) {
                    Some(failure) => Err(failure),
                    // runsc was not executed: reported already.
                    None => sys::exit_now(125),
                };
            }
            break;
        }
        ended.insert(pid, status);
    }
    let kernel = std::fs::read_to_string(PID).step(|| format!("reading {PID}"))?;
    let kernel: i32 = kernel.trim().parse().map_err(|_| Failure {
        exit_code: 125,
        message: format!("runsc wrote no process id but {kernel:?}"),
    })?;
    let files = server_of_files();
    // The end of the report: from now on the program runs, or did. SAFETY: nothing of this process
    // owns a descriptor any more; `report` is not used again, as this function does not return.
    unsafe { sys::close_from(0) }.step(|| "closing descriptors".to_owned())?;
    loop {
        if let Some(status) = ended.get(&kernel) {
            sys::exit_now(code(*status));
        }
        // Without its files there is no container. One that ends with the kernel was not killed.
        let files = files.and_then(|pid| ended.get(&pid));
        if let Some(status) = files.filter(|s| s.terminating_signal().is_some()) {
            sys::exit_now(code(*status));
        }
        match reap() {
            Ok((pid, status)) => drop(ended.insert(pid, status)),
            Err(_) => sys::exit_now(125),
        }
    }
}

/// Keeps the report, and nothing else that the spawner has.
fn let_go(report: &Cell<BorrowedFd<'_>>) -> Result<(), Failure> {
    let name = || "closing the spawner's descriptors".to_owned();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = rustix::io::fcntl_dupfd_cloexec(null.step(name)?, REPORT + 1).step(name)?;
    // SAFETY: what these numbers were belongs to the spawner's memory image and is never dropped
    // here; the report is moved.
    unsafe {
        sys::dup_onto(report.get(), REPORT).step(name)?;
        report.set(sys::borrow(REPORT));
        for number in 0..REPORT {
            sys::dup_onto(null.as_fd(), number).step(name)?;
        }
        std::mem::forget(null);
        sys::close_from(REPORT as u32 + 1).step(name)?;
    }
    caps::bound(caps::NONE).step(name)?;
    caps::limit(caps::NONE).step(name)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(name)
}

/// The process that `runsc` has for files. It writes its number nowhere that every version of it
/// has in common.
fn server_of_files() -> Option<i32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let mut numbers = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(b"runsc-gofer\0"))
    })
}

fn reap() -> Result<(i32, WaitStatus), Failure> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => return Ok((Pid::as_raw(Some(pid)), status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).step(|| "waiting for runsc".to_owned()),
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    let signal = status.terminating_signal().unwrap_or_default();
    status.exit_status().unwrap_or(128 + signal)
}

/// Why `runsc run` has failed, in its own words; `None` if it was not even executed.
fn refusal(status: WaitStatus) -> Option<Failure> {
    let log = std::fs::read_to_string(LOG).unwrap_or_default();
    if log.is_empty() && status.exit_status() == Some(125) {
        return None;
    }
    let said = log.lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line.get("msg")?.as_str()?.to_owned())
    });
    let said = said.unwrap_or_else(|| format!("it ended with {}", code(status)));
    Some(Failure {
        exit_code: if said.contains("exec") { 126 } else { 125 },
        message: format!("runsc: {said}"),
    })
}
