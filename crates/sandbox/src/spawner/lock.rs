//! What the spawner and its warden share as processes without the daemon: the lock of the socket,
//! and standard streams that lead nowhere.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::sys;

/// How long to wait for a spawner that is just ending.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// `<socket>.lock`: held for life, so that there is one spawner per socket.
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for a spawner that is just ending.
    pub(super) fn take(socket: &Path) -> io::Result<Lock> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Lock::try_take(socket)? {
                return Ok(lock);
            }
            if start.elapsed() >= LOCK_WAIT {
                return Err(io::Error::other(format!(
                    "another spawner holds {}",
                    Lock::path(socket).display()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `None`: somebody else holds it.
    ///
    /// # Errors
    /// NotFound if the socket's directory is gone; otherwise those of open(2) and flock(2).
    pub(super) fn try_take(socket: &Path) -> io::Result<Option<Lock>> {
        let path = Lock::path(socket);
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // An ending spawner removes the file: then this lock is on a file that nobody finds
                // any more.
                Ok(()) => match std::fs::metadata(&path) {
                    Ok(found) if found.ino() == file.metadata()?.ino() => {
                        return Ok(Some(Lock { path, _file: file }));
                    }
                    _ => continue,
                },
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn path(socket: &Path) -> PathBuf {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        PathBuf::from(path)
    }

    /// Removes the file, and with it the lock.
    pub(super) fn release(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// Makes /dev/null of standard input and output: the daemon waits for the end of the pipe that they
/// are.
pub(super) fn let_go_of_streams() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for number in [0, 1] {
        // SAFETY: the standard streams are owned by nobody; they stay open.
        unsafe { sys::dup_onto(null.as_fd(), number) }?;
    }
    Ok(())
}
