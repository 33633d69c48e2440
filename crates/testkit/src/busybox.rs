//! A root file system of busybox.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Makes the directory `root`: `/usr/bin` with busybox and its applets, `/bin` as a link to it (as in Debian), `/tmp`, and the users `root` and
/// `app` (1000:1001, also in group `web`, 50).
///
/// # Panics
/// busybox is not installed.
pub fn write(root: &Path) {
    let program = Path::new("/bin/busybox");
    assert!(
        program.exists(),
        "these tests need /bin/busybox: apt-get install busybox-static"
    );
    let bin = root.join("usr/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(program, bin.join("busybox")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    let list = std::process::Command::new(program)
        .arg("--list")
        .output()
        .unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", bin.join(applet)).unwrap();
        }
    }
    fs::create_dir(root.join("tmp")).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    let group = "root:x:0:\napp:x:1001:\nweb:x:50:app\n";
    fs::write(root.join("etc/group"), group).unwrap();
}

/// The same as an archive.
pub fn tar() -> Vec<u8> {
    let root = tempfile::tempdir().unwrap();
    write(root.path());
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.append_dir_all(".", root.path()).unwrap();
    tar.into_inner().unwrap()
}
