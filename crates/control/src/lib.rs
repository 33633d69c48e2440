//! The control API: Cloudflare's v4 dialect as an unmodified wrangler speaks it (contract: wrangler).
//!
//! Owns: requests, their validation, envelopes and error codes, the upload of versions and assets.
//! Must not: start anything; it writes desired state to the store and tells [`Effects`] what changed.
//!
//! A deploy, and every other change to a script, is:
//!
//! ```text
//! read the body -> lock the script -> check -> commit (one transaction) -> Effects::script_changed -> answer
//!                                                                             | the reason why it does not start
//!                                                                             v
//!                              answer the reason <- script_changed <- undo (one transaction)
//! ```
//!
//! After an undo what served before serves again, with the namespaces, the migration tag and the secrets of then; the version stays,
//! undeployed. From the lock on, a change runs to its end even if the client goes away. The lock is in the store, so that all who share
//! it wait for each other.

mod account;
mod assets;
mod auth;
mod body;
mod containers;
mod deploying;
mod deployments;
mod envelope;
mod fields;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod jwt;
mod namespaces;
mod query;
mod schedules;
mod scripts;
mod secrets;
mod settings;
mod unsupported;
mod upload;
mod versions;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, patch, post, put};
use tokio::sync::oneshot;
use wharf_store::{Lock, Store};

use crate::envelope::{ApiError, ApiResult};

/// What the control API sets in motion after the store has committed.
pub trait Effects: Send + Sync + 'static {
    /// A script's deployment, secrets or schedules changed. Resolves when the new version serves, or with the reason why it does not
    /// start. Then the change is taken back, the answer to wrangler carries the reason, and this is called again, for what is deployed
    /// then (nothing, if there was nothing before).
    fn script_changed<'a>(
        &'a self,
        script: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// Returns the `classes` that the version's code does not export as Durable Object classes. The
    /// version is not stored yet, and its script may be new.
    ///
    /// # Errors
    /// Why the version does not start.
    fn missing_classes<'a>(
        &'a self,
        version: &'a wharf_model::Version,
        classes: BTreeSet<String>,
    ) -> Pin<Box<dyn Future<Output = Result<BTreeSet<String>, String>> + Send + 'a>>;
    /// A script was deleted.
    fn script_deleted<'a>(
        &'a self,
        script: &'a str,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
    /// Whether the script has an address of its own changed. What runs is not disturbed.
    ///
    /// # Errors
    /// When the node could not read the change; it is in the store all the same.
    fn address_changed<'a>(
        &'a self,
        script: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// An application was made, deleted (the store has it no more), or its configuration changed: instances that run another image are
    /// rolled over.
    fn application_changed<'a>(
        &'a self,
        id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// Whether an image reference can be started on this node; the reason if not.
    fn check_image<'a>(
        &'a self,
        reference: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// Makes an image ready to start on this node; the reason if it can't be.
    fn prepare_image<'a>(
        &'a self,
        reference: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// Instances of an application.
    fn instances<'a>(
        &'a self,
        application: &'a str,
    ) -> Pin<Box<dyn Future<Output = Vec<wharf_model::InstanceView>> + Send + 'a>>;
}

/// Settings.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The one account's id: 32 lower-case hex digits.
    pub account_id: String,
    /// `host:port` of the registry as wrangler shall reach it.
    pub registry_host: String,
    /// URL of a script, `{script}` replaced: `http://{script}.localhost:8080`.
    pub script_url: String,
}

/// What handlers share.
pub(crate) struct App {
    pub(crate) config: ControlConfig,
    pub(crate) store: Store,
    pub(crate) effects: Arc<dyn Effects>,
}

impl App {
    /// The script, or the error that wrangler takes for "not there".
    pub(crate) async fn existing(self: &Arc<Self>, script: &str) -> ApiResult<wharf_model::Script> {
        let name = script.to_owned();
        self.db(move |store| store.script(&name))
            .await?
            .ok_or_else(|| ApiError::worker_not_found(script))
    }

