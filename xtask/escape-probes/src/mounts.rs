//! Mounts: new ones, other ones, none.

use std::fs;

use crate::Probe;
use crate::sys::{attempt, call, text, word};

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("mount-tmpfs", |_| mount("none", "/tmp", "tmpfs", 0, "")),
    ("mount-proc", |_| mount("proc", "/tmp", "proc", 0, "")),
    ("mount-sysfs", |_| mount("sysfs", "/tmp", "sysfs", 0, "")),
    ("mount-overlay", |_| {
        mount("o", "/tmp", "overlay", 0, "lowerdir=/etc:/dev/shm")
    }),
    ("mount-cgroup", |_| mount("c", "/tmp", "cgroup2", 0, "")),
    ("mount-bind", |_| {
        mount("/proc/sys", "/tmp", "", libc::MS_BIND | libc::MS_REC, "")
    }),
    ("mount-over-proc", |_| {
        mount("none", "/proc", "tmpfs", 0, "")
    }),
    ("remount-proc-sys", |_| remount("/proc/sys")),
    ("remount-sys", |_| remount("/sys")),
    ("unmask-keys", |_| unmount("/proc/keys")),
    ("unmask-proc-sys", |_| unmount("/proc/sys")),
    ("move-mount", |_| {
        mount("/dev/shm", "/tmp", "", libc::MS_MOVE, "")
    }),
    ("propagation", |_| {
        mount("none", "/", "", libc::MS_SHARED, "")
    }),
    ("pivot-root", |_| {
        // To where it is.
        attempt(libc::SYS_pivot_root, &[text("/proc"), text("/proc")])
    }),
    ("open-tree", |_| {
        attempt(libc::SYS_open_tree, &[at_fdcwd(), text("/dev/shm"), 1])
    }),
    ("move-mount-new", |_| {
        let args = [at_fdcwd(), text("/dev/shm"), at_fdcwd(), text("/tmp"), 0];
        attempt(libc::SYS_move_mount, &args)
    }),
    ("fsopen", |_| attempt(libc::SYS_fsopen, &[text("tmpfs"), 0])),
    ("fspick", |_| {
        attempt(libc::SYS_fspick, &[at_fdcwd(), text("/dev/shm"), 0])
    }),
    ("mount-setattr", |_| {
        // struct mount_attr: set, clear, propagation, user namespace.
        let clear: [u64; 4] = [0, libc::MOUNT_ATTR_RDONLY, 0, 0];
        let attr = &raw const clear as usize;
        attempt(
            libc::SYS_mount_setattr,
            &[at_fdcwd(), text("/sys"), 0, attr, 32],
        )
    }),
];

fn at_fdcwd() -> usize {
    libc::AT_FDCWD as isize as usize
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> String {
    // An image from scratch has nothing.
    let _ = fs::create_dir(target);
    let args = [
        text(source),
        text(target),
        text(kind),
        flags as usize,
        text(data),
    ];
    attempt(libc::SYS_mount, &args)
}

fn remount(path: &str) -> String {
    mount("none", path, "", libc::MS_REMOUNT | libc::MS_BIND, "")
}

fn unmount(path: &str) -> String {
    word(call(libc::SYS_umount2, &[text(path), 0]))
}
