//! The operator's socket as Docker's clients and workerd under `wrangler dev` use it, against real containers.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::PathBuf;
use std::sync::Arc;

use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use wharf_docker_api::operator::{Operator, router};
use wharf_engine::Owner;
use wharf_testkit::engine::{Daemon, World, script_owner};
use wharf_testkit::eventually;

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");

struct Socket {
    path: PathBuf,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Socket {
    fn open(world: &World, daemon: &Daemon) -> Socket {
        let dir = world.place.dir.path();
        let path = dir.join("operator.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let router = router(Operator {
            engine: daemon.engine.clone(),
            networks: daemon.networks.clone(),
            images: world.images(),
            snapshots: world.snapshots(),
            builder: wharf_build::Builder::new(
                world.images(),
                daemon.spawner.clone(),
                daemon.networks.clone(),
                dir.join("build"),
            ),
            check_password: Arc::new(|_| false),
            registry_host: "127.0.0.1:1".into(),
        });
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

    /// A request as Docker's clients make it: with the version in the path.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let stream = UnixStream::connect(&self.path).await.unwrap();
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1.43{path}"))
            .header("Host", "docker")
            .body(body.map(|b| b.to_string()).unwrap_or_default())
            .unwrap();
        let answer = wharf_testkit::ask(stream, request).await.unwrap();
        let text = answer.body();
        let body = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        (answer.status().as_u16(), body)
    }

    async fn create(&self, name: &str, script: &str, host: Value) {
        let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", script], "Labels": {"of": "test"}, "HostConfig": host});
        let path = format!("/containers/create?name={name}");
        let (status, made) = self.call("POST", &path, Some(body)).await;
        assert_eq!(status, 201, "{made}");
    }
}

/// Frames of Docker's multiplexed stream, by stream.
fn frames(mut bytes: &[u8]) -> [String; 2] {
    let mut out = [String::new(), String::new()];
    while let Some((head, rest)) = bytes.split_at_checked(8) {
        let length = u32::from_be_bytes(head[4..].try_into().unwrap()) as usize;
        let (text, rest) = rest.split_at(length);
        out[usize::from(head[0]) - 1].push_str(std::str::from_utf8(text).unwrap());
        bytes = rest;
    }
    out
}

