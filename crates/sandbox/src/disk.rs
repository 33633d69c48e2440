//! Disks: file systems of a fixed size, for what a container writes. A write past the end gets
//! ENOSPC, and the host's disk stays as it is.
//!
//! Owns: making one (a sparse file without a name, a loop device, ext4 without a journal, a mount
//! that is attached nowhere), and what is known of its use. Must not: keep any ready; that is for
//! who knows which sizes are wanted.
//!
//! Nothing of a disk has a name, so whatever dies, the kernel removes it with its last user: the
//! handles of the daemon and of the spawner, and the container whose root lies on it. The file
//! grows with what is written, and shrinks when it is trimmed ([`Disk::trim`]): with each removal
//! (the mount option `discard`), removing many small files took four times as long. Its content is
//! of no use after a crash of the machine: no journal, no barriers.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, IFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::exhaustion::{UsedUp, is_exhaustion};
use crate::sys;

/// Smaller disks are made this big.
const SMALLEST: u64 = 16 << 20;
/// A write is refused in one piece with all that the kernel caches together, so this much, bytes,
/// may stay free.
const NEARLY: u64 = 2 << 20;
/// Up to this many files are removed one by one when a disk is to be used again.
const FEW_FILES: u64 = 20_000;
/// What an emptied disk may hold more than a new one, bytes: the kernel rounds.
const EMPTY_ENOUGH: u64 = 64 << 10;
/// How much may be written to a disk, bytes, before its file is worth looking at for what was
/// removed again: when it is emptied, and meanwhile.
const TRIM_EMPTIED: u64 = 1 << 20;
const TRIM_USED: u64 = 64 << 20;
/// Directories of a new disk. Nobody but the owner of the disk makes others beside them.
const DIRECTORIES: [&str; 2] = [UPPER, "work"];
const UPPER: &str = "upper";
/// The attribute of `upper` that overlayfs sets, with its NUL.
const OVERLAY_UUID: &[u8] = b"trusted.overlay.uuid\0";
/// ext4's own.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Loop devices are taken by other programs, too: how often to ask for another one.
const ATTEMPTS: u32 = 1000;
/// Held by whoever looks for a free one.
static ATTACHING: Mutex<()> = Mutex::new(());

/// An empty file system of one size, of which disks are copies: making one anew takes ten times as
/// long.
#[derive(Debug)]
pub struct Template {
    /// Where the disks' files are.
    dir: PathBuf,
    file: File,
}

/// A disk, mounted.
#[derive(Debug)]
pub struct Disk {
    mount: OwnedFd,
    device: PathBuf,
    /// `None` for one that was found mounted.
    new: Option<New>,
    /// What had been written when it was trimmed, bytes.
    trimmed: AtomicU64,
}

/// What a new disk looked like, to tell one that was emptied from it.
#[derive(Debug, Clone, Copy)]
struct New {
    /// Bytes.
    used: u64,
    upper: Look,
}

/// Whatever of a directory's own (not of what is in it) its users can change, times aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    mode: u32,
    owner: (u32, u32),
    /// Bytes: it does not shrink.
    size: i64,
    /// Flags that chattr(1) sets.
    flags: IFlags,
    has_attributes: bool,
}

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes in use, the file system's own small needs included.
    pub used: u64,
    /// Bytes that it holds.
    pub limit: u64,
    /// Whether next to nothing is left (2 MiB or a hundredth), or not one more file has a place: so
    /// it looks after a write that got ENOSPC.
    pub is_full: bool,
}

