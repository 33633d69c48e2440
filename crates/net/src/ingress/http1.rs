//! HTTP/1 in a tunnel: ended here and begun anew towards the app, so that each side's connections live as that side likes.
//!
//! Owns: the exchange of messages, the connection to the app ([`app`]), what is sent again and what is not. Must not: know of ports and namespaces.
//!
//! workerd keeps its tunnels open and sends one request after another on each. Every tunnel has one connection to the app at a time; when the app closes
//! it (a keep-alive timer, `Connection: close`, a limit on requests), the next request gets a new one and workerd notices nothing.
//!
//! One task drives both connections: nothing waits for another thread. A message that breaks off is cut on both sides. A client that ends its side
//! in the middle of an exchange is passed on as it is: the app is sent the end too, and decides what that means.

mod app;
mod body;
mod headers;
mod io;
mod local;

use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use tokio::net::TcpStream;

use self::app::{App, MAX_HEAD, MAX_HEADERS, Reuse};
use self::body::{AnswerBody, Busy, RequestBody, Signs};
use self::io::Prefixed;
use super::tunnel::Upstream;
use crate::relay::{Guarded, relay};

/// What the client's connection, the exchange on it and the app's connection share.
struct Tunnel<U> {
    upstream: U,
    signs: Arc<Signs>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    app: Option<App>,
    reuse: Reuse,
    upgraded: bool,
}

