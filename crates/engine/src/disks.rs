//! Disks kept ready, so that no start waits for one to be made.
//!
//! Owns: for each size that was ever asked for, a template and some disks; and who has which. Must
//! not: know of instances.
//!
//! ```text
//!   (none) --make--> ready --take--> leased --free, and nobody looks at it any more--> emptied
//!   emptied --> ready, or gone
//! ```
//!
//! Making a disk takes some 10 ms, handing one out nothing. What was handed out is replaced in the
//! background, but not at once: a start has just taken it, and is more urgent. A disk whose
//! instance is gone is emptied and handed out again, which costs a tenth of a new one.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wharf_sandbox::Disk;
use wharf_sandbox::disk::Template;

use crate::cleanup::Cleanup;

/// Ready ones of each size.
const READY: usize = 32;
/// The most disks of each size that are kept when they come back.
const KEPT: usize = 64;
/// How long a start is left alone with the machine.
const REFILL_DELAY: Duration = Duration::from_millis(30);
/// Size of the disk that is made to see whether this machine can make any.
const PROBE_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Disks {
    dir: PathBuf,
    /// Why there are none.
    unsupported: Option<String>,
    shelves: Mutex<HashMap<u64, Arc<Shelf>>>,
    cleanup: Arc<Cleanup>,
}

/// Disks of one size.
#[derive(Debug)]
struct Shelf {
    template: Template,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<Disk>,
    is_filling: bool,
}

/// A disk that an instance has, and whoever looks at its files.
#[derive(Debug)]
pub(crate) struct DiskLease {
    /// Always there, but in the end.
    disk: Option<Disk>,
    bytes: u64,
    disks: Arc<Disks>,
    is_free: AtomicBool,
}

impl DiskLease {
    pub(crate) fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// No container uses it any more: the last one who looks at it gives it back. Without this it
    /// stays as it is, for a container that outlives the daemon.
    pub(crate) fn free(&self) {
        self.is_free.store(true, Ordering::Release);
    }
}

impl Drop for DiskLease {
    fn drop(&mut self) {
        let (Some(disk), true) = (self.disk.take(), self.is_free.load(Ordering::Acquire)) else {
            return;
        };
        let (disks, bytes) = (self.disks.clone(), self.bytes);
        // Without a runtime the daemon ends, and the disk with it.
        self.disks.cleanup.add(move || {
            if let Err(error) = disks.give_back(bytes, disk) {
                tracing::warn!(%error, "a disk ends only with its last user");
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks {
    /// Files are made in `dir`. Blocks: it makes one, to see whether it can be done here.
    pub(crate) fn open(dir: &Path, cleanup: Arc<Cleanup>) -> Disks {
        let probe = Template::make(dir, PROBE_BYTES).and_then(|template| template.disk());
        Disks {
            dir: dir.to_owned(),
            unsupported: probe.err().map(|e| e.to_string()),
            shelves: Mutex::default(),
            cleanup,
        }
    }

    /// Why disk limits are not enforced on this machine, if they are not.
    pub(crate) fn unsupported(&self) -> Option<&str> {
        self.unsupported.as_deref()
    }

    /// A disk that holds `bytes`, if one is ready.
    pub(crate) fn take_ready(self: &Arc<Self>, bytes: u64) -> Option<DiskLease> {
        let shelf = lock(&self.shelves).get(&bytes)?.clone();
        let ready = lock(&shelf.state).ready.pop();
        refill(&shelf);
        ready.map(|disk| self.lease(bytes, disk))
    }

    /// A disk that holds `bytes`. Blocks, if none is ready. `None`: not on this machine.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> io::Result<Option<DiskLease>> {
        if self.unsupported.is_some() {
            return Ok(None);
        }
        let shelf = self.shelf(bytes)?;
        let ready = lock(&shelf.state).ready.pop();
        refill(&shelf);
        let disk = match ready {
            Some(disk) => disk,
            None => shelf.template.disk()?,
        };
        Ok(Some(self.lease(bytes, disk)))
    }

    /// A disk that somebody has already, and that holds `bytes`.
    pub(crate) fn lease(self: &Arc<Self>, bytes: u64, disk: Disk) -> DiskLease {
        DiskLease {
            disk: Some(disk),
            bytes,
            disks: self.clone(),
            is_free: AtomicBool::new(false),
        }
    }

    /// Takes back a disk that held `bytes`, whose container is gone. Blocks.
    fn give_back(&self, bytes: u64, disk: Disk) -> io::Result<()> {
        let shelf = lock(&self.shelves).get(&bytes).cloned();
        let is_empty = disk.empty()?;
        if let Some(shelf) = shelf.filter(|_| is_empty) {
            let mut state = lock(&shelf.state);
            if state.ready.len() < KEPT {
                state.ready.push(disk);
            }
        }
        Ok(())
    }

    /// Expects that disks of this size will be taken.
    pub(crate) fn expect(self: &Arc<Self>, bytes: u64) -> io::Result<()> {
        if self.unsupported.is_none() {
            refill(&self.shelf(bytes)?);
        }
        Ok(())
    }

    fn shelf(&self, bytes: u64) -> io::Result<Arc<Shelf>> {
        let known = lock(&self.shelves).get(&bytes).cloned();
        if let Some(shelf) = known {
            return Ok(shelf);
        }
        // Two may do it at once; the second one's is dropped.
        let shelf = Arc::new(Shelf {
            template: Template::make(&self.dir, bytes)?,
            state: Mutex::default(),
        });
        Ok(lock(&self.shelves).entry(bytes).or_insert(shelf).clone())
    }
}

/// Makes disks in the background, one at a time for each size.
fn refill(shelf: &Arc<Shelf>) {
    if std::mem::replace(&mut lock(&shelf.state).is_filling, true) {
        return;
    }
    let shelf = shelf.clone();
    tokio::spawn(async move {
        if !lock(&shelf.state).ready.is_empty() {
            tokio::time::sleep(REFILL_DELAY).await;
        }
        tokio::task::spawn_blocking(move || fill(&shelf));
    });
}

fn fill(shelf: &Shelf) {
    loop {
        {
            let mut state = lock(&shelf.state);
            if state.ready.len() >= READY {
                state.is_filling = false;
                return;
            }
        }
        match shelf.template.disk() {
            Ok(disk) => lock(&shelf.state).ready.push(disk),
            Err(error) => {
                tracing::warn!(%error, "no disk could be made ahead");
                lock(&shelf.state).is_filling = false;
                return;
            }
        }
    }
}
