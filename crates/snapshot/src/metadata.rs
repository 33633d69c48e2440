//! Owner, mode, attributes and times from one file to another.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid};
use xattr::FileExt;

/// When it was last changed, for both times: the time of the last access is nobody's.
pub(crate) fn times(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.st_mtime as _,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

pub(crate) fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

pub(crate) fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

/// Sets those of an open file or directory, in this order: a change of the owner clears set-user-id bits and capabilities.
pub(crate) fn set(from: &File, stat: &Stat, to: &File) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(to, uid, gid)?;
    rustix::fs::fchmod(to, mode(stat))?;
    for (name, value) in attributes(from)? {
        to.set_xattr(std::ffi::OsStr::from_bytes(&name), &value)?;
    }
    Ok(())
}

/// The extended attributes that belong to the file, sorted.
pub(crate) fn attributes(file: &File) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in file.list_xattr()? {
        if wharf_image::is_image_xattr(name.as_bytes())
            && let Some(value) = file.get_xattr(&name)?
        {
            found.push((name.as_bytes().to_vec(), value));
        }
    }
    found.sort_unstable();
    Ok(found)
}