impl Template {
    /// Runs `mkfs.ext4` (e2fsprogs). The disks hold `bytes` of data; their files will be in `dir`,
    /// without names.
    ///
    /// # Errors
    /// For a person: no such program, or what it says.
    pub fn make(dir: &Path, bytes: u64) -> io::Result<Template> {
        let file = nameless(dir)?;
        // On top of what was asked for: tables for files (one per 16 KiB, 256 bytes each), and what
        // ext4 keeps back for itself (2 %, at most 4096 blocks).
        let bytes = bytes.max(SMALLEST);
        let own = bytes / 56 + (bytes / 48).min(16 << 20) + (1 << 20);
        file.set_len((bytes + own).next_multiple_of(4096))?;
        let out = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-m", "0", "-i", "16384"])
            .args(["-O", "^has_journal,^resize_inode"])
            .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
            .arg(format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                file.as_raw_fd()
            ))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| io::Error::new(e.kind(), format!("mkfs.ext4 (package e2fsprogs): {e}")))?;
        if !out.status.success() {
            let text = String::from_utf8_lossy(&out.stderr);
            return Err(io::Error::other(format!("mkfs.ext4: {}", text.trim())));
        }
        Ok(Template {
            dir: dir.to_owned(),
            file,
        })
    }

    /// Makes a disk. Takes some milliseconds.
    ///
    /// # Errors
    /// No loop device to be had, or a full host.
    pub fn disk(&self) -> io::Result<Disk> {
        let copy = nameless(&self.dir)?;
        copy_data(&self.file, &copy)?;
        let (device, loop_device) = attach_loop(&copy)?;
        let fs = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(fs.as_fd(), "source", device.as_path())?;
        // The file is all holes: nothing has to be written into the tables for files.
        for flag in ["nobarrier", "noinit_itable"] {
            fsconfig_set_flag(fs.as_fd(), flag)?;
        }
        let mount = mount(&fs)?;
        drop(loop_device); // The mount holds the device from here on, and the device goes with it.
        for name in DIRECTORIES {
            make_directory(mount.as_fd(), name)?;
        }
        let mut disk = Disk {
            mount,
            device,
            new: None,
            trimmed: AtomicU64::new(0),
        };
        // The device may have been another disk's.
        disk.trimmed = disk.written()?.into();
        disk.new = Some(New {
            used: disk.usage()?.used,
            upper: look(disk.open(UPPER)?.as_fd())?,
        });
        Ok(disk)
    }
}

impl Disk {
    /// A disk that is mounted already: [`crate::Survivor::disk`] with the device in the request
    /// that started the process.
    pub fn from_mount(mount: OwnedFd, device: PathBuf) -> Disk {
        Disk {
            mount,
            device,
            new: None,
            trimmed: AtomicU64::new(0),
        }
    }

