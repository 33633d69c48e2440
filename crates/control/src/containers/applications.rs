//! Applications: made, changed, listed, deleted; and their instances.
//!
//! An application's image changes by a rollout alone: `PATCH` stores everything else that it brings.
//!
//! An application whose Worker was deleted stays until it is deleted itself (wrangler asks for that), but it can't run anything any
//! more. So a deploy does not see it, and an application of the same name takes its place: at Cloudflare it stands in the way.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wharf_model::{Application, Configuration, InstanceState, InstanceView, MANAGED_POLICY};
use wharf_store::{Store, StoreError};

use crate::containers::checks;
use crate::envelope::{ApiError, ApiResult, now_ms, ok, ok_with_info, timestamp};
use crate::{App, body};

/// wrangler's default.
const MAX_INSTANCES: u32 = 20;

/// All changes to applications wait for each other: they are rare, and names and namespaces must stay unique.
pub(crate) const LOCK: &str = "containers/applications";

/// The application, or 404.
pub(crate) async fn find(app: &Arc<App>, id: &str) -> ApiResult<Application> {
    let wanted = id.to_owned();
    app.db(move |store| store.application(&wanted))
        .await?
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::NOT_FOUND,
                1000,
                format!("APPLICATION_NOT_FOUND: there is no container application {id:?}; `wrangler containers list` shows those that exist"),
            )
        })
}

/// Asks whether an image can be started here.
pub(crate) async fn check_image(app: &Arc<App>, reference: &str) -> ApiResult<()> {
    app.effects.check_image(reference).await.map_err(|reason| {
        ApiError::bad_request(format!("image {reference:?} can't be used: {reason}"))
    })
}

/// An application as the API shows it: what was sent, and what became of it.
async fn show(app: &Arc<App>, application: &Application) -> Value {
    let mut shown = match &application.extra {
        Value::Object(extra) => extra.clone(),
        _ => Map::new(),
    };
    let own = json!({
        "id": application.id,
        "account_id": app.config.account_id,
        "name": application.name,
        "version": application.version,
        "max_instances": application.max_instances,
        "configuration": application.configuration.sent(),
        "created_at": timestamp(application.created_ms),
        "updated_at": timestamp(application.modified_ms),
        "health": {"instances": health(&app.effects.instances(&application.id).await)},
    });
    if let Value::Object(own) = own {
        shown.extend(own);
    }
    if application.is_managed() {
        shown.remove("max_instances");
    }
    if let Some(namespace) = &application.namespace_id {
        shown.insert("durable_objects".into(), json!({"namespace_id": namespace}));
    }
    Value::Object(shown)
}

fn health(instances: &[InstanceView]) -> Value {
    let count = |wanted: &[InstanceState]| {
        let counted = instances.iter().filter(|it| wanted.contains(&it.state));
        counted.count()
    };
    let running = count(&[InstanceState::Running]);
    json!({
        "active": running,
        "healthy": running,
        "assigned": instances.len(),
        "failed": count(&[InstanceState::Failed]),
        "starting": count(&[InstanceState::Placed]),
        "scheduling": 0,
        "stopped": count(&[InstanceState::Stopped, InstanceState::Stopping]),
    })
}

