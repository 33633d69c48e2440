//! ADD of a local tar archive (plain, gzip, zstd): unpacked into a tree. Whatever the archive says, nothing is written outside the tree.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType};
use tar::EntryType;

use crate::tree::{self, Attributes, Stream, Tree};
use crate::trouble::{Context, Result, Trouble};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Gzip,
    Zstd,
}

/// Whether a file is a tar archive, by its content, as Docker decides. xz and bzip2 archives, which Docker would unpack, are refused.
pub(crate) fn sniff(mut file: File) -> Result<Option<Format>> {
    let mut head = Vec::new();
    file.by_ref()
        .take(512)
        .read_to_end(&mut head)
        .context(|| "reading an ADD source".to_owned())?;
    for (magic, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh", "bzip2")] {
        if head.starts_with(magic) {
            return Err(Trouble::Refused(format!(
                "ADD of {name} archives is not supported yet: use gzip or zstd, or COPY it and unpack it with RUN"
            )));
        }
    }
    let format = match head.get(..4) {
        Some([0x1f, 0x8b, ..]) => Format::Gzip,
        Some([0x28, 0xb5, 0x2f, 0xfd]) => Format::Zstd,
        _ => return Ok(is_tar(&head).then_some(Format::Plain)),
    };
    // A compressed file that holds no archive is copied as it is.
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
        .context(|| "reading an ADD source".to_owned())?;
    let mut inner = Vec::new();
    match reader(file, format).and_then(|r| r.take(512).read_to_end(&mut inner)) {
        Ok(_) => Ok(is_tar(&inner).then_some(format)),
        Err(_) => Ok(None),
    }
}

/// A block whose checksum is right (tar(5)).
fn is_tar(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; 512]>::try_from(block) else {
        return false;
    };
    let stored = std::str::from_utf8(&block[148..156])
        .ok()
        .map(|s| s.trim_matches([' ', '\0']))
        .and_then(|s| u32::from_str_radix(s, 8).ok());
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(i, b)| match (148..156).contains(&i) {
            true => u32::from(b' '),
            false => u32::from(*b),
        })
        .sum();
    stored == Some(sum) && block[0] != 0
}

fn reader(file: File, format: Format) -> std::io::Result<Box<dyn Read>> {
    let file = BufReader::new(file);
    Ok(match format {
        Format::Plain => Box::new(file),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Format::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
    })
}

/// Unpacks into `dest`, which exists. Owners are those of the archive unless given.
pub(crate) fn unpack(
    file: File,
    format: Format,
    target: &Tree,
    dest: &Path,
    owner: Option<(u32, u32)>,
) -> Result<()> {
    let broken = || "the archive of ADD cannot be read".to_owned();
    let mut archive = tar::Archive::new(reader(file, format).context(broken)?);
    let mut directories: Vec<(PathBuf, Attributes)> = Vec::new();
    for entry in archive.entries().context(broken)? {
        let mut entry = entry.context(broken)?;
        let inside = entry.path().context(broken)?.into_owned();
        let Some(path) = below(dest, &inside) else {
            return Err(Trouble::Refused(format!(
                "the archive of ADD has an entry that leads out of it: {}",
                inside.display()
            )));
        };
        let doing = || format!("unpacking {}", inside.display());
        let kind = entry.header().entry_type();
        let attributes = attributes(&mut entry, owner).context(broken)?;
        if kind == EntryType::Directory {
            target.walk(&path, Some((0, 0))).context(doing)?;
            directories.push((path, attributes));
            continue;
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let real = target.walk(parent, Some((0, 0))).context(doing)?.real;
        let dir = target.dir(&real).context(doing)?;
        if !tree::make_room(&dir, name).context(doing)? {
            return Err(Trouble::Refused(format!(
                "cannot replace the directory {} with a file",
                path.display()
            )));
        }
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                tree::put_file(&dir, name, &mut Stream(entry), &attributes).context(doing)?;
            }
            EntryType::Symlink => {
                let to = link_name(&entry).context(broken)?;
                tree::put_link(&dir, name, &to, &attributes).context(doing)?;
            }
            EntryType::Link => {
                let to = PathBuf::from(link_name(&entry).context(broken)?);
                let first = below(dest, &to).ok_or_else(|| {
                    Trouble::Refused(format!(
                        "the archive of ADD has a hard link that leads out of it: {}",
                        to.display()
                    ))
                })?;
                let (Some(first_dir), Some(first_name)) = (first.parent(), first.file_name())
                else {
                    continue;
                };
                let first_dir = target.dir(first_dir).context(doing)?;
                rustix::fs::linkat(first_dir, first_name, &dir, name, AtFlags::empty())
                    .context(doing)?;
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let (kind, device) = device(&entry, kind);
                tree::put_special(&dir, name, kind, device, &attributes).context(doing)?;
            }
            _ => {
                return Err(Trouble::Refused(format!(
                    "the archive of ADD has an entry of an unknown kind: {}",
                    inside.display()
                )));
            }
        }
    }
    for (path, attributes) in directories.into_iter().rev() {
        target
            .dir(&path)
            .and_then(|dir| tree::finish_dir(dir, &attributes))
            .context(|| format!("unpacking {}", path.display()))?;
    }
    Ok(())
}

/// `None` if the path has a `..`.
fn below(dest: &Path, inside: &Path) -> Option<PathBuf> {
    let mut path = dest.to_owned();
    for part in inside.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return None,
            _ => {}
        }
    }
    Some(path)
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> std::io::Result<OsString> {
    match entry.link_name_bytes() {
        Some(name) => Ok(OsStr::from_bytes(&name).to_owned()),
        None => Err(std::io::Error::other("a link without a target")),
    }
}

