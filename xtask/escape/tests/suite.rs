//! The suite, in each class.
#![allow(clippy::unwrap_used)] // a panic is a failed test

use std::process::Command;

/// What the suite printed, if all holds.
fn passes(arguments: &[&str]) -> String {
    let suite = Command::new(env!("CARGO_BIN_EXE_escape"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&suite.stdout), text(&suite.stderr));
    assert!(suite.status.success(), "{out}\n{err}");
    out
}

#[test]
fn no_probe_escapes_and_each_succeeds_where_its_wall_is_down() {
    let out = passes(&["--class", "namespace"]);
    assert!(out.contains("double-chroot"), "{out}");
}

#[test]
fn no_probe_escapes_from_gvisor() {
    wharf_testkit::runsc();
    passes(&["--class", "gvisor"]);
}

/// A part of them: each boots a machine, emulated, and all take eight minutes (`cargo xtask escape --class microvm`).
#[test]
fn no_probe_of_the_host_escapes_from_a_machine() {
    let out = passes(&["--class", "microvm", "--probe", "host"]);
    assert!(out.contains("host-loopback"), "{out}");
}
