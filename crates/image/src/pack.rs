//! Writes a directory tree (an overlay's upper directory, or a plain tree) as a layer's tar.
//!
//! The inverse of [`crate::unpack`]. Entries are sorted, so equal trees give equal bytes. Nothing else may change the tree meanwhile.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, ImageError, Result};
use crate::tar_read::{Entry, Kind};
use crate::tar_write::TarWriter;
use crate::unpack::{OPAQUE, OVERLAY_OPAQUE, WHITEOUT, is_image_xattr};

/// Writes the tree below `root`.
pub(crate) fn pack<W: Write>(root: &Path, to: W) -> Result<W> {
    let mut packer = Packer {
        root,
        tar: TarWriter::new(to),
        links: HashMap::new(),
    };
    packer.root_entry()?;
    // A stack rather than recursion: a container can make a tree as deep as it likes.
    let mut pending = packer.children(Path::new(""))?;
    while let Some(path) = pending.pop() {
        if packer.entry(&path)? {
            pending.extend(packer.children(&path)?);
        }
    }
    packer
        .tar
        .finish()
        .context(|| "writing the layer".to_owned())
}

struct Packer<'a, W: Write> {
    root: &'a Path,
    tar: TarWriter<W>,
    /// First path of each inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packer<'_, W> {
    /// The names in a directory, last first.
    fn children(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let doing = || format!("reading directory /{}", dir.display());
        let mut names: Vec<OsString> = fs::read_dir(self.root.join(dir))
            .context(doing)?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<std::io::Result<_>>()
            .context(doing)?;
        names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
        Ok(names.into_iter().map(|name| dir.join(name)).collect())
    }

    /// `/` is in the tar only if it is not what unpacking makes anyway.
    fn root_entry(&mut self) -> Result<()> {
        let metadata =
            fs::metadata(self.root).context(|| "looking at the layer's root".to_owned())?;
        let (xattrs, _) = self.xattrs(self.root, Path::new(""))?;
        if (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()) != (0o755, 0, 0)
            || !xattrs.is_empty()
        {
            let mut entry = entry(Kind::Directory, b"./".to_vec(), &metadata);
            entry.xattrs = xattrs;
            self.append(&entry, &mut std::io::empty())?;
        }
        Ok(())
    }

    /// Writes one entry. Returns whether it is a directory to go into.
    fn entry(&mut self, path: &Path) -> Result<bool> {
        let full = self.root.join(path);
        let name = path.as_os_str().as_bytes().to_vec();
        let metadata =
            fs::symlink_metadata(&full).context(|| format!("looking at /{}", path.display()))?;
        let kind = metadata.file_type();
        if path
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(WHITEOUT))
        {
            return Err(ImageError::Invalid(format!(
                "/{} cannot be put into an image: names that begin with .wh. mean removed files there",
                path.display()
            )));
        }
        if kind.is_socket() {
            // A socket without its process is nothing, and tar has no word for it.
            return Ok(false);
        }
        if kind.is_char_device() && metadata.rdev() == 0 {
            let hidden = sibling(path, WHITEOUT);
            self.append(&marker(hidden), &mut std::io::empty())?;
            return Ok(false);
        }
        let (xattrs, opaque) = self.xattrs(&full, path)?;
        let mut entry = entry(Kind::File, name, &metadata);
        entry.xattrs = xattrs;
        if !kind.is_dir() && metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode) {
                entry.kind = Kind::HardLink;
                entry.link = first.clone();
                entry.xattrs.clear();
                self.append(&entry, &mut std::io::empty())?;
                return Ok(false);
            }
            self.links.insert(inode, entry.path.clone());
        }
        if kind.is_file() {
            let mut file = File::options()
                .read(true)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(&full)
                .context(|| format!("reading /{}", path.display()))?;
            entry.size = metadata.len();
            self.append(&entry, &mut file)?;
            return Ok(false);
        }
        entry.kind = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            entry.link = fs::read_link(&full)
                .context(|| format!("reading link /{}", path.display()))?
                .into_os_string()
                .into_vec();
            Kind::Symlink
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            let device = metadata.rdev();
            entry.device = (rustix::fs::major(device), rustix::fs::minor(device));
            if kind.is_block_device() {
                Kind::BlockDevice
            } else {
                Kind::CharDevice
            }
        };
        self.append(&entry, &mut std::io::empty())?;
        if opaque {
            let inside = path.join(std::ffi::OsStr::from_bytes(OPAQUE));
            self.append(
                &marker(inside.into_os_string().into_vec()),
                &mut std::io::empty(),
            )?;
        }
        Ok(kind.is_dir())
    }

    fn append(&mut self, entry: &Entry, data: &mut dyn std::io::Read) -> Result<()> {
        self.tar.append(entry, data).context(|| {
            format!(
                "writing /{} into the layer",
                String::from_utf8_lossy(&entry.path)
            )
        })
    }

    /// The image's attributes, sorted, and whether overlayfs marks this as opaque.
    #[allow(clippy::type_complexity)]
    fn xattrs(&self, full: &Path, shown: &Path) -> Result<(Vec<(Vec<u8>, Vec<u8>)>, bool)> {
        let doing = || format!("reading the extended attributes of /{}", shown.display());
        let mut kept = Vec::new();
        let mut opaque = false;
        for name in xattr::list(full).context(doing)? {
            let bytes = name.as_bytes();
            if matches!(
                bytes,
                b"trusted.overlay.redirect" | b"trusted.overlay.metacopy"
            ) {
                return Err(ImageError::Invalid(format!(
                    "/{} was renamed or changed by an overlay with redirect_dir or metacopy, and cannot be put into an image; mount it with redirect_dir=off,metacopy=off",
                    shown.display()
                )));
            }
            let is_opaque = bytes == OVERLAY_OPAQUE.as_bytes();
            if !is_opaque && !is_image_xattr(bytes) {
                continue;
            }
            if let Some(value) = xattr::get(full, &name).context(doing)? {
                if is_opaque {
                    // "x" only says that there may be whiteouts inside.
                    opaque = value == b"y";
                } else {
                    kept.push((bytes.to_vec(), value));
                }
            }
        }
        kept.sort_unstable();
        Ok((kept, opaque))
    }
}

fn entry(kind: Kind, path: Vec<u8>, metadata: &Metadata) -> Entry {
    Entry {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (
            metadata.mtime(),
            u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        ),
        ..Entry::bare(kind, path)
    }
}

/// An empty file that stands for a removal. Nothing of the machine's own goes into it: when a file was removed does not matter.
fn marker(path: Vec<u8>) -> Entry {
    Entry::bare(Kind::File, path)
}

/// `dir/name` as `dir/<prefix>name`.
fn sibling(path: &Path, prefix: &[u8]) -> Vec<u8> {
    let mut name = OsString::from_vec(prefix.to_vec());
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name).into_os_string().into_vec()
}
