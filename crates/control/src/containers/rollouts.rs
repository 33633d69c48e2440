//! Rollouts: how a changed configuration reaches an application's instances. All steps are taken at once.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wharf_store::Rollout;

use crate::containers::applications::{LOCK, check_image, find, replace, with_image};
use crate::containers::checks;
use crate::envelope::{ApiError, ApiResult, now_ms, ok, timestamp};
use crate::{App, body, fields};

#[derive(Debug, Deserialize)]
struct Create {
    description: Option<String>,
    strategy: Option<String>,
    target_configuration: Value,
    kind: Option<String>,
    steps: Option<Vec<Value>>,
    step_percentage: Option<Value>,
}

/// `POST applications/<id>/rollouts`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Path((_, id)): Path<(String, String)>,
    request: Body,
) -> ApiResult {
    find(&app, &id).await?;
    let body: Map<String, Value> = body::json(request).await?;
    fields::ROLLOUT.check(&body)?;
    let new: Create = serde_json::from_value(Value::Object(body))
        .map_err(|error| ApiError::bad_request(format!("the rollout can't be read: {error}")))?;
    if let Some(other) = new.strategy.as_deref().filter(|s| *s != "rolling") {
        return Err(ApiError::bad_request(format!(
            "unknown rollout strategy {other:?}; there is \"rolling\""
        )));
    }
    if let Some(kind) = new.kind.as_deref().filter(|kind| *kind != "full_auto") {
        return Err(ApiError::unsupported(format!(
            "rollouts of kind {kind:?}, which wait between their steps"
        )));
    }
    checks::configuration(&new.target_configuration)?;
    let inner = Arc::clone(&app);
    let shown = app
        .exclusively(LOCK.into(), async move {
            let before = find(&inner, &id).await?;
            if before.is_managed() {
                return Err(ApiError::bad_request(format!(
                    "application {:?} has no rollouts: its image comes with each start()",
                    before.name
                )));
            }
            let target = new.target_configuration.clone();
            let image = target
                .get("image")
                .and_then(Value::as_str)
                .map(str::to_owned);
            if let Some(image) = image
                .as_deref()
                .filter(|image| before.image() != Some(*image))
            {
                check_image(&inner, image).await?;
            }
            let mut after = before.clone();
            let target = match image {
                Some(_) => target,
                None => with_image(target, before.image()),
            };
            after.configuration = target.into();
            let rollout = Rollout {
                id: uuid::Uuid::new_v4().to_string(),
                application: id,
                body: record(
                    &new,
                    before.configuration.sent(),
                    after.configuration.sent(),
                ),
                created_ms: now_ms(),
            };
            let shown = show(&rollout);
            replace(&inner, before, after, Some(rollout)).await?;
            Ok(shown)
        })
        .await?;
    Ok(ok(shown))
}

fn record(new: &Create, before: &Value, after: &Value) -> Value {
    let steps: Vec<Value> = match &new.steps {
        Some(steps) => steps.clone(),
        None => vec![json!({
            "step_size": {"percentage": new.step_percentage.clone().unwrap_or_else(|| json!(100))},
        })],
    };
    let steps: Vec<Value> = steps
        .into_iter()
        .enumerate()
        .map(|(index, mut step)| {
            if let Value::Object(step) = &mut step {
                step.insert("id".into(), json!(index + 1));
                step.insert("status".into(), "completed".into());
            }
            step
        })
        .collect();
    json!({
        "description": new.description,
        "strategy": new.strategy.as_deref().unwrap_or("rolling"),
        "kind": "full_auto",
        "status": "completed",
        "current_configuration": before,
        "target_configuration": after,
        "progress": {"total_steps": steps.len(), "current_step": steps.len()},
        "steps": steps,
    })
}

fn show(rollout: &Rollout) -> Value {
    let mut shown = rollout.body.clone();
    if let Value::Object(shown) = &mut shown {
        let at = timestamp(rollout.created_ms);
        shown.insert("id".into(), rollout.id.clone().into());
        shown.insert("created_at".into(), at.clone().into());
        shown.insert("last_updated_at".into(), at.into());
    }
    shown
}

/// `GET applications/<id>/rollouts`: newest first.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Path((_, id)): Path<(String, String)>,
) -> ApiResult {
    find(&app, &id).await?;
    let rollouts = app.db(move |store| store.rollouts(&id)).await?;
    Ok(ok(rollouts.iter().map(show).collect()))
}

/// `GET applications/<id>/rollouts/<rollout>`
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path((_, id, rollout)): Path<(String, String, String)>,
) -> ApiResult {
    find(&app, &id).await?;
    let rollouts = app.db(move |store| store.rollouts(&id)).await?;
    match rollouts.iter().find(|found| found.id == rollout) {
        Some(found) => Ok(ok(show(found))),
        None => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            1000,
            format!("there is no rollout {rollout:?}"),
        )),
    }
}
