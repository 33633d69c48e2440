//! The directories of instances: made whole or not at all, taken out of the way at once, and used
//! again.
//!
//! Owns: which of them wait for another instance. Must not: know what an instance is; the record's
//! text is its caller's matter.
//!
//! ```text
//!   (none) ------make----> <id> --discard--> .gone-<id> --> removed
//!   .gone-spare-<n> --^                        |
//!          ^------------------ spare <---------'
//! ```
//! What begins with `.gone-` is nobody's: a daemon that dies leaves some, and the next one removes
//! them.
//!
//! Directories of instances with a disk hold next to nothing, and are used again: on a file system
//! without a journal (as ext4 can be) every new file looks through all that were removed in the
//! last seconds, which at some hundred starts a second is most of what a start costs.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cleanup::Cleanup;
use crate::log;
use crate::record::{self, Record};

/// Begins the names of directories that are no instance's.
pub(crate) const GONE_PREFIX: &str = ".gone-";
/// Directory in an instance's own where its disk is mounted, for its process alone.
pub(crate) const DISK: &str = "disk";
/// The most directories that are kept.
const SPARE: usize = 64;

#[derive(Debug)]
pub(crate) struct Directories {
    dir: PathBuf,
    spare: Mutex<Vec<PathBuf>>,
    next: AtomicU64,
    cleanup: Arc<Cleanup>,
}

impl Directories {
    /// In `dir`, which exists or will.
    pub(crate) fn new(dir: &Path, cleanup: Arc<Cleanup>) -> Directories {
        Directories {
            cleanup,
            dir: dir.to_owned(),
            spare: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    /// A directory for an instance, with its record in it; with a place for its disk, or else with
    /// what `fill` puts there.
    ///
    /// # Errors
    /// The directory could not be made; nothing is left of it then.
    pub(crate) fn make(
        &self,
        record: &Record,
        has_disk: bool,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let spare = has_disk.then(|| self.spare().pop()).flatten();
        let is_new = spare.is_none();
        let hidden = spare.unwrap_or_else(|| self.unused("new"));
        let place = self.dir.join(&record.spec.id);
        let made = || {
            if is_new {
                std::fs::create_dir(&hidden)?;
                if has_disk {
                    std::fs::create_dir(hidden.join(DISK))?;
                }
            }
            fill(&hidden)?;
            record.write(&hidden)?;
            std::fs::rename(&hidden, &place)
        };
        made()
            .map(|()| place.clone())
            .inspect_err(|_| remove(&hidden))
    }

    /// Takes a directory out of the way at once; what is in it is removed in the background.
    pub(crate) fn discard(self: &Arc<Self>, dir: &Path, has_disk: bool) {
        let Some(name) = dir.file_name() else { return };
        let mut hidden = OsString::from(GONE_PREFIX);
        hidden.push(name);
        let hidden = dir.with_file_name(hidden);
        if let Err(error) = std::fs::rename(dir, &hidden) {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(dir = %dir.display(), %error, "an instance's directory stays behind; remove it by hand");
            }
            return;
        }
        let directories = self.clone();
        self.cleanup.add(move || {
            if !(has_disk && directories.keep(&hidden)) {
                remove(&hidden);
            }
        });
    }

    /// Makes it ready for another instance, if that can be and is of use.
    fn keep(&self, dir: &Path) -> bool {
        if self.spare().len() >= SPARE {
            return false;
        }
        let unused = self.unused("spare");
        // Whatever else there might be is not for the next one.
        let is_bare = |entry: io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| {
                let name = entry.file_name();
                [DISK, record::FILE, record::WRITTEN, log::CURRENT]
                    .contains(&&*name.to_string_lossy())
            })
        };
        let kept = log::recycle(dir)
            .and_then(|()| Ok(std::fs::read_dir(dir)?.all(is_bare)))
            .is_ok_and(|is_bare| is_bare && std::fs::rename(dir, &unused).is_ok());
        if kept {
            self.spare().push(unused);
        }
        kept
    }

    fn unused(&self, kind: &str) -> PathBuf {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{GONE_PREFIX}{kind}-{n}"))
    }

    fn spare(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(hidden: &Path) {
    if let Err(error) = std::fs::remove_dir_all(hidden)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(dir = %hidden.display(), %error, "an instance's directory stays behind; the next start tries again");
    }
}
