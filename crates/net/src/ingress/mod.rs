//! The ingress of a network: the HTTP server that workerd takes for its sidecar (contract: workerd, 1.5).
//!
//! `CONNECT 127.0.0.1:<port>` becomes a connection to that port inside; `PUT /egress` sets the policy; `GET /ca` is the certificate.
//! A port that does not listen yet is waited for ([`hold`]), and then refused with 400, which workerd turns into
//! "the container is not listening". A process that has ended is refused with 400 too, but at once: callers that see this
//! error look whether the container still runs and report its exit.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Parts;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use wharf_sandbox::netns::Pause;

use crate::relay::{Guarded, relay};
use crate::{Shared, Slot, Target};

mod control;
mod hold;

use hold::{Hold, Refusal, Step};

/// How many connections one ingress serves at a time; more wait to be accepted.
const CONNECTIONS: usize = 4096;
const MAX_HEAD: usize = 16 * 1024;
/// How long a request's head may take, or the next one be waited for.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

type Answer = Response<Full<Bytes>>;

/// Accepts connections.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    crate::serve_each(shared, listener, CONNECTIONS, connection).await;
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
        (&Method::GET, "/ca") => control::get_ca(&shared),
        (method, path) => text(
            StatusCode::NOT_FOUND,
            format!(
                "the ingress has no {method} {path}: it knows CONNECT 127.0.0.1:<port>, PUT /egress and GET /ca"
            ),
        ),
    }
}

async fn connect(shared: Arc<Shared>, request: Request<Incoming>, slot: Slot) -> Answer {
    let port = match destination_port(&request) {
        Ok(port) => port,
        // Not 400: that has a meaning of its own here.
        Err(reason) => return text(StatusCode::UNPROCESSABLE_ENTITY, reason),
    };
    let upstream = match dial(&shared, port).await {
        Ok(upstream) => Guarded::new(upstream),
        Err(DialError::Refused(refusal)) => {
            let more = match refusal {
                Refusal::NotListening => "",
                Refusal::Ended => ": the container has exited",
            };
            return text(
                StatusCode::BAD_REQUEST,
                format!("Container is not listening to port {port}{more}"),
            );
        }
        Err(DialError::Io(error)) => {
            return text(
                StatusCode::BAD_GATEWAY,
                format!("connecting to port {port} of the container: {error}"),
            );
        }
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
            let client = Guarded::new(io.into_inner());
            upstream.write_all(&read_buf).await?;
            relay(client, upstream).await
        };
        if let Err(error) = tunnelled.await {
            tracing::debug!(port, %error, "a tunnel ended");
        }
    });
    Response::new(Full::default())
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

#[derive(Debug)]
enum DialError {
    Refused(Refusal),
    Io(io::Error),
}

/// Dials inside, holding while nobody listens.
async fn dial(shared: &Shared, port: u16) -> Result<TcpStream, DialError> {
    let mut targets = shared.target.subscribe();
    let target = *targets.borrow_and_update();
    if target == Target::Ended {
        return Err(DialError::Refused(Refusal::Ended));
    }
    let arrived = Instant::now();
    let mut hold = Hold::new(shared.config.hold, target);
    let mut attempt = shared.inside.attempt(port);
    let mut pause = Pause::default();
    loop {
        match attempt.connect().await {
            Ok(stream) => return Ok(stream),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
            Err(e) => return Err(DialError::Io(e)),
        }
        let target = *targets.borrow_and_update();
        match hold.refused(arrived.elapsed(), target) {
            Step::Refuse(refusal) => return Err(DialError::Refused(refusal)),
            Step::Wait(step) => tokio::select! {
                () = pause.wait(step) => {}
                _ = targets.changed() => {}
            },
        }
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
