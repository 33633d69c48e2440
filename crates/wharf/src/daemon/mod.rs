//! One node: starts every part in order, serves until it is told to stop, and ends every part in the reverse order.
//!
//! Owns: the order of start and stop, the lock on the data directory. Must not: decide anything that a part can decide.
//!
//! Start: lock, store, images, spawner (with what an earlier daemon left), workerd of an earlier daemon ended, engine (adopts its
//! containers), sockets bound, scripts started, schedules armed, gateway opened.

mod addresses;
mod descriptors;
mod effects;
mod housekeeping;
mod schedule;
mod sockets;
mod status;

use crate::config::{Config, Microvm};
use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use wharf_docker_api::script::standby::Standbys;
use wharf_engine::isolation::MicrovmConfig;
use wharf_engine::{Engine, EngineConfig};
use wharf_image::ImageStore;
use wharf_net::{NetConfig, Networks};
use wharf_sandbox::{Spawner, SpawnerConfig, Survivor};
use wharf_snapshot::Snapshots;
use wharf_store::Store;
use wharf_workerd::{Supervisor, WorkerdConfig};

/// The parts that requests are answered from. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Store,
    pub(crate) images: ImageStore,
    pub(crate) snapshots: Snapshots,
    pub(crate) networks: Networks,
    pub(crate) engine: Engine,
    pub(crate) supervisor: Supervisor,
    pub(crate) standbys: Standbys,
    pub(crate) addresses: addresses::Addresses,
    /// Told when scripts or their schedules change.
    pub(crate) schedules: Arc<tokio::sync::Notify>,
}

