//! The near end of service bindings between scripts: a socket in the caller's folder that leads to whatever process of the called
//! script is current, so that the caller never notices a swap (contract: workerd, 3.1 b).
//!
//! Owns: the sockets, the connections through them, and the leases those hold: an HTTP request holds one until its response has
//! ended, a WebSocket none; for Cap'n Proto see `rpc_relay`.
//! Must not: look into requests.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use wharf_bindings::Entry;

use crate::Lease;
use crate::config::Outgoing;
use crate::folder;
use crate::rpc_relay::{self, Far};
use crate::script::Script;
use crate::supervisor::Inner;

type Body = BoxBody<Bytes, hyper::Error>;

/// Largest head of a message, bytes; as the gateway allows.
const MAX_HEAD: usize = 256 * 1024;
const MAX_FIELDS: usize = wharf_http_head::fields_within(MAX_HEAD);

/// Why a connection is given up; the caller sees a lost connection, as from any server that goes away.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Rpc(#[from] rpc_relay::Failure),
    #[error("{0}")]
    Other(&'static str),
}

/// The listening ends of one process's bindings; closes with all connections when dropped.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    _tasks: JoinSet<()>,
}

/// One binding.
struct Target {
    inner: Weak<Inner>,
    caller: String,
    service: String,
    entry: Entry,
}

impl Relays {
    /// Listens for each binding in the caller's folder.
    pub(crate) fn open(
        inner: &Arc<Inner>,
        caller: &str,
        dir: &Path,
        uid: u32,
        outgoing: &[Outgoing],
    ) -> std::io::Result<Self> {
        let mut tasks = JoinSet::new();
        for out in outgoing {
            let path = dir.join(&out.socket);
            let listener = UnixListener::bind(&path)?;
            folder::own(&path, uid, 0o600).map_err(std::io::Error::other)?;
            let target = Arc::new(Target {
                inner: Arc::downgrade(inner),
                caller: caller.to_owned(),
                service: out.service.clone(),
                entry: out.entry.clone(),
            });
            tasks.spawn(accept(listener, target));
        }
        Ok(Self { _tasks: tasks })
    }
}

async fn accept(listener: UnixListener, target: Arc<Target>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, target.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a service binding cannot accept connections");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A connection to a process, kept between the requests of one caller's connection.
struct Upstream {
    process: u64,
    sender: SendRequest<Incoming>,
}

async fn serve(stream: UnixStream, target: Arc<Target>) {
    // Tunnels (WebSocket, Cap'n Proto) of this connection; they end with it.
    let tunnels = Arc::new(std::sync::Mutex::new(JoinSet::new()));
    let upstream = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let (target, upstream, tunnels) = (target.clone(), upstream.clone(), tunnels.clone());
        async move { forward(request, &target, &upstream, &tunnels).await }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        // The caller sees a lost connection, as from any server that goes away.
        tracing::debug!(caller = target.caller, service = target.service, %error, "service binding");
    }
    let mut tunnels = std::mem::take(
        &mut *tunnels
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    );
    while tunnels.join_next().await.is_some() {}
}

type Tunnels = std::sync::Mutex<JoinSet<()>>;

fn tunnel(tunnels: &Tunnels, work: impl Future<Output = ()> + Send + 'static) {
    tunnels
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .spawn(work);
}

async fn forward(
    request: Request<Incoming>,
    target: &Target,
    upstream: &Mutex<Option<Upstream>>,
    tunnels: &Tunnels,
) -> Result<Response<Body>, Failure> {
    let Some(inner) = target.inner.upgrade() else {
        return Err(Failure::Other("the supervisor is gone"));
    };
    let Some(script) = inner.script(&target.service) else {
        return Ok(refusal(format!(
            "Worker \"{}\" is bound to Worker \"{}\", which is not deployed here",
            target.caller, target.service
        )));
    };
    drop(inner);
    let lease = match script.acquire().await {
        Ok(lease) => lease,
        Err(error) => {
            tracing::warn!(caller = target.caller, service = target.service, %error, "service binding");
            return Ok(refusal(format!(
                "Worker \"{}\" cannot be reached through the service binding: it does not start",
                target.service
            )));
        }
    };
    let Some(socket) = lease.entry(&target.entry) else {
        return Ok(refusal(format!(
            "Worker \"{}\" exports no entrypoint \"{}\"",
            target.service,
            target.entry.entrypoint.as_deref().unwrap_or("default")
        )));
    };
    if request.method() == Method::CONNECT {
        let entry = target.entry.clone();
        return connect(request, script, entry, lease, socket, tunnels).await;
    }
    request_through(request, lease, &socket, upstream, tunnels).await
}

