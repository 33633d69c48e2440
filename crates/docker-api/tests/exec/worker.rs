//! `ctx.container.exec()` of a Worker in a real workerd. The image holds one static program and no shell, so whatever works here works without
//! one.

use serde_json::{Value, json};

use crate::node::Node;
use crate::volume::{memory, reset_peak, stalled};

/// Runs a command to its end: standard output, standard error, exit code.
async fn run(node: &Node, cmd: &[&str], options: Value) -> (String, String, i64) {
    let ran = node
        .call("/run", json!({"cmd": cmd, "options": options}))
        .await;
    // One that could not be started has no number.
    assert!(
        ran["pid"].as_i64().unwrap() > 1 || ran["exitCode"].as_i64().unwrap() > 125,
        "{ran}"
    );
    let text = |field: &str| ran[field].as_str().unwrap().to_owned();
    (
        text("stdout"),
        text("stderr"),
        ran["exitCode"].as_i64().unwrap(),
    )
}

/// The program's own shell.
async fn sh(node: &Node, script: &str, options: Value) -> (String, String, i64) {
    run(node, &["/busybox", "sh", "-c", script], options).await
}

/// Its kernel is gVisor's.
async fn on_gvisor() -> Node {
    wharf_testkit::runsc();
    Node::of_class(Some(wharf_engine::Isolation::Gvisor)).await
}

/// Its kernel is a virtual machine's.
async fn in_a_machine() -> Node {
    Node::of_class(Some(wharf_engine::Isolation::Microvm)).await
}

#[tokio::test]
async fn what_a_worker_gives_and_gets() {
    gives_and_gets(Node::new().await, "busybox\ndev\netc\nproc\nsys\n").await;
}

#[tokio::test]
async fn what_a_worker_gives_and_gets_on_gvisor() {
    let node = on_gvisor().await;
    let (said, _, _) = run(&node, &["/busybox", "dmesg"], json!({})).await;
    assert!(said.contains("gVisor"), "{said}");
    // There is a /tmp in any case.
    gives_and_gets(node, "busybox\ndev\netc\nproc\nsys\ntmp\n").await;
}

#[tokio::test]
async fn what_a_worker_gives_and_gets_in_a_machine() {
    gives_and_gets(in_a_machine().await, "busybox\ndev\netc\nproc\nsys\ntmp\n").await;
}

async fn gives_and_gets(node: Node, root: &str) {
    let (out, err, code) = sh(&node, "echo out; echo err >&2; exit 7", json!({})).await;
    assert_eq!((out.as_str(), err.as_str(), code), ("out\n", "err\n", 7));
    let (out, err, code) = sh(
        &node,
        "echo out; echo err >&2; exit 255",
        json!({"stderr": "combined"}),
    )
    .await;
    assert!(out == "out\nerr\n" || out == "err\nout\n", "{out}");
    assert_eq!((err.as_str(), code), ("", 255));
    let (out, err, _) = sh(
        &node,
        "echo out; echo err >&2",
        json!({"stdout": "ignore", "stderr": "ignore"}),
    )
    .await;
    assert_eq!((out.as_str(), err.as_str()), ("", ""));

    // Nothing in /tmp, nor a /tmp: it is the wrapper's business.
    let (out, _, _) = run(&node, &["/busybox", "ls", "/"], json!({})).await;
    assert_eq!(out, root);
    let script =
        "echo $BASE, $BOTH, $OWN; /busybox pwd; /busybox id -u; /busybox id -g; echo $HOME";
    let given = json!({"cwd": "/proc", "user": "1000:1001", "env": {"BOTH": "from exec", "OWN": "from exec"}});
    let (out, err, _) = sh(&node, script, given).await;
    assert_eq!(
        out, "from start, from exec, from exec\n/proc\n1000\n1001\n/\n",
        "{err}"
    );
    let (out, err, _) = sh(&node, script, json!({})).await;
    assert_eq!(out, "from start, from start,\n/\n0\n0\n/\n", "{err}");

    // Input: a stream, none, and one that nobody reads.
    let cat = json!({"cmd": ["/busybox", "cat"], "input": "through the pipe"});
    assert_eq!(node.call("/run", cat).await["stdout"], "through the pipe");
    assert_eq!(
        run(&node, &["/busybox", "cat"], json!({})).await.0,
        "",
        "the end at once"
    );
    let unread = json!({"cmd": ["/busybox", "true"], "input": "x".repeat(1 << 20)});
    assert_eq!(node.call("/run", unread).await["exitCode"], 0);

    // What is not there.
    let (out, err, code) = run(&node, &["nope"], json!({})).await;
    assert_eq!((out.as_str(), code), ("", 127));
    assert!(err.contains("nope"), "{err}");
    let (_, err, code) = run(&node, &["/etc/hosts"], json!({})).await;
    assert!(code == 126 && err.contains("permission denied"), "{err}");
    let (_, err, code) = run(&node, &["/busybox", "true"], json!({"cwd": "/no"})).await;
    assert!(code == 127 && err.contains("/no"), "{err}");
    let (_, err, code) = run(&node, &["/busybox", "true"], json!({"user": "who"})).await;
    assert!(code == 126 && err.contains("who"), "{err}");
    node.end().await;
}

