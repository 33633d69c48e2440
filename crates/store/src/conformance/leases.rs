//! Leases: what goes with them, and when.

use std::sync::Arc;
use std::time::Duration;

use super::{Subject, apply, fresh, get, put, revision};
use crate::StoreError;
use crate::meta::{Lease, LeaseId, MetaStore, Op, Txn, wait};

/// Whole seconds, as etcd counts.
const TTL: Duration = Duration::from_secs(10);
const HALF: Duration = Duration::from_secs(5);

fn put_with(store: &Arc<dyn MetaStore>, key: &str, lease: LeaseId) {
    let put = Op::Put {
        key: key.into(),
        value: b"leased".to_vec(),
        lease: Some(lease),
    };
    apply(store, vec![put]);
}

fn grant(store: &Arc<dyn MetaStore>) -> Lease {
    let lease = wait(store.grant(TTL)).unwrap();
    assert!(lease.ttl >= TTL, "{lease:?}");
    lease
}

fn is_over(store: &Arc<dyn MetaStore>, lease: Lease) -> bool {
    let over = wait(store.lease(lease.id)).unwrap().is_none();
    let refused = matches!(
        wait(store.keep_alive(lease.id)),
        Err(StoreError::LeaseGone(id)) if id == lease.id
    );
    assert_eq!(
        over, refused,
        "the lease is over for one call and not for the other"
    );
    over
}

/// All of them in one revision; others stay.
pub fn the_keys_of_a_lease_go_when_it_runs_out<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let lease = grant(&store);
    put_with(&store, "b", lease.id);
    put_with(&store, "a", lease.id);
    put(&store, "c", "stays");
    assert_eq!(get(&store, "a").unwrap().lease, Some(lease.id));
    let status = wait(store.lease(lease.id)).unwrap().unwrap();
    assert_eq!(status.keys, [b"a".to_vec(), b"b".to_vec()]);
    assert!(status.remaining <= lease.ttl);

    let before = revision(&store);
    subject.advance(HALF);
    assert!(get(&store, "a").is_some());
    subject.advance(lease.ttl);
    assert_eq!((get(&store, "a"), get(&store, "b")), (None, None));
    assert!(get(&store, "c").is_some());
    assert_eq!(revision(&store), before + 1);
    assert!(is_over(&store, lease));
}

/// For as long as somebody does so.
pub fn a_lease_that_is_kept_alive_stays<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let lease = grant(&store);
    put_with(&store, "a", lease.id);
    let before = revision(&store);
    for _ in 0..4 {
        subject.advance(HALF);
        assert_eq!(wait(store.keep_alive(lease.id)).unwrap(), lease.ttl);
    }
    assert!(get(&store, "a").is_some());
    assert_eq!(revision(&store), before);
    subject.advance(lease.ttl + HALF);
    assert_eq!(get(&store, "a"), None);
}

/// In one revision, and only once.
pub fn a_revoked_lease_takes_its_keys_along_at_once<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let (lease, other) = (grant(&store), grant(&store));
    assert_ne!(lease.id, other.id);
    put_with(&store, "a", lease.id);
    put_with(&store, "b", lease.id);
    put_with(&store, "c", other.id);
    let before = revision(&store);
    wait(store.revoke(lease.id)).unwrap();
    assert_eq!((get(&store, "a"), get(&store, "b")), (None, None));
    assert!(get(&store, "c").is_some());
    assert_eq!(revision(&store), before + 1);
    assert!(is_over(&store, lease) && !is_over(&store, other));
    assert!(matches!(
        wait(store.revoke(lease.id)),
        Err(StoreError::LeaseGone(_))
    ));
}

/// A put with another lease, or with none, takes the key out of the old one.
pub fn a_key_belongs_to_the_lease_of_its_last_put<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let (old, new) = (grant(&store), grant(&store));
    for key in ["moved", "freed", "stays"] {
        put_with(&store, key, old.id);
    }
    put_with(&store, "moved", new.id);
    put(&store, "freed", "free");
    wait(store.revoke(old.id)).unwrap();
    assert_eq!(get(&store, "moved").unwrap().lease, Some(new.id));
    assert_eq!(get(&store, "freed").unwrap().lease, None);
    assert_eq!(get(&store, "stays"), None);
    wait(store.revoke(new.id)).unwrap();
    assert_eq!(get(&store, "moved"), None);
    assert!(get(&store, "freed").is_some());
}

/// Neither one that was revoked nor one that ran out.
pub fn a_lease_that_is_over_takes_no_keys<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let (revoked, expired) = (grant(&store), grant(&store));
    wait(store.revoke(revoked.id)).unwrap();
    subject.advance(expired.ttl + HALF);
    for lease in [revoked, expired] {
        let txn = Txn {
            compares: vec![],
            ops: vec![
                Op::put("plain", ""),
                Op::Put {
                    key: b"leased".to_vec(),
                    value: vec![],
                    lease: Some(lease.id),
                },
            ],
        };
        assert!(matches!(
            wait(store.txn(txn)),
            Err(StoreError::LeaseGone(id)) if id == lease.id
        ));
        assert_eq!((get(&store, "plain"), get(&store, "leased")), (None, None));
    }
}

/// What ran out while nobody had it open can't be known; what is alive then lives on.
pub fn reopening_gives_leases_their_whole_time_again<S: Subject>() {
    let (dir, subject) = fresh::<S>();
    let store = subject.store();
    let (lease, revoked) = (grant(&store), grant(&store));
    put_with(&store, "a", lease.id);
    wait(store.revoke(revoked.id)).unwrap();
    subject.advance(HALF);
    drop((store, subject));

    let subject = S::open(dir.path());
    let store = subject.store();
    assert!(is_over(&store, revoked));
    assert!(get(&store, "a").is_some());
    assert!(!is_over(&store, lease));
    assert!(![lease.id, revoked.id].contains(&grant(&store).id));
    subject.advance(lease.ttl + HALF);
    assert_eq!(get(&store, "a"), None);
    assert!(is_over(&store, lease));
}
