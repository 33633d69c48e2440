//! The sockets that the daemon serves: one Docker API socket per workerd process, the operator's, and the gateway's way to a process.

use std::any::Any;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use axum::routing::get;
use wharf_docker_api::operator::Operator;
use wharf_engine::{Engine, Owner};
use wharf_gateway::{Endpoint, Unavailable, Upstream, Upstreams};
use wharf_net::Networks;
use wharf_node::{Node, StoredApplications};
use wharf_sandbox::Spawner;
use wharf_snapshot::Snapshots;
use wharf_store::Store;
use wharf_workerd::{EnginePaths, WorkerdError};

use super::setup::bind_unix;
use super::{Daemon, status};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens Docker API sockets for workerd processes.
pub(super) struct ScriptSockets {
    pub(super) store: Store,
    pub(super) engine: Engine,
    pub(super) networks: Networks,
    pub(super) snapshots: Snapshots,
    pub(super) applications: Arc<StoredApplications>,
}

impl wharf_workerd::Sockets for ScriptSockets {
    fn docker(
        &self,
        script: &str,
        paths: EnginePaths,
        uid: u32,
        network: wharf_net::Network,
    ) -> Boxed<'_, std::io::Result<Box<dyn Any + Send + Sync>>> {
        let docker = wharf_docker_api::script::router(
            script.to_owned(),
            self.engine.clone(),
            self.networks.of_worker(network),
            self.snapshots.clone(),
            self.applications.clone(),
        );
        let prelude = wharf_docker_api::script::prelude::router(
            script.to_owned(),
            self.engine.clone(),
            self.snapshots.clone(),
        );
        let (engine, owner) = (self.engine.clone(), Owner::Script(script.to_owned()));
        Box::pin(async move {
            let sockets = [
                ScriptSocket::open(paths.docker, uid, docker)?,
                ScriptSocket::open(paths.prelude, uid, prelude)?,
            ];
            Ok(Box::new(ProcessGuard {
                runtime: tokio::runtime::Handle::current(),
                engine,
                owner,
                _sockets: sockets,
            }) as Box<dyn Any + Send + Sync>)
        })
    }

    fn blob(&self, hash: &str) -> PathBuf {
        self.store.blob_path(hash)
    }
}

/// The engine's sockets of one workerd process. Dropped when that has ended: its containers live on, until they are forgotten.
struct ProcessGuard {
    runtime: tokio::runtime::Handle,
    engine: Engine,
    owner: Owner,
    _sockets: [ScriptSocket; 2],
}

impl Drop for ProcessGuard {
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        self.engine.orphan(&self.owner);
    }
}

/// Serves until dropped.
struct ScriptSocket {
    path: PathBuf,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl ScriptSocket {
    fn open(path: PathBuf, uid: u32, router: axum::Router) -> std::io::Result<Self> {
        let listener = bind_unix(&path, 0o600, Some(uid))?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(wharf_docker_api::serve_unix(listener, router, async {
            // Resolves when the guard is dropped.
            let _ = stopped.await;
        }));
        Ok(ScriptSocket { path, _stop: stop })
    }
}

impl Drop for ScriptSocket {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {e}", self.path.display());
        }
    }
}

/// Serves the operator's socket until `stop`.
pub(super) fn operator(
    daemon: &Daemon,
    spawner: &Spawner,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let node = &daemon.node;
    let builder = wharf_build::Builder::new(
        node.images.clone(),
        spawner.clone(),
        daemon.networks.clone(),
        daemon.config.data_dir.join("build"),
    );
    let store = node.store.clone();
    let check_password = Arc::new(move |password: &str| store.registry_token(password).is_some());
    let docker = wharf_docker_api::operator::router(Operator {
        engine: node.engine.clone(),
        networks: daemon.networks.clone(),
        images: node.images.clone(),
        snapshots: node.snapshots.clone(),
        builder,
        check_password,
        registry_host: daemon.config.control.listen.to_string(),
    });
    let router = axum::Router::new()
        .route("/wharf/status", get(status::status))
        .route("/wharf/env", get(status::environment))
        .with_state(daemon.clone())
        .fallback_service(docker);
    let listener = bind_unix(&daemon.config.socket(), 0o600, None)?;
    Ok(tokio::spawn(async move {
        wharf_docker_api::serve_unix(listener, router, stop).await;
    }))
}

/// The gateway's way to workerd.
pub(super) struct Workers(pub(super) Node);

/// A lease as the gateway holds it.
struct LeaseGuard(wharf_workerd::Lease);

impl wharf_gateway::Guard for LeaseGuard {
    fn upgraded(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.upgraded();
        Box::pin(self.0.closing())
    }

    fn answered(&self) {
        self.0.answered();
    }

    fn end_reason(&self) -> Pin<Box<dyn Future<Output = Option<String>> + Send>> {
        Box::pin(self.0.end_reason())
    }
}

impl Upstreams for Workers {
    fn acquire<'a>(&'a self, script: &'a str) -> Boxed<'a, Result<Upstream, Unavailable>> {
        Box::pin(async move {
            match self.0.supervisor.acquire(script).await {
                Ok(lease) => Ok(Upstream {
                    endpoint: Endpoint::Unix(lease.socket.clone()),
                    process: lease.process,
                    guard: Box::new(LeaseGuard(lease)),
                }),
                Err(WorkerdError::NoScript(name)) => Err(Unavailable::NoScript(name)),
                Err(WorkerdError::Broken(reason)) => Err(Unavailable::Broken(reason)),
            }
        })
    }

    fn is_public(&self, script: &str) -> bool {
        self.0.addresses.is_public(script)
    }

    fn scripts(&self) -> Vec<String> {
        self.0
            .supervisor
            .status()
            .into_iter()
            .map(|s| s.script)
            .collect()
    }
}
