//! What the kernel's overlay shows and what a view of the same layers shows is the same, whatever was done to them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{AtFlags, Mode, OFlags};
use wharf_sandbox::overlay;
use wharf_snapshot::{Allowance, Form, Layer, View, copy, prune};

/// Something done to a tree, at one of a few names that often meet.
#[derive(Debug, Clone)]
enum Act {
    Write(u8, u16),
    Grow(u8),
    Directory(u8),
    Link(u8, u8),
    HardLink(u8, u8),
    Remove(u8),
    /// Removed, and made anew as a directory with one file.
    Renew(u8, u16),
    Move(u8, u8),
    Mode(u8, u32),
    Fifo(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let name = 0..NAMES;
    let act = prop_oneof![
        4 => (name.clone(), any::<u16>()).prop_map(|(n, s)| Act::Write(n, s)),
        1 => name.clone().prop_map(Act::Grow),
        4 => name.clone().prop_map(Act::Directory),
        1 => (name.clone(), name.clone()).prop_map(|(a, b)| Act::Link(a, b)),
        1 => (name.clone(), name.clone()).prop_map(|(a, b)| Act::HardLink(a, b)),
        3 => name.clone().prop_map(Act::Remove),
        3 => (name.clone(), any::<u16>()).prop_map(|(n, s)| Act::Renew(n, s)),
        2 => (name.clone(), name.clone()).prop_map(|(a, b)| Act::Move(a, b)),
        1 => (name.clone(), 0..0o1000u32).prop_map(|(n, m)| Act::Mode(n, m | 0o600)),
        1 => name.prop_map(Act::Fifo),
    ];
    prop::collection::vec(act, 0..30)
}

/// Three, nine below them, and some below those: few, so that acts meet.
const NAMES: u8 = 18;

/// The path of that number.
fn path(n: u8) -> PathBuf {
    let names = ["a", "b", "c"];
    let mut path = PathBuf::new();
    let mut n = usize::from(n);
    loop {
        path.push(names[n % 3]);
        n /= 3;
        if n == 0 {
            return path;
        }
        n -= 1;
    }
}

/// Not waiting for a pipe's other end.
fn open(root: &Path, n: u8) -> std::io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let flags = OFlags::NONBLOCK.bits() as i32;
    options.custom_flags(flags).open(root.join(path(n)))
}

/// Does what can be done; what cannot is left.
fn act(root: &Path, acts: &[Act]) {
    for act in acts {
        let _ = match act {
            Act::Write(n, size) => open(root, *n).and_then(|mut file| {
                file.set_len(0)?;
                file.write_all(&vec![b'x'; usize::from(*size)])
            }),
            Act::Grow(n) => open(root, *n).and_then(|file| file.set_len(1 << 20)),
            Act::Directory(n) => fs::create_dir(root.join(path(*n))),
            Act::Link(a, b) => symlink(path(*a), root.join(path(*b))),
            Act::HardLink(a, b) => fs::hard_link(root.join(path(*a)), root.join(path(*b))),
            Act::Remove(n) => match fs::symlink_metadata(root.join(path(*n))) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(root.join(path(*n))),
                _ => fs::remove_file(root.join(path(*n))),
            },
            Act::Renew(n, size) => {
                let at = root.join(path(*n));
                let _ = fs::remove_dir_all(&at).or_else(|_| fs::remove_file(&at));
                let content = vec![b'y'; usize::from(*size)];
                fs::create_dir(&at).and_then(|()| fs::write(at.join("a"), content))
            }
            // Directories of lower layers cannot be renamed without redirect_dir.
            Act::Move(a, b) => fs::rename(root.join(path(*a)), root.join(path(*b))),
            Act::Mode(n, mode) => match fs::symlink_metadata(root.join(path(*n))) {
                Ok(found) if !found.is_symlink() => fs::set_permissions(
                    root.join(path(*n)),
                    std::os::unix::fs::PermissionsExt::from_mode(*mode),
                ),
                _ => Ok(()),
            },
            Act::Fifo(n) => {
                let (at, kind) = (root.join(path(*n)), rustix::fs::FileType::Fifo);
                rustix::fs::mknodat(rustix::fs::CWD, &at, kind, Mode::RWXU, 0).map_err(Into::into)
            }
        };
    }
}

type Listing = BTreeMap<PathBuf, (u32, i64, u64, Vec<u8>)>;

