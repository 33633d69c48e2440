//! Instances started ahead of workerd's requests: its conversation (contract: workerd, 1.3), word for word, against real containers.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use http::Request;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use wharf_docker_api::script::router;
use wharf_engine::{Inspect, Limits, Owner};
use wharf_node::standby::{Standbys, Status};
use wharf_node::{ApplicationInfo, Applications, Observer, StandbyTarget};
use wharf_testkit::engine::{Daemon, World};
use wharf_testkit::eventually;

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");
/// Listens, so that it is ready soon.
const APP: &str = "echo begun; while :; do nc -l -p 8080 </dev/null; done";

/// What is deployed; a test may change it.
#[derive(Clone)]
struct Deployed {
    info: Arc<Mutex<ApplicationInfo>>,
    standbys: Option<Standbys>,
}

impl Applications for Deployed {
    fn find<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        Box::pin(async { Ok(self.info.lock().unwrap().clone()) })
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        let standbys = self.standbys.clone()?;
        Some(Arc::new(standbys))
    }
}

struct Node {
    world: World,
    daemon: Daemon,
    deployed: Deployed,
    socket: PathBuf,
}

impl Node {
    async fn start(min_instances: u32, budget_bytes: u64) -> Node {
        let world = World::new(SPAWNER);
        let daemon = world.daemon(60_000).await;
        let limits = Limits {
            disk_bytes: Some(32_000_000),
            memory_bytes: Some(64 << 20),
            ..Limits::default()
        };
        let info = ApplicationInfo {
            id: "app".into(),
            name: "hello".into(),
            image: Some("busybox:latest".into()),
            named_images: Vec::new(),
            largest: limits.clone(),
            limits,
            max_instances: 40,
            min_instances,
            isolation: None,
            no_new_privileges: false,
            variables: vec![
                ("CLOUDFLARE_REGION".into(), "EEUR".into()),
                ("CLOUDFLARE_DEPLOYMENT_ID".into(), "one".into()),
            ],
        };
        let mut deployed = Deployed {
            info: Arc::new(Mutex::new(info)),
            standbys: None,
        };
        let applications = Arc::new(deployed.clone());
        let standbys = Standbys::new(daemon.engine.clone(), applications, Some(budget_bytes));
        deployed.standbys = Some(standbys);
        let socket = world.place.dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let router = router(
            "hello".into(),
            daemon.engine.clone(),
            daemon.networks.clone(),
            world.snapshots(),
            Arc::new(deployed.clone()),
        );
        tokio::spawn(wharf_docker_api::serve_unix(
            listener,
            router,
            std::future::pending(),
        ));
        Node {
            world,
            daemon,
            deployed,
            socket,
        }
    }

    fn standbys(&self) -> &Standbys {
        self.deployed.standbys.as_ref().unwrap()
    }

    /// As at a deploy.
    fn deploy(&self, change: impl FnOnce(&mut ApplicationInfo)) {
        let mut info = self.deployed.info.lock().unwrap();
        change(&mut info);
        self.standbys().application(StandbyTarget {
            id: info.id.clone(),
            name: info.name.clone(),
            script: "hello".into(),
            unique_key: "app-Box".into(),
            min_instances: info.min_instances,
            max_instances: info.max_instances,
        });
    }

    fn status(&self) -> Status {
        self.standbys().status().remove(0)
    }

    async fn until(&self, what: &str, is: impl Fn(&Status) -> bool) {
        eventually(what, async || {
            self.standbys()
                .status()
                .first()
                .filter(|it| is(it))
                .map(|_| ())
        })
        .await;
    }

    async fn ready(&self, n: u32) {
        self.until(&format!("{n} to be ready"), |it| {
            it.ready == n && !it.preparing
        })
        .await;
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        call(&self.socket, method, path, body).await
    }

    async fn container(&self, n: usize) -> Inspect {
        let owner = Owner::Script("hello".into());
        let found = self.daemon.engine.inspect(&owner, &name(n)).await;
        found.unwrap()
    }

    async fn end(self) {
        self.standbys().stop().await;
        self.world.end(self.daemon).await;
        assert_eq!(self.world.directories(), 0);
    }
}

fn name(n: usize) -> String {
    format!("workerd-app-Box-{n:064x}")
}

async fn call(socket: &PathBuf, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", "localhost")
        .body(body.map(|b| b.to_string()).unwrap_or_default())
        .unwrap();
    let answer = wharf_testkit::ask(stream, request).await.unwrap();
    let body = serde_json::from_str(answer.body()).unwrap_or(Value::Null);
    (answer.status().as_u16(), body)
}

