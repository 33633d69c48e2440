//! The way from clone to exec: what a new process does to itself before it becomes the program.
//!
//! Owns: the order of the steps. Each one that fails ends the process with a message over the
//! report pipe. Must not: return, or touch anything that the parent goes on using.
//!
//! ```text
//! signals -> v1 cgroups -> session -> place -> what the isolation class does ([`class`])
//!
//! class namespace:
//!   user lookup -> working directory -> descriptors, terminal -> limits -> user namespace
//!     -> keyring -> bounding set -> Landlock, seccomp -> ids and capabilities -> exec
//!   with no_new_privs:
//!     ... -> bounding set -> ids and capabilities -> no_new_privs -> Landlock, seccomp -> exec
//!   (Without it, only a process with CAP_SYS_ADMIN in the user namespace may restrict itself. So
//!   that comes before the capability is dropped.)
//!
//! place, new:     netns -> cgroup namespace -> owner of new files -> mounts, pivot -> hostname
//! place, joined:  not dumpable -> every namespace of the container but the user namespace
//! ahead:          signals -> v1 cgroups -> session -> cgroup namespace -> owner of new files
//!                   -> the mounts that all have -> (waits) -> as new
//! ```
//! Up to the user namespace the process is the host's root, and ids are the host's; from there on
//! they are the container's, and it has no power over any namespace that it is in: the others
//! belong to the host's root, so they are entered before it.

pub(crate) mod ahead;
mod bare;
mod caps;
pub(crate) mod class;
mod devices;
pub(crate) mod mapped;
pub(crate) mod mounts;
mod rooted;
pub(crate) mod scratch;
mod stage;
pub(crate) mod user;

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use self::class::IsolationClass;
#[cfg(doc)]
use self::class::SignalRoute;
use self::stage::Stage;
use crate::cgroup::Cgroup;
use crate::spec::{Capabilities, ProcessSpec, Root};
use crate::sys::{self, BpfInstruction, Disposition};
use crate::userns::UserNamespace;
use crate::weak::{self, Wall};

/// Docker's default for images that set no PATH; only for the look-up of the program.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most bytes that one atomic write to a pipe takes.
pub(crate) const MAX_REPORT: usize = libc::PIPE_BUF;

/// Signals that the spawner ignores or handles; the program starts with the defaults.
pub(crate) const CHANGED_SIGNALS: [i32; 5] = [
    libc::SIGPIPE,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGTERM,
    libc::SIGCHLD,
];

/// The namespaces that a joined process enters itself, before the user namespace. Where the
/// container has the host's, nothing changes.
const JOINED: ThreadNameSpaceType = ThreadNameSpaceType::MOUNT
    .union(ThreadNameSpaceType::CONTROL_GROUP)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::NETWORK);

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What a shell would exit with: 127 not found, 126 not executable, else 125.
    pub(crate) exit_code: u8,
    /// For a person.
    pub(crate) message: String,
}

/// Names the step in an error.
trait Step<T> {
    fn step(self, name: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            exit_code: 125,
            message: format!("{}: {}", name(), describe(&error.into())),
        })
    }
}

/// An error as the C library says it, without Rust's "(os error 2)".
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => rustix_text(number),
        None => error.to_string(),
    }
}

fn rustix_text(number: i32) -> String {
    let text = io::Error::from_raw_os_error(number).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Everything the child needs; made by the parent, so that the child only acts.
pub(crate) struct Plan<'a> {
    pub(crate) program: Program<'a>,
    pub(crate) place: Place<'a>,
    pub(crate) cgroup: &'a Cgroup,
    /// The container's own; without, its root is the host's.
    pub(crate) users: Option<&'a UserNamespace>,
    /// Standard input, output and error; `None`: /dev/null.
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
    /// Whether standard input is a terminal that becomes the controlling one.
    pub(crate) terminal: bool,
    pub(crate) inherit: &'a [(i32, OwnedFd)],
    pub(crate) image: Option<Image<'a>>,
    /// Write end of the pipe for a [`Failure`]: one byte of exit code, then the message. Closed by
    /// exec.
    pub(crate) report: BorrowedFd<'a>,
    pub(crate) filter: &'a [BpfInstruction],
    /// Where the kernel has them. Not for a joined process, which would be in a domain beside the
    /// container's: neither could reach the other.
    pub(crate) landlock: Option<BorrowedFd<'a>>,
    /// The isolation class of the process, or of the container that it joins.
    pub(crate) class: IsolationClass,
}

