//! One node: starts every part in order, serves until it is told to stop, and ends every part in the
//! reverse order.
//!
//! Owns: the order of start and stop. Must not: decide anything; `wharf_node` does.
//!
//! Start: lock, store, images, spawner (with what an earlier daemon left), workerd of an earlier
//! daemon ended, engine (adopts its containers), sockets bound, scripts started, schedules armed,
//! gateway opened.

mod descriptors;
mod effects;
mod parts;
mod setup;
mod sockets;
mod status;
mod stopping;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use wharf_engine::Engine;
use wharf_image::ImageStore;
use wharf_net::Networks;
use wharf_node::addresses::Addresses;
use wharf_node::{Node, Standbys, StoredApplications, housekeeping, schedule};
use wharf_sandbox::{Spawner, Survivor};
use wharf_snapshot::Snapshots;
use wharf_store::Store;
use wharf_workerd::Supervisor;

use self::stopping::Stopping;
use crate::config::Config;

/// What the handlers of this executable's sockets share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Daemon {
    config: Arc<Config>,
    networks: Networks,
    node: Node,
}

impl Daemon {
    /// URL of a script behind the gateway.
    fn url(&self, script: &str) -> String {
        script_url(&self.config).replace("{script}", script)
    }
}

fn script_url(config: &Config) -> String {
    let base = config
        .gateway
        .base_domains
        .first()
        .map_or("localhost", String::as_str);
    match config.gateway.listen.port() {
        80 => format!("http://{{script}}.{base}"),
        port => format!("http://{{script}}.{base}:{port}"),
    }
}

/// Runs a node until SIGINT or SIGTERM.
pub(crate) async fn up(mut config: Config) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!(
            "`wharf up` must run as root: it makes namespaces, mounts and cgroups; try `sudo wharf up`"
        );
    }
    log();
    if let Err(error) = descriptors::reserve(std::io::stderr()) {
        tracing::debug!(%error, "the table of descriptors grows when it is full");
    }
    setup::raise_descriptors();
    setup::prepare_directories(&config)?;
    let _lock = setup::lock(&config.run_dir())?;
    let opened = Opened::open(&mut config).await?;
    let run_dir = config.run_dir();
    let (spawner, survivors) = Spawner::start(parts::spawner_config(&config)?).await?;
    let stopping = Stopping::new();
    // From here on, a failure must not leave the spawner behind.
    let served = serve(config, opened, &spawner, survivors, stopping).await;
    let ended = spawner.shutdown().await;
    if let Err(e) = std::fs::remove_dir_all(&run_dir) {
        tracing::warn!("{} is left behind: {e}", run_dir.display());
    }
    served.and(ended.map_err(anyhow::Error::from))
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WHARF_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,wharf=info,worker=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
}

/// What is opened before the spawner is started, so that a failure leaves nothing behind.
struct Opened {
    store: Store,
    images: ImageStore,
    snapshots: Snapshots,
    workerd: PathBuf,
    gateway: TcpListener,
    control: TcpListener,
}

impl Opened {
    /// Writes into the configuration which ports were found where any would do.
    async fn open(config: &mut Config) -> anyhow::Result<Opened> {
        let workerd = setup::workerd_binary(config)?;
        // Ports first: a busy one should fail before anything else was started.
        let setting = "--listen or gateway.listen";
        let gateway = setup::bind(config.gateway.listen, "gateway", setting).await?;
        let setting = "--control-listen or control.listen";
        let control = setup::bind(config.control.listen, "control API", setting).await?;
        config.gateway.listen = gateway.local_addr()?;
        config.control.listen = control.local_addr()?;

        let data = &config.data_dir;
        let store =
            Store::open(data).with_context(|| format!("the store in {}", data.display()))?;
        let images = ImageStore::open(&data.join("images"))?;
        let kept = parts::snapshot_config(config);
        let snapshots = Snapshots::open(&data.join("snapshots"), kept)?;
        let port = config.control.listen.port();
        let mut hosts = vec![
            config.control.listen.to_string(),
            format!("localhost:{port}"),
            format!("127.0.0.1:{port}"),
        ];
        hosts.dedup();
        images.set_registry_hosts(&hosts);
        Ok(Opened {
            store,
            images,
            snapshots,
            workerd,
            gateway,
            control,
        })
    }
}

/// What an earlier daemon left running.
struct Survivors {
    instances: Vec<Survivor>,
    workers: Vec<Survivor>,
}

impl Survivors {
    /// Ends what nobody waits for any more: RUN steps of builds.
    async fn sort(all: Vec<Survivor>, spawner: &Spawner) -> anyhow::Result<Survivors> {
        let is_instance = |s: &Survivor| wharf_engine::owns(&s.label);
        let (instances, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_instance);
        let is_worker = |s: &Survivor| Supervisor::owns(&s.label);
        let (workers, others): (Vec<_>, Vec<_>) = others.into_iter().partition(is_worker);
        for survivor in &others {
            spawner.kill(&survivor.process.id).await?;
            spawner.wait(&survivor.process.id).await?;
            spawner.forget(&survivor.process.id).await?;
        }
        Ok(Survivors { instances, workers })
    }
}

