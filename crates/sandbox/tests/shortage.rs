//! Starts when something is used up: refused with its name, and possible again as soon as there is
//! some.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use wharf_sandbox::{IdRanges, SpawnError, Spawner};

use self::support::{Place, warden_of};

/// Sets how many files a process may have open; returns what it was.
fn limit_files(pid: Option<u32>, files: Option<u64>) -> Option<u64> {
    let limit = Rlimit {
        current: files,
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let pid = pid.and_then(|pid| Pid::from_raw(pid as i32));
    prlimit(pid, Resource::Nofile, limit).unwrap().current
}

async fn refusal(place: &Place, spawner: &Spawner, id: &str) -> String {
    let (spec, fds) = place.container(id, "sleep 1000");
    match spawner.spawn(&spec, fds).await {
        Err(SpawnError::Exhausted(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_spawner_without_descriptors_refuses_starts_and_keeps_its_connection() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.container("kept", "sleep 1000");
    spawner.spawn(&spec, fds).await.unwrap();
    let files = limit_files(Some(spawner.pid()), Some(8));
    for _ in 0..3 {
        let reason = refusal(&place, &spawner, "c").await;
        assert!(reason.contains("out of file descriptors"), "{reason}");
    }
    limit_files(Some(spawner.pid()), files);
    assert_eq!(place.run(&spawner, "c", "exit 3").await.exit.code, 3);
    assert!(spawner.signal("kept", 0).await.unwrap());
    assert!(warden_of(spawner.pid()).is_some());
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_daemon_without_descriptors_loses_that_start_alone() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.container("kept", "sleep 1000");
    spawner.spawn(&spec, fds).await.unwrap();
    for id in ["c", "d", "e"] {
        let (spec, fds) = place.container(id, "sleep 1000");
        // Below what it has open already: no more can come.
        let files = limit_files(None, Some(3));
        let refused = spawner.spawn(&spec, fds).await;
        limit_files(None, files);
        match refused {
            Err(SpawnError::Exhausted(reason)) => {
                assert!(reason.contains("out of file descriptors"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(place.run(&spawner, "f", "exit 3").await.exit.code, 3);
    assert!(spawner.signal("kept", 0).await.unwrap());
    // The process that was started in vain has ended.
    wharf_testkit::eventually("the id to be free", async || {
        let (spec, fds) = place.container("c", "exit 4");
        support::run(&spawner, &spec, fds).await.ok()
    })
    .await;
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_new_daemon_with_few_descriptors_ends_what_it_cannot_adopt_and_adopts_the_rest() {
    let place = Place::new();
    let config = place.config(20_000);
    let (first, _) = Spawner::start(config.clone()).await.unwrap();
    for id in ["a", "b", "c"] {
        let (spec, fds) = place.container(id, "sleep 1000");
        first.spawn(&spec, fds).await.unwrap();
    }
    drop(first);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    let mut before = 0;
    wharf_testkit::eventually("the first connection to be closed", async || {
        let now = open();
        (std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
    // Room for the connection and the two descriptors of one process.
    let files = limit_files(None, Some(open() + 4));
    let adopted = Spawner::start(config).await;
    limit_files(None, files);
    let (spawner, survivors) = adopted.unwrap();
    let adopted: Vec<&str> = survivors.iter().map(|s| &*s.process.id).collect();
    assert!((1..3).contains(&adopted.len()), "{adopted:?}");
    for id in ["a", "b", "c"] {
        if adopted.contains(&id) {
            assert!(spawner.signal(id, 0).await.unwrap(), "{id}");
        } else {
            // Its id is free.
            assert_eq!(place.run(&spawner, id, "exit 3").await.exit.code, 3);
        }
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn without_a_free_range_of_ids_a_start_is_refused_until_one_comes_back() {
    let place = Place::new();
    let mut config = place.config(20_000);
    config.ids = Some(IdRanges {
        count: 2,
        ..IdRanges::default()
    });
    let (spawner, _) = Spawner::start(config).await.unwrap();
    for id in ["a", "b"] {
        let (spec, fds) = place.container(id, "sleep 1000");
        spawner.spawn(&spec, fds).await.unwrap();
    }
    let reason = refusal(&place, &spawner, "c").await;
    assert!(reason.contains("all 2 id ranges"), "{reason}");
    spawner.kill("a").await.unwrap();
    spawner.wait("a").await.unwrap();
    assert_eq!(place.run(&spawner, "c", "exit 3").await.exit.code, 3);
    place.finish(spawner).await;
}
