//! A real workerd, and objects in it with their containers.

use std::future::Future;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use wharf_docker_api::script::router;
use wharf_engine::{Isolation, Limits};
use wharf_node::{ApplicationInfo, Applications};
use wharf_testkit::engine::{Daemon, World};
use wharf_testkit::{ask, eventually};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");
const WORKER: &str = include_str!("worker.js");
/// The container: runs the Python that it is sent.
const APP: &str = include_str!("app.py");

const CONFIG: &str = r#"
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (
      modules = [(name = "worker.js", esModule = embed "worker.js")],
      compatibilityDate = "2026-11-01",
      compatibilityFlags = ["experimental"],
      containerEngine = (localDocker = (socketPath = "unix:DIR/docker.sock", containerEgressInterceptorImage = "wharf:sidecar")),
      durableObjectNamespaces = [(className = "Box", uniqueKey = "app-Box", enableSql = true, container = (imageName = "wharf:application"))],
      durableObjectStorage = (inMemory = void),
      bindings = [(name = "BOX", durableObjectNamespace = "Box")])),
    (name = "internet", network = (allow = ["public"])),
  ],
  sockets = [(name = "http", address = "unix:DIR/http.sock", http = (), service = "main")]);
"#;

struct OneApplication;

impl Applications for OneApplication {
    fn find<'a>(
        &'a self,
        script: &'a str,
        _: &'a str,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        Box::pin(async move {
            Ok(ApplicationInfo {
                id: "app".into(),
                name: script.into(),
                image: Some("python:latest".into()),
                named_images: Vec::new(),
                limits: Limits::default(),
                largest: Limits::default(),
                max_instances: 10,
                min_instances: 0,
                isolation: None,
                no_new_privileges: false,
                variables: Vec::new(),
            })
        })
    }
}

pub(crate) struct Node {
    world: World,
    daemon: Daemon,
    workerd: Workerd,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

/// Ends with the test, also if that fails.
struct Workerd(Child);

impl Drop for Workerd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Node {
    /// A node whose containers have this class.
    pub(crate) async fn new(class: Isolation) -> Node {
        let world = World::new(SPAWNER);
        world.import("python:latest", &python());
        let daemon = world.daemon_of(60_000, class).await;
        let dir = world.place.dir.path();
        let listener = UnixListener::bind(dir.join("docker.sock")).unwrap();
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
        std::fs::write(dir.join("worker.js"), WORKER).unwrap();
        let config = CONFIG.replace("DIR", dir.to_str().unwrap());
        std::fs::write(dir.join("config.capnp"), config).unwrap();
        let workerd = workerd(dir).await;
        Node {
            world,
            daemon,
            workerd,
            stop,
            served,
        }
    }

    /// As after a crash: another process finds the container running.
    pub(crate) async fn kill_workerd(&mut self) {
        self.workerd.0.kill().unwrap();
        self.workerd.0.wait().unwrap();
        self.workerd = workerd(self.world.place.dir.path()).await;
    }

    /// An object that has no container yet.
    pub(crate) fn object(&self, name: &str) -> Object {
        Object {
            socket: self.world.place.dir.path().join("http.sock"),
            name: name.to_owned(),
        }
    }

    pub(crate) async fn end(self) {
        drop(self.workerd);
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
        self.world.end(self.daemon).await;
    }
}

/// A Durable Object and its container.
pub(crate) struct Object {
    socket: PathBuf,
    name: String,
}

impl Object {
    async fn call(&self, path: &str, body: &str) -> (u16, String) {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let request = http::Request::post(path)
            .header("Host", &self.name)
            .body(body.to_owned())
            .unwrap();
        let answer = ask(stream, request).await.unwrap();
        (answer.status().as_u16(), answer.into_body())
    }

    async fn ok(&self, path: &str, body: &str) -> String {
        let (status, answer) = self.call(path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Starts the container and waits until it listens.
    pub(crate) async fn start(&self, internet: bool) {
        self.ok(&format!("/start?internet={internet}"), APP).await;
        self.run("print(1)").await;
    }

    /// `interceptOutbound<kind>(to, ...)`, to an entrypoint that calls itself `name`.
    pub(crate) async fn map(&self, kind: &str, to: &str, name: &str) {
        self.ok(&format!("/map?kind={kind}&to={to}&name={name}"), "")
            .await;
    }

    /// `interceptAllOutboundHttp(...)`
    pub(crate) async fn map_all(&self, name: &str) {
        self.ok(&format!("/map?kind=All&name={name}"), "").await;
    }

    /// Runs Python in the container; what it prints.
    pub(crate) async fn run(&self, code: &str) -> String {
        self.ok("/run", code).await
    }
}

async fn workerd(dir: &Path) -> Workerd {
    let socket = dir.join("http.sock");
    let _ = std::fs::remove_file(&socket);
    let child = Command::new(tool("workerd"))
        .args(["serve", "--experimental"])
        .arg(dir.join("config.capnp"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let workerd = Workerd(child);
    eventually("workerd listens", async || {
        UnixStream::connect(&socket).await.ok()
    })
    .await;
    workerd
}

fn tool(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/tools")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    path
}

/// The base image that `cargo xtask setup` made.
fn python() -> PathBuf {
    let images = std::fs::read_dir(tool("images")).unwrap();
    let mut found = images.map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("python-") && name.ends_with(".tar")
    });
    found
        .next()
        .expect("no python image: run `cargo xtask setup`")
}

/// The machine's address towards other machines; loopback if it has none.
pub(crate) fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    match socket.connect("203.0.113.1:9") {
        Ok(()) => socket.local_addr().unwrap().ip(),
        Err(_) => IpAddr::from([127, 0, 0, 1]),
    }
}
