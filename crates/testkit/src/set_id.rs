//! Programs that gain privileges when they are executed, and what they say of themselves.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};

/// Docker's default set.
pub const DOCKER: &str = "00000000a80425fb";
const NONE: &str = "0000000000000000";
/// The bit of CAP_NET_BIND_SERVICE, as a set.
const BIND: &str = "0000000000000400";

/// What each program says of itself: effective ids, and capabilities.
pub const LOOK: &str = "for p in /plain /root-suid /user-suid /root-sgid /caps; do \
    $p -E '^(Uid|Gid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '; echo; done";

/// Makes the layer `root`: copies of a program that prints lines of files, `/plain`, `/root-suid`,
/// `/user-suid` (of 2000), `/root-sgid` and `/caps` (cap_net_bind_service+ep), and the libraries
/// that it loads. (busybox gives up its privileges by itself.)
///
/// # Panics
/// The machine has no such program.
pub fn write(root: &Path) {
    let program = "/usr/bin/grep";
    let of = |name: &str, owner: u32, mode: u32| {
        let file = root.join(name);
        fs::copy(program, &file).unwrap();
        chown(&file, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    };
    fs::create_dir_all(root).unwrap();
    of("plain", 0, 0o755);
    of("root-suid", 0, 0o4755);
    of("user-suid", 2000, 0o4755);
    of("root-sgid", 0, 0o2755);
    of("caps", 0, 0o755);
    // VFS_CAP_REVISION_2, effective (linux/capability.h): as in the layers of any image.
    let capability: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
    let bytes: Vec<u8> = capability.iter().flat_map(|w| w.to_le_bytes()).collect();
    let file = root.join("caps");
    setxattr(&file, "security.capability", &bytes, XattrFlags::empty()).unwrap();
    let loaded = std::process::Command::new("ldd").arg(program).output();
    let loaded = String::from_utf8(loaded.unwrap().stdout).unwrap();
    for path in loaded
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

/// What each said: `uid,euid gid,egid effective bounding no_new_privs`.
///
/// # Panics
/// It is not the output of [`LOOK`].
pub fn said(out: &str) -> Vec<String> {
    out.lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let of = |key: &str, index: usize| {
                let at = words.iter().position(|word| *word == key);
                words[at.unwrap_or_else(|| panic!("{out}")) + index]
            };
            assert_eq!(of("Seccomp:", 1), "2", "{out}");
            format!(
                "{},{} {},{} {} {} {}",
                of("Uid:", 1),
                of("Uid:", 2),
                of("Gid:", 1),
                of("Gid:", 2),
                of("CapEff:", 1),
                of("CapBnd:", 1),
                of("NoNewPrivs:", 1)
            )
        })
        .collect()
}

/// What they say, each, as the user 1000:1001 with this bounding set.
pub fn gained(bound: &str) -> [String; 5] {
    [
        format!("1000,1000 1001,1001 {NONE} {bound} 0"),
        format!("1000,0 1001,1001 {bound} {bound} 0"),
        format!("1000,2000 1001,1001 {NONE} {bound} 0"),
        format!("1000,1000 1001,0 {NONE} {bound} 0"),
        format!("1000,1000 1001,1001 {BIND} {bound} 0"),
    ]
}

/// What they say where they gain nothing.
pub fn nothing_gained() -> [String; 5] {
    std::array::from_fn(|_| format!("1000,1000 1001,1001 {NONE} {DOCKER} 1"))
}
