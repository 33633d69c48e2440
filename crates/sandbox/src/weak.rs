//! Walls that can be taken down, so that the escape suite (`cargo xtask escape`) can show that each
//! of its probes would succeed without them.
//!
//! Owns: which walls are down in this process, a spawner, and in what it forks. Must not: exist in
//! a node. Without the feature `weak`, [`is_down`] is a constant and nothing can set it; with it, a
//! build without debug assertions is refused. What a request can ask for (no limit, the host's
//! network, no user namespace) is not here.

/// A wall. Those of one name stand or fall together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(feature = "weak"), allow(dead_code, unreachable_pub))]
pub enum Wall {
    /// The system call filter.
    Seccomp,
    /// The bound on capabilities: without it root keeps all of its user namespace.
    Capabilities,
    /// `no_new_privs`, where the request asks for it.
    NoNewPrivs,
    /// Landlock's scopes.
    Landlock,
    /// Masked and read-only paths of /proc and /sys.
    Masks,
    /// /sys and the cgroup's view are read-only.
    ReadOnlySys,
    /// Device nodes of images and of the container do not open.
    NoDevices,
    /// The PID namespace.
    PidNamespace,
    /// The IPC namespace.
    IpcNamespace,
    /// pivot_root, in place of a mere chroot.
    Pivot,
    /// Paths in the image are followed as if the image were `/`.
    Rooted,
    /// A working directory is never entered through /proc/self/fd.
    MagicLinks,
    /// Descriptors that nobody gave close at exec.
    Descriptors,
    /// The spawner runs from a read-only mount of its file.
    ReadOnlyProgram,
    /// What joins a container is not dumpable until it is the program.
    NotDumpable,
    /// A session keyring of its own.
    Keyring,
    /// The container's terminals have a number of their own.
    Terminals,
}

#[cfg(all(feature = "weak", not(debug_assertions)))]
compile_error!(
    "the feature `weak` takes walls down: it is for the escape suite's debug builds alone"
);

/// Whether a wall is down.
#[cfg(not(feature = "weak"))]
pub(crate) const fn is_down(_: Wall) -> bool {
    false
}

#[cfg(feature = "weak")]
pub use down::take_down;
#[cfg(feature = "weak")]
pub(crate) use down::{is_down, leak_descriptors};

#[cfg(feature = "weak")]
mod down {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::io::FdFlags;

    use super::Wall;
    use crate::sys;

    static DOWN: AtomicU32 = AtomicU32::new(0);

    /// Takes walls down in this process and all that it forks, for good: before
    /// [`crate::spawner::run`].
    pub fn take_down(walls: &[Wall]) {
        let bits = walls.iter().fold(0, |bits, wall| bits | 1 << *wall as u32);
        DOWN.fetch_or(bits, Ordering::Relaxed);
    }

    pub(crate) fn is_down(wall: Wall) -> bool {
        DOWN.load(Ordering::Relaxed) & 1 << wall as u32 != 0
    }

    /// Every descriptor of this process stays open at exec, instead of none; but for one.
    pub(crate) fn leak_descriptors(but: i32) {
        for number in (3..256).filter(|number| *number != but) {
            // SAFETY: only a flag of the descriptor is changed, if it is open; it is not kept.
            let fd = unsafe { sys::borrow(number) };
            // Most numbers are nobody's.
            let _ = rustix::io::fcntl_setfd(fd, FdFlags::empty());
        }
    }
}
