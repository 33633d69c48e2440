//! Disks kept ready, so that no start waits for one to be made.
//!
//! Owns: for each size that was ever asked for, a template and some disks. Must not: know of instances.
//!
//! Making a disk takes some 10 ms, handing one out nothing. What was handed out is made anew in the background.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wharf_sandbox::Disk;
use wharf_sandbox::disk::Template;

/// Ready ones of each size.
const READY: usize = 4;
/// Of the disk that is made to see whether it can be done.
const PROBE_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Disks {
    dir: PathBuf,
    /// Why there are none.
    unsupported: Option<String>,
    shelves: Mutex<HashMap<u64, Arc<Shelf>>>,
}

/// Of one size.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks {
    /// Files are made in `dir`. Blocks: it makes one, to see whether it can be done here.
    pub(crate) fn open(dir: &Path) -> Disks {
        let probe = Template::make(dir, PROBE_BYTES).and_then(|template| template.disk());
        Disks {
            dir: dir.to_owned(),
            unsupported: probe.err().map(|e| e.to_string()),
            shelves: Mutex::default(),
        }
    }

    /// Why disk limits are not enforced on this machine, if they are not.
    pub(crate) fn unsupported(&self) -> Option<&str> {
        self.unsupported.as_deref()
    }

    /// A disk that holds `bytes`, if one is ready.
    pub(crate) fn take_ready(&self, bytes: u64) -> Option<Disk> {
        let shelf = lock(&self.shelves).get(&bytes)?.clone();
        let ready = lock(&shelf.state).ready.pop();
        refill(&shelf);
        ready
    }

    /// A disk that holds `bytes`. Blocks, if none is ready. `None`: not on this machine.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> io::Result<Option<Disk>> {
        if self.unsupported.is_some() {
            return Ok(None);
        }
        let shelf = self.shelf(bytes)?;
        let ready = lock(&shelf.state).ready.pop();
        refill(&shelf);
        match ready {
            Some(disk) => Ok(Some(disk)),
            None => shelf.template.disk().map(Some),
        }
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

/// In the background; one at a time for each size.
fn refill(shelf: &Arc<Shelf>) {
    if std::mem::replace(&mut lock(&shelf.state).is_filling, true) {
        return;
    }
    let shelf = shelf.clone();
    tokio::task::spawn_blocking(move || {
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
    });
}
