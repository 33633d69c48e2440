//! Containers on gVisor's kernel: the way from clone to `runsc`.
//!
//! Owns: what `runsc` finds around it ([`root`]), what it is told ([`config`]), and its arguments.
//! Must not: rely on `runsc` for a wall that the other containers have. Its processes are in the
//! namespaces, the cgroup and the range of ids that the container's own would be in, and see a root
//! file system with nothing in it but the container's and `runsc` itself.
//!
//! ```text
//! main:  user lookup, working directory (in the root) -> config.json -> descriptors
//!        -> user namespace -> ids and capabilities -> no_new_privs -> Landlock -> mount namespace,
//!        /proc/meminfo -> keeper
//! exec:  user lookup, working directory (in the root) -> process.json -> descriptors
//!        -> user namespace -> ... -> seccomp -> `runsc exec`
//! tool:  descriptors -> user namespace -> ... -> seccomp -> `runsc kill`
//! ```
//! The main `runsc` gets no filter from here: its processes that serve the container install their
//! own, each narrower than any that would let `runsc` mount and trace. The others have the
//! containers' filter and no capability: one that broke out could trace them.

mod config;
mod keeper;
mod root;

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags};

use super::outer::{self, become_root_inside, set_of};
use super::{SignalRoute, SignalTarget};
use crate::child::mounts::Parts;
use crate::child::{
    Failure, Place, Plan, Program, Step, caps, enter_directory, enter_existing_directory,
    environment, place_descriptors, programs, strings, user,
};
use crate::microvm::ROOTFS;
use crate::seccomp::Profile;
use crate::spec::{Capabilities, Limits};
use crate::sys;
use crate::userns::IDS;

/// Where things are below the root that `runsc` has.
const BUNDLE: &str = "/bundle";
const STATE: &str = "/state";
const LOG: &str = "/state/log";
const PID: &str = "/state/pid";
/// The container's name for `runsc`; there is one in each state directory.
const CONTAINER: &str = "container";

/// Threads that `runsc` has of its own, at most: those of its language's runtime, of an exec and of
/// a signal on its way.
const THREADS: u64 = 256;

/// `runsc kill` knows no real-time signals.
const MAX_SIGNAL: i32 = 31;

/// Numbers of the descriptors that `runsc exec` finds.
const PROCESS_FD: i32 = 3;
const REPORT_FD: i32 = 4;

/// `runsc` as it is always called. `--network=host` is the network namespace that it is in; cgroups
/// are the spawner's. Files are shared: nothing is kept back in gVisor's memory that a snapshot
/// would not find, and `docker cp` is seen inside.
const FLAGS: [&str; 9] = [
    "--root=/state",
    "--log=/state/log",
    "--log-format=json",
    "--network=host",
    "--ignore-cgroups",
    "--overlay2=none",
    "--file-access=shared",
    "--file-access-mounts=shared",
    "--host-uds=none",
];

/// What `runsc` needs to build its own walls, in the user namespace; and what it may leave to the
/// container.
const NEEDED: [u32; 19] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    2,  // DAC_READ_SEARCH
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    10, // NET_BIND_SERVICE
    13, // NET_RAW
    18, // SYS_CHROOT
    19, // SYS_PTRACE
    21, // SYS_ADMIN
    24, // SYS_RESOURCE
    25, // SYS_TIME
    27, // MKNOD
    29, // AUDIT_WRITE
    31, // SETFCAP
];

/// The program as gVisor is told of it.
pub(super) struct Prepared {
    user: user::User,
    argv: Vec<String>,
    env: Vec<String>,
    cwd: String,
}

/// Below the root that `runsc` has.
pub(super) fn root_of(pid: i32) -> PathBuf {
    outer::root_of(pid)
}

/// `runsc`'s own threads are no processes of the container's, and what it does until the program
/// starts is not the program's: at a sixteenth of a core it would take a second.
pub(super) fn limits(asked: &Limits) -> Limits {
    Limits {
        pids: asked.pids.map(|pids| pids + THREADS),
        cpu_millis: None,
        ..asked.clone()
    }
}

/// The containers' filter, for what runs beside the kernel.
pub(super) fn filter() -> Profile {
    Profile::Container
}

