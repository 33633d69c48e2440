//! Containers of the whole node, to look at.

use super::Operator;
use crate::errors::ApiError;
use crate::json as docker_json;
use crate::script::is_true;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use wharf_engine::{Engine, Inspect, lifecycle};

pub(super) async fn list(
    State(op): State<Operator>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Json<Value> {
    let all = is_true(query.get("all").map(String::as_str));
    let instances = op.engine.list(None).await;
    let rows = instances.iter().filter(|i| all || is_running(i));
    Json(rows.map(summary).collect::<Vec<_>>().into())
}

/// Finds an instance of any owner by name, id or id prefix.
pub(crate) async fn find(engine: &Engine, reference: &str) -> Result<Inspect, ApiError> {
    let mut found: Vec<_> = engine.list(None).await;
    found.retain(|i| {
        i.id == reference
            || i.name == reference
            || (reference.len() >= 4 && i.id.starts_with(reference))
    });
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(ApiError::not_found(format!(
            "No such container: {reference}"
        ))),
        n => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("\"{reference}\" fits {n} containers; give more of the id"),
        )),
    }
}

pub(super) async fn inspect(
    State(op): State<Operator>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = find(&op.engine, &id).await?;
    Ok(Json(docker_json::container(&found, &found.image)))
}

pub(super) async fn logs(
    State(op): State<Operator>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let instance = find(&op.engine, &id).await?;
    let records = op.engine.logs(&instance.owner, &instance.id).await?;
    Ok(multiplexed(&records))
}

pub(super) fn is_running(instance: &Inspect) -> bool {
    docker_json::status(&instance.state) == "running"
}

/// A row of `GET /containers/json`.
fn summary(instance: &Inspect) -> Value {
    let state = docker_json::status(&instance.state);
    let status = match &instance.state {
        lifecycle::State::Exited(exit) => format!("Exited ({})", exit.code),
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
