//! The OCI distribution API (spec v1.1) over the image store, as an axum router at `/v2`.
//!
//! Owns: the HTTP dialect and its errors. Must not: keep state of its own.

use std::sync::Arc;

/// Checks `Authorization` of a request: Bearer token, or Basic with the token as password (any user name).
pub type CheckToken = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The routes below `/v2`.
pub fn router(images: wharf_image::ImageStore, check: CheckToken) -> axum::Router {
    let _ = (images, check);
    todo!()
}
