//! Starting one process: check the request, make pipes, take a cgroup and a user namespace, clone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::restorer;
use crate::cgroup::{Cgroup, Manager};
use crate::child::{self, Image, Mounted, Place, Plan, Program};
use crate::process_image;
use crate::seccomp::Profile;
use crate::spec::ProcessSpec;
use crate::sys::{self, BpfInstruction, Forked};
use crate::userns::{Pool, UserNamespace};
use crate::weak::{self, Wall};

/// A process between clone and exec.
pub(super) struct Launched {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) stdin: Option<OwnedFd>,
    /// End of file: exec succeeded (or the process was killed before). Else a [`child::Failure`].
    pub(super) report: OwnedFd,
    /// Where a virtual machine's agent tells how the container ended, if it comes to that: a
    /// [`crate::microvm::LastWords`].
    pub(super) last_words: Option<OwnedFd>,
    pub(super) cgroup: Cgroup,
    pub(super) users: Option<UserNamespace>,
}

/// What all containers have behind their walls.
pub(super) struct Walls {
    pub(super) filters: Filters,
    /// `None`: not with this kernel.
    pub(super) landlock: Option<OwnedFd>,
    /// `None`: containers share the host's user namespace.
    pub(super) users: Option<Pool>,
}

/// The system call filters.
pub(super) struct Filters {
    pub(super) container: Vec<BpfInstruction>,
    /// For [`crate::Root::Bare`].
    pub(super) runtime: Vec<BpfInstruction>,
    /// For what runs a virtual machine.
    pub(super) machine: Vec<BpfInstruction>,
}

impl Filters {
    fn of(&self, profile: Profile) -> &[BpfInstruction] {
        match profile {
            Profile::Container => &self.container,
            Profile::Runtime => &self.runtime,
            Profile::Machine => &self.machine,
        }
    }
}

/// Descriptors that came with the request.
pub(super) struct Given {
    pub(super) netns: Option<OwnedFd>,
    pub(super) sys: Option<OwnedFd>,
    pub(super) disk: Option<OwnedFd>,
    pub(super) image: Option<OwnedFd>,
    pub(super) inherit: Vec<(i32, OwnedFd)>,
}

/// Why a request cannot be carried out as it stands.
pub(super) fn check(spec: &ProcessSpec, given: &Given) -> Result<(), String> {
    check_id(&spec.id)?;
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err("no command: set CMD or ENTRYPOINT in the image, or give one".to_owned());
    }
    if given.netns.is_none() {
        return Err("no network namespace was given".to_owned());
    }
    if spec.disk.is_some() != given.disk.is_some() {
        return Err(
            "a disk's mount must be given exactly when the process is to use one".to_owned(),
        );
    }
    if !spec.isolation.class().is_on_host_kernel()
        && (!spec.root.is_container() || !given.inherit.is_empty() || given.image.is_some())
    {
        return Err(
            "on another kernel: containers only, without inherited descriptors and process images"
                .to_owned(),
        );
    }
    if given.image.is_some() && !spec.root.is_container() {
        return Err("a process image is for containers".to_owned());
    }
    let image = given.image.as_ref().map(|_| process_image::DESCRIPTOR);
    let mut numbers: Vec<i32> = given
        .inherit
        .iter()
        .map(|(number, _)| *number)
        .chain(image)
        .collect();
    numbers.sort_unstable();
    if numbers.first().is_some_and(|n| *n < 3) || numbers.windows(2).any(|w| w[0] == w[1]) {
        return Err("inherited descriptors need distinct numbers from 3 on".to_owned());
    }
    Ok(())
}

pub(super) fn check_id(id: &str) -> Result<(), String> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if id.is_empty() || id.len() > 64 || !id.chars().all(valid) {
        return Err(format!("process id {id:?}: use 1 to 64 of a-z, 0-9 and -"));
    }
    Ok(())
}

