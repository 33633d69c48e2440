//! Container snapshots: what `docker commit` makes for workerd. They are named like images, and are none: a layer in the snapshot store that
//! lies on the image of the container that it was taken of, and starts on no other.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_image::Digest;
use wharf_snapshot::{Copied, Draft, Form, Kind, Snapshot, SnapshotError, View, copy, prune};

use super::volumes::is_uuid;
use super::{Storage, blocking, layer};
use crate::errors::ApiError;
use crate::json;

const PREFIX: &str = "workerd-container-snap-";

/// A name without the tag that Docker clients add.
pub(super) fn without_tag(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

/// Whether a name is that of a container snapshot.
pub(crate) fn is_snapshot(name: &str) -> bool {
    without_tag(name).strip_prefix(PREFIX).is_some_and(is_uuid)
}

/// A synthetic image id: digests of content that nobody compares would only cost time.
fn image_id(snapshot: &Snapshot) -> Digest {
    Digest::of(format!("{}/{}", snapshot.owner, snapshot.name).as_bytes())
}

#[derive(Debug, Deserialize)]
pub(super) struct CommitQuery {
    container: Option<String>,
    repo: Option<String>,
    tag: Option<String>,
}

pub(super) async fn commit(
    State(storage): State<Arc<Storage>>,
    Query(query): Query<CommitQuery>,
) -> Result<Response, ApiError> {
    let name = query.repo.unwrap_or_default();
    let tag = query.tag.filter(|tag| !tag.is_empty());
    if !is_snapshot(&name) || tag.is_some_and(|tag| tag != "latest") {
        return Err(ApiError::unsupported(&format!(
            "a commit to \"{}\" (only workerd's container snapshots are)",
            name.escape_debug()
        )));
    }
    let container = query.container.unwrap_or_default();
    let name = without_tag(&name).to_owned();
    // A task of its own: a caller who goes away in the middle leaves no container frozen.
    let taken = tokio::spawn(async move { storage.commit(container, name).await });
    let snapshot = taken
        .await
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
    let body = json!({ "Id": image_id(&snapshot).as_str() });
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

impl Storage {
    async fn commit(
        self: Arc<Self>,
        container: String,
        name: String,
    ) -> Result<Snapshot, ApiError> {
        let of = self.engine.inspect(&self.owner, &container).await?;
        let held = self.engine.hold(&self.owner, &container).await?;
        let files = held.files().clone();
        let storage = self.clone();
        let copied = tokio::task::spawn_blocking(move || {
            let io = |source| SnapshotError::Io {
                context: "reading the container's files".to_owned(),
                source,
            };
            // Without the volumes, as with Docker; an earlier snapshot becomes part of this one.
            let mut layers = vec![layer(files.upper, false)];
            layers.extend(files.snapshot.map(|path| layer(path, true)));
            let view = View::new(&layers).map_err(io)?;
            let image: Vec<_> = files.image.into_iter().map(|p| layer(p, true)).collect();
            let image = View::new(&image).map_err(io)?;
            let draft = storage.snapshots.draft()?;
            let allowance = storage.snapshots.allowance(&storage.key);
            let root = view.root().map_err(io)?;
            let copied = copy(
                &view,
                &root,
                &draft.files(),
                Form::Layer(&image),
                &allowance,
            )?;
            Ok((draft, copied, image, files.mount_points))
        });
        let copied = copied.await;
        let released = held.release().await;
        let storage = self.clone();
        let kept = blocking(move || {
            let (draft, copied, image, points): (Draft, Copied, View, Vec<_>) =
                copied.map_err(|error| SnapshotError::Io {
                    context: "copying the container's files".to_owned(),
                    source: std::io::Error::other(error),
                })??;
            if let Err(error) = released {
                // The draft goes here, where that may take its time.
                return Ok(Err(error));
            }
            prune(&draft.files(), &image, &points)?;
            let kind = Kind::Container {
                image: of.image,
                image_id: of.image_id,
            };
            let labels = BTreeMap::new();
            let kept = storage
                .snapshots
                .keep(draft, &storage.key, &name, kind, labels, copied);
            Ok(Ok(kept?))
        });
        let kept = kept.await.inspect_err(|error| {
            tracing::warn!(container, reason = error.message, "no container snapshot");
        });
        Ok(kept??)
    }

    /// A container snapshot as Docker shows an image.
    pub(crate) fn snapshot_image(&self, name: &str) -> Result<Value, ApiError> {
        let name = without_tag(name);
        let found = self.snapshots.get(&self.key, name);
        let snapshot = found.ok_or_else(|| no_image(name))?;
        let Kind::Container { image_id: base, .. } = &snapshot.kind else {
            return Err(no_image(name));
        };
        Ok(json!({
            "Id": image_id(&snapshot).as_str(),
            "RepoTags": [format!("{name}:latest")],
            "RepoDigests": [],
            "Parent": base,
            "Created": json::time(Some(snapshot.created_ms)),
            "Architecture": "amd64",
            "Os": "linux",
            "Size": snapshot.archive,
            "Config": {},
        }))
    }

    /// Removes a container snapshot that no container uses.
    pub(crate) async fn remove_snapshot_image(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<Value, ApiError> {
        let name = without_tag(name).to_owned();
        let found = self.snapshots.get(&self.key, &name);
        let snapshot = found
            .filter(|s| s.kind != Kind::Directory)
            .ok_or_else(|| no_image(&name))?;
        if self.engine.snapshots_in_use().contains(&snapshot.files) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("conflict: unable to remove {name}: a container uses it"),
            ));
        }
        let storage = self.clone();
        let removed = name.clone();
        blocking(move || storage.snapshots.remove(&storage.key, &removed)).await?;
        let id = image_id(&snapshot);
        Ok(json!([{ "Untagged": format!("{name}:latest") }, { "Deleted": id.as_str() }]))
    }
}

fn no_image(name: &str) -> ApiError {
    ApiError::not_found(format!("No such image: {name}"))
}

pub(super) async fn inspect(
    State(storage): State<Arc<Storage>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    storage.snapshot_image(&name).map(Json)
}

pub(super) async fn delete(
    State(storage): State<Arc<Storage>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    storage.remove_snapshot_image(&name).await.map(Json)
}