impl Node {
    /// URL of a script behind the gateway.
    pub(crate) fn url(&self, script: &str) -> String {
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
    let filter = tracing_subscriber::EnvFilter::try_from_env("WHARF_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,wharf=info,worker=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    if let Err(error) = descriptors::reserve(std::io::stderr()) {
        tracing::debug!(%error, "the table of descriptors grows when it is full");
    }

    raise_descriptors();
    prepare_directories(&config)?;
    let _lock = lock(&config.run_dir())?;
    let binary = workerd_binary(&config)?;
    // Ports first: a busy one should fail before anything else was started.
    let gateway = bind(
        config.gateway.listen,
        "gateway",
        "--listen or gateway.listen",
    )
    .await?;
    let control = bind(
        config.control.listen,
        "control API",
        "--control-listen or control.listen",
    )
    .await?;

    config.gateway.listen = gateway.local_addr()?;
    config.control.listen = control.local_addr()?;

    let data = config.data_dir.clone();
    let store = Store::open(&data).with_context(|| format!("the store in {}", data.display()))?;
    let images = ImageStore::open(&data.join("images"))?;
    let snapshots = Snapshots::open(&data.join("snapshots"), snapshot_config(&config))?;
    let port = config.control.listen.port();
    let mut hosts = vec![
        config.control.listen.to_string(),
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
    ];
    hosts.dedup();
    images.set_registry_hosts(&hosts);

    let (spawner, survivors) = Spawner::start(spawner_config(&config)?).await?;
    let stopping = Stopping::new();
    // From here on, a failure must not leave the spawner behind.
    let opened = Opened {
        store,
        images,
        snapshots,
        workerd: binary,
        gateway,
        control,
    };
    let served = serve(config, opened, &spawner, survivors, stopping).await;
    let ended = spawner.shutdown().await;
    if let Err(e) = std::fs::remove_dir_all(data.join("run")) {
        tracing::warn!("{} is left behind: {e}", data.join("run").display());
    }
    served.and(ended.map_err(anyhow::Error::from))
}

/// Set once, when the process is asked to stop.
struct Stopping(watch::Receiver<bool>);

impl Stopping {
    fn new() -> Self {
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let (mut int, mut term) = match (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
            ) {
                (Ok(int), Ok(term)) => (int, term),
                (Err(e), _) | (_, Err(e)) => {
                    tracing::error!("signals can't be received: {e}");
                    return;
                }
            };
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            // The receiver lives as long as the daemon serves.
            let _ = sender.send(true);
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            eprintln!(
                "wharf: stopping already; send SIGKILL to give up (the next start cleans up)"
            );
        });
        Stopping(receiver)
    }

    fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.0.clone();
        async move {
            // An error means that the signal task is gone: then only SIGKILL ends the daemon, as it would have anyway.
            if receiver.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What was opened before the spawner was started, so that a failure left nothing behind.
struct Opened {
    store: Store,
    images: ImageStore,
    snapshots: Snapshots,
    workerd: PathBuf,
    gateway: TcpListener,
    control: TcpListener,
}

async fn serve(
    config: Config,
    opened: Opened,
    spawner: &Spawner,
    survivors: Vec<Survivor>,
    stopping: Stopping,
) -> anyhow::Result<()> {
    let Opened {
        store,
        images,
        snapshots,
        workerd,
        gateway,
        control,
    } = opened;
    let config = Arc::new(config);
    let networks = Networks::new(NetConfig {
        pool_size: config.network.pool_size,
        hold_ms: config.network.hold_ms,
        dns_servers: config.network.dns_servers.clone(),
        allow_private: config.network.allow_private,
    });
    let (instances, others): (Vec<_>, Vec<_>) = survivors
        .into_iter()
        .partition(|s| wharf_engine::owns(&s.label));
    let (workers, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|s| Supervisor::owns(&s.label));
    // RUN steps of an earlier daemon: nobody waits for them any more.
    for survivor in &others {
        spawner.kill(&survivor.process.id).await?;
        spawner.wait(&survivor.process.id).await?;
        spawner.forget(&survivor.process.id).await?;
    }
    let adopted = instances.iter().filter(|s| s.exit.is_none()).count();
    let engine = Engine::start(
        EngineConfig {
            dir: config.data_dir.join("instances"),
            log_bytes: config.containers.log_bytes,
            stop_grace_ms: config.containers.stop_grace_ms,
            adopt_idle_ms: config.containers.orphan_grace_ms,
            bandwidth_per_cpu: config.network.bytes_per_vcpu(),
            isolation: config.containers.isolation,
            preloads: config.containers.preloads,
            microvm: MicrovmConfig {
                agent: std::env::current_exe().context("finding wharf's own executable")?,
                kernel_root: match &config.containers.guest_kernel {
                    Some(root) => root.clone(),
                    None => config.guest_dir().join(wharf_microvm::package::LINK),
                },
                directory: config.guest_dir(),
                kvm: config.containers.microvm == Microvm::Kvm,
            },
        },
        spawner.clone(),
        instances,
        images.clone(),
        networks.clone(),
    )
    .await?;
    let standbys = sockets::standbys(&config, &store, &engine);
    let docker_sockets = Arc::new(sockets::ScriptSockets::new(
        config.clone(),
        store.clone(),
        engine.clone(),
        networks.clone(),
        snapshots.clone(),
        standbys.clone(),
    ));
    let supervisor = Supervisor::new(
        WorkerdConfig {
            uid_base: config.workerd.uid_base,
            drain_ms: config.workerd.drain_ms,
            memory_bytes: Some(config.workerd.memory_mib << 20),
            allow_private: config.network.allow_private,
            cpu_millis: Some(config.workerd.cpu_millis),
            watchdog_ms: config.workerd.watchdog_ms,
            ..WorkerdConfig::new(
                workerd,
                config.run_dir().join("w"),
                config.data_dir.join("scripts"),
            )
        },
        spawner.clone(),
        networks.clone(),
        docker_sockets,
    );
    supervisor.reap(workers).await;
    let addresses = addresses::Addresses::load(&store)?;
    let node = Node {
        config: config.clone(),
        store: store.clone(),
        images: images.clone(),
        snapshots,
        networks: networks.clone(),
        engine: engine.clone(),
        supervisor: supervisor.clone(),
        standbys: standbys.clone(),
        addresses,
        schedules: Arc::new(tokio::sync::Notify::new()),
    };
    let mut scripts = Vec::new();
    for script in store.scripts()? {
        if let Some(desired) = effects::desired(&store, &script.name)? {
            scripts.push((script.name, desired));
        }
    }
    supervisor.set_all(scripts);
    for application in store.applications()? {
        engine.expect_disks(wharf_docker_api::script::disk_bytes(
            application.limits().disk_mb,
        ));
        if let Some(kept) = sockets::kept(&store, &application)? {
            standbys.application(kept);
        }
    }
    let operator = sockets::operator(&node, spawner, stopping.wait())?;
    let control_task = tokio::spawn(
        axum::serve(control, effects::control_router(&node))
            .with_graceful_shutdown(stopping.wait())
            .into_future(),
    );
    let cron_task = tokio::spawn(schedule::run(node.clone()));
    let housekeeping = tokio::spawn(housekeeping::run(node.clone()));
    if let Some(warning) = wharf_sandbox::cgroup::describe().warning() {
        tracing::warn!("{warning}");
    }
    if let Some(reason) = engine.disks_unsupported() {
        tracing::warn!(
            "this machine does not hold instances to their disk_mb: {reason}; until that is mended, containers can fill the disk of {}",
            config.data_dir.display()
        );
    }
    if config.containers.ids().is_none() {
        tracing::warn!(
            "containers.user_namespaces is false: root in a container is the host's root, held by nothing but the other walls"
        );
    }
    announce(&node, adopted)?;

    let upstreams = Arc::new(sockets::Workers(node.clone()));
    let served =
        wharf_gateway::serve(gateway, gateway_config(&config), upstreams, stopping.wait()).await;
    eprintln!("wharf: stopping");
    cron_task.abort();
    housekeeping.abort();
    standbys.stop().await;
    supervisor.shutdown().await;
    engine.remove_all(None).await;
    control_task.abort();
    operator.abort();
    served.context("the gateway failed")
}

fn snapshot_config(config: &Config) -> wharf_snapshot::SnapshotConfig {
    let config = &config.snapshots;
    wharf_snapshot::SnapshotConfig {
        max_bytes: config.max_mib << 20,
        owner_bytes: config.script_mib << 20,
        ttl_ms: config.ttl_hours.saturating_mul(3_600_000),
        offer_ms: 120_000,
    }
}

/// Whether descriptors are left for one more connection from outside. The last eighth is for what
/// those that exist need within the node, and for its own work.
fn has_room_for_connections() -> bool {
    wharf_engine::resources::own_descriptors()
        .is_ok_and(|(used, limit)| used.saturating_add((limit / 8).min(2048)) <= limit)
}

/// As many descriptors as the system allows: the usual first limit, 1024, is for programs that use
/// select(2).
fn raise_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        ..limits
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn gateway_config(config: &Config) -> wharf_gateway::GatewayConfig {
    wharf_gateway::GatewayConfig {
        base_domains: config.gateway.base_domains.clone(),
        dev: config.gateway.dev,
        max_header_bytes: config.gateway.max_header_bytes,
        idle_timeout_ms: config.gateway.idle_timeout_ms,
        max_connections: config.gateway.max_connections,
        has_room: has_room_for_connections,
        strip_headers: vec![http::HeaderName::from_static(wharf_workerd::CF_BLOB_HEADER)],
    }
}

/// Says where the node serves; at the first start also the token, once.
fn announce(node: &Node, adopted: usize) -> anyhow::Result<()> {
    let data = &node.config.data_dir;
    let path = data.join("token");
    let keep = |token: &str| {
        write_private(&path, token.as_bytes()).map_err(|source| wharf_store::StoreError::Io {
            what: "cannot write",
            path: path.clone(),
            source,
        })
    };
    if let Some(token) = node.store.first_token(keep)? {
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
        node.config.gateway.listen, node.config.control.listen
    );
    Ok(())
}

fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn prepare_directories(config: &Config) -> anyhow::Result<()> {
    let data = &config.data_dir;
    let make = |dir: &Path, mode: u32| -> anyhow::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .with_context(|| format!("the directory {} can't be made", dir.display()))
    };
    // Who runs wrangler must be able to pass through to bin/docker.
    make(data, 0o711)?;
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o711))?;
    make(&config.run_dir(), 0o711)?;
    make(&config.run_dir().join("w"), 0o700)?;
    make(&data.join("scripts"), 0o700)?;
    make(&data.join("bin"), 0o755)?;
    // What steps of builds left, which may be set-user-id programs of the host's root. Also where it was made open once.
    let build = data.join("build");
    make(&build, 0o700)?;
    std::fs::set_permissions(&build, std::fs::Permissions::from_mode(0o700))?;
    let longest = config.run_dir().join("w/99999/docker.sock");
    if longest.as_os_str().len() > 100 {
        anyhow::bail!(
            "the data directory's path is too long for Unix sockets ({} would have {} bytes, 108 is the system's limit); choose a shorter --data-dir",
            longest.display(),
            longest.as_os_str().len()
        );
    }
    let link = data.join("bin/docker");
    let executable = std::env::current_exe()?;
    if std::fs::read_link(&link).ok().as_ref() != Some(&executable) {
        let fresh = data.join("bin/.docker");
        let _ = std::fs::remove_file(&fresh);
        std::os::unix::fs::symlink(&executable, &fresh)?;
        std::fs::rename(&fresh, &link)?;
    }
    Ok(())
}

