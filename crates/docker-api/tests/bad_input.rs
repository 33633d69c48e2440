//! What is malformed, unknown, too large, slow or cut off on both sockets: refused in Docker's own shape or closed, in bounded time, and the
//! daemon serves on.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use wharf_docker_api::operator::Operator;
use wharf_docker_api::{Bounds, serve_unix_within};
use wharf_node::{ApplicationInfo, Applications};
use wharf_testkit::engine::{Daemon, World};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");
/// Short, so that the slow are met soon.
const BOUNDS: Bounds = Bounds {
    head: Duration::from_millis(400),
    body: Duration::from_millis(400),
    connections: 64,
};
/// No answer takes longer than the bounds and the work of a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct NoApplications;

impl Applications for NoApplications {
    fn find<'a>(
        &'a self,
        _script: &'a str,
        unique_key: &'a str,
        _object_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        Box::pin(async move { Err(format!("no application for {unique_key}")) })
    }
}

/// Both sockets of a node.
struct Sockets {
    script: PathBuf,
    operator: PathBuf,
    stops: Vec<oneshot::Sender<()>>,
    served: Vec<tokio::task::JoinHandle<()>>,
}

impl Sockets {
    fn open(world: &World, daemon: &Daemon) -> Sockets {
        let dir = world.place.dir.path();
        let snapshots = world.snapshots();
        let script = wharf_docker_api::script::router(
            "hello".into(),
            daemon.engine.clone(),
            daemon.networks.clone(),
            snapshots.clone(),
            Arc::new(NoApplications),
        );
        let operator = wharf_docker_api::operator::router(Operator {
            engine: daemon.engine.clone(),
            networks: daemon.networks.clone(),
            images: world.images(),
            snapshots,
            builder: wharf_build::Builder::new(
                world.images(),
                daemon.spawner.clone(),
                daemon.networks.clone(),
                dir.join("build"),
            ),
            check_password: Arc::new(|_| false),
            registry_host: "127.0.0.1:1".into(),
        });
        let mut sockets = Sockets {
            script: dir.join("script.sock"),
            operator: dir.join("operator.sock"),
            stops: Vec::new(),
            served: Vec::new(),
        };
        for (path, router) in [(&sockets.script, script), (&sockets.operator, operator)] {
            let listener = UnixListener::bind(path).unwrap();
            let (stop, stopped) = oneshot::channel::<()>();
            sockets.stops.push(stop);
            let serving = serve_unix_within(BOUNDS, listener, router, async {
                let _ = stopped.await;
            });
            sockets.served.push(tokio::spawn(serving));
        }
        sockets
    }

    fn both(&self) -> [PathBuf; 2] {
        [self.script.clone(), self.operator.clone()]
    }

    async fn close(self) {
        drop(self.stops);
        for served in self.served {
            served.await.unwrap();
        }
    }
}

