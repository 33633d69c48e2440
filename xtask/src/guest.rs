//! `cargo xtask guest`: the sandbox's tests on the kernel that Debian ships, with nothing but cgroup v2, in an emulated machine.
//!
//! What a developer's machine has (a new kernel, cgroup v1) is not what users have. The guest's file system is its initial ramdisk: busybox,
//! the test programs with their libraries, and the kernel modules that the sandbox needs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::guest_kernel::{self, Package};
use crate::progress::{run, step};
use crate::{debian, setup};

/// What the sandbox uses that Debian builds as modules.
const MODULES: [&str; 8] = [
    "overlay",
    "loop",
    "ext4",
    "nf_tables",
    "nft_chain_nat",
    "nft_redir",
    "nft_ct",
    "nft_reject_inet",
];

/// First program: makes a root that can be left by pivot_root and maps ids, neither of which a ramdisk's can: ext4, in a file.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /newroot /store /dev /proc
mount -t devtmpfs dev /dev; mount -t proc proc /proc
while read m; do insmod $m; done < /modules
mount -t tmpfs -o size=3g tmpfs /store
truncate -s 3G /store/root; mkfs.ext4 -q -F /store/root; mount -t ext4 -o loop /store/root /newroot
for d in *; do case $d in newroot|store|dev|proc) ;; *) cp -a /$d /newroot/ ;; esac; done
umount /dev /proc
cd /newroot && mkdir -p proc sys dev tmp root run
exec switch_root /newroot /second
";

const SECOND: &str = "#!/bin/busybox sh
export PATH=/bin:/usr/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mkdir -p /var/tmp; chmod 1777 /tmp /var/tmp; ip link set lo up
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo '+memory +cpu +pids' > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/session; echo $$ > /sys/fs/cgroup/session/cgroup.procs
mkdir -p /etc; echo 'root:x:0:0:root:/root:/bin/sh' > /etc/passwd
echo \"guest: Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers)\"
failed=0
for t in /tests/*; do setsid $t --test-threads=2 || failed=1; done
[ -z \"$(find /sys/fs/cgroup -name 'wharf*')\" ] || { echo 'cgroups are left behind'; failed=1; }
echo \"guest: ended $failed\"
poweroff -f
";

/// Runs the sandbox's tests in the guest; if programs of tests are named, only those.
pub(crate) fn run_tests(only: &[String]) -> Result<()> {
    debian::install(&[debian::QEMU, debian::CPIO, debian::BUSYBOX, debian::RUNSC])?;
    let dir = setup::tools_dir().join("guest");
    fs::create_dir_all(&dir)?;
    let kernel = guest_kernel::get()?;
    let root = tempfile::tempdir_in(&dir)?;
    step("the guest's file system", || {
        file_system(root.path(), &kernel, only)
    })?;
    let archive = dir.join("initrd");
    let packed = fs::File::create(&archive)?;
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio -o -H newc --quiet"])
        .current_dir(root.path())
        .stdout(packed);
    if !pack.status()?.success() {
        bail!("cpio failed");
    }
    eprintln!("  ... the tests, in the guest ({})", kernel.name);
    let mut machine = Command::new("qemu-system-x86_64");
    machine
        .args([
            "-machine",
            "q35,accel=tcg",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "6144",
            "-nographic",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(kernel.root.join(format!("boot/vmlinuz-{}", kernel.version)))
        .arg("-initrd")
        .arg(&archive)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .stdin(Stdio::null());
    let out = Command::new("timeout")
        .arg("1800")
        .arg(machine.get_program())
        .args(machine.get_args())
        .output()?;
    fs::remove_file(&archive)?;
    let text = String::from_utf8_lossy(&out.stdout);
    print!("{text}");
    if !text.contains("guest: ended 0") {
        bail!("the tests failed in the guest");
    }
    Ok(())
}

/// None for a static program.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let words = text.split_whitespace().filter(|w| w.starts_with('/'));
    Ok(words
        .map(|w| PathBuf::from(w.trim_end_matches(':')))
        .collect())
}

fn file_system(root: &Path, kernel: &Package, only: &[String]) -> Result<()> {
    for dir in ["bin", "usr/bin", "tests", "lib/modules"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let mut libraries = BTreeSet::new();
    for (program, dir) in [
        ("busybox", "bin"),
        ("mkfs.ext4", "bin"),
        ("runsc", "usr/bin"),
    ] {
        let found =
            debian::find_program(program).with_context(|| format!("{program} is not in PATH"))?;
        fs::copy(&found, root.join(dir).join(program))?;
        libraries.extend(libraries_of(&found)?);
    }
    for (name, text) in [("init", INIT), ("second", SECOND)] {
        fs::write(root.join(name), text)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let mut modules = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(&kernel.root).args([
            "-S",
            &kernel.version,
            "--show-depends",
            module,
        ]);
        for line in run(&mut modprobe)?.lines() {
            let Some(path) = line.strip_prefix("insmod ") else {
                continue;
            };
            let path = Path::new(path.trim());
            let name = path.file_name().context("a module without a name")?;
            let inside = format!("/lib/modules/{}", name.to_string_lossy());
            if !modules.contains(&inside) {
                fs::copy(path, root.join(&inside[1..]))?;
                modules.push(inside);
            }
        }
    }
    fs::write(root.join("modules"), modules.join("\n") + "\n")?;

    let mut build = setup::cargo();
    build
        .args([
            "test",
            "--package",
            "wharf-sandbox",
            "--no-run",
            "--message-format=json",
        ])
        .current_dir(setup::root());
    let mut tests = BTreeSet::new();
    for line in run(&mut build)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let Some(executable) = message["executable"].as_str().map(Path::new) else {
            continue;
        };
        let name = message["target"]["name"].as_str().unwrap_or("test");
        // A program that tests run is looked for where it was built.
        let is_test = message["profile"]["test"] == true;
        if is_test {
            tests.insert(name.to_owned());
        }
        if is_test && !only.is_empty() && !only.iter().any(|it| it == name) {
            continue;
        }
        let inside = if is_test {
            root.join("tests").join(name)
        } else {
            root.join(executable.strip_prefix("/")?)
        };
        fs::create_dir_all(inside.parent().context("a program without a folder")?)?;
        run(Command::new("strip").arg("-o").arg(&inside).arg(executable))?;
        libraries.extend(libraries_of(executable)?);
    }
    if let Some(missing) = only.iter().find(|name| !tests.contains(*name)) {
        bail!("there is no program of tests {missing:?}; there are {tests:?}");
    }
    for library in libraries {
        let inside = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(inside.parent().context("a library without a folder")?)?;
        fs::copy(&library, inside)?;
    }
    // Tests may look at their crate's folder.
    fs::create_dir_all(root.join(setup::root().join("crates/sandbox").strip_prefix("/")?))?;
    Ok(())
}
