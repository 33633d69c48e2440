//! The network of one container, or of one workerd process: a namespace with only loopback in it, whose traffic the daemon carries.
//!
//! Owns: the pool of prepared namespaces, the ingress listener that workerd dials, the outbound relay and the DNS answerer, and the policy.
//! Must not: start processes, know of images or scripts.
//!
//! The ingress of a Worker's container is inside the namespace of that Worker's workerd ([`door`]): nobody else can reach it. That of any other
//! container is on the host's loopback, for root.
//!
//! Inbound: workerd sends `CONNECT 127.0.0.1:<port>` to the ingress (contract: workerd, 1.5); the daemon opens a socket inside the namespace
//! and carries the bytes. While the container's process lives but does not listen yet, the connection is *held*. Outbound: everything is redirected inside
//! the namespace to a listener of the daemon, which dials outside after policy, or asks workerd if the Worker has mappings ([`egress`]).
//!
//! Who holds what: [`Network`] is the only thing that keeps a network going. Its tasks hold the shared state and end by a token that
//! the last clone cancels when it is dropped; the state, and with it the last descriptors, goes with the last task.

mod bandwidth;
mod ca;
mod dns;
mod door;
mod egress;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod ingress;
mod inside;
mod outbound;
mod peer;
mod pool;
mod ports;
mod publish;
mod pulse;
pub mod ranges;
mod relay;
mod succession;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use wharf_sandbox::netns;

use self::bandwidth::Bandwidth;
pub use self::ca::{Ca, CaKey};
pub use self::egress::Egress;
use self::inside::Inside;
pub use self::outbound::{Dial, Direct};
use self::pool::{Pool, Prepared};
pub use self::succession::NotEmpty;
use self::succession::Succession;

/// What the container's /etc/resolv.conf names. Nothing has this address; as all queries, those to it are redirected.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 88, 71, 1);

/// What a container may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Outbound TCP and DNS are allowed.
    pub internet: bool,
}

/// What the ingress knows of the process behind it; set by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Not started yet: connections are held, within the bound.
    Pending,
    /// Runs since then: connections are held until the port listens, within the bound, which counts from that time.
    Running(Instant),
    /// Has ended: connections are refused at once. The text says how, for people ("exit code 1").
    Ended(Arc<str>),
}

/// The shared settings of all networks.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// How many namespaces are kept ready.
    pub pool_size: usize,
    /// How long after the start of its process the ingress holds connections to a port that does not listen, milliseconds. Within the first
    /// minute, later ones are held for a moment too.
    pub hold_ms: u64,
    /// Upstream DNS servers; empty means those of the host's /etc/resolv.conf.
    pub dns_servers: Vec<SocketAddr>,
    /// Whether private, link-local and metadata addresses, and the host's own, may be reached from containers. Default false.
    /// RUN steps of builds and workerd use the same rule. The host's loopback can never be reached, and DNS servers always.
    pub allow_private: bool,
}

/// Makes networks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Networks {
    config: Arc<Config>,
    pool: Arc<Pool>,
    worker: Option<Network>,
}

/// One network. Cheap to clone; the namespace and its listeners end when the last clone and the last process in it are gone.
/// Connections that are being carried are reset then.
#[derive(Debug, Clone)]
pub struct Network {
    handle: Arc<Handle>,
}

/// Network errors.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: io::Error,
    },
    /// The network's certificate authority could not be made.
    #[error("making a certificate authority: {0}")]
    Ca(#[from] rcgen::Error),
}

impl NetError {
    fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            context: context.into(),
            source,
        }
    }
}

#[derive(Debug)]
struct Config {
    hold: Duration,
    allow_private: bool,
    upstreams: dns::Upstreams,
    dialer: Arc<dyn Dial>,
    ipv6: bool,
    ports: ports::Ports,
    pulse: pulse::Pulse,
}

/// What a network's tasks share.
#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    inside: Arc<Inside>,
    ca: Mutex<Arc<Ca>>,
    leaves: egress::tls::Leaves,
    policy: watch::Sender<Policy>,
    bandwidth: Bandwidth,
    egress: watch::Sender<Egress>,
    target: watch::Sender<Target>,
    lookouts: ingress::Lookouts,
    door: door::Door,
    /// Whether there is an IPv6 route inside.
    ipv6: AtomicBool,
    succession: Succession,
    sys: Mutex<Option<OwnedFd>>,
    ended: CancellationToken,
}

/// Ends the tasks when the last clone is gone.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.ended.cancel();
    }
}

