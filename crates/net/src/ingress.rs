//! The ingress of a network: the HTTP server that workerd takes for its sidecar (contract: workerd, 1.5).
//!
//! `CONNECT 127.0.0.1:<port>` becomes a connection to that port inside ([`ready`]), whose HTTP is understood ([`tunnel`]); `PUT /egress` sets the policy; `GET /ca` is the certificate.
//! A port that does not listen yet is waited for ([`hold`]), and then refused. With a process that has ended it is refused at once, with the
//! same words: callers that see them look whether the container still runs and report its exit.

mod control;
mod hold;
mod http1;
mod ready;
pub(crate) mod sniff;
pub(crate) mod tunnel;
mod wait;

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Parts;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

pub(crate) use self::ready::Lookouts;
use self::tunnel::Upstream;
use self::wait::DialError;
use crate::bandwidth::Bandwidth;
use crate::{Shared, Slot, succession};

/// How many connections one ingress serves at a time; more wait to be accepted.
const CONNECTIONS: usize = 4096;
const MAX_HEAD: usize = 16 * 1024;
/// How long a request's head may take, or the next one be waited for.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

type Answer = Response<Full<Bytes>>;

/// Accepts connections; of root alone, or of whoever can reach it.
pub(crate) async fn serve(shared: Arc<Shared>, listener: Arc<TcpListener>, roots_alone: bool) {
    let each = |shared, stream, slot| async move {
        if !roots_alone || crate::peer::is_roots(&stream) {
            connection(shared, stream, slot).await;
        }
    };
    crate::serve_each(shared, listener, CONNECTIONS, each).await;
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, slot: Slot) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "an ingress connection ended at once");
        return;
    }
    let service = service_fn(|request| {
        // A tunnel outlives its HTTP connection and keeps the slot.
        let (shared, slot) = (shared.clone(), slot.clone());
        async move { Ok::<_, Infallible>(answer(shared, request, slot).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(wharf_http_head::fields_within(MAX_HEAD))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an ingress connection ended");
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>, slot: Slot) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => connect(shared, request, slot).await,
        (&Method::PUT, "/egress") => control::put_egress(&shared, request).await,
        (&Method::GET, "/ca") => control::get_ca(&succession::current(&shared)),
        (method, path) => text(
            StatusCode::NOT_FOUND,
            format!(
                "the ingress has no {method} {path}: it knows CONNECT 127.0.0.1:<port>, PUT /egress and GET /ca"
            ),
        ),
    }
}

async fn connect(own: Arc<Shared>, request: Request<Incoming>, slot: Slot) -> Answer {
    let port = match destination_port(&request) {
        Ok(port) => port,
        // Not 400: that has a meaning of its own here.
        Err(reason) => return text(StatusCode::UNPROCESSABLE_ENTITY, reason),
    };
    let (shared, app) = match ready::dial(&own, port).await {
        Ok(dialled) => dialled,
        Err(DialError::NotListening(age)) => return not_listening(port, &still_waiting(age)),
        Err(DialError::Ended(how)) => return not_listening(port, &format!("it has ended: {how}")),
        Err(DialError::Io(error)) => {
            return text(
                StatusCode::BAD_GATEWAY,
                format!("connecting to port {port} of the container: {error}"),
            );
        }
    };
    let inside = Inside {
        shared: shared.clone(),
        port,
    };
    shared.spawn(async move {
        let _slot = slot;
        let tunnelled = async {
            let upgraded = hyper::upgrade::on(request)
                .await
                .map_err(io::Error::other)?;
            let Parts { io, read_buf, .. } = upgraded
                .downcast::<TokioIo<TcpStream>>()
                .map_err(|_| io::Error::other("the upgraded connection is of another kind"))?;
            tunnel::carry(io.into_inner(), read_buf.into(), app, inside).await
        };
        if let Err(error) = tunnelled.await {
            tracing::debug!(port, %error, "a tunnel ended");
        }
    });
    Response::new(Full::default())
}

/// A port of the container.
struct Inside {
    shared: Arc<Shared>,
    port: u16,
}

impl Upstream for Inside {
    async fn dial(&self) -> io::Result<TcpStream> {
        let dialled = ready::dial(&self.shared, self.port).await;
        dialled
            .map(|(_, stream)| stream)
            .map_err(|error| match error {
                DialError::NotListening(_) => io::ErrorKind::ConnectionRefused.into(),
                DialError::Ended(how) => {
                    io::Error::other(format!("the container has ended: {how}"))
                }
                DialError::Io(error) => error,
            })
    }

    fn is_listening(&self) -> bool {
        self.shared.inside.look(self.port)
    }

    fn bandwidth(&self) -> &Bandwidth {
        &self.shared.bandwidth
    }
}

/// The port of `X-Dst-Addr`, or else of the request target. The address must be loopback: nothing else is inside.
fn destination_port(request: &Request<Incoming>) -> Result<u16, String> {
    let target = match request.headers().get("x-dst-addr") {
        Some(value) => value
            .to_str()
            .map_err(|_| "X-Dst-Addr is not text".to_owned())?
            .to_owned(),
        None => request
            .uri()
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    parse_target(&target)
        .ok_or_else(|| format!("CONNECT to {target:?}: the ingress reaches 127.0.0.1:<port> only"))
}

fn parse_target(target: &str) -> Option<u16> {
    let (host, port) = target.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<IpAddr>().ok()?.is_loopback();
    port.parse().ok().filter(|port| loopback && *port != 0)
}

/// The refusal for a port where nobody listens. workerd would turn a 400 into an error of its own, "Container is not listening to port N"; of any
/// other status it passes the text on (contract: workerd, 1.5). This text has both what workerd says, and what `@cloudflare/containers` looks
/// for ("the container is not listening", Cloudflare's own words): without that the package takes the container for lost.
fn not_listening(port: u16, more: &str) -> Answer {
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        format!(
            "Container is not listening to port {port} (the container is not listening: {more})"
        ),
    )
}

fn still_waiting(age: Option<Duration>) -> String {
    match age {
        Some(age) => format!("it has been running for {:.1} s", age.as_secs_f64()),
        None => "it has not been started".to_owned(),
    }
}

fn text(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_can_be_asked_for() {
        for (target, port) in [
            ("127.0.0.1:8080", Some(8080)),
            ("[::1]:80", Some(80)),
            ("localhost:1", Some(1)),
            ("10.0.0.1:8080", None),
            ("example.com:80", None),
            ("127.0.0.1:0", None),
            ("127.0.0.1:65536", None),
            ("127.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(parse_target(target), port, "{target}");
        }
    }
}
