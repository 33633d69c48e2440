//! Watches and compaction.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Subject, apply, fresh, get, put, revision};
use crate::StoreError;
use crate::meta::{Changes, Event, MetaStore, Op, Revision, Watch, wait};

fn watch(store: &Arc<dyn MetaStore>, prefix: &str, from: Revision) -> Box<dyn Watch> {
    wait(store.watch(prefix.as_bytes(), from)).unwrap()
}

/// The next change, as `key=value` or `-key`.
fn next(watch: &mut Box<dyn Watch>) -> (Revision, Vec<String>) {
    let Changes { revision, events } = wait(watch.next()).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let events = events.iter().map(|event| match event {
        Event::Put(record) => {
            assert_eq!(record.modified, revision);
            format!("{}={}", text(&record.key), text(&record.value))
        }
        Event::Deleted(key) => format!("-{}", text(key)),
    });
    (revision, events.collect())
}

fn delete(store: &Arc<dyn MetaStore>, key: &str) -> Revision {
    apply(store, vec![Op::Delete(key.into())])
}

/// Those of one transaction together, as they were then.
pub fn a_watch_sees_every_change_under_its_prefix<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let from = revision(&store) + 1;
    let mut under = watch(&store, "a/", from);
    let mut all = watch(&store, "", from);
    let first = put(&store, "a/1", "x");
    let other = put(&store, "b", "x");
    let both = apply(
        &store,
        vec![
            Op::put("a/2", "y"),
            Op::put("c", "y"),
            Op::Delete(b"a/1".to_vec()),
        ],
    );
    let last = put(&store, "a/2", "z");
    let strings = |list: &[&str]| -> Vec<String> { list.iter().map(|s| s.to_string()).collect() };
    assert_eq!(next(&mut under), (first, strings(&["a/1=x"])));
    assert_eq!(next(&mut under), (both, strings(&["a/2=y", "-a/1"])));
    assert_eq!(next(&mut under), (last, strings(&["a/2=z"])));
    assert_eq!(next(&mut all), (first, strings(&["a/1=x"])));
    assert_eq!(next(&mut all), (other, strings(&["b=x"])));
    assert_eq!(next(&mut all), (both, strings(&["a/2=y", "c=y", "-a/1"])));
    assert_eq!(next(&mut all), (last, strings(&["a/2=z"])));

    // While it waits.
    let writer = Arc::clone(&store);
    let waiting = std::thread::spawn(move || next(&mut under));
    put(&writer, "b", "not this one");
    let live = put(&writer, "a/3", "live");
    assert_eq!(waiting.join().unwrap(), (live, strings(&["a/3=live"])));
}

/// What came before the revision is left out, whenever the watch was made.
pub fn a_watch_may_begin_in_the_past_or_the_future<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let first = put(&store, "a", "1");
    let second = put(&store, "a", "2");
    let third = put(&store, "a", "3");
    let mut past = watch(&store, "a", second);
    let mut future = watch(&store, "a", third + 2);
    assert!(first < second);
    assert_eq!(next(&mut past).0, second);
    assert_eq!(next(&mut past).0, third);
    put(&store, "a", "4");
    let fifth = put(&store, "a", "5");
    assert_eq!(fifth, third + 2);
    assert_eq!(next(&mut future), (fifth, vec!["a=5".to_owned()]));
    assert_eq!(next(&mut past).1, ["a=4"]);
    assert_eq!(next(&mut past).1, ["a=5"]);
}

/// From the revision after the last one seen: nothing twice, nothing left out.
pub fn a_watch_goes_on_after_reopening<S: Subject>() {
    let (dir, subject) = fresh::<S>();
    let store = subject.store();
    let mut before = watch(&store, "", revision(&store) + 1);
    put(&store, "a", "1");
    let (seen, _) = next(&mut before);
    put(&store, "b", "2");
    delete(&store, "a");
    drop((before, store, subject));

    let subject = S::open(dir.path());
    let store = subject.store();
    let mut after = watch(&store, "", seen + 1);
    put(&store, "c", "3");
    let events: Vec<_> = (0..3).map(|_| next(&mut after)).collect();
    let expected = ["b=2", "-a", "c=3"];
    for (index, (revision, events)) in events.into_iter().enumerate() {
        assert_eq!(revision, seen + 1 + index as u64);
        assert_eq!(events, [expected[index]]);
    }
}

