//! A container's file system: the overlay as root, and what Linux programs expect in it.
//!
//! All of it happens in the process's own mount namespace. The image is hostile: no path inside it is followed blindly.

use super::mapped::{self, Covers};
use super::rooted::{self, Kind};
use super::scratch::Scratch;
use super::stage::Stage;
use super::{Failure, Mounted, Step};
use crate::cgroup::Cgroup;
use crate::disk;
use crate::spec::{DiskMount, Mount, Tmpfs};
use crate::userns::UserNamespace;
use crate::weak::{self, Wall};
use crate::{overlay, sys};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub(super) const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
pub(super) const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
pub(super) const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// Name, major, minor of the device nodes that every container has.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// How many terminals (pty(7)) a container may have. All containers share the machine's number, some 3000 (kernel.pty.max less
/// kernel.pty.reserve): one alone must not take them from the others.
fn max_terminals() -> &'static str {
    match weak::is_down(Wall::Terminals) {
        true => "1000",
        false => "256",
    }
}

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

/// Makes the root, fills it, and makes it `/`. `ahead`: what was made before the request was known, which then has no [`Mount::Bind`].
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

/// The same, of a directory that is the root as it is.
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

/// What is mounted on the host from now on is seen here, too, and what is unmounted there is not held; nothing is seen there.
pub(super) fn follow_propagation() -> Result<(), Failure> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .step(|| "making mounts followers of the host's".to_owned())
}

/// Takes what covers the mount namespace's root as the own one, and leaves the host's file system, which was that until now.
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

/// The root file system, attached where only this mount namespace sees it, and what its own mounts show of the host.
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

/// What is mounted from now on is seen by nobody else.
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
fn mount_disk(
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

/// An overlay attached at `place`, or on top of `upper`: a directory that surely exists, and is covered only in this namespace.
fn mount_root(
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

/// Only the files: the root with its volumes, in a mount namespace that the caller has made for it. Other mounts are left out.
pub(crate) fn files_only(parts: &overlay::Parts<'_>) -> io::Result<OwnedFd> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    if let Some(disk) = parts.disk {
        mount_disk(disk, None, None)?;
    }
    let root = mount_root(parts.lower, parts.upper, parts.work, None)?;
    for volume in parts.mounts {
        if let Mount::Overlay {
            lower,
            upper,
            work,
            target,
        } = volume
        {
            let mount = mount_root(lower, upper, work, None)?;
            put(root.as_fd(), mount.as_fd(), target)?;
        }
    }
    Ok(root)
}

pub(super) fn open_directory(at: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        at,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

pub(super) fn attach_new(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
    target: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let mount = new_mount(kind, options, attributes)?;
    attach(mount.as_fd(), target)?;
    Ok(mount)
}

/// Attached nowhere.
fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", kind)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(fs.as_fd(), *key)?;
        } else {
            fsconfig_set_string(fs.as_fd(), *key, *value)?;
        }
    }
    fsconfig_create(fs.as_fd())?;
    let attributes = match kind {
        "sysfs" if weak::is_down(Wall::ReadOnlySys) => NOSUID,
        _ => attributes,
    };
    Ok(fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// A detached copy of what is at `path` below `at`; `path` may be empty.
pub(super) fn clone_of(
    at: BorrowedFd<'_>,
    path: impl rustix::path::Arg,
    recursive: bool,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(at, path, flags)
}

/// `/proc`, `/sys` or `/dev` of the image, made if missing. A symbolic link in its place would put the mount elsewhere and leave the
/// masks behind.
pub(super) fn system_directory(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Failure> {
    match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step(|| format!("making /{name}")),
    }
    let mut flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !weak::is_down(Wall::Rooted));
    rustix::fs::openat(root, name, flags, Mode::empty())
        .step(|| format!("the image's /{name} must be a directory"))
}

/// /dev: a tmpfs where new device nodes do not work. The six that do are mounts of their own. `root` is the host's id of root inside.
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
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {} // A kernel without POSIX message queues.
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

/// /sys of the network namespace that this thread is in, attached nowhere.
pub(crate) fn system_files() -> io::Result<OwnedFd> {
    new_mount("sysfs", &[], NOSUID | NODEV | NOEXEC | RDONLY)
}

/// What the request's own mounts show of the host, by position; opened while the host's paths still lead there.
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

/// From now on `/` can only be read; what is mounted in it stays as it is.
pub(super) fn make_root_read_only() -> Result<(), Failure> {
    let name = || "making the root file system read-only".to_owned();
    let root = open_directory(CWD, Path::new("/")).step(name)?;
    sys::set_mount_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, false).step(name)
}

/// Attaches `mount` at `target` inside the root; the target is made as a file or a directory, like the source.
pub(super) fn put(root: BorrowedFd<'_>, mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
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
