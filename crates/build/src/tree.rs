//! A directory tree seen as a root: symbolic links and `..` never lead out of it. Reads go through openat2 with RESOLVE_IN_ROOT; making directories
//! walks component by component without following what the kernel would follow.
//!
//! Owns: path resolution, reading and making single entries. Must not: know what COPY means.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

/// As the kernel: more links than this is a loop.
const MAX_LINKS: usize = 40;

#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

/// What `lstat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: FileType,
    /// The lower twelve bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    pub(crate) device: u64,
    /// Device and inode, for hard links.
    pub(crate) identity: (u64, u64),
    pub(crate) links: u64,
    /// Bytes.
    pub(crate) size: i64,
}

/// What a new entry gets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
}

/// How far a path exists.
#[derive(Debug)]
pub(crate) struct Walk {
    /// The part that exists, without links, relative to the root.
    pub(crate) real: PathBuf,
    /// What is missing after it.
    pub(crate) missing: Vec<OsString>,
    /// Whether `real` is a directory.
    pub(crate) is_dir: bool,
}

impl Node {
    fn of(stat: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (
                stat.st_mtime,
                i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ),
            device: stat.st_rdev,
            identity: (stat.st_dev, stat.st_ino),
            links: stat.st_nlink,
            size: stat.st_size,
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }
}