/// `docker run --rm -p 8080 busybox ...`: create, attach, wait, start, as the command does it.
#[tokio::test]
async fn a_container_is_run_as_dockers_command_runs_it() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    let script =
        "echo ready; while ! echo hi | nc -l -p 8080 >/dev/null; do :; done; echo bye >&2; exit 4";
    let host = json!({"AutoRemove": true, "NetworkMode": "default", "PortBindings": {"8080/tcp": [{"HostIp": "", "HostPort": ""}]}});
    socket.create("web", script, host).await;

    let mut attached = UnixStream::connect(&socket.path).await.unwrap();
    attached
        .write_all(b"POST /v1.43/containers/web/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(attached.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    // The head of the wait comes before the start.
    let mut waiting = UnixStream::connect(&socket.path).await.unwrap();
    waiting
        .write_all(b"POST /v1.43/containers/web/wait?condition=removed HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let mut status = [0; 12];
    waiting.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");

    assert_eq!(
        socket.call("POST", "/containers/web/start", None).await.0,
        204
    );
    let (_, list) = socket
        .call(
            "GET",
            "/containers/json?filters=%7B%22label%22:%5B%22of=test%22%5D%7D",
            None,
        )
        .await;
    let port = &list[0]["Ports"][0];
    assert_eq!(
        (&port["IP"], &port["PrivatePort"]),
        (&json!("127.0.0.1"), &json!(8080))
    );
    let port = u16::try_from(port["PublicPort"].as_u64().unwrap()).unwrap();
    let (_, inspect) = socket.call("GET", "/containers/web/json", None).await;
    assert_eq!(
        inspect["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"],
        json!(port.to_string())
    );
    eventually("an answer on the published port", async || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        (text == "hi\n").then_some(())
    })
    .await;

    // Its output to the end, although it is removed when it ends.
    let mut output = Vec::new();
    attached.read_to_end(&mut output).await.unwrap();
    assert_eq!(frames(&output), ["ready\n".to_owned(), "bye\n".to_owned()]);
    drop(attached);
    let mut waited = String::new();
    waiting.read_to_string(&mut waited).await.unwrap();
    assert!(waited.contains(r#"{"StatusCode":4}"#), "{waited}");
    assert_eq!(
        socket.call("GET", "/containers/web/json", None).await.0,
        404
    );
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn a_runtime_is_an_isolation_class() {
    wharf_testkit::runsc();
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    let host = std::fs::read_to_string("/proc/version").unwrap();
    for (name, runtime) in [("g", "gvisor"), ("m", "microvm"), ("n", "namespace")] {
        socket
            .create(
                name,
                "cat /proc/version; exit 3",
                json!({"Runtime": runtime}),
            )
            .await;
        let path = format!("/containers/{name}");
        assert_eq!(
            socket.call("POST", &format!("{path}/start"), None).await.0,
            204
        );
        let (_, ended) = socket.call("POST", &format!("{path}/wait"), None).await;
        assert_eq!(ended["StatusCode"], 3);
        let (_, inspect) = socket.call("GET", &format!("{path}/json"), None).await;
        assert_eq!(inspect["HostConfig"]["Runtime"], runtime);
        let said = daemon.output(&Owner::Operator, name, false).await;
        assert!(said.starts_with("Linux version"), "{said}");
        assert_eq!(said == host, runtime == "namespace", "{said}");
    }
    let body = json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Runtime": "kata"}});
    let (status, answer) = socket.call("POST", "/containers/create", Some(body)).await;
    assert_eq!(status, 400);
    let words = "unknown or invalid runtime name: kata";
    assert!(answer.to_string().contains(words), "{answer}");
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn security_options_are_honoured_or_refused_by_name() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    let script = "grep NoNewPrivs /proc/self/status | tr -dc 01";
    for (name, options, flag) in [
        ("none", json!(null), "0"),
        ("asked", json!(["no-new-privileges"]), "1"),
        ("colon", json!(["no-new-privileges:true"]), "1"),
        ("denied", json!(["no-new-privileges=false"]), "0"),
    ] {
        socket
            .create(name, script, json!({"SecurityOpt": options}))
            .await;
        let path = format!("/containers/{name}");
        socket.call("POST", &format!("{path}/start"), None).await;
        socket.call("POST", &format!("{path}/wait"), None).await;
        let said = daemon.output(&Owner::Operator, name, false).await;
        assert_eq!(said, flag, "{name}");
        let (_, inspect) = socket.call("GET", &format!("{path}/json"), None).await;
        let shown = &inspect["HostConfig"]["SecurityOpt"];
        let expected = if flag == "1" {
            json!(["no-new-privileges"])
        } else {
            json!(null)
        };
        assert_eq!(*shown, expected, "{name}");
    }
    let host = json!({"SecurityOpt": ["apparmor=unconfined"]});
    let body = json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": host});
    let (status, answer) = socket.call("POST", "/containers/create", Some(body)).await;
    assert_eq!(status, 501);
    assert!(
        answer.to_string().contains("apparmor=unconfined"),
        "{answer}"
    );
    socket.close().await;
    world.end(daemon).await;
}

/// Docker's own command, with this socket as its engine.
async fn docker(socket: &Socket, args: &[&str]) -> (bool, String) {
    let ran = tokio::process::Command::new("docker")
        .arg("-H")
        .arg(format!("unix://{}", socket.path.display()))
        .args(args)
        .output()
        .await
        .unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    (
        ran.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[tokio::test]
async fn what_dockers_command_asks_for_is_never_ignored() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    let plain = docker(&socket, &["run", "--rm", "busybox", "echo", "hi"]).await;
    assert_eq!(plain, (true, "hi\n".to_owned()));
    for (options, named) in [
        (&["--privileged"][..], "HostConfig.Privileged"),
        (&["--cpuset-cpus", "0"], "HostConfig.CpusetCpus"),
        (&["-v", "/data"], "Volumes"),
        (&["-v", "/etc:/data"], "HostConfig.Binds"),
        (&["--restart", "always"], "HostConfig.RestartPolicy.Name"),
        (&["--pid", "host"], "HostConfig.PidMode"),
        (&["--health-cmd", "true"], "Healthcheck.Test"),
        (&["--log-driver", "none"], "HostConfig.LogConfig.Type"),
        (&["--memory-swap", "-1"], "HostConfig.MemorySwap"),
        (&["--platform", "linux/arm64"], "platform"),
        (&["-t"], "Tty"),
    ] {
        let args = [&["create"], options, &["busybox", "true"]].concat();
        let (ended_well, said) = docker(&socket, &args).await;
        assert!(!ended_well && said.contains(named), "{options:?}: {said}");
    }
    for (args, named) in [
        (&["ps", "-s"][..], "size"),
        (&["images", "busybox"], "filters"),
        (
            &["rename", "a", "b"],
            "Wharf does not have POST /containers/{id}/rename",
        ),
        (
            &["top", "a"],
            "Wharf does not have GET /containers/{id}/top",
        ),
        (&["network", "ls"], "Wharf does not have GET /networks;"),
        (
            &["events", "--since", "1s"],
            "Wharf does not have GET /events",
        ),
        (&["system", "df"], "Wharf does not have GET /system/df"),
    ] {
        let (ended_well, said) = docker(&socket, args).await;
        assert!(!ended_well && said.contains(named), "{args:?}: {said}");
    }
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn a_read_only_container_cannot_write_but_where_docker_lets_it() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    // Each: whether it can be written with --read-only, and without.
    for (path, read_only, plain) in [
        ("/file", false, true),
        ("/etc/file", false, true),
        ("/etc/hosts", false, true),
        ("/etc/resolv.conf", false, true),
        ("/etc/hostname", false, true),
        ("/made/by/workdir/file", false, true),
        ("/dev/null", true, true),
        ("/dev/shm/file", true, true),
        ("/memory/file", true, true),
        ("/proc/self/comm", true, true),
    ] {
        let script = format!("echo x >> {path} && echo written");
        let shell = ["busybox", "sh", "-c", &script];
        let options = [
            "run",
            "--rm",
            "-w",
            "/made/by/workdir",
            "--tmpfs",
            "/memory",
        ];
        let (_, said) = docker(&socket, &[&options[..], &shell].concat()).await;
        assert_eq!(said.contains("written"), plain, "{path}: {said}");
        let options = [&options[..], &["--read-only"]].concat();
        let (_, said) = docker(&socket, &[&options[..], &shell].concat()).await;
        assert_eq!(said.contains("written"), read_only, "{path}: {said}");
        assert!(
            read_only || said.contains("Read-only file system"),
            "{said}"
        );
    }
    // Nobody inside can undo it, and who comes in later finds it so.
    let started = docker(
        &socket,
        &[
            "run",
            "-d",
            "--read-only",
            "--name",
            "ro",
            "busybox",
            "sleep",
            "1000",
        ],
    )
    .await;
    assert!(started.0, "{}", started.1);
    for script in [
        "mount -o remount,rw /; echo x > /file",
        "umount /etc/hosts; echo x > /etc/hosts",
        "echo x > /file",
    ] {
        let (ended_well, said) = docker(&socket, &["exec", "ro", "sh", "-c", script]).await;
        assert!(!ended_well, "{script}: {said}");
    }
    let (_, inspect) = socket.call("GET", "/containers/ro/json", None).await;
    assert_eq!(inspect["HostConfig"]["ReadonlyRootfs"], true);
    assert!(docker(&socket, &["rm", "-f", "ro"]).await.0);
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn a_container_has_the_directories_in_memory_that_were_asked_for() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    for (options, script, expected) in [
        (
            &["--tmpfs", "/m"][..],
            "stat -c '%a %u %g' /m; grep ' /m ' /proc/mounts | grep -o 'tmpfs rw,nosuid,nodev,noexec'",
            "1777 0 0\ntmpfs rw,nosuid,nodev,noexec\n",
        ),
        (
            &["--tmpfs", "/m:size=1m,mode=750,uid=5,gid=6"],
            "stat -c '%a %u %g' /m; dd if=/dev/zero of=/m/f bs=1M count=2 2>/dev/null || stat -c %s /m/f",
            "750 5 6\n1048576\n",
        ),
        // The directory that it covers has another mode, and files.
        (
            &["--tmpfs", "/etc"],
            "stat -c %a /etc; ls /etc",
            "755\nhostname\nhosts\nresolv.conf\n",
        ),
        (
            &["--tmpfs", "/m"],
            "cp /bin/busybox /m/true; /m/true 2>/dev/null || echo not executed",
            "not executed\n",
        ),
        (
            &["--tmpfs", "/m:exec"],
            "cp /bin/busybox /m/true; /m/true && echo executed",
            "executed\n",
        ),
        (
            &["--tmpfs", "/m:ro"],
            "echo x 2>/dev/null >/m/x || echo not written",
            "not written\n",
        ),
        (
            &[
                "--mount",
                "type=tmpfs,target=/m,tmpfs-size=1048576,tmpfs-mode=0700",
            ],
            "stat -c %a /m; df -k /m | tail -1 | tr -s ' ' | cut -d' ' -f2",
            "700\n1024\n",
        ),
        (
            &["--shm-size", "2m"],
            "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /dev/shm",
            "2048\n1777\n",
        ),
        (
            &["--tmpfs", "/m/n", "--tmpfs", "/m"],
            "mkdir /m/o; echo x > /m/n/x; ls /m",
            "n\no\n",
        ),
        (
            &["-u", "1000", "--tmpfs", "/m"],
            "echo x > /m/x; cat /m/x",
            "x\n",
        ),
    ] {
        let args = [&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat();
        let said = docker(&socket, &args).await;
        assert_eq!(said, (true, expected.to_owned()), "{options:?}");
    }
    for (options, named) in [
        (&["--tmpfs", "/m:dev"][..], "tmpfs option \"dev\""),
        (&["--tmpfs", "/proc/x"], "/proc/x"),
        (&["--tmpfs", "/"], "invalid mount target"),
        (&["--runtime", "gvisor", "--tmpfs", "/m"], "--tmpfs"),
        (&["--runtime", "microvm", "--read-only"], "--read-only"),
    ] {
        let args = [&["create"], options, &["busybox", "true"]].concat();
        let (ended_well, said) = docker(&socket, &args).await;
        assert!(!ended_well && said.contains(named), "{options:?}: {said}");
    }
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn a_container_has_the_names_that_were_asked_for() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    for (options, script, expected) in [
        (
            &["--add-host", "db:10.1.2.3", "--add-host", "six:::1"][..],
            "grep -E 'db|six' /etc/hosts",
            "10.1.2.3\tdb\n::1\tsix\n",
        ),
        (
            &[
                "--dns-search",
                "a.test",
                "--dns-search",
                "b.test",
                "--dns-option",
                "ndots:2",
            ],
            "grep -v nameserver /etc/resolv.conf",
            "search a.test b.test\noptions ndots:2\n",
        ),
        (
            &["--hostname", "web"],
            "hostname; cat /etc/hostname; echo $HOSTNAME; grep -c web /etc/hosts",
            "web\nweb\nweb\n1\n",
        ),
    ] {
        let args = [&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat();
        let said = docker(&socket, &args).await;
        assert_eq!(said, (true, expected.to_owned()), "{options:?}");
    }
    for (options, named) in [
        (
            &["--add-host", "host.docker.internal:host-gateway"][..],
            "host-gateway",
        ),
        (&["--dns", "8.8.8.8"], "HostConfig.Dns"),
        (&["--init"], "HostConfig.Init"),
    ] {
        let args = [&["create"], options, &["busybox", "true"]].concat();
        let (ended_well, said) = docker(&socket, &args).await;
        assert!(!ended_well && said.contains(named), "{options:?}: {said}");
    }
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn logs_are_shown_and_followed() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    socket
        .create("c", "echo one; echo two >&2; echo three; while [ ! -e /go ]; do sleep 0.02; done; echo four", json!({}))
        .await;
    socket.call("POST", "/containers/c/start", None).await;
    daemon.says(&Owner::Operator, "c", "three").await;
    eventually("the error", async || {
        let error = daemon.output(&Owner::Operator, "c", true).await;
        (error == "two\n").then_some(())
    })
    .await;
    let logs = async |query: &str| {
        let (status, text) = socket
            .call("GET", &format!("/containers/c/logs?{query}"), None)
            .await;
        assert_eq!(status, 200, "{text}");
        frames(text.as_str().unwrap_or_default().as_bytes())
    };
    assert_eq!(
        logs("stdout=1").await,
        ["one\nthree\n".to_owned(), String::new()]
    );
    assert_eq!(
        logs("stdout=1&tail=1").await,
        ["three\n".to_owned(), String::new()]
    );
    assert_eq!(logs("stderr=1").await, [String::new(), "two\n".to_owned()]);
    assert_eq!(
        logs("stdout=1&until=1").await,
        [String::new(), String::new()]
    );
    let [stamped, _] = logs("stdout=1&timestamps=1&tail=1").await;
    assert!(
        stamped.starts_with("20") && stamped.ends_with("Z three\n"),
        "{stamped}"
    );
    let end = async {
        let touch = json!({"Cmd": ["touch", "/go"]});
        let (_, exec) = socket.call("POST", "/containers/c/exec", Some(touch)).await;
        let path = format!("/exec/{}/start", exec["Id"].as_str().unwrap());
        let (status, _) = socket
            .call("POST", &path, Some(json!({"Detach": true})))
            .await;
        assert_eq!(status, 200);
    };
    let (followed, ()) = tokio::join!(logs("stdout=1&follow=1"), end);
    assert_eq!(followed[0], "one\nthree\nfour\n");
    socket.close().await;
    world.end(daemon).await;
}

/// What a script made is seen and can be ended by the operator.
#[tokio::test]
async fn the_operator_sees_everyones_containers() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    let id = daemon
        .run(&script_owner(), "workerd-k-1", "echo mine; sleep 1000")
        .await;
    daemon.says(&script_owner(), "workerd-k-1", "mine").await;
    let (_, list) = socket.call("GET", "/containers/json", None).await;
    assert_eq!(list[0]["Id"], json!(id));
    let (_, logs) = socket
        .call(
            "GET",
            &format!("/containers/{}/logs?stdout=1", &id[..12]),
            None,
        )
        .await;
    assert!(logs.as_str().unwrap().ends_with("mine\n"));
    assert_eq!(
        socket
            .call("POST", &format!("/containers/{id}/kill"), None)
            .await
            .0,
        204
    );
    assert_eq!(
        socket
            .call("POST", &format!("/containers/{id}/wait"), None)
            .await
            .1,
        json!({"StatusCode": 137})
    );
    socket.close().await;
    world.end(daemon).await;
}

/// The variable that makes [`another_process`] act.
const ASK: &str = "WHARF_TEST_ASKS_FOR_A_SIDECAR";

fn sidecar() -> Value {
    json!({"Image": "any/name:1", "ExposedPorts": {"39001/tcp": {}},
        "Cmd": ["--http-egress-port", "1", "--http-ingress-address", "0.0.0.0:39001"],
        "HostConfig": {"PublishAllPorts": true, "NetworkMode": "bridge", "CapAdd": ["NET_ADMIN"]}})
}

/// Not a test by itself: what the next one runs as a process of its own.
#[test]
fn another_process() {
    use std::io::{Read, Write};
    let Ok(path) = std::env::var(ASK) else {
        return;
    };
    let body = sidecar().to_string();
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    write!(
        stream,
        "POST /containers/create?name=workerd-k-2-proxy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    println!("asked");
    // Until the other end is closed.
    let _ = std::io::stdin().read(&mut [0]);
}

/// workerd's conversation on this socket: its sidecar is known by what it is, is no container to anybody, and goes with the process that
/// asked for it, however that ends.
#[tokio::test]
async fn a_sidecar_goes_with_its_process() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let socket = Socket::open(&world, &daemon);
    let path = "/containers/create?name=workerd-k-1-proxy";
    assert_eq!(socket.call("POST", path, Some(sidecar())).await.0, 201);
    assert_eq!(socket.call("POST", path, Some(sidecar())).await.0, 409);
    let there = async |name: &str| {
        let path = format!("/containers/{name}/json");
        socket.call("GET", &path, None).await.0 == 200
    };
    let mut other = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process", "--nocapture"])
        .env(ASK, &socket.path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("the other process's sidecar", async || {
        there("workerd-k-2-proxy").await.then_some(())
    })
    .await;
    let (_, list) = socket.call("GET", "/containers/json?all=1", None).await;
    assert_eq!(list, json!([]));
    other.kill().await.unwrap();
    eventually("its removal", async || {
        (!there("workerd-k-2-proxy").await).then_some(())
    })
    .await;
    assert!(there("workerd-k-1-proxy").await);

    // A container joins it, as workerd's do: start({entrypoint}) is the whole command, and it is reached through the sidecar's port.
    let host = json!({"NetworkMode": "container:workerd-k-1-proxy", "RestartPolicy": {"Name": "on-failure"}});
    socket.create("workerd-k-1", "exit 9", host).await;
    socket
        .call("POST", "/containers/workerd-k-1/start", None)
        .await;
    assert_eq!(
        socket
            .call("POST", "/containers/workerd-k-1/wait", None)
            .await
            .1,
        json!({"StatusCode": 9})
    );
    for name in ["workerd-k-1", "workerd-k-1-proxy"] {
        let path = format!("/containers/{name}?force=true");
        assert_eq!(socket.call("DELETE", &path, None).await.0, 204);
        assert!(!there(name).await);
    }
    socket.close().await;
    world.end(daemon).await;
}
