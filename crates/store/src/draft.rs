//! A change in the making: reads that must still hold when it is written, and what it writes.
//!
//! Owns: the optimistic transactions of the typed layer. A draft reads records as they are, collects
//! what is to be written, and commits both in one transaction: if a record that it read has changed
//! meanwhile, the store refuses, and the work is done again on what is there then. So there is no
//! lock, neither in this process nor among nodes.
//! Must not: be used for long work; it may be done several times.
//!
//! A list is not guarded. Whoever relies on one also reads a record that each change to the list
//! writes (a script's record for its versions and deployments, an application's for its rollouts).

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::meta::{Compare, LeaseId, List, MetaStore, Op, OpResult, Outcome, Record, Txn, wait};
use crate::{Result, Store, StoreError, keys};

/// How often a change is tried. Each refusal means that another one succeeded.
const ATTEMPTS: u32 = 1000;

pub(crate) struct Draft<'a> {
    meta: &'a dyn MetaStore,
    read: BTreeMap<String, Option<Record>>,
    must_be_empty: Vec<String>,
    writes: BTreeMap<String, Write>,
    accepted: bool,
}

enum Write {
    Put(Vec<u8>, Option<LeaseId>),
    Delete,
}

impl Store {
    /// Does work on what is there, and writes all it wants to write, or nothing.
    pub(crate) fn transact<T>(&self, work: impl FnMut(&mut Draft<'_>) -> Result<T>) -> Result<T> {
        transact(&*self.inner.meta, work)
    }
}

/// [`Store::transact`] where there is no store yet.
pub(crate) fn transact<T>(
    meta: &dyn MetaStore,
    mut work: impl FnMut(&mut Draft<'_>) -> Result<T>,
) -> Result<T> {
    for _ in 0..ATTEMPTS {
        let mut draft = Draft {
            meta,
            read: BTreeMap::new(),
            must_be_empty: Vec::new(),
            writes: BTreeMap::new(),
            accepted: false,
        };
        let result = work(&mut draft);
        if result.is_err() {
            // The error may come of records that did not fit together.
            draft.writes.clear();
        }
        if draft.commit()? {
            return result;
        }
    }
    Err(StoreError::Busy)
}

impl Draft<'_> {
    /// Reads a record.
    pub(crate) fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        if let Some(write) = self.writes.get(key) {
            return match write {
                Write::Put(value, _) => decode(key, value).map(Some),
                Write::Delete => Ok(None),
            };
        }
        if !self.read.contains_key(key) {
            let record = wait(self.meta.get(key.as_bytes()))?.record;
            self.read.insert(key.to_owned(), record);
        }
        match &self.read[key] {
            Some(record) => decode(key, &record.value).map(Some),
            None => Ok(None),
        }
    }

    /// Reads many records at once; those that are not there are `None`. Not guarded.
    pub(crate) fn peek_all<T: DeserializeOwned>(&self, keys: &[String]) -> Result<Vec<Option<T>>> {
        let mut values = Vec::with_capacity(keys.len());
        for keys in keys.chunks(self.meta.max_ops()) {
            let txn = Txn {
                compares: Vec::new(),
                ops: keys
                    .iter()
                    .map(|key| Op::Get(key.as_str().into()))
                    .collect(),
            };
            let Outcome::Applied { results, .. } = wait(self.meta.txn(txn))? else {
                return Err(StoreError::Corrupt("a read was refused".to_owned()));
            };
            for (key, result) in keys.iter().zip(results) {
                values.push(match result {
                    OpResult::Got(Some(record)) => Some(decode(key, &record.value)?),
                    _ => None,
                });
            }
        }
        Ok(values)
    }

    /// The records under a prefix, without what this draft has written. Not guarded.
    pub(crate) fn peek_under<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>> {
        listed(self.meta, &List::under(prefix))
    }

    /// Says that what was read is a right answer, whatever else has changed since: a record that
    /// never changes, found by one that did hold when it was read.
    pub(crate) fn accept(&mut self) {
        self.accepted = true;
    }

    /// The keys under a prefix, with what this draft has written. Not guarded.
    pub(crate) fn keys(&mut self, prefix: &str) -> Result<Vec<String>> {
        let list = List::under(prefix).keys_only();
        let mut keys = Vec::new();
        for record in wait(self.meta.list(&list))?.records {
            keys.push(text(record.key)?);
        }
        keys.retain(|key| !matches!(self.writes.get(key), Some(Write::Delete)));
        for (key, write) in self.writes.range(prefix.to_owned()..) {
            if !key.starts_with(prefix) {
                break;
            }
            if matches!(write, Write::Put(..))
                && let Err(at) = keys.binary_search(key)
            {
                keys.insert(at, key.clone());
            }
        }
        Ok(keys)
    }