/// A path as openat2 wants it: never empty.
fn relative(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

impl Tree {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// A directory of the host as a root.
    pub(crate) fn of_host(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { root })
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        loop {
            let opened = rustix::fs::openat2(
                &self.root,
                relative(path),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            );
            // A rename elsewhere on the machine can make the kernel unsure of a "..": it asks to try again (openat2(2)).
            if opened.as_ref().err() != Some(&Errno::AGAIN) {
                return opened;
            }
        }
    }

    /// A directory, links followed.
    pub(crate) fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }

    /// A regular file for reading, links followed. The caller has seen that it is one.
    pub(crate) fn file(&self, path: &Path) -> io::Result<File> {
        Ok(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?.into())
    }

    /// `None` if nothing is there.
    pub(crate) fn stat(&self, path: &Path, follow: bool) -> io::Result<Option<Node>> {
        let mut flags = OFlags::PATH;
        flags.set(OFlags::NOFOLLOW, !follow);
        match self.open(path, flags) {
            Ok(fd) => Ok(Some(Node::of(&rustix::fs::fstat(fd)?))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn read_link(&self, path: &Path) -> io::Result<OsString> {
        let link = self.open(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let target = rustix::fs::readlinkat(link, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Names in a directory, sorted.
    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.dir(path)?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Resolves a path as far as it exists, following links inside the root. With `make`, missing directories are made (0755, this owner)
    /// and nothing is missing afterwards.
    pub(crate) fn walk(&self, path: &Path, make: Option<(u32, u32)>) -> io::Result<Walk> {
        let mut queue: VecDeque<OsString> = components(path);
        let mut real = PathBuf::new();
        let mut dirs = vec![self.dir(Path::new("."))?];
        let mut links = 0;
        while let Some(name) = queue.pop_front() {
            if name == ".." {
                if dirs.len() > 1 {
                    dirs.pop();
                    real.pop();
                }
                continue;
            }
            let Some(top) = dirs.last() else {
                return Err(Errno::INVAL.into());
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(top, &*name, flags, Mode::empty()) {
                Ok(dir) => {
                    real.push(&name);
                    dirs.push(dir);
                }
                Err(Errno::NOENT) => match make {
                    Some((uid, gid)) => {
                        rustix::fs::mkdirat(top, &*name, Mode::from(0o755))?;
                        let dir = rustix::fs::openat(top, &*name, flags, Mode::empty())?;
                        own(&dir, uid, gid)?;
                        rustix::fs::fchmod(&dir, Mode::from(0o755))?;
                        real.push(&name);
                        dirs.push(dir);
                    }
                    None => {
                        let missing = std::iter::once(name).chain(queue).collect();
                        return Ok(Walk {
                            real,
                            missing,
                            is_dir: true,
                        });
                    }
                },
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    match rustix::fs::readlinkat(top, &*name, Vec::new()) {
                        Ok(target) => {
                            links += 1;
                            if links > MAX_LINKS {
                                return Err(Errno::LOOP.into());
                            }
                            let target = OsString::from_vec(target.into_bytes());
                            if target.as_bytes().starts_with(b"/") {
                                dirs.truncate(1);
                                real = PathBuf::new();
                            }
                            for part in components(Path::new(&target)).into_iter().rev() {
                                queue.push_front(part);
                            }
                        }
                        // Not a link: a file.
                        Err(Errno::INVAL) if queue.is_empty() && make.is_none() => {
                            real.push(&name);
                            return Ok(Walk {
                                real,
                                missing: Vec::new(),
                                is_dir: false,
                            });
                        }
                        Err(Errno::INVAL) => return Err(Errno::NOTDIR.into()),
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Walk {
            real,
            missing: Vec::new(),
            is_dir: true,
        })
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn own(fd: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

fn times(mtime: (i64, i64)) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Owner first, since chown clears set-id bits and capabilities; time last.
fn finish(fd: impl AsFd, a: &Attributes) -> io::Result<()> {
    own(&fd, a.uid, a.gid)?;
    rustix::fs::fchmod(&fd, Mode::from(a.mode & 0o7777))?;
    for (name, value) in &a.xattrs {
        rustix::fs::fsetxattr(&fd, &**name, value, XattrFlags::empty())?;
    }
    rustix::fs::futimens(&fd, &times(a.mtime))?;
    Ok(())
}

/// Sets the attributes of a directory.
pub(crate) fn finish_dir(dir: impl AsFd, a: &Attributes) -> io::Result<()> {
    finish(dir, a)
}

/// Extended attributes that belong into an image. Overlay's own and the host's security labels do not.
pub(crate) fn xattrs(fd: impl AsFd) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let size = match rustix::fs::flistxattr_query(&fd) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = vec![0; size];
    let size = rustix::fs::flistxattr(&fd, &mut names[..])?;
    let mut found = Vec::new();
    for name in names[..size].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; rustix::fs::fgetxattr_query(&fd, name)?];
        let size = rustix::fs::fgetxattr(&fd, name, &mut value[..])?;
        value.truncate(size);
        found.push((OsStr::from_bytes(name).to_owned(), value));
    }
    found.sort();
    Ok(found)
}

/// Whether an upper directory hides the one below it.
pub(crate) fn is_opaque(fd: impl AsFd) -> io::Result<bool> {
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        match rustix::fs::fgetxattr_query(&fd, name) {
            Ok(_) => return Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

/// Removes what stands in the way of a new entry that is not a directory. `Ok(false)`: a directory does.
pub(crate) fn make_room(dir: impl AsFd, name: &OsStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes a file with this content; the name is free.
pub(crate) fn put_file(
    dir: impl AsFd,
    name: &OsStr,
    content: &mut dyn Content,
    a: &Attributes,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = rustix::fs::openat(dir, name, flags, Mode::from(0o600))?.into();
    content.copy_to(&mut file)?;
    finish(&file, a)
}

/// Something to fill a file with. Files are told apart, so that the kernel copies them.
pub(crate) trait Content {
    fn copy_to(&mut self, file: &mut File) -> io::Result<u64>;
}

impl Content for File {
    fn copy_to(&mut self, file: &mut File) -> io::Result<u64> {
        io::copy(self, file)
    }
}

/// Any other reader.
pub(crate) struct Stream<R>(pub(crate) R);

impl<R: io::Read> Content for Stream<R> {
    fn copy_to(&mut self, file: &mut File) -> io::Result<u64> {
        io::copy(&mut self.0, file)
    }
}

/// Makes a symbolic link; the name is free.
pub(crate) fn put_link(
    dir: impl AsFd,
    name: &OsStr,
    target: &OsStr,
    a: &Attributes,
) -> io::Result<()> {
    rustix::fs::symlinkat(target, &dir, name)?;
    finish_unopened(dir, name, a)
}

/// Makes a FIFO or a device; the name is free.
pub(crate) fn put_special(
    dir: impl AsFd,
    name: &OsStr,
    kind: FileType,
    device: u64,
    a: &Attributes,
) -> io::Result<()> {
    let mode = Mode::from(a.mode & 0o7777);
    rustix::fs::mknodat(&dir, name, kind, mode, device)?;
    finish_unopened(&dir, name, a)?;
    // mknod applies the umask; the entry was just made, so it is no link that could be followed.
    rustix::fs::chmodat(&dir, name, mode, AtFlags::empty())?;
    Ok(())
}

fn finish_unopened(dir: impl AsFd, name: &OsStr, a: &Attributes) -> io::Result<()> {
    rustix::fs::chownat(
        &dir,
        name,
        Some(Uid::from_raw(a.uid)),
        Some(Gid::from_raw(a.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    rustix::fs::utimensat(&dir, name, &times(a.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(dir: &Path) -> Tree {
        Tree::of_host(dir).expect("tree")
    }

    #[test]
    fn links_stay_inside() {
        let outer = tempfile::tempdir().expect("dir");
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("usr/bin")).expect("dirs");
        std::fs::write(outer.path().join("secret"), "s").expect("secret");
        symlink("usr/bin", root.join("bin")).expect("link");
        symlink("/usr", root.join("abs")).expect("link");
        symlink("../../..", root.join("up")).expect("link");
        symlink("../../secret", root.join("steal")).expect("link");
        symlink("loop", root.join("loop")).expect("link");
        let t = tree(&root);

        assert_eq!(
            t.walk(Path::new("/bin/x"), None).expect("walk").real,
            Path::new("usr/bin")
        );
        assert_eq!(
            t.walk(Path::new("abs/bin"), None).expect("walk").real,
            Path::new("usr/bin")
        );
        assert_eq!(
            t.walk(Path::new("up/usr"), None).expect("walk").real,
            Path::new("usr")
        );
        assert!(t.stat(Path::new("steal"), true).expect("stat").is_none());
        assert!(
            t.stat(Path::new("../secret"), true)
                .expect("stat")
                .is_none()
        );
        assert!(t.walk(Path::new("loop/x"), None).is_err());

        t.walk(Path::new("up/made/here"), Some((0, 0)))
            .expect("made");
        assert!(root.join("made/here").is_dir());
        t.walk(Path::new("bin/sub"), Some((0, 0))).expect("made");
        assert!(root.join("usr/bin/sub").is_dir());
    }

    #[test]
    fn a_dangling_link_is_made_where_it_points() {
        let dir = tempfile::tempdir().expect("dir");
        symlink("/run/real", dir.path().join("link")).expect("link");
        let t = tree(dir.path());
        let walk = t.walk(Path::new("link/x"), None).expect("walk");
        assert_eq!(walk.real, Path::new(""));
        assert_eq!(walk.missing, ["run", "real", "x"]);
        t.walk(Path::new("link/x"), Some((0, 0))).expect("made");
        assert!(dir.path().join("run/real/x").is_dir());
    }

    #[test]
    fn a_file_in_the_middle_is_not_a_directory() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("f"), "").expect("file");
        let t = tree(dir.path());
        assert!(!t.walk(Path::new("f"), None).expect("walk").is_dir);
        let e = t.walk(Path::new("f/x"), Some((0, 0))).expect_err("refused");
        assert_eq!(e.raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
    }
}
