//! The spawner as a process: detaching from the daemon, the lock, the socket, and the end.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::{CWD, Mode};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Resource, Rlimit};

use super::launch::{Filters, Walls};
use super::lock::{Lock, let_go_of_streams};
use super::server::Server;
use super::warden::{Charge, Warden};
use crate::IdRanges;
use crate::cgroup::Manager;
use crate::child::mapped;
use crate::seccomp::{self, Profile};
use crate::sys::{self, Disposition};
use crate::userns::Pool;
use crate::weak::{self, Wall};

/// What the starting daemon reads from the spawner's standard output: this, or an error's text.
pub(super) const READY: &str = "ready";

struct Arguments {
    socket: PathBuf,
    grace: Duration,
    cgroup_name: String,
    ids: Option<IdRanges>,
}

fn parse(args: &[String]) -> Result<Arguments, String> {
    let [.., socket, grace, cgroup_name, ids] = args else {
        return Err(
            "the spawner needs four arguments: socket, grace period in milliseconds, cgroup name, id ranges"
                .to_owned(),
        );
    };
    let grace = grace
        .parse()
        .map(Duration::from_millis)
        .map_err(|e| format!("grace period {grace:?}: {e}"))?;
    let socket = PathBuf::from(socket);
    if !socket.is_absolute() {
        return Err(format!(
            "the socket's path {} is not absolute",
            socket.display()
        ));
    }
    if cgroup_name.is_empty() || cgroup_name.contains(['/', '.']) {
        return Err(format!(
            "cgroup name {cgroup_name:?}: it must be one path component without dots"
        ));
    }
    Ok(Arguments {
        socket,
        grace,
        cgroup_name: cgroup_name.clone(),
        ids: IdRanges::from_argument(ids)?,
    })
}

/// The spawner's main: called by the executable before it starts threads. Never returns normally to
/// the caller's program flow.
///
/// The last four of `args` are what [`super::Spawner::start`] appends. The calling process ends at
/// once; its child, detached from the session, is the spawner. It tells on standard output whether
/// it listens.
pub fn run(args: &[String]) -> ExitCode {
    let arguments = match parse(args) {
        Ok(arguments) => arguments,
        Err(text) => {
            say(&text);
            return ExitCode::from(2);
        }
    };
    if !weak::is_down(Wall::ReadOnlyProgram)
        && let Err(error) = sys::run_from_read_only_mount()
    {
        say(&format!("protecting its own file from containers: {error}"));
        return ExitCode::FAILURE;
    }
    // SAFETY: the executable calls this first thing, so nothing owns a descriptor above standard
    // error yet.
    if let Err(error) = unsafe { sys::close_from(3) } {
        say(&format!("closing inherited descriptors: {error}"));
        return ExitCode::FAILURE;
    }
    // SAFETY: as above, there is one thread.
    match unsafe { sys::fork() } {
        Ok(Some(_)) => return ExitCode::SUCCESS,
        Ok(None) => {}
        Err(error) => {
            say(&format!("fork: {error}"));
            return ExitCode::FAILURE;
        }
    }
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Before it is ready the daemon reads this; afterwards it is /dev/null, and the log has
            // it.
            say(&error.to_string());
            eprintln!("spawner: {error}");
            ExitCode::FAILURE
        }
    }
}

/// To the daemon that starts this, if it still listens.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn serve(arguments: &Arguments) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    rustix::thread::set_name(c"wharf-spawner")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    for signal in 1..=64 {
        // What the daemon's parents ignored is not for containers to inherit.
        sys::set_signal(signal, Disposition::Default);
    }
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        sys::set_signal(signal, Disposition::Ignore);
    }
    sys::block_signals(&[libc::SIGCHLD, libc::SIGTERM])?;
    let signals = sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM])?;
    let files = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    )?;

    let lock = Lock::take(&arguments.socket)?;
    let warden = Warden::start(Charge {
        socket: arguments.socket.clone(),
        cgroup_name: arguments.cgroup_name.clone(),
        grace: arguments.grace,
    });
    let begun = warden.and_then(|warden| match begin(arguments) {
        Ok(begun) => Ok((begun, warden)),
        Err(error) => {
            warden.dismiss();
            Err(error)
        }
    });
    let ((listener, manager, walls), warden) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            lock.release()?;
            return Err(error);
        }
    };
    let mut server = Server::new(listener, signals, manager, walls, arguments.grace, warden);
    let result = announce().and_then(|()| server.run());
    // Whatever happened: nobody may connect any more, and the next spawner cleans up what is left
    // in the cgroups.
    let unlinked = match std::fs::remove_file(&arguments.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let end = result.and(unlinked).and_then(|()| server.remove_cgroups());
    lock.release()?;
    if end.is_ok() {
        server.dismiss_warden();
        server.say_goodbye();
    }
    end
}

/// What a spawner needs before it can listen. Leaves nothing behind when it fails.
fn begin(arguments: &Arguments) -> io::Result<(UnixListener, Manager, Walls)> {
    let users = arguments.ids.map(|ids| first_users(ids, &arguments.socket));
    let walls = Walls {
        filters: Filters {
            container: seccomp::program(Profile::Container),
            runtime: seccomp::program(Profile::Runtime),
            machine: seccomp::program(Profile::Machine),
        },
        landlock: sys::landlock_scopes()?,
        users: users.transpose()?,
    };
    let manager = Manager::open(&arguments.cgroup_name)?;
    match listen(&arguments.socket) {
        Ok(listener) => Ok((listener, manager, walls)),
        Err(error) => {
            if let Err(left) = manager.remove() {
                eprintln!("spawner: its cgroups are left behind: {left}");
            }
            Err(error)
        }
    }
}

/// User namespaces for containers, after a try: a namespace made, and the ids of the node's
/// directory mapped.
fn first_users(ids: IdRanges, socket: &Path) -> io::Result<Pool> {
    let mut pool = Pool::new(ids);
    let tried = pool.take().and_then(|users| {
        let directory = socket.parent().unwrap_or(Path::new("/"));
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, directory, flags)?;
        mapped::map(tree.as_fd(), users.as_fd(), false, directory)?;
        pool.give_back(users);
        Ok(())
    });
    match tried {
        Ok(()) => Ok(pool),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "containers cannot have user namespaces here: {error}. Mend that, or set containers.user_namespaces = false in wharf.toml: root in a container is then the host's root, held by nothing but the other walls"
            ),
        )),
    }
}

/// Binds the socket for this user only; one that a dead spawner left is replaced (the lock is
/// held).
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", socket.display())));
    rustix::process::umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells the daemon, then lets go of its pipe.
fn announce() -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    let_go_of_streams()
}
