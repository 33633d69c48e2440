//! A container's file system: the overlay as root, and what Linux programs expect in it.
//!
//! All of it happens in the process's own mount namespace. The image is hostile: no path inside it
//! is followed blindly.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::mapped::{self, Covers};
use super::rooted::{self, Kind};
use super::scratch::Scratch;
use super::stage::Stage;
use super::{Failure, Mounted, Step};
use crate::cgroup::Cgroup;
use crate::disk;
use crate::mount::{NODEV, NOEXEC, NOSUID, RDONLY, attach, clone_of, new_mount, open_directory};
use crate::spec::{DiskMount, Mount, Tmpfs};
use crate::userns::UserNamespace;
use crate::weak::{self, Wall};
use crate::{overlay, sys};

/// What a root is made of.
pub(super) struct Parts<'a> {
    pub(super) lower: &'a [PathBuf],
    pub(super) upper: &'a Path,
    pub(super) work: &'a Path,
    /// Where `upper` and `work` are.
    pub(super) disk: Option<&'a DiskMount>,
    pub(super) mounted: Mounted<'a>,
    pub(super) extra: &'a [Mount],
    /// Whether the files among them can only be read.
    pub(super) read_only: bool,
}

/// Makes the root, fills it, and makes it `/`. `ahead`: what was made before the request was known,
/// which then has no [`Mount::Bind`].
pub(super) fn enter_root(
    parts: &Parts<'_>,
    cgroup: &Cgroup,
    users: Option<&UserNamespace>,
    ahead: Option<Stage>,
) -> Result<(), Failure> {
    leave_propagation()?;
    let sources = open_sources(parts.extra, users)?;
    let stage = match ahead {
        Some(stage) => stage,
        None => Stage::make(cgroup, users.map_or(0, |users| users.root), parts.extra)?,
    };
    let root = open_root(parts, users, stage.root())?;
    stage.move_to(root.as_fd(), parts.mounted.sys)?;
    let inside = Inside {
        root: root.as_fd(),
        owner: users.map_or(0, |users| users.root),
        read_only: parts.read_only,
    };
    extra_mounts(&inside, &stage.scratch, parts.extra, sources)?;
    match stage.root() {
        Some(_) => leave_host(root.as_fd()),
        None => become_root(root.as_fd()),
    }
}

/// Makes a directory, as it is, the root.
pub(super) fn enter_directory(
    path: &Path,
    extra: &[Mount],
    cgroup: &Cgroup,
    users: Option<&UserNamespace>,
) -> Result<(), Failure> {
    let name = || format!("taking {} as the root file system", path.display());
    leave_propagation()?;
    let sources = open_sources(extra, users)?;
    let stage = Stage::make(cgroup, users.map_or(0, |users| users.root), extra)?;
    let root = clone_of(CWD, path, false).step(name)?;
    attach(root.as_fd(), open_directory(CWD, path).step(name)?.as_fd()).step(name)?;
    stage.move_to(root.as_fd(), None)?;
    let inside = Inside {
        root: root.as_fd(),
        owner: users.map_or(0, |users| users.root),
        read_only: false,
    };
    extra_mounts(&inside, &stage.scratch, extra, sources)?;
    become_root(root.as_fd())
}

/// Follows the host: what is mounted there from now on is seen here, and what is unmounted there is
/// not held. The host sees nothing of this namespace.
pub(super) fn follow_propagation() -> Result<(), Failure> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .step(|| "making mounts followers of the host's".to_owned())
}

/// Takes what covers the mount namespace's root as the own one, and leaves the host's file system,
/// which was that until now.
fn leave_host(root: BorrowedFd<'_>) -> Result<(), Failure> {
    unmount("/", UnmountFlags::DETACH).step(|| "leaving the host's file system".to_owned())?;
    rustix::process::fchdir(root)
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"))
        .step(|| "entering the root file system".to_owned())
}

/// Makes a mount `/`, and leaves the host's file system.
pub(super) fn become_root(root: BorrowedFd<'_>) -> Result<(), Failure> {
    rustix::process::fchdir(root).step(|| "entering the root file system".to_owned())?;
    if weak::is_down(Wall::Pivot) {
        return rustix::process::chroot(".").step(|| "chroot".to_owned());
    }
    rustix::process::pivot_root(".", ".").step(|| "pivot_root".to_owned())?;
    unmount(".", UnmountFlags::DETACH).step(|| "leaving the host's file system".to_owned())?;
    rustix::process::chdir("/").step(|| "entering the root file system".to_owned())
}

