//! Records in one SQLite file: the store of a single node.
//!
//! Owns: the tables `entries`, `current`, `leases` and `compaction` of a file that one process has
//! open at a time (two would not wake each other's watches, nor know each other's leases).
//! Must not: know what a record means.
//!
//! A change is a row of `entries`; `current` points to the last one of each key that exists. So a
//! value is written once, a watch reads the history where it left off, and compaction removes the
//! rows before a revision to which nothing points. Of the last revisions some [`HISTORY`] are kept.
//!
//! Deadlines of leases are in memory alone, by a clock that never goes back: keeping a lease alive
//! writes nothing, and opening the file gives each lease its whole time again. What has run out is
//! removed before any call is answered, and by a thread, for the watches' sake.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior};
use tokio::sync::watch;

use super::{
    BoxFuture, Changes, Compare, Event, Got, Lease, LeaseId, LeaseStatus, List, Listed, MetaStore,
    Op, OpResult, Outcome, Record, Revision, Txn, Watch, prefix_end,
};
use crate::{Result, StoreError, schema};

/// Revisions of history that are kept for watches; a quarter more until they are removed.
pub const HISTORY: u64 = 1000;

/// What leases are measured by.
#[derive(Clone, Default)]
pub enum Clock {
    /// The system's monotonic clock.
    #[default]
    System,
    /// A clock that stands until it is told: [`SqliteStore::expire_leases`] is then the caller's to
    /// call.
    Manual(Arc<Mutex<Duration>>),
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Clock::System => "System",
            Clock::Manual(_) => "Manual",
        })
    }
}

/// A store in one file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    clock: Clock,
    started: Instant,
    /// The last revision, for watches.
    changed: watch::Sender<Revision>,
}

struct State {
    connection: Connection,
    leases: BTreeMap<LeaseId, Deadline>,
    /// Ends leases when their time is over; started with the first one.
    reaper: Option<std::thread::Thread>,
}

struct Deadline {
    ttl: Duration,
    at: Duration,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("clock", &self.clock)
            .field("revision", &*self.changed.borrow())
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, and makes or migrates it as needed.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a newer Wharf wrote it.
    pub fn open(path: &Path, clock: Clock) -> Result<Self> {
        let connection = schema::open(path)?;
        let shared = Shared {
            changed: watch::channel(current_revision(&connection)?).0,
            started: Instant::now(),
            clock,
            state: Mutex::new(State {
                connection,
                leases: BTreeMap::new(),
                reaper: None,
            }),
        };
        let now = shared.now();
        let mut state = shared.lock();
        let leases = state
            .connection
            .prepare("SELECT id, ttl_ms FROM leases")?
            .query_map([], |row| {
                let ttl = Duration::from_millis(row.get::<_, i64>(1)?.unsigned_abs());
                let at = now.saturating_add(ttl);
                Ok((LeaseId(row.get(0)?), Deadline { ttl, at }))
            })?
            .collect::<Result<BTreeMap<_, _>, _>>()?;
        let any = !leases.is_empty();
        state.leases = leases;
        drop(state);
        let store = Self {
            shared: Arc::new(shared),
        };
        if any {
            let mut state = store.shared.lock();
            store.start_reaper(&mut state);
        }
        Ok(store)
    }

    /// Ends the leases whose time is over.
    pub fn expire_leases(&self) -> Result<()> {
        self.shared.state().map(drop)
    }

    fn start_reaper(&self, state: &mut State) {
        if matches!(self.shared.clock, Clock::Manual(_)) {
            return;
        }
        match &state.reaper {
            // The new lease may be the next to end.
            Some(thread) => thread.unpark(),
            None => {
                let shared = Arc::downgrade(&self.shared);
                let spawned = std::thread::Builder::new()
                    .name("store-leases".to_owned())
                    .spawn(move || reap(&shared));
                match spawned {
                    Ok(handle) => state.reaper = Some(handle.thread().clone()),
                    // Leases still end with the next call; only watches hear of it later.
                    Err(error) => tracing::error!(%error, "no thread to end leases"),
                }
            }
        }
    }
}

