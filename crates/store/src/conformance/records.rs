//! Records, lists, transactions, and writers that meet.

use std::sync::Arc;

use super::{Subject, apply, fresh, get, put, revision, txn, value};
use crate::StoreError;
use crate::meta::{Compare, LeaseId, List, MetaStore, Op, OpResult, Outcome, Txn, wait};

fn keys(store: &Arc<dyn MetaStore>, list: &List) -> Vec<Vec<u8>> {
    let listed = wait(store.list(list)).unwrap();
    listed.records.into_iter().map(|r| r.key).collect()
}

/// A record has its value, and the revisions of its life.
pub fn records_are_read_as_they_were_written<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    assert_eq!(get(&store, "a"), None);
    let made = put(&store, "a", "1");
    let other = put(&store, "b", "");
    let changed = put(&store, "a", "2");
    assert!(made < other && other < changed);

    let record = get(&store, "a").unwrap();
    assert_eq!((record.key, record.value), (b"a".to_vec(), b"2".to_vec()));
    assert_eq!((record.created, record.modified), (made, changed));
    assert_eq!((record.version, record.lease), (2, None));
    assert_eq!(value(&store, "b").as_deref(), Some(""));

    apply(&store, vec![Op::Delete(b"a".to_vec())]);
    assert_eq!(get(&store, "a"), None);
    let again = put(&store, "a", "3");
    let record = get(&store, "a").unwrap();
    assert_eq!((record.created, record.version), (again, 1));
}

/// Prefix, direction, limit and keys alone.
pub fn lists_are_in_the_order_of_bytes<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    for key in ["b/2", "a", "b/10", "b0", "b/1", "b", "c"] {
        put(&store, key, key);
    }
    let list = || List::under("b/");
    assert_eq!(keys(&store, &list()), [&b"b/1"[..], b"b/10", b"b/2"]);
    assert_eq!(
        keys(&store, &list().descending().limit(2)),
        [&b"b/2"[..], b"b/10"]
    );
    assert_eq!(keys(&store, &List::under("")).len(), 7);
    assert_eq!(keys(&store, &List::under("d")), Vec::<Vec<u8>>::new());
    let listed = wait(store.list(&list())).unwrap();
    assert_eq!(listed.revision, revision(&store));
    assert!(listed.records.iter().all(|r| r.key == r.value));
    assert_eq!(
        listed.records[0],
        get(&store, &listed.records[0].key).unwrap()
    );
    let bare = wait(store.list(&list().keys_only())).unwrap();
    assert!(bare.records.iter().all(|r| r.value.is_empty()));
    assert_eq!(bare.records[0].modified, listed.records[0].modified);
}

/// Zeros, 0xff, and what is no UTF-8.
pub fn keys_may_have_any_bytes<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let mut all: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    all.extend([
        b"\0\0".to_vec(),
        b"\xff\xff".to_vec(),
        b"\xff\xff\xff".to_vec(),
        b"\xfe\xff\xff".to_vec(),
        b"a\0b".to_vec(),
        b"a%b'\"\\_".to_vec(),
        vec![b'k'; 1000],
    ]);
    for key in &all {
        apply(&store, vec![Op::put(key.clone(), key.clone())]);
    }
    all.sort();
    for key in &all {
        assert_eq!(get(&store, key).unwrap().value, *key);
        let under: Vec<_> = all.iter().filter(|k| k.starts_with(key)).cloned().collect();
        assert_eq!(keys(&store, &List::under(key.clone())), under, "{key:?}");
    }
    assert_eq!(keys(&store, &List::under("")), all);
    apply(&store, vec![Op::DeletePrefix(b"\xff".to_vec())]);
    assert_eq!(keys(&store, &List::under(b"\xff")), Vec::<Vec<u8>>::new());
    assert_eq!(keys(&store, &List::under("")).len(), all.len() - 3);
    apply(&store, vec![Op::DeletePrefix(vec![])]);
    assert_eq!(keys(&store, &List::under("")), Vec::<Vec<u8>>::new());
}

