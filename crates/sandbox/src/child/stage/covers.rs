//! What a container must not see, or not change, of the kernel's own files: /proc and /sys, with
//! Docker's list of paths covered.
//!
//! Owns: the list, and the mounts that cover. Must not: mount /proc and /sys themselves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Stage;
use super::{Failure, Step};
use crate::mount::{attach, clone_of};
use crate::sys;
use crate::weak::{self, Wall};

/// For views of the kernel's own files.
pub(super) const INERT: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC;

/// Hidden from containers: Docker's list, and virtual disks, which tell where on the host their
/// files are. Files become /dev/null, directories empty.
const MASKED: [&str; 12] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "sys/devices/virtual/block",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];

/// Readable only (Docker's list).
const READ_ONLY: [&str; 5] = [
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/sys",
    "proc/sysrq-trigger",
];

/// How to cover a path below /proc or /sys: mask it, or make it read-only.
#[derive(Clone, Copy)]
pub(super) enum Cover {
    Masked(&'static str),
    ReadOnly(&'static str),
}

/// Everything below `proc/` or `sys/`.
pub(super) fn below(below: &'static str) -> impl Iterator<Item = Cover> {
    let here = move |path: &&str| path.starts_with(below);
    let masked = MASKED.into_iter().filter(here).map(Cover::Masked);
    masked.chain(READ_ONLY.into_iter().filter(here).map(Cover::ReadOnly))
}

/// Covers what lies in `mount`, the container's /proc or /sys: nothing of the image is on the way.
/// Returns what this kernel does not have (now).
pub(super) fn cover(
    mount: BorrowedFd<'_>,
    covers: impl IntoIterator<Item = Cover>,
    stage: &Stage,
) -> Result<Vec<Cover>, Failure> {
    let mut absent = Vec::new();
    for cover in covers {
        let is_there = match cover {
            Cover::Masked(path) => mask(mount, path, stage).step(|| format!("masking /{path}"))?,
            Cover::ReadOnly(path) => {
                make_read_only(mount, path).step(|| format!("making /{path} read-only"))?
            }
        };
        if !is_there {
            absent.push(cover);
        }
    }
    Ok(absent)
}

/// Opens `proc/x` or `sys/x` below the mount of /proc or /sys. `None`: this kernel has no such
/// file.
fn open_system(mount: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    let below = path.split_once('/').map_or(path, |(_, below)| below);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(mount, below, flags, Mode::empty(), resolve) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `false`: there is nothing to mask.
fn mask(mount: BorrowedFd<'_>, path: &str, stage: &Stage) -> io::Result<bool> {
    if weak::is_down(Wall::Masks) {
        return Ok(true);
    }
    let Some(target) = open_system(mount, path)? else {
        return Ok(false);
    };
    let stat = rustix::fs::fstat(&target)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    attach(stage.mask(is_directory)?.as_fd(), target.as_fd()).map(|()| true)
}

/// `false`: there is nothing to protect.
fn make_read_only(mount: BorrowedFd<'_>, path: &str) -> io::Result<bool> {
    if weak::is_down(Wall::Masks) {
        return Ok(true);
    }
    let Some(target) = open_system(mount, path)? else {
        return Ok(false);
    };
    let copy = clone_of(target.as_fd(), "", true)?;
    sys::set_mount_attributes(copy.as_fd(), INERT, true)?;
    attach(copy.as_fd(), target.as_fd()).map(|()| true)
}
