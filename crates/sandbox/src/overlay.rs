//! Overlay mounts that are attached nowhere: a descriptor to a merged tree, gone when it is closed.
//! For the builder's COPY and for reading files of a container that does not run. Nothing can leak,
//! whatever dies.
//!
//! Owns: the overlay options of this project, for detached mounts and (crate-internal) for
//! containers' roots. Must not: attach anything in the host's mount namespace.
//!
//! Layers are handed to the kernel as `/proc/self/fd/N`: no limit on path length, no escaping of
//! `:` and `,`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, open_tree,
};

use crate::sys;
use crate::weak::{self, Wall};

/// The kernel's limit (OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;

/// Device nodes in layers are never usable; set-user-id bits work, as in any container.
fn attributes() -> MountAttrFlags {
    match weak::is_down(Wall::NoDevices) {
        true => MountAttrFlags::empty(),
        false => MountAttrFlags::MOUNT_ATTR_NODEV,
    }
}

/// What makes an upper directory a plain diff (no redirects, no metadata-only copies) that can be
/// mounted again elsewhere (no index).
const OPTIONS: [(&str, &str); 3] = [
    ("redirect_dir", "off"),
    ("metacopy", "off"),
    ("index", "off"),
];

/// Mounts an overlay and returns a descriptor of its root directory (usable with openat2 and
/// RESOLVE_IN_ROOT). `upper` is `(upper, work)`; without it the tree is read-only. `lower` is
/// topmost first.
pub fn detached(lower: &[&Path], upper: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    match mount_detached(lower, upper) {
        Err(error) if is_unsupported(&error) => detached_by_thread(lower, upper),
        other => other,
    }
}

/// Whether the kernel is too old for `lowerdir+` (Linux 6.8), so that [`mount_at`] is the way.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

fn unsupported() -> io::Error {
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}

fn open_layer(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
        io::Error::new(
            io::Error::from(e).kind(),
            format!("layer {}: {}", path.display(), io::Error::from(e)),
        )
    })
}

