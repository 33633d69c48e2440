//! The seam behind which metadata lies: records under keys, with revisions, transactions, leases
//! and watches, as etcd v3 has them (`api/etcdserverpb/rpc.proto` of etcd-io/etcd).
//!
//! Owns: the contract, [`MetaStore`], and its types. [`sqlite`] is the first implementation;
//! [`conformance`](crate::conformance) has the tests that each implementation must pass.
//! Must not: know what a record means. The typed layer above (`scripts`, `applications`, ...) does.
//!
//! ```text
//! revision    one number for the whole store; each transaction that changes something takes the next
//! record      key -> value, with the revisions that made and last changed it
//! transaction compares hold -> every operation, in order, in one revision
//!             one does not  -> nothing, and the answer names each compare that failed
//! lease       granted -> kept alive again and again -> revoked or run out: its keys are deleted
//! watch       every change from a revision on, in order, none left out; or `Compacted`
//! ```
//!
//! Futures, since a second implementation talks to a network; SQLite's are ready at once.

pub mod sqlite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use crate::{Result, StoreError};

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A state of the whole store. Each transaction that changes something makes the next one.
pub type Revision = u64;

/// A lease's number; one that is over does not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key: any bytes, at least one.
    pub key: Vec<u8>,
    /// The value; empty in a list of keys alone.
    pub value: Vec<u8>,
    /// The revision that made the key.
    pub created: Revision,
    /// The revision that changed it last.
    pub modified: Revision,
    /// 1 when the key was made, one more with each change; a deleted key begins again at 1.
    pub version: u64,
    /// The lease with whose end the key is deleted.
    pub lease: Option<LeaseId>,
}

/// What a key has, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    /// The revision that was read.
    pub revision: Revision,
    /// The record; `None` if there is none.
    pub record: Option<Record>,
}

/// Which records to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// What each key begins with; empty for all.
    pub prefix: Vec<u8>,
    /// From the last key down to the first, instead of up.
    pub descending: bool,
    /// At most so many.
    pub limit: Option<u32>,
    /// Without the values.
    pub keys_only: bool,
}

impl List {
    /// Lists all records under a prefix, in the order of their keys' bytes.
    pub fn under(prefix: impl Into<Vec<u8>>) -> Self {
        Self {
            prefix: prefix.into(),
            descending: false,
            limit: None,
            keys_only: false,
        }
    }

    /// Lists from the last key down.
    pub fn descending(self) -> Self {
        Self {
            descending: true,
            ..self
        }
    }

    /// Lists no more than this.
    pub fn limit(self, limit: u32) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// Lists keys without values.
    pub fn keys_only(self) -> Self {
        Self {
            keys_only: true,
            ..self
        }
    }
}

/// The records of a list, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The revision that was read. A watch from the next one on misses nothing.
    pub revision: Revision,
    /// The records.
    pub records: Vec<Record>,
}

/// What must hold for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key has a record.
    Exists(Vec<u8>),
    /// The key has none.
    Absent(Vec<u8>),
    /// The key's record was last changed by this revision.
    Unchanged(Vec<u8>, Revision),
    /// No key begins with this.
    Empty(Vec<u8>),
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key. Without a lease the key belongs to none, whatever it did before.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
        /// The lease with which it goes.
        lease: Option<LeaseId>,
    },
    /// Deletes a key, if it is there.
    Delete(Vec<u8>),
    /// Deletes every key that begins with this.
    DeletePrefix(Vec<u8>),
    /// Reads a key, as the steps before have left it.
    Get(Vec<u8>),
    /// Lists records, as the steps before have left them.
    List(List),
}

impl Op {
    /// Sets a key that belongs to no lease.
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    fn writes(&self) -> bool {
        matches!(self, Op::Put { .. } | Op::Delete(_) | Op::DeletePrefix(_))
    }
}

/// Steps that are taken together, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All of these must hold.
    pub compares: Vec<Compare>,
    /// Then these are done, in order. No key may be written twice.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Whether it may change anything.
    pub fn writes(&self) -> bool {
        self.ops.iter().any(Op::writes)
    }

    /// Refuses what etcd refuses, too: an empty key, and a key that two steps write.
    ///
    /// # Errors
    /// [`StoreError::InvalidTxn`] says which.
    pub fn check(&self) -> Result<()> {
        let named = |key: &[u8]| match key.is_empty() {
            true => Err(StoreError::InvalidTxn("a key is empty".to_owned())),
            false => Ok(()),
        };
        for compare in &self.compares {
            match compare {
                Compare::Exists(key) | Compare::Absent(key) | Compare::Unchanged(key, _) => {
                    named(key)?;
                }
                Compare::Empty(_) => {}
            }
        }
        let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
        for op in &self.ops {
            match op {
                Op::Put { key, .. } | Op::Delete(key) => {
                    named(key)?;
                    keys.push(key);
                }
                Op::DeletePrefix(prefix) => prefixes.push(prefix),
                Op::Get(key) => named(key)?,
                Op::List(_) => {}
            }
        }
        let twice = |key: &[u8]| {
            Err(StoreError::InvalidTxn(format!(
                "two steps write the key {}",
                key.escape_ascii()
            )))
        };
        keys.sort_unstable();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return twice(pair[0]);
        }
        prefixes.sort_unstable();
        if let Some(pair) = prefixes.windows(2).find(|p| p[1].starts_with(p[0])) {
            return twice(pair[1]);
        }
        for prefix in prefixes {
            // Sorted: the first key that is not before the prefix begins with it, if any does.
            let first = keys.partition_point(|key| *key < prefix);
            if let Some(key) = keys.get(first).filter(|key| key.starts_with(prefix)) {
                return twice(key);
            }
        }
        Ok(())
    }
}

