//! Copies a merged directory to a plain one.
//!
//! Files of layers that never change become hard links, which cost nothing; others are cloned (FICLONE) where the file system can, else
//! copied by the kernel, holes left out. Iterative: a container can make a tree as deep as it likes.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, XattrFlags, makedev,
};
use rustix::io::Errno;

use crate::error::{Context, Result, SnapshotError};
use crate::metadata;
use crate::view::{Dir, Node, View};

/// Most entries of one copy.
const MAX_ENTRIES: u64 = 5_000_000;
/// A tar header, and the unit that content is padded to there.
const TAR_BLOCK: u64 = 512;

/// What the copy is to be.
#[derive(Debug, Clone, Copy)]
pub enum Form<'a> {
    /// A plain tree.
    Tree,
    /// A layer over those of this view. Removals of what is there are kept, and no others: in a directory that is not merged with one below,
    /// the kernel's overlay would list what stands for a removal.
    Layer(&'a View),
}

/// How much may be copied.
#[derive(Debug, Clone)]
pub struct Allowance {
    /// Bytes.
    pub bytes: u64,
    /// What to say when that is not enough.
    pub refusal: String,
}

/// What a copy came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of file content that are the copy's own (or shared block by block, where the file system clones).
    pub bytes: u64,
    /// Bytes of files that are shared with layers.
    pub linked: u64,
    /// What a tar archive of it would have, bytes.
    pub archive: u64,
}

/// Copies the contents of `from`, and its own owner, mode and attributes, to the empty directory `to`. Sockets are left out.
///
/// # Errors
/// [`SnapshotError::TooBig`] beyond the allowance; what was copied by then stays.
pub fn copy(
    view: &View,
    from: &Node,
    to: &Path,
    form: Form<'_>,
    allowance: &Allowance,
) -> Result<Copied> {
    let root = rustix::fs::open(to, directory(), Mode::empty())
        .context(|| format!("opening {}", to.display()))?;
    let mut copier = Copier {
        view,
        root,
        base: match form {
            Form::Tree => None,
            Form::Layer(base) => Some(base),
        },
        allowance,
        copied: Copied {
            archive: 2 * TAR_BLOCK,
            ..Copied::default()
        },
        entries: 0,
        links: HashMap::new(),
        clones: true,
        directories: Vec::new(),
    };
    let Some(dir) = &from.dir else {
        return Err(io::Error::from(Errno::NOTDIR)).context(|| "copying".to_owned());
    };
    let top = File::from(copier.open(Path::new(""))?);
    let source = view
        .open(from)
        .context(|| "opening the directory".to_owned())?;
    metadata::set(&source, &from.stat, &top).context(|| "copying the directory".to_owned())?;
    copier.directories.push((PathBuf::new(), from.stat));
    let below = match copier.base {
        Some(base) if !base.is_empty() => base.root().context(|| "opening layers".to_owned())?.dir,
        _ => None,
    };
    let mut pending = vec![Pending {
        dir: dir.clone(),
        path: PathBuf::new(),
        below,
    }];
    while let Some(next) = pending.pop() {
        copier.contents(&next, &mut pending)?;
    }
    copier.finish()
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A directory that was made, and is to be filled.
struct Pending {
    dir: Dir,
    path: PathBuf,
    /// The directory below, of a layer, that it is to be merged with.
    below: Option<Dir>,
}

struct Copier<'a> {
    view: &'a View,
    root: OwnedFd,
    /// What lies below the copy, if it is a layer.
    base: Option<&'a View>,
    allowance: &'a Allowance,
    copied: Copied,
    entries: u64,
    /// First copy of each inode that has several names.
    links: HashMap<(u64, u64), PathBuf>,
    /// Whether the file system can clone; false from the first time it cannot.
    clones: bool,
    /// Their times are set last: making entries changes them.
    directories: Vec<(PathBuf, Stat)>,
}

