//! The HTTP front door: takes requests from clients and carries them to the workerd process of the right script.
//!
//! Owns: the client side of HTTP/1.1 (limits, headers that clients may not set, upgrades), routing by host, error pages.
//! Must not: start or stop anything; it asks [`Upstreams`] for a process and is told when one is ready.
//!
//! A request, step by step; any step may end it with an error page:
//!
//! ```text
//! accept -> head read (limits) -> host names a script -> headers cleaned -> acquire a process -> pooled or new connection
//!    -> head and body sent while they arrive -> response head -> body sent on while it arrives -> process and connection given back
//!                  |                                 \-> 101: bytes both ways until one side closes
//!                  \-> connection was stale and the request is safe to repeat: acquire again
//! ```

mod body;
mod headers;
mod page;
mod pool;
mod proxy;
mod route;
mod server;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

/// A workerd process that serves a script. The request holds `guard` until its response body has ended: a draining process waits for it.
pub struct Upstream {
    /// Where it takes requests.
    pub endpoint: Endpoint,
    /// Distinguishes processes: pooled connections of an older one are not used.
    pub process: u64,
    /// Released on drop.
    pub guard: Box<dyn Guard>,
}

/// Where a process is. A process on another node will be a second variant: nothing but the pool's
/// connecting looks into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// On this machine: its Unix socket.
    Unix(PathBuf),
}

/// Keeps a process from being ended while a request uses it; dropping it releases the process.
pub trait Guard: Send + Sync {
    /// The request became a WebSocket, which may stay for hours: from now on the process is replaced without waiting for it. The tunnel is
    /// closed when the result resolves.
    fn upgraded(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// The response's head has come.
    fn answered(&self);

    /// After the connection broke off: why the process ended unasked, in words for people. `None` while it lives on.
    fn end_reason(&self) -> Pin<Box<dyn Future<Output = Option<String>> + Send>>;
}

/// Why a script can't serve now; becomes a 404, 502 or 503 that says why.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No such script.
    #[error("no Worker named \"{0}\" is deployed here")]
    NoScript(String),
    /// The process does not come up; the text is the reason.
    #[error("{0}")]
    Broken(String),
}

/// Where the gateway gets processes from.
pub trait Upstreams: Send + Sync + 'static {
    /// A process of the script, waiting while it starts or is being replaced.
    fn acquire<'a>(
        &'a self,
        script: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Upstream, Unavailable>> + Send + 'a>>;
    /// Whether the script is served to clients of the gateway under its own host name.
    fn is_public(&self, script: &str) -> bool;
    /// Names of deployed scripts, for the 404 page of `--dev`.
    fn scripts(&self) -> Vec<String>;
}

/// The gateway's settings.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// `<script>.<base>` is routed for each of these; `localhost` by default.
    pub base_domains: Vec<String>,
    /// An unknown host's 404 lists the known ones.
    pub dev: bool,
    /// Largest request head, bytes.
    pub max_header_bytes: usize,
    /// Idle keep-alive connections are closed after this, milliseconds; also the time a client has to send a request's head.
    pub idle_timeout_ms: u64,
    /// Most client connections at a time.
    pub max_connections: usize,
    /// Asked at each new connection: whether the machine has enough of everything for one more. If
    /// not, the client is told so, as it is beyond `max_connections`.
    pub has_room: fn() -> bool,
    /// Headers removed from requests besides those that always are: the one that carries `request.cf` to workerd must be here, or
    /// clients could set it.
    pub strip_headers: Vec<http::HeaderName>,
}

/// How long requests in flight may take to finish after `shutdown` resolved. WebSockets are closed at once.
pub const SHUTDOWN_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// Serves until `shutdown` resolves, then lets requests in flight finish for at most [`SHUTDOWN_GRACE`].
///
/// Dropping the future ends every connection at once.
///
/// # Errors
/// When the listener's own address can't be read; errors of single connections are logged.
pub async fn serve(
    listener: tokio::net::TcpListener,
    config: GatewayConfig,
    upstreams: std::sync::Arc<dyn Upstreams>,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    server::run(listener, config, upstreams, shutdown).await
}
