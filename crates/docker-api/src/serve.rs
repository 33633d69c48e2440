//! Serves a router on a Unix socket, within bounds: a client that is slow, silent or many harms nobody but itself.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tower::ServiceExt;

use crate::peer::Peer;

/// How long requests in progress may go on after `shutdown`.
const LINGER: Duration = Duration::from_secs(2);

/// Largest head of a request, bytes.
const MAX_HEAD: usize = 64 * 1024;

/// What one socket's clients may use up.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long a request's head may take, or the next request be waited for.
    pub head: Duration,
    /// How long the next piece of a request's body may take, while it is waited for.
    pub body: Duration,
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            head: Duration::from_secs(30),
            body: Duration::from_secs(30),
            connections: 4096,
        }
    }
}

/// [`serve_unix_within`] the default bounds.
pub async fn serve_unix(
    listener: UnixListener,
    router: axum::Router,
    shutdown: impl Future<Output = ()>,
) {
    serve_unix_within(Bounds::default(), listener, router, shutdown).await;
}

/// Accepts until `shutdown` comes; then requests in progress get two seconds to end (a held `wait` does not), and all connections are closed.
pub async fn serve_unix_within(
    bounds: Bounds,
    listener: UnixListener,
    router: axum::Router,
    shutdown: impl Future<Output = ()>,
) {
    let (closing, closed) = watch::channel(());
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(bounds.connections));
    // Never closed, so there always is a permit in it.
    let accept = async || {
        let place = places.clone().acquire_owned().await;
        listener.accept().await.map(|(stream, _)| (stream, place))
    };
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = accept() => match accepted {
                Ok((stream, place)) => {
                    let (router, closed) = (router.clone(), closed.clone());
                    connections.spawn(async move {
                        unix_connection(bounds, stream, router, closed).await;
                        drop(place);
                    });
                }
                Err(error) => pause_after(&error).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    drop(closing);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    // Dropping the set ends what is left.
    let _ = tokio::time::timeout(LINGER, all_ended).await;
}

async fn unix_connection(
    bounds: Bounds,
    stream: UnixStream,
    router: axum::Router,
    closed: watch::Receiver<()>,
) {
    let peer = Peer::of(&stream);
    connection(bounds, stream, peer, router, closed).await;
}

/// Serves one connection until its end, or until `closed` and the end of the request in progress.
pub(crate) async fn connection(
    bounds: Bounds,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Option<Peer>,
    router: axum::Router,
    mut closed: watch::Receiver<()>,
) {
    let router = router.map_request(move |mut request: http::Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        request.map(|body| {
            Body::new(Patient {
                body,
                bound: bounds.body,
                waiting: None,
            })
        })
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_header_size(MAX_HEAD)
        .max_headers(wharf_http_head::fields_within(MAX_HEAD));
    let serving = builder
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        _ = closed.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        // The client went away or does not speak HTTP: its own affair.
        tracing::debug!(%error, "connection ended");
    }
}

/// A request's body whose next piece is waited for only so long.
struct Patient {
    body: Incoming,
    bound: Duration,
    /// Since the wait began.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)));
        }
        let bound = self.bound;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(bound)));
        waiting.as_mut().poll(cx).map(|()| {
            let text = format!("no more of the body came within {} s", bound.as_secs());
            Some(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Out of descriptors and the like: trying again at once would only burn a core.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
