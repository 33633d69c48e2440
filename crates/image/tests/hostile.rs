//! A hostile archive cannot write, link or change anything outside its layer, and is refused with a reason.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use wharf_image::ImageError;

use self::common::{Fixture, Tar, fixture, picture, plain_layer};

/// A file outside the layer, beside the store, whose picture must not change.
struct Outside {
    fixture: Fixture,
    victim: String,
    before: Vec<String>,
}

fn outside() -> Outside {
    let fixture = fixture();
    let dir = fixture.dir.path().join("outside");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("victim"), "precious").unwrap();
    std::fs::set_permissions(dir.join("victim"), PermissionsExt::from_mode(0o640)).unwrap();
    let victim = dir.to_str().unwrap().to_owned();
    let before = snapshot(&fixture);
    Outside {
        fixture,
        victim,
        before,
    }
}

fn snapshot(fixture: &Fixture) -> Vec<String> {
    let dir = fixture.dir.path().join("outside");
    let mut lines: Vec<_> = picture(&dir)
        .into_iter()
        .map(|(path, node)| format!("{path:?} {node}"))
        .collect();
    let metadata = std::fs::metadata(dir.join("victim")).unwrap();
    lines.push(format!("{} {}", metadata.nlink(), metadata.ctime_nsec()));
    lines
}

impl Outside {
    fn unpack(&self, tar: Tar) -> Result<std::path::PathBuf, ImageError> {
        let layer = plain_layer(&self.fixture, &tar.end());
        let result = self.fixture.store.lower_dirs(&[layer]);
        assert_eq!(snapshot(&self.fixture), self.before, "changed outside");
        // Nothing beside the store's own directories, and nothing half made.
        let names = std::fs::read_dir(self.fixture.dir.path()).unwrap().count();
        assert_eq!(names, 2);
        assert_eq!(self.fixture.temporaries(), 0);
        result.map(|mut dirs| dirs.remove(0))
    }
    fn refused(&self, tar: Tar, why: &str) {
        match self.unpack(tar) {
            Err(ImageError::Invalid(message)) => assert!(message.contains(why), "{message}"),
            other => panic!("not refused: {other:?}"),
        }
        assert_eq!(self.fixture.files().1, 0, "a layer was left");
    }
}

#[test]
fn paths_that_climb_are_refused() {
    let t = outside();
    let deep = format!("a/../../../../../../../../../../../../{}/new", t.victim);
    for path in [
        "../outside/new",
        "a/../../outside/new",
        "..",
        &deep[..90.min(deep.len())],
    ] {
        t.refused(Tar::default().file(path, "x"), "'..'");
        t.refused(Tar::default().symlink(path, "x"), "'..'");
        t.refused(Tar::default().dir(path), "'..'");
    }
}

#[test]
fn absolute_paths_stay_inside() {
    let t = outside();
    let path = format!("{}/victim", t.victim);
    let dir = t.unpack(Tar::default().file(&path, "mine")).unwrap();
    let inside = dir.join(path.trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(inside).unwrap(), "mine");
}

#[test]
fn symlinks_do_not_lead_out() {
    let t = outside();
    // Writing through a link to a directory outside: resolved as if the layer were the whole file system, where that is not there.
    t.refused(
        Tar::default()
            .symlink("exit", &t.victim)
            .file("exit/victim", "overwritten"),
        "exit",
    );
    let climbing = "../".repeat(20) + t.victim.trim_start_matches('/');
    t.refused(
        Tar::default()
            .symlink("exit", &climbing[..climbing.len().min(99)])
            .file("exit/victim", "overwritten"),
        "exit",
    );
    // A link in place of a file is replaced, not followed.
    let dir = t
        .unpack(
            Tar::default()
                .symlink("f", &format!("{}/victim", t.victim))
                .file("f", "mine"),
        )
        .unwrap();
    assert_eq!(std::fs::read_to_string(dir.join("f")).unwrap(), "mine");
}

