//! The operator socket: images, builds and containers of the whole node, for `wharf docker`, `wharf image` and Docker clients.
//!
//! Owns: Docker's shapes for images and the operator's view of containers; under `/wharf` what Docker's API has no word for.
//! Must not: be reachable by scripts; whoever can open the socket is root on this node, as with Docker's.

use crate::errors::ApiError;
use crate::json as docker_json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tower::ServiceExt;
use wharf_build::{BuildRequest, Builder, Progress};
use wharf_engine::Engine;
use wharf_image::{Image, ImageError, ImageStore};

/// The Docker API version this dialect follows.
pub const API_VERSION: &str = "1.43";

/// Largest JSON body, bytes; a Dockerfile travels in one.
const MAX_JSON: usize = 8 << 20;

/// Checks registry credentials: the password (or token) alone decides.
pub type CheckPassword = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What the operator's requests work on.
#[derive(Clone)]
pub struct Operator {
    /// Instances.
    pub engine: Engine,
    /// Images.
    pub images: ImageStore,
    /// Builds.
    pub builder: Builder,
    /// `docker login`.
    pub check_password: CheckPassword,
    /// This node's registry as clients name it, `host:port`, for error texts.
    pub registry_host: String,
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let status = match &error {
            ImageError::NotFound(_) => StatusCode::NOT_FOUND,
            ImageError::Invalid(_) => StatusCode::BAD_REQUEST,
            ImageError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}

/// The routes of the operator socket. A leading `/v1.NN` is accepted and ignored.
pub fn router(operator: Operator) -> Router {
    let inner = Router::new()
        .route("/_ping", get(async || "OK").head(async || ()))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/auth", post(auth))
        .route("/images/json", get(list_images))
        .route("/images/create", post(create_image))
        .route(
            "/images/{*rest}",
            get(get_image).post(post_image).delete(delete_image),
        )
        .route("/containers/json", get(list_containers))
        .route("/containers/{id}/json", get(inspect_container))
        .route("/containers/{id}/logs", get(container_logs))
        .route("/build", post(build_unsupported))
        .route("/wharf/build", post(build))
        .route("/wharf/manifest", get(manifest))
        .fallback(async || ApiError::page_not_found())
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .with_state(operator);
    Router::new().fallback(async move |request: Request| match strip_version(request) {
        Ok(request) => inner.oneshot(request).await.into_response(),
        Err(e) => e.into_response(),
    })
}

/// `/v1.43/info` -> `/info`.
fn strip_version(mut request: Request) -> Result<Request, ApiError> {
    let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let Some((version, rest)) = target.strip_prefix("/v1.").and_then(|t| t.split_once('/')) else {
        return Ok(request);
    };
    if version.is_empty() || !version.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(request);
    }
    let uri = Uri::try_from(format!("/{rest}"))
        .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, e.to_string()))?;
    *request.uri_mut() = uri;
    Ok(request)
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

