//! Random histories, beside a model in memory that is too simple to be wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::Subject;
use crate::StoreError;
use crate::meta::{
    Changes, Compare, Event, Lease, LeaseId, List, Op, OpResult, Outcome, Record, Revision, Txn,
    wait,
};

#[derive(Debug, Clone)]
enum Step {
    Txn {
        compares: Vec<Guess>,
        ops: Vec<Write>,
    },
    List(List),
    Grant,
    Revoke(usize),
    KeepAlive(usize),
    Advance,
    Compact(u64),
    Reopen,
}

/// A compare; a revision is one of those that some key has.
#[derive(Debug, Clone)]
enum Guess {
    Exists(Vec<u8>),
    Absent(Vec<u8>),
    Unchanged(Vec<u8>, bool),
    Empty(Vec<u8>),
}

#[derive(Debug, Clone)]
enum Write {
    Put(Vec<u8>, Vec<u8>, Option<usize>),
    Delete(Vec<u8>),
    DeletePrefix(Vec<u8>),
    Get(Vec<u8>),
    List(List),
}

#[derive(Default)]
struct Model {
    revision: Revision,
    compacted: Revision,
    records: BTreeMap<Vec<u8>, Record>,
    history: Vec<Changes>,
    /// Time left of each; those that are over are gone.
    leases: BTreeMap<LeaseId, (Lease, Duration)>,
}