/// What to become.
pub(crate) struct Program<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a str,
    pub(crate) user: &'a str,
    pub(crate) nofile: Option<u64>,
    pub(crate) capabilities: Capabilities,
    /// As of [`ProcessSpec::gains_no_privileges`].
    pub(crate) no_new_privileges: bool,
}

impl<'a> Program<'a> {
    pub(crate) fn of(spec: &'a ProcessSpec, users: Option<&UserNamespace>) -> Program<'a> {
        Program {
            argv: &spec.argv,
            env: &spec.env,
            cwd: &spec.cwd,
            user: &spec.user,
            nofile: spec.limits.nofile,
            capabilities: spec.capabilities,
            no_new_privileges: spec.gains_no_privileges(users.is_some()),
        }
    }
}

/// What the program is to begin from.
#[derive(Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) image: BorrowedFd<'a>,
    /// Read end of a pipe: one byte once the process is traced, the end if it will not be.
    pub(crate) gate: BorrowedFd<'a>,
    /// Its write end, which this process has too.
    pub(crate) opener: BorrowedFd<'a>,
}

/// Where.
pub(crate) enum Place<'a> {
    /// Behind walls of its own.
    New {
        spec: &'a ProcessSpec,
        netns: Option<BorrowedFd<'a>>,
        mounted: Mounted<'a>,
        /// Where a class with [`IsolationClass::has_last_words`] tells how the container ended.
        last_words: Option<BorrowedFd<'a>>,
    },
    /// Behind those of a running container, given by its main process. The PID namespace and the
    /// v2 cgroup come with the clone.
    Joined { container: BorrowedFd<'a> },
    /// As [`Place::Joined`], but the process is a program of the class itself, with the arguments
    /// that [`SignalRoute::Program`] has.
    Beside { container: BorrowedFd<'a> },
}

/// What was mounted for it already, and is attached nowhere.
#[derive(Clone, Copy)]
pub(crate) struct Mounted<'a> {
    /// As [`crate::SpawnFds::sys`].
    pub(crate) sys: Option<BorrowedFd<'a>>,
    /// A mount of the disk, if the request has one.
    pub(crate) disk: Option<BorrowedFd<'a>>,
}

impl Place<'_> {
    fn is_container(&self) -> bool {
        match self {
            Place::New { spec, .. } => spec.root.is_container(),
            Place::Joined { .. } | Place::Beside { .. } => true,
        }
    }
}

/// Runs in the child. Never returns, not even by panic.
pub(crate) fn run(plan: &Plan<'_>) -> ! {
    end(plan.report, |report| {
        begin();
        set_up(plan, report)
    })
}

/// Ends in exec, or tells of the step that failed.
fn end<'a>(
    report: BorrowedFd<'a>,
    way: impl FnOnce(&Cell<BorrowedFd<'a>>) -> Result<Infallible, Failure>,
) -> ! {
    // The pipe moves when descriptors are placed: its number may be wanted by the program.
    let report = Cell::new(report);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match way(&report) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }));
    let failure = match outcome {
        Ok(failure) => failure,
        Err(_) => Failure {
            exit_code: 125,
            message: "the process panicked while it was set up".to_owned(),
        },
    };
    let mut bytes = vec![failure.exit_code];
    bytes.extend_from_slice(failure.message.as_bytes());
    bytes.truncate(MAX_REPORT);
    let _ = rustix::io::write(report.get(), &bytes); // Without a reader there is nobody to tell.
    sys::exit_now(i32::from(failure.exit_code))
}

fn begin() {
    for signal in CHANGED_SIGNALS {
        sys::set_signal(signal, Disposition::Default);
    }
}

/// Into the v1 cgroups, and a session of its own.
fn leave_spawner(cgroup: &Cgroup) -> Result<(), Failure> {
    cgroup
        .enter_v1()
        .step(|| "entering the cgroup".to_owned())?;
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().step(|| "setsid".to_owned())?;
    Ok(())
}

