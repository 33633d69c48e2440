//! Secrets of a script. Changing one makes a new version of what is deployed, and deploys it, as Cloudflare does.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_model::{Binding, Version};
use wharf_store::{NewDeployment, SecretChange, Upload};

use crate::deploying::source;
use crate::envelope::{ApiError, ApiResult, Page, now_ms, ok};
use crate::{App, body, versions};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    name: Option<String>,
    text: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bulk {
    secrets: BTreeMap<String, Option<Secret>>,
}

fn show(name: &str) -> Value {
    json!({"name": name, "type": "secret_text"})
}

/// The secrets of a script that exists.
async fn known(app: &Arc<App>, script: &str) -> ApiResult<BTreeMap<String, String>> {
    app.existing(script).await?;
    let script = script.to_owned();
    app.db(move |store| store.secrets(&script)).await
}

/// `GET workers/scripts/<name>/secrets`: names only.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    Query(page): Query<Page>,
) -> ApiResult {
    let secrets = known(&app, &script).await?;
    Ok(page.of(secrets.keys().map(|name| show(name)).collect()))
}

/// `GET workers/scripts/<name>/secrets/<secret>`: that it exists.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path((_, script, secret)): Path<(String, String, String)>,
) -> ApiResult {
    let secrets = known(&app, &script).await?;
    match secrets.contains_key(&secret) {
        true => Ok(ok(show(&secret))),
        false => Err(unknown(&secret)),
    }
}

fn unknown(secret: &str) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        10056,
        format!("there is no secret {secret:?}; `wrangler secret list` shows those that exist"),
    )
}

fn value(name: &str, secret: Secret) -> ApiResult<SecretChange> {
    if let Some(kind) = secret.kind.filter(|kind| kind != "secret_text") {
        return Err(ApiError::unsupported(format!(
            "secrets of type {kind:?} (secret {name:?})"
        )));
    }
    let text = secret
        .text
        .ok_or_else(|| ApiError::bad_request(format!("secret {name:?} has no \"text\"")))?;
    if name.is_empty() {
        return Err(ApiError::bad_request("a secret needs a \"name\""));
    }
    Ok((name.to_owned(), Some(text)))
}

/// `PUT workers/scripts/<name>/secrets`
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let secret: Secret = body::json(request).await?;
    let name = secret.name.clone().unwrap_or_default();
    let change = value(&name, secret)?;
    apply(&app, script, source(&headers), vec![change]).await?;
    Ok(ok(show(&name)))
}

