//! The OCI distribution API (spec v1.1) over the image store, as an axum router at `/v2`.
//!
//! Owns: the HTTP dialect and its errors. Must not: keep state of its own.
//!
//! Beside the standard, what wrangler asks of Cloudflare's registry (contract: wrangler, section 3): `_catalog?tags=true` and
//! `PUT /v2/gc/layers`.
//!
//! A token opens every repository, so blobs belong to the node and not to a repository: `HEAD` finds a blob that any repository has, and a client
//! that looks before it pushes sends no layer twice.

mod auth;
mod blobs;
mod error;
mod lists;
mod manifests;
mod route;
mod uploads;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, Method, header};
use wharf_image::ImageStore;

use self::error::{ApiError, Code};
use self::route::Route;

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Pull,
    /// Everything.
    Push,
}

/// Says what a token opens; `None` for a wrong one. It is given the bare token: a Bearer token, or the password of Basic (with any user name).
pub type CheckToken = Arc<dyn Fn(&str) -> Option<Access> + Send + Sync>;

/// Most bytes of one blob.
pub const MAX_BLOB: u64 = 64 << 30;
/// Most bytes of a manifest (distribution specification, pushing manifests: at least 4 MiB).
pub const MAX_MANIFEST: usize = 4 << 20;
/// How long a blob that nothing names stays when a client asks for garbage collection, milliseconds: longer than a push takes from its first blob to
/// its manifest.
const GARBAGE_AGE_MS: u64 = 3_600_000;

#[derive(Clone)]
struct Registry {
    images: ImageStore,
    check: CheckToken,
}

/// The routes below `/v2`.
pub fn router(images: ImageStore, check: CheckToken) -> axum::Router {
    let all = axum::routing::any(serve);
    axum::Router::new()
        .route("/v2", all.clone())
        .route("/v2/", all.clone())
        .route("/v2/{*rest}", all)
        .with_state(Registry { images, check })
}

async fn serve(State(registry): State<Registry>, request: Request) -> Response {
    let mut response = match answer(registry, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(
        "docker-distribution-api-version",
        HeaderValue::from_static("registry/2.0"),
    );
    response
}

async fn answer(registry: Registry, request: Request) -> Result<Response, ApiError> {
    let access =
        auth::access(request.headers(), &registry.check).ok_or_else(ApiError::unauthorized)?;
    if access == Access::Pull && !is_read(request.method()) {
        return Err(ApiError::new(
            Code::Denied,
            "this token may only pull; ask for credentials with the permission \"push\"",
        ));
    }
    let route = Route::parse(request.uri().path())?;
    let (parts, body) = request.into_parts();
    let query = route::Query::parse(parts.uri.query());
    query.check(&route)?;
    let images = registry.images;
    let method = &parts.method;
    match route {
        Route::Base if is_read(method) => Ok(json(http::StatusCode::OK, &serde_json::json!({}))),
        Route::Catalog if is_read(method) => lists::catalog(images, &query).await,
        Route::Collect if method == Method::PUT => {
            run(move || images.collect_blobs(GARBAGE_AGE_MS)).await?;
            Ok(json(http::StatusCode::OK, &serde_json::json!({})))
        }
        Route::Tags(name) if is_read(method) => lists::tags(images, name, &query).await,
        Route::Referrers(name, digest) if is_read(method) => {
            lists::referrers(images, name, &digest, &query).await
        }
        Route::Manifest(name, reference) => match *method {
            Method::GET | Method::HEAD => {
                manifests::get(images, name, reference, &parts.headers).await
            }
            Method::PUT => manifests::put(images, name, reference, &parts.headers, body).await,
            Method::DELETE => manifests::delete(images, name, reference).await,
            _ => Err(not_allowed("GET, HEAD, PUT, DELETE")),
        },
        Route::Blob(_, digest) => match *method {
            Method::GET | Method::HEAD => {
                blobs::get(images, &digest, &parts.headers, method == Method::HEAD).await
            }
            Method::DELETE => Err(ApiError::new(
                Code::Unsupported,
                "blobs are shared between repositories and cannot be deleted one by one: delete the manifests, then PUT /v2/gc/layers",
            )),
            _ => Err(not_allowed("GET, HEAD")),
        },
        Route::Uploads(name) => match *method {
            Method::POST => uploads::begin(images, name, &query, &parts.headers, body).await,
            _ => Err(not_allowed("POST")),
        },
        Route::Upload(name, id) => match *method {
            Method::GET | Method::HEAD => uploads::status(images, name, id).await,
            Method::PATCH => uploads::append(images, name, id, &parts.headers, body).await,
            Method::PUT => uploads::finish(images, name, id, &query, &parts.headers, body).await,
            Method::DELETE => uploads::cancel(images, id).await,
            _ => Err(not_allowed("GET, PATCH, PUT, DELETE")),
        },
        Route::Collect => Err(not_allowed("PUT")),
        Route::Base | Route::Catalog | Route::Tags(_) | Route::Referrers(..) => {
            Err(not_allowed("GET"))
        }
    }
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn not_allowed(allow: &'static str) -> ApiError {
    ApiError::new(
        Code::Unsupported,
        format!("this method is not supported here; allowed: {allow}"),
    )
    .with(header::ALLOW, allow)
}

/// Runs disk work where it may block.
async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, wharf_image::ImageError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(ApiError::internal(&format!("a task failed: {error}"))),
    }
}

fn json(status: http::StatusCode, body: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// A response without a body. The values come from checked names, digests and numbers.
fn empty(
    status: http::StatusCode,
    headers: &[(http::HeaderName, String)],
) -> Result<Response, ApiError> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name, header_value(value)?);
    }
    Ok(response)
}

fn header_value(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(text)
        .map_err(|e| ApiError::internal(&format!("cannot make a header of it: {e}")))
}

const CONTENT_DIGEST: http::HeaderName = http::HeaderName::from_static("docker-content-digest");