/// Ends in exec, or with the step that failed.
fn set_up(plan: &Plan<'_>, report: &Cell<BorrowedFd<'_>>) -> Result<Infallible, Failure> {
    let joins = matches!(plan.place, Place::Joined { .. } | Place::Beside { .. });
    if joins && !weak::is_down(Wall::NotDumpable) {
        // The container's processes can see this one already, and it still holds what the spawner
        // holds. Undone by exec.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .step(|| "hiding from the container's processes".to_owned())?;
    }
    leave_spawner(plan.cgroup)?;
    match plan.place {
        Place::New {
            spec,
            netns,
            mounted,
            ..
        } => {
            enter_network(netns)?;
            leave_cgroups(plan.users)?;
            enter_new(spec, mounted, plan, None)?;
        }
        Place::Joined { container } | Place::Beside { container } => {
            rustix::thread::move_into_thread_name_spaces(container, JOINED)
                .step(|| "entering the container's namespaces".to_owned())?;
        }
    }

    plan.class.become_program(plan, report)
}

fn enter_network(netns: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let Some(netns) = netns else {
        return Ok(());
    };
    rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
        .step(|| "entering the network namespace".to_owned())
}

/// The cgroup becomes the root of all that is seen; what is made from now on belongs to root
/// inside, if `users` are given.
fn leave_cgroups(users: Option<&UserNamespace>) -> Result<(), Failure> {
    sys::unshare_cgroup().step(|| "making a cgroup namespace".to_owned())?;
    if let Some(users) = users {
        // The host's root has no id in the container's file system: nothing there could belong to
        // it.
        sys::make_files_as(users.root).step(|| "becoming the owner of new files".to_owned())?;
    }
    Ok(())
}

/// The walls of a process's own: its file system, and its name.
fn enter_new(
    spec: &ProcessSpec,
    mounted: Mounted<'_>,
    plan: &Plan<'_>,
    ahead: Option<Stage>,
) -> Result<(), Failure> {
    let users = plan.users;
    match &spec.root {
        Root::Overlay { lower, upper, work } => {
            let parts = mounts::Parts {
                lower,
                upper,
                work,
                disk: spec.disk.as_ref(),
                mounted,
                extra: &spec.mounts,
                read_only: spec.read_only,
            };
            spec.isolation.enter_root(&parts, plan, ahead)?;
        }
        Root::Directory(path) => mounts::enter_directory(path, &spec.mounts, plan.cgroup, users)?,
        Root::Bare => bare::enter_root(&spec.mounts)?,
    }
    if let Some(name) = &spec.hostname {
        rustix::system::sethostname(name.as_bytes()).step(|| format!("hostname {name:?}"))?;
    }
    Ok(())
}

fn absolute(cwd: &str) -> Result<&Path, Failure> {
    let path = Path::new(if cwd.is_empty() { "/" } else { cwd });
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Failure {
        exit_code: 125,
        message: format!("working directory {cwd:?} is not absolute"),
    })
}

/// The working directory is made if missing, and entered. Symbolic links count from the root, which
/// is the process's own by now. `owner` is the host's ids.
fn enter_directory(cwd: &str, owner: (u32, u32)) -> Result<(), Failure> {
    let path = absolute(cwd)?;
    if weak::is_down(Wall::MagicLinks) {
        return rustix::process::chdir(path).step(|| format!("working directory {cwd:?}"));
    }
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step(|| "opening /".to_owned())?;
    let directory = rooted::ensure(root.as_fd(), path, rooted::Kind::Directory, Some(owner))
        .step(|| format!("working directory {cwd:?}"))?;
    rustix::process::fchdir(&directory).step(|| format!("working directory {cwd:?}"))
}

/// The working directory of a joined process is entered if it is there. Never through
/// /proc/self/fd: the spawner's descriptors are still open, and lead out of the container.
fn enter_existing_directory(cwd: &str) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = match weak::is_down(Wall::MagicLinks) {
        true => ResolveFlags::empty(),
        false => ResolveFlags::NO_MAGICLINKS,
    };
    let entered = rustix::fs::openat2(CWD, absolute(cwd)?, flags, Mode::empty(), resolve)
        .and_then(rustix::process::fchdir);
    entered.map_err(|error| Failure {
        exit_code: if error == Errno::NOENT { 127 } else { 126 },
        message: format!(
            "working directory {cwd:?}: {}",
            rustix_text(error.raw_os_error())
        ),
    })
}