    /// The block device, for [`crate::spec::DiskMount`].
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The mount, for [`crate::SpawnFds::disk`].
    pub fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Its root directory, for this process only, and while this value lives. Below are `upper` and
    /// `work`.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.mount.as_raw_fd()).into()
    }

    /// How full it is.
    ///
    /// # Errors
    /// Those of statfs(2).
    pub fn usage(&self) -> io::Result<DiskUsage> {
        let found = rustix::fs::fstatvfs(&self.mount)?;
        let used = (found.f_blocks - found.f_bfree) * found.f_frsize;
        let limit = used + found.f_bavail * found.f_frsize;
        Ok(DiskUsage {
            used,
            limit,
            is_full: found.f_bavail * found.f_frsize < NEARLY.max(limit / 128)
                || found.f_ffree == 0,
        })
    }

    /// Empties it, for the next container; for when none uses it any more. `false`: it had better
    /// not be used again.
    ///
    /// What was not written out yet and is removed is never written. A disk with very many files is
    /// ended where it stands instead, which takes no longer than for one with few, but leaves an
    /// alarming line in the kernel's log ("shut down requested").
    ///
    /// # Errors
    /// The kernel refused; the disk goes with its last user all the same.
    pub fn empty(&self) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.mount, ".", flags, Mode::empty())?;
        let mut made = Vec::new();
        let found = rustix::fs::fstatvfs(&self.mount)?;
        if found.f_files - found.f_ffree > FEW_FILES {
            sys::shut_down_ext4(root.as_fd())?;
            return Ok(false);
        }
        for entry in rustix::fs::Dir::read_from(&root)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b".." | LOST_AND_FOUND) {
                continue;
            }
            if let Some(own) = DIRECTORIES.iter().find(|own| own.as_bytes() == name)
                && self.clear(own)?
            {
                made.push(*own);
                continue;
            }
            // Never through a link: the content is a container's.
            std::fs::remove_dir_all(self.path().join(OsStr::from_bytes(name)))?;
        }
        for name in DIRECTORIES.iter().filter(|name| !made.contains(name)) {
            make_directory(self.mount.as_fd(), name)?;
        }
        self.trim_after(TRIM_EMPTIED)?;
        let used = self.usage()?.used;
        Ok(self.new.is_some_and(|new| used <= new.used + EMPTY_ENOUGH))
    }

    /// Gives back to the host what was written and removed again (fstrim(8)), if that may be much.
    /// To be called now and then while it is in use.
    ///
    /// # Errors
    /// The kernel refused; the host gets it back with the end of the disk.
    pub fn trim(&self) -> io::Result<()> {
        self.trim_after(TRIM_USED)
    }

    fn trim_after(&self, bytes: u64) -> io::Result<()> {
        let written = self.written()?;
        if written.saturating_sub(self.trimmed.load(Ordering::Relaxed)) < bytes {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.mount, ".", flags, Mode::empty())?;
        sys::trim(root.as_fd())?;
        self.trimmed.store(written, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes, by whatever the device was used for (the kernel's Documentation/block/stat.rst).
    fn written(&self) -> io::Result<u64> {
        const SECTORS_WRITTEN: usize = 6;
        let name = self.device.file_name().unwrap_or_default();
        let path = Path::new("/sys/block").join(name).join("stat");
        let text = std::fs::read_to_string(path)?;
        let sectors = text
            .split_ascii_whitespace()
            .nth(SECTORS_WRITTEN)
            .and_then(|number| number.parse::<u64>().ok());
        Ok(sectors.ok_or(io::ErrorKind::InvalidData)? * 512)
    }

    /// Removes what is in one of [`DIRECTORIES`]; whether it is as in a new disk then. It mostly
    /// is, and making it anew costs much more.
    fn clear(&self, name: &str) -> io::Result<bool> {
        let (Some(new), Ok(directory)) = (self.new, self.open(name)) else {
            return Ok(false);
        };
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let inside = entry.file_name().to_bytes();
            if matches!(inside, b"." | b"..") {
                continue;
            }
            let path = self.path().join(name).join(OsStr::from_bytes(inside));
            match entry.file_type() {
                FileType::Directory => std::fs::remove_dir_all(path)?,
                _ => std::fs::remove_file(path)?,
            }
        }
        if look(directory.as_fd())? != new.upper {
            return Ok(false);
        }
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        rustix::fs::futimens(&directory, &times)?;
        Ok(true)
    }

    /// Opens one of [`DIRECTORIES`].
    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.mount, name, flags, Mode::empty())?)
    }
}

fn look(directory: BorrowedFd<'_>) -> io::Result<Look> {
    let stat = rustix::fs::fstat(directory)?;
    let mut names = [0; 256];
    let has_attributes = match rustix::fs::flistxattr(directory, &mut names[..]) {
        // overlayfs may have named the file system that it made of it: of no meaning to another
        // one.
        Ok(size) => names[..size]
            .split_inclusive(|byte| *byte == 0)
            .any(|name| name != OVERLAY_UUID),
        Err(Errno::RANGE) => true,
        Err(error) => return Err(error.into()),
    };
    Ok(Look {
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        size: stat.st_size,
        flags: rustix::fs::ioctl_getflags(directory)?,
        has_attributes,
    })
}

fn make_directory(root: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(root, name, mode)?;
    // Whatever the daemon's umask is: `upper` is the container's `/`, also for its unprivileged
    // users.
    Ok(rustix::fs::chmodat(
        root,
        name,
        mode,
        rustix::fs::AtFlags::empty(),
    )?)
}

/// Another mount of what is mounted, attached nowhere. Mounting the device again would do the same,
/// but looks through all disks of the machine.
pub(crate) fn another_mount(mount: BorrowedFd<'_>, device: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    match open_tree(mount, "", flags) {
        // Before Linux 6.15, only of what is attached somewhere.
        Err(Errno::INVAL) => mount_device(device),
        other => Ok(other?),
    }
}

