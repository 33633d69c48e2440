//! Unpacks a layer's tar into a directory that overlayfs can take as a lower directory.
//!
//! The archive is hostile. Every path is resolved by the kernel below the layer's own root (`openat2` with `RESOLVE_IN_ROOT`), `..` is refused,
//! files are only ever made anew (`O_EXCL`), never opened through a link, and hard links only join names inside. So nothing outside the
//! directory can be read, written or linked, whatever the order and names of the entries.
//!
//! OCI whiteouts become overlayfs's: `.wh.name` a character device 0/0 called `name`, `.wh..wh..opq` the attribute `trusted.overlay.opaque`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, makedev,
};
use rustix::io::Errno;

use crate::error::{ImageError, Result};
use crate::tar_read::{Entry, Kind, TarReader, bad};

/// Most bytes of one layer, uncompressed.
pub(crate) const MAX_LAYER: u64 = 256 << 30;
/// Most entries of one layer.
const MAX_ENTRIES: u64 = 10_000_000;

pub(crate) const WHITEOUT: &[u8] = b".wh.";
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// File systems (linux/magic.h): proc, sysfs, cgroup, cgroup2.
const KERNELS: [u32; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];
const AUFS: &[u8] = b".wh..wh.";
pub(crate) const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// Whether an extended attribute belongs to an image. Others are overlayfs's own, or belong to the machine that the image was made on.
pub fn is_image_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name == b"security.capability"
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// Whether metadata is that of an overlayfs whiteout.
pub(crate) fn is_whiteout(kind: FileType, device: u64) -> bool {
    kind == FileType::CharacterDevice && device == 0
}

/// Unpacks `tar` (uncompressed) into the empty directory `to`, and reads it to its very end.
pub(crate) fn unpack(tar: impl Read, to: &Path) -> Result<()> {
    let root = rustix::fs::open(
        to,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| at(e, "opening", to.as_os_str().as_bytes()))?;
    // The diff id counts what follows the end marker too.
    let mut rest = Unpacker::new(root, Vec::new(), Meaning::Layer, 0).run(tar.take(MAX_LAYER))?;
    std::io::copy(&mut rest, &mut std::io::sink())
        .map_err(|e| bad(format!("cannot read on: {e}")))?;
    if rest.limit() == 0 {
        return Err(bad(format!("it has more than {MAX_LAYER} bytes")));
    }
    Ok(())
}

/// What an archive's names mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A layer: names that begin with `.wh.` are whiteouts.
    Layer,
    /// Just files.
    Files,
}

pub(crate) struct Unpacker {
    root: OwnedFd,
    /// Where below the root the archive's own root is; empty: there. No `.` or `..` in it.
    base: Vec<u8>,
    meaning: Meaning,
    /// Added to the ids of the archive.
    first_id: u32,
    /// The directory that the last entry was in: most entries follow one in the same directory.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Modification times, set last, because making entries changes them.
    directories: Vec<(Vec<u8>, Timestamps)>,
    buffer: Vec<u8>,
}

/// A system call failed on a path of the archive. What the archive itself causes is its fault, the rest the machine's.
fn at(errno: Errno, doing: &str, path: &[u8]) -> ImageError {
    let path = String::from_utf8_lossy(path).escape_debug().to_string();
    match errno {
        Errno::NAMETOOLONG
        | Errno::LOOP
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::INVAL
        | Errno::XDEV
        | Errno::PERM
        | Errno::ROFS
        | Errno::MLINK
        | Errno::EXIST => bad(format!("{doing} \"{path}\": {errno}")),
        errno => ImageError::Io {
            context: format!("{doing} \"{path}\""),
            source: errno.into(),
        },
    }
}

/// Splits a path of the archive into directory and last name, both without `.` and empty parts. `None`: the root itself.
fn split(path: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(bad(format!(
                    "\"{}\" has '..' in its path",
                    String::from_utf8_lossy(path).escape_debug()
                )));
            }
            part => parts.push(part),
        }
    }
    let Some(last) = parts.pop() else {
        return Ok(None);
    };
    Ok(Some((parts.join(&b'/'), last.to_vec())))
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

