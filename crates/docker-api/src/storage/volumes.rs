//! Volumes. There are two kinds, and no others: a snapshot (`workerd-snap-<uuid>`), and a clone of one for a container that is about to be
//! made (`workerd-snap-clone-<uuid>`). A clone has no files: it only says what the container's own directory begins with, so nothing of it
//! is left behind. A snapshot that is not filled yet is a name in memory.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_engine::VolumeMount;
use wharf_snapshot::Kind;

use super::{Storage, blocking};
use crate::errors::ApiError;
use crate::fields::{self, others};
use crate::json;

const CLONE_PREFIX: &str = "workerd-snap-clone-";
const SNAPSHOT_PREFIX: &str = "workerd-snap-";

/// A volume without content of its own.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) labels: BTreeMap<String, String>,
    created_ms: i64,
    /// Of a clone: the snapshot's name.
    pub(super) of: Option<String>,
}

/// The volume that workerd makes for the snapshot of this id.
pub(crate) fn directory_snapshot(id: &str) -> String {
    format!("{SNAPSHOT_PREFIX}{id}")
}

/// Whether it is a clone, for a name that a volume can have.
pub(super) fn is_clone(name: &str) -> Option<bool> {
    let (rest, clone) = match name.strip_prefix(CLONE_PREFIX) {
        Some(rest) => (rest, true),
        None => (name.strip_prefix(SNAPSHOT_PREFIX)?, false),
    };
    is_uuid(rest).then_some(clone)
}

/// As workerd writes one.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && uuid::Uuid::try_parse(text).is_ok_and(|uuid| uuid.hyphenated().to_string() == text)
}

fn no_volume(name: &str) -> ApiError {
    ApiError::not_found(format!("get {name}: no such volume"))
}

fn volume_json(name: &str, labels: &BTreeMap<String, String>, created_ms: i64) -> Value {
    json!({
        "Name": name,
        "Driver": "local",
        "Mountpoint": "",
        "Labels": labels,
        "Scope": "local",
        "CreatedAt": json::time(Some(created_ms)),
        "Options": null,
    })
}

impl Storage {
    fn volume(&self, name: &str) -> Option<Value> {
        if let Some(snapshot) = self.snapshots.get(&self.key, name) {
            let of_directory = snapshot.kind == Kind::Directory;
            return of_directory.then(|| volume_json(name, &snapshot.labels, snapshot.created_ms));
        }
        let volumes = self.volumes();
        let volume = volumes.get(name)?;
        Some(volume_json(name, &volume.labels, volume.created_ms))
    }

    /// What a create's `HostConfig.Mounts` mean; parents come before what is mounted in them, as with Docker.
    pub(crate) async fn mounts(
        self: &Arc<Self>,
        mounts: &[Value],
    ) -> Result<Vec<VolumeMount>, ApiError> {
        let mut found: Vec<(PathBuf, Option<String>)> = Vec::new();
        for mount in mounts {
            let mount: Mount = serde_json::from_value(mount.clone())
                .map_err(|error| ApiError::bad_request(format!("invalid mount: {error}")))?;
            let target = target(&mount.target)?;
            if found.iter().any(|(other, _)| *other == target) {
                let text = format!("Duplicate mount point: {}", target.display());
                return Err(ApiError::bad_request(text));
            }
            if mount.kind != "volume" || is_clone(&mount.source) != Some(true) || mount.read_only {
                return Err(ApiError::unsupported(&format!(
                    "a mount of type \"{}\" with the source \"{}\"",
                    mount.kind, mount.source
                )));
            }
            let volumes = self.volumes();
            let volume = volumes.get(&mount.source).ok_or_else(|| {
                // Not 404: workerd takes that for a missing image.
                ApiError::bad_request(format!("there is no volume {}", mount.source))
            })?;
            found.push((target, volume.of.clone()));
        }
        found.sort_by_key(|(target, _)| target.components().count());
        let mut given = Vec::new();
        for (target, of) in found {
            let lower = match of {
                None => Vec::new(),
                Some(name) => {
                    let storage = self.clone();
                    let asked = name.clone();
                    let snapshot =
                        blocking(move || storage.snapshots.use_now(&storage.key, &asked)).await?;
                    let snapshot = snapshot.ok_or_else(|| {
                        ApiError::bad_request(format!("the snapshot {name} is gone"))
                    })?;
                    vec![snapshot.files]
                }
            };
            given.push(VolumeMount { target, lower });
        }
        Ok(given)
    }
}

/// What of a mount counts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    #[serde(rename = "Type")]
    kind: String,
    source: String,
    target: String,
    read_only: bool,
}

