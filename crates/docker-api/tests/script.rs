//! The conversation of workerd with its Docker socket (contract: workerd, 1.3), word for word, against real containers.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use wharf_docker_api::script::router;
use wharf_engine::{Limits, Owner};
use wharf_node::{ApplicationInfo, Applications};
use wharf_testkit::engine::{Daemon, World};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");
const HELLO: &str = "while :; do printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\nConnection: close\\r\\n\\r\\nhi\\n' | nc -l -p 8080; done";

struct OneApplication;

impl Applications for OneApplication {
    fn find<'a>(
        &'a self,
        script: &'a str,
        unique_key: &'a str,
        _object_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        Box::pin(async move {
            if unique_key != "app-Box" {
                return Err(format!(
                    "no container application is deployed for {unique_key}"
                ));
            }
            Ok(ApplicationInfo {
                id: "app".into(),
                name: script.into(),
                image: Some("busybox:latest".into()),
                named_images: Vec::new(),
                limits: Limits::default(),
                largest: Limits::default(),
                max_instances: 2,
                min_instances: 0,
                isolation: None,
                no_new_privileges: false,
                variables: vec![("CLOUDFLARE_REGION".into(), "EEUR".into())],
            })
        })
    }
}

/// One workerd process's socket.
struct Socket {
    path: PathBuf,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Socket {
    fn open(world: &World, daemon: &Daemon, name: &str) -> Socket {
        let path = world.place.dir.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let router = router(
            "hello".into(),
            daemon.engine.clone(),
            daemon.networks.clone(),
            world.snapshots(),
            Arc::new(OneApplication),
        );
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(wharf_docker_api::serve_unix(listener, router, async {
            let _ = stopped.await;
        }));
        Socket { path, stop, served }
    }

    async fn close(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
    }

    /// A request as workerd makes it: a connection of its own, no version in the path.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let stream = UnixStream::connect(&self.path).await.unwrap();
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost");
        if !body.is_empty() {
            request = request.header("Content-Type", "application/json");
        }
        let request = request.body(body).unwrap();
        let answer = wharf_testkit::ask(stream, request).await.unwrap();
        let body = serde_json::from_str(answer.body()).unwrap_or(Value::Null);
        (answer.status().as_u16(), body)
    }

    /// Steps 1 to 6 of `start()`; returns the ingress port.
    async fn sidecar(&self, c: &str) -> u16 {
        assert_eq!(self.call("GET", "/networks/bridge", None).await.0, 200);
        let (status, _) = self
            .call("DELETE", &format!("/containers/{c}-proxy?force=true"), None)
            .await;
        if status == 204 {
            let (status, _) = self
                .call(
                    "POST",
                    &format!("/containers/{c}-proxy/wait?condition=removed"),
                    None,
                )
                .await;
            assert!(matches!(status, 200 | 404), "{status}");
        }
        let body = json!({"Image": "wharf:sidecar", "ExposedPorts": {"39001/tcp": {}}, "Cmd": ["--http-egress-port", "1"],
            "HostConfig": {"PublishAllPorts": true, "CapAdd": ["NET_ADMIN"], "NetworkMode": "bridge", "Memory": 0}});
        let (status, made) = self
            .call(
                "POST",
                &format!("/containers/create?name={c}-proxy"),
                Some(body),
            )
            .await;
        assert_eq!(status, 201, "{made}");
        assert!(made["Id"].is_string());
        assert_eq!(
            self.call("POST", &format!("/containers/{c}-proxy/start"), None)
                .await
                .0,
            204
        );
        self.ingress(c).await
    }

    async fn ingress(&self, c: &str) -> u16 {
        let (status, sidecar) = self
            .call("GET", &format!("/containers/{c}-proxy/json"), None)
            .await;
        assert_eq!(
            (status, &sidecar["State"]["Status"]),
            (200, &json!("running"))
        );
        let port = sidecar["NetworkSettings"]["Ports"]["39001/tcp"][0]["HostPort"]
            .as_str()
            .unwrap()
            .to_owned();
        port.parse().unwrap()
    }