/// An instance as `wrangler containers instances` reads it.
fn shown_instance(instance: InstanceView) -> Value {
    json!({
        "id": instance.id,
        "name": instance.name,
        "created_at": timestamp(instance.created_ms),
        "current_placement": {"status": {"container_status": instance.state.as_str()}},
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    name: Option<String>,
    image: Option<String>,
}

/// `GET applications`: those that can run.
pub(crate) async fn list(State(app): State<Arc<App>>, Query(filter): Query<Filter>) -> ApiResult {
    let mut shown = Vec::new();
    let applications = app
        .db(|store| {
            let mut applications = store.applications()?;
            let namespaces = store.all_namespaces()?;
            applications.retain(|application| {
                namespaces
                    .iter()
                    .any(|n| Some(&n.id) == application.namespace_id.as_ref())
            });
            Ok::<_, ApiError>(applications)
        })
        .await?;
    for application in applications {
        let named = filter
            .name
            .as_ref()
            .is_none_or(|name| *name == application.name);
        let imaged = filter
            .image
            .as_deref()
            .is_none_or(|image| Some(image) == application.image());
        if named && imaged {
            shown.push(show(&app, &application).await);
        }
    }
    Ok(ok(Value::Array(shown)))
}

/// `GET applications/<id>`
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path((_, id)): Path<(String, String)>,
) -> ApiResult {
    let application = find(&app, &id).await?;
    Ok(ok(show(&app, &application).await))
}

#[derive(Debug, Deserialize)]
struct Create {
    name: String,
    #[serde(default)]
    configuration: Value,
    max_instances: Option<Value>,
    durable_objects: Option<DurableObjects>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DurableObjects {
    namespace_id: String,
}

/// `POST applications`
pub(crate) async fn create(State(app): State<Arc<App>>, request: Body) -> ApiResult {
    let body: Map<String, Value> = body::json(request).await?;
    checks::application(&body).inspect_err(log_refusal)?;
    let new: Create = serde_json::from_value(Value::Object(body)).map_err(|error| {
        ApiError::bad_request(format!("the container application can't be read: {error}"))
    })?;
    if new.name.is_empty() || new.name.len() > 255 {
        return Err(ApiError::bad_request(
            "an application's name has 1 to 255 characters",
        ));
    }
    let Some(DurableObjects { namespace_id }) = new.durable_objects else {
        return Err(ApiError::unsupported(
            "applications without a Durable Object (\"durable_objects\")",
        ));
    };
    let now = now_ms();
    let mut application = Application {
        id: uuid::Uuid::new_v4().to_string(),
        name: new.name,
        namespace_id: Some(namespace_id.clone()),
        version: 1,
        max_instances: match new.max_instances.filter(|value| !value.is_null()) {
            Some(value) => checks::max_instances(&value)?,
            None => MAX_INSTANCES,
        },
        configuration: Configuration::from(new.configuration),
        extra: Value::Object(new.extra),
        created_ms: now,
        modified_ms: now,
    };
    let application = if application.is_managed() {
        managed(application, namespace_id.clone()).inspect_err(log_refusal)?
    } else {
        application.configuration = checks::configuration(application.configuration.sent())?;
        let Some(image) = application.image().filter(|image| !image.is_empty()) else {
            return Err(ApiError::bad_request(
                "an application's \"configuration\" needs an \"image\"",
            ));
        };
        check_image(&app, image).await?;
        application
    };
    let inner = Arc::clone(&app);
    let shown = app
        .exclusively(LOCK.into(), async move {
            let stored = application.clone();
            let orphan = inner
                .db(move |store| {
                    let Some(namespace) = store.namespace(&namespace_id)? else {
                        return Err(ApiError::bad_request(format!(
                            "there is no Durable Object namespace {namespace_id:?}; deploy the Worker first"
                        )));
                    };
                    if stored.is_managed() {
                        let deployed = store.deployed_version(&namespace.script)?;
                        if deployed.is_none_or(|v| v.named_images(&namespace.class).is_none()) {
                            let refusal = checks::no_named_images(&stored.name);
                            log_refusal(&refusal);
                            return Err(refusal);
                        }
                    }
                    let orphan = orphan(store, &stored.name)?;
                    if let Some(id) = &orphan {
                        store.delete_application(id)?;
                    }
                    store.create_application(&stored).map_err(|error| match error {
                        StoreError::Exists(what) => ApiError::bad_request(format!("{what} exists already")),
                        other => other.into(),
                    })?;
                    Ok(orphan)
                })
                .await?;
            if let Some(id) = orphan
                && let Err(error) = inner.effects.application_changed(&id).await
            {
                tracing::error!(id, %error, "instances of a replaced application were not stopped");
            }
            if let Err(reason) = inner.effects.application_changed(&application.id).await {
                let id = application.id.clone();
                inner.db(move |store| store.delete_application(&id)).await?;
                return Err(ApiError::bad_request(format!(
                    "application {:?} can't be made: {reason}",
                    application.name
                )));
            }
            Ok(show(&inner, &application).await)
        })
        .await?;
    Ok(ok(shown))
}

/// wrangler keeps to itself why an application that its Durable Objects manage was refused: so the reason is in the node's log.
fn log_refusal(refusal: &ApiError) {
    tracing::warn!(reason = refusal.message, "application refused");
}

/// One whose Durable Object chooses image and size with each start. wrangler finds it by the id of its namespace.
fn managed(mut application: Application, namespace_id: String) -> ApiResult<Application> {
    application.id = namespace_id;
    // wrangler has no setting for it.
    application.max_instances = u32::MAX;
    let sent = application.configuration.sent();
    let sent = match sent.is_null() {
        true => &json!({}),
        false => sent,
    };
    application.configuration = checks::managed_configuration(sent)?;
    Ok(application)
}

/// An application of this name whose namespace is gone.
fn orphan(store: &Store, name: &str) -> ApiResult<Option<String>> {
    let Some(found) = store.application_by_name(name)? else {
        return Ok(None);
    };
    let alive = match &found.namespace_id {
        Some(id) => store.namespace(id)?.is_some(),
        None => false,
    };
    Ok((!alive).then_some(found.id))
}

/// `PATCH applications/<id>`
pub(crate) async fn modify(
    State(app): State<Arc<App>>,
    Path((_, id)): Path<(String, String)>,
    request: Body,
) -> ApiResult {
    find(&app, &id).await?;
    let patch: Map<String, Value> = body::json(request).await?;
    checks::application(&patch).inspect_err(log_refusal)?;
    let inner = Arc::clone(&app);
    let shown = app
        .exclusively(LOCK.into(), async move {
            let before = find(&inner, &id).await?;
            let after = patched(&before, patch)?;
            if let Some(image) = after.wanted_image {
                check_image(&inner, &image).await?;
            }
            replace(&inner, before, after.application, None).await
        })
        .await?;
    Ok(ok(shown))
}

struct Patched {
    application: Application,
    /// An image that differs; a rollout brings it.
    wanted_image: Option<String>,
}

fn patched(before: &Application, patch: Map<String, Value>) -> ApiResult<Patched> {
    let mut application = before.clone();
    let mut wanted_image = None;
    for (key, value) in patch {
        match key.as_str() {
            "configuration" => {
                if before.is_managed() {
                    checks::managed_configuration(&value).inspect_err(log_refusal)?;
                } else {
                    checks::configuration(&value)?;
                }
                let image = value.get("image").and_then(Value::as_str);
                wanted_image = image
                    .filter(|image| before.image() != Some(image))
                    .map(str::to_owned);
                application.configuration = with_image(value, before.image()).into();
            }
            "max_instances" if before.is_managed() => {
                return Err(ApiError::bad_request(
                    "an application with \"scheduling_policy\": \"durable_object\" has no \"max_instances\"",
                ));
            }
            "max_instances" => application.max_instances = checks::max_instances(&value)?,
            "name" | "durable_objects" => {
                return Err(ApiError::bad_request(format!(
                    "an application's {key:?} can't change; make another application"
                )));
            }
            _ => {
                let managed = value.as_str() == Some(MANAGED_POLICY);
                if key == "scheduling_policy" && managed != before.is_managed() {
                    return Err(ApiError::bad_request(format!(
                        "application {:?} can't change between \"scheduling_policy\": \"durable_object\" and others; delete it first (`wrangler containers delete {}`)",
                        before.name, before.id
                    )));
                }
                if let Value::Object(extra) = &mut application.extra {
                    extra.insert(key, value);
                }
            }
        }
    }
    Ok(Patched {
        application,
        wanted_image,
    })
}

/// A configuration with this image instead of its own.
pub(crate) fn with_image(mut configuration: Value, image: Option<&str>) -> Value {
    if let (Value::Object(map), Some(image)) = (&mut configuration, image) {
        map.insert("image".into(), image.into());
    }
    configuration
}

/// Stores a changed application, and puts it back if the change can't be carried out. Nothing happens if nothing differs.
pub(crate) async fn replace(
    app: &Arc<App>,
    before: Application,
    mut after: Application,
    rollout: Option<wharf_store::Rollout>,
) -> ApiResult<Value> {
    let changed = after != before;
    if changed {
        after.version = before.version + 1;
        after.modified_ms = now_ms();
    }
    if changed || rollout.is_some() {
        let rollout_id = rollout.as_ref().map(|rollout| rollout.id.clone());
        let stored = after.clone();
        app.db(move |store| store.update_application(&stored, rollout.as_ref()))
            .await?;
        if let Err(reason) = app.effects.application_changed(&after.id).await {
            let name = before.name.clone();
            app.db(move |store| {
                store.update_application(&before, None)?;
                rollout_id.map_or(Ok(()), |id| store.delete_rollout(&before.id, &id))
            })
            .await?;
            return Err(ApiError::bad_request(format!(
                "application {name:?} can't be changed: {reason}"
            )));
        }
    }
    Ok(show(app, &after).await)
}

/// `DELETE applications/<id>`: its instances are stopped.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path((_, id)): Path<(String, String)>,
) -> ApiResult {
    find(&app, &id).await?;
    let inner = Arc::clone(&app);
    app.exclusively(LOCK.into(), async move {
        let key = id.clone();
        inner
            .db(move |store| store.delete_application(&key))
            .await?;
        inner
            .effects
            .application_changed(&id)
            .await
            .map_err(|reason| {
                ApiError::internal(format!(
                    "the application is deleted, but its instances were not stopped: {reason}"
                ))
            })
    })
    .await?;
    Ok(ok(Value::Null))
}

/// `per_page` and `page_token` of the lists that go on by a token; the token is the next item's index.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenPage {
    per_page: Option<usize>,
    page_token: Option<String>,
}

