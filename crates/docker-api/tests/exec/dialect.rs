//! Docker's words: creation, start, inspection, resize, streams, errors.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wharf_build::Builder;
use wharf_docker_api::operator::{self, Operator};
use wharf_docker_api::script::router;
use wharf_engine::Owner;
use wharf_node::{ApplicationInfo, Applications};
use wharf_testkit::engine::{Daemon, World, script_owner};

use crate::SPAWNER;
use crate::client::{Socket, frame, frames, says};

/// Nobody starts containers through these sockets.
struct NoApplication;

impl Applications for NoApplication {
    fn find<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        Box::pin(async { Err("there is none".to_owned()) })
    }
}

/// A socket of the script that the owner is.
pub(crate) fn script(world: &World, daemon: &Daemon, name: &str) -> Socket {
    let router = router(
        name.into(),
        daemon.engine.clone(),
        daemon.networks.clone(),
        world.snapshots(),
        Arc::new(NoApplication),
    );
    Socket::serve(world, &format!("{name}.sock"), router)
}

fn operator(world: &World, daemon: &Daemon) -> Socket {
    let builder = Builder::new(
        world.images.clone(),
        daemon.spawner.clone(),
        daemon.networks.clone(),
        world.place.path("build"),
    );
    let operator = Operator {
        engine: daemon.engine.clone(),
        networks: daemon.networks.clone(),
        snapshots: world.snapshots(),
        images: world.images.clone(),
        builder,
        check_password: Arc::new(|_| false),
        registry_host: String::new(),
    };
    Socket::serve(world, "operator.sock", operator::router(operator))
}

/// A world with an idle container `c` of the script `hello`.
pub(crate) async fn idle() -> (World, Daemon, Socket) {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    daemon.run(&script_owner(), "c", "sleep 1000").await;
    let socket = script(&world, &daemon, "hello");
    (world, daemon, socket)
}