    async fn create(&self, c: &str, script: &str) -> (u16, Value) {
        let env = [
            "FOO=bar",
            "CLOUDFLARE_COUNTRY_A2=XX",
            "CLOUDFLARE_REGION=REGN",
            "CLOUDFLARE_DURABLE_OBJECT_ID=xxxx",
        ];
        let body = json!({"Image": "wharf:application", "Cmd": ["/bin/sh", "-c", script], "Env": env,
            "HostConfig": {"RestartPolicy": {"Name": "on-failure"}, "NetworkMode": format!("container:{c}-proxy"),
                "Memory": 0, "NanoCpus": 0, "PidsLimit": 0, "ShmSize": 0}});
        self.call("POST", &format!("/containers/create?name={c}"), Some(body))
            .await
    }

    async fn start(&self, c: &str, script: &str) {
        let (status, answer) = self.create(c, script).await;
        assert_eq!(status, 201, "{answer}");
        let (status, answer) = self
            .call("POST", &format!("/containers/{c}/start"), None)
            .await;
        assert_eq!(status, 204, "{answer}");
    }
}

/// A request to the app's port 8080 through the ingress, as workerd makes it.
async fn fetch(ingress: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", ingress)).await.unwrap();
    stream
        .write_all(b"CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-Dst-Addr: 127.0.0.1:8080\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    // Byte by byte: nc does not wait for the request before it answers.
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn container(n: usize) -> String {
    format!("workerd-app-Box-{n:064x}")
}

#[tokio::test]
async fn a_durable_object_starts_asks_and_destroys_its_container() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon, "docker.sock");
    let c = &container(1);

    let (status, volumes) = socket
        .call(
            "GET",
            "/volumes?filters=%7B%22name%22%3A%5B%22workerd-snap-%22%5D%7D",
            None,
        )
        .await;
    assert_eq!((status, &volumes["Volumes"]), (200, &json!([])));
    assert_eq!(
        socket
            .call("GET", &format!("/containers/{c}/json"), None)
            .await
            .0,
        404
    );
    let (_, bridge) = socket.call("GET", "/networks/bridge", None).await;
    assert_eq!(
        bridge["IPAM"]["Config"][0],
        json!({"Subnet": "127.0.0.0/8", "Gateway": "127.0.0.1"})
    );

    let ingress = socket.sidecar(c).await;
    socket.start(c, HELLO).await;
    assert_eq!(
        socket
            .call("POST", &format!("/containers/{c}/start"), None)
            .await
            .0,
        304
    );
    assert_eq!(fetch(ingress).await, "hi\n");

    // What the container got: real values, no placeholders.
    let (_, inspect) = socket
        .call("GET", &format!("/containers/{c}/json"), None)
        .await;
    assert_eq!(
        (&inspect["State"]["Status"], &inspect["Config"]["Image"]),
        (&json!("running"), &json!("wharf:application"))
    );
    let env: Vec<_> = inspect["Config"]["Env"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        env.contains(&"FOO=bar") && env.contains(&"CLOUDFLARE_REGION=EEUR"),
        "{env:?}"
    );
    assert!(env.contains(&format!("CLOUDFLARE_DURABLE_OBJECT_ID={:064x}", 1).as_str()));
    assert!(!env.iter().any(|e| e.starts_with("CLOUDFLARE_COUNTRY_A2")));

    // monitor() and destroy().
    let monitor = {
        let path = format!("/containers/{c}/wait");
        let socket = Socket {
            path: socket.path.clone(),
            stop: oneshot::channel().0,
            served: tokio::spawn(async {}),
        };
        tokio::spawn(async move { socket.call("POST", &path, None).await })
    };
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    assert_eq!(
        socket
            .call("DELETE", &format!("/containers/{c}?force=true"), None)
            .await
            .0,
        204
    );
    let (status, _) = socket
        .call(
            "POST",
            &format!("/containers/{c}/wait?condition=removed"),
            None,
        )
        .await;
    assert!(matches!(status, 200 | 404), "{status}");
    assert_eq!(monitor.await.unwrap(), (200, json!({"StatusCode": 137})));

    // The sidecar stays warm and is used again.
    socket.start(c, HELLO).await;
    assert_eq!(socket.ingress(c).await, ingress);
    assert_eq!(fetch(ingress).await, "hi\n");
    for name in [c.clone(), format!("{c}-proxy")] {
        assert_eq!(
            socket
                .call("DELETE", &format!("/containers/{name}?force=true"), None)
                .await
                .0,
            204
        );
        assert_eq!(
            socket
                .call("GET", &format!("/containers/{name}/json"), None)
                .await
                .0,
            404
        );
    }
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn signals_and_exit_codes_reach_the_object() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon, "docker.sock");
    let (c, owner) = (&container(1), Owner::Script("hello".into()));
    socket.sidecar(c).await;
    socket
        .start(
            c,
            "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done",
        )
        .await;
    daemon.says(&owner, c, "ready").await;
    assert_eq!(
        socket
            .call("POST", &format!("/containers/{c}/kill?signal=NOPE"), None)
            .await
            .0,
        400
    );
    assert_eq!(
        socket
            .call(
                "POST",
                &format!("/containers/{c}/kill?signal=SIGTERM"),
                None
            )
            .await
            .0,
        204
    );
    assert_eq!(
        socket
            .call("POST", &format!("/containers/{c}/wait"), None)
            .await,
        (200, json!({"StatusCode": 5}))
    );
    assert_eq!(
        socket
            .call("POST", &format!("/containers/{c}/kill?signal=15"), None)
            .await
            .0,
        409
    );
    // It wakes up under the same name; while it runs, the name is taken.
    let (_, before) = socket
        .call("GET", &format!("/containers/{c}/json"), None)
        .await;
    socket.start(c, "sleep 60").await;
    let (_, after) = socket
        .call("GET", &format!("/containers/{c}/json"), None)
        .await;
    assert_ne!(before["Id"], after["Id"]);
    assert_eq!(after["State"]["Status"], "running");
    assert_eq!(socket.create(c, "x").await.0, 409);
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn refusals_say_why() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon, "docker.sock");
    let message =
        |answer: &(u16, Value)| answer.1["message"].as_str().unwrap_or_default().to_owned();

    // Beyond max_instances.
    for n in 1..=2 {
        socket.sidecar(&container(n)).await;
        socket.start(&container(n), "sleep 60").await;
    }
    socket.sidecar(&container(3)).await;
    let answer = socket.create(&container(3), "x").await;
    assert_eq!(answer.0, 503);
    assert!(
        message(&answer).contains("already runs 2 of max_instances 2"),
        "{answer:?}"
    );

    // No application, no image, no sidecar, no such page, too much.
    let other = format!("workerd-app-Other-{:064x}", 1);
    socket.sidecar(&other).await;
    let answer = socket.create(&other, "x").await;
    assert_eq!(
        (answer.0, message(&answer)),
        (
            503,
            "no container application is deployed for app-Other".into()
        )
    );
    let body = json!({"Image": "strange:1", "HostConfig": {"NetworkMode": format!("container:{}-proxy", container(3))}});
    let path = format!("/containers/create?name={}", container(3));
    let answer = socket.call("POST", &path, Some(body)).await;
    assert!(
        answer.0 == 404 && message(&answer).starts_with("No such image: strange:1"),
        "{answer:?}"
    );
    let answer = socket.create(&container(4), "x").await;
    assert!(
        answer.0 == 404 && message(&answer).contains("-proxy"),
        "{answer:?}"
    );
    let answer = socket.call("GET", "/info", None).await;
    assert_eq!(answer.0, 501);
    let text = message(&answer);
    assert!(text.starts_with("Wharf does not have GET /info;"), "{text}");
    let answer = socket.call("GET", "/nope", None).await;
    assert_eq!((answer.0, message(&answer)), (404, "page not found".into()));
    // A body of five megabytes is refused before it is sent.
    let mut stream = UnixStream::connect(&socket.path).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        5 << 20
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");

    // What is not there yet names itself.
    let path = format!("/containers/{}/resize?h=1&w=1", container(1));
    let answer = socket.call("POST", &path, None).await;
    assert_eq!(
        (answer.0, message(&answer)),
        (
            501,
            "resize of a terminal is not supported yet by this Wharf".into()
        )
    );
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn the_next_process_finds_the_containers() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let old = Socket::open(&world, &daemon, "old.sock");
    let c = &container(1);
    let ingress = old.sidecar(c).await;
    old.start(c, HELLO).await;
    old.close().await;

    let new = Socket::open(&world, &daemon, "new.sock");
    let (_, inspect) = new
        .call("GET", &format!("/containers/{c}/json"), None)
        .await;
    assert_eq!(inspect["State"]["Status"], "running");
    assert_eq!(new.ingress(c).await, ingress);
    assert_eq!(fetch(ingress).await, "hi\n");
    new.close().await;
    world.end(daemon).await;
}
