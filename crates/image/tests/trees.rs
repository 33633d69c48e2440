//! Trees survive the way into a layer and out of it, with the real `tar` and the real overlayfs on the other side.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use self::common::{Tar, fixture, os, picture, plain_layer, set_mtime, transplant};

fn run(script: &str, dir: &Path) {
    output_of(Command::new("sh").args(["-euc", script]).current_dir(dir));
}

fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// `security.capability`, version 2, with a line feed in it: what a PAX record must carry as it is.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// One of everything that a file system holds.
fn zoo(root: &Path) {
    let long = "n".repeat(200);
    std::fs::create_dir_all(root.join("dir/deep")).unwrap();
    std::fs::write(root.join("dir/file"), vec![7; 70_000]).unwrap();
    std::fs::hard_link(root.join("dir/file"), root.join("a hard link")).unwrap();
    std::fs::hard_link(root.join("dir/file"), root.join("zzz")).unwrap();
    symlink("/somewhere/else", root.join("link")).unwrap();
    std::fs::hard_link(root.join("link"), root.join("link to link")).unwrap();
    symlink("x".repeat(300), root.join("long link")).unwrap();
    std::fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    std::fs::write(root.join(&long).join(&long).join(&long), "long").unwrap();
    std::fs::write(root.join(os(b"not \xff utf-8\n")), "odd").unwrap();
    std::fs::write(root.join("tool"), "#!").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    std::os::unix::fs::chown(root.join("tool"), Some(1234), Some(3_000_000)).unwrap();
    std::os::unix::fs::lchown(root.join("link"), Some(99), Some(98)).unwrap();
    std::fs::set_permissions(root.join("tool"), PermissionsExt::from_mode(0o6755)).unwrap();
    std::fs::set_permissions(root.join("dir"), PermissionsExt::from_mode(0o1777)).unwrap();
    xattr::set(root.join("tool"), "security.capability", CAPABILITY).unwrap();
    xattr::set(root.join("dir"), "user.key", b"v\n\0v").unwrap();
    for (path, seconds, nanos) in [
        ("dir/file", 1_700_000_000, 123_456_789),
        ("tool", -5, 250_000_000),
        ("link", 5, 0),
        ("dir/deep", 99, 1),
        ("dir", 100, 0),
    ] {
        set_mtime(&root.join(path), seconds, nanos);
    }
}

#[test]
fn what_a_build_step_made_is_the_same_on_another_node() {
    let (here, there) = (fixture(), fixture());
    let upper = here.store.scratch_dir().unwrap();
    zoo(&upper);
    std::fs::set_permissions(&upper, PermissionsExt::from_mode(0o711)).unwrap();
    let before = picture(&upper);
    let layer = here.store.commit_upper(&upper).unwrap();
    assert!(!upper.exists());
    let mine = here.store.lower_dirs(std::slice::from_ref(&layer)).unwrap();
    assert_eq!(picture(&mine[0]), before);
    assert_eq!(picture(&transplant(&here, &layer, &there)), before);
}

#[test]
fn equal_trees_give_equal_layers() {
    let (here, there) = (fixture(), fixture());
    let digests = [&here, &there].map(|f| {
        let upper = f.store.scratch_dir().unwrap();
        // Not in the order of their names, and with another past.
        for name in ["b", "a", "c"] {
            std::fs::write(upper.join(name), name).unwrap();
            set_mtime(&upper.join(name), 1, 0);
        }
        f.store.commit_upper(&upper).unwrap()
    });
    assert_eq!(digests[0], digests[1]);
    // Another file system would list the directory in another order, so sorted it must be.
    let upper = here.store.scratch_dir().unwrap();
    let mut names: Vec<_> = (0..40).map(|n| format!("{}", n * 7919)).collect();
    for name in &names {
        std::fs::write(upper.join(name), name).unwrap();
    }
    names.sort();
    let layer = here.store.commit_upper(&upper).unwrap();
    let blob = std::fs::File::open(here.store.blob(&layer.digest).unwrap().0).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(blob));
    let found: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(found, names);
    // The same again in one store: the second directory is dropped.
    here.layer("a", "x");
    here.layer("a", "x");
    assert_eq!(here.files(), (3, 3));
    assert_eq!(here.temporaries(), 0);
}

