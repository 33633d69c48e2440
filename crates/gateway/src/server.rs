//! The listener: connections, their limits, and the end of them all.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::headers::{ClientAddress, Rays};
use crate::proxy::{Client, Gateway};
use crate::{GatewayConfig, SHUTDOWN_GRACE, Upstreams, route};

/// Most that is buffered of a body in each direction, bytes; a larger head limit makes it larger.
const BUFFER: usize = 64 * 1024;
/// After `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections beyond the limit that are told so at a time; more are closed without a word.
const TURNED_AWAY: usize = 64;
/// How long a client that is turned away may take to read why.
const TURNED_AWAY_TIME: Duration = Duration::from_millis(500);
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 54\r\n\
    Retry-After: 1\r\nConnection: close\r\n\r\n503 Service Unavailable: too many connections are open";

pub(crate) async fn run(
    listener: TcpListener,
    mut config: GatewayConfig,
    upstreams: Arc<dyn Upstreams>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    config.base_domains = route::normalise(&config.base_domains);
    let places = Arc::new(Semaphore::new(
        config.max_connections.min(Semaphore::MAX_PERMITS),
    ));
    let away = Arc::new(Semaphore::new(TURNED_AWAY));
    let abort = CancellationToken::new();
    let gateway = Arc::new(Gateway {
        port: listener.local_addr()?.port(),
        config,
        upstreams,
        pool: Arc::default(),
        rays: Rays::new()?,
        tasks: TaskTracker::new(),
        stopping: abort.child_token(),
    });
    let _end_all_when_dropped = abort.clone().drop_guard();

    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        let place = places.clone().try_acquire_owned().ok();
        if let Some(permit) = place.filter(|_| (gateway.config.has_room)()) {
            let task = connection(gateway.clone(), stream, peer, permit, abort.clone());
            gateway.tasks.spawn(task);
        } else if let Ok(permit) = away.clone().try_acquire_owned() {
            tracing::debug!(%peer, "too many connections");
            gateway.tasks.spawn(turn_away(stream, permit));
        }
    }

    drop(listener);
    gateway.stopping.cancel();
    gateway.tasks.close();
    if tokio::time::timeout(SHUTDOWN_GRACE, gateway.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = gateway.tasks.len(),
            "requests in flight are cut off"
        );
        abort.cancel();
        gateway.tasks.wait().await;
    }
    Ok(())
}

async fn connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
    abort: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY");
    }
    let client = Arc::new(Client {
        address: ClientAddress::new(peer.ip()),
        peer,
        permit: Arc::new(permit),
    });
    let config = &gateway.config;
    let service = service_fn(|request| {
        let answer = gateway.clone().handle(client.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.idle_timeout_ms))
        .max_header_size(config.max_header_bytes)
        .max_headers(wharf_http_head::fields_within(config.max_header_bytes))
        .max_buf_size(BUFFER.max(config.max_header_bytes))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    let mut stopping = false;
    let result = loop {
        tokio::select! {
            biased;
            result = served.as_mut() => break result,
            () = abort.cancelled() => break Ok(()),
            () = gateway.stopping.cancelled(), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "client connection ended");
    }
}

/// Says why before closing. What the client has sent is read away, or the kernel would reset the connection and with it the answer.
async fn turn_away(mut stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let farewell = async {
        stream.write_all(FULL).await?;
        stream.shutdown().await?;
        let mut unread = [0u8; 4096];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // A client that does not wait for its answer has nothing to be told.
    let _ = tokio::time::timeout(TURNED_AWAY_TIME, farewell).await;
}