#[test]
fn a_directory_entry_does_not_change_what_a_link_points_to() {
    let t = outside();
    let dir = t
        .unpack(Tar::default().symlink("d", &t.victim).dir("d"))
        .unwrap();
    assert!(std::fs::symlink_metadata(dir.join("d")).unwrap().is_dir());
    // A directory that becomes a link: its time, set at the end, must not go through it.
    let dir = t
        .unpack(
            Tar::default()
                .dir("d")
                .dir("d/e")
                .add(b'2', b"d", t.victim.as_bytes(), b""),
        )
        .unwrap();
    assert!(
        std::fs::symlink_metadata(dir.join("d"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn links_inside_the_layer_work_as_in_a_root() {
    let t = outside();
    let dir = t
        .unpack(
            Tar::default()
                .dir("usr/lib")
                .symlink("lib", "/usr/lib")
                .file("lib/x", "1")
                .symlink("up", "../../../../usr")
                .file("up/y", "2"),
        )
        .unwrap();
    assert_eq!(std::fs::read_to_string(dir.join("usr/lib/x")).unwrap(), "1");
    assert_eq!(std::fs::read_to_string(dir.join("usr/y")).unwrap(), "2");
}

#[test]
fn hard_links_do_not_lead_out() {
    let t = outside();
    let victim = format!("{}/victim", t.victim);
    t.refused(Tar::default().link("l", &victim), "no file of this archive");
    t.refused(Tar::default().link("l", "../outside/victim"), "'..'");
    t.refused(
        Tar::default()
            .symlink("exit", &t.victim)
            .link("l", "exit/victim"),
        "no file of this archive",
    );
    t.refused(
        Tar::default().dir("d").link("l", "d"),
        "no file of this archive",
    );
    t.refused(Tar::default().link("l", "/"), "to the root");
    // A hard link to a symlink is one to the link, and a write to it replaces it.
    let dir = t
        .unpack(
            Tar::default()
                .symlink("s", &victim)
                .link("l", "s")
                .file("l", "mine"),
        )
        .unwrap();
    assert!(
        std::fs::symlink_metadata(dir.join("s"))
            .unwrap()
            .is_symlink()
    );
    // To itself: stays.
    let dir = t
        .unpack(Tar::default().file("f", "kept").link("f", "./f"))
        .unwrap();
    assert_eq!(std::fs::read_to_string(dir.join("f")).unwrap(), "kept");
}

#[test]
fn whiteouts_and_devices_with_odd_names_stay_inside() {
    let t = outside();
    for name in [".wh.", ".wh..", ".wh..."] {
        t.refused(Tar::default().file(name, ""), "whiteout without a name");
    }
    t.refused(
        Tar::default()
            .symlink("exit", &t.victim)
            .file("exit/.wh.victim", ""),
        "exit",
    );
    t.refused(
        Tar::default()
            .symlink("exit", &t.victim)
            .file("exit/.wh..wh..opq", ""),
        "exit",
    );
    t.refused(Tar::default().add(b'3', b"../null", b"", b""), "'..'");
    t.refused(Tar::default().add(b'3', b"/", b"", b""), "root");
    let dir = t
        .unpack(Tar::default().add(b'3', b"//./null/", b"", b""))
        .unwrap();
    assert!(
        std::fs::metadata(dir.join("null"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
}

#[test]
fn overlay_attributes_from_the_archive_are_dropped() {
    let t = outside();
    let dir = t
        .unpack(
            Tar::default()
                .pax(&[
                    ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    ("SCHILY.xattr.security.selinux", b"x"),
                    ("SCHILY.xattr.user.kept", b"a\nb"),
                ])
                .dir("d"),
        )
        .unwrap();
    let names: Vec<_> = xattr::list(dir.join("d")).unwrap().collect();
    assert_eq!(names, ["user.kept"]);
    assert_eq!(
        xattr::get(dir.join("d"), "user.kept").unwrap().unwrap(),
        b"a\nb"
    );
}

#[test]
fn broken_archives_are_refused() {
    let t = outside();
    t.refused(Tar::default().add(b'M', b"f", b"", b""), "not supported");
    t.refused(Tar::default().pax(&[]), "ends after an extended header");
    t.refused(
        Tar::default().pax(&[("path", b"a\0b")]).file("x", ""),
        "NUL",
    );
    t.refused(
        Tar::default().pax(&[("uid", b"4294967295")]).file("x", ""),
        "uid",
    );
    t.refused(
        Tar::default().pax(&[("path", &[b'a'; 5000])]).file("x", ""),
        "too long",
    );
    t.refused(
        Tar::default()
            .pax(&[("GNU.sparse.map", b"0,9,5,9"), ("GNU.sparse.size", b"20")])
            .file("x", "123456789012345678"),
        "overlap",
    );
    // The size of the file goes beyond the archive.
    t.refused(
        Tar::default().pax(&[("size", b"99999")]).file("x", "1"),
        "middle of a file",
    );
    for junk in [&b"not a tar"[..], &[b'x'; 4096]] {
        let layer = plain_layer(&t.fixture, junk);
        let error = t.fixture.store.lower_dirs(&[layer]).unwrap_err();
        assert!(matches!(error, ImageError::Invalid(_)), "{error}");
    }
    let error = t.fixture.store.import_rootfs("x", &b""[..]).unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");
}

#[test]
fn a_layer_that_is_not_what_the_image_says_is_refused() {
    let t = outside();
    let mut tar = Tar::default().file("f", "x").end();
    let honest = plain_layer(&t.fixture, &tar);
    // Bytes after the end of the archive count too.
    tar.extend_from_slice(&[1; 100]);
    let mut layer = plain_layer(&t.fixture, &tar);
    layer.diff_id = honest.diff_id.clone();
    let error = t.fixture.store.lower_dirs(&[layer]).unwrap_err();
    assert!(error.to_string().contains("but the image says"), "{error}");
    assert_eq!(t.fixture.files().1, 0);
    t.fixture.store.lower_dirs(&[honest]).unwrap();
}

#[test]
fn of_duplicates_the_last_wins() {
    let t = outside();
    let dir = t
        .unpack(
            Tar::default()
                .file("a", "1")
                .file("a", "22")
                .dir("b")
                .file("b/inner", "x")
                .file("b", "now a file")
                .file("c", "file")
                .dir("c")
                .file("c/inner", "y"),
        )
        .unwrap();
    assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "22");
    assert_eq!(
        std::fs::read_to_string(dir.join("b")).unwrap(),
        "now a file"
    );
    assert_eq!(std::fs::read_to_string(dir.join("c/inner")).unwrap(), "y");
}