async fn serve(
    config: Config,
    opened: Opened,
    spawner: &Spawner,
    survivors: Vec<Survivor>,
    stopping: Stopping,
) -> anyhow::Result<()> {
    let survivors = Survivors::sort(survivors, spawner).await?;
    let is_running = |s: &&Survivor| s.exit.is_none();
    let adopted = survivors.instances.iter().filter(is_running).count();
    let (daemon, gateway, control) = start(config, opened, spawner, survivors).await?;
    let operator = sockets::operator(&daemon, spawner, stopping.wait())?;
    let control = tokio::spawn(
        axum::serve(control, effects::control_router(&daemon))
            .with_graceful_shutdown(stopping.wait())
            .into_future(),
    );
    let background = [
        tokio::spawn(schedule::run(daemon.node.clone())),
        tokio::spawn(housekeeping::run(daemon.node.clone())),
    ];
    warn(&daemon);
    announce(&daemon, adopted)?;

    let gateway_config = parts::gateway_config(&daemon.config);
    let upstreams = Arc::new(sockets::Workers(daemon.node.clone()));
    let served = wharf_gateway::serve(gateway, gateway_config, upstreams, stopping.wait()).await;
    eprintln!("wharf: stopping");
    background.iter().for_each(JoinHandle::abort);
    daemon.node.stop().await;
    control.abort();
    operator.abort();
    served.context("the gateway failed")
}

/// Starts the parts, and everything that is deployed.
async fn start(
    config: Config,
    opened: Opened,
    spawner: &Spawner,
    survivors: Survivors,
) -> anyhow::Result<(Daemon, TcpListener, TcpListener)> {
    let (gateway, control) = (opened.gateway, opened.control);
    let (store, images, snapshots) = (opened.store, opened.images, opened.snapshots);
    let config = Arc::new(config);
    let networks = Networks::new(parts::net_config(&config));
    let engine = Engine::start(
        parts::engine_config(&config)?,
        spawner.clone(),
        survivors.instances,
        images.clone(),
        networks.clone(),
    )
    .await?;
    let applications = |observer| {
        let region = parts::region(&config);
        Arc::new(StoredApplications::new(region, store.clone(), observer))
    };
    let budget = config.containers.standby_mib.map(|mib| mib << 20);
    let standbys = Standbys::new(engine.clone(), applications(None), budget);
    let sockets = sockets::ScriptSockets {
        store: store.clone(),
        engine: engine.clone(),
        networks: networks.clone(),
        snapshots: snapshots.clone(),
        applications: applications(Some(Arc::new(standbys.clone()))),
    };
    let supervisor = Supervisor::new(
        parts::workerd_config(&config, opened.workerd),
        spawner.clone(),
        networks.clone(),
        Arc::new(sockets),
    );
    supervisor.reap(survivors.workers).await;
    let node = Node {
        addresses: Addresses::load(&store)?,
        schedules: Arc::default(),
        store,
        images,
        snapshots,
        engine,
        supervisor,
        standbys,
    };
    node.run_all()?;
    let daemon = Daemon {
        config,
        networks,
        node,
    };
    Ok((daemon, gateway, control))
}

/// Says which walls this machine does not give.
fn warn(daemon: &Daemon) {
    if let Some(warning) = wharf_sandbox::cgroup::describe().warning() {
        tracing::warn!("{warning}");
    }
    if let Some(reason) = daemon.node.engine.disks_unsupported() {
        tracing::warn!(
            "this machine does not hold instances to their disk_mb: {reason}; until that is mended, containers can fill the disk of {}",
            daemon.config.data_dir.display()
        );
    }
    if daemon.config.containers.ids().is_none() {
        tracing::warn!(
            "containers.user_namespaces is false: root in a container is the host's root, held by nothing but the other walls"
        );
    }
}

/// Says where the node serves; at the first start also the token, once.
fn announce(daemon: &Daemon, adopted: usize) -> anyhow::Result<()> {
    let data = &daemon.config.data_dir;
    let path = data.join("token");
    let keep = |token: &str| {
        setup::write_private(&path, token.as_bytes()).map_err(|source| {
            wharf_store::StoreError::Io {
                what: "cannot write",
                path: path.clone(),
                source,
            }
        })
    };
    if let Some(token) = daemon.node.store.first_token(keep)? {
        eprintln!(
            "wharf: first API token (shown once, kept in {}): {token}",
            path.display()
        );
    }
    if adopted > 0 {
        eprintln!("wharf: {adopted} running containers adopted");
    }
    let flag = if *data == Config::default().data_dir {
        String::new()
    } else {
        format!(" --data-dir {}", data.display())
    };
    eprintln!(
        "wharf: gateway on http://{}, control API and registry on http://{}\nwharf: deploy with `wharf{flag} wrangler deploy`, or: eval \"$(wharf{flag} env)\" && npx wrangler deploy",
        daemon.config.gateway.listen, daemon.config.control.listen
    );
    Ok(())
}
