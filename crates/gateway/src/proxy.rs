//! One request: from the client's head to the response's head. Bodies and tunnels live on in [`crate::body`] and [`tunnel`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wharf_http_head::Ambiguous;

use crate::body::{ReplyBody, RequestBody};
use crate::headers::{self, CF_RAY, ClientAddress, Rays};
use crate::page::{self, Refusal};
use crate::pool::{self, Connection, Lease, Pool};
use crate::{GatewayConfig, Unavailable, Upstream, Upstreams, route};

/// How often a request is tried again, when nothing of it can have been acted on.
const MAX_TRIES: u32 = 4;
/// Between tries when a process that should be ready can't be connected to: its crash is about to be noticed.
const RECONNECT_PAUSE: Duration = Duration::from_millis(25);

/// What all connections share.
pub(crate) struct Gateway {
    pub(crate) config: GatewayConfig,
    /// Of the listener, for links.
    pub(crate) port: u16,
    pub(crate) upstreams: Arc<dyn Upstreams>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) rays: Rays,
    /// Connections and tunnels.
    pub(crate) tasks: TaskTracker,
    /// No new requests; tunnels end.
    pub(crate) stopping: CancellationToken,
}

/// One client connection.
pub(crate) struct Client {
    pub(crate) address: ClientAddress,
    pub(crate) peer: std::net::SocketAddr,
    /// The connection's place among the allowed number, shared with its tunnel.
    pub(crate) permit: Arc<OwnedSemaphorePermit>,
}

impl Gateway {
    /// Answers a request; a failure becomes a page.
    pub(crate) async fn handle(
        self: Arc<Self>,
        client: Arc<Client>,
        request: Request<Incoming>,
    ) -> Response<ReplyBody> {
        let start = Instant::now();
        let ray = self.rays.next();
        let json = page::wants_json(request.headers());
        let log = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (request.method().clone(), request.uri().clone()));
        let mut response = match self.carry(&client, request, &ray).await {
            Ok(response) => response,
            Err(refusal) => {
                let mut response = refusal.page(&ray, json);
                response.headers_mut().insert(CF_RAY, ray.clone());
                response
            }
        };
        *response.version_mut() = Version::HTTP_11;
        if let Some((method, uri)) = log {
            tracing::debug!(
                peer = %client.peer,
                ray = ray.to_str().unwrap_or_default(),
                %method,
                %uri,
                status = response.status().as_u16(),
                head_us = start.elapsed().as_micros() as u64,
                "request"
            );
        }
        response
    }

    async fn carry(
        &self,
        client: &Client,
        mut request: Request<Incoming>,
        ray: &HeaderValue,
    ) -> Result<Response<ReplyBody>, Refusal> {
        let host = host(&request)?;
        acceptable(&request)?;
        let script = route::script_of(&host, &self.config.base_domains)
            .ok_or_else(|| self.no_worker(&host))?;

        if !self.upstreams.is_public(script) {
            return Err(self.not_public(&host, script));
        }

        let websocket = headers::wants_websocket(request.headers());
        let client_upgrade = websocket.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, incoming) = request.into_parts();
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        if parts.uri.authority().is_some() {
            // The absolute form: its authority is the host, whatever the header says (RFC 9112, 3.2.2).
            let host = parts.uri.authority().map(|it| it.as_str().to_owned());
            if let Some(value) = host.and_then(|it| HeaderValue::from_str(&it).ok()) {
                parts.headers.insert(HOST, value);
            }
            parts.uri = origin_form(&parts.uri)?;
        }
        wharf_http_head::unite_request(&mut parts.headers)
            .map_err(|Ambiguous(name)| Refusal::FieldRepeated(name))?;
        let strip = &self.config.strip_headers;
        headers::to_upstream(&mut parts.headers, &client.address, ray, strip, websocket);

        let request = Request::from_parts(parts, RequestBody::new(incoming));
        let (mut response, mut lease) = self.send(script, &host, request).await?;

        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client_upgrade) = client_upgrade else {
                return Err(Refusal::BadGateway(format!(
                    "the Worker \"{script}\" changed the protocol, which the request did not ask for"
                )));
            };
            let upstream_upgrade = hyper::upgrade::on(&mut response);
            self.tasks.spawn(tunnel(
                client_upgrade,
                upstream_upgrade,
                lease.guard.upgraded(),
                (lease, client.permit.clone()),
                self.stopping.clone(),
            ));
            headers::to_client(response.headers_mut(), ray, true);
            return Ok(response.map(|_| ReplyBody::Text(bytes::Bytes::new())));
        }
        headers::to_client(response.headers_mut(), ray, false);
        Ok(response.map(|body| ReplyBody::stream(body, lease)))
    }

    /// Sends the request to the script's process, again if that is safe: the process was gone before it could read the request, or a kept
    /// connection turned out to be closed (workerd closes them without a notice; contract: workerd, 5) and repeating does no harm.
    async fn send(
        &self,
        script: &str,
        host: &str,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let mut kept_ones_too = true;
        let mut tries = 0;
        loop {
            tries += 1;
            let upstream = self.acquire(script, host).await?;
            let kept = kept_ones_too
                .then(|| self.pool.take(upstream.process))
                .flatten();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => match self.connect(&upstream).await {
                    Ok(connection) => connection,
                    Err(error) if tries < MAX_TRIES => {
                        tracing::debug!(script, %error, "connecting to workerd again");
                        drop(upstream);
                        tokio::time::sleep(RECONNECT_PAUSE * tries).await;
                        continue;
                    }
                    Err(error) => {
                        return Err(Refusal::BadGateway(format!(
                            "the process of the Worker \"{script}\" is gone ({error}); it is started again"
                        )));
                    }
                },
            };
            let copy = (is_kept && repeatable(&request)).then(|| without_body(&request));
            let mut failure = match connection.try_send_request(request).await {
                Ok(response) => {
                    upstream.guard.answered();
                    let lease = Lease {
                        guard: upstream.guard,
                        connection,
                        process: upstream.process,
                        pool: self.pool.clone(),
                    };
                    return Ok((response, lease));
                }
                Err(failure) => failure,
            };
            let unsent = failure.take_message();
            let error = failure.into_error();
            // What may have ended one process is not given to the next.
            if unsent.is_none()
                && !error.is_user()
                && let Some(reason) = upstream.guard.end_reason().await
            {
                return Err(Refusal::Unavailable(format!(
                    "the Worker \"{script}\" ended while it worked on the request: {reason}"
                )));
            }
            match unsent.or(copy) {
                Some(unsent) if tries < MAX_TRIES => {
                    tracing::debug!(script, %error, "sending the request again");
                    kept_ones_too = false;
                    request = unsent;
                }
                _ => return Err(refusal(script, &error)),
            }
        }
    }

    async fn acquire(&self, script: &str, host: &str) -> Result<Upstream, Refusal> {
        self.upstreams
            .acquire(script)
            .await
            .map_err(|error| match error {
                Unavailable::NoScript(_) => self.no_worker(host),
                Unavailable::Broken(reason) => Refusal::Unavailable(format!(
                    "the Worker \"{script}\" can't serve now: {reason}"
                )),
            })
    }

    async fn connect(&self, upstream: &Upstream) -> std::io::Result<Connection> {
        self.pool
            .connect(&upstream.endpoint, upstream.process)
            .await
    }

    fn no_worker(&self, host: &str) -> Refusal {
        if !self.config.dev {
            return page::no_worker(host, None);
        }
        let mut scripts = self.upstreams.scripts();
        scripts.retain(|script| self.upstreams.is_public(script));
        let base = self.config.base_domains.first();
        let base = base.map_or("localhost", String::as_str);
        page::no_worker(host, Some((&scripts, base, self.port)))
    }

    /// A stranger is not told that the script exists.
    fn not_public(&self, host: &str, script: &str) -> Refusal {
        let exists = self.config.dev && self.upstreams.scripts().iter().any(|it| it == script);
        if exists {
            return page::not_public(host, script);
        }
        self.no_worker(host)
    }
}