    /// Sets a record.
    pub(crate) fn put<T: Serialize + ?Sized>(&mut self, key: String, value: &T) -> Result<()> {
        self.writes.insert(key, Write::Put(encode(value)?, None));
        Ok(())
    }

    /// Sets a record that goes with a lease.
    pub(crate) fn put_leased<T: Serialize + ?Sized>(
        &mut self,
        key: String,
        value: &T,
        lease: LeaseId,
    ) -> Result<()> {
        self.writes
            .insert(key, Write::Put(encode(value)?, Some(lease)));
        Ok(())
    }

    /// Sets a record that [`Draft::remove_expired`] removes some time after `expires_ms`, Unix
    /// milliseconds.
    pub(crate) fn put_expiring<T: Serialize + ?Sized>(
        &mut self,
        key: String,
        value: &T,
        expires_ms: i64,
    ) -> Result<()> {
        self.writes
            .insert(keys::expiry(expires_ms, &key), Write::Put(Vec::new(), None));
        self.put(key, value)
    }

    /// Removes records whose time is over; some, if there are very many.
    pub(crate) fn remove_expired(&mut self, now_ms: i64) -> Result<()> {
        let first = List::under(keys::EXPIRIES).limit(50).keys_only();
        for record in wait(self.meta.list(&first))?.records {
            let expiry = text(record.key)?;
            match keys::expiring(&expiry) {
                Some((ms, _)) if ms >= now_ms => break,
                Some((_, key)) => self.delete(key.to_owned()),
                None => tracing::warn!(expiry, "a key that is none of ours is removed"),
            }
            self.delete(expiry);
        }
        Ok(())
    }

    /// Deletes a record, if it is there.
    pub(crate) fn delete(&mut self, key: String) {
        self.writes.insert(key, Write::Delete);
    }

    /// Deletes every record under a prefix. Not guarded, as a list.
    pub(crate) fn delete_under(&mut self, prefix: &str) -> Result<()> {
        for key in self.keys(prefix)? {
            self.delete(key);
        }
        Ok(())
    }

    /// Writes only if nothing is under a prefix.
    pub(crate) fn require_empty(&mut self, prefix: &str) {
        self.must_be_empty.push(prefix.to_owned());
    }

    /// False if what was read has changed.
    fn commit(self) -> Result<bool> {
        let mut ops = Vec::with_capacity(self.writes.len());
        for (key, write) in self.writes {
            let before = self.read.get(&key);
            match write {
                // Nothing to write, and nothing for a watch to wake up for.
                Write::Put(value, lease)
                    if before.is_some_and(|before| {
                        before
                            .as_ref()
                            .is_some_and(|before| before.value == value && before.lease == lease)
                    }) => {}
                Write::Put(value, lease) => ops.push(Op::Put {
                    key: key.into_bytes(),
                    value,
                    lease,
                }),
                Write::Delete if matches!(before, Some(None)) => {}
                Write::Delete => ops.push(Op::Delete(key.into_bytes())),
            }
        }
        // One record alone is of one revision by itself.
        if ops.is_empty() && (self.accepted || self.read.len() < 2) {
            return Ok(true);
        }
        let mut compares: Vec<_> = self
            .read
            .into_iter()
            .map(|(key, record)| match record {
                Some(record) => Compare::Unchanged(key.into_bytes(), record.modified),
                None => Compare::Absent(key.into_bytes()),
            })
            .collect();
        let empty = self.must_be_empty.into_iter();
        compares.extend(empty.map(|prefix| Compare::Empty(prefix.into_bytes())));
        let outcome = wait(self.meta.txn(Txn { compares, ops }))?;
        Ok(matches!(outcome, Outcome::Applied { .. }))
    }
}

pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt(format!("cannot be written as JSON: {error}")))
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| StoreError::Corrupt(format!("{key}: {error}")))
}

/// A key of the typed layer, which are all text.
pub(crate) fn text(key: Vec<u8>) -> Result<String> {
    String::from_utf8(key).map_err(|error| StoreError::Corrupt(format!("a key: {error}")))
}

impl Store {
    /// Reads all records of a list, with their keys.
    pub(crate) fn listed<T: DeserializeOwned>(&self, list: &List) -> Result<Vec<(String, T)>> {
        listed(&*self.inner.meta, list)
    }
}

fn listed<T: DeserializeOwned>(meta: &dyn MetaStore, list: &List) -> Result<Vec<(String, T)>> {
    wait(meta.list(list))?
        .records
        .into_iter()
        .map(|record| {
            let key = text(record.key)?;
            let value = decode(&key, &record.value)?;
            Ok((key, value))
        })
        .collect()
}
