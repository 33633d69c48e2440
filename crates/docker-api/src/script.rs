//! What workerd calls (contract: workerd, 1.2 and 1.3). On a socket of one workerd process, this and nothing else: the socket is the caller's identity.
//! On the operator's socket it is part of the whole dialect ([`crate::operator`]), for workerd under `wrangler dev` and for Docker clients.
//! What a caller may have is decided in `wharf_node`.
//!
//! A Durable Object's container `C` comes as two: first the sidecar `C-proxy`, which is no container here but a [`wharf_net::Network`] with its ingress,
//! then `C` itself, which joins the sidecar's network. Sidecars live in this router. On a process's own socket
//! they are gone with it, except those that a container uses: the engine holds their network.

mod body;
mod create;
mod kind;
pub mod prelude;
pub(crate) mod security;
mod sidecar;
mod start_options;
mod surroundings;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use wharf_engine::lifecycle::Until;
use wharf_engine::{Engine, EngineError, Owner};
use wharf_node::{Applications, Caller};
use wharf_snapshot::Snapshots;

use self::kind::Kind;
use self::sidecar::Sidecars;
use crate::errors::ApiError;
use crate::exec;
use crate::json;
use crate::operations::absent;
use crate::peer::Peer;
use crate::storage::{self, Storage};
use crate::version::versioned;

/// The label that keeps the image name which workerd asked for. Longer than an object's own label can be.
const ASKED_IMAGE_LABEL: &str = "dev.wharf.asked-image";
/// What the platform says to an object that it has no container for.
const NO_INSTANCE: &str =
    "there is no container instance that can be provided to this durable object";
/// Largest request body.
const MAX_BODY: usize = 4 << 20;

/// What the handlers of one socket share.
pub(crate) struct Shared {
    owner: Owner,
    engine: Engine,
    networks: wharf_net::Networks,
    caller: Caller,
    sidecars: Arc<Sidecars>,
    storage: Arc<Storage>,
}

type Context = State<Arc<Shared>>;
type Answer = Result<Response, ApiError>;

impl Shared {
    /// What a start's failure is to the Worker.
    fn note_failure(&self, name: &str, token: Option<String>, error: &ApiError) {
        if error.status == StatusCode::NOT_MODIFIED {
            return;
        }
        let reason = match error.status {
            // @cloudflare/containers knows this sentence: it waits for its turn, and then answers 503.
            StatusCode::SERVICE_UNAVAILABLE => format!("{NO_INSTANCE}: {}", error.message),
            _ => error.message.clone(),
        };
        // Nothing will ever listen in it: whoever asks is not to wait.
        self.sidecars.give_up(&format!("{name}-proxy"), &reason);
        self.engine.note_failure(&self.owner, name, token, reason);
    }
}

/// The routes for one script.
pub fn router(
    script: String,
    engine: Engine,
    networks: wharf_net::Networks,
    snapshots: Snapshots,
    applications: Arc<dyn Applications>,
) -> Router {
    let owner = Owner::Script(script.clone());
    let execs = exec::routes(engine.clone(), owner.clone());
    let storage = Arc::new(Storage::new(owner.clone(), engine.clone(), snapshots));
    let shared = Shared {
        owner,
        engine,
        networks,
        caller: Caller::Script {
            script,
            applications,
        },
        sidecars: Arc::default(),
        storage: storage.clone(),
    };
    versioned(
        routes()
            .merge(execs)
            .layer(axum::middleware::from_fn(refuse_long_bodies))
            .with_state(Arc::new(shared))
            .merge(storage::routes(storage))
            .fallback(absent)
            .method_not_allowed_fallback(absent),
    )
}

/// The same routes for the operator, who may have what it asks for; without those of images, which are the operator's own.
pub(crate) fn operator_routes(
    engine: Engine,
    networks: wharf_net::Networks,
    storage: Arc<Storage>,
) -> Router {
    let execs = exec::routes(engine.clone(), Owner::Operator);
    let shared = Shared {
        owner: Owner::Operator,
        engine,
        networks,
        caller: Caller::Operator,
        sidecars: Arc::default(),
        storage: storage.clone(),
    };
    routes()
        .merge(execs)
        .with_state(Arc::new(shared))
        .merge(storage::routes(storage))
}

