//! What `runsc` has as `/`: its own file, the container's root, and room for its notes. In memory,
//! and gone with the container.
//!
//! ```text
//! /runsc  /bundle  /state  /tmp  /proc  /dev/{null,pts}
//! /rootfs: the container's root with its mounts, but for /proc, /sys and /dev
//! ```

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::{BUNDLE, Failure, STATE, Step};
use crate::child::class::outer::{Outer, of_host};
use crate::child::devices::terminals;
use crate::child::mounts::Parts;
use crate::mount::{attach, clone_of};
use crate::sys;
use crate::userns::UserNamespace;

/// Makes that root and makes it `/`.
pub(super) fn enter(
    parts: &Parts<'_>,
    runsc: &Path,
    users: Option<&UserNamespace>,
) -> Result<(), Failure> {
    // While the host's paths still lead there.
    let program = of_host(runsc).step(|| {
        format!(
            "isolation class gvisor needs runsc, and {} cannot be used",
            runsc.display()
        )
    })?;
    let outer = Outer::make(parts, users, &[BUNDLE, "/dev/pts", "/tmp", "/etc"])?;
    let name = || "making runsc's root file system".to_owned();
    outer.directory(STATE, 0o700).step(name)?;
    outer.put("/runsc", program.as_fd()).step(name)?;
    let pts = outer.open("/dev/pts").step(name)?;
    terminals(pts.as_fd(), users.map_or(0, |users| users.root)).step(name)?;
    outer.enter()
}

/// A mount namespace that belongs to the user namespace, in which `runsc` may mount; and there, how
/// much memory gVisor says that it has, which is not a wall (the cgroup is) but what programs size
/// themselves by.
pub(super) fn own_mounts(memory_bytes: Option<u64>) -> Result<(), Failure> {
    // SAFETY: this process has one thread, and uses only what is below `/` of the namespace that it
    // has now.
    unsafe { sys::unshare_mounts() }.step(|| "making a mount namespace".to_owned())?;
    let Some(bytes) = memory_bytes else {
        return Ok(());
    };
    let name = || "showing how much memory there is".to_owned();
    let path = PathBuf::from(STATE).join("meminfo");
    let kib = bytes / 1024;
    let text =
        format!("MemTotal:       {kib} kB\nMemFree:        {kib} kB\nMemAvailable:   {kib} kB\n");
    std::fs::write(&path, text).step(name)?;
    let copy = clone_of(CWD, &path, false).step(name)?;
    let target = rustix::fs::open(
        "/proc/meminfo",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step(name)?;
    attach(copy.as_fd(), target.as_fd()).step(name)
}