#[tokio::test]
async fn streams_and_exit_codes() {
    let (world, daemon, socket) = idle().await;
    let id = socket
        .create(
            json!({"Cmd": ["sh", "-c", "cat; echo err >&2; pwd; echo $A $(id -u); exit 42"],
            "WorkingDir": "/tmp", "User": "app", "Env": ["A=1"]}),
        )
        .await;
    let before = socket.inspect(&id).await;
    assert_eq!(
        [&before["Running"], &before["ExitCode"], &before["Pid"]],
        [&json!(false), &Value::Null, &json!(0)]
    );
    let mut stream = socket
        .start(&id, json!({"Detach": false, "Tty": false}))
        .await;
    let during = socket.inspect(&id).await;
    assert_eq!(
        [&during["Running"], &during["ExitCode"]],
        [&json!(true), &Value::Null]
    );
    assert!(during["Pid"].as_i64().unwrap() > 0);
    stream.write_all(b"one ").await.unwrap();
    assert_eq!(frame(&mut stream).await.unwrap(), (1, b"one ".to_vec()));
    stream.write_all(b"two\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(
        frames(&mut stream).await,
        ["two\n/tmp\n1 1000\n".to_owned(), "err\n".to_owned()]
    );
    assert_eq!(socket.code(&id).await, 42);
    assert_eq!(socket.run("kill -USR1 $$").await.2, 138);
    assert_eq!(socket.run("exit 255").await.2, 255);

    // Only what is attached.
    let cmd = ["sh", "-c", "cat; echo out; echo err >&2"];
    let some = json!({"Cmd": cmd, "AttachStdin": false, "AttachStdout": false});
    let id = socket.create(some).await;
    let mut stream = socket.start(&id, json!({})).await;
    assert_eq!(frames(&mut stream).await, ["", "err\n"]);
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn input_that_nobody_reads_spoils_nothing() {
    let (world, daemon, socket) = idle().await;
    for script in ["echo out", "exec <&-; echo out; sleep 0.1"] {
        let id = socket.sh(script).await;
        let stream = socket.start(&id, json!({})).await;
        let (mut read, mut write) = stream.into_split();
        let writing = tokio::spawn(async move {
            let written = write.write_all(&vec![0; 8 << 20]).await;
            (written, write)
        });
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.unwrap();
        assert_eq!(&all[8..], b"out\n");
        let (written, write) = writing.await.unwrap();
        written.unwrap();
        drop(write);
        assert_eq!(socket.code(&id).await, 0);
    }
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn a_terminal_is_raw_and_can_be_resized() {
    let (world, daemon, socket) = idle().await;
    let script = "stty size; echo $TERM; while read line; do stty size; done; echo end >&2; exit 4";
    let body = json!({"Cmd": ["sh", "-c", script], "Tty": true});
    let id = socket.create(body.clone()).await;
    let mut stream = socket
        .start(&id, json!({"Tty": true, "ConsoleSize": [40, 100]}))
        .await;
    assert_eq!(says(&mut stream, "xterm\r\n").await, "40 100\r\nxterm\r\n");
    let resize = format!("/exec/{id}/resize?h=50&w=120");
    assert_eq!(socket.call("POST", &resize, Value::Null).await.0, 200);
    stream.write_all(b"x\n").await.unwrap();
    says(&mut stream, "50 120\r\n").await;
    // The end of input is what a keyboard says.
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("end\r\n"), "{rest:?}");
    assert_eq!(socket.code(&id).await, 4);
    // A resize that comes too late is no error, one that makes no sense is.
    assert_eq!(socket.call("POST", &resize, Value::Null).await.0, 200);
    for size in [json!(null), json!([0, 0])] {
        let id = socket.create(body.clone()).await;
        let mut stream = socket.start(&id, json!({"ConsoleSize": size})).await;
        says(&mut stream, "24 80\r\n").await;
    }
    let early = socket.create(body).await;
    let path = format!("/exec/{early}/resize?h=1&w=1");
    assert_eq!(socket.call("POST", &path, Value::Null).await.0, 409);
    let none = socket.sh("true").await;
    let path = format!("/exec/{none}/resize?h=1&w=1");
    assert_eq!(socket.call("POST", &path, Value::Null).await.0, 400);
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn what_cannot_be_says_why() {
    let (world, daemon, socket) = idle().await;
    let message = |(status, body): (u16, Value)| {
        let text = body["message"].as_str().unwrap_or_default().to_owned();
        (status, text)
    };
    // Docker's answer to a program that is not there comes in the stream.
    for (program, code) in [("nope", 127), ("/etc/passwd", 126)] {
        let id = socket.create(json!({"Cmd": [program]})).await;
        let mut stream = socket.start(&id, json!({})).await;
        let [out, err] = frames(&mut stream).await;
        assert!(out.contains(program) && out.ends_with("\r\n"), "{out:?}");
        assert_eq!((err.as_str(), socket.code(&id).await), ("", code));
    }
    let id = socket.create(json!({"Cmd": ["nope"], "Tty": true})).await;
    let mut stream = socket.start(&id, json!({})).await;
    says(&mut stream, "not found in $PATH\r\n").await;
    let id = socket.create(json!({"Cmd": ["nope"]})).await;
    let start = format!("/exec/{id}/start");
    let detached = socket.call("POST", &start, json!({"Detach": true}));
    let (status, text) = message(detached.await);
    assert!(status == 400 && text.contains("nope"), "{status} {text}");
    assert_eq!(socket.code(&id).await, 127);

    let again = message(socket.call("POST", &start, json!({})).await);
    assert!(again.0 == 409 && again.1.contains("already"), "{again:?}");
    for (method, path) in [
        ("POST", "/exec/none/start"),
        ("GET", "/exec/none/json"),
        ("POST", "/exec/none/resize?h=1&w=1"),
    ] {
        let (status, text) = message(socket.call(method, path, json!({})).await);
        assert_eq!(
            (status, text.as_str()),
            (404, "No such exec instance: none")
        );
    }
    let body = json!({"Cmd": ["true"]});
    for (path, body, status) in [
        ("/containers/other/exec", body.clone(), 404),
        ("/containers/c/exec", json!({"Cmd": []}), 400),
        ("/containers/c/exec", json!({"Cmd": null}), 400),
        ("/containers/c/exec", json!([]), 400),
        (
            "/containers/c/exec",
            json!({"Cmd": ["true"], "Privileged": true}),
            501,
        ),
        (
            "/containers/c/exec",
            json!({"Cmd": ["x".repeat(5 << 20)]}),
            413,
        ),
    ] {
        let (got, text) = message(socket.call("POST", path, body).await);
        assert!(got == status && !text.is_empty(), "{path} {got} {text}");
    }
    // Created in one start of the container, it does not start in the next.
    let id = socket.sh("true").await;
    let owner = script_owner();
    daemon.engine.stop(&owner, "c", Some(0)).await.unwrap();
    let start = format!("/exec/{id}/start");
    let (status, text) = message(socket.call("POST", "/containers/c/exec", body).await);
    assert!(
        status == 409 && text.contains("not running"),
        "{status} {text}"
    );
    daemon.engine.start_instance(&owner, "c").await.unwrap();
    let (status, text) = message(socket.call("POST", &start, json!({})).await);
    assert!(status == 409 && text.contains("anew"), "{status} {text}");
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn workerds_wrapper_needs_no_shell() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = script_owner();
    // Nothing in the image is called sh, and there is no /tmp.
    let script = "rm -r /tmp /usr/bin/sh /usr/bin/ash; echo ready; exec sleep 1000";
    daemon.run(&owner, "c", script).await;
    daemon.says(&owner, "c", "ready").await;
    let socket = self::script(&world, &daemon, "hello");
    let file = |token: &str| format!("/tmp/.workerd-exec-{token}.pid");
    let wrapped = |token: &str, argv: &[&str]| {
        let script = format!("echo $$ > {}; exec \"$@\"", file(token));
        let mut cmd = vec!["/bin/sh".to_owned(), "-c".into(), script, "sh".into()];
        cmd.extend(argv.iter().map(|a| (*a).to_owned()));
        json!({ "Cmd": cmd })
    };
    let kill = async |token: &str, signal: i32| {
        let file = file(token);
        let script = format!("[ -s {file} ] || exit 3; kill -{signal} \"$(cat {file})\"");
        let body = json!({"Cmd": ["/bin/sh", "-c", script], "AttachStdin": false, "AttachStdout": false, "AttachStderr": false});
        let id = socket.create(body).await;
        let start = format!("/exec/{id}/start");
        let answer = socket.text("POST", &start, json!({"Detach": true, "Tty": false}));
        assert_eq!(answer.await, (200, String::new()));
        socket.code(&id).await
    };
    let id = socket.create(wrapped("a", &["echo", "a b", "c"])).await;
    let mut stream = socket.start(&id, json!({})).await;
    assert_eq!(frames(&mut stream).await, ["a b c\n", ""]);
    assert_eq!(socket.code(&id).await, 0);
    assert_eq!(kill("a", 15).await, 0, "it has ended: nothing to do");

    let id = socket.create(wrapped("b", &["sleep", "1000"])).await;
    assert_eq!(kill("b", 15).await, 3, "not yet started");
    let mut stream = socket.start(&id, json!({})).await;
    // The number that it has inside.
    let pid = socket.inspect(&id).await["Pid"].as_i64().unwrap();
    let look = socket
        .create(wrapped("c", &["cat", &format!("/proc/{pid}/comm")]))
        .await;
    let mut looking = socket.start(&look, json!({})).await;
    assert_eq!(frames(&mut looking).await, ["sleep\n", ""]);
    assert_eq!(kill("b", 12).await, 0);
    assert_eq!(frames(&mut stream).await, ["", ""]);
    assert_eq!(socket.code(&id).await, 140);
    assert_eq!(kill("unknown", 9).await, 3);

    // As a shell says it.
    let id = socket.create(wrapped("d", &["nope"])).await;
    let mut stream = socket.start(&id, json!({})).await;
    let [out, err] = frames(&mut stream).await;
    assert!(out.is_empty() && err.contains("\"nope\""), "{out} {err}");
    assert_eq!(socket.code(&id).await, 127);
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn one_that_nobody_listens_to_runs_to_its_end() {
    let (world, daemon, socket) = idle().await;
    // The client goes in the middle of the output; in a terminal and without.
    for tty in [false, true] {
        let name = format!("/gone-{tty}");
        let script = format!(
            "echo ready; while ! [ -e {name} ]; do sleep 0.01; done; head -c 1m /dev/zero; echo > {name}-end"
        );
        let id = socket
            .create(json!({"Cmd": ["sh", "-c", script], "Tty": tty}))
            .await;
        let mut stream = socket.start(&id, json!({})).await;
        says(&mut stream, "ready").await;
        drop(stream);
        assert_eq!(socket.run(&format!("echo > {name}")).await.2, 0);
        wharf_testkit::eventually("it has ended", async || {
            let exec = socket.inspect(&id).await;
            (exec["ExitCode"] == 0).then_some(())
        })
        .await;
        assert_eq!(socket.run(&format!("ls {name}-end")).await.2, 0);
    }
    // A shell in a terminal does not wait for ever.
    let id = socket.create(json!({"Cmd": ["sh"], "Tty": true})).await;
    let mut stream = socket.start(&id, json!({})).await;
    says(&mut stream, "# ").await;
    drop(stream);
    wharf_testkit::eventually("the shell has ended", async || {
        (socket.inspect(&id).await["Running"] == false).then_some(())
    })
    .await;
    // Nor does a client for what a process leaves behind.
    let id = socket.sh("sleep 1000 & echo out; exit 6").await;
    let mut stream = socket.start(&id, json!({})).await;
    assert_eq!(frames(&mut stream).await, ["out\n", ""]);
    assert_eq!(socket.code(&id).await, 6);
    // Detached from the start.
    let id = socket.sh("echo out; sleep 0.01; exit 7").await;
    let start = format!("/exec/{id}/start");
    let answer = socket.text("POST", &start, json!({"Detach": true}));
    assert_eq!(answer.await, (200, String::new()));
    wharf_testkit::eventually("it has ended", async || {
        (socket.inspect(&id).await["ExitCode"] == 7).then_some(())
    })
    .await;
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn ids_are_known_on_their_own_socket_only() {
    let (world, daemon, socket) = idle().await;
    let other = Owner::Script("other".into());
    daemon.run(&other, "c", "sleep 1000").await;
    let stranger = script(&world, &daemon, "other");
    let waits = socket.sh("true").await;
    let runs = socket.sh("sleep 1000").await;
    let _stream = socket.start(&runs, json!({})).await;
    for id in [waits, runs] {
        for (method, path) in [
            ("POST", format!("/exec/{id}/start")),
            ("GET", format!("/exec/{id}/json")),
            ("POST", format!("/exec/{id}/resize?h=1&w=1")),
        ] {
            let (status, _) = stranger.call(method, &path, json!({})).await;
            assert_eq!(status, 404, "{method} {path}");
        }
    }
    let id = daemon
        .engine
        .inspect(&script_owner(), "c")
        .await
        .unwrap()
        .id;
    let path = format!("/containers/{id}/exec");
    let (status, _) = stranger.call("POST", &path, json!({"Cmd": ["true"]})).await;
    assert_eq!(status, 404);
    stranger.close().await;
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn the_operator_looks_into_any_container() {
    let (world, daemon, socket) = idle().await;
    let operator = operator(&world, &daemon);
    let id = operator.sh("echo here; exit 9").await;
    let mut stream = operator.start(&id, json!({})).await;
    assert_eq!(frames(&mut stream).await, ["here\n", ""]);
    assert_eq!(operator.code(&id).await, 9);
    let (status, exec) = operator
        .call("GET", &format!("/v1.43/exec/{id}/json"), Value::Null)
        .await;
    assert_eq!((status, &exec["ID"]), (200, &json!(id)));
    // A client that cannot take the connection over still gets the output.
    let id = operator.sh("cat; echo body").await;
    let (status, text) = operator
        .text("POST", &format!("/v1.43/exec/{id}/start"), json!({}))
        .await;
    assert_eq!(
        (status, text.as_str()),
        (200, "\u{1}\0\0\0\0\0\0\u{5}body\n")
    );
    operator.close().await;
    socket.close().await;
    world.end(daemon).await;
}
