//! Device nodes: made inside, or brought along by the image.

use std::fs::OpenOptions;

use crate::Probe;
use crate::sys::{argument, call, errno, io_word, number, text};

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("mknod-kmsg", |_| node(libc::S_IFCHR, 1, 11, "/tmp/node")),
    ("mknod-in-dev", |_| node(libc::S_IFCHR, 1, 11, "/dev/node")),
    ("mknod-disk", |args| {
        node(libc::S_IFBLK, number(args, 0), number(args, 1), "/tmp/node")
    }),
    ("layer-device", |args| open(argument(args, 0))),
];

fn open(path: &str) -> String {
    io_word(OpenOptions::new().read(true).open(path))
}

/// Makes one and opens it.
fn node(kind: libc::mode_t, major: usize, minor: usize, path: &str) -> String {
    let _ = std::fs::create_dir("/tmp");
    let device = libc::makedev(major as u32, minor as u32) as usize;
    let cwd = libc::AT_FDCWD as isize as usize;
    let args = [cwd, text(path), (kind | 0o666) as usize, device];
    match call(libc::SYS_mknodat, &args) {
        Ok(_) => match open(path).as_str() {
            "worked" => "opened".to_owned(),
            other => format!("made, open: {other}"),
        },
        Err(number) => errno(number),
    }
}
