//! HTTP/2 from the container, of clients that insist on it. workerd reads HTTP/1.1 alone, so each request becomes one, on a tunnel of its own.
//!
//! Bodies stream both ways. Trailers of responses are carried if they come; those of requests are dropped, since workerd takes them for the
//! next request. A request that no mapping takes goes to where the client wanted to go as HTTP/2, whole.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use wharf_http_head::Ambiguous;

use super::decide::{Asked, Way};
use super::prefixed::Prefixed;
use super::tunnel::{Answer, Hint, Tunnel};
use crate::Shared;

const MAX_STREAMS: u32 = 256;
/// Largest head of a message, bytes; as the gateway allows. HTTP/2 counts 32 more for each field
/// (RFC 9113, 6.5.2).
const MAX_HEAD: usize = 256 * 1024;
const MAX_HEADER_LIST: u32 = MAX_HEAD as u32;

/// Fields that belong to one connection (RFC 9110, 7.6.1), and what this proxy does not carry on. TE stays: in HTTP/2 it can only say that trailers
/// are welcome, and they are.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TRAILER,
    header::EXPECT,
    HeaderName::from_static("http2-settings"),
];

type Body = Either<Incoming, Full<Bytes>>;

/// Where the requests of one connection go.
#[derive(Debug)]
pub(super) struct Route {
    asked: Asked,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A mapping has the connection, by its name or its address.
    Tls {
        hint: Hint,
        /// What it was asked with; for the first request.
        first: Mutex<Option<Tunnel>>,
    },
    /// Each request's own name decides. The rest goes to this one connection.
    Clear {
        outside: Mutex<Option<http2::SendRequest<Incoming>>>,
    },
}

enum Target {
    Worker(Tunnel),
    Outside(http2::SendRequest<Incoming>),
}

impl Route {
    /// Behind TLS that was ended here.
    pub(super) fn tls(asked: Asked, name: Option<String>, first: Tunnel) -> Self {
        let hint = name.map_or(Hint::None, Hint::Sni);
        let first = Mutex::new(Some(first));
        Self {
            asked,
            kind: Kind::Tls { hint, first },
        }
    }

    /// Without TLS.
    pub(super) fn clear(asked: Asked) -> Self {
        let outside = Mutex::default();
        Self {
            asked,
            kind: Kind::Clear { outside },
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        if request.method() == Method::CONNECT {
            let text = "CONNECT is not carried to Workers.\n".to_owned();
            return Ok(refusal(StatusCode::NOT_IMPLEMENTED, text));
        }
        let host = authority(&request)?;
        match self.target(&host).await? {
            Target::Worker(tunnel) => {
                let io = TokioIo::new(Prefixed::new(tunnel.early, tunnel.stream));
                let (mut sender, connection) = http1::Builder::new()
                    .max_header_size(MAX_HEAD)
                    .max_headers(wharf_http_head::fields_within(MAX_HEAD))
                    .handshake(io)
                    .await
                    .map_err(io::Error::other)?;
                self.asked.shared.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a request of HTTP/2 to workerd ended");
                    }
                });
                let request = match to_http1(request, &host)? {
                    Ok(request) => request,
                    Err(Ambiguous(name)) => {
                        let text = format!("The request has several different {name} headers.\n");
                        return Ok(refusal(StatusCode::BAD_REQUEST, text));
                    }
                };
                let (mut parts, body) = match sender.send_request(request).await {
                    Ok(answer) => answer.into_parts(),
                    Err(error) if error.is_parse_too_large() => {
                        let text = format!(
                            "The Worker's answer has headers larger than {} KiB.\n",
                            MAX_HEAD / 1024
                        );
                        return Ok(refusal(StatusCode::BAD_GATEWAY, text));
                    }
                    Err(error) => return Err(io::Error::other(error)),
                };
                remove_hop_by_hop(&mut parts.headers);
                wharf_http_head::unite_response(&mut parts.headers);
                Ok(Response::from_parts(parts, Either::Left(body)))
            }
            Target::Outside(mut sender) => {
                let answer = sender.send_request(request).await;
                Ok(answer.map_err(io::Error::other)?.map(Either::Left))
            }
        }
    }

    async fn target(&self, host: &Authority) -> io::Result<Target> {
        match &self.kind {
            Kind::Tls { hint, first } => {
                let first = first.lock().await.take();
                if let Some(tunnel) = first {
                    return Ok(Target::Worker(tunnel));
                }
                match self.asked.ask(hint).await? {
                    Answer::Http(tunnel) => Ok(Target::Worker(tunnel)),
                    Answer::Raw(_) => Err(io::Error::other("the mapping has gone")),
                }
            }
            Kind::Clear { outside } => {
                if self.asked.hosts.may_match(host.as_str())
                    && let Answer::Http(tunnel) =
                        self.asked.ask(&Hint::Host(host.to_string())).await?
                {
                    return Ok(Target::Worker(tunnel));
                }
                let mut outside = outside.lock().await;
                if let Some(sender) = outside.as_ref().filter(|sender| !sender.is_closed()) {
                    return Ok(Target::Outside(sender.clone()));
                }
                let way = if self.asked.hosts.any() {
                    match self.asked.ask(&Hint::None).await? {
                        Answer::Http(tunnel) => return Ok(Target::Worker(tunnel)),
                        Answer::Raw(tunnel) => self.asked.raw(tunnel),
                    }
                } else {
                    self.asked.outside().await?
                };
                let sender = connect(&self.asked.shared, way).await?;
                *outside = Some(sender.clone());
                Ok(Target::Outside(sender))
            }
        }
    }
}

