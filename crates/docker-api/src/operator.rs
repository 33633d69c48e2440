//! The operator socket: images, builds and containers of the whole node, for `wharf docker`, `wharf image` and Docker clients.
//!
//! Owns: Docker's shapes for images and the operator's view of containers; under `/wharf` what Docker's API has no word for.
//! Must not: be reachable by scripts; whoever can open the socket is root on this node, as with Docker's.

mod build;
mod containers;
mod filters;
mod images;
mod output;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_build::Builder;
use wharf_engine::{Engine, Owner};
use wharf_image::{ImageError, ImageStore};

use crate::errors::ApiError;
use crate::fields::{self, others};
use crate::operations::absent;
use crate::storage::Storage;
use crate::version::{API_VERSION, OLDEST, versioned};

/// Largest JSON body, bytes; a Dockerfile travels in one.
const MAX_JSON: usize = 8 << 20;

/// Checks registry credentials: the password (or token) alone decides.
pub type CheckPassword = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What the operator's requests work on.
#[derive(Clone)]
pub struct Operator {
    /// Instances.
    pub engine: Engine,
    /// Networks for the operator's own containers.
    pub networks: wharf_net::Networks,
    /// Images.
    pub images: ImageStore,
    /// Snapshots of the operator's own containers.
    pub snapshots: wharf_snapshot::Snapshots,
    /// Builds.
    pub builder: Builder,
    /// `docker login`.
    pub check_password: CheckPassword,
    /// This node's registry as clients name it, `host:port`, for error texts.
    pub registry_host: String,
}

/// The routes of the operator socket.
pub fn router(operator: Operator) -> Router {
    let storage = Arc::new(Storage::new(
        Owner::Operator,
        operator.engine.clone(),
        operator.snapshots.clone(),
    ));
    let containers = crate::script::operator_routes(
        operator.engine.clone(),
        operator.networks.clone(),
        storage.clone(),
    );
    let inner = Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/auth", post(auth))
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::create))
        .route(
            "/images/{*rest}",
            get(images::get).post(images::post).delete(images::delete),
        )
        .route("/containers/json", get(containers::list))
        .route("/containers/{name}/logs", get(output::logs))
        .route("/containers/{name}/attach", post(output::attach))
        .route("/build", post(build::with_uploaded_context))
        .route("/wharf/build", post(build::build))
        .route("/wharf/manifest", get(images::manifest))
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(axum::Extension(storage))
        .with_state(operator)
        .merge(containers)
        .fallback(absent)
        .method_not_allowed_fallback(absent);
    versioned(inner)
}

/// Reads filters of the container list.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_filters(text: &str) -> Result<(), ApiError> {
    filters::Filters::parse(Some(text)).map(drop)
}

/// Runs store work, which blocks, off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?
        .map_err(ApiError::from)
}

/// A client that is not told the version here speaks one so old that `docker exec` has no `--workdir`.
async fn ping() -> impl IntoResponse {
    let headers = [
        ("api-version", API_VERSION),
        ("ostype", "linux"),
        ("docker-experimental", "false"),
    ];
    (headers, "OK")
}

async fn version() -> Json<Value> {
    Json(json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": API_VERSION,
        "MinAPIVersion": OLDEST,
        "Os": "linux",
        "Arch": "amd64",
        "Platform": {"Name": "Wharf"},
        "KernelVersion": kernel_version(),
    }))
}

fn kernel_version() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

async fn info(State(op): State<Operator>) -> Result<Json<Value>, ApiError> {
    let images = op.images.clone();
    let count = blocking(move || images.list()).await?.len();
    let instances = op.engine.list(None).await;
    let running = instances
        .iter()
        .filter(|i| containers::is_running(i))
        .count();
    Ok(Json(json!({
        "ID": "wharf",
        "Name": std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim(),
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "OperatingSystem": "Wharf",
        "OSType": "linux",
        "Architecture": "x86_64",
        "Driver": "overlay2",
        "KernelVersion": kernel_version(),
        "Containers": instances.len(),
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": instances.len() - running,
        "Images": count,
        "NCPU": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
        "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"]},
    })))
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    password: String,
    #[serde(default)]
    serveraddress: String,
}

async fn auth(State(op): State<Operator>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let auth: Auth = fields::read(&body, others::AUTH)?;
    let host = auth
        .serveraddress
        .trim_start_matches("http://")
        .trim_end_matches('/');
    if host != op.registry_host && !host.starts_with("localhost:") {
        return Err(ApiError::bad_request(format!(
            "login to \"{host}\" is not supported; this node's registry is {}",
            op.registry_host
        )));
    }
    if !(op.check_password)(&auth.password) {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            format!("unauthorized: the registry {host} does not know this password"),
        ));
    }
    Ok(Json(
        json!({"Status": "Login Succeeded", "IdentityToken": ""}),
    ))
}