/// Where to mount, without `.` and double slashes.
pub(crate) fn target(text: &str) -> Result<PathBuf, ApiError> {
    let path = PathBuf::from(text);
    let clean: PathBuf = path
        .components()
        .filter(|c| !matches!(c, Component::CurDir))
        .collect();
    let plain = !clean.components().any(|c| c == Component::ParentDir);
    if !clean.is_absolute() || !plain || text.contains('\0') || clean.components().count() < 2 {
        return Err(ApiError::bad_request(format!(
            "invalid mount target \"{}\": it must be an absolute path below / without \"..\"",
            text.escape_debug()
        )));
    }
    Ok(clean)
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
}

/// Docker's filters: by a part of the name, and by labels (`key` or `key=value`), all of which must
/// hold. `wrangler dev` removes at its end what has its session's label.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Filters {
    name: Vec<String>,
    label: Vec<String>,
}

impl Filters {
    fn take(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let named = self.name.is_empty() || self.name.iter().any(|part| name.contains(part));
        let has = |asked: &String| match asked.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(asked),
        };
        named && self.label.iter().all(has)
    }
}

/// workerd asks once for snapshots that are older than thirty days.
pub(super) async fn list(
    State(storage): State<Arc<Storage>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, ApiError> {
    let filters: Filters = match query.filters.as_deref().filter(|f| !f.is_empty()) {
        None => Filters::default(),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("invalid filter: {error}")))?,
    };
    let kept = storage.snapshots.list(&storage.key).into_iter();
    let mut volumes: BTreeMap<String, Value> = kept
        .filter(|s| s.kind == Kind::Directory && filters.take(&s.name, &s.labels))
        .map(|s| {
            (
                s.name.clone(),
                volume_json(&s.name, &s.labels, s.created_ms),
            )
        })
        .collect();
    for (name, volume) in storage.volumes().iter() {
        if !filters.take(name, &volume.labels) {
            continue;
        }
        let json = volume_json(name, &volume.labels, volume.created_ms);
        volumes.entry(name.clone()).or_insert(json);
    }
    let volumes: Vec<Value> = volumes.into_values().collect();
    Ok(Json(json!({ "Volumes": volumes, "Warnings": [] })).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

pub(super) async fn create(
    State(storage): State<Arc<Storage>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body: Create = fields::read(&body?, others::VOLUME)?;
    let name = body.name.unwrap_or_default();
    if is_clone(&name).is_none() {
        return Err(ApiError::unsupported(&format!(
            "a volume of the name \"{}\": only the snapshots of workerd are; a volume",
            name.escape_debug()
        )));
    }
    if storage.volume(&name).is_none() {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let volume = Volume {
            labels: body.labels.unwrap_or_default(),
            created_ms: since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(0)),
            of: None,
        };
        storage.volumes().insert(name.clone(), volume);
    }
    let json = storage.volume(&name).ok_or_else(|| no_volume(&name))?;
    Ok((StatusCode::CREATED, Json(json)).into_response())
}

pub(super) async fn inspect(
    State(storage): State<Arc<Storage>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let json = storage.volume(&name).ok_or_else(|| no_volume(&name))?;
    Ok(Json(json).into_response())
}

pub(super) async fn remove(
    State(storage): State<Arc<Storage>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let pending = storage.volumes().remove(&name).is_some();
    let kept = storage.snapshots.get(&storage.key, &name);
    let Some(kept) = kept.filter(|s| s.kind == Kind::Directory) else {
        return match pending {
            true => Ok(StatusCode::NO_CONTENT),
            false => Err(no_volume(&name)),
        };
    };
    if storage.engine.snapshots_in_use().contains(&kept.files) {
        let text = format!("remove {name}: volume is in use");
        return Err(ApiError::new(StatusCode::CONFLICT, text));
    }
    blocking(move || storage.snapshots.remove(&storage.key, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_workerds_own_names_are_volumes() {
        let uuid = "0a1b2c3d-0000-4000-8000-0123456789ab";
        assert_eq!(is_clone(&format!("workerd-snap-{uuid}")), Some(false));
        assert_eq!(is_clone(&format!("workerd-snap-clone-{uuid}")), Some(true));
        for bad in [
            "",
            "data",
            "workerd-snap-",
            "workerd-snap-../../x",
            &format!("workerd-snap-{}", uuid.to_uppercase()),
            &format!("workerd-snap-{{{uuid}}}"),
            &format!("workerd-snap-{}", uuid.replace('-', "")),
        ] {
            assert_eq!(is_clone(bad), None, "{bad}");
        }
    }

    #[test]
    fn targets_are_absolute_and_below_the_root() {
        assert_eq!(target("/a//b/./c/").unwrap(), PathBuf::from("/a/b/c"));
        for bad in ["/", "//", "", "a/b", "/a/../b", "/.", "/a\0b"] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }
}