impl Shared {
    fn ca(&self) -> Arc<Ca> {
        self.ca
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Runs a task until it or the network ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.ended.clone().run_until_cancelled_owned(task));
    }
}

impl Networks {
    /// Starts the pool. Connections outside are made from the daemon's own network.
    pub fn new(config: NetConfig) -> Self {
        Self::with_dialer(config, Arc::new(Direct))
    }

    /// Like [`Networks::new`], with outbound connections made by `dialer` once policy has allowed them.
    pub fn with_dialer(config: NetConfig, dialer: Arc<dyn Dial>) -> Self {
        let ipv6 = dialer.ipv6();
        Self {
            config: Arc::new(Config {
                hold: Duration::from_millis(config.hold_ms),
                allow_private: config.allow_private,
                upstreams: dns::Upstreams::new(config.dns_servers),
                dialer,
                ipv6,
                ports: ports::Ports::new(),
                pulse: pulse::Pulse::default(),
            }),
            pool: Arc::new(Pool::new(config.pool_size, ipv6)),
            worker: None,
        }
    }

    /// The same, for the workerd process in the network `worker`: the ingress of what it makes or claims is on the loopback in there, and so is
    /// what it listens on for the connections of its containers. Without, both are on the host's loopback, and only root can use an ingress.
    pub fn of_worker(&self, worker: Network) -> Self {
        Self {
            worker: Some(worker),
            ..self.clone()
        }
    }

    /// Takes over a network that somebody else has made (an adopted container's): its ingress moves to where [`Networks::of_worker`] says, at
    /// another port, and no longer is where it was. Of one that is there already, nothing changes.
    ///
    /// # Errors
    /// What the kernel refused, or that the process is gone.
    pub async fn claim(&self, network: &Network) -> Result<(), NetError> {
        door::open(&network.handle.0, self.worker.as_ref(), None).await
    }

    /// How many namespaces are ready.
    pub fn ready(&self) -> usize {
        self.pool.ready()
    }

    /// A network from the pool (made on the spot if the pool is empty), with the default-deny policy.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn create(&self) -> Result<Network, NetError> {
        let network = self.take().await?;
        door::open(&network.handle.0, self.worker.as_ref(), None).await?;
        Ok(network)
    }

    /// The same for a workerd process: there is nothing behind an ingress, so it has none. For [`Networks::of_worker`].
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn create_for_worker(&self) -> Result<Network, NetError> {
        let network = self.take().await?;
        drop(network.system_files()); // Its root has no /sys.
        Ok(network)
    }

    async fn take(&self) -> Result<Network, NetError> {
        let prepared = match self.pool.take() {
            Some(prepared) => prepared,
            None => {
                let ipv6 = self.config.ipv6;
                blocking(move || Prepared::create(ipv6)).await?
            }
        };
        self.start(prepared)
    }

    /// The network of a process that an earlier daemon started: its listeners are opened anew. The ingress is on the host's loopback until somebody
    /// claims it. It tries to take the same port, so that workerd processes that survived there find it; if somebody else has it, the ingress
    /// gets another one and a warning is logged. With port 0 it gets any.
    /// Policy and target start as with [`Networks::create`]: what may be reached, and what the Worker has mapped, must be said again. The
    /// certificate authority is that of `ca`, which the container may trust already ([`Ca::key`]); without it, a new one.
    ///
    /// # Errors
    /// No such process, one without a network of its own, or what the kernel refused.
    pub async fn adopt(
        &self,
        pid: i32,
        ingress: SocketAddr,
        ca: Option<CaKey>,
    ) -> Result<Network, NetError> {
        let prepared = blocking(move || {
            let namespace = netns::of_process(pid)
                .map_err(|e| NetError::io(format!("adopting the network of process {pid}"), e))?;
            Prepared::within(namespace, ca.as_ref())
        })
        .await?;
        let network = self.start(prepared)?;
        if let Err(error) = door::open(&network.handle.0, None, Some(ingress)).await {
            tracing::warn!(%error, pid, "a surviving workerd will not find this container until it starts it again");
            door::open(&network.handle.0, None, None).await?;
        }
        Ok(network)
    }

    fn start(&self, prepared: Prepared) -> Result<Network, NetError> {
        let registering = |e| NetError::io("serving a container's network", e);
        let sockets = prepared.sockets;
        let redirected = TcpListener::from_std(sockets.tcp).map_err(registering)?;
        let redirected = Arc::new(redirected);
        let dns = UdpSocket::from_std(sockets.dns).map_err(registering)?;
        let shared = Arc::new(Shared {
            config: self.config.clone(),
            inside: Arc::new(Inside::new(
                redirected.clone(),
                sockets.listeners,
                sockets.stock,
            )),
            ca: Mutex::new(Arc::new(prepared.ca)),
            leaves: egress::tls::Leaves::default(),
            policy: watch::Sender::new(Policy::default()),
            bandwidth: Bandwidth::default(),
            egress: watch::Sender::new(Egress::default()),
            target: watch::Sender::new(Target::Pending),
            lookouts: ingress::Lookouts::default(),
            door: door::Door::default(),
            ipv6: AtomicBool::new(self.config.ipv6),
            succession: Succession::default(),
            sys: Mutex::new(prepared.sys),
            ended: CancellationToken::new(),
        });
        shared.spawn(shared.inside.clone().keep_lean());
        shared.spawn(outbound::serve(shared.clone(), redirected));
        shared.spawn(dns::serve_udp(shared.clone(), dns));
        Ok(Network {
            handle: Arc::new(Handle(shared)),
        })
    }
}