/// Sends bytes in pieces, ends its side or not, and reads to the end.
async fn talk(path: &PathBuf, pieces: &[Vec<u8>], half_close: bool) -> Vec<u8> {
    let started = Instant::now();
    let mut stream = UnixStream::connect(path).await.unwrap();
    for piece in pieces {
        // The other side may have had enough.
        if stream.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    if half_close {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(
        read.is_ok(),
        "neither answered nor closed within {:?}: {:?}",
        started.elapsed(),
        pieces
            .iter()
            .map(|p| String::from_utf8_lossy(p).into_owned())
            .collect::<Vec<_>>()
    );
    answer
}

/// Status and body of the first answer; the client asks for the connection's end with its last request.
async fn ask(path: &PathBuf, request: &str) -> (u16, Value) {
    let (head, body) = request.split_once("\r\n\r\n").unwrap_or((request, ""));
    let request = format!(
        "{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = talk(path, &[request.into_bytes()], false).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

async fn still_serves(sockets: &Sockets) {
    let (status, volumes) = ask(&sockets.script, "GET /volumes HTTP/1.1").await;
    assert_eq!(status, 200);
    assert!(volumes["Volumes"].is_array());
    let (status, list) = ask(
        &sockets.operator,
        "GET /v1.43/containers/json?all=1 HTTP/1.1",
    )
    .await;
    assert_eq!((status, list.is_array()), (200, true));
}

#[tokio::test]
async fn mistakes_are_answered_in_dockers_shape() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let sockets = Sockets::open(&world, &daemon);
    let id = "0".repeat(64);
    let both = [
        (404, "GET /nope HTTP/1.1".to_owned(), "page not found"),
        (404, "GET /v1.43/nope HTTP/1.1".into(), "page not found"),
        (
            404,
            "PATCH /containers/x/start HTTP/1.1".into(),
            "page not found",
        ),
        (404, "BREW /pot HTTP/1.1".into(), "page not found"),
        (
            400,
            "GET /v1.99/volumes HTTP/1.1".into(),
            "client version 1.99 is too new. Maximum supported API version is 1.43",
        ),
        (
            400,
            "GET /v1.12/volumes HTTP/1.1".into(),
            "client version 1.12 is too old. Minimum supported API version is 1.24",
        ),
        (
            404,
            "GET /containers/none/json HTTP/1.1".into(),
            "No such container: none",
        ),
        (
            404,
            "POST /containers/none/start HTTP/1.1".into(),
            "No such container: none",
        ),
        (
            404,
            "POST /containers/none/wait HTTP/1.1".into(),
            "No such container: none",
        ),
        (
            404,
            "DELETE /containers/none?force=1 HTTP/1.1".into(),
            "No such container: none",
        ),
        (
            404,
            format!("GET /exec/{id}/json HTTP/1.1"),
            "No such exec instance",
        ),
        (400, "POST /containers/x/stop?t=soon HTTP/1.1".into(), "t"),
        (
            400,
            "POST /containers/x/kill?signal=NOPE HTTP/1.1".into(),
            "invalid signal: NOPE",
        ),
        (
            400,
            "POST /containers/x/wait?condition=never HTTP/1.1".into(),
            "invalid condition",
        ),
        (400, "GET /containers/%ff/json HTTP/1.1".into(), "UTF-8"),
        (
            400,
            format!("POST /containers/create?name=workerd-k-{id} HTTP/1.1\r\n\r\n{{\"Image\":7}}"),
            "the request body is not valid",
        ),
        (
            400,
            format!("POST /containers/create?name=workerd-k-{id} HTTP/1.1\r\n\r\n{{"),
            "the request body is not valid",
        ),
    ];
    for path in sockets.both() {
        for (status, request, message) in &both {
            let (got, body) = ask(&path, request).await;
            let text = body["message"].as_str().unwrap_or_default();
            assert_eq!(
                (got, text.contains(message)),
                (*status, true),
                "{request}: {body}"
            );
        }
    }
    let create = |body: &str| format!("POST /containers/create?name=c HTTP/1.1\r\n\r\n{body}");
    for (status, request, message) in [
        (
            400,
            "GET /containers/json?filters=x HTTP/1.1".to_owned(),
            "invalid filters",
        ),
        (
            400,
            "GET /containers/json?filters=%7B%22lable%22:%5B%5D%7D HTTP/1.1".into(),
            "invalid filter 'lable'",
        ),
        (404, create(r#"{"Image":"none"}"#), "none"),
        (
            400,
            create(r#"{"Image":"busybox","HostConfig":{"PortBindings":{"80/udp":null}}}"#),
            "only TCP",
        ),
        (
            400,
            create(r#"{"Image":"busybox","HostConfig":{"NetworkMode":"host"}}"#),
            "network mode \"host\"",
        ),
        (
            501,
            create(r#"{"Image":"busybox","HostConfig":{"Privileged":true}}"#),
            "privileged",
        ),
        (501, create(r#"{"Image":"busybox","Tty":true}"#), "terminal"),
        (
            400,
            "GET /containers/x/logs HTTP/1.1".into(),
            "at least one stream",
        ),
    ] {
        let (got, body) = ask(&sockets.operator, &request).await;
        let text = body["message"].as_str().unwrap_or_default();
        assert_eq!(
            (got, text.contains(message)),
            (status, true),
            "{request}: {body}"
        );
    }
    sockets.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn the_slow_the_large_and_the_cut_off_are_ended() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let sockets = Sockets::open(&world, &daemon);
    let create = "POST /containers/create?name=x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n";
    for path in sockets.both() {
        // Silent; slow in its head; slow in its body: the first two are closed, the last is told.
        assert_eq!(talk(&path, &[], false).await, b"");
        talk(&path, &[b"GET /volumes HT".to_vec()], false).await;
        let slow = format!("{create}\r\n{{\"Image\":");
        let answer = talk(&path, &[slow.clone().into_bytes()], false).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("\"message\""),
            "{answer}"
        );
        // Cut off in each of them.
        for cut in ["", "GET", "GET /volumes HTTP/1.1\r\nHost: x\r\n", &slow] {
            talk(&path, &[cut.as_bytes().to_vec()], true).await;
        }
        // A head without end, a body that says it is too long, and one that is.
        let head = format!("GET /volumes HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
        let answer = talk(&path, &[head.into_bytes()], false).await;
        assert!(answer.starts_with(b"HTTP/1.1 431") || answer.is_empty());
        // The bound is on bytes: a thousand small fields pass, thirty thousand do not.
        for (fields, status) in [(1000, "HTTP/1.1 200"), (30_000, "HTTP/1.1 431")] {
            let many: String = (0..fields).map(|n| format!("X-{n}: x\r\n")).collect();
            let head = format!("GET /volumes HTTP/1.1\r\n{many}\r\n");
            let answer = talk(&path, &[head.into_bytes()], false).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with(status), "{fields}: {answer}");
        }
        let long = create.replace("100", "99999999999") + "\r\n";
        let answer = talk(&path, &[long.into_bytes()], false).await;
        assert!(
            answer.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
        let mut chunks = vec![
            create
                .replace("Content-Length: 100", "Transfer-Encoding: chunked")
                .into_bytes(),
        ];
        chunks.push(b"\r\n".to_vec());
        chunks.extend(std::iter::repeat_n(chunk.into_bytes(), 16));
        let answer = talk(&path, &chunks, false).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
        // What is no HTTP at all.
        for bytes in [
            &b"\x16\x03\x01\x02\0\x01\0"[..],
            &[0; 4096],
            b"\r\n\r\n\r\n",
            b"GET\r\n\r\n",
        ] {
            talk(&path, &[bytes.to_vec()], false).await;
        }
    }
    still_serves(&sockets).await;
    sockets.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn those_beyond_the_bound_wait_and_are_served() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let sockets = Sockets::open(&world, &daemon);
    // All places are taken by the silent, until their time is over.
    let mut silent = Vec::new();
    for _ in 0..BOUNDS.connections * 2 {
        silent.push(UnixStream::connect(&sockets.operator).await.unwrap());
    }
    still_serves(&sockets).await;
    drop(silent);
    sockets.close().await;
    world.end(daemon).await;
}

/// Requests as they are, and nearly: parts that make sense, in any order, some of them damaged.
fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let line = (
        prop::sample::select(vec!["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "X"]),
        prop::sample::select(vec![
            "/_ping",
            "/v1.43/info",
            "/v9.9/info",
            "/volumes?filters=%7B%22name%22:%5B%22a%22%5D%7D",
            "/volumes/create",
            "/networks/bridge",
            "/containers/create?name=workerd-k-0000000000000000000000000000000000000000000000000000000000000000-proxy",
            "/containers/create?name=c",
            "/containers/json?all=1&filters={}",
            "/containers/c/json",
            "/containers/c/start",
            "/containers/c/stop?t=0",
            "/containers/c/kill?signal=9",
            "/containers/c?force=1",
            "/containers/c/logs?stdout=1&tail=x",
            "/containers/c/attach?stream=1&stdout=1",
            "/containers/c/archive?path=/x/.",
            "/containers/c/exec",
            "/exec/x/start",
            "/exec/x/resize?h=-1&w=x",
            "/commit?container=c",
            "/images/json",
            "/images/x%2fy/json",
            "/images/create?fromSrc=-&repo=x",
            "/build?t=%00",
            "/auth",
            "/%",
            "//",
            "*",
        ]),
        prop::sample::select(vec!["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", ""]),
    )
        .prop_map(|(method, path, version)| format!("{method} {path} {version}\r\n"));
    let header = prop::sample::select(vec![
        "Host: x\r\n",
        "Content-Length: 2\r\n",
        "Content-Length: 70\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: Upgrade\r\nUpgrade: tcp\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "Content-Type: application/x-tar\r\n",
        "\r\n",
        "\r\n\r\n",
    ])
    .prop_map(str::to_owned);
    let body = prop::sample::select(vec![
        "{}",
        "null",
        "[]",
        "{\"Image\":\"busybox\"}",
        "{\"Image\":\"busybox\",\"Cmd\":[\"true\"],\"Labels\":null}",
        "{\"Cmd\":[\"--http-egress-port\",\"1\"],\"ExposedPorts\":{\"39001/tcp\":{}}}",
        "{\"Detach\":false,\"Tty\":true,\"ConsoleSize\":[99999,1]}",
        "{\"Image\":\"busybox\",\"HostConfig\":{\"Memory\":-1,\"PortBindings\":{\"x\":[]}}}",
        "5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ])
    .prop_map(str::to_owned);
    let text = prop_oneof![3 => line, 5 => header, 2 => body].prop_map(String::into_bytes);
    let noise = prop::collection::vec(any::<u8>(), 0..64);
    let damaged = (text.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut bytes, at, byte)| {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    );
    prop::collection::vec(prop_oneof![12 => text, 2 => damaged, 1 => noise], 1..12)
}

#[test]
fn whatever_comes_the_sockets_answer_or_close_and_serve_on() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new(SPAWNER);
    let daemon = runtime.block_on(world.daemon(60_000));
    let sockets = runtime.block_on(async { Sockets::open(&world, &daemon) });
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let found = TestRunner::new(config).run(&(pieces(), any::<bool>()), |(pieces, half_close)| {
        for path in sockets.both() {
            let answer = runtime.block_on(talk(&path, &pieces, half_close));
            // A mistake is the client's: none of them may be this side's.
            let answer = String::from_utf8_lossy(&answer).into_owned();
            prop_assert!(!answer.contains("HTTP/1.1 500"), "{answer}");
        }
        Ok(())
    });
    runtime.block_on(async {
        still_serves(&sockets).await;
        sockets.close().await;
        world.end(daemon).await;
    });
    found.unwrap();
}
