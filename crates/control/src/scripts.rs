//! Scripts as a whole: looked at, listed, deleted.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use http::StatusCode;
use serde_json::{Value, json};
use wharf_model::{Binding, Script, Version};

use crate::App;
use crate::deployments::Force;
use crate::envelope::{ApiError, ApiResult, Page, WORKER_NOT_FOUND, ok, timestamp};
use crate::settings::tags;
use crate::versions::etag;

fn show(script: &Script, deployed: Option<&Version>, tags: Value) -> Value {
    let mut shown = json!({
        "id": script.name,
        "tag": script.name,
        "tags": tags,
        "etag": deployed.map(etag).unwrap_or_default(),
        "last_deployed_from": "wrangler",
        "usage_model": "standard",
        "has_assets": deployed.is_some_and(|version| version.assets.is_some()),
        "has_modules": true,
        "created_on": timestamp(script.created_ms),
        "modified_on": timestamp(script.modified_ms),
    });
    if let Value::Object(shown) = &mut shown {
        // Decides whether wrangler sends migrations again.
        shown.extend(
            script
                .migration_tag
                .clone()
                .map(|tag| ("migration_tag".to_owned(), tag.into())),
        );
        if let Some(version) = deployed {
            shown.insert("deployment_id".into(), version.id.clone().into());
            shown.insert(
                "compatibility_date".into(),
                version.compatibility_date.clone().into(),
            );
            shown.insert(
                "compatibility_flags".into(),
                json!(version.compatibility_flags),
            );
        }
    }
    shown
}

async fn look(app: &Arc<App>, name: &str) -> ApiResult<(Script, Value)> {
    let script = app.existing(name).await?;
    let name = name.to_owned();
    let (deployed, settings) = app
        .db(move |store| {
            Ok::<_, ApiError>((
                store.deployed_version(&name)?,
                store.script_settings(&name)?,
            ))
        })
        .await?;
    let shown = show(&script, deployed.as_ref(), tags(&settings));
    Ok((script, shown))
}

/// Says of a Worker that does not exist what this path says of it.
fn as_service(name: &str) -> impl FnOnce(ApiError) -> ApiError {
    move |error| match error.code {
        WORKER_NOT_FOUND => ApiError::service_not_found(name),
        _ => error,
    }
}

/// `GET workers/services/<name>`
pub(crate) async fn service(
    State(app): State<Arc<App>>,
    Path((_, name)): Path<(String, String)>,
) -> ApiResult {
    let (script, shown) = look(&app, &name).await.map_err(as_service(&name))?;
    Ok(ok(json!({
        "id": name,
        "default_environment": {
            "environment": "production",
            "script": shown,
            "created_on": timestamp(script.created_ms),
            "modified_on": timestamp(script.modified_ms),
        },
        "created_on": timestamp(script.created_ms),
        "modified_on": timestamp(script.modified_ms),
    })))
}

/// `GET workers/workers/<name>`: where wrangler 4.164 finds the URL that it prints.
pub(crate) async fn worker(
    State(app): State<Arc<App>>,
    Path((_, name)): Path<(String, String)>,
) -> ApiResult {
    let (script, shown) = look(&app, &name).await?;
    let settings = {
        let name = name.clone();
        app.db(move |store| store.script_settings(&name)).await?
    };
    Ok(ok(json!({
        "id": name,
        "name": name,
        "tags": shown["tags"],
        "logpush": false,
        "tail_consumers": [],
        "subdomain": {
            "enabled": settings.enabled,
            "previews_enabled": false,
            "url": app.script_url(&name),
        },
        "created_on": timestamp(script.created_ms),
        "updated_on": timestamp(script.modified_ms),
    })))
}

/// `GET workers/scripts`
pub(crate) async fn list(State(app): State<Arc<App>>, Query(page): Query<Page>) -> ApiResult {
    let shown = app
        .db(|store| {
            let mut shown = Vec::new();
            for script in store.scripts()? {
                let deployed = store.deployed_version(&script.name)?;
                let settings = store.script_settings(&script.name)?;
                shown.push(show(&script, deployed.as_ref(), tags(&settings)));
            }
            Ok::<_, ApiError>(shown)
        })
        .await?;
    Ok(page.of(shown))
}

/// Scripts whose deployed version binds `name`, other than itself.
fn incoming(store: &wharf_store::Store, name: &str) -> ApiResult<Vec<(String, String)>> {
    let mut found = Vec::new();
    for script in store.scripts()? {
        if script.name == name {
            continue;
        }
        let deployed = store.deployed_version(&script.name)?;
        for binding in deployed.iter().flat_map(|version| &version.bindings) {
            if let Binding::Service {
                name: binding,
                service,
                ..
            } = binding
                && service == name
            {
                found.push((script.name.clone(), binding.clone()));
            }
        }
    }
    Ok(found)
}

/// `GET workers/scripts/<name>/references`: asked before a delete.
pub(crate) async fn references(
    State(app): State<Arc<App>>,
    Path((_, name)): Path<(String, String)>,
) -> ApiResult {
    app.existing(&name).await?;
    let incoming = app.db(move |store| incoming(store, &name)).await?;
    let incoming: Vec<Value> = incoming
        .into_iter()
        .map(|(service, binding)| {
            json!({"service": service, "environment": "production", "name": binding})
        })
        .collect();
    Ok(ok(json!({
        "services": {"incoming": incoming, "outgoing": [], "pages_function": false},
        "durable_objects": [],
        "dispatch_outbounds": [],
    })))
}

/// `GET workers/tails/by-consumer/<name>`: asked before a delete. No script can be a tail consumer here.
pub(crate) async fn tail_producers(
    State(app): State<Arc<App>>,
    Path((_, name)): Path<(String, String)>,
) -> ApiResult {
    app.existing(&name).await?;
    Ok(ok(json!([])))
}

/// `DELETE workers/services/<name>`
pub(crate) async fn delete_service(
    app: State<Arc<App>>,
    path: Path<(String, String)>,
    force: Query<Force>,
) -> ApiResult {
    let name = path.0.1.clone();
    delete(app, path, force).await.map_err(as_service(&name))
}

/// `DELETE workers/scripts/<name>`. Container applications stay, as at Cloudflare: wrangler asks for them.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path((_, name)): Path<(String, String)>,
    Query(Force { force }): Query<Force>,
) -> ApiResult {
    app.existing(&name).await?;
    let inner = Arc::clone(&app);
    app.exclusively(name.clone(), async move {
        let script = name.clone();
        let deleted = inner
            .db(move |store| {
                let users = if force { vec![] } else { incoming(store, &script)? };
                if let Some((user, binding)) = users.first() {
                    return Err(ApiError::new(
                        StatusCode::BAD_REQUEST,
                        10064,
                        format!(
                            "Worker {script:?} is bound by Worker {user:?} (binding {binding:?}). Remove the binding, or delete with --force."
                        ),
                    ));
                }
                Ok(store.delete_script(&script)?)
            })
            .await?;
        if deleted {
            inner.effects.script_deleted(&name).await;
        }
        Ok(())
    })
    .await?;
    Ok(ok(Value::Null))
}