/// Ends leases when their time is over, until the store is dropped.
fn reap(shared: &Weak<Shared>) {
    /// How long a dropped store's thread may stay.
    const LONGEST: Duration = Duration::from_secs(1);
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let sleep = match shared.state() {
            Ok(state) => {
                let next = state.leases.values().map(|lease| lease.at).min();
                next.map_or(LONGEST, |at| at.saturating_sub(shared.now()))
            }
            Err(error) => {
                tracing::error!(%error, "leases that have run out can't be removed");
                LONGEST
            }
        };
        drop(shared);
        std::thread::park_timeout(sleep.min(LONGEST));
    }
}

impl Shared {
    fn now(&self) -> Duration {
        match &self.clock {
            Clock::System => self.started.elapsed(),
            Clock::Manual(now) => *now.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held rolled its transaction back; the connection is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, without the leases that have run out.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if state.leases.is_empty() {
            return Ok(state);
        }
        let now = self.now();
        let over: Vec<LeaseId> = state
            .leases
            .iter()
            .filter(|(_, lease)| lease.at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.end_lease(&mut state, id)?;
        }
        Ok(state)
    }

    fn end_lease(&self, state: &mut State, id: LeaseId) -> Result<()> {
        let transaction = immediate(&mut state.connection)?;
        let before = current_revision(&transaction)?;
        let keys = lease_keys(&transaction, id)?;
        for key in &keys {
            delete(&transaction, before + 1, key)?;
        }
        transaction.execute("DELETE FROM leases WHERE id = ?1", [id.0])?;
        transaction.commit()?;
        state.leases.remove(&id);
        if !keys.is_empty() {
            self.changed.send_replace(before + 1);
        }
        Ok(())
    }

    fn txn(&self, txn: &Txn) -> Result<Outcome> {
        txn.check()?;
        let mut state = self.state()?;
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(id), ..
            } = op
                && !state.leases.contains_key(id)
            {
                return Err(StoreError::LeaseGone(*id));
            }
        }
        if !txn.writes() {
            // It takes no write lock, and nothing is synced for it.
            let reading = Reading::begin(&state.connection)?;
            let revision = current_revision(reading.0)?;
            if let Some(refused) = refused(reading.0, txn, revision)? {
                return Ok(refused);
            }
            let results = apply(reading.0, revision, &txn.ops)?;
            return Ok(Outcome::Applied { revision, results });
        }
        let transaction = immediate(&mut state.connection)?;
        let before = current_revision(&transaction)?;
        if let Some(refused) = refused(&transaction, txn, before)? {
            return Ok(refused);
        }
        let results = apply(&transaction, before + 1, &txn.ops)?;
        let revision = current_revision(&transaction)?;
        if revision > before && revision.is_multiple_of(HISTORY / 4) && revision > HISTORY {
            forget(&transaction, revision - HISTORY)?;
        }
        transaction.commit()?;
        if revision > before {
            self.changed.send_replace(revision);
        }
        Ok(Outcome::Applied { revision, results })
    }

    /// The first revision from `from` on that changed something under the prefix, or the next one
    /// to ask for.
    fn history(&self, prefix: &[u8], from: Revision) -> Result<Result<Changes, Revision>> {
        let state = self.state()?;
        let compacted = compacted(&state.connection)?;
        if from < compacted {
            return Err(StoreError::Compacted { compacted });
        }
        let mut statement = state.connection.prepare_cached(
            "SELECT revision, key, value, created, version, lease FROM entries
             WHERE revision >= ?1 AND key >= ?2 AND (?3 IS NULL OR key < ?3) ORDER BY revision, id",
        )?;
        let mut rows = statement.query((from as i64, prefix, prefix_end(prefix)))?;
        let mut changes: Option<Changes> = None;
        while let Some(row) = rows.next()? {
            let revision = number(row, 0)?;
            let changes = changes.get_or_insert(Changes {
                revision,
                events: Vec::new(),
            });
            if changes.revision != revision {
                break;
            }
            let key: Vec<u8> = row.get(1)?;
            changes
                .events
                .push(match row.get::<_, Option<Vec<u8>>>(2)? {
                    None => Event::Deleted(key),
                    Some(value) => Event::Put(Record {
                        key,
                        value,
                        created: number(row, 3)?,
                        modified: revision,
                        version: number(row, 4)?,
                        lease: row.get::<_, Option<i64>>(5)?.map(LeaseId),
                    }),
                });
        }
        match changes {
            Some(changes) => Ok(Ok(changes)),
            None => Ok(Err(from.max(current_revision(&state.connection)? + 1))),
        }
    }
}

