//! A root with nothing in it but what the request names: for a runtime that brings no file system
//! of its own.
//!
//! A small tmpfs, read-only once it is filled. Binds keep the host's paths or get others; nobody
//! but the host's root has written what lies above them.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::mounts::{become_root, leave_propagation, open_sources, put};
use super::rooted::{self, Kind};
use super::{Failure, Step};
use crate::mount::{NODEV, NOEXEC, NOSUID, attach_new, open_directory};
use crate::spec::{Mount, Tmpfs};
use crate::sys;

/// Name, major, minor.
const DEVICES: [(&str, u32, u32); 4] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// Where the root is attached until it is entered: surely a directory, and covered only in this
/// namespace.
const PLACE: &str = "/proc";

/// Makes the root, fills it, and makes it `/`.
pub(super) fn enter_root(mounts: &[Mount]) -> Result<(), Failure> {
    leave_propagation()?;
    let sources = open_sources(mounts, None)?;
    let place = open_directory(CWD, Path::new(PLACE)).step(|| format!("opening {PLACE}"))?;
    let size = size(mounts).to_string();
    let options = [("mode", "755"), ("size", size.as_str())];
    let root = attach_new("tmpfs", &options, NOSUID | NOEXEC, place.as_fd())
        .step(|| "mounting the root file system".to_owned())?;
    let root = root.as_fd();

    let directory = |name: &str| {
        rooted::ensure(root, Path::new(name), Kind::Directory, None)
            .step(|| format!("making /{name}"))
    };
    let dev = directory("dev")?;
    devices(dev.as_fd()).step(|| "making /dev".to_owned())?;
    // Only processes: nothing of the kernel's own files, so that none must be masked (proc(5),
    // since Linux 5.8).
    attach_new(
        "proc",
        &[("subset", "pid")],
        NOSUID | NODEV | NOEXEC,
        directory("proc")?.as_fd(),
    )
    .step(|| "mounting /proc".to_owned())?;
    for (mount, source) in mounts.iter().zip(&sources) {
        match (mount, source) {
            (Mount::Bind { target, .. }, Some(source)) => put(root, source.as_fd(), target)
                .step(|| format!("mounting at {}", target.display()))?,
            (Mount::File { target, content }, _) => {
                write(root, target, content).step(|| format!("making {}", target.display()))?;
            }
            (
                Mount::Bind { target, .. }
                | Mount::Overlay { target, .. }
                | Mount::Tmpfs(Tmpfs { target, .. }),
                _,
            ) => {
                return Err(Failure {
                    exit_code: 125,
                    message: format!("{}: a bare root has no volumes", target.display()),
                });
            }
        }
    }
    sys::set_mount_attributes(root, libc::MOUNT_ATTR_RDONLY, false)
        .step(|| "making the root file system read-only".to_owned())?;
    become_root(root)
}

/// Size of the tmpfs: the files, and the directories and mount points, which take a page at most.
fn size(mounts: &[Mount]) -> usize {
    let content = |mount: &Mount| match mount {
        Mount::File { content, .. } => content.len(),
        Mount::Bind { .. } | Mount::Overlay { .. } | Mount::Tmpfs(_) => 0,
    };
    1024 * 1024 + mounts.iter().map(content).sum::<usize>()
}

fn devices(dev: BorrowedFd<'_>) -> io::Result<()> {
    for (name, major, minor) in DEVICES {
        rustix::fs::mknodat(
            dev,
            name,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(major, minor),
        )?;
    }
    Ok(())
}

fn write(root: BorrowedFd<'_>, target: &Path, content: &str) -> io::Result<()> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = rooted::ensure(root, parent, Kind::Directory, None)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
    std::fs::File::from(file).write_all(content.as_bytes())
}
