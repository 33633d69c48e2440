//! SIGKILL at any instant of a deploy: the next start finds each script's deployed version whole, and no acknowledged deploy is lost.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use wharf_store::Store;

use self::common::{assert_whole, deploy, version};

const DIR: &str = "WHARF_STORE_CRASH_DIR";
const SCRIPTS: [&str; 3] = ["one", "two", "three"];

/// Ends the child whatever happens to the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be gone already; either way nothing is left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: what the child process runs. Deploys until it is killed, and tells each deploy that was acknowledged.
#[test]
#[ignore = "run by the test below, in a child process"]
fn crash_child() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let store = Store::open(Path::new(&dir)).unwrap();
    let mut round = 0_u64;
    loop {
        round += 1;
        for script in SCRIPTS {
            let id = format!("{}-{round}-{script}", std::process::id());
            let upload = deploy(version(&store, script, &id, &id));
            let number = store.commit_upload(upload).unwrap().version.number;
            println!("deployed {script} {number}");
            if round.is_multiple_of(5) {
                store.blob_gc(Duration::from_secs(3600)).unwrap();
            }
        }
    }
}

#[test]
fn a_kill_at_any_instant_loses_no_acknowledged_deploy_and_leaves_none_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = [0_u32; SCRIPTS.len()];
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..25 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut note = |line: String| {
            let mut words = line
                .split(' ')
                .skip_while(|word| *word != "deployed")
                .skip(1);
            let (Some(script), Some(number)) = (words.next(), words.next()) else {
                return false;
            };
            // A line that the kill cut short says nothing.
            let Some(index) = SCRIPTS.iter().position(|name| *name == script) else {
                return false;
            };
            acknowledged[index] = acknowledged[index].max(number.parse().unwrap());
            true
        };
        while !note(lines.next().unwrap().unwrap()) {}
        // Anywhere in the next few deploys.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        std::thread::sleep(Duration::from_micros(seed % 40_000));
        child.0.kill().unwrap();
        for line in lines {
            note(line.unwrap());
        }
        child.0.wait().unwrap();

        let store = Store::open(dir.path()).unwrap();
        for (script, acknowledged) in SCRIPTS.iter().zip(acknowledged) {
            let Some(deployed) = store.deployed_version(script).unwrap() else {
                assert_eq!(acknowledged, 0, "{script}: an acknowledged deploy is lost");
                continue;
            };
            assert!(
                deployed.number >= acknowledged,
                "{script}: version {acknowledged} was acknowledged, {} is deployed",
                deployed.number
            );
            assert_whole(&store, &deployed);
            for kept in store.versions(script, 1000, 0).unwrap() {
                assert_whole(&store, &kept);
            }
        }
        let leftovers = std::fs::read_dir(dir.path().join("blobs/tmp"))
            .unwrap()
            .count();
        assert_eq!(leftovers, 0);
    }
    // Each round waited for one.
    assert!(acknowledged[0] >= 25, "{acknowledged:?}");
}
