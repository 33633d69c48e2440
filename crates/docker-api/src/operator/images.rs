//! Images as Docker shows them, and what is done to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_image::{Image, ImageError, ImageStore, Reference};

use super::{Operator, blocking};
use crate::errors::ApiError;
use crate::operations::absent;
use crate::storage::{Storage, is_snapshot};

/// Docker's image JSON (Engine API, ImageInspect).
fn image_json(image: &Image) -> Value {
    let config = image.config.config().as_ref();
    let mut config_json = config
        .and_then(|c| serde_json::to_value(c).ok())
        .unwrap_or_else(|| json!({}));
    // Docker writes what is not set as null: templates name it.
    for key in [
        "Cmd",
        "Entrypoint",
        "Env",
        "ExposedPorts",
        "Labels",
        "Volumes",
    ] {
        if config_json.get(key).is_none() {
            config_json[key] = Value::Null;
        }
    }
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

pub(super) async fn list(State(op): State<Operator>) -> Result<Json<Value>, ApiError> {
    let images = blocking(move || op.images.list()).await?;
    let rows = images.iter().map(|image| {
        let mut row = image_json(image);
        let config = row["Config"].take();
        row["Labels"] = config.get("Labels").cloned().unwrap_or(Value::Null);
        // Unlike in the inspection, seconds since 1970.
        row["Created"] = created_seconds(image).into();
        row["ParentId"] = "".into();
        row["SharedSize"] = (-1).into();
        row["Containers"] = (-1).into();
        row
    });
    Ok(Json(rows.collect::<Vec<_>>().into()))
}

fn created_seconds(image: &Image) -> i64 {
    let created = image.config.created().as_deref().unwrap_or_default();
    created
        .parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_second)
}

/// Splits `library/hello/json` into the image's name and the action after it; names may hold slashes.
fn name_and_action<'a>(rest: &'a str, actions: &[&'static str]) -> Option<(&'a str, &'static str)> {
    let (name, last) = rest.rsplit_once('/')?;
    actions.iter().find(|a| **a == last).map(|a| (name, *a))
}

pub(super) async fn get(
    State(op): State<Operator>,
    Extension(storage): Extension<Arc<Storage>>,
    Path(rest): Path<String>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let Some((name, action)) = name_and_action(&rest, &["json", "history"]) else {
        return Err(absent(Method::GET, uri).await);
    };
    if action == "json" && is_snapshot(name) {
        return storage.snapshot_image(name).map(Json);
    }
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

pub(super) async fn post(
    State(op): State<Operator>,
    Path(rest): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let Some((name, action)) = name_and_action(&rest, &["tag", "push"]) else {
        return Err(absent(Method::POST, uri).await);
    };
    let (images, name) = (op.images.clone(), name.to_owned());
    let with_tag = |base: String, tag: Option<&String>| match tag.filter(|t| !t.is_empty()) {
        Some(tag) => format!("{base}:{tag}"),
        None => base,
    };
    if action == "tag" {
        let repo = query
            .get("repo")
            .ok_or_else(|| ApiError::bad_request("tag needs the parameter \"repo\""))?;
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

pub(super) async fn delete(
    State(op): State<Operator>,
    Extension(storage): Extension<Arc<Storage>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if is_snapshot(&name) {
        return storage.remove_snapshot_image(&name).await.map(Json);
    }
    let removed = blocking(move || op.images.remove(&name)).await?;
    let lines: Vec<Value> = removed
        .into_iter()
        .map(|(what, name)| json!({what: name}))
        .collect();
    Ok(Json(lines.into()))
}

/// `docker pull` (the image must be here) and `docker import` (`fromSrc=-`, the body is a root file system).
pub(super) async fn create(
    State(op): State<Operator>,
    Query(query): Query<BTreeMap<String, String>>,
    body: Body,
) -> Result<Response, ApiError> {
    if query.get("fromSrc").map(String::as_str) == Some("-") {
        let name = query
            .get("repo")
            .filter(|r| !r.is_empty())
            .ok_or_else(|| ApiError::bad_request("an import needs the parameter \"repo\""))?;
        let name = match query.get("tag").filter(|tag| !tag.is_empty()) {
            Some(tag) => format!("{name}:{tag}"),
            None => name.clone(),
        };
        let reader = tokio_util::io::StreamReader::new(
            body.into_data_stream()
                .map(|chunk| chunk.map_err(std::io::Error::other)),
        );
        let reader = tokio_util::io::SyncIoBridge::new(Box::pin(reader));
        let image = blocking(move || op.images.import_rootfs(&name, reader)).await?;
        return Ok(json_lines(vec![json!({"status": image.id.as_str()})]));
    }
    let Some(name) = query.get("fromImage") else {
        return Err(ApiError::bad_request("create needs fromImage or fromSrc=-"));
    };
    let name = match query.get("tag").filter(|t| !t.is_empty()) {
        Some(tag) if tag.starts_with("sha256:") => format!("{name}@{tag}"),
        Some(tag) => format!("{name}:{tag}"),
        None => name.clone(),
    };
    if is_egress_proxy(&name) {
        let text = "Status: not pulled: interception of outbound traffic is a part of this node";
        return Ok(json_lines(vec![json!({"status": text})]));
    }
    let shown = name.clone();
    let image = blocking(move || op.images.resolve(&name)).await?;
    Ok(json_lines(vec![
        json!({"status": format!("Digest: {}", image.manifest)}),
        json!({"status": format!("Status: Image is up to date for {shown}")}),
    ]))
}

/// The image of workerd's network sidecar, which `wrangler dev` pulls (contract: wrangler, section 4). Here it is no image.
fn is_egress_proxy(name: &str) -> bool {
    Reference::parse(name).is_ok_and(|it| it.familiar().starts_with("cloudflare/proxy-everything"))
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
pub(super) struct ManifestQuery {
    name: String,
}

/// What `docker manifest inspect -v` prints.
pub(super) async fn manifest(
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