/// `DELETE workers/scripts/<name>/secrets/<secret>`
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path((_, script, secret)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> ApiResult {
    let secrets = known(&app, &script).await?;
    if !secrets.contains_key(&secret) {
        return Err(unknown(&secret));
    }
    apply(&app, script, source(&headers), vec![(secret, None)]).await?;
    Ok(ok(Value::Null))
}

/// `PATCH workers/scripts/<name>/secrets-bulk`: several at once; null deletes.
pub(crate) async fn bulk(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let bulk: Bulk = body::json(request).await?;
    let changes = changes(bulk.secrets)?;
    apply(&app, script.clone(), source(&headers), changes).await?;
    let secrets = known(&app, &script).await?;
    Ok(ok(Value::Array(
        secrets.keys().map(|name| show(name)).collect(),
    )))
}

async fn apply(
    app: &Arc<App>,
    script: String,
    source: &'static str,
    changes: Vec<SecretChange>,
) -> ApiResult<()> {
    change(app, script, source, move |deployed| {
        let bindings = changed_bindings(deployed.unwrap_or_default(), &changes)?;
        Ok((bindings, changes))
    })
    .await
}

/// Changes secrets: a new version of what is deployed, deployed. `plan` sees the deployed version's bindings, if one is deployed, and tells
/// the new version's and the changes.
pub(crate) async fn change(
    app: &Arc<App>,
    script: String,
    source: &'static str,
    plan: impl FnOnce(Option<&[Binding]>) -> ApiResult<(Vec<Binding>, Vec<SecretChange>)>
    + Send
    + 'static,
) -> ApiResult<()> {
    let inner = Arc::clone(app);
    app.exclusively(script.clone(), async move {
        let upload = inner
            .db(move |store| {
                let deployed = store.deployed_version(&script)?;
                let (bindings, changes) = plan(deployed.as_ref().map(|v| v.bindings.as_slice()))?;
                let Some(deployed) = deployed else {
                    // Nothing serves: the next upload takes them over.
                    store.change_secrets(&script, &changes)?;
                    return Ok(None);
                };
                Ok::<_, ApiError>(Some(next_version(deployed, bindings, source, changes)))
            })
            .await?;
        match upload {
            Some(upload) => inner.commit(upload).await.map(drop),
            None => Ok(()),
        }
    })
    .await
}

/// The same code with other bindings, deployed: what a change of secrets makes.
fn next_version(
    deployed: Version,
    bindings: Vec<Binding>,
    source: &'static str,
    secrets: Vec<SecretChange>,
) -> Upload {
    let triggered_by = BTreeMap::from([("workers/triggered_by".to_owned(), "secret".to_owned())]);
    let version = changed_version(deployed, bindings, source, triggered_by.clone());
    Upload {
        version,
        create_script: false,
        deploy: Some(NewDeployment {
            source: source.to_owned(),
            annotations: triggered_by,
        }),
        namespaces: None,
        secrets,
    }
}

fn changed_version(
    base: Version,
    bindings: Vec<Binding>,
    source: &'static str,
    annotations: BTreeMap<String, String>,
) -> Version {
    let mut version = Version {
        id: uuid::Uuid::new_v4().to_string(),
        number: 0,
        created_ms: now_ms(),
        bindings,
        annotations,
        ..base
    };
    if let Value::Object(extra) = &mut version.extra {
        extra.insert("source".into(), source.into());
    }
    version
}

#[derive(Debug, Deserialize)]
struct LatestPatch {
    #[serde(default)]
    env: BTreeMap<String, Option<Secret>>,
    #[serde(default)]
    annotations: BTreeMap<String, Option<String>>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// `PATCH workers/workers/<name>/versions/latest`: `wrangler versions secret put`, `delete` and `bulk` since 4.164. A new version of the
/// one that was uploaded last, not deployed.
pub(crate) async fn patch_latest(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let patch: LatestPatch = body::json(request).await?;
    if let Some(other) = patch.rest.keys().next() {
        return Err(ApiError::unsupported(format!(
            "changes of a version other than of its secrets ({other:?})"
        )));
    }
    let changes = changes(patch.env)?;
    let source = source(&headers);
    let mut annotations: BTreeMap<String, String> = patch
        .annotations
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect();
    annotations.insert("workers/triggered_by".into(), "secret".into());
    let inner = Arc::clone(&app);
    let version = app
        .exclusively(script.clone(), async move {
            let upload = inner
                .db(move |store| {
                    let latest = store.latest_version(&script)?.ok_or_else(|| {
                        // The code by which wrangler knows this case.
                        ApiError::new(
                            StatusCode::NOT_FOUND,
                            10222,
                            format!("Worker {script:?} has no versions yet"),
                        )
                    })?;
                    let bindings = changed_bindings(&latest.bindings, &changes)?;
                    Ok::<_, ApiError>(Upload {
                        version: changed_version(latest, bindings, source, annotations),
                        create_script: false,
                        deploy: None,
                        namespaces: None,
                        secrets: changes,
                    })
                })
                .await?;
            inner.commit(upload).await
        })
        .await?;
    Ok(ok(versions::show(&version)))
}

fn changes(secrets: BTreeMap<String, Option<Secret>>) -> ApiResult<Vec<SecretChange>> {
    secrets
        .into_iter()
        .map(|(name, secret)| match secret {
            Some(secret) => value(&name, secret),
            None => Ok((name, None)),
        })
        .collect()
}

fn changed_bindings(before: &[Binding], changes: &[SecretChange]) -> ApiResult<Vec<Binding>> {
    let mut bindings = before.to_vec();
    for (name, change) in changes {
        let found = bindings.iter().position(|binding| binding.name() == name);
        if let Some(index) = found
            && !matches!(bindings[index], Binding::SecretText { .. })
        {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                10053,
                format!(
                    "Binding name '{name}' already in use. Please use a different name and try again."
                ),
            ));
        }
        let new = change.as_ref().map(|text| Binding::SecretText {
            name: name.clone(),
            text: text.clone(),
        });
        match (found, new) {
            (Some(index), Some(new)) => bindings[index] = new,
            (Some(index), None) => drop(bindings.remove(index)),
            (None, Some(new)) => bindings.push(new),
            (None, None) => {}
        }
    }
    Ok(bindings)
}
