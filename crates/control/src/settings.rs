//! Settings of a script: those of its deployed version (read, and bindings changed), and those that no version carries.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wharf_model::Binding;
use wharf_store::{ScriptSettings, SecretChange};

use crate::deploying::source;
use crate::envelope::{ApiError, ApiResult, ok};
use crate::upload::metadata::observability;
use crate::upload::multipart;
use crate::versions::{etag, show_bindings};
use crate::{App, body, fields, secrets};

async fn script_settings_of(app: &Arc<App>, script: &str) -> ApiResult<ScriptSettings> {
    app.existing(script).await?;
    let name = script.to_owned();
    app.db(move |store| store.script_settings(&name)).await
}

/// As `script-settings` keeps them.
pub(crate) fn tags(settings: &ScriptSettings) -> Value {
    let kept = settings.values.get("tags").cloned();
    kept.unwrap_or_else(|| json!([]))
}

/// Changes what no version carries; returns all of it.
async fn change_script_settings(
    app: &Arc<App>,
    script: String,
    change: impl FnOnce(&mut ScriptSettings) + Send + 'static,
) -> ApiResult<ScriptSettings> {
    let inner = Arc::clone(app);
    app.exclusively(script.clone(), async move {
        inner
            .db(move |store| {
                let mut settings = store.script_settings(&script)?;
                change(&mut settings);
                store.set_script_settings(&script, &settings)?;
                Ok::<_, ApiError>(settings)
            })
            .await
    })
    .await
}

/// `GET workers/scripts/<name>/settings`: of the deployed version, or of the latest if none is deployed.
pub(crate) async fn version_settings(
    State(app): State<Arc<App>>,
    Path((_, name)): Path<(String, String)>,
) -> ApiResult {
    let script = app.existing(&name).await?;
    let (version, settings) = app
        .db(move |store| {
            let deployed = store.deployed_version(&name)?;
            let version = match deployed {
                Some(version) => Some(version),
                None => store.latest_version(&name)?,
            };
            Ok::<_, ApiError>((version, store.script_settings(&name)?))
        })
        .await?;
    let Some(version) = version else {
        return Ok(ok(json!({"bindings": []})));
    };
    let kept = |key: &str| version.extra.get(key).cloned();
    let mut result = json!({
        "bindings": show_bindings(&version),
        "compatibility_date": version.compatibility_date,
        "compatibility_flags": version.compatibility_flags,
        "annotations": version.annotations,
        "usage_model": "standard",
        "etag": etag(&version),
        "tags": tags(&settings),
        "tail_consumers": [],
        "logpush": false,
        "placement": kept("placement").unwrap_or_else(|| json!({})),
        "limits": kept("limits").unwrap_or_else(|| json!({})),
    });
    let observability = settings
        .values
        .get("observability")
        .cloned()
        .or_else(|| kept("observability"));
    if let Value::Object(result) = &mut result {
        result.extend(observability.map(|value| ("observability".to_owned(), value)));
        result.extend(
            script
                .migration_tag
                .map(|tag| ("migration_tag".to_owned(), tag.into())),
        );
    }
    Ok(ok(result))
}