impl Copier<'_> {
    /// Opens a directory of the copy. Nobody else writes there, but names came from a container.
    fn open(&self, path: &Path) -> Result<OwnedFd> {
        let name = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.root, name, directory(), Mode::empty(), resolve)
            .context(|| format!("opening the copy of {}", path.display()))
    }

    fn contents(&mut self, of: &Pending, pending: &mut Vec<Pending>) -> Result<()> {
        let path = of.path.as_path();
        let to = self.open(path)?;
        let entries = self.view.entries(&of.dir);
        for (name, node) in entries.context(|| format!("reading {}", path.display()))? {
            let at = path.join(&name);
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(SnapshotError::TooBig(format!(
                    "more than {MAX_ENTRIES} files; a snapshot may not have more"
                )));
            }
            let doing = || format!("looking below {}", at.display());
            let below = match (self.base, &of.below) {
                (Some(base), Some(dir)) if node.dir.is_some() || node.is_whiteout() => {
                    base.child(dir, &name).context(doing)?
                }
                _ => None,
            };
            self.entry(&node, &to, &name, &at, below.is_some())
                .map_err(|error| match error {
                    Trouble::Snapshot(error) => error,
                    Trouble::Io(source) => SnapshotError::Io {
                        context: format!("copying {}", at.display()),
                        source,
                    },
                })?;
            if let Some(dir) = node.dir {
                self.directories.push((at.clone(), node.stat));
                pending.push(Pending {
                    dir,
                    path: at,
                    below: below.and_then(|b| b.dir).filter(|_| !node.hides),
                });
            }
        }
        Ok(())
    }

    /// If it is over something, also what it does to that.
    fn entry(
        &mut self,
        node: &Node,
        to: &OwnedFd,
        name: &OsStr,
        at: &Path,
        is_over: bool,
    ) -> std::result::Result<(), Trouble> {
        let stat = &node.stat;
        let kind = node.kind();
        if node.is_whiteout() {
            if is_over {
                rustix::fs::mknodat(to, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
            return Ok(());
        }
        if kind == FileType::Socket {
            return Ok(());
        }
        self.copied.archive += TAR_BLOCK;
        if kind == FileType::RegularFile {
            self.copied.archive += (stat.st_size as u64).next_multiple_of(TAR_BLOCK);
        }
        if kind != FileType::Directory && self.link(node, to, name, at)? {
            return Ok(());
        }
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let made = File::from(rustix::fs::openat(to, name, directory(), Mode::empty())?);
                metadata::set(&self.view.open(node)?, stat, &made)?;
                if is_over && node.hides {
                    let (key, value) = ("trusted.overlay.opaque", b"y");
                    rustix::fs::fsetxattr(&made, key, value, XattrFlags::empty())?;
                }
            }
            FileType::RegularFile => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let made = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
                let made = File::from(made);
                let source = self.view.open(node)?;
                self.content(&source, &made)?;
                metadata::set(&source, stat, &made)?;
                rustix::fs::futimens(&made, &metadata::times(stat))?;
            }
            FileType::Symlink => {
                let target = self.view.read_link(node)?;
                rustix::fs::symlinkat(target, to, name)?;
                self.special(to, name, stat)?;
            }
            kind => {
                let device = match kind {
                    FileType::Fifo => 0,
                    _ => makedev(
                        rustix::fs::major(stat.st_rdev),
                        rustix::fs::minor(stat.st_rdev),
                    ),
                };
                rustix::fs::mknodat(to, name, kind, metadata::mode(stat), device)?;
                // Not a link, and nobody else writes here. mknod's mode is subject to the umask.
                rustix::fs::chmodat(to, name, metadata::mode(stat), AtFlags::empty())?;
                self.special(to, name, stat)?;
            }
        }
        Ok(())
    }

    /// Owner and times of what cannot be opened.
    fn special(&self, to: &OwnedFd, name: &OsStr, stat: &Stat) -> std::result::Result<(), Trouble> {
        let (uid, gid) = metadata::owner(stat);
        rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        let times = metadata::times(stat);
        rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Gives a file that is there already another name. `Ok(false)`: it must be copied.
    fn link(
        &mut self,
        node: &Node,
        to: &OwnedFd,
        name: &OsStr,
        at: &Path,
    ) -> std::result::Result<bool, Trouble> {
        if self.view.is_still(node) {
            let (parent, from) = self.view.parent(node)?;
            match rustix::fs::linkat(parent, from, to, name, AtFlags::empty()) {
                Ok(()) => {
                    self.copied.linked += node.stat.st_size as u64;
                    return Ok(true);
                }
                // Another file system, or too many names already.
                Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if node.stat.st_nlink > 1 {
            let inode = (node.stat.st_dev, node.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                rustix::fs::linkat(&self.root, first, to, name, AtFlags::empty())?;
                return Ok(true);
            }
            self.links.insert(inode, at.to_owned());
        }
        Ok(false)
    }

    fn content(&mut self, from: &File, to: &File) -> std::result::Result<(), Trouble> {
        let stat = rustix::fs::fstat(from)?;
        let size = stat.st_size as u64;
        let blocks = (stat.st_blocks as u64).saturating_mul(512);
        if self.clones {
            self.take(blocks.min(size))?;
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(
                    Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::INVAL | Errno::NOSYS,
                ) => {
                    self.clones = false;
                    self.copied.bytes -= blocks.min(size);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut at = 0;
        while at < size {
            at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(at) => at,
                Err(Errno::NXIO) => break, // A hole up to the end.
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(at))?.min(size);
            self.take(end.saturating_sub(at))?;
            copy_range(from, to, at, end)?;
            at = end;
        }
        to.set_len(size)?;
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> std::result::Result<(), Trouble> {
        self.copied.bytes += bytes;
        if self.copied.bytes > self.allowance.bytes {
            let refusal = self.allowance.refusal.clone();
            return Err(Trouble::Snapshot(SnapshotError::TooBig(refusal)));
        }
        Ok(())
    }

    fn finish(self) -> Result<Copied> {
        // Deepest last made, so from the end: the order does not matter, a directory's time is not its parent's.
        for (path, stat) in self.directories.iter().rev() {
            let dir = self.open(path)?;
            rustix::fs::futimens(&dir, &metadata::times(stat))
                .context(|| format!("setting the time of {}", path.display()))?;
        }
        Ok(self.copied)
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let most = usize::try_from(end - read).unwrap_or(1 << 30).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), most) {
            Ok(0) => return Ok(()), // It became shorter.
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_bytes(from, to, read, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_bytes(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 256 * 1024];
    let mut at = start;
    while at < end {
        let most = usize::try_from(end - at)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        let n = from.read_at(&mut buffer[..most], at)?;
        if n == 0 {
            return Ok(());
        }
        to.write_all_at(&buffer[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

enum Trouble {
    Snapshot(SnapshotError),
    Io(io::Error),
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        Trouble::Io(error.into())
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Io(error)
    }
}

/// Takes out of a copied layer the mount points that were made for a process and are not in the layers `below` it, where nothing was put
/// into them.
///
/// # Errors
/// The layer or the layers below cannot be read.
pub fn prune(layer: &Path, below: &View, mount_points: &[PathBuf]) -> Result<()> {
    let root = rustix::fs::open(layer, directory(), Mode::empty())
        .context(|| format!("opening {}", layer.display()))?;
    for target in mount_points {
        let doing = || format!("leaving out the mount point {}", target.display());
        let Some((mut path, missing)) = below.missing(target).context(doing)? else {
            continue;
        };
        path.extend(&missing);
        let mut file_too = true;
        for _ in &missing {
            if !remove_empty(&root, &path, std::mem::take(&mut file_too)).context(doing)? {
                break;
            }
            path.pop();
        }
    }
    Ok(())
}

/// Removes an empty directory, or an empty file. `Ok(false)`: it stays.
fn remove_empty(root: &OwnedFd, path: &Path, file_too: bool) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().map(OsString::from)) else {
        return Ok(false);
    };
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = match rustix::fs::openat2(root, parent, directory(), Mode::empty(), resolve) {
        Ok(parent) => parent,
        // Gone, or replaced by a link or a file: the container's own doing.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let stat = match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let flags = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if file_too && stat.st_size == 0 => AtFlags::empty(),
        _ => return Ok(false),
    };
    match rustix::fs::unlinkat(&parent, &name, flags) {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
