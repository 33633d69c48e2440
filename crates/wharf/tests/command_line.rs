//! What the command line says when something is wrong.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use self::common::Node;

#[test]
fn a_busy_port_is_named_with_its_mend() {
    let node = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wharf"));
        command.env("WHARF_WORKERD", common::tools().join("workerd"));
        let out = command
            .arg("--data-dir")
            .arg(dir.path().join("d"))
            .arg("up")
            .args(args)
            .output()
            .unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let said = run(&[
        "--listen",
        &node.gateway.to_string(),
        "--control-listen",
        "127.0.0.1:0",
    ]);
    assert!(
        said.contains(&node.gateway.to_string()) && said.contains("--listen"),
        "{said}"
    );
    let said = run(&[
        "--listen",
        "127.0.0.1:0",
        "--control-listen",
        &node.control.to_string(),
    ]);
    assert!(said.contains("--control-listen"), "{said}");
}

#[test]
fn one_daemon_per_data_directory() {
    let node = Node::start();
    let out = node
        .command()
        .args([
            "up",
            "--listen",
            "127.0.0.1:0",
            "--control-listen",
            "127.0.0.1:0",
        ])
        .output()
        .unwrap();
    assert!(!out.status.success());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("another `wharf up`"), "{said}");
    assert_eq!(
        node.get("nobody", "/").status,
        404,
        "the first one still serves"
    );
}

#[test]
fn an_unknown_key_in_the_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wharf.toml");
    std::fs::write(&file, "[gateway]\nlisten_to = \"x\"\n").unwrap();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_wharf"))
        .arg("--config")
        .arg(&file)
        .arg("status")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("listen_to"),
        "{said}"
    );
}

#[test]
fn without_a_node_the_commands_say_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    for verb in [
        &["status"][..],
        &["env"],
        &["docker", "info"],
        &["image", "ls"],
    ] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_wharf"))
            .arg("--data-dir")
            .arg(dir.path())
            .args(verb)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains("wharf up"),
            "{verb:?}: {said}"
        );
    }
}

#[test]
fn an_unknown_host_is_told_which_exist_only_in_development() {
    let node = Node::start();
    let answer = node.get("nobody", "/");
    assert_eq!(answer.status, 404);
    drop(node);
    let node = Node::start_with(&["--dev"]);
    let answer = node.get("nobody", "/");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("wrangler"), "{}", answer.body);
}

#[test]
fn a_reader_that_goes_away_and_a_user_without_rights_get_no_riddles() {
    let node = Node::start();
    let mut status = node.command();
    // The reading end is closed before anything is written, as by `wharf status | head -0`.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = status.arg("status").stdout(writer).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "{said}");

    use std::os::unix::process::CommandExt;
    let mut status = node.command();
    let out = status.arg("status").uid(65_534).gid(65_534).output();
    // An executable below a directory that is root's alone can't even be started by others.
    if let Ok(out) = out {
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains("as root") && !said.contains("wharf up"),
            "{said}"
        );
    }
}
