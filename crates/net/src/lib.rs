//! The network of one container: a namespace with only loopback in it, whose traffic the daemon carries.
//!
//! Owns: the pool of prepared namespaces, the ingress listener that workerd dials, the outbound relay and the DNS answerer, and the policy.
//! Must not: start processes, know of images or scripts.
//!
//! Inbound: workerd sends `CONNECT 127.0.0.1:<port>` to the ingress (contract: workerd, 1.5); the daemon opens a socket inside the namespace
//! and carries the bytes. While the container's process lives but does not listen yet, the connection is *held*. Outbound: everything is redirected inside
//! the namespace to a listener of the daemon, which dials outside after policy.

pub mod pool;

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a container may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Outbound TCP and DNS are allowed.
    pub internet: bool,
}

/// What the ingress knows of the process behind it; set by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Not started yet: connections are held.
    Pending,
    /// Runs: connections are held until the port listens, within the bound.
    Running,
    /// Has ended: connections are refused at once.
    Ended,
}

/// The shared settings of all networks.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// How many namespaces are kept ready.
    pub pool_size: usize,
    /// How long the ingress holds a connection to a port that does not listen, milliseconds.
    pub hold_ms: u64,
    /// Upstream DNS servers; empty means those of the host's /etc/resolv.conf.
    pub dns_servers: Vec<SocketAddr>,
    /// Whether private, loopback, link-local and metadata addresses of the host's networks may be reached from containers. Default false. RUN steps of builds use the same rule
    /// (but see [`Network::allow_resolved_private`]).
    pub allow_private: bool,
}

/// Makes networks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Networks {}

/// One network. Cheap to clone; the namespace and its listeners end when the last clone and the last process in it are gone.
#[derive(Debug, Clone)]
pub struct Network {}

/// Network errors.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl Networks {
    /// Starts the pool.
    pub fn new(config: NetConfig) -> Self {
        let _ = config;
        todo!()
    }

    /// A network from the pool (made on the spot if the pool is empty), with the default-deny policy.
    pub async fn create(&self) -> Result<Network, NetError> {
        todo!()
    }

    /// The network of a process that an earlier daemon started: its listeners are opened anew. The ingress tries to take the same port, so that
    /// workerd processes that survived find it.
    pub async fn adopt(&self, pid: i32, ingress: SocketAddr) -> Result<Network, NetError> {
        let _ = (pid, ingress);
        todo!()
    }
}

impl Network {
    /// A duplicate of the namespace's descriptor, for the spawner.
    pub fn namespace(&self) -> Result<OwnedFd, NetError> {
        todo!()
    }

    /// Where workerd's CONNECT, `PUT /egress` and `GET /ca` go: on 127.0.0.1 of the host.
    pub fn ingress(&self) -> SocketAddr {
        todo!()
    }

    /// Sets the policy (also what `PUT /egress` does).
    pub fn set_policy(&self, policy: Policy) {
        let _ = policy;
        todo!()
    }

    /// Tells the ingress what is behind it.
    pub fn set_target(&self, target: Target) {
        let _ = target;
        todo!()
    }

    /// /etc/resolv.conf for the container.
    pub fn resolv_conf(&self) -> String {
        todo!()
    }

    /// A connection to a port inside (127.0.0.1, then ::1), not held.
    pub async fn dial(&self, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        let _ = port;
        todo!()
    }
}

/// Keeps the borrow type in the public interface of [`pool`].
pub(crate) type Fd<'a> = BorrowedFd<'a>;
