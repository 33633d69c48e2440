//! Class namespace: a container's processes are the host kernel's own, and the walls are that
//! kernel's namespaces, cgroups and filters. A runtime ([`Root::Bare`]) is of this class, too.
//!
//! Owns: the way from the place to the program. Must not: know of another class.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use crate::child::mounts::{self, Parts};
use crate::child::stage::Stage;
use crate::child::{
    Failure, Image, KeptDescriptors, Place, Plan, Program, Step, caps, enter_directory,
    enter_existing_directory, environment, place_descriptors, programs, rustix_text, strings, user,
};
use crate::process_image;
use crate::seccomp::Profile;
use crate::spec::{Limits, Root};
use crate::sys;
use crate::userns::IDS;
use crate::weak::{self, Wall};

/// Places in the table of descriptors of a runtime; 8 bytes each.
const RUNTIME_DESCRIPTORS: u64 = 8192;

/// The process's own root.
pub(super) fn root_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root"))
}

/// Everything as it was asked for.
pub(super) fn limits(asked: &Limits) -> Limits {
    asked.clone()
}

/// A container's filter, or a runtime's.
pub(super) fn filter(root: &Root) -> Profile {
    match root.is_container() {
        true => Profile::Container,
        false => Profile::Runtime,
    }
}

/// The overlay becomes `/`.
pub(super) fn enter_root(
    parts: &Parts<'_>,
    plan: &Plan<'_>,
    ahead: Option<Stage>,
) -> Result<(), Failure> {
    mounts::enter_root(parts, plan.cgroup, plan.users, ahead)
}

/// Takes the process from its namespaces to exec, or to the step that failed.
pub(super) fn become_program(
    plan: &Plan<'_>,
    report: &Cell<BorrowedFd<'_>>,
) -> Result<Infallible, Failure> {
    let program = &plan.program;
    let is_container = plan.place.is_container();
    let refuse = |message| Failure {
        exit_code: 125,
        message,
    };
    let user = user::look_up(program.user).map_err(refuse)?;
    let root = match plan.users {
        Some(users) => {
            user.within(IDS).map_err(refuse)?;
            users.root
        }
        None => 0,
    };
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    match plan.place {
        Place::New { spec, .. } => {
            enter_directory(program.cwd, (root + user.uid, root + user.gid))?;
            if spec.read_only {
                // The working directory may have been made just now.
                mounts::make_root_read_only()?;
            }
        }
        Place::Joined { .. } | Place::Beside { .. } => enter_existing_directory(program.cwd)?,
    }

    let env = environment(program, &user)?;
    let argv = strings(program.argv, "argument")?;
    let candidates = programs(program)?;

    let image = plan.image.map(traced).transpose()?.flatten();
    let image = image.map(|image| (process_image::DESCRIPTOR, image));
    let kept = place_descriptors(plan, root + user.uid, image.as_slice())?;
    report.set(kept.report);
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
            .step(|| "taking the terminal".to_owned())?;
    }
    limit_files(program)?;
    if !is_container {
        reserve_descriptors();
    }
    // Neither a file nor the host's handler, which would run outside (core(5)); the filter keeps it
    // so.
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(1),
            maximum: Some(1),
        },
    )
    .step(|| "limit on core dumps".to_owned())?;
    if let Some(users) = kept.users {
        rustix::thread::move_into_link_name_space(users, Some(LinkNameSpaceType::User))
            .step(|| "entering the user namespace".to_owned())?;
    }
    if !weak::is_down(Wall::Keyring) {
        sys::new_session_keyring().step(|| "making a session keyring".to_owned())?;
    }

    let keep = if is_container && weak::is_down(Wall::Capabilities) {
        CapabilitySet::from_bits_retain(u64::MAX)
    } else if is_container {
        CapabilitySet::from_bits_retain(program.capabilities.bits())
    } else {
        caps::NONE
    };
    caps::bound(keep).step(|| "dropping capabilities from the bounding set".to_owned())?;
    sys::block_signals(&[]).step(|| "unblocking signals".to_owned())?;
    let no_new_privileges = program.no_new_privileges && !weak::is_down(Wall::NoNewPrivs);
    if no_new_privileges {
        become_user(&user, keep)?;
        rustix::thread::set_no_new_privs(true).step(|| "no_new_privs".to_owned())?;
        restrict(plan, &kept)?;
    } else {
        restrict(plan, &kept)?;
        become_user(&user, keep)?;
    }
    Err(execute(&program.argv[0], &candidates, &argv, &env))
}

