//! A real supervisor with a real spawner and the real workerd, in a directory of its own.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod engine;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{HeaderMap, Request, StatusCode};
use sha2::Digest;
use wharf_model::{Binding, DurableObjectNamespace, Module, ModuleKind, Version};
use wharf_net::{NetConfig, Networks};
use wharf_sandbox::{Spawner, Survivor};
use wharf_testkit::Place;
use wharf_workerd::{
    Desired, DockerSocket, EnginePaths, Lease, Sockets, Supervisor, WorkerdConfig,
};

/// The pinned workerd, linked into `dir`: its users can't pass through every folder that a repository lies in (/root).
pub fn binary(dir: &Path) -> PathBuf {
    let path = std::env::var_os("WHARF_WORKERD").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/workerd"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "no workerd at {}: run `cargo xtask setup`, or set WHARF_WORKERD to the binary",
        path.display()
    );
    let link = dir.join("workerd");
    if !link.exists() && std::fs::hard_link(path.canonicalize().unwrap(), &link).is_err() {
        std::fs::copy(&path, &link).unwrap();
    }
    link
}

pub struct Blobs(PathBuf);

impl Sockets for Blobs {
    fn docker(
        &self,
        _: &str,
        paths: EnginePaths,
        uid: u32,
        _: wharf_net::Network,
    ) -> Pin<Box<dyn Future<Output = std::io::Result<DockerSocket>> + Send + '_>> {
        Box::pin(async move { Ok(Box::new(bind(&paths.docker, uid)?) as DockerSocket) })
    }
    fn blob(&self, hash: &str) -> PathBuf {
        self.0.join(hash)
    }
}

/// A socket that one workerd process can use.
pub fn bind(path: &Path, uid: u32) -> std::io::Result<tokio::net::UnixListener> {
    let listener = tokio::net::UnixListener::bind(path)?;
    std::os::unix::fs::chown(path, Some(uid), Some(uid))?;
    Ok(listener)
}

pub struct World {
    pub place: Place,
    pub spawner: Spawner,
    pub supervisor: Supervisor,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut WorkerdConfig)) -> Self {
        Self::in_networks(networks(false), adjust).await
    }

    pub async fn in_networks(networks: Networks, adjust: impl FnOnce(&mut WorkerdConfig)) -> Self {
        let place = Place::new(env!("CARGO_BIN_EXE_wharf-workerd-spawner-test"));
        let passable = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(place.dir.path(), passable).unwrap();
        let (spawner, survivors) = place.start(2000).await;
        assert!(survivors.is_empty());
        let mut config = config(&place);
        adjust(&mut config);
        let sockets = Arc::new(Blobs(place.path("blobs")));
        let supervisor = Supervisor::new(config, spawner.clone(), networks, sockets);
        supervisor.reap(Vec::new()).await;
        Self {
            place,
            spawner,
            supervisor,
        }
    }

    /// What `kill -9` of the daemon and a new start look like to this crate: the old supervisor says nothing any more.
    pub async fn new_daemon(&mut self) -> Vec<Survivor> {
        let (spawner, survivors) = self.place.start(2000).await;
        let sockets = Arc::new(Blobs(self.place.path("blobs")));
        let config = config(&self.place);
        let supervisor = Supervisor::new(config, spawner.clone(), networks(false), sockets);
        self.spawner = spawner;
        self.supervisor = supervisor;
        survivors
    }

    /// Ends everything and looks whether anything is left.
    pub async fn close(self) {
        self.supervisor.shutdown().await;
        let run = self.place.dir.path().join("w");
        if run.exists() {
            assert_eq!(std::fs::read_dir(run).unwrap().count(), 0);
        }
        self.place.finish(&self.spawner).await;
    }

    pub fn blob(&self, content: impl AsRef<[u8]>) -> String {
        let hash = hex::encode(sha2::Sha256::digest(content.as_ref()));
        std::fs::write(self.place.path("blobs").join(&hash), content).unwrap();
        hash
    }

    /// A script of one module.
    pub fn desired(&self, script: &str, number: u32, code: &str) -> Desired {
        static VERSION: AtomicU32 = AtomicU32::new(1);
        let version = VERSION.fetch_add(1, Ordering::Relaxed);
        Desired {
            version: Version {
                id: format!("00000000-0000-0000-0000-{version:012}"),
                script: script.to_owned(),
                number: version,
                created_ms: 1_700_000_000_000,
                main_module: "main.js".into(),
                modules: vec![Module {
                    name: "main.js".into(),
                    kind: ModuleKind::EsModule,
                    blob: self.blob(code),
                }],
                bindings: vec![],
                compatibility_date: "2026-01-01".into(),
                compatibility_flags: vec![],
                assets: None,
                container_classes: vec![],
                containers: Default::default(),
                annotations: BTreeMap::new(),
                extra: serde_json::Value::Null,
            },
            script_number: number,
            namespaces: BTreeMap::new(),
        }
    }

    pub async fn deploy(&self, desired: Desired) {
        let script = desired.version.script.clone();
        self.supervisor.set(&script, desired);
        self.supervisor.settled(&script).await.unwrap();
    }

    pub async fn get(&self, script: &str, path: &str) -> Answer {
        let lease = self.supervisor.acquire(script).await.unwrap();
        match get(&lease, path).await {
            Ok(answer) => answer,
            Err(error) => panic!("{error}: {:?}", lease.end_reason().await),
        }
    }

    pub async fn text(&self, script: &str, path: &str) -> String {
        self.get(script, path).await.text
    }

    pub fn pid(&self, script: &str) -> i32 {
        let status = self.status(script);
        status.pid.unwrap()
    }

    pub fn status(&self, script: &str) -> wharf_workerd::ScriptStatus {
        let all = self.supervisor.status();
        all.into_iter().find(|s| s.script == script).unwrap()
    }
}

/// With the network of the machine. As many as are needed, made when they are needed.
pub fn networks(allow_private: bool) -> Networks {
    Networks::new(NetConfig {
        pool_size: 0,
        hold_ms: 2000,
        dns_servers: Vec::new(),
        allow_private,
    })
}

fn config(place: &Place) -> WorkerdConfig {
    let dir = place.dir.path();
    let mut config = WorkerdConfig::new(binary(dir), dir.join("w"), dir.join("scripts"));
    config.drain_ms = 5000;
    config
}

/// Adds a Durable Object class with a binding of the same name in capitals.
pub fn with_class(mut desired: Desired, class: &str) -> Desired {
    let script = desired.version.script.clone();
    desired.namespaces.insert(
        class.to_owned(),
        DurableObjectNamespace {
            id: "1".repeat(32),
            script,
            class: class.to_owned(),
            use_sqlite: true,
            unique_key: "0123456789abcdef0123456789abcdef".into(),
        },
    );
    desired
        .version
        .bindings
        .push(Binding::DurableObjectNamespace {
            name: class.to_uppercase(),
            class_name: class.to_owned(),
            namespace_id: "1".repeat(32),
        });
    desired
}

pub fn service(name: &str, service: &str, entrypoint: Option<&str>) -> Binding {
    Binding::Service {
        name: name.into(),
        service: service.into(),
        entrypoint: entrypoint.map(str::to_owned),
        props: None,
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

pub async fn get(
    lease: &Lease,
    path: &str,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::UnixStream::connect(&lease.socket).await?;
    let request = Request::get(path)
        .header("host", "hello.localhost")
        .body(String::new())?;
    let (parts, text) = wharf_testkit::ask(stream, request).await?.into_parts();
    lease.answered();
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        text,
    })
}