/// The mount of a device's file system, attached nowhere. All mounts of one device are of one file
/// system.
pub(crate) fn mount_device(device: &Path) -> io::Result<OwnedFd> {
    let fs = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", device)?;
    mount(&fs)
}

fn mount(fs: &OwnedFd) -> io::Result<OwnedFd> {
    fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// A file that goes with its last descriptor.
fn nameless(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir, flags, Mode::from_raw_mode(0o600));
    file.map(File::from).map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("a file in {}: {e}", dir.display()))
    })
}

/// Copies what is not a hole, by reference where the file system can.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(()), // Only a hole is left.
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        let (mut source, mut target) = (begin, begin);
        while source < at {
            let rest = usize::try_from(at - source).unwrap_or(usize::MAX);
            let copied =
                rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), rest)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

/// A free loop device that shows `file` until its last user is gone.
fn attach_loop(file: &File) -> io::Result<(PathBuf, File)> {
    let open = |path: &Path| {
        let opened = File::options().read(true).write(true).open(path);
        opened.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    };
    let control = open(Path::new("/dev/loop-control"))?;
    // All that ask at the same moment are told of the same device.
    let _turn = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..ATTEMPTS {
        let device = PathBuf::from(format!(
            "/dev/loop{}",
            sys::free_loop_device(control.as_fd()).map_err(attaching)?
        ));
        let opened = open(&device)?;
        match sys::configure_loop_device(opened.as_fd(), file.as_fd()) {
            Ok(()) => return Ok((device, opened)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {} // Somebody was faster.
            Err(error) => return Err(attaching(error)),
        }
    }
    Err(UsedUp("no free loop device (max_loop of the kernel's module loop)".to_owned()).into())
}

/// Says what was being done, unless the error names what is used up.
fn attaching(error: io::Error) -> io::Error {
    match is_exhaustion(&error) {
        true => error,
        false => io::Error::new(error.kind(), format!("attaching a loop device: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn many_are_made_at_once() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let template = Template::make(dir.path(), SMALLEST).unwrap();
        let barrier = std::sync::Barrier::new(100);
        let made: Vec<io::Result<Disk>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..100)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        template.disk()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let failed: Vec<_> = made.iter().filter_map(|disk| disk.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    }

    #[test]
    fn an_emptied_disk_is_as_a_new_one() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let template = Template::make(dir.path(), 64 << 20).unwrap();
        let disk = template.disk().unwrap();
        let new = disk.usage().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        for name in ["upper/a/b/c", "work/work", "volumes/0/upper"] {
            std::fs::create_dir_all(disk.path().join(name)).unwrap();
        }
        std::fs::write(disk.path().join("upper/a/file"), vec![1; 3 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, disk.path().join("upper/link")).unwrap();
        std::os::unix::fs::symlink(&outside, disk.path().join("upper/a/b/link")).unwrap();
        assert!(disk.empty().unwrap());
        assert_eq!(disk.usage().unwrap(), new);
        let mut names: Vec<_> = std::fs::read_dir(disk.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["lost+found", "upper", "work"]);
        assert_eq!(
            std::fs::read_dir(disk.path().join("upper"))
                .unwrap()
                .count(),
            0
        );
        assert!(outside.join("kept").exists(), "links were followed");
        // One with a file that somebody still holds is not.
        let held = File::create(disk.path().join("upper/held")).unwrap();
        (&held).write_all(&vec![1; 1 << 20]).unwrap();
        assert!(!disk.empty().unwrap());
    }

    /// Writes so many MiB, has them written out, removes them, does something, and tells how many
    /// of them the disk's file still has.
    fn left_of(mebibytes: usize, then: impl FnOnce(&Disk)) -> usize {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let template = Template::make(dir.path(), 160 << 20).unwrap();
        let disk = template.disk().unwrap();
        let path = disk.path().join("upper/file");
        let mut file = File::create(&path).unwrap();
        let known = [0xa5; 1 << 20];
        (0..mebibytes).for_each(|_| file.write_all(&known).unwrap());
        file.sync_all().unwrap();
        drop(file);
        std::fs::remove_file(path).unwrap();
        then(&disk);
        let whole = std::fs::read(disk.device()).unwrap();
        whole.iter().filter(|byte| **byte == 0xa5).count() >> 20
    }

    #[test]
    fn the_host_gets_back_what_was_removed() {
        let trim = |disk: &Disk| disk.trim().unwrap();
        assert_eq!(left_of(80, trim), 0);
        assert!(left_of(8, trim) > 0, "for so little it was done, too");
        assert_eq!(left_of(8, |disk| assert!(disk.empty().unwrap())), 0);
    }

    #[test]
    fn what_a_container_did_to_its_root_directory_is_gone_from_an_emptied_disk() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let template = Template::make(dir.path(), SMALLEST).unwrap();
        let disk = template.disk().unwrap();
        let upper = disk.path().join("upper");
        let look_now = || look(disk.open(UPPER).unwrap().as_fd()).unwrap();
        let (new, inode) = (look_now(), || std::fs::metadata(&upper).unwrap().ino());
        let first = inode();
        assert!(disk.empty().unwrap());
        assert_eq!((inode(), look_now()), (first, new), "it is kept as it is");
        type Change = fn(&Path);
        let changes: [(&str, Change); 5] = [
            ("mode", |upper| {
                std::fs::set_permissions(upper, std::fs::Permissions::from_mode(0o700)).unwrap();
            }),
            ("owner", |upper| {
                std::os::unix::fs::chown(upper, Some(1000), None).unwrap();
            }),
            ("attribute", |upper| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(upper, "user.mine", b"x", flags).unwrap();
            }),
            ("flag", |upper| {
                let opened = File::open(upper).unwrap();
                let flags = rustix::fs::ioctl_getflags(&opened).unwrap();
                rustix::fs::ioctl_setflags(&opened, flags | IFlags::NODUMP).unwrap();
            }),
            ("size", |upper| {
                (0..300).for_each(|n| {
                    std::fs::write(upper.join(format!("a long name of a file, {n}")), "").unwrap();
                });
            }),
        ];
        for (what, change) in changes {
            change(&upper);
            assert!(disk.empty().unwrap(), "{what}");
            assert_eq!(look_now(), new, "{what}");
        }
    }

    #[test]
    fn a_disk_holds_what_it_says_and_nothing_more() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let template = Template::make(dir.path(), 64 << 20).unwrap();
        let disk = template.disk().unwrap();
        let usage = disk.usage().unwrap();
        assert!(
            usage.limit >= 64 << 20 && usage.limit < 66 << 20,
            "{usage:?}"
        );
        assert!(usage.used < 1 << 20 && !usage.is_full, "{usage:?}");
        let mut file = File::create(disk.path().join("upper/file")).unwrap();
        let chunk = vec![7; 1 << 20];
        let mut written = 0;
        let error = loop {
            match file.write_all(&chunk) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!((63..66).contains(&written), "{written} MiB");
        let usage = disk.usage().unwrap();
        assert!(usage.is_full, "{usage:?}");
        let other = template.disk().unwrap();
        assert!(!other.usage().unwrap().is_full, "each has its own");
        assert_ne!(other.device(), disk.device());
        // Nothing has a name, and nothing is mounted for others to see.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(disk.device().to_str().unwrap()),
            "{mounts}"
        );
        let device = disk.device().to_owned();
        drop(file);
        drop(disk);
        let backing = Path::new("/sys/block")
            .join(device.file_name().unwrap())
            .join("loop/backing_file");
        let begin = std::time::Instant::now();
        // Another test may have taken the device since.
        while std::fs::read_to_string(&backing)
            .is_ok_and(|f| f.contains(dir.path().to_str().unwrap()))
        {
            assert!(begin.elapsed().as_secs() < 10, "{backing:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