/// The root file system, attached where only this mount namespace sees it, and what its own mounts
/// show of the host.
pub(super) fn open_files(
    parts: &Parts<'_>,
    users: Option<&UserNamespace>,
) -> Result<(OwnedFd, Vec<Option<OwnedFd>>), Failure> {
    leave_propagation()?;
    let sources = open_sources(parts.extra, users)?;
    Ok((open_root(parts, users, None)?, sources))
}

/// The root file system alone, attached as [`mount_root`] says.
fn open_root(
    parts: &Parts<'_>,
    users: Option<&UserNamespace>,
    place: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Failure> {
    let Parts {
        lower,
        upper,
        work,
        disk,
        mounted,
        ..
    } = *parts;
    if let Some(users) = users {
        let paths = directories(parts)
            .into_iter()
            .filter(|path| disk.is_none_or(|disk| !path.starts_with(&disk.at)));
        Covers::over_parents(paths, users.as_fd())
            .and_then(Covers::attach)
            .step(|| "mapping the root file system's ids".to_owned())?;
    }
    if let Some(disk) = disk {
        mount_disk(disk, mounted.disk, users)
            .step(|| format!("mounting the disk {}", disk.device.display()))?;
    }
    mount_root(lower, upper, work, place).step(|| "mounting the root file system".to_owned())
}

/// Keeps what is mounted from now on from being seen by anybody else.
pub(super) fn leave_propagation() -> Result<(), Failure> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .step(|| "making mounts private".to_owned())
}

/// Everything that overlays are made of, those of volumes included.
fn directories<'a>(parts: &Parts<'a>) -> Vec<&'a Path> {
    let mut all = vec![parts.upper, parts.work];
    all.extend(parts.lower.iter().map(PathBuf::as_path));
    for mount in parts.extra {
        if let Mount::Overlay {
            lower, upper, work, ..
        } = mount
        {
            all.extend([upper.as_path(), work.as_path()]);
            all.extend(lower.iter().map(PathBuf::as_path));
        }
    }
    all
}

/// Another mount of the disk, with ids of its own.
pub(crate) fn mount_disk(
    disk: &DiskMount,
    mounted: Option<BorrowedFd<'_>>,
    users: Option<&UserNamespace>,
) -> io::Result<()> {
    let mount = match mounted {
        Some(mounted) => disk::another_mount(mounted, &disk.device)?,
        None => disk::mount_device(&disk.device)?,
    };
    if let Some(users) = users {
        mapped::map(mount.as_fd(), users.as_fd(), false, &disk.device)?;
    }
    attach(mount.as_fd(), open_directory(CWD, &disk.at)?.as_fd())
}

/// An overlay attached at `place`, or on top of `upper`: a directory that surely exists, and is
/// covered only in this namespace.
pub(crate) fn mount_root(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    place: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
    let root = match overlay::mount_detached(&lower, Some((upper, work))) {
        Err(error) if overlay::is_unsupported(&error) => {
            overlay::mount_at(&lower, Some((upper, work)), upper)?;
            let root = open_directory(CWD, upper)?;
            if place.is_none() {
                return Ok(root);
            }
            root
        }
        other => other?,
    };
    match place {
        Some(place) => attach(root.as_fd(), place)?,
        None => attach(root.as_fd(), open_directory(CWD, upper)?.as_fd())?,
    }
    Ok(root)
}

/// What the request's own mounts show of the host, by position; opened while the host's paths still
/// lead there.
pub(super) fn open_sources(
    mounts: &[Mount],
    users: Option<&UserNamespace>,
) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let open = |mount: &Mount| -> Result<Option<OwnedFd>, Failure> {
        let Mount::Bind {
            source,
            target,
            read_only,
        } = mount
        else {
            return Ok(None);
        };
        let name = || format!("mounting {} at {}", source.display(), target.display());
        let copy = clone_of(CWD, source.as_path(), true).step(name)?;
        let mut attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
        if *read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        sys::set_mount_attributes(copy.as_fd(), attributes, true).step(name)?;
        if let Some(users) = users {
            mapped::map(copy.as_fd(), users.as_fd(), true, source).step(name)?;
        }
        Ok(Some(copy))
    };
    mounts.iter().map(open).collect()
}