/// The root of `runsc`, with the container's in it, becomes `/`.
pub(super) fn enter_root(parts: &Parts<'_>, runsc: &Path, plan: &Plan<'_>) -> Result<(), Failure> {
    root::enter(parts, runsc, plan.users)
}

/// `runsc kill` sends it, except SIGKILL to the keeper, with which everything ends. Signal 0 asks
/// whether the process on the host exists.
pub(super) fn signal(target: SignalTarget, signal: i32) -> SignalRoute {
    let inside_pid = match target {
        _ if signal == 0 => return SignalRoute::Kernel,
        SignalTarget::Main if signal == libc::SIGKILL => return SignalRoute::Kernel,
        SignalTarget::Main => None,
        SignalTarget::Inside(pid) => Some(pid),
    };
    SignalRoute::Program(match (1..=MAX_SIGNAL).contains(&signal) {
        true => Ok(kill(inside_pid, signal)),
        false => Err(format!(
            "signal {signal} to a process on gVisor: runsc sends 1 to {MAX_SIGNAL} only"
        )),
    })
}

/// Takes the process from its namespaces to exec or to the keeper, or to the step that failed.
pub(super) fn become_program(
    plan: &Plan<'_>,
    report: &Cell<BorrowedFd<'_>>,
) -> Result<Infallible, Failure> {
    let id = plan.users.map_or(0, |users| users.root);
    let mut argv: Vec<&str> = vec!["runsc"];
    argv.extend(FLAGS);
    let mut process = None;
    let capabilities = plan.program.capabilities;
    match plan.place {
        Place::New { spec, .. } => {
            let prepared = prepare(plan)?;
            let tmp = config::has_tmp(Path::new(ROOTFS));
            let config = config::bundle(&prepared, spec, tmp);
            write(&format!("{BUNDLE}/config.json"), &config.to_string())?;
            argv.extend(["run", "--detach", "--bundle", BUNDLE, "--pid-file", PID]);
        }
        Place::Joined { .. } => {
            let prepared = prepare(plan)?;
            let json = config::process(&prepared, capabilities, None, plan.terminal);
            process = Some(in_memory(&json.to_string())?);
            argv.extend([
                "exec",
                "--process=/proc/self/fd/3",
                "--internal-pid-file=/proc/self/fd/4",
            ]);
        }
        Place::Beside { .. } => {}
    }
    let mut more = Vec::new();
    let said = report.get();
    if let Some(process) = &process {
        // runsc opens it anew, which asks the pipe's owner.
        rustix::fs::fchown(said, Some(rustix::fs::Uid::from_raw(id)), None)
            .step(|| "giving the report to runsc".to_owned())?;
        more.extend([(PROCESS_FD, process.as_fd()), (REPORT_FD, said)]);
    }
    let kept = place_descriptors(plan, id, &more)?;
    report.set(kept.report);
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
            .step(|| "taking the terminal".to_owned())?;
    }
    match plan.place {
        Place::Beside { .. } => argv.extend(plan.program.argv.iter().map(String::as_str)),
        Place::New { .. } | Place::Joined { .. } => argv.push(CONTAINER),
    }
    let argv = strings(
        &argv.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(),
        "argument",
    )?;

    let builds = matches!(plan.place, Place::New { .. });
    become_root_inside(
        kept.users,
        if builds { set_of(&NEEDED) } else { caps::NONE },
    )?;
    if let Place::New { spec, .. } = plan.place {
        if let Some(rules) = kept.landlock {
            sys::landlock_restrict(rules).step(|| "restricting by Landlock".to_owned())?;
        }
        root::own_mounts(spec.limits.memory_bytes)?;
        return keeper::run(&argv, report);
    }
    sys::install_seccomp(plan.filter).step(|| "installing the seccomp filter".to_owned())?;
    Err(execute(&argv))
}

/// Replaces the process by `runsc`.
fn execute(argv: &[CString]) -> Failure {
    let error = sys::exec(c"/runsc", argv, &[]);
    Failure {
        exit_code: 125,
        message: format!("isolation class gvisor: executing runsc: {error}"),
    }
}