async fn version() -> Json<Value> {
    Json(json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": API_VERSION,
        "MinAPIVersion": "1.24",
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
    let running = instances.iter().filter(|i| is_running(i)).count();
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

async fn auth(State(op): State<Operator>, Json(auth): Json<Auth>) -> Result<Json<Value>, ApiError> {
    let host = auth
        .serveraddress
        .trim_start_matches("http://")
        .trim_end_matches('/');
    if host != op.registry_host && !host.starts_with("localhost:") {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            format!(
                "login to \"{host}\" is not supported; this node's registry is {}",
                op.registry_host
            ),
        ));
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

/// Docker's image JSON (Engine API, ImageInspect).
fn image_json(image: &Image) -> Value {
    let config = image.config.config().as_ref();
    let config_json = config
        .and_then(|c| serde_json::to_value(c).ok())
        .unwrap_or_else(|| json!({}));
    json!({
        "Id": image.id.as_str(),
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": "",
        "Created": image.config.created().as_deref().unwrap_or("1970-01-01T00:00:00Z"),
        "Architecture": image.config.architecture().to_string(),
        "Os": image.config.os().to_string(),
        "Size": image.size(),
        "Config": config_json,
        "RootFS": {
            "Type": "layers",
            "Layers": image.layers.iter().map(|l| l.diff_id.as_str()).collect::<Vec<_>>(),
        },
        "Metadata": {},
    })
}

async fn list_images(State(op): State<Operator>) -> Result<Json<Value>, ApiError> {
    let images = blocking(move || op.images.list()).await?;
    let rows = images.iter().map(|image| {
        let mut row = image_json(image);
        let config = row["Config"].take();
        row["Labels"] = config.get("Labels").cloned().unwrap_or(Value::Null);
        row
    });
    Ok(Json(rows.collect::<Vec<_>>().into()))
}

/// Splits `library/hello/json` into the image's name and the action after it; names may hold slashes.
fn name_and_action<'a>(rest: &'a str, actions: &[&'static str]) -> Option<(&'a str, &'static str)> {
    let (name, last) = rest.rsplit_once('/')?;
    actions.iter().find(|a| **a == last).map(|a| (name, *a))
}

async fn get_image(
    State(op): State<Operator>,
    Path(rest): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (name, action) =
        name_and_action(&rest, &["json", "history"]).ok_or_else(ApiError::page_not_found)?;
    let (images, name) = (op.images.clone(), name.to_owned());
    let image = blocking(move || images.resolve(&name)).await?;
    Ok(Json(match action {
        "json" => image_json(&image),
        _ => {
            let history = image.config.history().iter().flatten().rev();
            history
                .map(|h| {
                    json!({
                        "Id": "<missing>",
                        "CreatedBy": h.created_by().as_deref().unwrap_or_default(),
                        "Comment": h.comment().as_deref().unwrap_or_default(),
                    })
                })
                .collect::<Vec<_>>()
                .into()
        }
    }))
}

async fn post_image(
    State(op): State<Operator>,
    Path(rest): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Response, ApiError> {
    let (name, action) =
        name_and_action(&rest, &["tag", "push"]).ok_or_else(ApiError::page_not_found)?;
    let (images, name) = (op.images.clone(), name.to_owned());
    let with_tag = |base: String, tag: Option<&String>| match tag.filter(|t| !t.is_empty()) {
        Some(tag) => format!("{base}:{tag}"),
        None => base,
    };
    if action == "tag" {
        let repo = query.get("repo").ok_or_else(|| {
            ApiError::new(StatusCode::BAD_REQUEST, "tag needs the parameter \"repo\"")
        })?;
        let target = with_tag(repo.clone(), query.get("tag"));
        blocking(move || images.tag(&name, &target)).await?;
        return Ok(StatusCode::CREATED.into_response());
    }
    let reference = with_tag(name, query.get("tag"));
    let shown = reference.clone();
    let (digest, image, size) = blocking(move || {
        let digest = images.push_local(&reference)?;
        let image = images.resolve(&reference)?;
        let size = pushed_manifest(&images, &image)?.1.len();
        Ok((digest, image, size))
    })
    .await?;
    let tag = shown
        .rsplit_once(':')
        .filter(|(_, t)| !t.contains('/'))
        .map_or("latest", |(_, t)| t);
    let mut lines = vec![json!({"status": format!("The push refers to repository [{shown}]")})];
    for layer in &image.layers {
        let id = &layer.digest.hex()[..12];
        lines.push(json!({"id": id, "status": "Layer already exists"}));
    }
    lines.push(json!({"status": format!("{tag}: digest: {digest} size: {size}")}));
    lines.push(
        json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest.as_str(), "Size": size}}),
    );
    Ok(json_lines(lines))
}

fn json_lines(lines: Vec<Value>) -> Response {
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    ([("content-type", "application/json")], text).into_response()
}

async fn delete_image(
    State(op): State<Operator>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let removed = blocking(move || op.images.remove(&name)).await?;
    let lines: Vec<Value> = removed
        .into_iter()
        .map(|(what, name)| json!({what: name}))
        .collect();
    Ok(Json(lines.into()))
}