/// One daemon per data directory.
fn lock(run_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = run_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow::anyhow!("another `wharf up` runs with the data directory of {}; stop it, or choose another --data-dir", path.display())
    })?;
    Ok(file)
}

async fn bind(
    address: std::net::SocketAddr,
    what: &str,
    setting: &str,
) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "the {what}'s address {address} is in use; stop what listens there (`ss -ltnp`), or choose another with {setting}"
        ),
        _ => anyhow::anyhow!("the {what} can't listen on {address}: {e}; choose another with {setting}"),
    })
}

fn spawner_config(config: &Config) -> anyhow::Result<SpawnerConfig> {
    use sha2::Digest;
    let hash = hex::encode(sha2::Sha256::digest(
        config.data_dir.as_os_str().as_encoded_bytes(),
    ));
    let executable = std::env::current_exe()?;
    let executable = executable.to_str().ok_or_else(|| {
        anyhow::anyhow!(
            "the path of this executable is not UTF-8: {}",
            executable.display()
        )
    })?;
    Ok(SpawnerConfig {
        socket: config.run_dir().join("spawner.sock"),
        command: vec![executable.to_owned(), crate::SPAWNER_VERB.to_owned()],
        grace_ms: config.containers.orphan_grace_ms,
        cgroup_name: format!("wharf-{}", &hash[..8]),
        ids: config.containers.ids(),
    })
}

