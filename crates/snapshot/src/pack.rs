//! Writes what a view shows as a tar archive, as Docker's archive endpoint does. The files may change meanwhile.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use wharf_image::tar::{Entry, Kind, TarWriter};

use crate::error::{Context, Result};
use crate::metadata;
use crate::view::{Node, View};

/// Writes `from` under the name `name` (Docker writes `.` for the contents of a directory); what a directory holds lies below it.
///
/// # Errors
/// A file cannot be read, or `to` takes no more.
pub fn pack<W: Write>(view: &View, from: &Node, name: &OsStr, to: W) -> Result<W> {
    let mut tar = TarWriter::new(to);
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut pending = vec![(PathBuf::from(name), from.clone())];
    while let Some((path, node)) = pending.pop() {
        let doing = || format!("reading {}", path.display());
        append(view, &mut tar, &mut links, &path, &node).context(doing)?;
        if let Some(dir) = &node.dir {
            let entries = view.entries(dir).context(doing)?;
            // Last first: the stack turns them round.
            let entries = entries.into_iter().rev();
            pending.extend(
                entries
                    .filter(|(_, node)| !node.is_whiteout())
                    .map(|(name, node)| (path.join(name), node)),
            );
        }
    }
    tar.finish().context(|| "writing an archive".to_owned())
}

fn append<W: Write>(
    view: &View,
    tar: &mut TarWriter<W>,
    links: &mut HashMap<(u64, u64), Vec<u8>>,
    path: &Path,
    node: &Node,
) -> io::Result<()> {
    let stat = &node.stat;
    let mut entry = Entry::bare(Kind::File, path.as_os_str().as_bytes().to_vec());
    entry.mode = stat.st_mode & 0o7777;
    (entry.uid, entry.gid) = (stat.st_uid, stat.st_gid);
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    entry.mtime = (stat.st_mtime, nanos);
    if node.kind() != FileType::Directory && stat.st_nlink > 1 {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(first) = links.get(&inode) {
            entry.kind = Kind::HardLink;
            entry.link.clone_from(first);
            return tar.append(&entry, &mut io::empty());
        }
        links.insert(inode, entry.path.clone());
    }
    entry.kind = match node.kind() {
        FileType::RegularFile => {
            let file = match view.open(node) {
                // Removed since its directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            entry.xattrs = metadata::attributes(&file)?;
            entry.size = file.metadata()?.len();
            // The header has promised this many bytes.
            let size = entry.size;
            return tar.append(&entry, &mut file.chain(io::repeat(0)).take(size));
        }
        FileType::Directory => {
            entry.xattrs = metadata::attributes(&view.open(node)?)?;
            Kind::Directory
        }
        FileType::Symlink => {
            entry.link = view.read_link(node)?;
            Kind::Symlink
        }
        FileType::Fifo => Kind::Fifo,
        kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
            let device = stat.st_rdev;
            entry.device = (rustix::fs::major(device), rustix::fs::minor(device));
            match kind {
                FileType::BlockDevice => Kind::BlockDevice,
                _ => Kind::CharDevice,
            }
        }
        // A socket without its process is nothing, and tar has no word for it.
        _ => return Ok(()),
    };
    tar.append(&entry, &mut io::empty())
}