#[tokio::test]
async fn any_signal_reaches_the_process() {
    let node = Node::new().await;
    for signal in [9, 15, 10, 1, 64] {
        let open = json!({"name": "p", "cmd": ["/busybox", "sleep", "1000"], "options": {"stdout": "ignore"}});
        node.call("/open", open).await;
        let code = node
            .call("/kill", json!({"name": "p", "signal": signal}))
            .await;
        assert_eq!(code, 128 + signal);
    }
    let script = "trap 'echo usr1' USR1; trap 'exit 3' TERM; echo ready; while :; do /busybox sleep 0.01; done";
    let open = json!({"name": "p", "cmd": ["/busybox", "sh", "-c", script]});
    node.call("/open", open).await;
    node.call("/says", json!({"name": "p", "text": "ready\n"}))
        .await;
    node.call("/signal", json!({"name": "p", "signal": 10}))
        .await;
    node.call("/says", json!({"name": "p", "text": "usr1\n"}))
        .await;
    assert_eq!(
        node.call("/kill", json!({"name": "p", "signal": 15})).await,
        3
    );
    // To one that has ended: nothing happens, the object works on.
    node.call("/signal", json!({"name": "p", "signal": 15}))
        .await;
    let open = json!({"name": "a", "abortable": true, "cmd": ["/busybox", "sleep", "1000"]});
    node.call("/open", open).await;
    assert_eq!(node.call("/abort", json!({"name": "a"})).await, 137);
    assert_eq!(run(&node, &["/busybox", "true"], json!({})).await.2, 0);
    // The container's end is theirs.
    let open = json!({"name": "d", "cmd": ["/busybox", "sleep", "1000"]});
    node.call("/open", open).await;
    assert_eq!(node.call("/destroy", json!({"name": "d"})).await, 137);
    node.end().await;
}

#[tokio::test]
async fn a_terminal_follows_its_window() {
    follows_its_window(Node::new().await, "/dev/pts/0").await;
}

#[tokio::test]
async fn a_terminal_on_gvisor_follows_its_window() {
    // It is one, but has no name there.
    follows_its_window(on_gvisor().await, "not a tty").await;
}

#[tokio::test]
async fn a_terminal_in_a_machine_follows_its_window() {
    follows_its_window(in_a_machine().await, "/dev/pts/0").await;
}