/// `docker pull` (the image must be here) and `docker import` (`fromSrc=-`, the body is a root file system).
async fn create_image(
    State(op): State<Operator>,
    Query(query): Query<BTreeMap<String, String>>,
    body: Body,
) -> Result<Response, ApiError> {
    if query.get("fromSrc").map(String::as_str) == Some("-") {
        let name = query
            .get("repo")
            .filter(|r| !r.is_empty())
            .ok_or_else(|| {
                ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "an import needs the parameter \"repo\"",
                )
            })?
            .clone();
        let reader = tokio_util::io::StreamReader::new(
            body.into_data_stream()
                .map(|chunk| chunk.map_err(std::io::Error::other)),
        );
        let reader = tokio_util::io::SyncIoBridge::new(Box::pin(reader));
        let image = blocking(move || op.images.import_rootfs(&name, reader)).await?;
        return Ok(json_lines(vec![json!({"status": image.id.as_str()})]));
    }
    let Some(name) = query.get("fromImage") else {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "create needs fromImage or fromSrc=-",
        ));
    };
    let name = match query.get("tag").filter(|t| !t.is_empty()) {
        Some(tag) if tag.starts_with("sha256:") => format!("{name}@{tag}"),
        Some(tag) => format!("{name}:{tag}"),
        None => name.clone(),
    };
    let shown = name.clone();
    let image = blocking(move || op.images.resolve(&name)).await?;
    Ok(json_lines(vec![
        json!({"status": format!("Digest: {}", image.manifest)}),
        json!({"status": format!("Status: Image is up to date for {shown}")}),
    ]))
}

async fn build_unsupported() -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "builds with an uploaded context are not supported yet; use `wharf docker build`",
    )
}

/// The request of `wharf docker build`: the context is a directory on this machine, read by the daemon.
#[derive(Deserialize)]
struct Build {
    context: PathBuf,
    dockerfile: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    build_args: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    target: Option<String>,
    #[serde(default)]
    no_cache: bool,
}

async fn build(State(op): State<Operator>, Json(request): Json<Build>) -> Response {
    let (progress, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let request = BuildRequest {
        context: request.context,
        dockerfile: request.dockerfile,
        tags: request.tags,
        build_args: request.build_args,
        target: request.target,
        no_cache: request.no_cache,
        labels: request.labels,
    };
    // The build runs inside the response's stream: a client that goes away drops the stream, and with it the build.
    let stream = async_lines(
        async move |out: tokio::sync::mpsc::UnboundedSender<Value>| {
            let forward = async {
                while let Some(event) = lines.recv().await {
                    // The receiver is this same stream; it can't be gone while this runs.
                    let _ = out.send(progress_line(event));
                }
            };
            let (result, ()) = tokio::join!(op.builder.build(request, progress), forward);
            let last = match result {
                Ok(image) => {
                    let _ = out.send(json!({"stream": format!("Successfully built {}\n", &image.id.hex()[..12])}));
                    for tag in &image.repo_tags {
                        let _ = out.send(json!({"stream": format!("Successfully tagged {tag}\n")}));
                    }
                    json!({"aux": {"ID": image.id.as_str()}})
                }
                Err(e) => {
                    json!({"error": e.to_string(), "errorDetail": {"message": e.to_string()}})
                }
            };
            let _ = out.send(last);
        },
    );
    (
        [("content-type", "application/json")],
        Body::from_stream(stream),
    )
        .into_response()
}

fn progress_line(event: Progress) -> Value {
    match event {
        Progress::Step {
            number,
            total,
            text,
            cached,
        } => {
            let cached = if cached { " (cached)" } else { "" };
            json!({"stream": format!("[{number}/{total}] {text}{cached}\n")})
        }
        Progress::Output(bytes) => json!({"stream": String::from_utf8_lossy(&bytes)}),
    }
}

/// A stream of JSON lines that `work` sends while it is polled by the stream itself.
fn async_lines<F, Fut>(
    work: F,
) -> impl futures_util::Stream<Item = Result<bytes::Bytes, std::io::Error>> + Send
where
    F: FnOnce(tokio::sync::mpsc::UnboundedSender<Value>) -> Fut,
    Fut: Future<Output = ()> + Send,
{
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let work = Box::pin(work(sender));
    futures_util::stream::unfold(
        (receiver, Some(work)),
        |(mut receiver, mut work)| async move {
            loop {
                let line = match &mut work {
                    None => receiver.recv().await,
                    Some(running) => tokio::select! {
                        biased;
                        line = receiver.recv() => line,
                        () = running => {
                            work = None;
                            continue;
                        }
                    },
                };
                return line.map(|l| (Ok(bytes::Bytes::from(format!("{l}\n"))), (receiver, work)));
            }
        },
    )
}

/// Media type and bytes of an image's manifest in this node's registry.
fn pushed_manifest(images: &ImageStore, image: &Image) -> Result<(String, Vec<u8>), ImageError> {
    let repository = image
        .repo_digests
        .iter()
        .filter_map(|d| d.split_once('/')?.1.split_once('@'))
        .find(|(_, digest)| *digest == image.manifest.as_str())
        .map(|(repository, _)| repository)
        .ok_or_else(|| {
            let text = format!("no such manifest: {} was not pushed", image.manifest);
            ImageError::NotFound(text)
        })?;
    let (_, media_type, bytes) = images.manifest(repository, image.manifest.as_str())?;
    Ok((media_type, bytes))
}

#[derive(Deserialize)]
struct ManifestQuery {
    name: String,
}

/// What `docker manifest inspect -v` prints.
async fn manifest(
    State(op): State<Operator>,
    Query(query): Query<ManifestQuery>,
) -> Result<Json<Value>, ApiError> {
    let value = blocking(move || {
        let image = op.images.resolve(&query.name)?;
        let (media_type, bytes) = pushed_manifest(&op.images, &image)?;
        let manifest: Value = serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::Invalid(format!("the manifest {}: {e}", image.manifest)))?;
        Ok(json!({
            "Ref": query.name,
            "Descriptor": {
                "mediaType": media_type,
                "digest": image.manifest.as_str(),
                "size": bytes.len(),
                "platform": {"architecture": image.config.architecture().to_string(), "os": "linux"},
            },
            "SchemaV2Manifest": manifest,
        }))
    })
    .await?;
    Ok(Json(value))
}

