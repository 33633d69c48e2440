//! The files of a container that does not run, for reading and writing. Nothing can leak: all
//! mounts are in the mount namespace of a thread that ends with the job.
//!
//! Must not: attach anything in the host's mount namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_change};

use crate::child::mounts::{mount_disk, mount_root, put};
use crate::spec::{DiskMount, Mount};
use crate::sys;

/// What the files of a container that does not run are made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// As [`crate::Root::Overlay`].
    pub lower: &'a [PathBuf],
    /// As [`crate::Root::Overlay`].
    pub upper: &'a Path,
    /// As [`crate::Root::Overlay`].
    pub work: &'a Path,
    /// As [`crate::ProcessSpec::disk`].
    pub disk: Option<&'a DiskMount>,
    /// As [`crate::ProcessSpec::mounts`].
    pub mounts: &'a [Mount],
}

/// Gives `job` the root directory of a container that does not run, with those of its mounts that
/// are volumes ([`Mount::Overlay`]) in their places, and owners as on disk. All mounts are in the
/// mount namespace of a thread that ends with the job. Nothing else may use `upper` meanwhile.
pub fn inside<T: Send>(parts: &Parts<'_>, job: impl FnOnce(OwnedFd) -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> io::Result<T> {
            // SAFETY: this thread was made for the purpose and ends below.
            unsafe { sys::unshare_mounts() }?;
            Ok(job(files_only(parts)?))
        });
        worker.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread that works on a container's files panicked",
            ))
        })
    })
}

/// Only the files: the root with its volumes, in a mount namespace that the caller has made for it.
/// Other mounts are left out.
fn files_only(parts: &Parts<'_>) -> io::Result<OwnedFd> {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn volumes_are_in_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (lower, kept) = (make("lower"), make("kept"));
        fs::create_dir(lower.join("app")).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        let volume = |name: &str, lower: Vec<PathBuf>, target: &str| Mount::Overlay {
            lower,
            upper: make(&format!("{name}/upper")),
            work: make(&format!("{name}/work")),
            target: target.into(),
        };
        let mounts = [
            volume("one", vec![kept.clone()], "/app/data"),
            volume("two", Vec::new(), "/app/data/new"),
        ];
        let (upper, work) = (make("upper"), make("work"));
        let parts = Parts {
            lower: &[lower],
            upper: &upper,
            work: &work,
            disk: None,
            mounts: &mounts,
        };
        inside(&parts, |root| -> io::Result<()> {
            let root = format!("/proc/self/fd/{}", root.as_raw_fd());
            let at = |path: &str| Path::new(&root).join(path);
            assert_eq!(fs::read_to_string(at("app/data/file"))?, "kept");
            fs::write(at("app/data/file"), "changed")?;
            fs::write(at("app/data/new/file"), "in the second")?;
            fs::write(at("app/file"), "in the root")
        })
        .unwrap()
        .unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("kept/file"), "kept");
        assert_eq!(read("one/upper/file"), "changed");
        assert_eq!(read("two/upper/file"), "in the second");
        assert_eq!(read("upper/app/file"), "in the root");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(dir.path().to_str().unwrap()), "{table}");
    }
}