/// Mode, time, size and content of everything below.
fn list(root: &Path) -> Listing {
    let mut found = Listing::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(root.join(&at)).unwrap() {
            let at = at.join(entry.unwrap().file_name());
            let full = root.join(&at);
            let stat = fs::symlink_metadata(&full).unwrap();
            let (size, content) = if stat.is_dir() {
                pending.push(at.clone());
                (0, Vec::new())
            } else if stat.is_symlink() {
                let target = fs::read_link(&full).unwrap();
                (0, target.into_os_string().into_encoded_bytes())
            } else if stat.is_file() {
                (stat.len(), fs::read(&full).unwrap())
            } else {
                (0, Vec::new())
            };
            let time = stat.mtime() * 1_000_000_000 + stat.mtime_nsec();
            found.insert(at, (stat.mode(), time, size, content));
        }
    }
    found
}

fn of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/", fd.as_raw_fd()).into()
}

fn everything() -> Allowance {
    Allowance {
        bytes: u64::MAX,
        refusal: String::new(),
    }
}

/// Layers made one on the other by the kernel, topmost first.
fn stack(dir: &Path, rounds: &[Vec<Act>]) -> Vec<PathBuf> {
    let mut layers: Vec<PathBuf> = Vec::new();
    for (n, acts) in rounds.iter().enumerate() {
        let (upper, work) = (dir.join(format!("upper{n}")), dir.join(format!("work{n}")));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let lower: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        let merged = overlay::detached(&lower, Some((&upper, &work))).unwrap();
        act(&of(&merged), acts);
        layers.insert(0, upper);
    }
    layers
}

fn shown(layers: &[PathBuf]) -> Listing {
    let lower: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
    list(&of(&overlay::detached(&lower, None).unwrap()))
}

fn view(layers: &[PathBuf], still_from: usize) -> View {
    let layers: Vec<Layer> = layers
        .iter()
        .enumerate()
        .map(|(n, path)| Layer {
            path: path.clone(),
            still: n >= still_from,
        })
        .collect();
    View::new(&layers).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_is_what_the_kernel_shows(rounds in prop::collection::vec(acts(), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let layers = stack(dir.path(), &rounds);
        let expected = shown(&layers);
        let to = dir.path().join("copy");
        fs::create_dir(&to).unwrap();
        let view = view(&layers, 1);
        let copied = copy(&view, &view.root().unwrap(), &to, Form::Tree, &everything()).unwrap();
        prop_assert_eq!(list(&to), expected);
        // Holes are not filled.
        prop_assert!(copied.bytes <= 4 * u64::from(NAMES) * 66_000);
    }

    #[test]
    fn a_copied_layer_over_the_rest_shows_the_same(
        rounds in prop::collection::vec(acts(), 2..5), copied in 1..4usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let layers = stack(dir.path(), &rounds);
        let copied = copied.min(layers.len() - 1);
        let expected = shown(&layers);
        let to = dir.path().join("copy");
        fs::create_dir(&to).unwrap();
        let view = self::view(&layers[..copied], 1);
        let base = self::view(&layers[copied..], 0);
        copy(&view, &view.root().unwrap(), &to, Form::Layer(&base), &everything()).unwrap();
        let mut restored = vec![to];
        restored.extend_from_slice(&layers[copied..]);
        prop_assert_eq!(shown(&restored), expected);
    }
}

#[test]
fn links_lead_nowhere_outside_and_mounts_are_in_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (upper, lower, volume) = (make("upper"), make("lower"), make("volume"));
    fs::create_dir_all(lower.join("app/data/below")).unwrap();
    fs::write(lower.join("app/data/hidden"), "").unwrap();
    fs::write(volume.join("shown"), "").unwrap();
    symlink("/app/../../../app", upper.join("link")).unwrap();
    symlink(dir.path(), upper.join("out")).unwrap();
    symlink("loop", upper.join("loop")).unwrap();
    let mut view = view(&[upper, lower], 1);
    let layers = [Layer {
        path: volume,
        still: false,
    }];
    view.mount(Path::new("/link/data"), &layers).unwrap();
    let find = |path: &str| view.find(Path::new(path), true).unwrap();
    let names = |path: &str| -> Vec<_> {
        let dir = find(path).unwrap().dir.unwrap();
        let entries = view.entries(&dir).unwrap().into_iter();
        entries.map(|(name, _)| name).collect()
    };
    assert_eq!(names("/app/data"), ["shown"]);
    assert_eq!(names("link/data/."), ["shown"]);
    assert_eq!(names("/link/.."), ["app", "link", "loop", "out"]);
    assert!(find("/out").is_none());
    assert!(find("/app/data/shown/x").is_none());
    assert!(find("/app/data/hidden").is_none());
    assert!(view.find(Path::new("/loop"), true).is_err());
    assert!(view.find(Path::new("/loop"), false).unwrap().is_some());
}

