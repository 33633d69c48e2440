//! Cron triggers of a script.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_cron::Schedule;
use wharf_model::Script;

use crate::envelope::{ApiError, ApiResult, ok, timestamp};
use crate::{App, body};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trigger {
    cron: String,
}

fn show(script: &Script) -> Value {
    let changed = timestamp(script.modified_ms);
    let schedules: Vec<Value> = script
        .schedules
        .iter()
        .map(|cron| json!({"cron": cron, "created_on": changed, "modified_on": changed}))
        .collect();
    json!({"schedules": schedules})
}

/// `GET workers/scripts/<name>/schedules`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
) -> ApiResult {
    Ok(ok(show(&app.existing(&script).await?)))
}

/// `PUT workers/scripts/<name>/schedules`: these and no others.
pub(crate) async fn replace(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    request: Body,
) -> ApiResult {
    app.existing(&script).await?;
    let triggers: Vec<Trigger> = body::json(request).await?;
    let mut crons: Vec<String> = Vec::new();
    for Trigger { cron } in triggers {
        Schedule::parse(&cron)
            .map_err(|reason| ApiError::new(StatusCode::BAD_REQUEST, 10100, reason.to_string()))?;
        if !crons.contains(&cron) {
            crons.push(cron);
        }
    }
    let inner = Arc::clone(&app);
    let shown = app
        .exclusively(script.clone(), async move {
            let before = inner.existing(&script).await?;
            set(&inner, &script, crons).await?;
            if let Err(reason) = inner.effects.script_changed(&script).await {
                set(&inner, &script, before.schedules).await?;
                return Err(ApiError::invalid(format!(
                    "The schedules can't be set: {reason}"
                )));
            }
            Ok(show(&inner.existing(&script).await?))
        })
        .await?;
    Ok(ok(shown))
}

async fn set(app: &Arc<App>, script: &str, crons: Vec<String>) -> ApiResult<()> {
    let script = script.to_owned();
    app.db(move |store| store.set_schedules(&script, &crons))
        .await
}