/// Speaks HTTP/2 with a client until it ends.
///
/// # Errors
/// The client breaks the protocol, or goes away.
pub(super) async fn serve<S>(route: Route, client: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tasks = Tasks(route.asked.shared.clone());
    let route = Arc::new(route);
    let service = service_fn(move |request| {
        let route = route.clone();
        async move {
            let destination = route.asked.destination;
            // An error resets the request's stream.
            route.answer(request).await.inspect_err(
                |error| tracing::debug!(%destination, %error, "a request by HTTP/2 was refused"),
            )
        }
    });
    hyper::server::conn::http2::Builder::new(tasks)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .serve_connection(TokioIo::new(client), service)
        .await
        .map_err(io::Error::other)
}

async fn connect(shared: &Arc<Shared>, way: Way) -> io::Result<http2::SendRequest<Incoming>> {
    let Way::Raw {
        tunnel,
        cut_without_internet,
    } = way
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let io = TokioIo::new(Prefixed::new(tunnel.early, tunnel.stream));
    let (sender, connection) = http2::Builder::new(Tasks(shared.clone()))
        .max_header_list_size(MAX_HEADER_LIST)
        .handshake(io)
        .await
        .map_err(io::Error::other)?;
    let mut policy = shared.policy.subscribe();
    shared.spawn(async move {
        let off = async {
            if !cut_without_internet || policy.wait_for(|policy| !policy.internet).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            end = connection => if let Err(error) = end {
                tracing::debug!(%error, "a connection of HTTP/2 to the outside ended");
            },
            () = off => {}
        }
    });
    Ok(sender)
}

/// Whom a request is for: what the client says as HTTP/2 does, or else as HTTP/1 does (RFC 9113, 8.3.1).
fn authority(request: &Request<Incoming>) -> io::Result<Authority> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a request for no host");
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    let host = request.headers().get(header::HOST).ok_or_else(malformed)?;
    Authority::try_from(host.as_bytes()).map_err(|_| malformed())
}

/// An answer of this proxy's own.
fn refusal(status: StatusCode, text: String) -> Response<Body> {
    let mut answer = Response::new(Either::Right(Full::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    answer
}

fn to_http1(
    request: Request<Incoming>,
    host: &Authority,
) -> io::Result<Result<Request<Incoming>, Ambiguous>> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.version = Version::HTTP_11;
    // Of HTTP/2; an extension of the URI that is gone now.
    parts.extensions.clear();
    remove_hop_by_hop(&mut parts.headers);
    if let Err(ambiguous) = wharf_http_head::unite_request(&mut parts.headers) {
        return Ok(Err(ambiguous));
    }
    let host = HeaderValue::from_str(host.as_str()).map_err(io::Error::other)?;
    parts.headers.insert(header::HOST, host);
    Ok(Ok(Request::from_parts(parts, body)))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Runs hyper's tasks for as long as the network lives.
#[derive(Debug, Clone)]
struct Tasks(Arc<Shared>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}
