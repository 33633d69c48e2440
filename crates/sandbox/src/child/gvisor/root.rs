//! What `runsc` has as `/`: its own file, the container's root, and room for its notes. In memory, and gone with the container.
//!
//! ```text
//! /runsc  /bundle  /state  /tmp  /proc  /dev/{null,pts}     /rootfs: the container's root with its mounts, but for /proc, /sys and /dev
//! ```

use super::super::mounts::{
    Parts, attach, attach_new, become_root, clone_of, extra_mounts, open_directory, open_files,
    system_directory, terminals,
};
use super::super::scratch::Scratch;
use super::{BUNDLE, Failure, ROOTFS, STATE, Step};
use crate::spec::Kernel;
use crate::sys;
use crate::userns::UserNamespace;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// For config.json, which holds arguments and environment (megabytes, execve(2)), and what `runsc` notes.
const SIZE: &str = "64m";

/// Makes that root and makes it `/`.
pub(in crate::child) fn enter(
    parts: &Parts<'_>,
    kernel: &Kernel,
    users: Option<&UserNamespace>,
) -> Result<(), Failure> {
    let Kernel::Gvisor { runsc } = kernel else {
        return Err(Failure {
            exit_code: 125,
            message: "no runsc is given".to_owned(),
        });
    };
    // While the host's paths still lead there.
    let program = program(runsc).step(|| {
        format!(
            "isolation class gvisor needs runsc, and {} cannot be used",
            runsc.display()
        )
    })?;
    let (files, sources) = open_files(parts, users)?;
    for name in ["proc", "sys", "dev"] {
        system_directory(files.as_fd(), name)?;
    }
    make_tmp(files.as_fd(), users.map_or(0, |users| users.root))
        .step(|| "making /tmp".to_owned())?;
    let scratch = Scratch::make(parts.work, parts.extra)
        .step(|| "mounting a file system in memory".to_owned())?;
    extra_mounts(files.as_fd(), &scratch, parts.extra, sources)?;

    let name = || "making runsc's root file system".to_owned();
    let (nosuid, nodev) = (
        MountAttrFlags::MOUNT_ATTR_NOSUID,
        MountAttrFlags::MOUNT_ATTR_NODEV,
    );
    let noexec = MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // Over a directory that surely exists, and has served its purpose.
    let place = open_directory(CWD, parts.work).step(name)?;
    let options = [("mode", "755"), ("size", SIZE)];
    let outer = attach_new("tmpfs", &options, nosuid | nodev, place.as_fd()).step(name)?;
    let outer = outer.as_fd();
    let directories = [ROOTFS, BUNDLE, "/proc", "/dev", "/dev/pts", "/tmp", "/etc"];
    for path in directories {
        make_directory(outer, path, 0o755).step(name)?;
    }
    make_directory(outer, STATE, 0o700).step(name)?;
    let moved = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let rootfs = open_directory(outer, below(ROOTFS)).step(name)?;
    move_mount(&files, "", &rootfs, "", moved).step(name)?;
    let proc = open_directory(outer, Path::new("proc")).step(name)?;
    attach_new("proc", &[], nosuid | nodev | noexec, proc.as_fd()).step(name)?;
    put_file(outer, "runsc", program.as_fd()).step(name)?;
    let null = clone_of(CWD, "/dev/null", false).step(name)?;
    put_file(outer, "dev/null", null.as_fd()).step(name)?;
    let pts = open_directory(outer, Path::new("dev/pts")).step(name)?;
    terminals(pts.as_fd(), users.map_or(0, |users| users.root)).step(name)?;
    become_root(outer)
}

/// gVisor would put a /tmp in memory where there is none, whose content would be in no snapshot.
fn make_tmp(root: BorrowedFd<'_>, owner: u32) -> io::Result<()> {
    match rustix::fs::mkdirat(root, "tmp", Mode::from_raw_mode(0o1777)) {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let owner = (Uid::from_raw(owner), Gid::from_raw(owner));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(
        root,
        "tmp",
        Some(owner.0),
        Some(owner.1),
        flags,
    )?)
}

/// The host's `runsc`, for reading and executing.
fn program(runsc: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let copy = clone_of(CWD, runsc, false)?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::set_mount_attributes(copy.as_fd(), attributes, false)?;
    Ok(copy)
}

fn below(path: &str) -> &Path {
    Path::new(path.trim_start_matches('/'))
}

fn make_directory(at: BorrowedFd<'_>, path: &str, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(
        at,
        below(path),
        Mode::from_raw_mode(mode),
    )?)
}

/// A mount of one file.
fn put_file(at: BorrowedFd<'_>, path: &str, file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::from_raw_mode(0o644))?;
    let target = rustix::fs::openat(at, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    attach(file, target.as_fd())
}

/// A mount namespace that belongs to the user namespace, in which `runsc` may mount; and there, how much memory gVisor says that it has, which is
/// not a wall (the cgroup is) but what programs size themselves by.
pub(super) fn own_mounts(memory_bytes: Option<u64>) -> Result<(), Failure> {
    // SAFETY: this process has one thread, and uses only what is below `/` of the namespace that it has now.
    unsafe { sys::unshare_mounts() }.step(|| "making a mount namespace".to_owned())?;
    let Some(bytes) = memory_bytes else {
        return Ok(());
    };
    let name = || "showing how much memory there is".to_owned();
    let path = PathBuf::from(STATE).join("meminfo");
    let kib = bytes / 1024;
    let text =
        format!("MemTotal:       {kib} kB\nMemFree:        {kib} kB\nMemAvailable:   {kib} kB\n");
    std::fs::write(&path, text).step(name)?;
    let copy = clone_of(CWD, &path, false).step(name)?;
    let target = rustix::fs::open(
        "/proc/meminfo",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step(name)?;
    attach(copy.as_fd(), target.as_fd()).step(name)
}
