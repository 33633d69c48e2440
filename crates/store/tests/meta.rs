//! SQLite behind the seam for metadata: what every implementation must do, and what is its own.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf_store::conformance::Subject;
use wharf_store::meta::sqlite::{Clock, HISTORY, SqliteStore};
use wharf_store::meta::{Event, List, MetaStore, Op, Txn, wait};

struct Sqlite {
    now: Arc<Mutex<Duration>>,
    store: SqliteStore,
}

impl Subject for Sqlite {
    fn open(place: &Path) -> Self {
        let now = Arc::default();
        let clock = Clock::Manual(Arc::clone(&now));
        let store = SqliteStore::open(&place.join("meta.sqlite"), clock).unwrap();
        Sqlite { now, store }
    }

    fn store(&self) -> Arc<dyn MetaStore> {
        Arc::new(self.store.clone())
    }

    fn advance(&self, by: Duration) {
        *self.now.lock().unwrap() += by;
        self.store.expire_leases().unwrap();
    }
}

wharf_store::meta_store_conformance!(Sqlite);

fn put(store: &SqliteStore, key: &str, value: Vec<u8>) {
    let txn = Txn {
        compares: vec![],
        ops: vec![Op::put(key, value)],
    };
    wait(store.txn(txn)).unwrap();
}

#[test]
fn with_the_systems_clock_a_lease_ends_without_anybody_asking() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("meta.sqlite"), Clock::System).unwrap();
    let lease = wait(store.grant(Duration::from_millis(50))).unwrap();
    let put = Op::Put {
        key: b"a".to_vec(),
        value: vec![],
        lease: Some(lease.id),
    };
    wait(store.txn(Txn {
        compares: vec![],
        ops: vec![put],
    }))
    .unwrap();
    let mut watch = wait(store.watch(b"a", 2)).unwrap();
    let events = wait(watch.next()).unwrap().events;
    assert_eq!(events, [Event::Deleted(b"a".to_vec())]);
}

#[test]
fn the_file_does_not_keep_all_history() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.sqlite");
    let store = SqliteStore::open(&path, Clock::System).unwrap();
    put(&store, "kept", b"from the beginning".to_vec());
    for round in 0..2 * HISTORY {
        put(&store, "changing", round.to_string().into_bytes());
    }
    drop(store);
    let rows: i64 = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM entries", [], |row| row.get(0))
        .unwrap();
    let kept = HISTORY as i64..(HISTORY * 5 / 4 + 2) as i64;
    assert!(kept.contains(&rows), "{rows}");
    let store = SqliteStore::open(&path, Clock::System).unwrap();
    assert_eq!(wait(store.list(&List::under(""))).unwrap().records.len(), 2);
    // A watch may begin with any of the last revisions.
    let now = wait(store.get(b"kept")).unwrap().revision;
    assert!(wait(store.watch(b"", now - HISTORY)).is_ok());
    assert!(wait(store.watch(b"", 1)).is_err());
}

#[test]
fn sixteen_mebibytes_fit_into_one_value() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("meta.sqlite"), Clock::System).unwrap();
    put(&store, "large", vec![7; 16 << 20]);
    let record = wait(store.get(b"large")).unwrap().record.unwrap();
    assert!(record.value == vec![7; 16 << 20]);
}
