//! The sockets that the daemon serves: one Docker API socket per workerd process, the operator's, and the gateway's way to a process.

use super::{Node, bind_unix, status};
use crate::config::Config;
use axum::routing::get;
use std::any::Any;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use wharf_docker_api::operator::Operator;
use wharf_docker_api::script::standby::{Kept, Standbys};
use wharf_docker_api::script::{ApplicationInfo, Applications};
use wharf_engine::{Engine, Owner};
use wharf_gateway::{Unavailable, Upstream, Upstreams};
use wharf_model::InstanceType;
use wharf_net::Networks;
use wharf_sandbox::Spawner;
use wharf_snapshot::Snapshots;
use wharf_store::Store;
use wharf_workerd::{EnginePaths, WorkerdError};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens Docker API sockets for workerd processes.
pub(super) struct ScriptSockets {
    store: Store,
    engine: Engine,
    networks: Networks,
    snapshots: Snapshots,
    applications: Arc<StoredApplications>,
}

impl ScriptSockets {
    pub(super) fn new(
        config: Arc<Config>,
        store: Store,
        engine: Engine,
        networks: Networks,
        snapshots: Snapshots,
        standbys: Standbys,
    ) -> Self {
        let applications = Arc::new(StoredApplications {
            config,
            store: store.clone(),
            standbys: Some(standbys),
        });
        ScriptSockets {
            store,
            engine,
            networks,
            snapshots,
            applications,
        }
    }
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

/// Keeps instances started ahead, within the configured memory.
pub(super) fn standbys(config: &Arc<Config>, store: &Store, engine: &Engine) -> Standbys {
    let applications = Arc::new(StoredApplications {
        config: config.clone(),
        store: store.clone(),
        standbys: None,
    });
    let budget = config.containers.standby_mib.map(|mib| mib << 20);
    Standbys::new(engine.clone(), applications, budget)
}

/// What an application asks to be kept of it; `None` if no script's objects are behind it.
pub(super) fn kept(
    store: &Store,
    application: &wharf_model::Application,
) -> Result<Option<Kept>, wharf_store::StoreError> {
    let Some(namespace) = &application.namespace_id else {
        return Ok(None);
    };
    Ok(store.namespace(namespace)?.map(|namespace| Kept {
        id: application.id.clone(),
        name: application.name.clone(),
        script: namespace.script,
        unique_key: namespace.unique_key,
        min_instances: min_instances(application),
        max_instances: application.max_instances,
    }))
}

/// Control has checked the settings; what an older version has stored asks for nothing.
fn min_instances(application: &wharf_model::Application) -> u32 {
    application.settings().unwrap_or_default().min_instances
}

/// Applications from the store.
struct StoredApplications {
    config: Arc<Config>,
    store: Store,
    standbys: Option<Standbys>,
}

impl Applications for StoredApplications {
    fn find<'a>(
        &'a self,
        script: &'a str,
        unique_key: &'a str,
        object_id: &'a str,
    ) -> Boxed<'a, Result<ApplicationInfo, String>> {
        Box::pin(async move { self.look_up(script, unique_key, object_id) })
    }

    fn standbys(&self) -> Option<Standbys> {
        self.standbys.clone()
    }
}

impl StoredApplications {
    fn look_up(
        &self,
        script: &str,
        unique_key: &str,
        object_id: &str,
    ) -> Result<ApplicationInfo, String> {
        let fault = |e: wharf_store::StoreError| e.to_string();
        let namespace = self
            .store
            .namespace_by_unique_key(unique_key)
            .map_err(fault)?
            .filter(|n| n.script == script)
            .ok_or_else(|| {
                format!("the Worker \"{script}\" has no Durable Object class behind this container")
            })?;
        let application = self.store.application_by_namespace(&namespace.id).map_err(fault)?.ok_or_else(|| {
            format!(
                "no container application is deployed for the class {} of \"{script}\" yet; the deploy that creates it may still run, or it was deployed with --containers-rollout=none",
                namespace.class
            )
        })?;
        let settings = application.settings()?;
        let image = application.image().map(str::to_owned);
        let limits = instance_limits(application.limits());
        let largest = if application.is_managed() {
            instance_limits(InstanceType::Standard4.limits())
        } else {
            limits.clone()
        };
        let node = &self.config.node;
        let deployments = self.store.deployments(script, 2).map_err(fault)?;
        // Also those of the version before: while a deploy is under way, its workerd still serves.
        let mut named_images = Vec::new();
        for deployment in &deployments {
            let version = self.store.version(&deployment.version).map_err(fault)?;
            let images = version
                .as_ref()
                .and_then(|v| v.named_images(&namespace.class));
            named_images.extend(images.into_iter().flat_map(|i| i.values().cloned()));
        }
        let deployment = deployments.into_iter().next().map(|d| d.id);
        let variables = [
            ("CLOUDFLARE_APPLICATION_ID", application.id.clone()),
            ("CLOUDFLARE_COUNTRY_A2", node.country.clone()),
            ("CLOUDFLARE_DEPLOYMENT_ID", deployment.unwrap_or_default()),
            ("CLOUDFLARE_DURABLE_OBJECT_ID", object_id.to_owned()),
            ("CLOUDFLARE_LOCATION", node.location.clone()),
            ("CLOUDFLARE_REGION", node.region.clone()),
        ];
        Ok(ApplicationInfo {
            id: application.id.clone(),
            name: application.name.clone(),
            image,
            named_images,
            limits,
            largest,
            max_instances: application.max_instances,
            min_instances: min_instances(&application),
            isolation: settings.isolation,
            no_new_privileges: settings.no_new_privileges,
            variables: variables.map(|(k, v)| (k.to_owned(), v)).to_vec(),
        })
    }
}

/// A size as the engine holds an instance to it.
fn instance_limits(limits: wharf_model::Limits) -> wharf_engine::Limits {
    wharf_engine::Limits {
        memory_bytes: Some(limits.memory_mib << 20),
        cpu_millis: Some(wharf_docker_api::script::cpu_millis(limits.vcpu)),
        pids: Some(PIDS_PER_INSTANCE),
        nofile: None,
        disk_bytes: Some(wharf_docker_api::script::disk_bytes(limits.disk_mb)),
    }
}

/// Processes and threads that one instance may have: enough for a JVM or Chromium, too few for a fork bomb to hurt the node.
const PIDS_PER_INSTANCE: u64 = 4096;

/// Serves the operator's socket until `stop`.
pub(super) fn operator(
    node: &Node,
    spawner: &Spawner,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let builder = wharf_build::Builder::new(
        node.images.clone(),
        spawner.clone(),
        node.networks.clone(),
        node.config.data_dir.join("build"),
    );
    let store = node.store.clone();
    let check_password = Arc::new(move |password: &str| store.registry_token(password).is_some());
    let docker = wharf_docker_api::operator::router(Operator {
        engine: node.engine.clone(),
        networks: node.networks.clone(),
        images: node.images.clone(),
        snapshots: node.snapshots.clone(),
        builder,
        check_password,
        registry_host: node.config.control.listen.to_string(),
    });
    let router = axum::Router::new()
        .route("/wharf/status", get(status::status))
        .route("/wharf/env", get(status::environment))
        .with_state(node.clone())
        .fallback_service(docker);
    let listener = bind_unix(&node.config.socket(), 0o600, None)?;
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
                    socket: lease.socket.clone(),
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
