//! What the tests of the store share: pictures of directory trees, and images made by hand.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use wharf_image::{Digest, Image, ImageStore, Layer};

/// A store in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

pub(crate) const HOST: &str = "127.0.0.1:7400";

pub(crate) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    store.set_registry_hosts(&[HOST.to_owned(), "localhost:7400".to_owned()]);
    Fixture { dir, store }
}

impl Fixture {
    pub(crate) fn reopen(self) -> Fixture {
        let Fixture { dir, store } = self;
        drop(store);
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        store.set_registry_hosts(&[HOST.to_owned()]);
        Fixture { dir, store }
    }

    /// A layer with one file.
    pub(crate) fn layer(&self, name: &str, content: &str) -> Layer {
        let upper = self.store.scratch_dir().unwrap();
        let path = upper.join(name);
        std::fs::write(&path, content).unwrap();
        set_mtime(&path, 1_700_000_000, 0);
        self.store.commit_upper(&upper).unwrap()
    }

    pub(crate) fn image(&self, name: &str, content: &str) -> Image {
        let layer = self.layer("file", content);
        self.store
            .create(config(), &[layer], &[name.to_owned()])
            .unwrap()
    }

    /// Blobs and unpacked layers on disk.
    pub(crate) fn files(&self) -> (usize, usize) {
        let count = |name: &str| {
            std::fs::read_dir(self.dir.path().join("images").join(name))
                .unwrap()
                // Is always there.
                .filter(|entry| entry.as_ref().unwrap().file_name() != "mount-points")
                .count()
        };
        (count("blobs/sha256"), count("layers"))
    }

    pub(crate) fn temporaries(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("images/tmp"))
            .unwrap()
            .count()
    }

    /// Stores bytes the way a client of the registry does.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let id = self.store.begin_upload().unwrap();
        let (path, _) = self.store.upload(&id).unwrap();
        std::fs::File::options()
            .append(true)
            .open(path)
            .unwrap()
            .write_all(bytes)
            .unwrap();
        self.store.finish_upload(&id, &digest).unwrap();
        digest
    }
}

pub(crate) fn config() -> oci_spec::image::ImageConfiguration {
    serde_json::from_value(serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Labels": {"a": "1", "b": "2", "c": "3", "d": "4"}, "ExposedPorts": {"80/tcp": {}, "81/tcp": {}, "82/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": []},
    }))
    .unwrap()
}

pub(crate) fn set_mtime(path: &Path, seconds: i64, nanos: u32) {
    let time = rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        },
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// Everything that an image keeps of a tree, by path. The root is in it as `""`, without its time.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut nodes = BTreeMap::new();
    let mut first_of = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let m = std::fs::symlink_metadata(&full).unwrap();
        let t = m.file_type();
        let what = if t.is_dir() {
            let mut names: Vec<_> = std::fs::read_dir(&full)
                .unwrap()
                .map(|e| path.join(e.unwrap().file_name()))
                .collect();
            // Popped in order, so that the first name of an inode is the same everywhere.
            names.sort_by(|a, b| b.cmp(a));
            pending.extend(names);
            "dir".to_owned()
        } else if t.is_symlink() {
            format!("-> {:?}", std::fs::read_link(&full).unwrap())
        } else if t.is_file() {
            format!("file {}", Digest::of(&std::fs::read(&full).unwrap()))
        } else if t.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {} {}", t.is_block_device(), m.rdev())
        };
        let mut xattrs: Vec<_> = xattr::list(&full)
            .unwrap()
            .map(|n| (n.clone(), xattr::get(&full, &n).unwrap()))
            .collect();
        xattrs.sort();
        let group = if t.is_dir() {
            path.clone()
        } else {
            first_of
                .entry((m.dev(), m.ino()))
                .or_insert(path.clone())
                .clone()
        };
        let time = if path.as_os_str().is_empty() || what == "device false 0" {
            (0, 0)
        } else {
            (m.mtime(), m.mtime_nsec())
        };
        // A whiteout is only a name.
        let (owner, group) = if what == "device false 0" {
            ((0, 0, 0), path.clone())
        } else {
            ((m.mode() & 0o7777, m.uid(), m.gid()), group)
        };
        nodes.insert(
            path,
            format!("{what} {owner:?} {time:?} {xattrs:?} same as {group:?}"),
        );
    }
    nodes
}

/// Sends a layer's blob to another store and unpacks it there.
pub(crate) fn transplant(from: &Fixture, layer: &Layer, to: &Fixture) -> PathBuf {
    let (path, _) = from.store.blob(&layer.digest).unwrap();
    let digest = to.upload(&std::fs::read(path).unwrap());
    assert_eq!(digest, layer.digest);
    to.store
        .lower_dirs(std::slice::from_ref(layer))
        .unwrap()
        .remove(0)
}

/// A layer description for a tar as it is.
pub(crate) fn plain_layer(fixture: &Fixture, tar: &[u8]) -> Layer {
    let digest = fixture.upload(tar);
    Layer {
        diff_id: digest.clone(),
        digest,
        size: tar.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
    }
}

/// Builds archives that no honest program writes.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn add(mut self, kind: u8, path: &[u8], link: &[u8], data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        {
            let old = header.as_old_mut();
            old.name[..path.len()].copy_from_slice(path);
            old.linkname[..link.len()].copy_from_slice(link);
            old.linkflag = [kind];
        }
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        if kind == b'3' {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    pub(crate) fn dir(self, path: &str) -> Self {
        self.add(b'5', path.as_bytes(), b"", b"")
    }
    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        self.add(b'0', path.as_bytes(), b"", data.as_bytes())
    }
    pub(crate) fn symlink(self, path: &str, to: &str) -> Self {
        self.add(b'2', path.as_bytes(), to.as_bytes(), b"")
    }
    pub(crate) fn link(self, path: &str, to: &str) -> Self {
        self.add(b'1', path.as_bytes(), to.as_bytes(), b"")
    }
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.add(b'x', b"PaxHeaders/x", b"", &body)
    }
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(name)
}