#[test]
fn real_tar_reads_what_is_written() {
    let fixture = fixture();
    let upper = fixture.store.scratch_dir().unwrap();
    zoo(&upper);
    let before = picture(&upper);
    let layer = fixture.store.commit_upper(&upper).unwrap();
    let (blob, _) = fixture.store.blob(&layer.digest).unwrap();
    let out = tempfile::tempdir().unwrap();
    std::fs::set_permissions(out.path(), PermissionsExt::from_mode(0o755)).unwrap();
    run(
        &format!(
            "tar --xattrs --xattrs-include='*' --numeric-owner -xpzf {} -C {}",
            blob.display(),
            out.path().display()
        ),
        out.path(),
    );
    assert_eq!(picture(out.path()), before);
}

#[test]
fn what_real_tar_writes_is_imported() {
    for format in ["gnu", "posix"] {
        for (flag, program) in [("", "cat"), ("-z", "gzip -c"), ("--zstd", "zstd -c")] {
            if program.starts_with("zstd") && format == "gnu" {
                continue;
            }
            let fixture = fixture();
            let source = tempfile::tempdir().unwrap();
            std::fs::set_permissions(source.path(), PermissionsExt::from_mode(0o755)).unwrap();
            zoo(source.path());
            let archive = fixture.dir.path().join("rootfs.tar");
            run(
                &format!(
                    "tar --format={format} {} --numeric-owner -cf {}.plain -C {} .",
                    if format == "posix" {
                        "--xattrs --xattrs-include='*'"
                    } else {
                        ""
                    },
                    archive.display(),
                    source.path().display()
                ),
                source.path(),
            );
            let plain = std::fs::read(archive.with_extension("tar.plain")).unwrap();
            // Compressed here, since not every machine has the programs.
            let bytes = match flag {
                "-z" => {
                    let mut gzip =
                        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(&plain).unwrap();
                    gzip.finish().unwrap()
                }
                "--zstd" => zstd::encode_all(plain.as_slice(), 1).unwrap(),
                _ => plain,
            };
            std::fs::remove_file(archive.with_extension("tar.plain")).unwrap();
            let image = fixture
                .store
                .import_rootfs("base:1", bytes.as_slice())
                .unwrap();
            let dir = &fixture.store.lower_dirs(&image.layers).unwrap()[0];
            let (mut found, mut wanted) = (picture(dir), picture(source.path()));
            if format == "gnu" {
                // That format has neither attributes nor parts of a second.
                let coarse = |p: &mut std::collections::BTreeMap<_, String>| {
                    for node in p.values_mut() {
                        let (start, rest) = node.split_at(node.find(" [").unwrap());
                        let start = start.rsplit_once(", ").unwrap().0.to_owned();
                        *node = start + &rest[rest.rfind(']').unwrap()..];
                    }
                };
                coarse(&mut found);
                coarse(&mut wanted);
            }
            assert_eq!(found, wanted, "{format} {program}");
            assert_eq!(image.repo_tags, ["base:1"]);
        }
    }
}

#[test]
fn sparse_files_keep_their_content_and_their_holes() {
    for format in ["gnu", "posix", "posix --sparse-version=0.1"] {
        let fixture = fixture();
        let source = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(source.path().join("sparse")).unwrap();
        for piece in 0..9 {
            std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4096], piece * 1_000_000).unwrap();
        }
        file.set_len(100 << 20).unwrap();
        let archive = fixture.dir.path().join("r.tar");
        run(
            &format!("tar --format={format} -S -cf {} sparse", archive.display()),
            source.path(),
        );
        let tar = std::fs::File::open(archive).unwrap();
        let image = fixture.store.import_rootfs("s", tar).unwrap();
        let out = fixture.store.lower_dirs(&image.layers).unwrap()[0].join("sparse");
        let digest = |path: &Path| wharf_image::Digest::of(&std::fs::read(path).unwrap());
        assert_eq!(
            digest(&out),
            digest(&source.path().join("sparse")),
            "{format}"
        );
        assert!(
            std::fs::metadata(out).unwrap().blocks() * 512 < 1 << 20,
            "{format}"
        );
    }
}