/// Serves HTTP until the client or an error ends it, and carries what comes behind an upgrade. `early` is what the client has sent already.
///
/// # Errors
/// What broke it; both sides are cut then.
pub(super) async fn serve<U: Upstream>(
    client: TcpStream,
    early: BytesMut,
    app: TcpStream,
    upstream: U,
) -> Result<()> {
    let signs = Arc::new(Signs::default());
    let app = App::new(app, upstream.bandwidth()).await?;
    let tunnel = Arc::new(Tunnel {
        upstream,
        signs: signs.clone(),
        state: Mutex::new(State {
            app: Some(app),
            ..State::default()
        }),
    });
    let service = service_fn(|request| -> BoxFuture<'static, _> {
        // At once: hyper may read on before it asks for the answer.
        let busy = Busy::new(signs.clone());
        Box::pin(tunnel.clone().exchange(request, busy))
    });
    let mut server = Builder::new()
        .preserve_header_case(true)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        // Headers are the app's alone.
        .auto_date_header(false)
        // A tunnel is idle for as long as workerd likes.
        .header_read_timeout(None)
        .serve_connection(Prefixed::new(early, client, signs.clone()), service);
    let served = local::poll_fn(|context| {
        if tunnel.poll_app(context) == Idle::Alone {
            Pin::new(&mut server).graceful_shutdown();
        }
        let served = server.poll_without_shutdown(context);
        if served.is_ready() {
            return served;
        }
        // What the server has just sent on its way, or has room for now.
        if tunnel.poll_app(context) == Idle::Alone {
            context.waker().wake_by_ref();
        }
        if signs.is_over() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await;
    let parts = server.into_parts();
    let (client, unread) = parts.io.into_parts();
    let client = Guarded::new(client);
    match served {
        Ok(()) => {}
        // hyper has answered 400 or the like.
        Err(error) if error.is_parse() => {
            client.end().await?;
            return Err(Error::new(ErrorKind::InvalidData, error));
        }
        Err(error) => return Err(Error::other(error)),
    }
    let app = {
        let mut state = tunnel.state();
        state.app.take().filter(|_| state.upgraded)
    };
    let Some(app) = app else {
        return client.end().await;
    };
    let (app, first) = app.into_parts();
    let app = Guarded::new(app);
    client.write_all(&first).await?;
    app.write_all(&parts.read_buf).await?;
    app.write_all(&unread).await?;
    relay(client, app, tunnel.upstream.bandwidth()).await
}

/// What is known of the app when nothing is going on.
#[derive(PartialEq, Eq)]
enum Idle {
    /// It has closed its connection and listens no more.
    Alone,
    /// All is well, or something is going on.
    Well,
}

impl<U: Upstream> Tunnel<U> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drives the connection to the app.
    fn poll_app(&self, context: &mut Context<'_>) -> Idle {
        let mut state = self.state();
        let upgraded = state.upgraded;
        let Some(app) = &mut state.app else {
            return Idle::Well;
        };
        if app.is_finished() && !upgraded && !self.signs.in_exchange() {
            // With it goes what it has not sent.
            state.app = None;
            return Idle::Well;
        }
        if let Poll::Ready(result) = app.poll(context) {
            if let Err(error) = result {
                tracing::debug!(%error, "a connection to an app ended");
            }
            if let Some(idle) = app.idle() {
                state.reuse.closed_after(idle);
                state.app = None;
                // Then the client should hear it now, and not when it asks.
                if !self.upstream.is_listening() {
                    return Idle::Alone;
                }
            }
            return Idle::Well;
        }
        if self.signs.client_has_ended_after_its_request() {
            app.end_requests();
        }
        Idle::Well
    }

    /// One request and its answer.
    async fn exchange(
        self: Arc<Self>,
        request: Request<Incoming>,
        busy: Busy,
    ) -> std::result::Result<Response<AnswerBody>, Broken> {
        let answer = self.forward(request).await;
        let mut answer = match answer {
            Ok(answer) => answer.map(Ok),
            Err(Broken::Malformed(error)) => malformed(&error).map(Err),
            Err(broken) => return Err(broken),
        };
        // The connections on both sides have nothing to do with each other.
        *answer.version_mut() = Version::HTTP_11;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::strip(answer.headers_mut());
            wharf_http_head::unite_response(answer.headers_mut());
        }
        Ok(answer.map(|body| AnswerBody { body, _busy: busy }))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> std::result::Result<Response<Incoming>, Broken> {
        let wants_upgrade = headers::strip(request.headers_mut());
        // Upgrades are taken over when HTTP has ended on both sides, not by hyper's own way.
        drop(hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let repeatable = parts.method.is_idempotent() && !has_body;
        let mut used = self.connect(repeatable, false).await?;
        let copy = (used && repeatable).then(|| parts.clone());
        let body = self.body(has_body.then_some(body));
        let mut request = Request::from_parts(parts, body);
        let answer = loop {
            let sent = match &mut self.state().app {
                Some(app) => app.sender().try_send_request(request),
                // It has ended since; nothing was sent.
                None => return Err(Broken::Lost(None)),
            };
            let mut error = match sent.await {
                Ok(answer) => break answer,
                Err(error) => error,
            };
            let unsent = error.take_message();
            let error = error.into_error();
            if error.is_parse() {
                return Err(Broken::Malformed(error));
            }
            // Only what the app cannot have begun to act on, or may act on twice; and only if the connection was an old one, since
            // an app that breaks off new ones has its reasons.
            request = match (used, unsent, &copy) {
                (true, Some(unsent), _) => unsent,
                (true, None, Some(copy)) => Request::from_parts(copy.clone(), self.body(None)),
                _ => return Err(Broken::Lost(Some(error))),
            };
            tracing::debug!(%error, "sent again on a new connection");
            used = self.connect(repeatable, true).await?;
        };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !wants_upgrade {
                return Err(Broken::Unasked);
            }
            self.state().upgraded = true;
        }
        Ok(answer)
    }

    fn body(&self, body: Option<Incoming>) -> RequestBody {
        RequestBody::new(body, self.signs.clone())
    }

    /// Sees to a connection that takes a request now; returns whether it is one that was used or idle before.
    async fn connect(&self, repeatable: bool, new: bool) -> std::result::Result<bool, Broken> {
        {
            let mut state = self.state();
            let reuse = state.reuse;
            if let Some(app) = &state.app
                && !new
                && app.takes(repeatable, reuse)
            {
                return Ok(app.is_used());
            }
            state.app = None;
        }
        let stream = self.upstream.dial().await.map_err(Broken::Dial)?;
        let app = App::new(stream, self.upstream.bandwidth())
            .await
            .map_err(Broken::Dial)?;
        self.state().app = Some(app);
        Ok(false)
    }
}

/// Why there is no answer.
#[derive(Debug)]
enum Broken {
    /// The connection to the app has ended before its answer.
    Lost(Option<hyper::Error>),
    /// There is no connection to the app.
    Dial(Error),
    /// What the app has sent is no answer.
    Malformed(hyper::Error),
    /// The app changes to another protocol without having been asked to.
    Unasked,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(None) => f.write_str("the app has closed its connection"),
            Self::Lost(Some(error)) => write!(f, "the app has broken off: {error}"),
            Self::Dial(error) => write!(f, "connecting to the app: {error}"),
            Self::Malformed(error) => write!(f, "the app's answer: {error}"),
            Self::Unasked => f.write_str("the app answered 101 unasked"),
        }
    }
}

impl std::error::Error for Broken {}

/// 502, in words that name the app: who reads it looks for the mistake there.
fn malformed(error: &hyper::Error) -> Response<Full<Bytes>> {
    let text = if error.is_parse_too_large() {
        format!(
            "The container's answer has headers larger than {} KiB, or more than {MAX_HEADERS}.\n",
            MAX_HEAD / 1024
        )
    } else {
        format!("The container's answer is not valid HTTP/1.1: {error}\n")
    };
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = StatusCode::BAD_GATEWAY;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    answer
}