impl TokenPage {
    fn cut(&self, items: Vec<Value>) -> ApiResult<(Vec<Value>, Value)> {
        let start: usize = match self.page_token.as_deref().filter(|token| !token.is_empty()) {
            Some(token) => token.parse().map_err(|_| {
                ApiError::bad_request(format!("{token:?} is no page_token of an answer"))
            })?,
            None => 0,
        };
        let per_page = self.per_page.unwrap_or(1000).clamp(1, 1000);
        let total = items.len();
        let end = start.saturating_add(per_page);
        let page: Vec<Value> = items.into_iter().skip(start).take(per_page).collect();
        let info = json!({
            "per_page": per_page,
            "page_token": self.page_token,
            "next_page_token": (end < total).then(|| end.to_string()),
            "count": page.len(),
        });
        Ok((page, info))
    }
}

/// `GET dash/applications`: `wrangler containers list`.
pub(crate) async fn dash(State(app): State<Arc<App>>, Query(page): Query<TokenPage>) -> ApiResult {
    let mut shown = Vec::new();
    for application in app.db(|store| store.applications()).await? {
        let instances = app.effects.instances(&application.id).await;
        shown.push(json!({
            "id": application.id,
            "name": application.name,
            "image": application.image(),
            "version": application.version,
            "instances": instances.len(),
            "health": {"instances": health(&instances)},
            "created_at": timestamp(application.created_ms),
            "updated_at": timestamp(application.modified_ms),
        }));
    }
    let (shown, info) = page.cut(shown)?;
    Ok(ok_with_info(Value::Array(shown), info))
}

/// `GET dash/applications/<id>/instances`
pub(crate) async fn instances(
    State(app): State<Arc<App>>,
    Path((_, id)): Path<(String, String)>,
    Query(page): Query<TokenPage>,
) -> ApiResult {
    let application = find(&app, &id).await?;
    let instances = app.effects.instances(&application.id).await;
    let instances = instances.into_iter().map(shown_instance).collect();
    let (instances, info) = page.cut(instances)?;
    Ok(ok_with_info(
        json!({"instances": instances, "durable_objects": []}),
        info,
    ))
}
