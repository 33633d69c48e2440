//! Containers in a virtual machine of their own: the way from clone to the agent, which runs the
//! machine.
//!
//! Owns: what the agent finds around it ([`root`]), and who it is. Must not: rely on the machine
//! for a wall that other containers have. Its programs are in the namespaces, the cgroup and the
//! range of ids that the container's own processes would be in, and see a root file system with
//! nothing in it but the container's, themselves, and the system's shared libraries.
//!
//! ```text
//! main:  request in /state -> descriptors -> user namespace -> ids and capabilities
//!        -> no_new_privs -> Landlock -> seccomp -> agent
//! exec:  request in memory -> descriptors -> user namespace -> ids, no capability -> no_new_privs
//!        -> seccomp -> agent
//! ```
//! The main agent has the capabilities that the server of files needs, to act for any id of the
//! container; it drops them when that runs.

mod root;

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use serde::Serialize;

use super::outer::{self, become_root_inside, set_of};
use crate::child::mounts::Parts;
use crate::child::{Failure, Place, Plan, Step, caps, place_descriptors, strings};
use crate::microvm::{
    EXEC, ExecRequest, KEEP, MORE_FD, REPORT_FD, REQUEST, Request, VERB, overhead,
};
use crate::seccomp::Profile;
use crate::spec::{IsolationSpec, Limits, Machine};
use crate::sys;

/// The agent as a file.
const AGENT: &str = "/agent";

/// Threads and processes of the machine's programs, at most. The container's own processes are the
/// guest's, which holds to their limit.
const THREADS: u64 = 512;

/// What the server of files needs.
const NEEDED: [u32; 11] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    2,  // DAC_READ_SEARCH
    3,  // FOWNER
    4,  // FSETID
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    18, // SYS_CHROOT
    27, // MKNOD
    31, // SETFCAP
];

/// Below the root that the machine's programs have.
pub(super) fn root_of(pid: i32) -> PathBuf {
    outer::root_of(pid)
}

/// Within the machine, its kernel holds the processes to their number and their memory. What is
/// done until the program starts is not the program's, so the limit of CPU waits for that.
pub(super) fn limits(asked: &Limits, machine: &Machine) -> Limits {
    let memory_bytes = asked.memory_bytes;
    Limits {
        pids: Some(THREADS),
        memory_bytes: memory_bytes.map(|bytes| bytes + overhead(machine.kvm)),
        cpu_millis: None,
        ..asked.clone()
    }
}

/// The filter of the machine's programs.
pub(super) fn filter() -> Profile {
    Profile::Machine
}

/// The root of the machine's programs, with the container's in it, becomes `/`.
pub(super) fn enter_root(
    parts: &Parts<'_>,
    machine: &Machine,
    plan: &Plan<'_>,
) -> Result<(), Failure> {
    root::enter(parts, machine, plan.users)
}

/// Takes the process from its namespaces to exec, or to the step that failed. The first process is
/// the agent that runs the machine, and ends as the program in it does; one that joins is the agent
/// that stands for a process inside.
pub(super) fn become_program(
    plan: &Plan<'_>,
    report: &Cell<BorrowedFd<'_>>,
) -> Result<Infallible, Failure> {
    let id = plan.users.map_or(0, |users| users.root);
    let program = &plan.program;
    let said = report.get();
    let mut more = vec![(REPORT_FD, said)];
    let in_memory;
    let (mode, keep) = match plan.place {
        Place::New {
            spec, last_words, ..
        } => {
            let request = Request {
                argv: spec.argv.clone(),
                env: spec.env.clone(),
                cwd: spec.cwd.clone(),
                user: spec.user.clone(),
                hostname: spec.hostname.clone(),
                limits: spec.limits.clone(),
                capabilities: spec.capabilities,
                no_new_privileges: spec.no_new_privileges,
                stdin_pipe: spec.stdin_pipe,
                kvm: matches!(&spec.isolation, IsolationSpec::Microvm(machine) if machine.kvm),
            };
            std::fs::write(REQUEST, json(&request)?).step(|| format!("writing {REQUEST}"))?;
            more.extend(last_words.map(|pipe| (MORE_FD, pipe)));
            (KEEP, set_of(&NEEDED))
        }
        Place::Joined { .. } | Place::Beside { .. } => {
            let request = ExecRequest {
                argv: program.argv.to_vec(),
                env: program.env.to_vec(),
                cwd: program.cwd.to_owned(),
                user: program.user.to_owned(),
                nofile: program.nofile,
            };
            in_memory = memory_file(&json(&request)?)?;
            more.push((MORE_FD, in_memory.as_fd()));
            (EXEC, caps::NONE)
        }
    };
    let argv = ["wharf", VERB, mode].map(str::to_owned);
    let argv = strings(&argv, "argument")?;
    let kept = place_descriptors(plan, id, &more)?;
    report.set(kept.report);
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
            .step(|| "taking the terminal".to_owned())?;
    }
    become_root_inside(kept.users, keep)?;
    if let Some(rules) = kept.landlock {
        sys::landlock_restrict(rules).step(|| "restricting by Landlock".to_owned())?;
    }
    sys::install_seccomp(plan.filter).step(|| "installing the seccomp filter".to_owned())?;
    let path = std::ffi::CString::new(AGENT).step(|| "naming the agent".to_owned())?;
    Err(sys::exec(&path, &argv, &[])).step(|| "executing the agent".to_owned())
}

fn json(request: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(request).step(|| "writing the request down".to_owned())
}

/// A file that no directory has, to be read from its beginning.
fn memory_file(content: &[u8]) -> Result<OwnedFd, Failure> {
    let name = || "writing the request down".to_owned();
    let file = rustix::fs::memfd_create("request", MemfdFlags::CLOEXEC).step(name)?;
    let mut file = std::fs::File::from(file);
    file.write_all(content)
        .and_then(|()| file.rewind())
        .step(name)?;
    Ok(file.into())
}