/// `start()` of object `n`, with this environment.
async fn start(socket: &PathBuf, n: usize, env: &[&str]) {
    let c = name(n);
    let sidecar = json!({"Image": "wharf:sidecar", "ExposedPorts": {"39001/tcp": {}}});
    let path = format!("/containers/create?name={c}-proxy");
    let (status, _) = call(socket, "POST", &path, Some(sidecar)).await;
    assert!(matches!(status, 201 | 409));
    let path = format!("/containers/{c}-proxy/start");
    assert!(matches!(
        call(socket, "POST", &path, None).await.0,
        204 | 304
    ));
    let placeholders = [
        "CLOUDFLARE_DEPLOYMENT_ID=xxxxxxxx",
        "CLOUDFLARE_REGION=REGN",
        "CLOUDFLARE_DURABLE_OBJECT_ID=xxxx",
    ];
    let env: Vec<_> = env.iter().chain(&placeholders).collect();
    let body = json!({"Image": "wharf:application", "Cmd": ["/bin/sh", "-c", APP], "Env": env,
        "HostConfig": {"NetworkMode": format!("container:{c}-proxy"), "Memory": 0, "NanoCpus": 0, "PidsLimit": 0}});
    let path = format!("/containers/create?name={c}");
    let (status, answer) = call(socket, "POST", &path, Some(body)).await;
    assert_eq!(status, 201, "{answer}");
    let path = format!("/containers/{c}/start");
    let (status, answer) = call(socket, "POST", &path, None).await;
    assert_eq!(status, 204, "{answer}");
}

#[tokio::test]
async fn the_first_start_teaches_and_of_twenty_at_once_three_are_handed() {
    let node = Node::start(3, 1 << 30).await;
    start(&node.socket, 0, &["WHO=me"]).await;
    assert!(!node.container(0).await.handed);
    node.ready(3).await;
    let starts = (1..=20).map(|n| {
        let socket = node.socket.clone();
        tokio::spawn(async move { start(&socket, n, &["WHO=me"]).await })
    });
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap();
    }
    let mut ids = BTreeSet::new();
    let mut handed = 0;
    for n in 1..=20 {
        let it = node.container(n).await;
        assert!(ids.insert(it.id.clone()));
        handed += u64::from(it.handed);
        let value = |key: &str| {
            let prefix = format!("{key}=");
            it.env.iter().find_map(|e| e.strip_prefix(&prefix))
        };
        assert_eq!(value("WHO"), Some("me"));
        assert_eq!(value("CLOUDFLARE_REGION"), Some("EEUR"));
        // In none of them, so that all are alike.
        assert_eq!(value("CLOUDFLARE_DURABLE_OBJECT_ID"), None);
    }
    // Some more may have come to be meanwhile.
    assert!(handed >= 3, "{handed}");
    assert_eq!(node.status().handed, handed);
    // Such a burst may come again; they do not count as instances.
    node.until("more for the next burst", |it| {
        it.wanted > 3 && it.ready > 3
    })
    .await;
    node.end().await;
}

#[tokio::test]
async fn never_with_anothers_variables_and_not_at_all_when_all_differ() {
    let node = Node::start(1, 1 << 30).await;
    start(&node.socket, 0, &["WHO=me"]).await;
    node.ready(1).await;
    for (n, who) in ["WHO=you", "WHO=him", "WHO=her"].iter().enumerate() {
        start(&node.socket, n + 1, &[who]).await;
        let it = node.container(n + 1).await;
        assert!(!it.handed && it.env.iter().any(|e| e == who));
    }
    node.until("an end of vain tries", |it| it.ready == 0 && it.wanted == 0)
        .await;
    let reason = node.status().reason.unwrap();
    assert!(reason.contains("differ each time"), "{reason}");
    // Twice the same.
    start(&node.socket, 5, &["WHO=her"]).await;
    node.until("that to be prepared for", |it| it.ready > 0)
        .await;
    start(&node.socket, 6, &["WHO=her"]).await;
    assert!(node.container(6).await.handed);
    node.end().await;
}

