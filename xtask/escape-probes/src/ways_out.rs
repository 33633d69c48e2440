//! Ways out of the file system: the first argument is a file of the host that is to be found.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Probe;
use crate::sys::{argument, attempt, call, errno, text};

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("double-chroot", double_chroot),
    ("inherited-descriptors", |_| {
        let mut others: Vec<String> = descriptors()
            .into_iter()
            .filter(|fd| *fd > 2)
            .map(|fd| fd.to_string())
            .collect();
        others.sort();
        if others.is_empty() {
            "the standard ones".to_owned()
        } else {
            "others".to_owned()
        }
    }),
    ("leaked-directory", |args| {
        let below = argument(args, 0).trim_start_matches('/');
        for fd in descriptors() {
            if opens(fd, below) || opens(fd, &format!("{}{below}", "../".repeat(40))) {
                return "the host's file".to_owned();
            }
        }
        "nothing".to_owned()
    }),
    ("working-directory", |args| {
        let below = argument(args, 0).trim_start_matches('/');
        match fs::read(format!("{}{below}", "../".repeat(40))) {
            Ok(_) => "the host's file".to_owned(),
            Err(_) => "nothing".to_owned(),
        }
    }),
    // A path where the host's file would be, by a way that somebody else made.
    ("read-file", |args| match fs::read(argument(args, 0)) {
        Ok(_) => "the host's file".to_owned(),
        Err(_) => "nothing".to_owned(),
    }),
    ("host-paths", |args| {
        let name = argument(args, 0);
        let mut files: Vec<PathBuf> = ["mountinfo", "mounts", "mountstats", "cgroup", "maps"]
            .map(|file| Path::new("/proc/self").join(file))
            .to_vec();
        for block in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            files.push(block.path().join("loop/backing_file"));
        }
        let mut shown = files
            .into_iter()
            .filter(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(name)));
        shown
            .next()
            .map_or_else(|| "none".to_owned(), |file| file.display().to_string())
    }),
    ("symbolic-links", |args| {
        let file = argument(args, 0);
        let _ = fs::create_dir("/tmp");
        let _ = std::os::unix::fs::symlink(file, "/tmp/link");
        let _ = std::os::unix::fs::symlink("/proc/self/root/../../../..", "/tmp/root");
        let _ = std::os::unix::fs::symlink("/proc/1/cwd/../../..", "/tmp/cwd");
        let tries = [
            "/tmp/link".to_owned(),
            format!("/tmp/root{file}"),
            format!("/tmp/cwd{file}"),
            format!("/proc/self/root{file}"),
            format!("/proc/1/root{file}"),
            format!("/../../..{file}"),
        ];
        match tries.iter().any(|path| fs::read(path).is_ok()) {
            true => "the host's file".to_owned(),
            false => "nothing".to_owned(),
        }
    }),
];

fn descriptors() -> Vec<i32> {
    // By asking for each: the list in /proc has the one that reads it, too.
    (0..1024)
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0)
        .collect()
}

fn opens(fd: i32, path: &str) -> bool {
    call(libc::SYS_openat, &[fd as usize, text(path), 0, 0]).is_ok()
}

/// A directory is kept outside a chroot; from it `..` goes up past the root that the process had, if that root is no mount of its own.
fn double_chroot(args: &[String]) -> String {
    let _ = fs::create_dir("/deep");
    let up = "../".repeat(40);
    if let Err(number) = call(libc::SYS_chroot, &[text("/deep")]) {
        return format!("chroot: {}", errno(number));
    }
    if let Err(number) = call(libc::SYS_chdir, &[text(&up)]) {
        return format!("chdir: {}", errno(number));
    }
    let _ = attempt(libc::SYS_chroot, &[text(".")]);
    match fs::read(argument(args, 0)) {
        Ok(_) => "the host's file".to_owned(),
        Err(_) => "nothing".to_owned(),
    }
}