async fn follows_its_window(node: Node, name: &str) {
    let stty = ["/busybox", "stty", "size"];
    for (pty, size) in [
        (json!(true), "24 80\r\n"),
        (json!({"cols": 100, "rows": 40}), "40 100\r\n"),
        (json!({"cols": 100}), "24 100\r\n"),
    ] {
        assert_eq!(run(&node, &stty, json!({"pty": pty})).await.0, size);
    }
    let (out, _, code) = sh(
        &node,
        "/busybox tty; echo out; echo err >&2; exit 5",
        json!({"pty": true}),
    )
    .await;
    let wanted = format!("{name}\r\nout\r\nerr\r\n");
    assert_eq!((out, code), (wanted, 5));

    let open = json!({"name": "p", "cmd": ["/busybox", "sh"], "options": {"pty": true, "env": {"PS1": "> "}}});
    node.call("/open", open).await;
    let says = async |text: &str| node.call("/says", json!({"name": "p", "text": text})).await;
    says("> ").await;
    node.call("/resize", json!({"name": "p", "cols": 132, "rows": 50}))
        .await;
    // A resize is sent off without waiting for it.
    let script = "until [ \"$(/busybox stty size)\" = '50 132' ]; do /busybox sleep 0.01; done; echo res''ized\n";
    node.call("/write", json!({"name": "p", "text": script}))
        .await;
    says("resized").await;
    // ^C interrupts what runs, not the shell.
    node.call(
        "/write",
        json!({"name": "p", "text": "/busybox sh -c \"echo st''arted; exec /busybox sleep 1000\"\n"}),
    )
    .await;
    says("started").await;
    node.call("/write", json!({"name": "p", "text": "\u{3}"}))
        .await;
    node.call(
        "/write",
        json!({"name": "p", "text": "echo int''errupted $?\n"}),
    )
    .await;
    // The end of input ends it, where it waits for some.
    says("interrupted 130\r\n> ").await;
    node.call("/close", json!({"name": "p"})).await;
    node.call("/read", json!({"name": "p"})).await;
    assert_eq!(node.call("/exit", json!({"name": "p"})).await, 0);
    node.end().await;
}

#[tokio::test]
async fn a_hundred_of_one_worker_at_once() {
    let node = Node::new().await;
    let many = node.call("/many", json!({"count": 100})).await;
    for (n, ran) in many.as_array().unwrap().iter().enumerate() {
        assert_eq!(*ran, json!([format!("out {n}\n"), format!("err {n}\n"), n]));
    }
    node.end().await;
}

#[tokio::test]
async fn a_worker_that_reads_slowly_slows_the_process() {
    const BLOCKS: u64 = 16 << 10;
    const ALL: u64 = BLOCKS << 16;
    let node = Node::new().await;
    let before = reset_peak();
    let count = format!("count={BLOCKS}");
    let cmd = [
        "/busybox",
        "dd",
        "if=/dev/zero",
        "bs=64k",
        "status=none",
        &count,
    ];
    let open = json!({"name": "p", "cmd": cmd});
    node.call("/open", open).await;
    let pid = host_pid(&node, &BLOCKS.to_string()).await;
    let mut read = 0;
    for _ in 0..3 {
        let ahead = stalled(pid).await.saturating_sub(read);
        assert!(ahead < 2 << 20, "{ahead} bytes ahead of the reader");
        let some = json!({"name": "p", "bytes": 3 << 20});
        read += node.call("/read", some).await.as_u64().unwrap();
    }
    read += node
        .call("/read", json!({"name": "p"}))
        .await
        .as_u64()
        .unwrap();
    assert_eq!(read, ALL);
    assert_eq!(node.call("/exit", json!({"name": "p"})).await, 0);
    let grown = memory(std::process::id(), "VmHWM").saturating_sub(before);
    assert!(grown < 32 << 20, "the daemon grew by {grown} bytes");
    let spawner = memory(node.daemon.spawner.pid(), "RssAnon");
    assert!(spawner < 2 << 20, "{spawner}");
    eprintln!(
        "daemon +{grown}, spawner {spawner}, workerd {} bytes",
        memory(node.workerd_pid(), "VmHWM")
    );
    node.end().await;
}

/// The spawner's child with this word in its command, which may be seen only a moment after execve(2).
async fn host_pid(node: &Node, word: &str) -> i64 {
    let spawner = node.daemon.spawner.pid();
    let has_word = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|cmdline| cmdline.contains(word))
    };
    wharf_testkit::eventually(word, async || {
        let children = format!("/proc/{spawner}/task/{spawner}/children");
        let children = std::fs::read_to_string(children).unwrap();
        let found = children.split_whitespace().find(has_word);
        found.map(|pid| pid.parse().unwrap())
    })
    .await
}
