//! What containers on another kernel have in common: the root of a user namespace that runs that
//! kernel, in a root file system of its own.
//!
//! Owns: the outer root with the container's inside, and the way to the identity in it. Must not:
//! know which kernel it is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use crate::child::mounts::{Inside, Parts, become_root, extra_mounts, open_files};
use crate::child::scratch::Scratch;
use crate::child::stage::system_directory;
use crate::child::{Failure, Step, caps};
use crate::microvm::ROOTFS;
use crate::mount::{NODEV, NOEXEC, NOSUID, attach, attach_new, clone_of, open_directory};
use crate::sys;
use crate::userns::UserNamespace;

/// For requests, which hold arguments and environment (megabytes, execve(2)), and notes.
const SIZE: &str = "64m";

/// The container's root, below the outer one of this process.
pub(super) fn root_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{ROOTFS}"))
}

/// The outer root, before it is `/`.
pub(super) struct Outer(OwnedFd);

impl Outer {
    /// Makes it in memory, with the container's root and its mounts at [`ROOTFS`] (but for /proc,
    /// /sys and /dev), a /proc, a /dev/null, and these directories.
    pub(super) fn make(
        parts: &Parts<'_>,
        users: Option<&UserNamespace>,
        directories: &[&str],
    ) -> Result<Outer, Failure> {
        let (files, sources) = open_files(parts, users)?;
        for name in ["proc", "sys", "dev"] {
            system_directory(files.as_fd(), name)?;
        }
        make_tmp(files.as_fd(), users.map_or(0, |users| users.root))
            .step(|| "making /tmp".to_owned())?;
        let scratch = Scratch::make(parts.work, parts.extra)
            .step(|| "mounting a file system in memory".to_owned())?;
        let inside = Inside {
            root: files.as_fd(),
            owner: users.map_or(0, |users| users.root),
            read_only: parts.read_only,
        };
        extra_mounts(&inside, &scratch, parts.extra, sources)?;
        Self::around(files.as_fd(), parts.work, directories)
            .step(|| "making an outer root file system".to_owned())
    }

    fn around(files: BorrowedFd<'_>, work: &Path, directories: &[&str]) -> io::Result<Outer> {
        // Over a directory that surely exists, and has served its purpose.
        let place = open_directory(CWD, work)?;
        let options = [("mode", "755"), ("size", SIZE)];
        let outer = Outer(attach_new(
            "tmpfs",
            &options,
            NOSUID | NODEV,
            place.as_fd(),
        )?);
        for path in [ROOTFS, "/proc", "/dev"] {
            outer.directory(path, 0o755)?;
        }
        for path in directories {
            outer.directory(path, 0o755)?;
        }
        let moved =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(files, "", outer.open(ROOTFS)?, "", moved)?;
        let proc = outer.open("/proc")?;
        attach_new("proc", &[], NOSUID | NODEV | NOEXEC, proc.as_fd())?;
        outer.put("/dev/null", clone_of(CWD, "/dev/null", false)?.as_fd())?;
        Ok(outer)
    }

    /// A new directory.
    pub(super) fn directory(&self, path: &str, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        Ok(rustix::fs::mkdirat(&self.0, below(path), mode)?)
    }

    /// A directory in it.
    pub(super) fn open(&self, path: &str) -> io::Result<OwnedFd> {
        open_directory(self.0.as_fd(), below(path))
    }

    /// Mounts one file.
    pub(super) fn put(&self, path: &str, file: BorrowedFd<'_>) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, below(path), flags, Mode::from_raw_mode(0o644))?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let target = rustix::fs::openat(&self.0, below(path), flags, Mode::empty())?;
        attach(file, target.as_fd())
    }

    /// Makes it `/`.
    pub(super) fn enter(self) -> Result<(), Failure> {
        become_root(self.0.as_fd())
    }
}

impl AsFd for Outer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn below(path: &str) -> &Path {
    Path::new(path.trim_start_matches('/'))
}

/// Where there is none, another kernel would put one in memory, whose content would be in no
/// snapshot.
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

/// A file or directory of the host, for reading and executing. To be called while the host's paths
/// still lead there.
pub(super) fn of_host(path: &Path) -> io::Result<OwnedFd> {
    let copy = clone_of(CWD, path, false)?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::set_mount_attributes(copy.as_fd(), attributes, false)?;
    Ok(copy)
}

/// Root of the user namespace, with these capabilities.
pub(super) fn become_root_inside(
    users: Option<BorrowedFd<'_>>,
    keep: CapabilitySet,
) -> Result<(), Failure> {
    let no_core = Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    rustix::process::setrlimit(Resource::Core, no_core)
        .step(|| "limit on core dumps".to_owned())?;
    if let Some(users) = users {
        rustix::thread::move_into_link_name_space(users, Some(LinkNameSpaceType::User))
            .step(|| "entering the user namespace".to_owned())?;
    }
    sys::new_session_keyring().step(|| "making a session keyring".to_owned())?;
    caps::bound(keep).step(|| "dropping capabilities from the bounding set".to_owned())?;
    rustix::thread::set_thread_groups(&[]).step(|| "setgroups".to_owned())?;
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| "setgid 0".to_owned())?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| "setuid 0".to_owned())?;
    caps::limit(keep).step(|| "setting capabilities".to_owned())?;
    rustix::thread::set_no_new_privs(true).step(|| "no_new_privs".to_owned())?;
    // A change of ids may have undone it; the program that is executed is dumpable again.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step(|| "hiding from the container's processes".to_owned())?;
    sys::block_signals(&[]).step(|| "unblocking signals".to_owned())
}

/// These bits.
pub(super) fn set_of(bits: &[u32]) -> CapabilitySet {
    CapabilitySet::from_bits_retain(bits.iter().fold(0, |set, bit| set | 1 << bit))
}