/// The host that the request is for (RFC 9112, 3.2).
fn host<B>(request: &Request<B>) -> Result<String, Refusal> {
    let mut values = request.headers().get_all(HOST).iter();
    let header = values.next().ok_or(Refusal::HostMissing)?;
    if values.next().is_some() {
        return Err(Refusal::HostRepeated);
    }
    let from_header = route::host_of(header.as_bytes()).ok_or(Refusal::HostInvalid)?;
    match request.uri().authority() {
        None => Ok(from_header),
        Some(authority) => {
            route::host_of(authority.as_str().as_bytes()).ok_or(Refusal::HostInvalid)
        }
    }
}

fn acceptable<B>(request: &Request<B>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if request.uri().path() == "*" {
        return Err(Refusal::Asterisk);
    }
    let mut expectations = request.headers().get_all(EXPECT).iter();
    if expectations.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refusal::Expectation);
    }
    if !headers::transfer_coding_is_known(request.headers()) {
        return Err(Refusal::TransferCoding);
    }
    Ok(())
}

fn origin_form(uri: &Uri) -> Result<Uri, Refusal> {
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    Uri::try_from(path).map_err(|_| Refusal::HostInvalid)
}

/// Whether a request that may have reached a Worker can be sent once more (RFC 9110, 9.2.2).
fn repeatable(request: &Request<RequestBody>) -> bool {
    request.method().is_idempotent() && matches!(request.body(), RequestBody::Empty)
}

fn without_body(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy.headers_mut().remove(CONTENT_LENGTH);
    copy
}

fn refusal(script: &str, error: &hyper::Error) -> Refusal {
    if error.is_user() {
        // The only part of a request that can fail on our side is the client's body.
        return Refusal::RequestBody;
    }
    tracing::debug!(script, %error, "no answer from workerd");
    if error.is_parse_too_large() {
        return Refusal::BadGateway(format!(
            "the Worker \"{script}\" sent a response whose headers are larger than {} KiB or more \
             than {}",
            pool::BUFFER / 1024,
            wharf_http_head::fields_within(pool::BUFFER),
        ));
    }
    if error.is_parse() {
        return Refusal::BadGateway(format!(
            "the Worker \"{script}\" sent a response that is not valid HTTP ({error})"
        ));
    }
    Refusal::BadGateway(format!(
        "the Worker \"{script}\" closed the connection without a response: its process ended, or what it was waiting for did (a container, \
         another Worker)"
    ))
}

/// Bytes both ways until both sides are done, the process is about to end, or the gateway stops. `held` is released then.
async fn tunnel<T: Send>(
    client: OnUpgrade,
    upstream: OnUpgrade,
    process_ends: impl Future<Output = ()> + Send,
    held: T,
    stopping: CancellationToken,
) {
    let bytes = async {
        let (client, upstream) =
            tokio::try_join!(client, upstream).map_err(std::io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(upstream)).await
    };
    tokio::select! {
        result = bytes => match result {
            Ok((up, down)) => tracing::debug!(up, down, "WebSocket closed"),
            Err(error) => tracing::debug!(%error, "WebSocket broke off"),
        },
        () = process_ends => {}
        () = stopping.cancelled() => {}
    }
    drop(held);
}
