//! What a container's file system has beside its files, made before these are known: /proc with its
//! masks, /dev, and the views of its cgroups.
//!
//! Owns: these mounts, attached where only their mount namespace sees them, until they move to
//! their places in the root. Must not: look at the image, or at anything that differs between
//! containers but the cgroup and the range of ids.

mod covers;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use self::covers::Cover;
use super::scratch::Scratch;
use super::{Failure, Step, devices};
use crate::cgroup::Cgroup;
use crate::mount::{self, NODEV, NOEXEC, NOSUID, attach, attach_new, clone_of, open_directory};
use crate::spec::Mount;
use crate::sys;
use crate::weak::{self, Wall};

/// A directory of the host that surely exists, and that nobody looks into from here on. (/proc is
/// needed for paths by descriptors.)
const PLACE: &str = "/sys";

pub(super) struct Stage {
    pub(super) scratch: Scratch,
    proc: OwnedFd,
    dev: OwnedFd,
    /// An empty directory, read-only.
    empty: OwnedFd,
    /// For /sys/fs/cgroup.
    cgroups: Vec<OwnedFd>,
    /// Covers of files in /proc that the kernel did not have yet, but may have by the time that
    /// somebody looks.
    absent: Vec<Cover>,
    is_root: bool,
}

impl Stage {
    /// Makes the stage in a mount namespace whose mounts nobody else sees. `root` is the host's id
    /// of root inside; memory for `files` is set aside.
    pub(super) fn make(cgroup: &Cgroup, root: u32, files: &[Mount]) -> Result<Stage, Failure> {
        // While the host's paths still lead there.
        let views = views(cgroup).step(|| "opening the cgroup".to_owned())?;
        let scratch = Scratch::make(Path::new(PLACE), files)
            .step(|| "mounting a file system in memory".to_owned())?;
        let place = |name: &str| scratch.place(name);
        let proc = place("proc")
            .and_then(|at| attach_new("proc", &[], NOSUID | NODEV | NOEXEC, at.as_fd()))
            .step(|| "mounting /proc".to_owned())?;
        let dev = place("dev")
            .and_then(|at| devices::devices(at.as_fd(), root))
            .step(|| "mounting /dev".to_owned())?;
        let cgroups = show(views, &scratch).step(|| "showing the cgroups".to_owned())?;
        let empty = empty(&scratch).step(|| "making an empty directory".to_owned())?;
        let mut stage = Stage {
            scratch,
            proc,
            dev,
            empty,
            cgroups,
            absent: Vec::new(),
            is_root: false,
        };
        stage.absent = covers::cover(stage.proc.as_fd(), covers::below("proc/"), &stage)?;
        Ok(stage)
    }

    /// Makes `scratch` the root of the mount namespace, while this process's own stays the host's.
    /// The container's root will cover it, so that nothing leads to it, and the host's, which hangs
    /// below it, goes. This is pivot_root's work, done early: pivot_root(2) looks at every process
    /// of the machine, and a start shall not wait for that.
    pub(super) fn become_root(&mut self) -> Result<(), Failure> {
        const HOST: &str = "host";
        if weak::is_down(Wall::Pivot) {
            return Ok(());
        }
        let turned = || -> io::Result<()> {
            drop(self.scratch.place(HOST)?);
            rustix::process::fchdir(&self.scratch)?;
            rustix::process::pivot_root(".", HOST)?;
            rustix::process::fchdir(open_directory(self.scratch.as_fd(), Path::new(HOST))?)?;
            rustix::process::chroot(".")?;
            Ok(rustix::process::chdir("/")?)
        };
        turned().step(|| "pivot_root".to_owned())?;
        self.is_root = true;
        Ok(())
    }

