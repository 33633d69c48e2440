//! Entrances for fuzzing; not part of the interface.

use std::path::Path;

use crate::manifest::Manifest;
use crate::tar_read::TarReader;
use crate::{Digest, Reference};

/// Kinds of entries, as a header has them: files, links, devices, directories, FIFOs, and what
/// describes the next entry.
const KINDS: &[u8] = b"0\x001234567xgLKSVD9";

/// Where a text of a header lies, its length, and whether it is a number.
const FIELDS: [(usize, usize); 6] = [
    (100, 8),  // mode
    (108, 8),  // uid
    (116, 8),  // gid
    (136, 12), // mtime
    (329, 8),  // major
    (337, 8),  // minor
];

/// The archive that a script stands for. The first byte says whether the rest is an archive as it
/// is. Otherwise an entry is: a byte for the kind; one for the lengths of name and link, with both;
/// one for the number of bytes of data, which follow at the end; and one that says which of
/// [`FIELDS`] comes next, with its text. Checksums are right, so that what comes after them is
/// reached.
pub fn archive(script: &[u8]) -> Vec<u8> {
    let Some((how, script)) = script.split_first() else {
        return Vec::new();
    };
    if how & 1 == 1 {
        return script.to_vec();
    }
    let mut script = script.iter().copied();
    let mut archive = Vec::new();
    while let Some(kind) = script.next() {
        let mut header = [0u8; 512];
        header[156] = KINDS[usize::from(kind) % KINDS.len()];
        let lengths = script.next().unwrap_or(0);
        put(
            &mut header[0..100],
            script.by_ref().take(usize::from(lengths & 15)),
        );
        put(
            &mut header[157..257],
            script.by_ref().take(usize::from(lengths >> 4)),
        );
        // Both magics: with a prefix (POSIX) and without (GNU).
        header[257..265].copy_from_slice(if kind & 64 == 0 {
            b"ustar\x0000"
        } else {
            b"ustar  \0"
        });
        let size = script.next().unwrap_or(0);
        let field = script.next().unwrap_or(0);
        if let Some((at, length)) = FIELDS.get(usize::from(field & 7)) {
            let text = script.by_ref().take(usize::from(field >> 4));
            put(&mut header[*at..*at + *length], text);
        }
        let data: Vec<u8> = script.by_ref().take(usize::from(size)).collect();
        let octal = format!("{:011o}", data.len());
        header[124..135].copy_from_slice(octal.as_bytes());
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(&data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn put(field: &mut [u8], text: impl Iterator<Item = u8>) {
    field.iter_mut().zip(text).for_each(|(to, byte)| *to = byte);
}

/// An archive is read, and unpacked as a layer and as what is put into a container, into
/// directories below `place`.
///
/// # Panics
/// Something outside of these directories was changed.
pub fn tar(script: &[u8], place: &Path) {
    let bytes = archive(script);
    let mut reader = TarReader::new(bytes.as_slice());
    let mut buffer = [0; 100];
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(
            entry.segments.iter().all(|(at, length)| {
                at.checked_add(*length).is_some_and(|end| end <= entry.size)
            })
        );
        while reader.read_data(&mut buffer).is_ok_and(|n| n > 0) {}
    }
    let Ok(root) = tempfile::tempdir_in(place) else {
        return;
    };
    let outside = root.path().join("outside");
    let layer = root.path().join("layer");
    let made = std::fs::write(&outside, "outside").and_then(|()| std::fs::create_dir(&layer));
    if made.is_err() {
        return;
    }
    // Every outcome is right, as long as it stays inside.
    let _ = crate::unpack::unpack(bytes.as_slice(), &layer);
    assert_eq!(
        std::fs::read(&outside).ok().as_deref(),
        Some(&b"outside"[..])
    );
    assert_eq!(
        std::fs::read_dir(root.path()).map(Iterator::count).ok(),
        Some(2)
    );
}

/// A manifest in each of its media types, an image's configuration, a digest, and a reference,
/// which is the same when it is written and read again.
///
/// # Panics
/// It is not.
pub fn manifest(bytes: &[u8]) {
    for media_type in [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        if let Ok(manifest) = Manifest::parse(media_type, bytes) {
            let _ = (manifest.image_config(), manifest.blobs().count());
            let _ = (manifest.children().len(), manifest.for_this_machine());
        }
    }
    let _ = oci_spec::image::ImageConfiguration::from_reader(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Digest::parse(text);
        if let Ok(reference) = Reference::parse(text) {
            assert_eq!(
                Reference::parse(&reference.familiar()).ok(),
                Some(reference)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the target would try nothing but checksums.
    #[test]
    fn a_script_becomes_an_archive_that_can_be_read() {
        let mut script = vec![0];
        // A file `a/b` with five bytes and the mode 0755, a link `l` to `../x`, and a PAX record
        // with a longer name for a directory.
        script.extend(b"\x00\x03a/b\x05\x30755hello");
        script.extend(b"\x03\x41l../x\x00\x07");
        script.extend(b"\x09\x00\x0c\x0712 path=x/y\n");
        script.extend(b"\x06\x01d\x00\x07");
        let bytes = archive(&script);
        let mut reader = TarReader::new(bytes.as_slice());
        let mut seen = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            seen.push((
                entry.path.clone(),
                entry.link.clone(),
                entry.size,
                entry.mode,
            ));
        }
        assert_eq!(
            seen,
            [
                (b"a/b".to_vec(), Vec::new(), 5, 0o755),
                (b"l".to_vec(), b"../x".to_vec(), 0, 0),
                (b"x/y".to_vec(), Vec::new(), 0, 0),
            ]
        );
        let place = tempfile::tempdir().unwrap();
        tar(&script, place.path());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_found_stays_mended() {
        manifest(b"Fd/d");
    }
}