impl Model {
    fn list(&self, list: &List) -> Vec<Record> {
        let mut records: Vec<_> = self
            .records
            .values()
            .filter(|record| record.key.starts_with(&list.prefix))
            .cloned()
            .collect();
        if list.descending {
            records.reverse();
        }
        records.truncate(list.limit.map_or(usize::MAX, |limit| limit as usize));
        if list.keys_only {
            records.iter_mut().for_each(|record| record.value.clear());
        }
        records
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Exists(key) => self.records.contains_key(key),
            Compare::Absent(key) => !self.records.contains_key(key),
            Compare::Unchanged(key, revision) => self
                .records
                .get(key)
                .is_some_and(|record| record.modified == *revision),
            Compare::Empty(prefix) => self.list(&List::under(prefix.clone())).is_empty(),
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<OpResult> {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let mut results = Vec::new();
        for op in ops {
            results.push(match op {
                Op::Put { key, value, lease } => {
                    let before = self.records.get(key);
                    let record = Record {
                        key: key.clone(),
                        value: value.clone(),
                        created: before.map_or(revision, |record| record.created),
                        modified: revision,
                        version: before.map_or(0, |record| record.version) + 1,
                        lease: *lease,
                    };
                    events.push(Event::Put(record.clone()));
                    self.records.insert(key.clone(), record);
                    OpResult::Put
                }
                Op::Delete(key) => {
                    let gone = self.records.remove(key).is_some();
                    events.extend(gone.then(|| Event::Deleted(key.clone())));
                    OpResult::Deleted(gone.into())
                }
                Op::DeletePrefix(prefix) => {
                    let gone = self.list(&List::under(prefix.clone()));
                    for record in &gone {
                        self.records.remove(&record.key);
                        events.push(Event::Deleted(record.key.clone()));
                    }
                    OpResult::Deleted(gone.len() as u64)
                }
                Op::Get(key) => OpResult::Got(self.records.get(key).cloned()),
                Op::List(list) => OpResult::Listed(self.list(list)),
            });
        }
        if !events.is_empty() {
            self.revision = revision;
            self.history.push(Changes { revision, events });
        }
        results
    }

    fn end_lease(&mut self, id: LeaseId) {
        self.leases.remove(&id);
        let of_it = |record: &&Record| record.lease == Some(id);
        let keys = self.records.values().filter(of_it);
        let ops: Vec<_> = keys.map(|r| Op::Delete(r.key.clone())).collect();
        self.apply(&ops);
    }

    fn nth(&self, index: usize) -> Option<LeaseId> {
        let count = self.leases.len().max(1);
        self.leases.keys().nth(index % count).copied()
    }

    fn compare(&self, guess: Guess) -> Compare {
        match guess {
            Guess::Exists(key) => Compare::Exists(key),
            Guess::Absent(key) => Compare::Absent(key),
            Guess::Empty(prefix) => Compare::Empty(prefix),
            Guess::Unchanged(key, right) => {
                let modified = self.records.get(&key).map_or(0, |record| record.modified);
                Compare::Unchanged(key, modified + u64::from(!right))
            }
        }
    }

    fn op(&self, write: Write) -> Op {
        match write {
            Write::Put(key, value, lease) => Op::Put {
                key,
                value,
                lease: lease.and_then(|index| self.nth(index)),
            },
            Write::Delete(key) => Op::Delete(key),
            Write::DeletePrefix(prefix) => Op::DeletePrefix(prefix),
            Write::Get(key) => Op::Get(key),
            Write::List(list) => Op::List(list),
        }
    }
}

const HALF: Duration = Duration::from_secs(5);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few keys, so that steps meet; among them the ends of what bytes can be.
    let key = prop::sample::select(vec![
        b"a".to_vec(),
        b"a/".to_vec(),
        b"a/b".to_vec(),
        b"a/\xff".to_vec(),
        b"a0".to_vec(),
        b"\0".to_vec(),
        b"\xff".to_vec(),
        b"\xff\xff".to_vec(),
    ]);
    let prefix = prop::sample::select(vec![
        b"".to_vec(),
        b"a".to_vec(),
        b"a/".to_vec(),
        b"\xff".to_vec(),
        b"z".to_vec(),
    ]);
    let list = (
        prefix.clone(),
        any::<bool>(),
        prop::option::of(0..4_u32),
        any::<bool>(),
    )
        .prop_map(|(prefix, descending, limit, keys_only)| List {
            prefix,
            descending,
            limit: limit.map(|limit| limit + 1),
            keys_only,
        });
    let guess = prop_oneof![
        key.clone().prop_map(Guess::Exists),
        key.clone().prop_map(Guess::Absent),
        (key.clone(), prop::bool::weighted(0.8)).prop_map(|(k, right)| Guess::Unchanged(k, right)),
        prefix.clone().prop_map(Guess::Empty),
    ];
    let bytes = prop::collection::vec(any::<u8>(), 0..6);
    let write = prop_oneof![
        6 => (key.clone(), bytes, prop::option::weighted(0.3, 0..4_usize))
            .prop_map(|(key, value, lease)| Write::Put(key, value, lease)),
        2 => key.clone().prop_map(Write::Delete),
        1 => prefix.prop_map(Write::DeletePrefix),
        1 => key.prop_map(Write::Get),
        1 => list.clone().prop_map(Write::List),
    ];
    let txn = (
        prop::collection::vec(guess, 0..3),
        prop::collection::vec(write, 0..5),
    )
        .prop_map(|(compares, ops)| Step::Txn { compares, ops });
    let step = prop_oneof![
        12 => txn,
        3 => list.prop_map(Step::List),
        2 => Just(Step::Grant),
        1 => (0..4_usize).prop_map(Step::Revoke),
        1 => (0..4_usize).prop_map(Step::KeepAlive),
        2 => Just(Step::Advance),
        1 => (0..10_u64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// After each step both have the same records and revision, and at the end the same history.
pub fn random_histories_match_the_model<S: Subject>() {
    let config = Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            run::<S>(steps);
            Ok(())
        })
        .unwrap();
}

fn run<S: Subject>(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Some(S::open(dir.path()));
    let mut store = subject.as_ref().unwrap().store();
    let begun = wait(store.get(b"x")).unwrap().revision;
    let mut model = Model {
        revision: begun,
        ..Model::default()
    };
    for step in steps {
        match step {
            Step::Txn { compares, ops } => {
                let txn = Txn {
                    compares: compares.into_iter().map(|c| model.compare(c)).collect(),
                    ops: ops.into_iter().map(|op| model.op(op)).collect(),
                };
                if txn.check().is_err() {
                    let refused = wait(store.txn(txn));
                    assert!(matches!(refused, Err(StoreError::InvalidTxn(_))));
                } else {
                    let failed: Vec<_> = txn
                        .compares
                        .iter()
                        .enumerate()
                        .filter(|(_, compare)| !model.holds(compare))
                        .map(|(index, _)| index)
                        .collect();
                    let expected = if failed.is_empty() {
                        let results = model.apply(&txn.ops);
                        Outcome::Applied {
                            revision: model.revision,
                            results,
                        }
                    } else {
                        Outcome::Refused {
                            revision: model.revision,
                            failed,
                        }
                    };
                    assert_eq!(wait(store.txn(txn.clone())).unwrap(), expected, "{txn:?}");
                }
            }
            Step::List(list) => {
                let listed = wait(store.list(&list)).unwrap();
                assert_eq!(listed.records, model.list(&list));
            }
            Step::Grant => {
                let lease = wait(store.grant(2 * HALF)).unwrap();
                let left = lease.ttl;
                assert!(model.leases.insert(lease.id, (lease, left)).is_none());
            }
            Step::Revoke(index) => {
                if let Some(id) = model.nth(index) {
                    wait(store.revoke(id)).unwrap();
                    model.end_lease(id);
                }
            }
            Step::KeepAlive(index) => {
                if let Some(id) = model.nth(index) {
                    wait(store.keep_alive(id)).unwrap();
                    let (lease, left) = model.leases.get_mut(&id).unwrap();
                    *left = lease.ttl;
                }
            }
            Step::Advance => {
                // A second over, so that no lease ends at the instant of a look.
                let by = HALF + Duration::from_secs(1);
                subject.as_ref().unwrap().advance(by);
                let mut over = Vec::new();
                for (id, (_, left)) in &mut model.leases {
                    match left.checked_sub(by) {
                        Some(rest) => *left = rest,
                        None => over.push(*id),
                    }
                }
                over.into_iter().for_each(|id| model.end_lease(id));
            }
            Step::Compact(ago) => {
                let before = model.revision.saturating_sub(ago);
                let compacted = wait(store.compact(before));
                if before > model.compacted.max(begun) {
                    compacted.unwrap();
                    model.compacted = before;
                } else if let Ok(()) = compacted {
                    // A fresh store may have history before the first change, or none.
                    model.compacted = before;
                }
            }
            Step::Reopen => {
                drop(store);
                drop(subject.take());
                let again = subject.insert(S::open(dir.path()));
                store = again.store();
                for (lease, left) in model.leases.values_mut() {
                    *left = lease.ttl;
                }
            }
        }
        let listed = wait(store.list(&List::under(""))).unwrap();
        assert_eq!(listed.revision, model.revision);
        assert!(listed.records.iter().eq(model.records.values()));
        for (id, (lease, _)) in &model.leases {
            let keys: Vec<_> = model
                .records
                .values()
                .filter(|record| record.lease == Some(*id))
                .map(|record| record.key.clone())
                .collect();
            let status = wait(store.lease(lease.id)).unwrap().unwrap();
            assert_eq!(status.keys, keys);
        }
    }
    for prefix in [&b""[..], b"a/", b"\xff"] {
        let from = model.compacted.max(begun + 1);
        let mut watch = wait(store.watch(prefix, from)).unwrap();
        for changes in model.history.iter().filter(|c| c.revision >= from) {
            let events: Vec<_> = changes
                .events
                .iter()
                .filter(|event| match event {
                    Event::Put(record) => record.key.starts_with(prefix),
                    Event::Deleted(key) => key.starts_with(prefix),
                })
                .cloned()
                .collect();
            if !events.is_empty() {
                let seen = wait(watch.next()).unwrap();
                assert_eq!(seen.revision, changes.revision);
                assert_eq!(seen.events, events);
            }
        }
    }
}