/// Ids and capabilities.
fn become_user(user: &user::User, keep: CapabilitySet) -> Result<(), Failure> {
    let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    rustix::thread::set_thread_groups(&groups).step(|| "setgroups".to_owned())?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| format!("setgid {}", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| format!("setuid {}", user.uid))?;
    caps::limit(if user.uid == 0 { keep } else { caps::NONE })
        .step(|| "setting capabilities".to_owned())
}

/// Landlock and the filter: needs no_new_privs, or CAP_SYS_ADMIN in the user namespace.
fn restrict(plan: &Plan<'_>, kept: &KeptDescriptors) -> Result<(), Failure> {
    if let Some(rules) = kept.landlock.filter(|_| !weak::is_down(Wall::Landlock)) {
        sys::landlock_restrict(rules).step(|| "restricting by Landlock".to_owned())?;
    }
    if !weak::is_down(Wall::Seccomp) {
        sys::install_seccomp(plan.filter).step(|| "installing the seccomp filter".to_owned())?;
    }
    Ok(())
}

/// Waits for the one who gives it the image. `None`: it will not be given.
fn traced(image: Image<'_>) -> Result<Option<BorrowedFd<'_>>, Failure> {
    // SAFETY: owned by the parent's memory image; never dropped here, as this process ends only by
    // exec or _exit.
    unsafe { sys::close(image.opener) }.step(|| "closing a pipe".to_owned())?;
    let traced = rustix::io::retry_on_intr(|| rustix::io::read(image.gate, &mut [0; 1]))
        .step(|| "waiting for the process image".to_owned())?;
    Ok((traced == 1).then_some(image.image))
}

/// Raises or lowers the limit of open files, as far as the hard limit and capabilities allow.
fn limit_files(program: &Program<'_>) -> Result<(), Failure> {
    let Some(wanted) = program.nofile else {
        return Ok(());
    };
    let limit = |n: u64| Rlimit {
        current: Some(n),
        maximum: Some(n),
    };
    match rustix::process::setrlimit(Resource::Nofile, limit(wanted)) {
        Err(rustix::io::Errno::PERM) => {
            let hard = rustix::process::getrlimit(Resource::Nofile)
                .maximum
                .unwrap_or(wanted);
            rustix::process::setrlimit(Resource::Nofile, limit(wanted.min(hard)))
        }
        other => other,
    }
    .step(|| format!("limit of {wanted} open files"))
}

/// Makes the table of descriptors large while there is one thread. A runtime with many threads,
/// such as workerd, would stand still for an RCU grace period each time that the kernel doubles it.
fn reserve_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let places = limit
        .unwrap_or(RUNTIME_DESCRIPTORS)
        .min(RUNTIME_DESCRIPTORS);
    if let Ok(highest) = i32::try_from(places.saturating_sub(1)) {
        // Closed again at once: the table does not shrink. Without it, it grows when it is full.
        drop(rustix::io::fcntl_dupfd_cloexec(
            rustix::stdio::stderr(),
            highest,
        ));
    }
}

fn execute(name: &str, candidates: &[CString], argv: &[CString], env: &[CString]) -> Failure {
    let mut refused = None;
    for program in candidates {
        let error = sys::exec(program, argv, env);
        let number = error.raw_os_error().unwrap_or_default();
        match number {
            libc::ENOENT | libc::ENOTDIR => {
                // The file is there and yet "not found": what interprets it is missing.
                if rustix::fs::stat(program.as_c_str()).is_ok() {
                    let message = format!(
                        "exec: {name:?}: no such file or directory (the file exists; its interpreter or loader does not)"
                    );
                    return Failure {
                        exit_code: 127,
                        message,
                    };
                }
            }
            libc::EACCES if candidates.len() > 1 => refused = Some(number),
            _ => {
                return Failure {
                    exit_code: 126,
                    message: format!("exec: {name:?}: {}", rustix_text(number)),
                };
            }
        }
    }
    match refused {
        Some(number) => Failure {
            exit_code: 126,
            message: format!("exec: {name:?}: {}", rustix_text(number)),
        },
        None if name.contains('/') => Failure {
            exit_code: 127,
            message: format!("exec: {name:?}: no such file or directory"),
        },
        None => Failure {
            exit_code: 127,
            message: format!("exec: {name:?}: executable file not found in $PATH"),
        },
    }
}
