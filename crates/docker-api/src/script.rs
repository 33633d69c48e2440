//! The socket of one workerd process: the socket is the caller's identity.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What a container create needs to know of the application behind a Durable Object.
#[derive(Debug, Clone)]
pub struct ApplicationInfo {
    /// Application id.
    pub id: String,
    /// Name, for error texts.
    pub name: String,
    /// Image reference to start.
    pub image: String,
    /// Limits.
    pub limits: wharf_engine::Limits,
    /// Most instances at a time.
    pub max_instances: u32,
    /// Values of the CLOUDFLARE_* variables (`CLOUDFLARE_APPLICATION_ID`, ...), to replace workerd's placeholders.
    pub variables: Vec<(String, String)>,
}

/// Finds applications. Implemented by the daemon over the store.
pub trait Applications: Send + Sync + 'static {
    /// By the `uniqueKey` in the container's name (`workerd-<uniqueKey>-<64 hex object id>`) and the calling script; the reason if there is none
    /// (unknown class, no application deployed for it yet).
    fn find<'a>(
        &'a self,
        script: &'a str,
        unique_key: &'a str,
        object_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>>;
}

/// The routes for one script.
pub fn router(
    script: String,
    engine: wharf_engine::Engine,
    networks: wharf_net::Networks,
    applications: Arc<dyn Applications>,
) -> axum::Router {
    let _ = (script, engine, networks, applications);
    todo!()
}
