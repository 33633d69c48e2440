//! What a container is shown out of memory, beside /dev: the daemon's files, empty directories over
//! masked ones, and places for views.
//!
//! Owns: one tmpfs for all of it, since each further one is a super block to make and to end. Must
//! not: be reachable as a whole; only single files and read-only directories of it are attached
//! inside.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::mount::{NODEV, NOEXEC, NOSUID, attach_new, clone_of, open_directory};
use crate::spec::Mount;
use crate::sys;

/// There is room for so much at least, bytes, before the files are known.
pub(crate) const FILES: usize = 64 * 1024;
/// Room for the container to edit the files, bytes.
const ROOM: usize = 1 << 20;

pub(super) struct Scratch(OwnedFd);

impl AsFd for Scratch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How large the files are together, bytes.
pub(crate) fn content(mounts: &[Mount]) -> usize {
    let bytes = |mount: &Mount| match mount {
        Mount::File { content, .. } => content.len(),
        _ => 0,
    };
    mounts.iter().map(bytes).sum()
}

impl Scratch {
    /// Attached at `place` (a directory that surely exists), where only this mount namespace sees
    /// it, and only until the pivot.
    pub(super) fn make(place: &Path, mounts: &[Mount]) -> io::Result<Scratch> {
        let size = (content(mounts).max(FILES) + ROOM).to_string();
        let place = open_directory(CWD, place)?;
        let options = [("mode", "755"), ("size", size.as_str())];
        let flags = NOSUID | NODEV | NOEXEC;
        attach_new("tmpfs", &options, flags, place.as_fd()).map(Scratch)
    }

    /// A mount of a new file.
    pub(super) fn file(&self, name: &str, content: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o644))?;
        io::Write::write_all(&mut std::fs::File::from(file), content.as_bytes())?;
        Ok(clone_of(self.0.as_fd(), name, false)?)
    }

    /// A read-only mount of a new directory that has these directories in it.
    pub(super) fn directory<'a>(
        &self,
        name: &str,
        inside: impl IntoIterator<Item = &'a Path>,
    ) -> io::Result<OwnedFd> {
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(&self.0, name, mode)?;
        for path in inside {
            rustix::fs::mkdirat(&self.0, Path::new(name).join(path), mode)?;
        }
        let directory = clone_of(self.0.as_fd(), name, false)?;
        sys::set_mount_attributes(directory.as_fd(), libc::MOUNT_ATTR_RDONLY, false)?;
        Ok(directory)
    }
}
