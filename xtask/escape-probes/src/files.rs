//! Files of the kernel: /proc and /sys. What can be written is written back as it was, or only opened.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::Probe;
use crate::sys::{argument, io_word};

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("sysrq-trigger", |_| open_to_write("/proc/sysrq-trigger")),
    ("core-pattern", |_| {
        open_to_write("/proc/sys/kernel/core_pattern")
    }),
    ("sysctl-kernel", |_| write_back("/proc/sys/kernel/panic")),
    ("sysctl-vm", |_| {
        write_back("/proc/sys/vm/overcommit_memory")
    }),
    ("sysctl-net", |_| {
        write_back("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    }),
    ("irq-affinity", |_| {
        open_to_write("/proc/irq/default_smp_affinity")
    }),
    ("sysfs-write", |_| write_back("/sys/kernel/mm/ksm/run")),
    ("uevent-helper", |_| {
        // The event of a device is asked for by its own file; the helper's exists on few kernels.
        let helper = "/sys/kernel/uevent_helper";
        match Path::new(helper).exists() {
            true => open_to_write(helper),
            false => open_to_write("/sys/devices/virtual/mem/null/uevent"),
        }
    }),
    ("oom-score", |_| {
        io_word(fs::write("/proc/self/oom_score_adj", "-1000"))
    }),
    ("cgroup-limit", |_| {
        match own_cgroup_file(&[
            "pids/pids.max",
            "pids.max",
            "cgroup.max.depth",
            "unified/cgroup.max.depth",
        ]) {
            Some(path) => write_back(&path),
            None => "no cgroup is shown".to_owned(),
        }
    }),
    ("cgroup-child", |_| {
        let made = cgroup_dir().map(|dir| {
            let child = dir.join("escape");
            let made = fs::create_dir(&child);
            let _ = fs::remove_dir(&child);
            io_word(made)
        });
        made.unwrap_or_else(|| "no cgroup is shown".to_owned())
    }),
    ("release-agent", |_| release_agent()),
    ("kcore", |_| head("/proc/kcore", b"\x7fELF")),
    ("proc-keys", |_| content("/proc/keys")),
    ("timer-list", |_| content("/proc/timer_list")),
    ("interrupts", |_| content("/proc/interrupts")),
    ("proc-scsi", |_| listing("/proc/scsi")),
    ("sys-firmware", |_| listing("/sys/firmware")),
    ("kmsg", |_| io_word(File::open("/proc/kmsg"))),
    ("kpageflags", |_| io_word(File::open("/proc/kpageflags"))),
    ("host-root-by-proc", host_root_by_proc),
];

fn open_to_write(path: &str) -> String {
    io_word(OpenOptions::new().write(true).open(path))
}

fn write_back(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    match fs::read(path) {
        Ok(bytes) => io_word(
            OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|mut f| f.write_all(&bytes)),
        ),
        Err(error) => format!("reading: {}", io_word::<()>(Err(error))),
    }
}

/// Opening it may be allowed where what it shows is empty.
fn content(path: &str) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|f| f.take(4096).read_to_end(&mut bytes)) {
        Ok(0) => "empty".to_owned(),
        Ok(_) => "content".to_owned(),
        Err(error) => io_word::<()>(Err(error)),
    }
}

fn head(path: &str, magic: &[u8]) -> String {
    let mut bytes = vec![0; magic.len()];
    match File::open(path).and_then(|mut f| f.read(&mut bytes)) {
        Ok(0) => "empty".to_owned(),
        Ok(_) if bytes == magic => "content".to_owned(),
        Ok(_) => "something else".to_owned(),
        Err(error) => io_word::<()>(Err(error)),
    }
}

fn listing(path: &str) -> String {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => "empty".to_owned(),
            Some(_) => "content".to_owned(),
        },
        Err(error) => io_word::<()>(Err(error)),
    }
}

fn cgroup_dir() -> Option<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    ["pids", "memory", "unified", ""]
        .iter()
        .map(|name| base.join(name))
        .find(|dir| dir.join("cgroup.procs").exists())
}

fn own_cgroup_file(names: &[&str]) -> Option<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    names
        .iter()
        .map(|name| base.join(name))
        .find(|p| p.exists())
}

/// A cgroup of version 1 tells, at its end, a program in the host's root file system (CVE-2022-0492). It takes a mount of the hierarchy's root.
fn release_agent() -> String {
    let _ = fs::create_dir("/tmp");
    let args = [
        crate::sys::text("c"),
        crate::sys::text("/tmp"),
        crate::sys::text("cgroup"),
        0,
        crate::sys::text("pids"),
    ];
    match crate::sys::call(libc::SYS_mount, &args) {
        Ok(_) => match Path::new("/tmp/release_agent").exists() {
            true => open_to_write("/tmp/release_agent"),
            // Seen from a cgroup namespace; its own part is writable all the same.
            false => "worked".to_owned(),
        },
        Err(number) => crate::sys::errno(number),
    }
}

/// Looks for a file of the host below every process's root.
fn host_root_by_proc(args: &[String]) -> String {
    let marker = argument(args, 0).trim_start_matches('/');
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let file = entry.path().join("root").join(marker);
        if fs::read(file).is_ok() {
            return "the host's file".to_owned();
        }
    }
    "nothing".to_owned()
}