fn device<R: Read>(entry: &tar::Entry<'_, R>, kind: EntryType) -> (FileType, u64) {
    let number = |n: std::io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
    let device = rustix::fs::makedev(
        number(entry.header().device_major()),
        number(entry.header().device_minor()),
    );
    match kind {
        EntryType::Char => (FileType::CharacterDevice, device),
        EntryType::Block => (FileType::BlockDevice, device),
        _ => (FileType::Fifo, 0),
    }
}

fn attributes<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    owner: Option<(u32, u32)>,
) -> std::io::Result<Attributes> {
    let mut xattrs = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                // Overlay's own would change what the layer means.
                if !name.starts_with(b"trusted.overlay.") && name != b"security.selinux" {
                    xattrs.push((
                        OsStr::from_bytes(name).to_owned(),
                        extension.value_bytes().to_owned(),
                    ));
                }
            }
        }
    }
    let header = entry.header();
    let number =
        |n: u64| u32::try_from(n).map_err(|_| std::io::Error::other("an owner is too large"));
    let (uid, gid) = match owner {
        Some(o) => o,
        None => (number(header.uid()?)?, number(header.gid()?)?),
    };
    Ok(Attributes {
        mode: header.mode()?,
        uid,
        gid,
        mtime: (i64::try_from(header.mtime()?).unwrap_or(0), 0),
        xattrs,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().expect("tar")
    }

    /// The name goes into the header as it is, since a hostile one is wanted.
    fn add(
        builder: &mut tar::Builder<Vec<u8>>,
        kind: EntryType,
        name: &str,
        link: &str,
        text: &str,
    ) {
        let mut header = tar::Header::new_gnu();
        let raw = header.as_gnu_mut().expect("gnu");
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1000);
        header.set_size(text.len() as u64);
        header.set_cksum();
        builder.append(&header, text.as_bytes()).expect("append");
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("write");
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).expect("seek");
        file
    }

    fn into(dir: &Path, bytes: &[u8]) -> Result<()> {
        let format = sniff(file(bytes))?.expect("an archive");
        let tree = Tree::of_host(dir).expect("tree");
        tree.walk(Path::new("/to"), Some((0, 0))).expect("dest");
        unpack(file(bytes), format, &tree, Path::new("/to"), None)
    }

    #[test]
    fn formats_are_told_by_content() {
        let plain = archive(|b| add(b, EntryType::Regular, "f", "", "text"));
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).expect("gz");
        let mut gz_text = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz_text.write_all(b"no archive").expect("gz");
        let zst = zstd::encode_all(&plain[..], 1).expect("zstd");
        let gz = gz.finish().expect("gz");
        for (bytes, want) in [
            (&plain, Some(Format::Plain)),
            (&gz, Some(Format::Gzip)),
            (&zst, Some(Format::Zstd)),
            (&gz_text.finish().expect("gz"), None),
            (&b"plain text".to_vec(), None),
            (&vec![0; 1024], None),
        ] {
            assert_eq!(sniff(file(bytes)).expect("sniff"), want);
        }
        assert!(sniff(file(b"\xfd7zXZ\0rest")).is_err());
        let dir = tempfile::tempdir().expect("dir");
        into(dir.path(), &gz).expect("unpacked");
        assert_eq!(
            std::fs::read(dir.path().join("to/f")).expect("file"),
            b"text"
        );
    }

    #[test]
    fn kinds_and_attributes() {
        let dir = tempfile::tempdir().expect("dir");
        let bytes = archive(|b| {
            add(b, EntryType::Directory, "d/", "", "");
            add(b, EntryType::Regular, "d/f", "", "text");
            add(b, EntryType::Link, "h", "d/f", "");
            add(b, EntryType::Symlink, "s", "/etc/passwd", "");
            add(b, EntryType::Fifo, "p", "", "");
        });
        into(dir.path(), &bytes).expect("unpacked");
        let meta = |p: &str| std::fs::symlink_metadata(dir.path().join("to").join(p)).expect(p);
        assert_eq!(
            (meta("d").uid(), meta("d").gid(), meta("d").mtime()),
            (5, 6, 1000)
        );
        assert_eq!(meta("d/f").ino(), meta("h").ino());
        assert!(meta("s").is_symlink());
        assert_eq!(meta("p").mode() & 0o170000, 0o010000);
    }

    #[test]
    fn a_hostile_archive_stays_inside() {
        let outer = tempfile::tempdir().expect("dir");
        let root = outer.path().join("root");
        std::fs::create_dir(&root).expect("root");
        std::fs::write(outer.path().join("victim"), "safe").expect("victim");
        symlink(outer.path(), root.join("up")).expect("link");
        for bytes in [
            archive(|b| add(b, EntryType::Regular, "../../victim", "", "evil")),
            archive(|b| add(b, EntryType::Link, "h", "../../victim", "")),
        ] {
            assert!(into(&root, &bytes).is_err());
        }
        let through = archive(|b| {
            add(b, EntryType::Symlink, "l", "../..", "");
            add(b, EntryType::Regular, "l/victim", "", "evil");
            add(b, EntryType::Symlink, "v", "../../victim", "");
            add(b, EntryType::Regular, "v", "", "evil");
        });
        into(&root, &through).expect("unpacked inside");
        assert_eq!(std::fs::read(root.join("victim")).expect("inside"), b"evil");
        assert_eq!(
            std::fs::read(outer.path().join("victim")).expect("outside"),
            b"safe"
        );
    }
}
