//! The host's directories with the ids of a container's user namespace: what belongs to 0 on disk
//! belongs to root inside, and what root inside makes belongs to 0 on disk. So nothing is ever
//! chowned, and a directory can be mounted for one container after another.
//!
//! Owns: mounts with mapped ids (mount_setattr(2), MOUNT_ATTR_IDMAP), made in the container's own
//! mount namespace.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use crate::mount::{attach, clone_of, open_directory};
use crate::sys;

/// Maps the ids of a detached mount. The error is for a person.
pub(crate) fn map(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
    path: &Path,
) -> io::Result<()> {
    sys::map_mount_ids(mount, user_namespace, recursive).map_err(|error| {
        if error.raw_os_error() != Some(libc::EINVAL) {
            return error;
        }
        let text = format!(
            "the file system of {} cannot map ids for a user namespace: use ext4, xfs or btrfs, or set containers.user_namespaces = false in wharf.toml",
            path.display()
        );
        io::Error::new(io::ErrorKind::Unsupported, text)
    })
}

/// Directories with mapped ids that will cover the original ones.
pub(super) struct Covers(Vec<(PathBuf, OwnedFd)>);

impl Covers {
    /// Covers the directories in which `paths` lie: layers have one in common, so this does not
    /// grow with their number.
    pub(super) fn over_parents<'a>(
        paths: impl Iterator<Item = &'a Path>,
        user_namespace: BorrowedFd<'_>,
    ) -> io::Result<Covers> {
        let parents: BTreeSet<&Path> = paths.filter_map(Path::parent).collect();
        let cover = |parent: &Path| -> io::Result<(PathBuf, OwnedFd)> {
            let at = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", parent.display()));
            let tree = clone_of(CWD, parent, false).map_err(|e| at(e.into()))?;
            map(tree.as_fd(), user_namespace, false, parent)?;
            Ok((parent.to_owned(), tree))
        };
        let covers: io::Result<Vec<_>> = parents.into_iter().map(cover).collect();
        covers.map(Covers)
    }

    /// Makes their paths lead to the mapped ones, in this mount namespace. All have been opened:
    /// none is inside another's cover.
    pub(super) fn attach(self) -> io::Result<()> {
        for (path, tree) in &self.0 {
            attach(tree.as_fd(), open_directory(CWD, path)?.as_fd())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen,
    };

    use super::*;

    #[test]
    fn a_file_system_that_cannot_is_named_with_the_mend() {
        let fs = fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(fs.as_fd()).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(fs.as_fd(), flags, MountAttrFlags::empty()).unwrap();
        let users = std::fs::File::open("/proc/self/ns/user").unwrap();
        let path = Path::new("/srv/node");
        let error = map(mount.as_fd(), users.as_fd(), false, path).unwrap_err();
        // The host's own namespace is refused too, by another number, where the kernel looks at
        // that first.
        if error.raw_os_error() != Some(libc::EPERM) {
            let text = error.to_string();
            assert!(
                text.contains("/srv/node") && text.contains("wharf.toml"),
                "{text}"
            );
        }
    }
}
