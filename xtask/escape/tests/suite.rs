//! The whole suite, in the class that every node has.
#![allow(clippy::unwrap_used)] // a panic is a failed test

use std::process::Command;

#[test]
fn no_probe_escapes_and_each_succeeds_where_its_wall_is_down() {
    let suite = Command::new(env!("CARGO_BIN_EXE_escape"))
        .args(["--class", "namespace"])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        suite.status.success(),
        "{}\n{}",
        text(&suite.stdout),
        text(&suite.stderr)
    );
    assert!(
        text(&suite.stdout).contains("double-chroot"),
        "{}",
        text(&suite.stdout)
    );
}

#[test]
fn no_probe_escapes_from_gvisor() {
    wharf_testkit::runsc();
    let suite = Command::new(env!("CARGO_BIN_EXE_escape"))
        .args(["--class", "gvisor"])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        suite.status.success(),
        "{}\n{}",
        text(&suite.stdout),
        text(&suite.stderr)
    );
}
