//! Uploading versions (with or without deploying them), and showing them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use wharf_model::{Binding, Version};

use crate::App;
use crate::account::USER;
use crate::containers::images;
use crate::deploying::{check_script_name, not_started, source};
use crate::envelope::{ApiError, ApiResult, Page, ok, ok_with_info, timestamp};
use crate::upload::multipart;
use crate::upload::prepare::{Prepared, Request, prepare};

/// `PUT workers/scripts/<name>`: upload and deploy.
pub(crate) async fn put_script(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let (version, reconciled) = store_upload(&app, script, &headers, body, true).await?;
    let shown = json!({
        "id": version.script,
        "tag": version.script,
        "etag": etag(&version),
        // wrangler takes this for the version's id and puts the dashes back.
        "deployment_id": version.id.replace('-', ""),
        "has_assets": version.assets.is_some(),
        "has_modules": true,
        "created_on": timestamp(version.created_ms),
        "modified_on": timestamp(version.created_ms),
        "usage_model": "standard",
    });
    Ok(ok(with_report(shown, reconciled)))
}

/// `exports_reconciliation` is there if the upload had Durable Object classes in `exports`.
fn with_report(mut shown: Value, reconciled: Option<Value>) -> Value {
    if let Some(report) = reconciled {
        shown["exports_reconciliation"] = report;
    }
    shown
}

/// `POST workers/scripts/<name>/versions`: upload only.
pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let (version, reconciled) = store_upload(&app, script, &headers, body, false).await?;
    Ok(ok(with_report(show(&version), reconciled)))
}

async fn store_upload(
    app: &Arc<App>,
    script: String,
    headers: &HeaderMap,
    body: Body,
    deploy: bool,
) -> ApiResult<(Version, Option<Value>)> {
    check_script_name(&script)?;
    let request = Request {
        script: script.clone(),
        source: source(headers),
        deploy,
    };
    let parts = multipart::read(app, headers, body, "metadata").await?;
    let inner = Arc::clone(app);
    app.exclusively(script, async move {
        let Prepared { upload, declared } = inner
            .db(move |store| prepare(store, &request, parts))
            .await?;
        let reconciled = match declared {
            None => None,
            Some(declared) => {
                let missing = inner
                    .effects
                    .missing_classes(&upload.version, declared.asked())
                    .await
                    .map_err(|reason| not_started(&reason))?;
                Some(declared.settle(&missing)?)
            }
        };
        images::prepare_all(&inner, &upload.version).await?;
        Ok((inner.commit(upload).await?, reconciled))
    })
    .await
}

/// `GET workers/scripts/<name>/versions`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    Query(page): Query<Page>,
) -> ApiResult {
    app.existing(&script).await?;
    let (offset, limit) = page.window();
    let (versions, total) = app
        .db(move |store| {
            // More than fit into a u32 are past the end as well.
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            Ok::<_, ApiError>((
                store.versions(&script, limit as u32, offset)?,
                store.version_count(&script)?,
            ))
        })
        .await?;
    let items: Vec<Value> = versions.iter().map(show).collect();
    let info = page.info(items.len(), total as usize);
    Ok(ok_with_info(json!({"items": items}), info))
}

/// `GET workers/scripts/<name>/versions/<id>`
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path((_, script, id)): Path<(String, String, String)>,
) -> ApiResult {
    app.existing(&script).await?;
    let version = find(&app, &script, &id).await?;
    Ok(ok(show(&version)))
}

/// A version of a script.
pub(crate) async fn find(app: &Arc<App>, script: &str, id: &str) -> ApiResult<Version> {
    let (script, id) = (script.to_owned(), id.to_owned());
    app.db(move |store| {
        store
            .version(&id)?
            .filter(|version| version.script == script)
            .ok_or_else(|| {
                ApiError::new(
                    StatusCode::NOT_FOUND,
                    10092,
                    format!(
                        "Worker {script:?} has no version {id:?}; `wrangler versions list` shows those that it has"
                    ),
                )
            })
    })
    .await
}

/// A version as the API shows it.
pub(crate) fn show(version: &Version) -> Value {
    let created = timestamp(version.created_ms);
    json!({
        "id": version.id,
        "number": version.number,
        "metadata": {
            "created_on": created,
            "modified_on": created,
            "source": version.extra.get("source").and_then(Value::as_str).unwrap_or("api"),
            "author_id": "",
            "author_email": USER,
            "hasPreview": false,
        },
        "annotations": version.annotations,
        "resources": {
            "bindings": show_bindings(version),
            "script": {"etag": etag(version), "last_deployed_from": "wrangler"},
            "script_runtime": {
                "compatibility_date": version.compatibility_date,
                "compatibility_flags": version.compatibility_flags,
                "usage_model": "standard",
                "limits": version.extra.get("limits").cloned().unwrap_or_else(|| json!({})),
                "containers": show_containers(version),
            },
        },
    })
}

/// A version's containers as they were uploaded: wrangler sends them again with `--containers-rollout=none`, and finds in them which
/// applications `versions deploy` needs.
fn show_containers(version: &Version) -> Vec<Value> {
    let declared = |class: &String| version.containers.get(class).cloned().unwrap_or_default();
    version
        .container_classes
        .iter()
        .map(|class| {
            let mut shown = json!(declared(class));
            if let Value::Object(shown) = &mut shown {
                shown.insert("class_name".into(), class.clone().into());
            }
            shown
        })
        .collect()
}

/// A version's bindings, without the values of secrets.
pub(crate) fn show_bindings(version: &Version) -> Vec<Value> {
    version
        .bindings
        .iter()
        .map(|binding| match binding {
            Binding::SecretText { name, .. } => json!({"type": "secret_text", "name": name}),
            other => json!(other),
        })
        .collect()
}

/// Identifies the code of a version.
pub(crate) fn etag(version: &Version) -> &str {
    version
        .modules
        .iter()
        .find(|module| module.name == version.main_module)
        .map_or("", |module| &module.blob)
}