/// The routes that every caller has.
fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/networks/bridge", get(bridge))
        .route("/containers/create", post(create::create))
        .route("/containers/{name}", delete(remove))
        .route("/containers/{name}/json", get(inspect))
        .route("/containers/{name}/start", post(start))
        .route("/containers/{name}/stop", post(stop))
        .route("/containers/{name}/kill", post(kill))
        .route("/containers/{name}/wait", post(wait))
        .merge(unsupported())
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// What workerd can call and this Wharf cannot do: each names the feature as the Worker's author knows it.
fn unsupported() -> Router<Arc<Shared>> {
    // The body is read although nobody needs it: a client that is still sending would see a broken connection instead of the answer.
    async fn resize(_: Bytes) -> ApiError {
        ApiError::unsupported("resize of a terminal")
    }
    Router::new().route("/containers/{name}/resize", post(resize))
}

/// A body that says it is too long is not even read.
async fn refuse_long_bodies(request: Request, next: Next) -> Response {
    let length = hyper::body::Body::size_hint(request.body()).lower();
    if length > MAX_BODY as u64 {
        let text = format!("the request body has {length} bytes, more than {MAX_BODY}");
        return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text).into_response();
    }
    next.run(request).await
}

/// workerd binds its egress listener to the gateway's address. Loopback will do: whoever connects is this daemon.
async fn bridge() -> Response {
    Json(json!({
        "Name": "bridge",
        "Id": "wharf",
        "Driver": "bridge",
        "Scope": "local",
        "IPAM": { "Driver": "default", "Config": [{ "Subnet": "127.0.0.0/8", "Gateway": "127.0.0.1" }] },
    }))
    .into_response()
}

async fn inspect(
    State(shared): Context,
    Path(name): Path<String>,
    peer: Option<Extension<Peer>>,
) -> Answer {
    match shared.kind(&name).await {
        Kind::Sidecar => {
            let sidecar = shared.sidecar(&name).await?;
            shared.tie_sidecar(&name, peer.map(|Extension(peer)| peer));
            return Ok(Json(sidecar.json(&name)).into_response());
        }
        Kind::Helper => return shared.storage.inspect_helper(&name),
        Kind::Instance => {}
    }
    let container = shared.engine.inspect(&shared.owner, &name).await?;
    let image = container.labels.get(ASKED_IMAGE_LABEL);
    let image = image.unwrap_or(&container.image);
    Ok(Json(json::container(&container, image)).into_response())
}

