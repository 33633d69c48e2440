//! Which version serves: deploying one that was uploaded, rolling back, and the history.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_model::{Binding, Version};
use wharf_store::{Deployment, NewDeployment, Store};

use crate::account::USER;
use crate::body;
use crate::containers::images;
use crate::deploying::source;
use crate::envelope::{ApiError, ApiResult, ok, timestamp};
use crate::upload::metadata::annotations;
use crate::{App, fields, versions};

/// As many as Cloudflare shows.
const SHOWN: u32 = 10;

/// `GET workers/scripts/<name>/deployments`: newest first.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
) -> ApiResult {
    app.existing(&script).await?;
    let deployments = app
        .db(move |store| store.deployments(&script, SHOWN))
        .await?;
    let shown: Vec<Value> = deployments.iter().map(show).collect();
    Ok(ok(json!({"deployments": shown})))
}

/// `GET workers/scripts/<name>/deployments/<id>`
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path((_, script, id)): Path<(String, String, String)>,
) -> ApiResult {
    app.existing(&script).await?;
    let deployments = app
        .db(move |store| store.deployments(&script, u32::MAX))
        .await?;
    match deployments.iter().find(|deployment| deployment.id == id) {
        Some(deployment) => Ok(ok(show(deployment))),
        None => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            10092,
            format!("there is no deployment {id:?}"),
        )),
    }
}

fn show(deployment: &Deployment) -> Value {
    json!({
        "id": deployment.id,
        "source": deployment.source,
        "strategy": "percentage",
        "author_email": USER,
        "annotations": deployment.annotations,
        "versions": [{"version_id": deployment.version, "percentage": 100}],
        "created_on": timestamp(deployment.created_ms),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBody {
    strategy: Option<String>,
    code_update_strategy: Option<Value>,
    versions: Vec<Share>,
    #[serde(default)]
    annotations: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    version_id: String,
    percentage: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Force {
    pub(crate) force: bool,
}

/// `POST workers/scripts/<name>/deployments`: `wrangler deploy`'s second step, `versions deploy`, `rollback`.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    Query(Force { force }): Query<Force>,
    headers: HeaderMap,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let new: NewBody = body::json(request).await?;
    let id = only_version(&new)?;
    let version = versions::find(&app, &script, &id).await?;
    images::prepare_all(&app, &version).await?;
    fields::CODE_UPDATE.check_value(new.code_update_strategy.as_ref())?;
    let annotations = annotations(new.annotations.iter())?;
    let mut deployment = NewDeployment {
        source: source(&headers).to_owned(),
        annotations,
    };
    let inner = Arc::clone(&app);
    let result = app
        .exclusively(script.clone(), async move {
            let name = script.clone();
            let (undo, deployments) = inner
                .db(move |store| {
                    let back = check(store, &version, force)?;
                    if back {
                        deployment
                            .annotations
                            .insert("workers/triggered_by".into(), "rollback".into());
                    }
                    let undo = store.deploy_version(&name, &version.id, &deployment, back)?;
                    Ok::<_, ApiError>((undo, store.deployments(&name, 1)?))
                })
                .await?;
            inner.activate(&script, undo).await?;
            Ok(deployments.first().map(show).unwrap_or(Value::Null))
        })
        .await?;
    Ok(ok(result))
}

/// The version that gets all requests. More than one can't be served yet.
fn only_version(new: &NewBody) -> ApiResult<String> {
    if let Some(other) = new.strategy.as_deref().filter(|s| *s != "percentage") {
        return Err(ApiError::bad_request(format!(
            "unknown deployment strategy {other:?}"
        )));
    }
    let serving: Vec<&Share> = new.versions.iter().filter(|v| v.percentage > 0.0).collect();
    match serving[..] {
        [] => Err(ApiError::bad_request(
            "a deployment needs a version with 100 percent",
        )),
        [only] if only.percentage == 100.0 => Ok(only.version_id.clone()),
        _ => Err(ApiError::unsupported(
            "gradual deployments (a split over versions)",
        )),
    }
}

/// Checks that a version can serve now, and tells whether this is a rollback.
fn check(store: &Store, version: &Version, force: bool) -> ApiResult<bool> {
    let namespaces = store.namespaces(&version.script)?;
    let classes = version
        .bindings
        .iter()
        .filter_map(|binding| match binding {
            Binding::DurableObjectNamespace { class_name, .. } => Some(class_name),
            _ => None,
        })
        .chain(&version.container_classes);
    for class in classes {
        if !namespaces.iter().any(|namespace| namespace.class == *class) {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                10061,
                format!(
                    "version {} uses the Durable Object class '{class}', which a later migration renamed or deleted; it can't serve any more",
                    version.id
                ),
            ));
        }
    }
    let deployed = store.deployed_version(&version.script)?;
    let back = deployed.is_some_and(|deployed| deployed.number > version.number);
    if back && !force {
        let changed = changed_secrets(version, &store.secrets(&version.script)?);
        if !changed.is_empty() {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                // wrangler asks the user, and comes back with ?force=true. It takes the names from after the colon.
                10220,
                format!("The following secrets have changed: {}", changed.join(", ")),
            ));
        }
    }
    Ok(back)
}

fn changed_secrets(version: &Version, now: &BTreeMap<String, String>) -> Vec<String> {
    let then: BTreeMap<String, String> = version
        .bindings
        .iter()
        .filter_map(|binding| match binding {
            Binding::SecretText { name, text } => Some((name.clone(), text.clone())),
            _ => None,
        })
        .collect();
    let mut names: Vec<String> = then
        .keys()
        .chain(now.keys())
        .filter(|name| then.get(*name) != now.get(*name))
        .cloned()
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}