/// What one step of a transaction gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// The key was set.
    Put,
    /// So many keys were deleted.
    Deleted(u64),
    /// The record that was read.
    Got(Option<Record>),
    /// The records that were listed.
    Listed(Vec<Record>),
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was taken.
    Applied {
        /// The revision that it made; the current one if it changed nothing.
        revision: Revision,
        /// One for each step.
        results: Vec<OpResult>,
    },
    /// Nothing happened.
    Refused {
        /// The revision that was compared with.
        revision: Revision,
        /// Indexes of the compares that did not hold, ascending.
        failed: Vec<usize>,
    },
}

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// How long it lives without being kept alive: what was asked for, or more.
    pub ttl: Duration,
}

/// A lease that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Time left.
    pub remaining: Duration,
    /// Its keys, in order.
    pub keys: Vec<Vec<u8>>,
}

/// A change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was set; the record is that of then.
    Put(Record),
    /// The key was deleted.
    Deleted(Vec<u8>),
}

/// What one revision changed under a watch's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The revision.
    pub revision: Revision,
    /// At least one, in the order in which the transaction made them.
    pub events: Vec<Event>,
}

/// A running watch; it ends when dropped.
pub trait Watch: Send {
    /// Waits for the next revision that changed something under the prefix. A future that is
    /// dropped before it is ready loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the watch was so slow that history it needs is gone.
    fn next(&mut self) -> BoxFuture<'_, Result<Changes>>;
}

/// A store of metadata. Everything acknowledged is durable; every call sees what was acknowledged
/// before it began.
pub trait MetaStore: fmt::Debug + Send + Sync + 'static {
    /// Reads one key.
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Got>>;

    /// Lists records, all of one revision.
    fn list<'a>(&'a self, list: &'a List) -> BoxFuture<'a, Result<Listed>>;

    /// Applies all of a transaction, or nothing.
    ///
    /// # Errors
    /// [`StoreError::InvalidTxn`] as [`Txn::check`] says; [`StoreError::LeaseGone`] if a step names
    /// a lease that is over. After either nothing has changed.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>>;

    /// The most compares, and the most steps, that one transaction may have.
    fn max_ops(&self) -> usize;

    /// Grants a lease. etcd counts its time in whole seconds, rounded up.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>>;

    /// Gives a lease its whole time again, and returns that. A store that was opened again does so
    /// with every lease by itself, as a new leader of etcd does.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] if it has run out or was revoked.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration>>;

    /// Ends a lease and deletes its keys, in one revision.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] if it is over already.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>>;

    /// What a lease has; `None` if it is over.
    fn lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<Option<LeaseStatus>>>;

    /// Watches the keys under a prefix, from a revision on; that may lie in the past or the future.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if history from there on is not whole any more. Then list, and
    /// watch from the revision after the list's.
    fn watch<'a>(
        &'a self,
        prefix: &'a [u8],
        from: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>>>;

    /// Forgets history before a revision: what was overwritten or deleted before it. A watch may
    /// still begin at that revision itself.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if that was done already; [`StoreError::InvalidTxn`] for a
    /// revision that is not there yet.
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<()>>;
}

/// The first key after all that begin with `prefix`; `None` if no key is after them.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Waits for a future on this thread, whatever runtime it belongs to. SQLite's are ready at once.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    let noop = &mut Context::from_waker(Waker::noop());
    if let Poll::Ready(value) = future.as_mut().poll(noop) {
        return value;
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_without_it() {
        assert_eq!(prefix_end(b"a/"), Some(b"a0".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }

    #[test]
    fn a_key_that_two_steps_write_is_found() {
        let check = |ops: &[Op]| {
            let ops = ops.to_vec();
            Txn {
                compares: vec![],
                ops,
            }
            .check()
        };
        let delete = |key: &str| Op::Delete(key.into());
        let under = |prefix: &str| Op::DeletePrefix(prefix.into());
        assert!(check(&[Op::put("a", ""), delete("b"), under("c/"), under("d/")]).is_ok());
        for twice in [
            [Op::put("a", ""), Op::put("a", "")],
            [Op::put("a", ""), delete("a")],
            [Op::put("a/b", ""), under("a/")],
            [under("a/"), under("a/b")],
            [under(""), delete("x")],
        ] {
            assert!(check(&twice).is_err(), "{twice:?}");
        }
        assert!(check(&[Op::put("", "")]).is_err());
    }
}