fn strings(texts: &[String], what: &str) -> Result<Vec<CString>, Failure> {
    texts
        .iter()
        .map(|text| {
            CString::new(text.as_str()).map_err(|_| Failure {
                exit_code: 125,
                message: format!("{what} {text:?} contains a NUL byte"),
            })
        })
        .collect()
}

fn environment(program: &Program<'_>, user: &user::User) -> Result<Vec<CString>, Failure> {
    let mut env = strings(program.env, "environment entry")?;
    if !program.env.iter().any(|e| e.starts_with("HOME=")) {
        env.extend(strings(&[format!("HOME={}", user.home)], "home directory")?);
    }
    Ok(env)
}

/// Paths to try, in order: the program itself, or its name in each directory of PATH.
fn programs(program: &Program<'_>) -> Result<Vec<CString>, Failure> {
    let name = &program.argv[0];
    if name.contains('/') {
        return strings(std::slice::from_ref(name), "program");
    }
    let path = program
        .env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let found: Vec<String> = path
        .split(':')
        .map(|d| {
            if d.is_empty() {
                format!("./{name}")
            } else {
                format!("{d}/{name}")
            }
        })
        .collect();
    strings(&found, "program")
}

/// Descriptors that are needed between their placing and exec. They were moved, as the program may
/// want their numbers.
struct KeptDescriptors {
    report: BorrowedFd<'static>,
    users: Option<BorrowedFd<'static>>,
    landlock: Option<BorrowedFd<'static>>,
}

/// Puts every descriptor at its number, `more` among them; all others close at exec. `uid` is the
/// host's id of the user.
fn place_descriptors(
    plan: &Plan<'_>,
    uid: u32,
    more: &[(i32, BorrowedFd<'_>)],
) -> Result<KeptDescriptors, Failure> {
    // The process's own /dev/null: the host's node could be changed through /proc/self/fd.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .step(|| "opening /dev/null".to_owned())?;
    // Programs open /dev/stdout anew, which asks the pipe's owner.
    for pipe in plan.streams.into_iter().flatten() {
        rustix::fs::fchown(pipe, Some(Uid::from_raw(uid)), None)
            .step(|| "giving the pipes to the user".to_owned())?;
    }
    let streams = plan.streams.map(|pipe| pipe.unwrap_or(null.as_fd()));
    let mut wanted: Vec<(i32, BorrowedFd<'_>)> = (0..).zip(streams).collect();
    wanted.extend(
        plan.inherit
            .iter()
            .map(|(number, fd)| (*number, fd.as_fd())),
    );
    wanted.extend(more);
    let above = wanted.iter().map(|(number, _)| *number).max().unwrap_or(2) + 1;
    // First out of the way of all targets, then into place.
    let aside = |fd: BorrowedFd<'_>| -> Result<std::os::fd::RawFd, Failure> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, above)
            .step(|| "moving descriptors aside".to_owned())?;
        Ok(std::os::fd::IntoRawFd::into_raw_fd(copy))
    };
    let report = aside(plan.report)?;
    let users = plan.users.map(|users| aside(users.as_fd())).transpose()?;
    let landlock = plan.landlock.map(aside).transpose()?;
    let copies = wanted
        .iter()
        .map(|(number, fd)| Ok((*number, aside(*fd)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    sys::close_on_exec_from(3).step(|| "marking descriptors".to_owned())?;
    #[cfg(feature = "weak")]
    if weak::is_down(Wall::Descriptors) {
        weak::leak_descriptors(report); // The end of that pipe tells of the exec.
    }
    for (number, copy) in copies {
        // SAFETY: `copy` was opened above; owners of what `number` was belong to the parent's
        // memory image and are never dropped here, as this process only ends by exec or _exit.
        unsafe { sys::dup_onto(sys::borrow(copy), number) }
            .step(|| format!("descriptor {number}"))?;
    }
    // SAFETY: opened above and never closed before exec.
    let kept = |copy| unsafe { sys::borrow(copy) };
    Ok(KeptDescriptors {
        report: kept(report),
        users: users.map(kept),
        landlock: landlock.map(kept),
    })
}
