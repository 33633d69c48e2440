//! Locks for long work, and changes at the same time.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use wharf_store::meta::sqlite::{Clock, SqliteStore};
use wharf_store::meta::{List, MetaStore, wait};
use wharf_store::{Place, Store};

use self::common::{deploy, version};

fn is_waiting(place: Place) -> bool {
    let mut turn = pin!(place.turn());
    let mut context = Context::from_waker(Waker::noop());
    matches!(turn.as_mut().poll(&mut context), Poll::Pending)
}

#[test]
fn a_lock_is_had_by_one_at_a_time_in_the_order_of_asking() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let held = wait(store.queue("shop").unwrap().turn()).unwrap();
    let places: Vec<_> = (0..4).map(|_| store.queue("shop").unwrap()).collect();
    // Another name is another lock, also one that begins alike.
    for other in ["other", "shop/1", "sho"] {
        let lock = wait(store.queue(other).unwrap().turn()).unwrap();
        lock.release().unwrap();
    }
    let (sender, order) = mpsc::channel();
    let threads: Vec<_> = places
        .into_iter()
        .enumerate()
        .rev()
        .map(|(index, place)| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let lock = wait(place.turn()).unwrap();
                sender.send(index).unwrap();
                lock.release().unwrap();
            })
        })
        .collect();
    assert!(is_waiting(store.queue("shop").unwrap()));
    held.release().unwrap();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(sender);
    assert_eq!(order.iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn a_place_that_is_given_up_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let held = wait(store.queue("shop").unwrap().turn()).unwrap();
    let given_up = store.queue("shop").unwrap();
    let next = store.queue("shop").unwrap();
    drop(given_up);
    drop(held);
    wait(next.turn()).unwrap().release().unwrap();
}

#[test]
fn a_node_that_died_leaves_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let held = wait(store.queue("shop").unwrap().turn()).unwrap();
    // As a process that was killed: neither the lock nor the session is given back.
    std::mem::forget((held, store));
    let store = Store::open(dir.path()).unwrap();
    wait(store.queue("shop").unwrap().turn())
        .unwrap()
        .release()
        .unwrap();
}

#[test]
fn a_store_that_is_closed_takes_its_session_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let held = wait(store.queue("shop").unwrap().turn()).unwrap();
    drop(store);
    let meta = SqliteStore::open(&dir.path().join("wharf.sqlite"), Clock::System).unwrap();
    for prefix in ["locks/", "sessions/"] {
        let left = wait(meta.list(&List::under(prefix))).unwrap().records;
        assert!(left.is_empty(), "{left:?}");
    }
    drop(held);
}

#[test]
fn uploads_at_the_same_time_all_count() {
    const WRITERS: usize = 4;
    const UPLOADS: usize = 10;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || {
                for upload in 0..UPLOADS {
                    let id = format!("{writer}-{upload}");
                    // The same script, and one of its own.
                    store
                        .commit_upload(deploy(version(store, "shop", &id, &id)))
                        .unwrap();
                    let own = format!("own-{id}");
                    store
                        .commit_upload(deploy(version(store, &own, &own, &id)))
                        .unwrap();
                }
            });
        }
    });
    let versions = store.versions("shop", 100, 0).unwrap();
    let mut numbers: Vec<_> = versions.iter().map(|v| v.number as usize).collect();
    numbers.reverse();
    assert_eq!(numbers, (1..=WRITERS * UPLOADS).collect::<Vec<_>>());
    assert_eq!(store.deployments("shop", 100).unwrap().len(), 40);
    let mut numbers: Vec<_> = store.scripts().unwrap().iter().map(|s| s.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), WRITERS * UPLOADS + 1);
}
