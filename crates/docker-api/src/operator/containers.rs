//! Containers of the whole node, to look at.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, State};
use serde_json::{Value, json};
use wharf_engine::{Inspect, lifecycle};

use super::Operator;
use super::filters::Filters;
use crate::errors::ApiError;
use crate::json as docker_json;
use crate::ports;
use crate::request::is_true;

pub(super) async fn list(
    State(op): State<Operator>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let filters = Filters::parse(query.get("filters").map(String::as_str))?;
    let limit = limit(query.get("limit").map_or("", String::as_str))?;
    // Docker: the last so many are those that have ended, too.
    let all = is_true(query.get("all").map(String::as_str)) || filters.wants_ended();
    let all = all || limit.is_some();
    let ancestors = filters.ancestors().to_vec();
    let images = op.images.clone();
    let image_ids = super::blocking(move || {
        // One that is not here is nobody's ancestor by its id; it may be by its name.
        let resolved = ancestors
            .iter()
            .filter_map(|name| images.resolve(name).ok());
        Ok(resolved.map(|image| image.id.as_str().to_owned()).collect())
    });
    let image_ids: Vec<String> = image_ids.await?;
    let instances = op.engine.list(None).await;
    let rows = instances
        .iter()
        .filter(|i| (all || is_running(i)) && filters.allow(i, &image_ids));
    // Docker: the newest first.
    let rows = rows.rev().take(limit.unwrap_or(usize::MAX));
    Ok(Json(rows.map(summary).collect::<Vec<_>>().into()))
}

/// How many are asked for; 0 and less is no limit, as with Docker.
fn limit(text: &str) -> Result<Option<usize>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let number: i64 = text
        .parse()
        .map_err(|_| ApiError::bad_request(format!("invalid limit \"{text}\": it is no number")))?;
    Ok(usize::try_from(number).ok().filter(|number| *number > 0))
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
        "Ports": ports::row(&instance.published),
        "Mounts": [],
        "HostConfig": { "NetworkMode": "default" },
        "NetworkSettings": { "Networks": {} },
    })
}