impl MetaStore for SqliteStore {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Got>> {
        Box::pin(async move {
            let state = self.shared.state()?;
            // One statement is of one revision without a transaction around it.
            let mut statement = state.connection.prepare_cached(
                "SELECT current.key, created, entries.revision, version, current.lease, value, last
                 FROM (SELECT (SELECT revision FROM entries ORDER BY id DESC LIMIT 1) AS last)
                 LEFT JOIN current ON current.key = ?1
                 LEFT JOIN entries ON entries.id = current.entry",
            )?;
            Ok(statement.query_row([key], |row| {
                let found = row.get_ref(0)? != ValueRef::Null;
                Ok(Got {
                    revision: row.get::<_, Option<i64>>(6)?.unwrap_or(0).unsigned_abs(),
                    record: found.then(|| read(row)).transpose()?,
                })
            })?)
        })
    }

    fn list<'a>(&'a self, list: &'a List) -> BoxFuture<'a, Result<Listed>> {
        Box::pin(async move {
            let state = self.shared.state()?;
            let reading = Reading::begin(&state.connection)?;
            Ok(Listed {
                revision: current_revision(reading.0)?,
                records: records(reading.0, list)?,
            })
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move { self.shared.txn(&txn) })
    }

    fn max_ops(&self) -> usize {
        // No bound of SQLite's: so many take a second, and nobody else gets a turn meanwhile.
        50_000
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(async move {
            let mut state = self.shared.state()?;
            let ttl_ms = i64::try_from(ttl.as_millis())
                .map_err(|_| StoreError::InvalidTxn("a lease's time is too long".to_owned()))?;
            state
                .connection
                .execute("INSERT INTO leases (ttl_ms) VALUES (?1)", [ttl_ms])?;
            let id = LeaseId(state.connection.last_insert_rowid());
            let at = self.shared.now().saturating_add(ttl);
            state.leases.insert(id, Deadline { ttl, at });
            self.start_reaper(&mut state);
            Ok(Lease { id, ttl })
        })
    }

    fn keep_alive(&self, id: LeaseId) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(async move {
            let mut state = self.shared.state()?;
            let now = self.shared.now();
            let lease = state.leases.get_mut(&id);
            let lease = lease.ok_or(StoreError::LeaseGone(id))?;
            lease.at = now.saturating_add(lease.ttl);
            Ok(lease.ttl)
        })
    }

    fn revoke(&self, id: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut state = self.shared.state()?;
            if !state.leases.contains_key(&id) {
                return Err(StoreError::LeaseGone(id));
            }
            self.shared.end_lease(&mut state, id)
        })
    }

    fn lease(&self, id: LeaseId) -> BoxFuture<'_, Result<Option<LeaseStatus>>> {
        Box::pin(async move {
            let state = self.shared.state()?;
            let Some(lease) = state.leases.get(&id) else {
                return Ok(None);
            };
            Ok(Some(LeaseStatus {
                remaining: lease.at.saturating_sub(self.shared.now()),
                keys: lease_keys(&state.connection, id)?,
            }))
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a [u8],
        from: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let compacted = compacted(&self.shared.state()?.connection)?;
            if from < compacted {
                return Err(StoreError::Compacted { compacted });
            }
            let watch: Box<dyn Watch> = Box::new(SqliteWatch {
                changed: self.shared.changed.subscribe(),
                shared: Arc::clone(&self.shared),
                prefix: prefix.to_vec(),
                from,
            });
            Ok(watch)
        })
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut state = self.shared.state()?;
            let transaction = immediate(&mut state.connection)?;
            let compacted = compacted(&transaction)?;
            if before <= compacted {
                return Err(StoreError::Compacted { compacted });
            }
            let current = current_revision(&transaction)?;
            if before > current {
                return Err(StoreError::InvalidTxn(format!(
                    "revision {before} is not there yet: the store is at {current}"
                )));
            }
            forget(&transaction, before)?;
            Ok(transaction.commit()?)
        })
    }
}