fn by_descriptor(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn check_count(lower: &[&Path]) -> io::Result<()> {
    if lower.len() > MAX_LAYERS {
        let text = format!(
            "{} layers; overlayfs takes at most {MAX_LAYERS}",
            lower.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

/// Trees that overlayfs itself refuses: no lower layer, or one layer and nothing to merge it with.
fn without_overlay(lower: &[&Path], upper: Option<(&Path, &Path)>) -> io::Result<Option<OwnedFd>> {
    let clone = |path: &Path| -> io::Result<OwnedFd> {
        let layer = open_layer(path)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(open_tree(layer, "", flags)?)
    };
    let (tree, read_only) = match (lower, upper) {
        ([], Some((upper, _))) => (clone(upper)?, false),
        ([only], None) => (clone(only)?, true),
        ([], None) => {
            let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(fs.as_fd(), "mode", "755")?;
            fsconfig_create(fs.as_fd())?;
            (
                fsmount(
                    fs.as_fd(),
                    FsMountFlags::FSMOUNT_CLOEXEC,
                    MountAttrFlags::empty(),
                )?,
                true,
            )
        }
        _ => return Ok(None),
    };
    let read_only = if read_only {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    sys::set_mount_attributes(tree.as_fd(), libc::MOUNT_ATTR_NODEV | read_only, false)?;
    Ok(Some(tree))
}

/// Mounts by the mount API with descriptors. Fails with EOPNOTSUPP (see [`is_unsupported`]) on
/// kernels that lack it for overlayfs.
pub(crate) fn mount_detached(
    lower: &[&Path],
    upper: Option<(&Path, &Path)>,
) -> io::Result<OwnedFd> {
    check_count(lower)?;
    if let Some(tree) = without_overlay(lower, upper)? {
        return Ok(tree);
    }
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut held = Vec::with_capacity(lower.len() + 2); // Open until the mount exists.
    for layer in lower {
        let layer = open_layer(layer)?;
        match fsconfig_set_string(fs.as_fd(), "lowerdir+", by_descriptor(&layer)) {
            Err(rustix::io::Errno::INVAL) if held.is_empty() => return Err(unsupported()),
            other => other?,
        }
        held.push(layer);
    }
    let mut attributes = attributes();
    if let Some((upper, work)) = upper {
        for (option, path) in [("upperdir", upper), ("workdir", work)] {
            let directory = open_layer(path)?;
            fsconfig_set_string(fs.as_fd(), option, by_descriptor(&directory))?;
            held.push(directory);
        }
    } else {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    for (option, value) in OPTIONS {
        fsconfig_set_string(fs.as_fd(), option, value)?;
    }
    fsconfig_create(fs.as_fd()).map_err(|error| match explanation(&fs) {
        // Before Linux 6.5 overlayfs took every option here as text for mount(2), and refuses
        // `lowerdir+` only now, without a word.
        None if error == rustix::io::Errno::INVAL => unsupported(),
        None => error.into(),
        Some(text) => {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{error} ({text})"))
        }
    })?;
    Ok(fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// The kernel writes why it refused to the context's message queue.
fn explanation(fs: &OwnedFd) -> Option<String> {
    let mut text = [0u8; 1024];
    let length = rustix::io::read(fs, &mut text).ok()?;
    let text = String::from_utf8_lossy(&text[..length]).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// By mount(2), attached at `target` in the current mount namespace, which must be private to the
/// caller. Its one page of options holds few paths, so the working directory becomes
/// `/proc/self/fd` and layers are named by their bare numbers.
pub(crate) fn mount_at(
    lower: &[&Path],
    upper: Option<(&Path, &Path)>,
    target: &Path,
) -> io::Result<()> {
    check_count(lower)?;
    let target = open_layer(target)?;
    let mut held = Vec::new();
    let mut names = Vec::new();
    for layer in lower {
        let layer = open_layer(layer)?;
        names.push(layer.as_raw_fd().to_string());
        held.push(layer);
    }
    let mut options = format!("lowerdir={}", names.join(":"));
    let mut flags = MountFlags::NODEV;
    if let Some((upper, work)) = upper {
        for (option, path) in [("upperdir", upper), ("workdir", work)] {
            let directory = open_layer(path)?;
            options.push_str(&format!(",{option}={}", directory.as_raw_fd()));
            held.push(directory);
        }
    } else {
        flags |= MountFlags::RDONLY;
    }
    for (option, value) in OPTIONS {
        options.push_str(&format!(",{option}={value}"));
    }
    let options = std::ffi::CString::new(options)?;
    rustix::process::chdir("/proc/self/fd")?;
    mount(
        "overlay",
        by_descriptor(&target),
        "overlay",
        flags,
        options.as_c_str(),
    )?;
    Ok(())
}

/// For kernels where overlayfs cannot be mounted detached: a thread mounts it in a mount namespace
/// of its own and takes a detached clone, which outlives the namespace.
fn detached_by_thread(lower: &[&Path], upper: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    if let Some(tree) = without_overlay(lower, upper)? {
        return Ok(tree);
    }
    let Some(place) = upper.map(|(upper, _)| upper).or(lower.first().copied()) else {
        return Err(unsupported());
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> io::Result<OwnedFd> {
            // SAFETY: this thread was made for the purpose and ends below.
            unsafe { sys::unshare_mounts() }?;
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )?;
            mount_at(lower, upper, place)?;
            Ok(open_tree(
                CWD,
                place,
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
            )?)
        });
        worker.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread that mounts an overlay panicked",
            ))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    type MountFn = fn(&[&Path], Option<(&Path, &Path)>) -> io::Result<OwnedFd>;
    const MOUNT_FNS: [(&str, MountFn); 2] = [
        ("this kernel's", detached),
        ("by a thread", detached_by_thread),
    ];

    fn layers(dir: &Path, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|n| {
                let layer = dir.join(format!("layer,with:odd characters{n}"));
                fs::create_dir(&layer).unwrap();
                fs::write(layer.join(format!("file{n}")), n.to_string()).unwrap();
                fs::write(layer.join("same"), n.to_string()).unwrap();
                layer
            })
            .collect()
    }

    fn inside(root: &OwnedFd, path: &str) -> PathBuf {
        Path::new(&by_descriptor(root)).join(path)
    }

    #[test]
    fn merged_tree_with_the_topmost_layer_winning() {
        for (name, way) in MOUNT_FNS {
            let dir = tempfile::tempdir().unwrap();
            let layers = layers(dir.path(), 120);
            let lower: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
            let root = way(&lower, None).unwrap();
            assert_eq!(
                fs::read_to_string(inside(&root, "same")).unwrap(),
                "0",
                "{name}"
            );
            assert_eq!(
                fs::read_to_string(inside(&root, "file119")).unwrap(),
                "119",
                "{name}"
            );
            let error = fs::write(inside(&root, "new"), "").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{name}");
        }
    }

    #[test]
    fn writes_go_to_the_upper_directory_and_nothing_is_mounted_on_the_host() {
        for (name, way) in MOUNT_FNS {
            let dir = tempfile::tempdir().unwrap();
            let layers = layers(dir.path(), 2);
            let lower: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
            let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            let root = way(&lower, Some((&upper, &work))).unwrap();
            fs::write(inside(&root, "new"), "text").unwrap();
            fs::remove_file(inside(&root, "file1")).unwrap();
            assert_eq!(
                fs::read_to_string(upper.join("new")).unwrap(),
                "text",
                "{name}"
            );
            let whiteout = fs::symlink_metadata(upper.join("file1")).unwrap();
            assert!(
                std::os::unix::fs::FileTypeExt::is_char_device(&whiteout.file_type()),
                "{name}"
            );
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(
                !mounts.contains(dir.path().to_str().unwrap()),
                "{name}: {mounts}"
            );
        }
    }

    #[test]
    fn few_layers() {
        for (name, way) in MOUNT_FNS {
            let dir = tempfile::tempdir().unwrap();
            let layers = layers(dir.path(), 1);
            let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            assert_eq!(
                fs::read_dir(inside(&way(&[], None).unwrap(), "."))
                    .unwrap()
                    .count(),
                0,
                "{name}"
            );
            let one = way(&[&layers[0]], None).unwrap();
            assert_eq!(
                fs::read_to_string(inside(&one, "same")).unwrap(),
                "0",
                "{name}"
            );
            assert!(fs::write(inside(&one, "same"), "").is_err(), "{name}");
            let empty = way(&[], Some((&upper, &work))).unwrap();
            fs::write(inside(&empty, "new"), "").unwrap();
            assert!(upper.join("new").exists(), "{name}");
        }
    }

    #[test]
    fn missing_layer_is_named() {
        let error = detached(&[Path::new("/nonexistent/layer")], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/nonexistent/layer"), "{error}");
    }
}