/// Mounts an overlay in a mount namespace of its own, which is gone with the shell.
fn in_overlay(lower: &[std::path::PathBuf], upper: &Path, work: &Path, script: &str) -> String {
    let lower: Vec<_> = lower.iter().map(|l| l.to_str().unwrap()).collect();
    let mount = tempfile::tempdir().unwrap();
    output_of(
        Command::new("unshare")
        .args(["-m", "sh", "-euc"])
        .arg(format!(
            "mount -t overlay overlay -o lowerdir={},upperdir={},workdir={} {m}; cd {m}; {script}",
            lower.join(":"),
            upper.display(),
            work.display(),
            m = mount.path().display()
        )),
    )
}

#[test]
fn removals_in_an_overlay_are_removals_in_the_layer() {
    let (here, there) = (fixture(), fixture());
    let upper = here.store.scratch_dir().unwrap();
    for dir in ["kept", "remade", "gone"] {
        std::fs::create_dir(upper.join(dir)).unwrap();
        std::fs::write(upper.join(dir).join("old"), "old").unwrap();
    }
    std::fs::write(upper.join("file"), "x").unwrap();
    let base = here.store.commit_upper(&upper).unwrap();

    let (upper, work) = (
        here.store.scratch_dir().unwrap(),
        here.store.scratch_dir().unwrap(),
    );
    let lower = here.store.lower_dirs(std::slice::from_ref(&base)).unwrap();
    let script = "rm file kept/old; rm -r gone; rm -r remade; mkdir remade; echo new >remade/new; chmod 700 .; find . | sort";
    let seen = in_overlay(&lower, &upper, &work, script);
    std::fs::remove_dir_all(&work).unwrap();
    let top = here.store.commit_upper(&upper).unwrap();

    // The tar speaks OCI.
    let (blob, _) = here.store.blob(&top.digest).unwrap();
    let listing = Command::new("tar").arg("-tzf").arg(blob).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    for line in [
        ".wh.file",
        "kept/.wh.old",
        ".wh.gone",
        "remade/.wh..wh..opq",
    ] {
        assert!(listing.lines().any(|l| l == line), "{line} in {listing}");
    }

    // And means the same on a node that has only the blobs, with the layers as lower directories.
    for fixture in [&here, &there] {
        if std::ptr::eq(fixture, &there) {
            transplant(&here, &base, &there);
            transplant(&here, &top, &there);
        }
        let dirs = fixture
            .store
            .lower_dirs(&[base.clone(), top.clone()])
            .unwrap();
        let (upper, work) = (
            fixture.store.scratch_dir().unwrap(),
            fixture.store.scratch_dir().unwrap(),
        );
        assert_eq!(in_overlay(&dirs, &upper, &work, "find . | sort"), seen);
    }
}

#[test]
fn a_whiteout_beside_what_replaces_it_hides_only_the_layers_below() {
    let fixture = fixture();
    let lower = plain_layer(
        &fixture,
        &Tar::default()
            .dir("d")
            .file("d/old", "")
            .dir("e")
            .file("e/old", "")
            .end(),
    );
    let upper = plain_layer(
        &fixture,
        &Tar::default()
            .file(".wh.d", "")
            .dir("d")
            .file("d/new", "")
            .dir("e")
            .file("e/new", "")
            .file(".wh.e", "")
            .end(),
    );
    let dirs = fixture.store.lower_dirs(&[lower, upper]).unwrap();
    let (up, work) = (
        fixture.store.scratch_dir().unwrap(),
        fixture.store.scratch_dir().unwrap(),
    );
    assert_eq!(
        in_overlay(&dirs, &up, &work, "find . -type f | sort"),
        "./d/new\n./e/new\n"
    );
}