struct SqliteWatch {
    shared: Arc<Shared>,
    changed: watch::Receiver<Revision>,
    prefix: Vec<u8>,
    from: Revision,
}

impl Watch for SqliteWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            loop {
                // Before the look, so that a change after it ends the wait below.
                self.changed.borrow_and_update();
                match self.shared.history(&self.prefix, self.from)? {
                    Ok(changes) => {
                        self.from = changes.revision + 1;
                        return Ok(changes);
                    }
                    Err(next) => self.from = next,
                }
                if self.changed.changed().await.is_err() {
                    // The sender is in `shared`, which this watch holds.
                    std::future::pending::<()>().await;
                }
            }
        })
    }
}

/// A transaction that only reads; its statements are kept prepared, unlike rusqlite's own.
struct Reading<'a>(&'a Connection);

impl<'a> Reading<'a> {
    fn begin(connection: &'a Connection) -> Result<Self> {
        connection.prepare_cached("BEGIN")?.execute([])?;
        Ok(Self(connection))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let ended = self.0.prepare_cached("ROLLBACK");
        if let Err(error) = ended.and_then(|mut statement| statement.execute([])) {
            tracing::error!(%error, "a read could not be ended");
        }
    }
}

/// What a transaction hears of which a compare does not hold.
fn refused(connection: &Connection, txn: &Txn, revision: Revision) -> Result<Option<Outcome>> {
    let mut failed = Vec::new();
    for (index, compare) in txn.compares.iter().enumerate() {
        if !holds(connection, compare)? {
            failed.push(index);
        }
    }
    Ok((!failed.is_empty()).then_some(Outcome::Refused { revision, failed }))
}

fn immediate(connection: &mut Connection) -> Result<Transaction<'_>> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

fn number(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    // Revisions and versions count up from 0 in steps of one.
    Ok(row.get::<_, i64>(index)?.unsigned_abs())
}

/// Compaction leaves the last revision's rows, so the last row always has it.
fn current_revision(connection: &Connection) -> Result<Revision> {
    let last = connection
        .prepare_cached("SELECT revision FROM entries ORDER BY id DESC LIMIT 1")?
        .query_row([], |row| number(row, 0))
        .optional()?;
    Ok(last.unwrap_or(0))
}

fn compacted(connection: &Connection) -> Result<Revision> {
    Ok(connection
        .prepare_cached("SELECT revision FROM compaction")?
        .query_row([], |row| number(row, 0))?)
}

fn forget(transaction: &Transaction<'_>, before: Revision) -> Result<()> {
    transaction.execute(
        "DELETE FROM entries WHERE revision < ?1
         AND NOT EXISTS (SELECT 1 FROM current WHERE current.key = entries.key
             AND current.entry = entries.id)",
        [before as i64],
    )?;
    transaction.execute("UPDATE compaction SET revision = ?1", [before as i64])?;
    Ok(())
}

fn holds(connection: &Connection, compare: &Compare) -> Result<bool> {
    let modified = |key: &[u8]| -> Result<Option<Revision>> {
        Ok(connection
            .prepare_cached(
                "SELECT entries.revision FROM current JOIN entries ON entries.id = current.entry
                 WHERE current.key = ?1",
            )?
            .query_row([key], |row| number(row, 0))
            .optional()?)
    };
    Ok(match compare {
        Compare::Exists(key) => modified(key)?.is_some(),
        Compare::Absent(key) => modified(key)?.is_none(),
        Compare::Unchanged(key, revision) => modified(key)? == Some(*revision),
        Compare::Empty(prefix) => {
            let any = List::under(prefix.as_slice()).limit(1).keys_only();
            records(connection, &any)?.is_empty()
        }
    })
}

