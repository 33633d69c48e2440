//! What the spawner and the agent that runs a container's virtual machine agree upon.
//!
//! Owns: what the agent finds when it is executed, and what it says at the end. Must not: know how
//! it does its work (crate wharf-microvm).
//!
//! The spawner puts the agent behind a container's walls, with the container's root file system at
//! [`ROOTFS`] and the programs of a virtual machine beside it:
//! ```text
//! main:  agent VERB keep   3: report   4: last words                REQUEST: the container
//! exec:  agent VERB exec   3: report   4: an ExecRequest, in memory
//! ```
//! Standard streams are the container's, or the process's.
//! The report is that of any process: closed when the program runs; else one byte of exit code and
//! a message.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cgroup::Usage;
use crate::exit::Exit;
use crate::spec::{Capabilities, Limits};

/// First argument under which an executable is the agent.
pub const VERB: &str = "__microvm";
/// Second argument: of the container's first process.
pub const KEEP: &str = "keep";
/// Second argument: of a process inside a container that runs.
pub const EXEC: &str = "exec";

/// Where things are for the agent.
pub const ROOTFS: &str = "/rootfs";
/// Its own, for notes and sockets.
pub const STATE: &str = "/state";
/// A [`Request`], as JSON.
pub const REQUEST: &str = "/state/request";
/// The program of the machine.
pub const QEMU: &str = "/qemu";
/// The server of files.
pub const VIRTIOFSD: &str = "/virtiofsd";
/// The guest's kernel.
pub const KERNEL: &str = "/kernel";
/// The guest's initial RAM disk.
pub const INITRD: &str = "/initrd";

/// Where to report that the program runs, or why not.
pub const REPORT_FD: i32 = 3;
/// The main agent writes its [`LastWords`] here; the others read an [`ExecRequest`] from it.
pub const MORE_FD: i32 = 4;

/// Memory of the machine for the guest's kernel and agent, bytes: a container's limit is for
/// itself.
pub const GUEST_MEMORY: u64 = 96 << 20;
/// Memory for the programs of the machine and what the server of files has in hand, bytes.
const PROGRAMS: u64 = 160 << 20;
/// Translated code of an emulated machine, bytes.
pub const TRANSLATION: u64 = 64 << 20;

/// What the machine may take beyond the container's own limit, bytes.
pub(crate) fn overhead(kvm: bool) -> u64 {
    GUEST_MEMORY + PROGRAMS + if kvm { 0 } else { TRANSLATION }
}

/// The container, as it is to be inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// As [`crate::ProcessSpec::argv`].
    pub argv: Vec<String>,
    /// As [`crate::ProcessSpec::env`].
    pub env: Vec<String>,
    /// As [`crate::ProcessSpec::cwd`].
    pub cwd: String,
    /// As [`crate::ProcessSpec::user`].
    pub user: String,
    /// As [`crate::ProcessSpec::hostname`].
    pub hostname: Option<String>,
    /// As [`crate::ProcessSpec::limits`].
    pub limits: Limits,
    /// As [`crate::ProcessSpec::capabilities`].
    pub capabilities: Capabilities,
    /// As [`crate::ProcessSpec::no_new_privileges`].
    pub no_new_privileges: bool,
    /// As [`crate::ProcessSpec::stdin_pipe`].
    pub stdin_pipe: bool,
    /// As [`crate::Machine::kvm`].
    pub kvm: bool,
}

/// A process inside a container that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    /// As [`crate::ExecSpec::argv`].
    pub argv: Vec<String>,
    /// As [`crate::ExecSpec::env`].
    pub env: Vec<String>,
    /// As [`crate::ExecSpec::cwd`].
    pub cwd: String,
    /// As [`crate::ExecSpec::user`].
    pub user: String,
    /// As [`crate::ExecSpec::nofile`].
    pub nofile: Option<u64>,
}

/// How the container ended, as JSON in one write of at most 4096 bytes: the machine's processes are
/// not this kernel's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastWords {
    /// How the main process ended.
    pub exit: Exit,
    /// As the guest's kernel counted.
    pub usage: Usage,
}

impl LastWords {
    /// What happened inside counts for the container.
    pub(crate) fn apply(self, exit: &mut Exit, usage: &mut Usage) {
        let oom_killed = exit.oom_killed || self.exit.oom_killed;
        *exit = Exit {
            oom_killed,
            ..self.exit
        };
        let inside = self.usage;
        usage.pids_limit_hits = inside.pids_limit_hits;
        usage.memory_limit_hits = inside.memory_limit_hits;
        usage.memory_peak_bytes = inside.memory_peak_bytes.or(usage.memory_peak_bytes);
        if let Some(kills) = inside.oom_kills {
            usage.oom_kills = Some(usage.oom_kills.unwrap_or(0) + kills);
        }
    }
}

/// The report and the other descriptor. For the agent, once, before it opens anything.
///
/// # Errors
/// They were taken already, or are not there: this process was not executed by the spawner.
pub fn inherited() -> std::io::Result<(OwnedFd, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    crate::sys::close_on_exec_from(REPORT_FD as u32)?;
    // SAFETY: who executes the agent puts both there and tells nobody else; they are taken once.
    unsafe { Ok((crate::sys::take(REPORT_FD)?, crate::sys::take(MORE_FD)?)) }
}

/// How fast this processor's time stamp counter runs, kHz; `None` where processors have none. Takes
/// some milliseconds.
pub fn tsc_khz() -> Option<u64> {
    let (first, start) = (crate::sys::tsc()?, Instant::now());
    std::thread::sleep(Duration::from_millis(5));
    let (second, passed) = (crate::sys::tsc()?, start.elapsed());
    let nanoseconds = u64::try_from(passed.as_nanos()).ok()?.max(1);
    Some(second.wrapping_sub(first).saturating_mul(1_000_000) / nanoseconds)
}