fn refusal(text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text + "\n")).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

async fn request_through(
    mut request: Request<Incoming>,
    mut lease: Lease,
    socket: &Path,
    upstream: &Mutex<Option<Upstream>>,
    tunnels: &Tunnels,
) -> Result<Response<Body>, Failure> {
    let wants_upgrade = request.headers().contains_key(header::UPGRADE);
    let caller = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    let mut response = {
        let mut kept = upstream.lock().await;
        let reusable = kept
            .as_mut()
            .is_some_and(|up| up.process == lease.process && !up.sender.is_closed());
        if !reusable {
            let sender = open(socket).await?;
            *kept = Some(Upstream {
                process: lease.process,
                sender,
            });
        }
        let Some(up) = kept.as_mut() else {
            return Err(Failure::Other("no connection"));
        };
        up.sender.ready().await?;
        match up.sender.send_request(request).await {
            Ok(response) => response,
            Err(error) if error.is_parse_too_large() => {
                return Ok(refusal(format!(
                    "the called Worker sent a response whose headers are larger than {} KiB",
                    MAX_HEAD / 1024
                )));
            }
            Err(error) => return Err(error.into()),
        }
    };
    lease.answered();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(caller) = caller else {
            return Err(Failure::Other("an upgrade that nobody asked for"));
        };
        let callee = hyper::upgrade::on(&mut response);
        let closing = lease.closing();
        lease.upgraded();
        tunnel(tunnels, async move {
            let copy = async {
                let (caller, callee) = (caller.await?, callee.await?);
                let (mut caller, mut callee) = (TokioIo::new(caller), TokioIo::new(callee));
                tokio::io::copy_bidirectional(&mut caller, &mut callee).await?;
                Ok::<_, Failure>(())
            };
            tokio::select! {
                result = copy => if let Err(error) = result {
                    tracing::debug!(%error, "a WebSocket between Workers ended");
                },
                () = closing => {}
            }
        });
        return Ok(response.map(|_| Empty::new().map_err(|never| match never {}).boxed()));
    }
    Ok(response.map(|body| {
        // The lease lives in the body: it is released with the last byte, or when the caller goes away.
        body.map_frame(move |frame| {
            let _held = &lease;
            frame
        })
        .boxed()
    }))
}

async fn open(socket: &Path) -> Result<SendRequest<Incoming>, Failure> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = Builder::new()
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        // Errors come out of the requests; the task ends with the sender.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// Opens a Cap'n Proto connection: after `CONNECT` it is only bytes.
async fn connect(
    request: Request<Incoming>,
    script: Arc<Script>,
    entry: Entry,
    lease: Lease,
    socket: PathBuf,
    tunnels: &Tunnels,
) -> Result<Response<Body>, Failure> {
    let far = Far::open(lease, &socket).await?;
    tunnel(tunnels, async move {
        match hyper::upgrade::on(request).await {
            Ok(caller) => {
                let carried = rpc_relay::carry(TokioIo::new(caller), script, entry, far);
                if let Err(error) = carried.await {
                    tracing::debug!(%error, "an RPC connection between Workers ended");
                }
            }
            Err(error) => tracing::debug!(%error, "an RPC connection between Workers"),
        }
    });
    Ok(Response::new(
        Empty::new().map_err(|never| match never {}).boxed(),
    ))
}