#[test]
fn what_never_changes_is_shared_and_what_was_written_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (upper, lower, to) = (make("upper"), make("lower"), make("to"));
    fs::write(lower.join("image"), [1; 5000]).unwrap();
    fs::write(upper.join("own"), [2; 3000]).unwrap();
    fs::hard_link(upper.join("own"), upper.join("twin")).unwrap();
    let view = view(&[upper.clone(), lower.clone()], 1);
    let root = view.root().unwrap();
    let copied = copy(&view, &root, &to, Form::Tree, &everything()).unwrap();
    assert_eq!((copied.bytes, copied.linked), (3000, 5000));
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(to.join("image")), inode(lower.join("image")));
    assert_ne!(inode(to.join("own")), inode(upper.join("own")));
    assert_eq!(inode(to.join("own")), inode(to.join("twin")));

    let allowance = Allowance {
        bytes: 2999,
        refusal: "too much".to_owned(),
    };
    let error = copy(&view, &root, &make("less"), Form::Tree, &allowance).unwrap_err();
    assert_eq!(error.to_string(), "too much");
}

#[test]
fn empty_mount_points_are_taken_out_of_a_layer() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (layer, image) = (make("layer"), make("image"));
    make("image/app");
    symlink(
        "../run/dns/resolv.conf",
        make("image/etc").join("resolv.conf"),
    )
    .unwrap();
    for name in ["proc", "app/volume/inner", "run/dns", "full/volume"] {
        make(&format!("layer/{name}"));
    }
    fs::write(layer.join("run/dns/resolv.conf"), "").unwrap();
    fs::write(layer.join("full/volume/file"), "").unwrap();
    let points = [
        "/proc",
        "/app/volume/inner",
        "/etc/resolv.conf",
        "/full/volume",
        "/never/made",
    ];
    prune(&layer, &view(&[image], 0), &points.map(PathBuf::from)).unwrap();
    let mut left: Vec<_> = list(&layer).into_keys().collect();
    left.sort();
    let expected = ["app", "full", "full/volume", "full/volume/file"];
    assert_eq!(left, expected.map(PathBuf::from));
}

#[test]
fn attributes_owners_and_capabilities_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("ping"), "x").unwrap();
    std::os::unix::fs::chown(from.join("ping"), Some(7), Some(8)).unwrap();
    fs::set_permissions(
        from.join("ping"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4711),
    )
    .unwrap();
    let capability =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    xattr::set(from.join("ping"), "security.capability", capability).unwrap();
    xattr::set(&from, "user.of_the_root", b"1").unwrap();
    fs::set_permissions(&from, std::os::unix::fs::PermissionsExt::from_mode(0o2751)).unwrap();
    std::os::unix::fs::chown(&from, Some(5), Some(6)).unwrap();
    let view = view(std::slice::from_ref(&from), 9);
    copy(&view, &view.root().unwrap(), &to, Form::Tree, &everything()).unwrap();
    let stat = fs::metadata(to.join("ping")).unwrap();
    assert_eq!(
        (stat.uid(), stat.gid(), stat.mode() & 0o7777),
        (7, 8, 0o4711)
    );
    let kept = xattr::get(to.join("ping"), "security.capability").unwrap();
    assert_eq!(kept.as_deref(), Some(capability.as_slice()));
    let stat = fs::metadata(&to).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (5, 6));
    assert!(xattr::get(&to, "user.of_the_root").unwrap().is_some());
}

#[test]
fn an_archive_is_what_tar_reads() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("d/e")).unwrap();
    fs::write(from.join("d/e/file"), "content").unwrap();
    fs::hard_link(from.join("d/e/file"), from.join("d/same")).unwrap();
    symlink("e/file", from.join("d/link")).unwrap();
    let view = view(std::slice::from_ref(&from), 9);
    for (name, below, asked) in [("d", "d/", "/d"), (".", "", "/d/.")] {
        let node = view.find(Path::new(asked), true).unwrap().unwrap();
        let tar = wharf_snapshot::pack(&view, &node, name.as_ref(), Vec::new()).unwrap();
        let mut reader = wharf_image::tar::TarReader::new(tar.as_slice());
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(String::from_utf8(entry.path).unwrap());
        }
        // `docker cp` puts another name in place of the first one.
        let expected = ["/", "/e/", "/e/file", "/link", "/same"].map(|n| format!("{name}{n}"));
        assert_eq!(names, expected);
        let to = dir.path().join(format!("to{}", below.len()));
        fs::create_dir(&to).unwrap();
        let root = rustix::fs::open(&to, OFlags::PATH, Mode::empty()).unwrap();
        let extraction = wharf_image::Extraction {
            root,
            into: Vec::new(),
            max_bytes: 1 << 20,
        };
        wharf_image::extract(tar.as_slice(), extraction).unwrap();
        let here = to.join(below);
        assert_eq!(fs::read_to_string(here.join("link")).unwrap(), "content");
        let same = rustix::fs::statat(rustix::fs::CWD, here.join("same"), AtFlags::empty());
        assert_eq!(same.unwrap().st_nlink, 2);
    }
}