/// One MiB: etcd takes requests up to 1.5 MiB unless it is told otherwise.
pub fn large_values_are_kept_whole<S: Subject>() {
    let (dir, subject) = fresh::<S>();
    let large: Vec<u8> = (0..1_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    apply(&subject.store(), vec![Op::put("large", large.clone())]);
    drop(subject);
    let subject = S::open(dir.path());
    assert!(get(&subject.store(), "large").unwrap().value == large);
}

/// With a compare that fails, nothing; else everything, in one revision.
pub fn a_transaction_is_applied_whole_or_not_at_all<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let first = put(&store, "a", "1");
    let ops = vec![
        Op::put("b", "2"),
        Op::Delete(b"a".to_vec()),
        Op::put("c", "3"),
    ];
    let refused = txn(&store, vec![Compare::Absent(b"a".to_vec())], ops.clone());
    assert_eq!(
        refused,
        Outcome::Refused {
            revision: first,
            failed: vec![0]
        }
    );
    assert_eq!(value(&store, "a").as_deref(), Some("1"));
    assert_eq!(
        (value(&store, "b"), revision(&store)),
        (None, first),
        "a refused transaction left something"
    );
    let Outcome::Applied { revision, results } =
        txn(&store, vec![Compare::Exists(b"a".to_vec())], ops)
    else {
        panic!("refused");
    };
    assert!(revision > first);
    assert_eq!(
        results,
        [OpResult::Put, OpResult::Deleted(1), OpResult::Put]
    );
    assert_eq!(get(&store, "a"), None);
    for key in ["b", "c"] {
        assert_eq!(get(&store, key).unwrap().modified, revision);
    }
}

/// By index, and each kind of compare both ways.
pub fn a_refusal_names_each_compare_that_failed<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let at = put(&store, "dir/a", "1");
    let now = put(&store, "other", "1");
    let a = || b"dir/a".to_vec();
    let none = || b"none".to_vec();
    let holding = vec![
        Compare::Exists(a()),
        Compare::Absent(none()),
        Compare::Unchanged(a(), at),
        Compare::Empty(b"dir/b".to_vec()),
    ];
    let failing = vec![
        Compare::Exists(none()),
        Compare::Absent(a()),
        Compare::Unchanged(a(), now),
        Compare::Unchanged(none(), at),
        Compare::Empty(b"dir/".to_vec()),
    ];
    assert!(matches!(
        txn(&store, holding.clone(), vec![]),
        Outcome::Applied { .. }
    ));
    for (index, compare) in failing.iter().enumerate() {
        let mut compares = holding.clone();
        compares.insert(index.min(holding.len()), compare.clone());
        assert_eq!(
            txn(&store, compares, vec![Op::put("x", "")]),
            Outcome::Refused {
                revision: now,
                failed: vec![index.min(holding.len())]
            },
            "{compare:?}"
        );
    }
    let all = [holding.clone(), failing.clone()].concat();
    assert_eq!(
        txn(&store, all, vec![Op::put("x", "")]),
        Outcome::Refused {
            revision: now,
            failed: (holding.len()..holding.len() + failing.len()).collect()
        }
    );
    assert_eq!(get(&store, "x"), None);
}

/// A read sees what the steps before it did.
pub fn steps_are_taken_in_order<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    put(&store, "a/1", "old");
    let outcome = txn(
        &store,
        vec![],
        vec![
            Op::Get(b"a/1".to_vec()),
            Op::put("a/1", "new"),
            Op::Get(b"a/1".to_vec()),
            Op::put("a/2", "more"),
            Op::List(List::under("a/")),
            Op::DeletePrefix(b"b/".to_vec()),
        ],
    );
    let Outcome::Applied { revision, results } = outcome else {
        panic!("{outcome:?}");
    };
    let values = |result: &OpResult| match result {
        OpResult::Got(record) => record.iter().map(|r| r.value.clone()).collect(),
        OpResult::Listed(records) => records.iter().map(|r| r.value.clone()).collect(),
        _ => Vec::new(),
    };
    assert_eq!(values(&results[0]), [b"old".to_vec()]);
    assert_eq!(values(&results[2]), [b"new".to_vec()]);
    assert_eq!(values(&results[4]), [b"new".to_vec(), b"more".to_vec()]);
    assert_eq!(results[5], OpResult::Deleted(0));
    assert_eq!(get(&store, "a/1").unwrap().modified, revision);
}