/// The pinned workerd: configured, in WHARF_WORKERD, beside this executable, where `cargo xtask setup` puts it, or in PATH.
fn workerd_binary(config: &Config) -> anyhow::Result<PathBuf> {
    let mut tried = Vec::new();
    tried.extend(config.workerd.binary.clone());
    tried.extend(std::env::var_os("WHARF_WORKERD").map(PathBuf::from));
    if tried.is_empty() {
        let executable = std::env::current_exe()?;
        for dir in executable.ancestors().skip(1).take(2) {
            tried.push(dir.join("workerd"));
            tried.push(dir.join("tools/workerd"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        tried.extend(std::env::split_paths(&path).map(|d| d.join("workerd")));
    }
    match tried.iter().find(|p| p.is_file()) {
        Some(found) => own_copy(&found.canonicalize()?, &config.data_dir.join("bin/workerd")),
        None => anyhow::bail!(
            "no workerd: run `cargo xtask setup`, or name the executable in workerd.binary or WHARF_WORKERD (looked in {})",
            tried
                .iter()
                .take(4)
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// Links (or copies) workerd into the data directory: a node keeps its workerd when the folder changes where it was installed.
fn own_copy(source: &Path, own: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let describe = |path: &Path| -> std::io::Result<(u64, i64)> {
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.len(), metadata.mtime()))
    };
    let wanted = describe(source).with_context(|| source.display().to_string())?;
    if describe(own).is_ok_and(|found| found == wanted) {
        return Ok(own.to_owned());
    }
    let fresh = own.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    if std::fs::hard_link(source, &fresh).is_err() {
        let file = std::fs::File::create(&fresh)?;
        std::io::copy(&mut std::fs::File::open(source)?, &mut &file)
            .with_context(|| format!("copying {} to {}", source.display(), fresh.display()))?;
        let modified = std::fs::metadata(source)?.modified()?;
        file.set_modified(modified)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
    }
    std::fs::rename(&fresh, own)?;
    Ok(own.to_owned())
}

/// Binds a Unix socket, replacing a stale one.
pub(crate) fn bind_unix(
    path: &Path,
    mode: u32,
    owner: Option<u32>,
) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if let Some(uid) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(uid))?;
    }
    Ok(listener)
}
