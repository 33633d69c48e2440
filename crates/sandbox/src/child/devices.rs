//! /dev of a container: a few inert device nodes, terminals, shared memory, message queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::mount::{MoveMountFlags, move_mount};

use crate::mount::{NODEV, NOEXEC, NOSUID, attach_new, clone_of, open_directory};
use crate::sys;
use crate::weak::{self, Wall};

/// Name, major, minor of the device nodes that every container has.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// How many terminals (pty(7)) a container may have. All containers share the machine's number,
/// some 3000 (kernel.pty.max less kernel.pty.reserve): one alone must not take them from the
/// others.
fn max_terminals() -> &'static str {
    match weak::is_down(Wall::Terminals) {
        true => "1000",
        false => "256",
    }
}

/// /dev: a tmpfs where new device nodes do not work. The six that do are mounts of their own.
/// `root` is the host's id of root inside.
pub(super) fn devices(target: BorrowedFd<'_>, root: u32) -> io::Result<OwnedFd> {
    let dev = attach_new(
        "tmpfs",
        &[("mode", "755"), ("size", "65536k")],
        NOSUID,
        target,
    )?;
    let at = dev.as_fd();
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(
            at,
            name,
            FileType::CharacterDevice,
            mode,
            rustix::fs::makedev(major, minor),
        )?;
        let node = clone_of(at, name, false)?;
        move_mount(
            node.as_fd(),
            "",
            at,
            name,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        rustix::fs::symlinkat(to, at, link)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755))?;
    }
    // Only this mount, not the nodes mounted on it.
    sys::set_mount_attributes(at, libc::MOUNT_ATTR_NODEV, false)?;
    terminals(open_directory(at, Path::new("pts"))?.as_fd(), root)?;
    let shm = [("mode", "1777"), ("size", "65536k")];
    attach_new(
        "tmpfs",
        &shm,
        NOSUID | NODEV | NOEXEC,
        open_directory(at, Path::new("shm"))?.as_fd(),
    )?;
    match attach_new(
        "mqueue",
        &[],
        NOSUID | NODEV | NOEXEC,
        open_directory(at, Path::new("mqueue"))?.as_fd(),
    ) {
        // A kernel without POSIX message queues.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
        other => drop(other?),
    }
    Ok(dev)
}

/// devpts of its own, for terminals. `root` as in [`devices`].
pub(super) fn terminals(target: BorrowedFd<'_>, root: u32) -> io::Result<()> {
    let tty_group = (root + 5).to_string();
    let pts = [
        ("newinstance", ""),
        ("ptmxmode", "0666"),
        ("mode", "0620"),
        ("gid", &tty_group),
        ("max", max_terminals()),
    ];
    let pts = attach_new("devpts", &pts, NOSUID | NOEXEC, target)?;
    let owner = (Uid::from_raw(root), Gid::from_raw(root));
    rustix::fs::chownat(&pts, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
    Ok(())
}