    /// Runs a piece of work with the store where blocking is allowed.
    pub(crate) async fn db<T, E>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
    ) -> ApiResult<T>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => Err(ApiError::internal(error)),
        }
    }

    /// Runs a change to its end, alone for its key among all who share the store, even if the
    /// client goes away meanwhile. Changes of the same key run in the order in which they came.
    pub(crate) async fn exclusively<T: Send + 'static>(
        self: &Arc<Self>,
        key: String,
        change: impl Future<Output = ApiResult<T>> + Send + 'static,
    ) -> ApiResult<T> {
        let app = Arc::clone(self);
        let (answer, answered) = oneshot::channel();
        let task = tokio::spawn(async move {
            let lock = match app.lock(key).await {
                Ok(lock) => lock,
                // Nobody may be there to hear it.
                Err(error) => return drop(answer.send(Err(error))),
            };
            // The answer does not wait for the release, which is a write.
            drop(answer.send(change.await));
            match tokio::task::spawn_blocking(move || lock.release()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a lock stays until the node restarts"),
                Err(error) => tracing::error!(%error, "a lock stays until the node restarts"),
            }
        });
        match answered.await {
            Ok(result) => result,
            // The change panicked, and its task says how.
            Err(_) => Err(match task.await {
                Ok(()) => ApiError::internal("a change ended without an answer"),
                Err(error) => ApiError::internal(error),
            }),
        }
    }

    async fn lock(self: &Arc<Self>, key: String) -> ApiResult<Lock> {
        let place = self.db(move |store| store.queue(&key)).await?;
        Ok(place.turn().await?)
    }

    /// The URL under which a script answers.
    pub(crate) fn script_url(&self, script: &str) -> String {
        self.config.script_url.replace("{script}", script)
    }
}

/// The API, at `/client/v4`: merge it into the server's router (don't nest it).
pub fn router(config: ControlConfig, store: Store, effects: Arc<dyn Effects>) -> Router {
    let app = Arc::new(App {
        config,
        store,
        effects,
    });
    let api = Router::new()
        .route("/user", get(account::user))
        .route("/user/tokens/verify", get(account::verify))
        .route("/memberships", get(account::memberships))
        .route("/accounts", get(account::accounts))
        .route("/accounts/{account}", get(account::one))
        .nest("/accounts/{account}/workers", workers())
        .nest("/accounts/{account}/containers", container_routes())
        .route(
            "/accounts/{account}/storage/kv/namespaces",
            get(account::kv_namespaces),
        )
        .fallback(unsupported::fallback)
        .method_not_allowed_fallback(unsupported::fallback)
        .layer(axum::middleware::from_fn(query::guard))
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&app),
            auth::guard,
        ))
        .with_state(app);
    Router::new().nest("/client/v4", api)
}

fn workers() -> Router<Arc<App>> {
    Router::new()
        .route("/subdomain", get(account::subdomain))
        .route(
            "/services/{script}",
            get(scripts::service).delete(scripts::delete_service),
        )
        .route("/workers/{script}", get(scripts::worker))
        .route(
            "/workers/{script}/versions/latest",
            patch(secrets::patch_latest),
        )
        .route("/scripts", get(scripts::list))
        .route(
            "/scripts/{script}",
            put(versions::put_script).delete(scripts::delete),
        )
        .route(
            "/scripts/{script}/versions",
            get(versions::list).post(versions::upload),
        )
        .route("/scripts/{script}/versions/{version}", get(versions::one))
        .route(
            "/scripts/{script}/deployments",
            get(deployments::list).post(deployments::create),
        )
        .route(
            "/scripts/{script}/deployments/{deployment}",
            get(deployments::one),
        )
        .route(
            "/scripts/{script}/settings",
            get(settings::version_settings).patch(settings::patch_version_settings),
        )
        .route(
            "/scripts/{script}/script-settings",
            get(settings::script_settings).patch(settings::patch_script_settings),
        )
        .route(
            "/scripts/{script}/subdomain",
            get(settings::subdomain).post(settings::set_subdomain),
        )
        .route(
            "/scripts/{script}/secrets",
            get(secrets::list).put(secrets::put),
        )
        .route(
            "/scripts/{script}/secrets/{secret}",
            get(secrets::one).delete(secrets::delete),
        )
        .route("/scripts/{script}/secrets-bulk", patch(secrets::bulk))
        .route(
            "/scripts/{script}/schedules",
            get(schedules::list).put(schedules::replace),
        )
        .route("/scripts/{script}/references", get(scripts::references))
        .route("/tails/by-consumer/{script}", get(scripts::tail_producers))
        .route(
            "/scripts/{script}/assets-upload-session",
            post(assets::start),
        )
        .route("/assets/upload", post(assets::upload))
        .route("/durable_objects/namespaces", get(namespaces::list))
}

fn container_routes() -> Router<Arc<App>> {
    use containers::{applications, images, registry, rollouts};
    Router::new()
        .route("/me", get(registry::me))
        .route("/registries", get(registry::list))
        .route(
            "/registries/{registry}/credentials",
            post(registry::credentials),
        )
        .route(
            "/applications",
            get(applications::list).post(applications::create),
        )
        .route(
            "/applications/{application}",
            get(applications::one)
                .patch(applications::modify)
                .delete(applications::delete),
        )
        .route(
            "/applications/{application}/rollouts",
            get(rollouts::list).post(rollouts::create),
        )
        .route(
            "/applications/{application}/rollouts/{rollout}",
            get(rollouts::one),
        )
        .route("/image-preparations", post(images::prepare))
        .route("/dash/applications", get(applications::dash))
        .route(
            "/dash/applications/{application}/instances",
            get(applications::instances),
        )
}
