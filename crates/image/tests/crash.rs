//! SIGKILL at any instant: what was acknowledged is there whole, and what was not is either whole or not there.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wharf_image::{Digest, ImageStore};

use self::common::{HOST, config, set_mtime};

const DIR: &str = "WHARF_IMAGE_CRASH_TEST_DIR";
const FILES: usize = 20;

fn content(round: usize) -> String {
    format!("content of {round} ").repeat(2000)
}

/// Makes and pushes images until it is killed, and says which are done.
fn write_forever(dir: &Path) {
    let store = ImageStore::open(dir).unwrap();
    store.set_registry_hosts(&[HOST.to_owned()]);
    let mut round = store.list().unwrap().len();
    loop {
        let upper = store.scratch_dir().unwrap();
        for n in 0..FILES {
            let path = upper.join(n.to_string());
            std::fs::write(&path, content(round)).unwrap();
            set_mtime(&path, 1, 0);
        }
        let layer = store.commit_upper(&upper).unwrap();
        let name = format!("{HOST}/app:{round}");
        store
            .create(config(), &[layer], std::slice::from_ref(&name))
            .unwrap();
        store.push_local(&name).unwrap();
        println!("done {round}");
        round += 1;
    }
}

#[test]
fn a_kill_at_any_instant_loses_nothing_that_was_acknowledged() {
    if let Some(dir) = std::env::var_os(DIR) {
        write_forever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for delay in [3, 7, 13, 21, 34, 48, 61, 89, 110, 144] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "a_kill_at_any_instant_loses_nothing_that_was_acknowledged",
            ])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // From the first one on, at a moment that nothing in it decides.
        let first = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|l| l.starts_with("done"));
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "ended by itself");
        acknowledged.extend(
            first
                .into_iter()
                .chain(lines.map(Result::unwrap))
                .filter_map(|line| line.strip_prefix("done ")?.parse::<usize>().ok()),
        );

        let store = ImageStore::open(dir.path()).unwrap();
        store.set_registry_hosts(&[HOST.to_owned()]);
        let temporaries = std::fs::read_dir(dir.path().join("tmp")).unwrap().count();
        assert_eq!(temporaries, 0);
        for round in &acknowledged {
            let image = store.resolve(&format!("{HOST}/app:{round}")).unwrap();
            assert_eq!(image.registry_tags, image.repo_tags);
        }
        for image in store.list().unwrap() {
            let round: usize = image.repo_tags[0]
                .rsplit_once(':')
                .unwrap()
                .1
                .parse()
                .unwrap();
            let blob = std::fs::read(store.blob(&image.layers[0].digest).unwrap().0).unwrap();
            assert_eq!(Digest::of(&blob), image.layers[0].digest);
            let fs = store.lower_dirs(&image.layers).unwrap().remove(0);
            for n in 0..FILES {
                let found = std::fs::read_to_string(fs.join(n.to_string())).unwrap();
                assert!(found == content(round), "{fs:?}");
            }
        }
    }
    assert!(acknowledged.len() >= 10);
}
