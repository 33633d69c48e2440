//! Paths inside a root that somebody else filled: no symbolic link and no `..` leads out.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::weak::{self, Wall};

/// The kernel's limit on symbolic links in one path.
const MAX_LINKS: usize = 40;

/// What the last component becomes if it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

enum Piece {
    Root,
    Up,
    Name(OsString),
}

fn pieces(path: &Path) -> Vec<Piece> {
    path.components()
        .filter_map(|component| match component {
            Component::RootDir | Component::Prefix(_) => Some(Piece::Root),
            Component::CurDir => None,
            Component::ParentDir => Some(Piece::Up),
            Component::Normal(name) => Some(Piece::Name(name.to_owned())),
        })
        .collect()
}

/// Opens `path` below `root` (O_PATH), making what is missing: directories 0755, a file 0644, owned
/// by `owner`. Symbolic links are followed as if `root` were `/`, also ones that dangle.
pub(super) fn ensure(
    root: BorrowedFd<'_>,
    path: &Path,
    kind: Kind,
    owner: Option<(u32, u32)>,
) -> io::Result<OwnedFd> {
    if weak::is_down(Wall::Rooted) {
        let below = Path::new(".").join(path.strip_prefix("/").unwrap_or(path));
        let flags = match kind {
            Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
            Kind::File => OFlags::RDWR | OFlags::CREATE,
        };
        return Ok(rustix::fs::openat(root, below, flags, Mode::RUSR)?);
    }
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut above = vec![rustix::fs::openat(root, ".", directory, Mode::empty())?];
    let mut todo: VecDeque<Piece> = pieces(path).into();
    let mut links = 0;
    while let Some(piece) = todo.pop_front() {
        let name = match piece {
            Piece::Root => {
                above.truncate(1);
                continue;
            }
            Piece::Up => {
                if above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            Piece::Name(name) => name,
        };
        let here = above[above.len() - 1].as_fd();
        let last = todo.is_empty();
        let found = match rustix::fs::statat(here, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => {
                make(
                    here,
                    &name,
                    if last { kind } else { Kind::Directory },
                    owner,
                )?;
                if last && kind == Kind::File {
                    FileType::RegularFile
                } else {
                    FileType::Directory
                }
            }
            Err(error) => return Err(error.into()),
        };
        match found {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = OsString::from_vec(
                    rustix::fs::readlinkat(here, &name, Vec::new())?.into_bytes(),
                );
                for piece in pieces(Path::new(&target)).into_iter().rev() {
                    todo.push_front(piece);
                }
            }
            FileType::Directory => {
                above.push(rustix::fs::openat(here, &name, directory, Mode::empty())?)
            }
            _ if last && kind == Kind::File => {
                let file = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return Ok(rustix::fs::openat(here, &name, file, Mode::empty())?);
            }
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    if kind == Kind::File {
        return Err(Errno::ISDIR.into());
    }
    // `above` always holds at least the root.
    above.pop().ok_or_else(|| Errno::NOENT.into())
}

fn make(
    parent: BorrowedFd<'_>,
    name: &OsString,
    kind: Kind,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    match kind {
        Kind::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?;
        }
    }
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn place(fd: &OwnedFd) -> std::path::PathBuf {
        fs::read_link(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(fd)
        ))
        .unwrap()
    }

    #[test]
    fn links_stay_inside() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let base = root.path().canonicalize().unwrap();
        symlink(outside.path(), base.join("absolute")).unwrap();
        symlink("../../../../../..", base.join("up")).unwrap();
        symlink("../run/resolve/stub.conf", base.join("dangling")).unwrap();
        let fd = open(&base);
        let made = ensure(fd.as_fd(), Path::new("/absolute/new"), Kind::File, None).unwrap();
        assert!(place(&made).starts_with(&base), "{:?}", place(&made));
        let made = ensure(fd.as_fd(), Path::new("up/etc/shadow"), Kind::File, None).unwrap();
        assert_eq!(place(&made), base.join("etc/shadow"));
        let made = ensure(fd.as_fd(), Path::new("dangling"), Kind::File, None).unwrap();
        assert_eq!(place(&made), base.join("run/resolve/stub.conf"));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn kinds_and_loops() {
        let root = tempfile::tempdir().unwrap();
        symlink("b", root.path().join("a")).unwrap();
        symlink("a", root.path().join("b")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let fd = open(root.path());
        let errno = |path: &str, kind| {
            ensure(fd.as_fd(), Path::new(path), kind, None)
                .unwrap_err()
                .raw_os_error()
        };
        assert_eq!(errno("a", Kind::Directory), Some(libc::ELOOP));
        assert_eq!(errno("file/below", Kind::Directory), Some(libc::ENOTDIR));
        assert_eq!(errno("file", Kind::Directory), Some(libc::ENOTDIR));
        assert_eq!(errno("/", Kind::File), Some(libc::EISDIR));
    }
}