fn timestamps(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

impl Unpacker {
    pub(crate) fn new(root: OwnedFd, base: Vec<u8>, meaning: Meaning, first_id: u32) -> Unpacker {
        Unpacker {
            root,
            base,
            meaning,
            first_id,
            parent: None,
            directories: Vec::new(),
            buffer: vec![0; 256 * 1024],
        }
    }

    /// Unpacks up to the end marker; returns what follows it.
    pub(crate) fn run<R: Read>(mut self, tar: R) -> Result<R> {
        let mut reader = TarReader::new(tar);
        let mut entries = 0;
        while let Some(mut entry) = reader.next_entry()? {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(bad(format!("it has more than {MAX_ENTRIES} entries")));
            }
            for id in [&mut entry.uid, &mut entry.gid] {
                *id = id.checked_add(self.first_id).ok_or_else(|| {
                    bad(format!(
                        "its entry {entries} belongs to {id}, which has no place"
                    ))
                })?;
            }
            self.entry(entry, &mut reader)?;
        }
        self.finish()?;
        Ok(reader.into_inner())
    }

    /// A directory of the archive as a path below the root.
    fn below_base(&self, path: Vec<u8>) -> Vec<u8> {
        match (self.base.is_empty(), path.is_empty()) {
            (true, _) => path,
            (false, true) => self.base.clone(),
            (false, false) => [&self.base, path.as_slice()].join(&b'/'),
        }
    }

    /// Opens a directory of the layer; links on the way are followed as if the layer were the whole file system.
    fn open_dir(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let path = if path.is_empty() {
            b".".as_slice()
        } else {
            path
        };
        let dir = rustix::fs::openat2(
            &self.root,
            os(path),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?;
        // In a container that runs, some directories are the kernel's own.
        if self.meaning == Meaning::Files && is_kernels(&dir)? {
            return Err(Errno::PERM);
        }
        Ok(dir)
    }

    /// The same, making what is missing.
    pub(crate) fn make_dirs(&self, path: &[u8]) -> Result<OwnedFd> {
        match self.open_dir(path) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(|e| at(e, "opening directory", path)),
        }
        // From the root down, one name at a time; iterative, because a path can have thousands of parts.
        let mut dir = self
            .open_dir(b"")
            .map_err(|e| at(e, "opening the root of", path))?;
        let mut end = 0;
        while end < path.len() {
            let start = end + usize::from(end > 0);
            let length = path[start..].iter().position(|b| *b == b'/');
            end = length.map_or(path.len(), |n| start + n);
            let so_far = &path[..end];
            dir = match self.open_dir(so_far) {
                Err(Errno::NOENT) => {
                    let name = os(&path[start..end]);
                    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))
                        .map_err(|e| at(e, "making directory", so_far))?;
                    let made = self
                        .open_dir(so_far)
                        .map_err(|e| at(e, "opening directory", so_far))?;
                    rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))
                        .map_err(|e| at(e, "making directory", so_far))?;
                    made
                }
                result => result.map_err(|e| at(e, "opening directory", so_far))?,
            };
        }
        Ok(dir)
    }

    fn entry(&mut self, entry: Entry, reader: &mut TarReader<impl Read>) -> Result<()> {
        let Some((parent_path, name)) = split(&entry.path)? else {
            return self.root_entry(&entry);
        };
        let parent_path = self.below_base(parent_path);
        let parent = match self.parent.take() {
            Some((path, parent)) if path == parent_path => parent,
            _ => self.make_dirs(&parent_path)?,
        };
        let replaced = self.place(&entry, &parent, &parent_path, &name, reader)?;
        // Something that was there is gone: it may have been this very directory, by way of a link.
        if !replaced {
            self.parent = Some((parent_path, parent));
        }
        Ok(())
    }

    /// Makes one entry. Returns whether something that was there was removed.
    fn place(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        parent_path: &[u8],
        name: &[u8],
        reader: &mut TarReader<impl Read>,
    ) -> Result<bool> {
        let failed = |doing: &'static str| move |errno| at(errno, doing, &entry.path);
        if self.meaning == Meaning::Layer {
            if name == OPAQUE {
                set_opaque(parent, &entry.path)?;
                return Ok(false);
            }
            if name.starts_with(AUFS) {
                // Bookkeeping of a file system that nobody uses any more.
                return Ok(false);
            }
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                self.whiteout(parent, hidden, &entry.path)?;
                return Ok(false);
            }
        }
        let existing = match rustix::fs::statat(parent, os(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed("looking at")(errno)),
        };
        let existing_kind = existing
            .as_ref()
            .map(|s| FileType::from_raw_mode(s.st_mode));
        let was_whiteout = existing
            .as_ref()
            .is_some_and(|s| is_whiteout(FileType::from_raw_mode(s.st_mode), s.st_rdev));
        let keep = entry.kind == Kind::Directory && existing_kind == Some(FileType::Directory);
        if entry.kind == Kind::HardLink
            && let Some(existing) = &existing
        {
            let (dir, last) = self.link_target(entry)?;
            let target = rustix::fs::statat(&dir, os(&last), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| missing_target(e, entry))?;
            if (target.st_dev, target.st_ino) == (existing.st_dev, existing.st_ino) {
                return Ok(false);
            }
        }
        let mut replaced = false;
        if let (Some(kind), false) = (existing_kind, keep) {
            remove(parent, name, kind, &entry.path)?;
            replaced = true;
        }
        match entry.kind {
            Kind::Directory => {
                if !keep {
                    rustix::fs::mkdirat(parent, os(name), Mode::from_raw_mode(0o700))
                        .map_err(failed("making directory"))?;
                }
                let dir = rustix::fs::openat(
                    parent,
                    os(name),
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(failed("opening directory"))?;
                if was_whiteout {
                    // Hidden, then made anew: what lower layers have there stays hidden.
                    set_opaque(&dir, &entry.path)?;
                }
                let dir = File::from(dir);
                set_metadata(&dir, entry)?;
                let full = [parent_path, name].join(&b'/');
                self.directories.push((full, timestamps(entry.mtime)));
            }
            Kind::File => {
                let file = rustix::fs::openat(
                    parent,
                    os(name),
                    OFlags::WRONLY
                        | OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::NOFOLLOW
                        | OFlags::CLOEXEC,
                    Mode::from_raw_mode(0o600),
                )
                .map_err(failed("making file"))?;
                let file = File::from(file);
                self.write(&file, entry, reader)?;
                set_metadata(&file, entry)?;
                rustix::fs::futimens(&file, &timestamps(entry.mtime))
                    .map_err(failed("setting the time of"))?;
            }
            Kind::HardLink => {
                let (dir, last) = self.link_target(entry)?;
                // Without AT_SYMLINK_FOLLOW: a link to a symlink is a link to the symlink.
                rustix::fs::linkat(&dir, os(&last), parent, os(name), AtFlags::empty())
                    .map_err(|e| missing_target(e, entry))?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(bad(format!(
                        "the symbolic link \"{}\" has no target",
                        String::from_utf8_lossy(&entry.path).escape_debug()
                    )));
                }
                rustix::fs::symlinkat(os(&entry.link), parent, os(name))
                    .map_err(failed("making symbolic link"))?;
                set_special_metadata(parent, name, entry, false)?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = makedev(entry.device.0, entry.device.1);
                rustix::fs::mknodat(
                    parent,
                    os(name),
                    kind,
                    Mode::from_raw_mode(entry.mode),
                    device,
                )
                .map_err(failed("making device or pipe"))?;
                set_special_metadata(parent, name, entry, true)?;
            }
        }
        Ok(replaced)
    }

    /// The archive says something about `/`: it matters, because in an overlay the topmost layer's root is the container's.
    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(bad("it has an entry for the root that is not a directory"));
        }
        let root = self
            .open_dir(&self.base)
            .map_err(|e| at(e, "opening", &entry.path))?;
        set_metadata(&File::from(root), entry)
    }

    fn whiteout(&self, parent: &OwnedFd, hidden: &[u8], path: &[u8]) -> Result<()> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(bad("it has a whiteout without a name"));
        }
        match rustix::fs::mknodat(
            parent,
            os(hidden),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        ) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                // A whiteout is about the layers below. What this layer has there stays, and of a directory only that.
                let kind = rustix::fs::statat(parent, os(hidden), AtFlags::SYMLINK_NOFOLLOW)
                    .map(|s| FileType::from_raw_mode(s.st_mode))
                    .map_err(|e| at(e, "looking at", path))?;
                if kind != FileType::Directory {
                    return Ok(());
                }
                let dir = rustix::fs::openat(
                    parent,
                    os(hidden),
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(|e| at(e, "opening directory", path))?;
                set_opaque(&dir, path)
            }
            Err(errno) => Err(at(errno, "making whiteout", path)),
        }
    }

    fn link_target(&self, entry: &Entry) -> Result<(OwnedFd, Vec<u8>)> {
        let Some((dir, last)) = split(&entry.link)? else {
            return Err(bad("it has a hard link to the root"));
        };
        let dir = self.below_base(dir);
        let dir = self.open_dir(&dir).map_err(|e| missing_target(e, entry))?;
        Ok((dir, last))
    }

    fn write(
        &mut self,
        file: &File,
        entry: &Entry,
        reader: &mut TarReader<impl Read>,
    ) -> Result<()> {
        let failed = |source| ImageError::Io {
            context: format!("writing \"{}\"", String::from_utf8_lossy(&entry.path)),
            source,
        };
        for (offset, length) in &entry.segments {
            let (mut offset, end) = (*offset, offset + length);
            while offset < end {
                let most = usize::try_from(end - offset)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                let n = reader.read_data(&mut self.buffer[..most])?;
                file.write_all_at(&self.buffer[..n], offset)
                    .map_err(failed)?;
                offset += n as u64;
            }
        }
        // A hole at the end: nothing was written there.
        if entry.segments != [(0, entry.size)] {
            file.set_len(entry.size).map_err(failed)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        // An inner directory's time does not change its parent's, so the order does not matter; of two entries for one, the last wins.
        for (path, times) in &self.directories {
            let Some((parent, name)) = split(path)? else {
                continue;
            };
            let failed = |errno| at(errno, "setting the time of", path);
            let parent = match self.open_dir(&parent) {
                Ok(parent) => parent,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            match rustix::fs::statat(&parent, os(&name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    rustix::fs::utimensat(&parent, os(&name), times, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(failed)?;
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }
}

/// Whether a directory is a view of the kernel, where files are switches.
fn is_kernels(dir: &OwnedFd) -> std::result::Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(dir)?.f_type;
    Ok(KERNELS.contains(&(kind as u32)))
}

fn missing_target(errno: Errno, entry: &Entry) -> ImageError {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::PERM | Errno::XDEV => bad(format!(
            "the hard link \"{}\" points to \"{}\", which is no file of this archive",
            String::from_utf8_lossy(&entry.path).escape_debug(),
            String::from_utf8_lossy(&entry.link).escape_debug()
        )),
        errno => at(errno, "making hard link", &entry.path),
    }
}

fn remove(parent: &OwnedFd, name: &[u8], kind: FileType, path: &[u8]) -> Result<()> {
    if kind != FileType::Directory {
        return rustix::fs::unlinkat(parent, os(name), AtFlags::empty())
            .map_err(|e| at(e, "replacing", path));
    }
    // The standard library removes trees by descriptors and follows no link below the one it is given.
    std::fs::remove_dir_all(proc_path(parent, name)).map_err(|source| ImageError::Io {
        context: format!("replacing \"{}\"", String::from_utf8_lossy(path)),
        source,
    })
}

/// A path to a name in an open directory, for calls that take only paths.
fn proc_path(parent: &OwnedFd, name: &[u8]) -> std::path::PathBuf {
    Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(os(name))
}

fn set_opaque(dir: &OwnedFd, path: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(dir, OVERLAY_OPAQUE, b"y", rustix::fs::XattrFlags::empty())
        .map_err(|e| at(e, "marking as opaque", path))
}

/// Owner, mode and attributes of a file or directory, in this order: changing the owner clears setuid bits and capabilities.
fn set_metadata(file: &File, entry: &Entry) -> Result<()> {
    let failed = |doing: &'static str| move |errno| at(errno, doing, &entry.path);
    rustix::fs::fchown(
        file.as_fd(),
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )
    .map_err(failed("setting the owner of"))?;
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(entry.mode))
        .map_err(failed("setting the mode of"))?;
    for (name, value) in image_xattrs(entry) {
        rustix::fs::fsetxattr(
            file.as_fd(),
            os(name),
            value,
            rustix::fs::XattrFlags::empty(),
        )
        .map_err(failed("setting an extended attribute of"))?;
    }
    Ok(())
}

/// The same for what cannot be opened without side effects.
fn set_special_metadata(
    parent: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    has_mode: bool,
) -> Result<()> {
    let failed = |doing: &'static str| move |errno| at(errno, doing, &entry.path);
    rustix::fs::chownat(
        parent,
        os(name),
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(failed("setting the owner of"))?;
    if has_mode {
        // By descriptor: in a directory of a container that runs, the name may mean a link by now.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, os(name), flags, Mode::empty())
            .map_err(failed("opening"))?;
        let stat = rustix::fs::fstat(&made).map_err(failed("looking at"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            rustix::fs::chmod(
                format!("/proc/self/fd/{}", made.as_raw_fd()),
                Mode::from_raw_mode(entry.mode),
            )
            .map_err(failed("setting the mode of"))?;
        }
    }
    for (key, value) in image_xattrs(entry) {
        if key.starts_with(b"user.") {
            // The kernel keeps these on files and directories only.
            continue;
        }
        rustix::fs::lsetxattr(
            proc_path(parent, name),
            os(key),
            value,
            rustix::fs::XattrFlags::empty(),
        )
        .map_err(failed("setting an extended attribute of"))?;
    }
    rustix::fs::utimensat(
        parent,
        os(name),
        &timestamps(entry.mtime),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(failed("setting the time of"))
}

fn image_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .filter(|(name, _)| is_image_xattr(name))
}
