//! The socket beside the Docker API's: what a Worker's prelude says and asks about its own containers, for which Docker has no word
//! (contract: workerd, 1.4). Each is pinned to the start that it was meant for by that start's token, when the prelude knows it.
//!
//! | | body | answer |
//! |---|---|---|
//! | `GET /containers/<name>/labels` | | `{"labels": {...}}` |
//! | `GET /containers/<name>/failure/<token>` | | `{"reason": "..."}`: why that start failed |
//! | `PUT /containers/<name>/labels` | `{"token"?, "labels"}` | 204 |
//! | `PUT /containers/<name>/inactivity` | `{"token"?, "ms"}` | 204 |
//! | `GET /snapshots/<id>` | | `{"size": bytes}` of a directory snapshot: workerd only saw a token |
//!
//! 404: there is no such snapshot or container, or it is not (yet) the one of that start, or it does not run.

use std::collections::BTreeMap;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::routing::{get, put};
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_engine::{Engine, EngineError, Owner};
use wharf_snapshot::Snapshots;

use super::start_options::check_labels;
use crate::errors::ApiError;

const MAX_BODY: usize = 64 << 10;

#[derive(Clone)]
struct Shared {
    owner: Owner,
    engine: Engine,
    snapshots: Snapshots,
}

/// The routes for one script.
pub fn router(script: String, engine: Engine, snapshots: Snapshots) -> Router {
    let shared = Shared {
        owner: Owner::Script(script),
        engine,
        snapshots,
    };
    Router::new()
        .route("/containers/{name}/labels", get(labels).put(set_labels))
        .route("/containers/{name}/inactivity", put(set_inactivity))
        .route("/snapshots/{id}", get(snapshot))
        .route("/containers/{name}/failure/{token}", get(failure))
        .fallback(async || ApiError::page_not_found())
        .method_not_allowed_fallback(async || ApiError::page_not_found())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn labels(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let container = shared.engine.inspect(&shared.owner, &name).await?;
    Ok(Json(json!({ "labels": container.object_labels })))
}

async fn failure(
    State(shared): State<Shared>,
    Path((name, token)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let found = shared.engine.failure(&shared.owner, &name, &token);
    let reason = found.ok_or_else(|| ApiError::not_found("no such start has failed"))?;
    Ok(Json(json!({ "reason": reason })))
}

#[derive(Deserialize)]
struct Labels {
    token: Option<String>,
    labels: BTreeMap<String, String>,
}

async fn set_labels(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let Labels { token, labels } = crate::request::parse(body)?;
    check_labels(&labels)?;
    let Shared { owner, engine, .. } = &shared;
    let set = engine.set_labels(owner, &name, token.as_deref(), labels);
    done(set.await)
}

#[derive(Deserialize)]
struct Inactivity {
    token: Option<String>,
    ms: u64,
}

async fn set_inactivity(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let Inactivity { token, ms } = crate::request::parse(body)?;
    let Shared { owner, engine, .. } = &shared;
    let set = engine.set_inactivity(owner, &name, token.as_deref(), ms);
    done(set.await)
}

async fn snapshot(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let name = crate::storage::directory_snapshot(&id);
    let found = shared.snapshots.get(&shared.owner.to_string(), &name);
    let found = found.ok_or_else(|| ApiError::not_found(format!("there is no snapshot {id}")))?;
    Ok(Json(json!({ "size": found.archive })))
}

fn done(result: Result<(), EngineError>) -> Result<StatusCode, ApiError> {
    match result {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        // Made but not started yet, or ended: both are "not running" to the Worker.
        Err(EngineError::Conflict(reason)) => Err(ApiError::not_found(reason)),
        Err(error) => Err(error.into()),
    }
}