#[derive(Debug, Deserialize)]
struct SettingsPatch {
    bindings: Vec<Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// `PATCH workers/scripts/<name>/settings` with the part `settings`: how wranglers before 4.125 put several secrets. Every binding that
/// stays is named with its type and no value.
pub(crate) async fn patch_version_settings(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let parts = multipart::read(&app, &headers, request, "settings").await?;
    let patch: SettingsPatch = serde_json::from_str(&parts.metadata)
        .map_err(|error| ApiError::bad_request(format!("the settings can't be read: {error}")))?;
    if let Some(other) = patch.rest.keys().next() {
        return Err(ApiError::unsupported(format!(
            "changes of settings without an upload ({other:?})"
        )));
    }
    secrets::change(&app, script, source(&headers), move |deployed| {
        let Some(before) = deployed else {
            return Ok((Vec::new(), new_secrets(&patch.bindings)?));
        };
        let bindings = patched(before, &patch.bindings)?;
        let changes = secret_changes(before, &bindings);
        Ok((bindings, changes))
    })
    .await?;
    Ok(ok(json!({})))
}

/// The name, and the value if it is a secret with one.
fn name_and_secret(binding: &Value) -> ApiResult<(&str, Option<&str>)> {
    let text = |key: &str| binding.get(key).and_then(Value::as_str);
    let name = text("name")
        .ok_or_else(|| ApiError::bad_request(format!("a binding without \"name\": {binding}")))?;
    let secret = text("text").filter(|_| text("type") == Some("secret_text"));
    Ok((name, secret))
}

fn new_secrets(bindings: &[Value]) -> ApiResult<Vec<SecretChange>> {
    let mut secrets = Vec::new();
    for binding in bindings {
        if let (name, Some(text)) = name_and_secret(binding)? {
            secrets.push((name.to_owned(), Some(text.to_owned())));
        }
    }
    Ok(secrets)
}

fn patched(before: &[Binding], bindings: &[Value]) -> ApiResult<Vec<Binding>> {
    bindings
        .iter()
        .map(|binding| {
            let (name, secret) = name_and_secret(binding)?;
            if let Some(text) = secret {
                return Ok(Binding::SecretText {
                    name: name.to_owned(),
                    text: text.to_owned(),
                });
            }
            let wanted = binding.get("type").and_then(Value::as_str).unwrap_or("inherit");
            before
                .iter()
                .find(|b| b.name() == name && (wanted == "inherit" || wanted == wharf_bindings::kind_of(b).name()))
                .cloned()
                .ok_or_else(|| {
                    ApiError::unsupported(format!(
                        "changes of bindings other than secrets without an upload (binding {name:?})"
                    ))
                })
        })
        .collect()
}

fn secret_changes(before: &[Binding], after: &[Binding]) -> Vec<SecretChange> {
    let gone = before.iter().filter_map(|binding| match binding {
        Binding::SecretText { name, .. } if !after.iter().any(|b| b.name() == name) => {
            Some((name.clone(), None))
        }
        _ => None,
    });
    let put = after.iter().filter_map(|binding| match binding {
        Binding::SecretText { name, text } => Some((name.clone(), Some(text.clone()))),
        _ => None,
    });
    gone.chain(put).collect()
}

/// `GET workers/scripts/<name>/script-settings`
pub(crate) async fn script_settings(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
) -> ApiResult {
    let settings = script_settings_of(&app, &script).await?;
    Ok(ok(Value::Object(settings.values)))
}

/// `PATCH workers/scripts/<name>/script-settings`: tags and observability are kept; what needs other machinery is refused.
pub(crate) async fn patch_script_settings(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let patch: Map<String, Value> = body::json(request).await?;
    fields::SCRIPT_SETTINGS.check(&patch)?;
    observability(patch.get("observability"))?;
    let settings =
        change_script_settings(&app, script, |settings| settings.values.extend(patch)).await?;
    Ok(ok(Value::Object(settings.values)))
}

fn show_subdomain(settings: &ScriptSettings) -> Value {
    json!({"enabled": settings.enabled, "previews_enabled": false})
}

/// `GET workers/scripts/<name>/subdomain`
pub(crate) async fn subdomain(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
) -> ApiResult {
    Ok(ok(show_subdomain(
        &script_settings_of(&app, &script).await?,
    )))
}

#[derive(Debug, Deserialize)]
struct Subdomain {
    enabled: bool,
    previews_enabled: Option<bool>,
}

/// Whether the client is a wrangler that sends `"previews_enabled": true` for every project whose
/// configuration does not say otherwise: those before 4.37 do.
fn asks_for_previews_unasked(headers: &HeaderMap) -> bool {
    let version = headers
        .get(http::header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok()?.strip_prefix("wrangler/"));
    let Some(version) = version else { return false };
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < (4, 37),
        _ => false,
    }
}

/// Whether the script has Durable Objects. Cloudflare makes no preview URLs for such Workers, so
/// asking for them changes nothing.
async fn has_objects(app: &Arc<App>, script: &str) -> ApiResult<bool> {
    let script = script.to_owned();
    app.db(move |store| store.namespaces(&script).map(|all| !all.is_empty()))
        .await
}

/// `POST workers/scripts/<name>/subdomain`: whether the script has its own host name. wrangler
/// sends it at the end of each deploy: `workers_dev`, or true when there are no routes.
pub(crate) async fn set_subdomain(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let new: Subdomain = body::json(request).await?;
    if new.previews_enabled == Some(true)
        && !asks_for_previews_unasked(&headers)
        && !has_objects(&app, &script).await?
    {
        return Err(ApiError::unsupported(
            "preview URLs (\"preview_urls\": true)",
        ));
    }
    let settings = change_script_settings(&app, script.clone(), move |settings| {
        settings.enabled = new.enabled;
    })
    .await?;
    app.effects
        .address_changed(&script)
        .await
        .map_err(ApiError::internal)?;
    Ok(ok(show_subdomain(&settings)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wranglers_before_4_37_ask_for_previews_without_being_told_to() {
        let asks = |agent: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::USER_AGENT, agent.parse().unwrap());
            asks_for_previews_unasked(&headers)
        };
        for old in ["wrangler/4.22.0", "wrangler/4.36.0", "wrangler/3.99.0"] {
            assert!(asks(old), "{old}");
        }
        for other in [
            "wrangler/4.37.0",
            "wrangler/4.164.0",
            "wrangler/",
            "curl/8.0",
        ] {
            assert!(!asks(other), "{other}");
        }
        assert!(!asks_for_previews_unasked(&HeaderMap::new()));
    }
}
