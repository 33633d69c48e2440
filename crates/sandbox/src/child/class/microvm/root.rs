//! What a virtual machine's programs have as `/`. In memory but for what is the host's, and gone
//! with the container.
//!
//! ```text
//! /agent /qemu /virtiofsd /kernel /initrd           the host's, read-only
//! /lib /lib64 /usr/lib /usr/share/{qemu,seabios}    likewise
//! /state /proc /dev/{null,pts,kvm}
//! /rootfs                                           the container's root with its mounts
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};

use super::{AGENT, Failure, Step};
use crate::child::class::outer::{Outer, of_host};
use crate::child::devices::terminals;
use crate::child::mounts::Parts;
use crate::microvm::{INITRD, KERNEL, QEMU, STATE, VIRTIOFSD};
use crate::mount::{NOSUID, attach, attach_new, clone_of};
use crate::spec::Machine;
use crate::sys;
use crate::userns::UserNamespace;

/// Where the host's libraries and the machine's firmware are. Where /lib is a link to /usr/lib, it
/// is one inside as well.
const SYSTEM: [&str; 4] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/qemu",
    "/usr/share/seabios",
];

/// /dev/kvm.
const KVM: (u32, u32) = (10, 232);

/// Makes that root and makes it `/`.
pub(super) fn enter(
    parts: &Parts<'_>,
    machine: &Machine,
    users: Option<&UserNamespace>,
) -> Result<(), Failure> {
    // While the host's paths still lead there.
    let own = [
        (AGENT, &machine.agent),
        (QEMU, &machine.qemu),
        (VIRTIOFSD, &machine.virtiofsd),
        (KERNEL, &machine.kernel),
        (INITRD, &machine.initrd),
    ];
    let mut files = Vec::new();
    for (path, source) in own {
        let file = of_host(source).step(|| {
            format!(
                "isolation class microvm needs {}, which cannot be used",
                source.display()
            )
        })?;
        files.push((path, file));
    }
    let mut system = Vec::new();
    for path in SYSTEM.into_iter().filter(|path| Path::new(path).is_dir()) {
        system.push((
            path,
            of_host(Path::new(path)).step(|| format!("opening {path}"))?,
        ));
    }
    let mut directories = vec!["/dev/pts", "/usr", "/usr/share"];
    directories.extend(system.iter().map(|(path, _)| *path));
    let outer = Outer::make(parts, users, &directories)?;
    fill(&outer, &files, &system)
        .step(|| "making the virtual machine's root file system".to_owned())?;
    let owner = users.map_or(0, |users| users.root);
    let pts = || -> io::Result<()> { terminals(outer.open("/dev/pts")?.as_fd(), owner) };
    pts().step(|| "mounting /dev/pts".to_owned())?;
    if machine.kvm {
        give_kvm(&outer, owner).step(|| "making /dev/kvm".to_owned())?;
    }
    outer.enter()
}

fn fill(outer: &Outer, files: &[(&str, OwnedFd)], system: &[(&str, OwnedFd)]) -> io::Result<()> {
    outer.directory(STATE, 0o700)?;
    for (path, file) in files {
        outer.put(path, file.as_fd())?;
    }
    for (path, directory) in system {
        attach(directory.as_fd(), outer.open(path)?.as_fd())?;
    }
    for (link, to) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        rustix::fs::symlinkat(to, outer, link)?;
    }
    Ok(())
}

/// A node of its own: the host's belongs to somebody who is nobody here.
fn give_kvm(outer: &Outer, owner: u32) -> io::Result<()> {
    outer.directory("/devices", 0o755)?;
    let options = [("mode", "755"), ("size", "4k")];
    let place = outer.open("/devices")?;
    let devices = attach_new("tmpfs", &options, NOSUID, place.as_fd())?;
    let (major, minor) = KVM;
    rustix::fs::mknodat(
        &devices,
        "kvm",
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o600),
        rustix::fs::makedev(major, minor),
    )?;
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    rustix::fs::chownat(
        &devices,
        "kvm",
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    let node = clone_of(devices.as_fd(), "kvm", false)?;
    outer.put("/dev/kvm", node.as_fd())?;
    sys::set_mount_attributes(devices.as_fd(), libc::MOUNT_ATTR_NODEV, false)
}
