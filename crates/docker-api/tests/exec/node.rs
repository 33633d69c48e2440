//! A real workerd, and an object in it whose container has a root file system of one file.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use wharf_docker_api::script::router;
use wharf_engine::{Isolation, Limits};
use wharf_node::{ApplicationInfo, Applications};
use wharf_testkit::engine::{Daemon, World};
use wharf_testkit::eventually;

use crate::SPAWNER;
use crate::client::Socket;

const WORKER: &str = include_str!("worker.js");

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

struct OneApplication {
    isolation: Option<Isolation>,
}

impl Applications for OneApplication {
    fn find<'a>(
        &'a self,
        script: &'a str,
        _: &'a str,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        let isolation = self.isolation;
        Box::pin(async move {
            Ok(ApplicationInfo {
                id: "app".into(),
                name: script.into(),
                image: Some("bare:latest".into()),
                named_images: Vec::new(),
                limits: Limits::default(),
                largest: Limits::default(),
                max_instances: 10,
                min_instances: 0,
                isolation,
                no_new_privileges: false,
                variables: Vec::new(),
            })
        })
    }
}

pub(crate) struct Node {
    world: World,
    pub(crate) daemon: Daemon,
    workerd: Workerd,
    socket: Socket,
    http: PathBuf,
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
    /// The object's container runs when this returns.
    pub(crate) async fn new() -> Node {
        Node::of_class(None).await
    }

    /// [`Node::new`], with what separates the container from the machine.
    pub(crate) async fn of_class(isolation: Option<Isolation>) -> Node {
        let world = World::new(SPAWNER);
        world.import("bare:latest", &bare(&world.place.path("bare")));
        let daemon = world.daemon(60_000).await;
        let dir = world.place.dir.path().to_owned();
        let router = router(
            "hello".into(),
            daemon.engine.clone(),
            daemon.networks.clone(),
            world.snapshots(),
            Arc::new(OneApplication { isolation }),
        );
        let socket = Socket::serve(&world, "docker.sock", router);
        std::fs::write(dir.join("worker.js"), WORKER).unwrap();
        let config = CONFIG.replace("DIR", dir.to_str().unwrap());
        std::fs::write(dir.join("config.capnp"), config).unwrap();
        let node = Node {
            workerd: workerd(&dir).await,
            http: dir.join("http.sock"),
            world,
            daemon,
            socket,
        };
        node.call("/start", json!({})).await;
        node
    }

    /// Calls the object.
    pub(crate) async fn call(&self, path: &str, body: Value) -> Value {
        let stream = UnixStream::connect(&self.http).await.unwrap();
        let request = http::Request::post(path)
            .header("Host", "a")
            .body(body.to_string())
            .unwrap();
        let answer = wharf_testkit::ask(stream, request).await.unwrap();
        let status = answer.status();
        assert_eq!(status, 200, "{path}: {}", answer.body());
        serde_json::from_str(answer.body()).unwrap()
    }

    /// Memory of workerd, bytes.
    pub(crate) fn workerd_pid(&self) -> u32 {
        self.workerd.0.id()
    }

    pub(crate) async fn end(self) {
        drop(self.workerd);
        self.socket.close().await;
        self.world.end(self.daemon).await;
    }
}

async fn workerd(dir: &Path) -> Workerd {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/workerd");
    assert!(
        binary.exists(),
        "{} is missing: run `cargo xtask setup`",
        binary.display()
    );
    let child = Command::new(binary)
        .args(["serve", "--experimental"])
        .arg(dir.join("config.capnp"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let workerd = Workerd(child);
    eventually("workerd listens", async || {
        UnixStream::connect(dir.join("http.sock")).await.ok()
    })
    .await;
    workerd
}

/// An image of one static program: no /bin/sh, no /tmp, no PATH that leads to it.
fn bare(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
    let tar = dir.join("bare.tar");
    let made = Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&root)
        .arg("busybox")
        .status();
    assert!(made.unwrap().success());
    tar
}