/// Two writes of one key, an empty key, a lease that never was.
pub fn a_transaction_that_makes_no_sense_changes_nothing<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let before = put(&store, "a", "1");
    for ops in [
        vec![Op::put("b", "1"), Op::put("b", "2")],
        vec![Op::put("b/x", "1"), Op::DeletePrefix(b"b/".to_vec())],
        vec![Op::put("b", "1"), Op::put("", "")],
    ] {
        let txn = Txn {
            compares: vec![],
            ops,
        };
        assert!(matches!(
            wait(store.txn(txn)),
            Err(StoreError::InvalidTxn(_))
        ));
    }
    let txn = Txn {
        compares: vec![],
        ops: vec![
            Op::put("b", "1"),
            Op::Put {
                key: b"c".to_vec(),
                value: vec![],
                lease: Some(LeaseId(987_654_321)),
            },
        ],
    };
    assert!(matches!(
        wait(store.txn(txn)),
        Err(StoreError::LeaseGone(_))
    ));
    assert_eq!((get(&store, "b"), revision(&store)), (None, before));
}

/// Reads, refusals and deletes of nothing take none.
pub fn revisions_count_changes_and_nothing_else<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let first = put(&store, "a", "1");
    assert_eq!(apply(&store, vec![Op::Get(b"a".to_vec())]), first);
    assert_eq!(apply(&store, vec![Op::Delete(b"x".to_vec())]), first);
    assert_eq!(apply(&store, vec![Op::DeletePrefix(b"x".to_vec())]), first);
    txn(
        &store,
        vec![Compare::Absent(b"a".to_vec())],
        vec![Op::put("b", "")],
    );
    assert_eq!(revision(&store), first);
    let second = apply(
        &store,
        vec![
            Op::put("b", ""),
            Op::put("c", ""),
            Op::Delete(b"a".to_vec()),
        ],
    );
    assert_eq!(second, first + 1);
    // The same value again is a change.
    assert_eq!(put(&store, "b", ""), second + 1);
}

/// Threads that read, count up and write: no step is lost, and each success is of one writer.
pub fn of_two_writers_one_wins<S: Subject>() {
    const WRITERS: u64 = 4;
    const STEPS: u64 = 25;
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let start = put(&store, "counter", "0");
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let mut won = Vec::new();
                while (won.len() as u64) < STEPS {
                    let record = get(&store, "counter").unwrap();
                    let count: u64 = String::from_utf8(record.value).unwrap().parse().unwrap();
                    let unchanged = Compare::Unchanged(b"counter".to_vec(), record.modified);
                    let next = Op::put("counter", (count + 1).to_string());
                    match txn(&store, vec![unchanged], vec![next]) {
                        Outcome::Applied { revision, .. } => won.push(revision),
                        Outcome::Refused { failed, .. } => assert_eq!(failed, [0]),
                    }
                }
                won
            })
        })
        .collect();
    let mut won: Vec<_> = writers
        .into_iter()
        .flat_map(|writer| writer.join().unwrap())
        .collect();
    won.sort_unstable();
    let expected: Vec<_> = (start + 1..=start + WRITERS * STEPS).collect();
    assert_eq!(won, expected);
    assert_eq!(
        value(&store, "counter").unwrap(),
        (WRITERS * STEPS).to_string()
    );
}

/// Records with their revisions, and the store's own.
pub fn everything_is_there_after_reopening<S: Subject>() {
    let (dir, subject) = fresh::<S>();
    let store = subject.store();
    put(&store, "a", "1");
    put(&store, "b", "1");
    put(&store, "a", "2");
    let last = apply(&store, vec![Op::Delete(b"b".to_vec())]);
    let before = wait(store.list(&List::under(""))).unwrap();
    drop((store, subject));
    let subject = S::open(dir.path());
    let store = subject.store();
    assert_eq!(wait(store.list(&List::under(""))).unwrap(), before);
    assert_eq!(revision(&store), last);
    assert_eq!(put(&store, "c", ""), last + 1);
}