/// Where the request's own mounts go.
pub(super) struct Inside<'a> {
    pub(super) root: BorrowedFd<'a>,
    /// The host's id of root inside.
    pub(super) owner: u32,
    /// Whether files can only be read.
    pub(super) read_only: bool,
}

/// The request's own mounts, in order.
pub(super) fn extra_mounts(
    inside: &Inside<'_>,
    scratch: &Scratch,
    mounts: &[Mount],
    sources: Vec<Option<OwnedFd>>,
) -> Result<(), Failure> {
    let root = inside.root;
    for (index, (mount, source)) in mounts.iter().zip(sources).enumerate() {
        match mount {
            Mount::Bind { target, .. } => {
                if let Some(source) = source {
                    put(root, source.as_fd(), target)
                        .step(|| format!("mounting at {}", target.display()))?;
                }
            }
            Mount::Overlay {
                lower,
                upper,
                work,
                target,
            } => {
                let name = || format!("mounting a volume at {}", target.display());
                let volume = mount_root(lower, upper, work, None).step(name)?;
                put(root, volume.as_fd(), target).step(name)?;
            }
            Mount::Tmpfs(tmpfs) => {
                let name = || format!("mounting a tmpfs at {}", tmpfs.target.display());
                let memory = in_memory(root, tmpfs, inside.owner).step(name)?;
                put(root, memory.as_fd(), &tmpfs.target).step(name)?;
            }
            Mount::File { target, content } => {
                let name = || format!("mounting a file at {}", target.display());
                let file = scratch.file(&index.to_string(), content).step(name)?;
                if inside.read_only {
                    sys::set_mount_attributes(file.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
                        .step(name)?;
                }
                put(root, file.as_fd(), target).step(name)?;
            }
        }
    }
    Ok(())
}

/// A tmpfs, attached nowhere. `owner` is the host's id of root inside.
fn in_memory(root: BorrowedFd<'_>, tmpfs: &Tmpfs, owner: u32) -> io::Result<OwnedFd> {
    let mode = match tmpfs.mode {
        Some(mode) => mode,
        None => covered_mode(root, &tmpfs.target)?,
    };
    let id = |id: u32| {
        owner
            .checked_add(id)
            .map(|id| id.to_string())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such id in a container"))
    };
    let mut options = vec![
        ("mode", format!("{mode:o}")),
        ("uid", id(tmpfs.uid)?),
        ("gid", id(tmpfs.gid)?),
    ];
    options.extend(tmpfs.size_bytes.map(|size| ("size", size.to_string())));
    options.extend(tmpfs.inodes.map(|count| ("nr_inodes", count.to_string())));
    let options: Vec<(&str, &str)> = options.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut attributes = NODEV;
    attributes.set(NOEXEC, !tmpfs.exec);
    attributes.set(NOSUID, !tmpfs.suid);
    attributes.set(RDONLY, tmpfs.read_only);
    new_mount("tmpfs", &options, attributes)
}

/// Permissions of the directory at a path inside the root; those of /tmp where there is none.
fn covered_mode(root: BorrowedFd<'_>, path: &Path) -> io::Result<u32> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(directory) => {
            let stat = rustix::fs::statat(&directory, "", AtFlags::EMPTY_PATH)?;
            Ok(stat.st_mode & 0o7777)
        }
        Err(Errno::NOENT) => Ok(0o1777),
        Err(error) => Err(error.into()),
    }
}

/// Makes `/` read-only; what is mounted in it stays as it is.
pub(super) fn make_root_read_only() -> Result<(), Failure> {
    let name = || "making the root file system read-only".to_owned();
    let root = open_directory(CWD, Path::new("/")).step(name)?;
    sys::set_mount_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, false).step(name)
}

/// Attaches `mount` at `target` inside the root; the target is made as a file or a directory, like
/// the source.
pub(crate) fn put(root: BorrowedFd<'_>, mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let stat = rustix::fs::statat(mount, "", AtFlags::EMPTY_PATH)?;
    let kind = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        Kind::Directory
    } else {
        Kind::File
    };
    let place = rooted::ensure(root, target, kind, None)?;
    if rustix::fs::fstatfs(&place)?.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "nothing can be mounted below /proc",
        ));
    }
    attach(mount, place.as_fd())
}
