//! SIGKILL at any instant: what was acknowledged is there, and nothing is half there.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Subject, get, revision, txn, value};
use crate::meta::{Compare, Event, Op, Outcome, wait};

const PLACE: &str = "WHARF_CONFORMANCE_PLACE";

/// Ends the child also if the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be gone already; either way nothing is left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: what the child process runs. Each transaction writes two keys and deletes
/// a third; each that was acknowledged is told.
pub fn run_until_killed<S: Subject>() {
    let Some(place) = std::env::var_os(PLACE) else {
        return;
    };
    let subject = S::open(Path::new(&place));
    let store = subject.store();
    let mut out = std::io::stdout().lock();
    loop {
        let (compare, count) = match get(&store, "count") {
            None => (Compare::Absent(b"count".to_vec()), 0),
            Some(record) => (
                Compare::Unchanged(b"count".to_vec(), record.modified),
                String::from_utf8(record.value).unwrap().parse().unwrap(),
            ),
        };
        let next: u64 = count + 1;
        let ops = vec![
            Op::put("count", next.to_string()),
            Op::put(format!("log/{next:06}"), vec![b'x'; 5000]),
            Op::Delete(format!("log/{:06}", next.saturating_sub(3)).into()),
        ];
        match txn(&store, vec![compare], ops) {
            Outcome::Applied { .. } => writeln!(out, "\nacknowledged {next}").unwrap(),
            refused => panic!("{refused:?}"),
        }
    }
}

/// Kills such a child again and again. `child` is the full name of the test that runs it.
pub fn a_kill_at_any_instant_loses_nothing_acknowledged<S: Subject>(child: &str) {
    let dir = tempfile::tempdir().unwrap();
    // The name without the crate's.
    let name = child.split_once("::").map_or(child, |(_, name)| name);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut last = 0;
    for _ in 0..10 {
        let mut child = Killed(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--ignored", "--nocapture"])
                .env(PLACE, dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let number = |line: &str| -> Option<u64> {
            // A line that the kill cut short may lack digits, so it says too little, never too much.
            line.strip_prefix("acknowledged ")?.parse().ok()
        };
        let mut acknowledged = last;
        loop {
            let line = lines.next().expect("the child ended by itself").unwrap();
            if let Some(number) = number(&line) {
                acknowledged = acknowledged.max(number);
                break;
            }
        }
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        std::thread::sleep(Duration::from_micros(seed % 40_000));
        child.0.kill().unwrap();
        for line in lines {
            acknowledged = acknowledged.max(number(&line.unwrap()).unwrap_or(0));
        }
        child.0.wait().unwrap();

        let subject = S::open(dir.path());
        let store = subject.store();
        let count: u64 = value(&store, "count").unwrap().parse().unwrap();
        // One may have been applied whose acknowledgement the kill cut off.
        assert!(
            count == acknowledged || count == acknowledged + 1,
            "{acknowledged} were acknowledged, {count} are there"
        );
        let log = wait(store.list(&crate::meta::List::under("log/"))).unwrap();
        let keys: Vec<_> = log.records.iter().map(|r| r.key.clone()).collect();
        let expected: Vec<_> = (count.saturating_sub(2).max(1)..=count)
            .map(|n| format!("log/{n:06}").into_bytes())
            .collect();
        assert_eq!(keys, expected);
        assert!(log.records.iter().all(|r| r.value == vec![b'x'; 5000]));
        // The history has the last round whole, and each count once.
        let first = get(&store, "count").unwrap().modified + 1 + last - count;
        let mut watch = wait(store.watch(b"count", first)).unwrap();
        for expected in last + 1..=count {
            let changes = wait(watch.next()).unwrap();
            assert_eq!(changes.revision, first + expected - last - 1);
            let [Event::Put(record)] = &changes.events[..] else {
                panic!("{changes:?}");
            };
            assert_eq!(record.value, expected.to_string().into_bytes());
        }
        assert_eq!(revision(&store), get(&store, "count").unwrap().modified);
        last = count;
    }
}