async fn list_containers(
    State(op): State<Operator>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Json<Value> {
    let all = matches!(query.get("all").map(String::as_str), Some("1" | "true"));
    let instances = op.engine.list(None).await;
    let rows = instances.iter().filter(|i| all || is_running(i));
    Json(rows.map(summary).collect::<Vec<_>>().into())
}

/// Finds an instance of any owner by name, id or id prefix.
async fn find(op: &Operator, reference: &str) -> Result<wharf_engine::Inspect, ApiError> {
    let mut found: Vec<_> = op.engine.list(None).await;
    found.retain(|i| {
        i.id == reference
            || i.name == reference
            || (reference.len() >= 4 && i.id.starts_with(reference))
    });
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("No such container: {reference}"),
        )),
        n => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("\"{reference}\" fits {n} containers; give more of the id"),
        )),
    }
}

async fn inspect_container(
    State(op): State<Operator>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json({
        let found = find(&op, &id).await?;
        docker_json::container(&found, &found.image, &[])
    }))
}

async fn container_logs(
    State(op): State<Operator>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let instance = find(&op, &id).await?;
    let records = op.engine.logs(&instance.owner, &instance.id).await?;
    Ok(multiplexed(&records))
}

fn is_running(instance: &wharf_engine::Inspect) -> bool {
    docker_json::status(&instance.state) == "running"
}

/// A row of `GET /containers/json`.
fn summary(instance: &wharf_engine::Inspect) -> Value {
    let state = docker_json::status(&instance.state);
    let status = match &instance.state {
        wharf_engine::lifecycle::State::Exited(exit) => format!("Exited ({})", exit.code),
        _ if state == "running" => "Up".to_owned(),
        _ => state.to_owned(),
    };
    json!({
        "Id": instance.id,
        "Names": [format!("/{}", instance.name)],
        "Image": instance.image,
        "ImageID": instance.image_id,
        "Command": instance.argv.join(" "),
        "Created": instance.created_ms / 1000,
        "State": state,
        "Status": status,
        "Labels": instance.labels,
    })
}

/// Kept output as Docker's multiplexed stream: frames of stream (1 or 2), three zero bytes, length (u32, big-endian), bytes.
fn multiplexed(records: &[(bool, i64, Vec<u8>)]) -> Response {
    let mut out = Vec::new();
    for (is_stderr, _, bytes) in records {
        out.extend_from_slice(&[1 + u8::from(*is_stderr), 0, 0, 0]);
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(bytes);
    }
    (
        [("content-type", "application/vnd.docker.multiplexed-stream")],
        out,
    )
        .into_response()
}