/// Their keys' end is a change as any other.
pub fn a_watch_hears_of_leases_that_run_out<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let lease = wait(store.grant(Duration::from_secs(10))).unwrap();
    let leased = Op::Put {
        key: b"a".to_vec(),
        value: b"1".to_vec(),
        lease: Some(lease.id),
    };
    let at = apply(&store, vec![leased]);
    let mut watch = watch(&store, "a", at);
    let Changes { events, .. } = wait(watch.next()).unwrap();
    assert!(matches!(&events[..], [Event::Put(record)] if record.lease == Some(lease.id)));
    subject.advance(lease.ttl + Duration::from_secs(5));
    assert_eq!(next(&mut watch), (at + 1, vec!["-a".to_owned()]));
}

/// A dropped future takes no change with it.
pub fn a_wait_that_was_given_up_loses_nothing<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let mut watch = watch(&store, "", revision(&store) + 1);
    for round in 0..3 {
        {
            let mut wait = watch.next();
            let mut context = Context::from_waker(Waker::noop());
            assert!(matches!(wait.as_mut().poll(&mut context), Poll::Pending));
        }
        let at = put(&store, "a", &round.to_string());
        assert_eq!(next(&mut watch), (at, vec![format!("a={round}")]));
    }
}

/// Every revision once, in order.
pub fn a_watch_beside_many_writers_has_no_gap<S: Subject>() {
    const WRITERS: u64 = 3;
    const STEPS: u64 = 40;
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let from = revision(&store) + 1;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                for step in 0..STEPS {
                    put(&store, &format!("{writer}/{step}"), "");
                }
            })
        })
        .collect();
    let mut watch = watch(&store, "", from);
    let mut steps = vec![0; WRITERS as usize];
    for expected in from..from + WRITERS * STEPS {
        let (revision, events) = next(&mut watch);
        assert_eq!(revision, expected);
        let [event] = &events[..] else {
            panic!("{events:?}");
        };
        let (writer, step) = event.trim_end_matches('=').split_once('/').unwrap();
        let seen = &mut steps[writer.parse::<usize>().unwrap()];
        assert_eq!(step.parse::<u64>().unwrap(), *seen);
        *seen += 1;
    }
    for writer in writers {
        writer.join().unwrap();
    }
}

/// A watch from the compaction's revision on is whole, a delete in that revision included.
pub fn compacted_history_is_refused_and_the_rest_is_whole<S: Subject>() {
    let (dir, subject) = fresh::<S>();
    let store = subject.store();
    let first = put(&store, "a", "1");
    put(&store, "b", "1");
    put(&store, "a", "2");
    let at = delete(&store, "b");
    let last = put(&store, "a", "3");
    wait(store.compact(at)).unwrap();

    let check = |store: &Arc<dyn MetaStore>| {
        for from in [first, at - 1] {
            match wait(store.watch(b"", from)) {
                Err(StoreError::Compacted { compacted }) => assert_eq!(compacted, at),
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("a watch from {from} was granted"),
            }
        }
        let mut whole = watch(store, "", at);
        assert_eq!(next(&mut whole), (at, vec!["-b".to_owned()]));
        assert_eq!(next(&mut whole), (last, vec!["a=3".to_owned()]));
        let record = get(store, "a").unwrap();
        assert_eq!((record.created, record.version), (first, 3));
        assert!(matches!(
            wait(store.compact(at)),
            Err(StoreError::Compacted { .. })
        ));
        assert!(matches!(
            wait(store.compact(last + 1)),
            Err(StoreError::InvalidTxn(_))
        ));
    };
    check(&store);
    drop((store, subject));
    let subject = S::open(dir.path());
    check(&subject.store());

    // Everything is forgotten but the last revision.
    let store = subject.store();
    wait(store.compact(last)).unwrap();
    assert_eq!(revision(&store), last);
    assert_eq!(put(&store, "b", "1"), last + 1);
}

/// It hears what is the matter instead of going on with a gap.
pub fn a_watch_that_is_too_slow_is_told_so<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let first = put(&store, "a", "0");
    let mut slow = watch(&store, "", first);
    assert_eq!(next(&mut slow).0, first);
    for round in 1..10 {
        put(&store, "a", &round.to_string());
    }
    let last = revision(&store);
    wait(store.compact(last)).unwrap();
    // One that had been sent ahead may still come, in order; then it is told.
    let mut expected = first + 1;
    loop {
        match wait(slow.next()) {
            Ok(changes) => {
                assert_eq!(changes.revision, expected);
                assert!(expected <= last, "it was never told");
                expected += 1;
                if expected > last {
                    break;
                }
            }
            Err(StoreError::Compacted { compacted }) => {
                assert_eq!(compacted, last);
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
}