    /// The root of the mount namespace, which the container's is to cover, after
    /// [`Stage::become_root`].
    pub(super) fn root(&self) -> Option<BorrowedFd<'_>> {
        self.is_root.then(|| self.scratch.as_fd())
    }

    /// What files become that are masked: the container's /dev/null. It is inert, and so is an
    /// empty directory.
    pub(super) fn mask(&self, is_directory: bool) -> rustix::io::Result<OwnedFd> {
        match is_directory {
            true => clone_of(self.empty.as_fd(), "", false),
            false => clone_of(self.dev.as_fd(), "null", false),
        }
    }

    /// Moves all to their places in the root, `sys` among them, or a new /sys of the network
    /// namespace that this process is in.
    pub(super) fn move_to(
        &self,
        root: BorrowedFd<'_>,
        sys: Option<BorrowedFd<'_>>,
    ) -> Result<(), Failure> {
        for (name, mount) in [("proc", &self.proc), ("dev", &self.dev)] {
            let place = system_directory(root, name)?;
            attach(mount.as_fd(), place.as_fd()).step(|| format!("mounting /{name}"))?;
        }
        let place = system_directory(root, "sys")?;
        let new;
        let sys = match sys.filter(|_| !weak::is_down(Wall::ReadOnlySys)) {
            Some(sys) => sys,
            None => {
                new = mount::system_files().step(|| "mounting /sys".to_owned())?;
                new.as_fd()
            }
        };
        attach(sys, place.as_fd()).step(|| "mounting /sys".to_owned())?;
        // Else a kernel without cgroups in sysfs.
        if let Ok(place) = open_directory(sys, Path::new("fs/cgroup")) {
            for mount in &self.cgroups {
                attach(mount.as_fd(), place.as_fd())
                    .step(|| "mounting /sys/fs/cgroup".to_owned())?;
            }
        }
        covers::cover(sys, covers::below("sys/"), self)?;
        covers::cover(self.proc.as_fd(), self.absent.iter().copied(), self)?;
        Ok(())
    }
}

/// Attached somewhere: the end of a mount that never was is waited for (an RCU grace period).
fn empty(scratch: &Scratch) -> io::Result<OwnedFd> {
    let empty = scratch.directory("empty", [])?;
    attach(empty.as_fd(), scratch.place("nothing")?.as_fd())?;
    Ok(empty)
}

/// Views of the cgroup in each hierarchy with their names, attached nowhere. Read-only: language
/// runtimes read their limits there.
fn views(cgroup: &Cgroup) -> io::Result<Vec<(OwnedFd, std::path::PathBuf)>> {
    let open = |(host, name): (&Path, std::path::PathBuf)| {
        let view = clone_of(CWD, host, false)?;
        if !weak::is_down(Wall::ReadOnlySys) {
            sys::set_mount_attributes(view.as_fd(), covers::INERT, false)?;
        }
        Ok((view, name))
    };
    cgroup.views().into_iter().map(open).collect()
}

/// Shows one hierarchy as /sys/fs/cgroup itself, and several as directories in it.
fn show(views: Vec<(OwnedFd, std::path::PathBuf)>, scratch: &Scratch) -> io::Result<Vec<OwnedFd>> {
    if views.iter().all(|(_, name)| name.as_os_str().is_empty()) {
        return Ok(views.into_iter().map(|(view, _)| view).collect());
    }
    let names = views.iter().map(|(_, name)| name.as_path());
    let all = scratch.directory("cgroup", names)?;
    attach(all.as_fd(), scratch.place("cgroups")?.as_fd())?;
    for (view, name) in &views {
        attach(view.as_fd(), open_directory(all.as_fd(), name)?.as_fd())?;
    }
    Ok(vec![all])
}

impl Scratch {
    /// A new directory to attach something to.
    fn place(&self, name: &str) -> io::Result<OwnedFd> {
        rustix::fs::mkdirat(self.as_fd(), name, Mode::from_raw_mode(0o755))?;
        open_directory(self.as_fd(), Path::new(name))
    }
}

/// `/proc`, `/sys` or `/dev` of the image, made if missing. A symbolic link in its place would put
/// the mount elsewhere and leave the masks behind.
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