#[test]
fn a_layer_that_is_there_twice_is_mounted_once() {
    let fixture = fixture();
    let (a, b) = (fixture.layer("a", "1"), fixture.layer("b", "2"));
    let dirs = fixture
        .store
        .lower_dirs(&[a.clone(), b.clone(), a.clone()])
        .unwrap();
    let expected = fixture.store.lower_dirs(&[b, a]).unwrap();
    assert_eq!(dirs, expected);
}

#[test]
fn renamed_directories_of_a_redirecting_overlay_are_refused() {
    let fixture = fixture();
    let upper = fixture.store.scratch_dir().unwrap();
    std::fs::create_dir(upper.join("d")).unwrap();
    xattr::set(upper.join("d"), "trusted.overlay.redirect", b"/old").unwrap();
    let error = fixture.store.commit_upper(&upper).unwrap_err();
    assert!(error.to_string().contains("redirect_dir=off"), "{error}");
    assert!(!upper.exists());
    assert_eq!(fixture.temporaries(), 0);
}

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32, u32),
    Dir(u32, bool),
    Link(String),
    HardLink(usize),
    Fifo,
    Whiteout,
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        3 => (proptest::collection::vec(any::<u8>(), 0..2000), 0..0o10000u32, 0..100_000_000u32).prop_map(|(c, m, u)| Node::File(c, m, u)),
        3 => (0..0o10000u32, any::<bool>()).prop_map(|(m, o)| Node::Dir(m, o)),
        1 => "[a-z./]{1,150}".prop_map(Node::Link),
        1 => any::<proptest::sample::Index>().prop_map(|i| Node::HardLink(i.index(64))),
        1 => Just(Node::Fifo),
        1 => Just(Node::Whiteout),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_comes_back_as_it_was(
        nodes in proptest::collection::vec((any::<proptest::sample::Index>(), "[a-zA-Zäß ]{1,12}|[a-z]{60,110}", node(), -3i64..2_000_000_000, 0..1_000_000_000u32), 0..25)
    ) {
        let (here, there) = (fixture(), fixture());
        let upper = here.store.scratch_dir().unwrap();
        let mut dirs = vec![upper.clone()];
        let mut files = Vec::new();
        let mut times = Vec::new();
        for (parent, name, node, seconds, nanos) in nodes {
            let path = dirs[parent.index(dirs.len())].join(name);
            if path.symlink_metadata().is_ok() { continue; }
            match node {
                Node::File(content, mode, uid) => {
                    std::fs::write(&path, &content).unwrap();
                    std::os::unix::fs::chown(&path, Some(uid), Some(uid / 2)).unwrap();
                    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
                    if content.len() % 3 == 0 { xattr::set(&path, "user.x", &content[..content.len().min(100)]).unwrap(); }
                    files.push(path.clone());
                }
                Node::Dir(mode, opaque) => {
                    std::fs::create_dir(&path).unwrap();
                    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
                    if opaque { xattr::set(&path, "trusted.overlay.opaque", b"y").unwrap(); }
                    dirs.push(path.clone());
                }
                Node::Link(to) => symlink(to, &path).unwrap(),
                Node::HardLink(of) => {
                    if files.is_empty() { continue; }
                    std::fs::hard_link(&files[of % files.len()], &path).unwrap();
                    continue;
                }
                Node::Fifo => rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o640)).unwrap(),
                Node::Whiteout => rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0).unwrap(),
            }
            times.push((path, seconds, nanos));
        }
        for (path, seconds, nanos) in times.iter().rev() { set_mtime(path, *seconds, *nanos); }
        let before = picture(&upper);
        let layer = here.store.commit_upper(&upper).unwrap();
        prop_assert_eq!(picture(&transplant(&here, &layer, &there)), before.clone());
        prop_assert_eq!(picture(&here.store.lower_dirs(&[layer]).unwrap()[0]), before);
    }
}