async fn start(State(shared): Context, Path(name): Path<String>) -> Answer {
    match shared.kind(&name).await {
        Kind::Sidecar => {
            let started = shared.sidecars.start(&name);
            return started.map(IntoResponse::into_response);
        }
        Kind::Helper => return shared.storage.start_helper(&name),
        Kind::Instance => {}
    }
    let started = shared.engine.start_instance(&shared.owner, &name).await;
    started
        .map_err(ApiError::from)
        .inspect_err(|error| shared.note_failure(&name, None, error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
struct StopQuery {
    /// Seconds.
    t: Option<i64>,
}

async fn stop(
    State(shared): Context,
    Path(name): Path<String>,
    Query(query): Query<StopQuery>,
) -> Answer {
    // Docker: a negative time is no end, which nobody here could wait for.
    let grace_ms = query
        .t
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(|seconds| seconds.saturating_mul(1000));
    shared.engine.stop(&shared.owner, &name, grace_ms).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
struct KillQuery {
    /// Name or number; Docker's default is SIGKILL.
    signal: Option<String>,
}

async fn kill(
    State(shared): Context,
    Path(name): Path<String>,
    Query(query): Query<KillQuery>,
) -> Answer {
    let text = query.signal.as_deref().unwrap_or("SIGKILL");
    let signal = wharf_engine::parse_signal(text)
        .ok_or_else(|| ApiError::bad_request(format!("invalid signal: {text}")))?;
    shared.engine.signal(&shared.owner, &name, signal).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
struct RemoveQuery {
    /// `1`, `true`, ...
    force: Option<String>,
}

async fn remove(
    State(shared): Context,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Answer {
    match shared.kind(&name).await {
        Kind::Sidecar => shared.sidecars.remove(&name)?,
        Kind::Helper => shared.storage.remove_helper(&name),
        Kind::Instance => {
            let force = crate::request::is_true(query.force.as_deref());
            shared.engine.remove(&shared.owner, &name, force).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
struct WaitQuery {
    condition: Option<String>,
}

async fn wait(
    State(shared): Context,
    Path(name): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Answer {
    let until = match query.condition.as_deref() {
        None | Some("" | "not-running") => Until::NotRunning,
        Some("next-exit") => Until::NextExit,
        Some("removed") => Until::Removed,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "invalid condition: \"{other}\""
            )));
        }
    };
    let code: Pin<Box<dyn Future<Output = Result<i32, EngineError>> + Send>> =
        match shared.kind(&name).await {
            Kind::Helper => return shared.storage.wait_for_helper(&name),
            Kind::Sidecar => {
                let removed = shared.sidecars.removed(&name)?;
                // It ends only by its removal.
                Box::pin(async move {
                    removed.await;
                    Ok(137)
                })
            }
            Kind::Instance => {
                shared.engine.inspect(&shared.owner, &name).await?;
                Box::pin(async move {
                    let exit = shared.engine.wait_until(&shared.owner, &name, until).await;
                    exit.map(|exit| exit.code)
                })
            }
        };
    // The head goes at once: Docker's client waits for it before it starts the container whose end it waits for.
    let body = futures_util::stream::once(async move {
        let answer = match code.await {
            Ok(code) => json!({ "StatusCode": code }),
            Err(error) => json!({ "StatusCode": 125, "Error": { "Message": error.to_string() } }),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(answer.to_string()))
    });
    let media_type = [("content-type", "application/json")];
    Ok((media_type, Body::from_stream(body)).into_response())
}

/// Reads a create as its handler does.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_create(name: &str, body: &[u8]) {
    let _ = wharf_node::Object::parse(name);
    if let Ok(body) = serde_json::from_slice::<body::Body>(body) {
        let _ = sidecar::is_operators_sidecar(&body);
        let _ = body.start(&Caller::Operator, true);
        let _ = body.host_config.map(|host| host.own_network());
    }
}

/// Whether the handler of a create can read a body.
#[cfg(test)]
pub(crate) fn reads_create(body: &serde_json::Value) -> bool {
    crate::request::typed::<body::Body>(body).is_ok()
}

/// Reads what a prelude sent along with a start.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_start_options(text: &str) {
    let mut env = vec![
        "A=b".to_owned(),
        format!("{}={text}", wharf_model::names::START_VARIABLE),
    ];
    let carried = start_options::StartOptionsText::take(&mut env);
    assert_eq!(env, ["A=b"], "the container sees no more");
    let Ok(carried) = carried else { return };
    let mut start = wharf_node::StartRequest::default();
    carried.apply(&mut start);
    let most = wharf_engine::Limits {
        memory_bytes: Some(1 << 28),
        cpu_millis: Some(500),
        disk_bytes: Some(2_000_000_000),
        ..wharf_engine::Limits::default()
    };
    let application = wharf_node::ApplicationInfo {
        id: "a".to_owned(),
        name: "a".to_owned(),
        image: None,
        named_images: Vec::new(),
        limits: most.clone(),
        largest: most,
        max_instances: 1,
        min_instances: 0,
        isolation: None,
        no_new_privileges: false,
        variables: Vec::new(),
    };
    if let Some(Ok(limits)) = start.size.map(|size| size.limits(&application)) {
        // The kernel's least, and never none at all.
        assert!(limits.cpu_millis.is_some_and(|millis| millis >= 10));
        assert!(limits.memory_bytes.is_some() && limits.disk_bytes.is_some());
    }
}