/// Takes the steps; what changes gets this revision.
pub(crate) fn apply(
    connection: &Connection,
    revision: Revision,
    ops: &[Op],
) -> Result<Vec<OpResult>> {
    ops.iter()
        .map(|op| match op {
            Op::Put { key, value, lease } => {
                put(connection, revision, key, value, *lease)?;
                Ok(OpResult::Put)
            }
            Op::Delete(key) => {
                let deleted = delete(connection, revision, key)?;
                Ok(OpResult::Deleted(deleted.into()))
            }
            Op::DeletePrefix(prefix) => {
                let list = List::under(prefix.as_slice()).keys_only();
                let gone = records(connection, &list)?;
                for record in &gone {
                    delete(connection, revision, &record.key)?;
                }
                Ok(OpResult::Deleted(gone.len() as u64))
            }
            Op::Get(key) => Ok(OpResult::Got(record(connection, key)?)),
            Op::List(list) => Ok(OpResult::Listed(records(connection, list)?)),
        })
        .collect()
}

fn put(
    connection: &Connection,
    revision: Revision,
    key: &[u8],
    value: &[u8],
    lease: Option<LeaseId>,
) -> Result<()> {
    let lease = lease.map(|id| id.0);
    let before = connection
        .prepare_cached(
            "SELECT entries.created, entries.version
             FROM current JOIN entries ON entries.id = current.entry WHERE current.key = ?1",
        )?
        .query_row([key], |row| Ok((number(row, 0)?, number(row, 1)?)))
        .optional()?;
    let (created, version) = before.unwrap_or((revision, 0));
    connection
        .prepare_cached(
            "INSERT INTO entries (revision, key, value, created, version, lease)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            revision as i64,
            key,
            value,
            created as i64,
            version as i64 + 1,
            lease,
        ))?;
    connection
        .prepare_cached(
            "INSERT INTO current (key, entry, lease) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET entry = excluded.entry, lease = excluded.lease",
        )?
        .execute((key, connection.last_insert_rowid(), lease))?;
    Ok(())
}

fn delete(connection: &Connection, revision: Revision, key: &[u8]) -> Result<bool> {
    let gone = connection
        .prepare_cached("DELETE FROM current WHERE key = ?1")?
        .execute([key])?;
    if gone == 0 {
        return Ok(false);
    }
    connection
        .prepare_cached(
            "INSERT INTO entries (revision, key, created, version) VALUES (?1, ?2, 0, 0)",
        )?
        .execute((revision as i64, key))?;
    Ok(true)
}

fn lease_keys(connection: &Connection, id: LeaseId) -> Result<Vec<Vec<u8>>> {
    Ok(connection
        .prepare_cached("SELECT key FROM current WHERE lease = ?1 ORDER BY key")?
        .query_map([id.0], |row| row.get(0))?
        .collect::<Result<_, _>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        key: row.get(0)?,
        created: number(row, 1)?,
        modified: number(row, 2)?,
        version: number(row, 3)?,
        lease: row.get::<_, Option<i64>>(4)?.map(LeaseId),
        value: row.get(5)?,
    })
}

fn record(connection: &Connection, key: &[u8]) -> Result<Option<Record>> {
    Ok(connection
        .prepare_cached(
            "SELECT current.key, created, revision, version, current.lease, value
             FROM current JOIN entries ON entries.id = current.entry WHERE current.key = ?1",
        )?
        .query_row([key], read)
        .optional()?)
}

fn records(connection: &Connection, list: &List) -> Result<Vec<Record>> {
    let value = if list.keys_only { "x''" } else { "value" };
    let order = if list.descending { "DESC" } else { "ASC" };
    // A bound that is not there is left out of the text: with an OR, SQLite would not use the index.
    let end = prefix_end(&list.prefix);
    let below = if end.is_some() {
        "AND current.key < ?2"
    } else {
        "AND ?2 IS NULL"
    };
    let limit = list.limit.map_or(-1, i64::from);
    Ok(connection
        .prepare_cached(&format!(
            "SELECT current.key, created, revision, version, current.lease, {value}
             FROM current JOIN entries ON entries.id = current.entry
             WHERE current.key >= ?1 {below} ORDER BY current.key {order} LIMIT ?3"
        ))?
        .query_map((&list.prefix, end, limit), read)?
        .collect::<Result<_, _>>()?)
}