impl Network {
    /// A descriptor of the namespace, for the spawner.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn namespace(&self) -> Result<OwnedFd, NetError> {
        self.shared()
            .inside
            .namespace()
            .map_err(|e| NetError::io("opening a container's network", e))
    }

    /// A mount of the namespace's sysfs, made with it: for who starts the first process there, as it can be attached but once.
    pub fn system_files(&self) -> Option<OwnedFd> {
        let shared = self.shared();
        let mut sys = shared.sys.lock().unwrap_or_else(PoisonError::into_inner);
        sys.take()
    }

    /// Where workerd's CONNECT, `PUT /egress` and `GET /ca` go: on 127.0.0.1, of the network of workerd's process if it has one, else of the
    /// host. Unspecified for a network without ingress.
    pub fn ingress(&self) -> SocketAddr {
        self.handle.0.door.address()
    }

    /// Sets the policy (also what `PUT /egress` does). Taking the internet away resets the connections to it.
    pub fn set_policy(&self, policy: Policy) {
        self.shared().policy.send_replace(policy);
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.shared().policy.borrow().clone()
    }

    /// Limits what the container sends, and as much what it receives, bytes a second over all its connections; `None`: no limit. What the daemon
    /// does not carry (DNS aside, what stays inside) is not counted.
    pub fn limit_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.shared().bandwidth.set(bytes_per_second);
    }

    /// What workerd has said in `PUT /egress`.
    pub fn egress(&self) -> Egress {
        self.shared().egress.borrow().clone()
    }

    /// The certificate authority that `GET /ca` shows.
    pub fn ca(&self) -> Arc<Ca> {
        self.shared().ca()
    }

    /// Tells the ingress what is behind it.
    pub fn set_target(&self, target: Target) {
        self.shared().target.send_replace(target);
    }

    /// Whether there is nothing behind the ingress any more.
    pub fn has_ended(&self) -> bool {
        matches!(*self.shared().target.borrow(), Target::Ended(_))
    }

    /// The TCP ports that the container listens on, at any address of its own; `None` if the kernel cannot say.
    pub fn listening(&self) -> Option<Vec<u16>> {
        let mut ports = self.shared().inside.listening()?;
        ports.retain(|port| *port != inside::OWN_PORT);
        Some(ports)
    }

    /// /etc/resolv.conf for the container.
    pub fn resolv_conf(&self) -> String {
        format!("nameserver {RESOLVER}\n")
    }

    /// A connection to a port inside (127.0.0.1, then ::1), not held.
    ///
    /// # Errors
    /// ConnectionRefused if nobody listens.
    pub async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        self.shared().inside.dial(port).await
    }

    /// What is behind its ingress now.
    fn shared(&self) -> Arc<Shared> {
        succession::current(&self.handle.0)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(NetError::io(
            "making a container's network",
            io::Error::other(e),
        ))
    })
}

/// A place among the connections that a listener may have at a time. Never closed, so there always is a permit in it.
type Slot = Arc<Option<OwnedSemaphorePermit>>;

/// Serves every connection of a listener in a task of its own, `most` at a time. Errors of accept are waited out: they are those of single
/// connections, or pass (no descriptors left).
async fn serve_each<F>(
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    most: usize,
    serve: impl Fn(Arc<Shared>, TcpStream, Slot) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let slot = Arc::new(slots.clone().acquire_owned().await.ok());
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        let served = serve(shared.clone(), stream, slot.clone());
        shared.spawn(async move {
            served.await;
            drop(slot);
        });
    }
}