#[tokio::test]
async fn what_was_deployed_since_is_handed_and_nothing_else() {
    let node = Node::start(2, 1 << 30).await;
    start(&node.socket, 0, &[]).await;
    node.ready(2).await;
    // The next deployment: only a variable is another.
    node.deploy(|info| info.variables[1].1 = "two".into());
    start(&node.socket, 1, &[]).await;
    let deployment = |it: &Inspect| {
        let of = it.env.iter();
        let mut of = of.filter_map(|e| e.strip_prefix("CLOUDFLARE_DEPLOYMENT_ID="));
        of.next().map(str::to_owned)
    };
    assert_eq!(deployment(&node.container(1).await).unwrap(), "two");
    eventually("two of the new deployment", async || {
        let mut all = node.daemon.engine.list(None).await;
        all.retain(|it| matches!(it.owner, Owner::Standby(_)));
        let new = all
            .iter()
            .all(|it| deployment(it).as_deref() == Some("two"));
        (new && all.len() >= 2 && node.status().ready >= 2).then_some(())
    })
    .await;
    start(&node.socket, 2, &[]).await;
    let it = node.container(2).await;
    assert!(it.handed);
    assert_eq!(deployment(&it).unwrap(), "two");

    // Another image.
    node.world.import("busybox:two", &{
        let tar = wharf_testkit::busybox::tar();
        let path = node.world.place.dir.path().join("two.tar");
        std::fs::write(&path, tar).unwrap();
        path
    });
    node.deploy(|info| info.image = Some("busybox:two".into()));
    start(&node.socket, 3, &[]).await;
    assert_eq!(node.container(3).await.image, "busybox:two");
    eventually("the new image", async || {
        let mut all = node.daemon.engine.list(None).await;
        all.retain(|it| matches!(it.owner, Owner::Standby(_)));
        let new = all.iter().all(|it| it.image == "busybox:two");
        (new && all.len() >= 2 && node.status().ready >= 2).then_some(())
    })
    .await;
    start(&node.socket, 4, &[]).await;
    let it = node.container(4).await;
    assert!(it.handed && it.image == "busybox:two");

    // Deleted: none is left.
    node.standbys().application_gone("app");
    eventually("the end of all", async || {
        let all = node.daemon.engine.list(None).await;
        let left = all.iter().any(|it| matches!(it.owner, Owner::Standby(_)));
        (!left).then_some(())
    })
    .await;
    node.end().await;
}

#[tokio::test]
async fn before_any_start_the_image_says_what_to_start_and_a_crash_is_not_repeated_at_once() {
    let node = Node::start(2, 1 << 30).await;
    // Its image has a command that ends at once.
    node.deploy(|_| {});
    node.until("a failure", |it| it.reason.is_some()).await;
    let status = node.status();
    let reason = status.reason.unwrap();
    assert!(reason.contains("again in"), "{reason}");
    assert_eq!((status.ready, status.handed), (0, 0));
    // A real start says better.
    start(&node.socket, 1, &[]).await;
    node.ready(2).await;
    assert_eq!(node.status().reason, None);
    node.end().await;
}

#[tokio::test]
async fn the_budget_holds_and_what_asks_for_none_gets_none() {
    // Less than one needs.
    let node = Node::start(2, 1).await;
    start(&node.socket, 0, &[]).await;
    node.until("the budget to be met", |it| it.reason.is_some())
        .await;
    let status = node.status();
    assert!(status.ready == 0, "{status:?}");
    assert!(status.reason.unwrap().contains("containers.standby_mib"));
    // As when the deployer takes it back.
    node.deploy(|info| info.min_instances = 0);
    eventually("nothing to be told", async || {
        node.standbys().status().is_empty().then_some(())
    })
    .await;
    start(&node.socket, 1, &[]).await;
    let it = node.container(1).await;
    let id = format!("CLOUDFLARE_DURABLE_OBJECT_ID={:064x}", 1);
    assert!(!it.handed && it.env.contains(&id));
    node.end().await;
}

#[tokio::test]
async fn an_object_with_mappings_gets_one_of_its_own() {
    let node = Node::start(1, 1 << 30).await;
    start(&node.socket, 0, &[]).await;
    node.ready(1).await;
    let c = name(1);
    let sidecar = json!({"Image": "wharf:sidecar", "ExposedPorts": {"39001/tcp": {}}});
    let path = format!("/containers/create?name={c}-proxy");
    node.call("POST", &path, Some(sidecar)).await;
    node.call("POST", &format!("/containers/{c}-proxy/start"), None)
        .await;
    let path = format!("/containers/{c}-proxy/json");
    let (_, found) = node.call("GET", &path, None).await;
    let port = found["NetworkSettings"]["Ports"]["39001/tcp"][0]["HostPort"].clone();
    let port: u16 = port.as_str().unwrap().parse().unwrap();
    let put = Request::builder()
        .method("PUT")
        .uri("/egress")
        .body(json!({"port": 9, "dns": {"allowHostnames": ["a.example"]}}).to_string())
        .unwrap();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    let answer = wharf_testkit::ask(stream.unwrap(), put).await.unwrap();
    assert_eq!(answer.status(), 204);
    start(&node.socket, 1, &[]).await;
    assert!(!node.container(1).await.handed);
    // Without, the same start does.
    start(&node.socket, 2, &[]).await;
    assert!(node.container(2).await.handed);
    node.end().await;
}
