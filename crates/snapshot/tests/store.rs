//! What is kept, for whom, how long, and what a crash leaves.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use wharf_snapshot::{Copied, Draft, Kind, Snapshot, SnapshotConfig, SnapshotError, Snapshots};

const CONFIG: SnapshotConfig = SnapshotConfig {
    max_bytes: 100,
    owner_bytes: 250,
    ttl_ms: 1000,
    offer_ms: 60_000,
};

fn open(dir: &Path) -> Snapshots {
    Snapshots::open(dir, CONFIG).unwrap()
}

fn draft(snapshots: &Snapshots) -> Draft {
    let draft = snapshots.draft().unwrap();
    fs::write(draft.files().join("file"), "content").unwrap();
    draft
}

const COPIED: Copied = Copied {
    bytes: 90,
    linked: 5,
    archive: 2048,
};

fn keep(snapshots: &Snapshots, owner: &str, name: &str) -> Result<Snapshot, SnapshotError> {
    let labels = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    snapshots.keep(
        draft(snapshots),
        owner,
        name,
        Kind::Directory,
        labels,
        COPIED,
    )
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn snapshots_are_their_owners_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    keep(&snapshots, "a", "one").unwrap();
    let again = keep(&snapshots, "a", "one").unwrap_err();
    assert!(matches!(again, SnapshotError::Exists(_)), "{again}");
    keep(&snapshots, "b", "one").unwrap();
    assert!(snapshots.get("b", "two").is_none());
    drop(snapshots);

    let snapshots = open(dir.path());
    let found = snapshots.use_now("a", "one").unwrap().unwrap();
    assert_eq!(
        fs::read_to_string(found.files.join("file")).unwrap(),
        "content"
    );
    assert_eq!(found.labels["k"], "v");
    assert_eq!(snapshots.list("a").len(), 1);
    assert!(snapshots.use_now("c", "one").unwrap().is_none());
    let usage = snapshots.usage();
    assert_eq!((usage[0].owner.as_str(), usage[0].count), ("a", 1));
    assert_eq!((usage[0].bytes, usage[0].shared_bytes), (90, 5));
    assert!(snapshots.remove("a", "one").unwrap());
    assert!(!snapshots.remove("a", "one").unwrap());
    assert!(snapshots.get("b", "one").is_some());
    assert_eq!(entries(&dir.path().join("tmp")), 0);
}

#[test]
fn what_a_crash_left_half_done_is_gone_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    std::mem::forget(draft(&snapshots));
    let token = snapshots.offer("a", draft(&snapshots), COPIED);
    assert_eq!(entries(&dir.path().join("tmp")), 2);
    let after = open(dir.path());
    assert_eq!(entries(&dir.path().join("tmp")), 0);
    assert!(after.take("a", &token).is_none());
    assert!(after.list("a").is_empty());
}

#[test]
fn a_draft_that_is_not_kept_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    drop(draft(&snapshots));
    keep(&snapshots, "a", "x").unwrap();
    keep(&snapshots, "a", "x").unwrap_err();
    assert_eq!(entries(&dir.path().join("tmp")), 0);
    assert_eq!(entries(&dir.path().join("kept")), 1);
}

#[test]
fn an_offer_is_good_once_for_its_owner_and_not_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let token = snapshots.offer("a", draft(&snapshots), COPIED);
    assert!(snapshots.take("b", &token).is_none());
    assert!(snapshots.take("a", "guess").is_none());
    assert!(snapshots.take("a", &token).is_some());
    assert!(snapshots.take("a", &token).is_none());

    let config = SnapshotConfig {
        offer_ms: 0,
        ..CONFIG
    };
    let snapshots = Snapshots::open(&dir.path().join("other"), config).unwrap();
    let token = snapshots.offer("a", draft(&snapshots), COPIED);
    assert!(snapshots.take("a", &token).is_none());
    assert_eq!(entries(&dir.path().join("other/tmp")), 0);
}

#[test]
fn unused_ones_expire_and_used_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    for name in ["old", "held", "fresh"] {
        keep(&snapshots, "a", name).unwrap();
    }
    keep(&snapshots, "gone", "x").unwrap();
    let held = snapshots.get("a", "held").unwrap();
    let in_use = HashSet::from([held.files]);
    let now = held.last_used_ms;
    let known = |owner: &str| owner != "gone";
    assert_eq!(snapshots.sweep(&in_use, known, now).unwrap(), 1);
    assert!(snapshots.list("gone").is_empty());
    // A restore begins its time anew, also for the next daemon.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let used = snapshots
        .use_now("a", "fresh")
        .unwrap()
        .unwrap()
        .last_used_ms;
    assert!(used > now);
    let snapshots = open(dir.path());
    assert!(snapshots.get("a", "fresh").unwrap().last_used_ms >= used - 10);
    let later = snapshots.get("a", "old").unwrap().last_used_ms + 1001;
    assert_eq!(snapshots.sweep(&in_use, known, later).unwrap(), 1);
    // Two of one millisecond come in any order.
    let mut left: Vec<_> = snapshots.list("a").into_iter().map(|s| s.name).collect();
    left.sort();
    assert_eq!(left, ["fresh", "held"]);
}

#[test]
fn no_owner_has_more_than_its_share() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    assert_eq!(snapshots.allowance("a").bytes, 100);
    keep(&snapshots, "a", "one").unwrap();
    let _waiting = snapshots.offer("a", draft(&snapshots), COPIED);
    let left = snapshots.allowance("a");
    assert_eq!(left.bytes, 70);
    assert!(left.refusal.contains("snapshots.script_mib"), "{left:?}");
    assert_eq!(snapshots.allowance("b").bytes, 100);
}