/// Starts the process. It may still fail; see [`Launched::report`].
pub(super) fn launch(
    manager: &mut Manager,
    walls: &mut Walls,
    spec: &ProcessSpec,
    given: &Given,
) -> io::Result<Launched> {
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (child_stdin, stdin) = stdin(spec)?;
    let (report, child_report) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&report, true)?;
    let gate = given.image.as_ref().map(|_| pipe_with(PipeFlags::CLOEXEC));
    let gate = gate.transpose()?;

    let is_container = spec.root.is_container();
    let mut users = walls.users.as_mut().filter(|_| is_container);
    let class = spec.isolation.class();
    let last_words = class
        .has_last_words()
        .then(|| pipe_with(PipeFlags::CLOEXEC));
    let (last_words, child_last_words) = last_words.transpose()?.unzip();
    if let Some(words) = &last_words {
        rustix::io::ioctl_fionbio(words, true)?;
    }
    let cgroup = manager.create(&spec.isolation.limits(&spec.limits))?;
    let taken = match users.as_mut().map(|pool| pool.take()).transpose() {
        Ok(taken) => taken,
        Err(error) => {
            cgroup.remove()?;
            return Err(error);
        }
    };
    let namespaces = namespaces(spec.hostname.is_some());
    let forked = cgroup.open_v2().and_then(|v2| {
        // SAFETY: the spawner has one thread, and the child goes to `child::run`, which does not
        // return.
        unsafe { sys::fork_with(namespaces, v2.as_ref().map(AsFd::as_fd)) }
    });
    match forked {
        Ok(Forked::Child) => child::run(&Plan {
            program: Program::of(spec, taken.as_ref()),
            place: Place::New {
                spec,
                netns: given.netns.as_ref().map(AsFd::as_fd),
                mounted: Mounted {
                    sys: given.sys.as_ref().map(AsFd::as_fd),
                    disk: given.disk.as_ref().map(AsFd::as_fd),
                },
                last_words: child_last_words.as_ref().map(AsFd::as_fd),
            },
            cgroup: &cgroup,
            users: taken.as_ref(),
            streams: [
                child_stdin.as_ref().map(AsFd::as_fd),
                Some(child_stdout.as_fd()),
                Some(child_stderr.as_fd()),
            ],
            terminal: false,
            inherit: &given.inherit,
            image: given
                .image
                .as_ref()
                .zip(gate.as_ref())
                .map(|(image, (gate, opener))| Image {
                    image: image.as_fd(),
                    gate: gate.as_fd(),
                    opener: opener.as_fd(),
                }),
            report: child_report.as_fd(),
            filter: walls.filters.of(class.filter(&spec.root)),
            landlock: walls.landlock.as_ref().map(AsFd::as_fd),
            class,
        }),
        Ok(Forked::Parent { pid, pidfd }) => {
            if let (Some(image), Some((_, opener))) = (&given.image, &gate) {
                restorer::start(pid, image.as_fd(), opener.as_fd(), child_report.as_fd());
            }
            Ok(Launched {
                pid,
                pidfd,
                stdout,
                stderr,
                stdin,
                report,
                last_words,
                cgroup,
                users: taken,
            })
        }
        Err(error) => {
            if let (Some(pool), Some(taken)) = (users, taken) {
                pool.give_back(taken);
            }
            cgroup.remove()?;
            Err(error)
        }
    }
}

/// The pipe of standard input, if it is to be one: the process's end, and the other.
pub(super) fn stdin(spec: &ProcessSpec) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    if !spec.stdin_pipe {
        return Ok((None, None));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Some(read), Some(write)))
}

/// What comes with the clone.
pub(super) fn namespaces(own_name: bool) -> u64 {
    let mut namespaces = libc::CLONE_NEWNS;
    for (wall, flag) in [
        (Wall::PidNamespace, libc::CLONE_NEWPID),
        (Wall::IpcNamespace, libc::CLONE_NEWIPC),
    ] {
        namespaces |= if weak::is_down(wall) { 0 } else { flag };
    }
    if own_name {
        namespaces |= libc::CLONE_NEWUTS;
    }
    namespaces as u64
}
