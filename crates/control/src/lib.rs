//! The control API: Cloudflare's v4 dialect as an unmodified wrangler speaks it (contract: wrangler).
//!
//! Owns: requests, their validation, envelopes and error codes, the upload of versions and assets.
//! Must not: start anything; it writes desired state to the store and tells [`Effects`] what changed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What the control API sets in motion after the store has committed.
pub trait Effects: Send + Sync + 'static {
    /// A script's deployment, secrets or schedules changed. Resolves when the new version serves, or with the reason why it does not start
    /// (the deploy stays recorded; the answer to wrangler carries the reason).
    fn script_changed<'a>(
        &'a self,
        script: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// A script was deleted.
    fn script_deleted<'a>(
        &'a self,
        script: &'a str,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
    /// An application's configuration changed: instances that run another image are rolled over.
    fn application_changed<'a>(
        &'a self,
        id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// Whether an image reference can be started on this node; the reason if not.
    fn check_image<'a>(
        &'a self,
        reference: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
    /// Instances of an application, as JSON for the API.
    fn instances<'a>(
        &'a self,
        application: &'a str,
    ) -> Pin<Box<dyn Future<Output = Vec<serde_json::Value>> + Send + 'a>>;
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

/// The routes below `/client/v4`.
pub fn router(
    config: ControlConfig,
    store: wharf_store::Store,
    effects: Arc<dyn Effects>,
) -> axum::Router {
    let _ = (config, store, effects);
    todo!()
}
