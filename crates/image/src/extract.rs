//! Extracts an archive into a tree that is there already: a container's, maybe one that runs and changes names meanwhile.
//!
//! The same walk as for layers ([`crate::unpack`]), so nothing outside the root can be reached; but names that begin with `.wh.` are files.

use std::io::Read;
use std::os::fd::OwnedFd;

use crate::error::Result;
use crate::layers::decompress;
use crate::tar_read::bad;
use crate::unpack::{Meaning, Unpacker};

/// Where an archive goes.
#[derive(Debug)]
pub struct Extraction {
    /// The tree's root directory; links are followed as if it were `/`.
    pub root: OwnedFd,
    /// The directory in it that is the archive's root; made if it is missing.
    pub into: Vec<u8>,
    /// Most bytes, uncompressed.
    pub max_bytes: u64,
}

/// Extracts `archive` (plain, gzip or zstd). Owners are set as the archive says. What was made before an error stays. The archive is read to
/// its end whatever happens, so that who sends it can hear of it.
///
/// # Errors
/// [`ImageError::Invalid`](crate::ImageError::Invalid) for a bad archive or one that does not fit the tree.
pub fn extract(archive: impl Read, to: Extraction) -> Result<()> {
    extract_as(archive, to, 0)
}

/// [`extract`] into a tree in which user and group 0 of the archive are `root`, 1 the one after it, and so on: a container's that runs.
///
/// # Errors
/// As [`extract`].
pub fn extract_as(mut archive: impl Read, to: Extraction, root: u32) -> Result<()> {
    let max_bytes = to.max_bytes;
    let extracted = extract_from(&mut archive, to, root);
    // What comes after the archive's end, or after what was wrong with it, is nobody's.
    let _ = std::io::copy(&mut archive.take(max_bytes), &mut std::io::sink());
    extracted
}

fn extract_from(archive: impl Read, to: Extraction, root: u32) -> Result<()> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in to.into.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(bad("the directory to extract to has '..' in its path")),
            part => parts.push(part),
        }
    }
    let base = parts.join(&b'/');
    let unpacker = Unpacker::new(to.root, base.clone(), Meaning::Files, root);
    unpacker.make_dirs(&base)?;
    let rest = unpacker.run(decompress(archive)?.take(to.max_bytes))?;
    if rest.limit() == 0 {
        return Err(bad(format!("it has more than {} bytes", to.max_bytes)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::tar_read::{Entry, Kind};
    use crate::tar_write::TarWriter;

    fn archive(entries: &[(Kind, &str, &str)]) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        for (kind, path, content) in entries {
            let mut entry = Entry::bare(*kind, path.as_bytes().to_vec());
            entry.mode = 0o755;
            match kind {
                Kind::File => entry.size = content.len() as u64,
                _ => entry.link = content.as_bytes().to_vec(),
            }
            tar.append(&entry, &mut content.as_bytes()).unwrap();
        }
        tar.finish().unwrap()
    }

    fn extract_to(root: &Path, into: &str, tar: &[u8]) -> Result<()> {
        let root = rustix::fs::open(
            root,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let into = into.as_bytes().to_vec();
        let max_bytes = 1 << 20;
        extract(
            tar,
            Extraction {
                root,
                into,
                max_bytes,
            },
        )
    }

    #[test]
    fn files_replace_files_and_parents_are_made() {
        let root = tempfile::tempdir().unwrap();
        let tar = archive(&[
            (Kind::File, "deep/er/file", "new"),
            (Kind::File, ".wh.name", "a file like any other"),
            (Kind::HardLink, "same", "deep/er/file"),
        ]);
        fs::create_dir_all(root.path().join("etc/deep/er")).unwrap();
        fs::write(root.path().join("etc/deep/er/file"), "old").unwrap();
        fs::write(root.path().join("etc/deep/kept"), "kept").unwrap();
        extract_to(root.path(), "/etc/", &tar).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("etc").join(name)).unwrap();
        assert_eq!(read("deep/er/file"), "new");
        assert_eq!(read("deep/kept"), "kept");
        assert_eq!(read(".wh.name"), "a file like any other");
        assert_eq!(read("same"), "new");
    }

    #[test]
    fn no_name_and_no_link_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("etc")).unwrap();
        symlink("../../../../../../..", root.path().join("up")).unwrap();
        // A link to nowhere, as seen from inside.
        extract_to(root.path(), "/etc", &archive(&[(Kind::File, "file", "x")])).unwrap_err();
        extract_to(root.path(), "/up/up", &archive(&[(Kind::File, "f", "x")])).unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(root.path().join("f").exists());
        for hostile in [
            archive(&[(Kind::File, "../file", "x")]),
            archive(&[(Kind::HardLink, "shadow", "/../../../../etc/shadow")]),
        ] {
            extract_to(root.path(), "/", &hostile).unwrap_err();
        }
        let there = outside.path().to_str().unwrap();
        let by_link = archive(&[(Kind::Symlink, "link", there), (Kind::File, "link/f", "x")]);
        extract_to(root.path(), "/", &by_link).unwrap_err();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_kernels_own_directories_are_left_alone() {
        let tar = archive(&[(Kind::File, "x", "")]);
        let error = extract_to(Path::new("/"), "/proc/sys", &tar).unwrap_err();
        assert!(error.to_string().contains("proc/sys"), "{error}");
    }

    #[test]
    fn more_than_was_allowed_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let big = "x".repeat(2 << 20);
        extract_to(root.path(), "/", &archive(&[(Kind::File, "big", &big)])).unwrap_err();
    }
}
