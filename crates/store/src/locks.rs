//! Locks for work that is longer than a transaction, such as a deploy that waits until its Worker
//! serves.
//!
//! Owns: this node's session, which is a lease that is kept alive while the store is open, and
//! places in queues, which are keys that go with it. A node that dies leaves no lock: its places go
//! when its lease runs out, or at once when it starts again.
//! Must not: be what consistency of records rests on. Each change is a guarded transaction anyway;
//! a node that was stopped for longer than [`SESSION`] has lost its places and may not know it.
//!
//! ```text
//! locks/<name>/<place> made -> the oldest place of the name holds the lock
//!                           -> others wait until the place before theirs goes, and look again
//! ```

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use crate::meta::{Changes, Event, LeaseId, List, MetaStore, Op, Record, Txn, wait};
use crate::{Inner, Result, Store, StoreError, keys, random};

/// How long what belongs to a node outlives it.
const SESSION: Duration = Duration::from_secs(30);

/// This node, as the only one of its store.
const NODE: &str = "local";

/// The lease under which this node has its locks, and the thread that keeps it alive.
#[derive(Debug, Default)]
pub(crate) struct Session(Mutex<Option<(LeaseId, Thread)>>);

/// A place in the queue for a lock; dropping it gives it up.
#[derive(Debug)]
pub struct Place {
    meta: Arc<dyn MetaStore>,
    prefix: String,
    key: String,
    left: bool,
}

/// A lock that is held, until it is released or dropped.
#[derive(Debug)]
#[must_use = "it is released when dropped"]
pub struct Lock(Place);

impl Lock {
    /// Lets the next one have it. Dropping does the same, and can only log a failure.
    pub fn release(mut self) -> Result<()> {
        self.0.leave()
    }
}

impl Store {
    /// Takes a place in the queue for the lock of a name: first come, first served. Blocks for one
    /// write.
    pub fn queue(&self, name: &str) -> Result<Place> {
        let place = hex::encode(random(16)?);
        let prefix = keys::under("locks", name);
        let key = format!("{prefix}{place}");
        let lease = self.session()?;
        let put = |lease| Txn {
            compares: Vec::new(),
            ops: vec![Op::Put {
                key: key.clone().into_bytes(),
                value: Vec::new(),
                lease: Some(lease),
            }],
        };
        match wait(self.inner.meta.txn(put(lease))) {
            // The process stood still for longer than a session lasts.
            Err(StoreError::LeaseGone(_)) => {
                self.inner.session.forget(lease);
                wait(self.inner.meta.txn(put(self.session()?)))?;
            }
            other => {
                other?;
            }
        }
        Ok(Place {
            meta: Arc::clone(&self.inner.meta),
            prefix,
            key,
            left: false,
        })
    }

    /// The lease of this node's session, begun if there is none.
    pub(crate) fn session(&self) -> Result<LeaseId> {
        let mut session = self.inner.session.lock();
        if let Some((lease, _)) = &*session {
            return Ok(*lease);
        }
        let lease = wait(self.inner.meta.grant(SESSION))?.id;
        self.transact(|draft| draft.put_leased(keys::one("sessions", NODE), "", lease))?;
        let inner = Arc::downgrade(&self.inner);
        let thread = std::thread::Builder::new()
            .name("store-session".to_owned())
            .spawn(move || keep_alive(&inner, lease))
            .map_err(StoreError::Thread)?;
        *session = Some((lease, thread.thread().clone()));
        Ok(lease)
    }

    /// Ends the session of the process that had this store before, and with it its locks.
    pub(crate) fn end_former_session(&self) -> Result<()> {
        let key = keys::one("sessions", NODE);
        let former = wait(self.inner.meta.get(key.as_bytes()))?.record;
        match former.and_then(|record| record.lease) {
            Some(lease) => wait(self.inner.meta.revoke(lease)),
            None => Ok(()),
        }
    }
}

impl Session {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(LeaseId, Thread)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, lease: LeaseId) {
        self.lock().take_if(|(current, _)| *current == lease);
    }

    /// Ends the session, when the store is closed.
    pub(crate) fn end(&self, meta: &dyn MetaStore) {
        if let Some((lease, thread)) = self.lock().take() {
            if let Err(error) = wait(meta.revoke(lease)) {
                tracing::warn!(%error, "the session of this node ends later");
            }
            thread.unpark();
        }
    }
}

fn keep_alive(inner: &Weak<Inner>, lease: LeaseId) {
    loop {
        std::thread::park_timeout(SESSION / 3);
        let Some(inner) = inner.upgrade() else {
            return;
        };
        match wait(inner.meta.keep_alive(lease)) {
            Ok(_) => {}
            Err(StoreError::LeaseGone(_)) => {
                inner.session.forget(lease);
                return;
            }
            Err(error) => tracing::warn!(%error, "the session can't be kept alive"),
        }
    }
}

impl Place {
    /// Waits until it is this place's turn.
    ///
    /// # Errors
    /// [`StoreError::LockLost`] if the place is gone, because the node's session is.
    pub async fn turn(self) -> Result<Lock> {
        loop {
            let listed = self.meta.list(&List::under(self.prefix.as_str())).await?;
            let mine = |record: &&Record| record.key == self.key.as_bytes();
            let Some(own) = listed.records.iter().find(mine) else {
                return Err(StoreError::LockLost);
            };
            let before = listed
                .records
                .iter()
                .filter(|record| record.created < own.created)
                .max_by_key(|record| record.created);
            let Some(before) = before else {
                return Ok(Lock(self));
            };
            let from = listed.revision + 1;
            let mut watch = match self.meta.watch(&before.key, from).await {
                Err(StoreError::Compacted { .. }) => continue,
                watch => watch?,
            };
            loop {
                match watch.next().await {
                    Ok(changes) if !is_gone(&changes, &before.key) => {}
                    // Gone, or history went faster than this watch: look again.
                    Ok(_) | Err(StoreError::Compacted { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn leave(&mut self) -> Result<()> {
        self.left = true;
        let txn = Txn {
            compares: Vec::new(),
            ops: vec![Op::Delete(self.key.clone().into_bytes())],
        };
        wait(self.meta.txn(txn)).map(drop)
    }
}

fn is_gone(changes: &Changes, key: &[u8]) -> bool {
    let mut events = changes.events.iter();
    events.any(|event| matches!(event, Event::Deleted(gone) if gone == key))
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.left
            && let Err(error) = self.leave()
        {
            tracing::error!(%error, lock = self.prefix, "a lock stays until the session ends");
        }
    }
}