/// Looks up what is asked for, with the container's root as `/` meanwhile.
fn prepare(plan: &Plan<'_>) -> Result<Prepared, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let outer = rustix::fs::open("/", flags, Mode::empty()).step(|| "opening /".to_owned())?;
    let enter = |to: &str| -> rustix::io::Result<()> {
        rustix::process::chdir(to)?;
        rustix::process::chroot(".")
    };
    enter(ROOTFS).step(|| "entering the root file system".to_owned())?;
    let prepared = prepare_inside(plan)?;
    rustix::process::fchdir(&outer)
        .and_then(|()| rustix::process::chroot("."))
        .step(|| "leaving the root file system".to_owned())?;
    Ok(prepared)
}

fn prepare_inside(plan: &Plan<'_>) -> Result<Prepared, Failure> {
    let program = &plan.program;
    let refuse = |message| Failure {
        exit_code: 125,
        message,
    };
    let user = user::look_up(program.user).map_err(refuse)?;
    user.within(IDS).map_err(refuse)?;
    let root = plan.users.map_or(0, |users| users.root);
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    match plan.place {
        Place::New { .. } => {
            enter_directory(program.cwd, (root + user.uid, root + user.gid))?;
        }
        Place::Joined { .. } if is_gvisors(program.cwd) => {}
        Place::Joined { .. } | Place::Beside { .. } => enter_existing_directory(program.cwd)?,
    }
    let mut argv = program.argv.to_vec();
    if let Some(found) = find(program)?
        && !program.env.iter().any(|e| e.starts_with("PATH="))
    {
        // gVisor looks nothing up without a PATH.
        argv[0] = found;
    }
    strings(&argv, "argument")?;
    let env = environment(program, &user)?;
    let env = env.into_iter().map(|e| e.into_string());
    let env = env
        .collect::<Result<_, _>>()
        .map_err(|e| refuse(e.to_string()))?;
    let cwd = if program.cwd.is_empty() {
        "/"
    } else {
        program.cwd
    };
    Ok(Prepared {
        user,
        argv,
        env,
        cwd: cwd.to_owned(),
    })
}

/// Whether what this names is on a file system that only gVisor has.
fn is_gvisors(path: &str) -> bool {
    ["/proc/", "/dev/", "/sys/"]
        .iter()
        .any(|p| path.starts_with(p))
}

/// The program's path, if it is to be found on the root's own file systems: what cannot be there is
/// left to gVisor.
fn find(program: &Program<'_>) -> Result<Option<String>, Failure> {
    let name = &program.argv[0];
    let mut refused = None;
    for path in programs(program)? {
        let shown = path.to_string_lossy().into_owned();
        if is_gvisors(&shown) {
            return Ok(None);
        }
        let Ok(stat) = rustix::fs::stat(path.as_c_str()) else {
            continue;
        };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if is_file && stat.st_mode & 0o111 != 0 {
            return Ok(Some(shown));
        }
        refused = Some(if is_file || name.contains('/') {
            "permission denied"
        } else {
            continue;
        });
    }
    let (exit_code, reason) = match refused {
        Some(reason) => (126, reason),
        None if name.contains('/') => (127, "no such file or directory"),
        None => (127, "executable file not found in $PATH"),
    };
    Err(Failure {
        exit_code,
        message: format!("exec: {name:?}: {reason}"),
    })
}

fn write(path: &str, content: &str) -> Result<(), Failure> {
    std::fs::write(path, content).step(|| format!("writing {path}"))
}

/// A file that no directory has.
fn in_memory(content: &str) -> Result<OwnedFd, Failure> {
    let name = || "writing the process's description".to_owned();
    let file = rustix::fs::memfd_create("process.json", MemfdFlags::CLOEXEC).step(name)?;
    let mut file = std::fs::File::from(file);
    file.write_all(content.as_bytes()).step(name)?;
    Ok(file.into())
}

/// Arguments of a `runsc` that sends a signal: to the container's main process, or to one by its
/// number inside.
fn kill(inside_pid: Option<i32>, signal: i32) -> Vec<String> {
    let mut argv = vec!["kill".to_owned()];
    if let Some(pid) = inside_pid {
        argv.push(format!("--pid={pid}"));
    }
    argv.extend([CONTAINER.to_owned(), signal.to_string()]);
    argv
}
