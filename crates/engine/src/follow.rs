//! Reads an instance's output as it is written, from its log: a slow reader holds nobody up, and
//! one that is slower than the log is long loses the oldest of it.
//!
//! The log is two segments ([`crate::log`]). Segments are counted; a follower reads one to its end
//! before it takes the next.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use tokio::sync::watch;

use crate::instance::View;
use crate::log::{self, Entry, Grown};

/// The most bytes that are read at a time.
const CHUNK: u64 = 256 * 1024;

/// The output of one instance, from some moment on.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    grown: watch::Receiver<Grown>,
    view: watch::Receiver<View>,
    /// Count of the segment that is read.
    segment: u64,
    /// `None` until there is one.
    file: Option<File>,
    /// The beginning of an entry whose rest has not been read.
    pending: Vec<u8>,
}

impl Follower {
    /// Begins with the oldest output that is kept, or with what is written from now on.
    pub(crate) fn new(
        dir: PathBuf,
        grown: watch::Receiver<Grown>,
        view: watch::Receiver<View>,
        from_now: bool,
    ) -> io::Result<Follower> {
        let mut follower = Follower {
            dir,
            grown,
            view,
            segment: 0,
            file: None,
            pending: Vec::new(),
        };
        let now = *follower.grown.borrow();
        follower.segment = now.segment;
        if from_now {
            if let Some(mut file) = follower.open(log::CURRENT)? {
                // Also the first segment's length is known once something was written by this
                // daemon.
                let end = match now.length {
                    0 => file.metadata()?.len(),
                    length => length,
                };
                file.seek(SeekFrom::Start(end))?;
                follower.file = Some(file);
            }
        } else if let Some(file) = follower.open(log::BEFORE)? {
            // It counts as the one before, though an earlier daemon may have written it: then
            // `segment` is 0, and the next one is the current.
            follower.file = Some(file);
            follower.segment = now.segment.wrapping_sub(1);
        }
        Ok(follower)
    }

    /// The next output, in order; `None` at the end: the instance does not run, and all was read.
    ///
    /// # Errors
    /// The disk's.
    pub async fn next(&mut self) -> io::Result<Option<Vec<Entry>>> {
        loop {
            // Looked at before reading: what was written before the end is read before the end is
            // told.
            let ended = self.view.borrow_and_update().has_ended();
            let entries = self.read()?;
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
            if ended {
                return Ok(None);
            }
            // The instance is removed when either has no sender any more.
            let open = tokio::select! {
                changed = self.grown.changed() => changed.is_ok(),
                changed = self.view.changed() => changed.is_ok(),
            };
            if !open {
                let rest = self.read()?;
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }

    /// Returns the output that is there now.
    ///
    /// # Errors
    /// The disk's.
    pub fn backlog(&mut self) -> io::Result<Vec<Entry>> {
        let mut all = Vec::new();
        loop {
            let entries = self.read()?;
            if entries.is_empty() {
                return Ok(all);
            }
            all.extend(entries);
        }
    }

    /// Some whole entries; none if there are none now.
    fn read(&mut self) -> io::Result<Vec<Entry>> {
        loop {
            let now = *self.grown.borrow_and_update();
            if self.file.is_none() && self.segment == now.segment {
                self.file = self.open(log::CURRENT)?;
            }
            let read = match &mut self.file {
                Some(file) => file.take(CHUNK).read_to_end(&mut self.pending)?,
                None => 0,
            };
            let (entries, taken) = log::parse(&self.pending);
            self.pending.drain(..taken as usize);
            if !entries.is_empty() {
                return Ok(entries);
            }
            if read > 0 {
                continue;
            }
            if self.segment == now.segment {
                return Ok(Vec::new());
            }
            // This one is whole. The next may be gone already.
            let next = self.segment.wrapping_add(1);
            let is_kept = next == now.segment || next.wrapping_add(1) == now.segment;
            self.segment = if is_kept { next } else { now.segment };
            let name = if self.segment == now.segment {
                log::CURRENT
            } else {
                log::BEFORE
            };
            self.pending.clear();
            self.file = self.open(name)?;
            if self.grown.borrow().segment != now.segment {
                // The names have moved on meanwhile: by one, so what was opened as the current may
                // be a later one. It is read as what it is only if the count says so.
                self.segment = self.grown.borrow().segment;
                self.file = self.open(log::CURRENT)?;
            }
        }
    }

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        log::open(&self.dir, name)
    }
}
