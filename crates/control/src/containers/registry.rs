//! The account's limits for containers, and passwords for this node's registry.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::envelope::{ApiError, ApiResult, ok};
use crate::{App, body};

/// What wrangler checks an instance's size against before it asks. The node's owner knows what the machine has: these only catch slips.
const VCPU: u64 = 1024;
const MEMORY_MIB: u64 = 16 << 20;
const DISK_MB: u64 = 1_000_000_000;

/// `GET me`
pub(crate) async fn me(State(app): State<Arc<App>>) -> ApiResult {
    let account = &app.config.account_id;
    Ok(ok(json!({
        // Becomes part of the image's name in the registry.
        "external_account_id": account,
        "legacy_identity": account,
        "capabilities": [],
        "locations": [],
        "limits": {
            "account_id": account,
            "vcpu_per_deployment": VCPU,
            "memory_mib_per_deployment": MEMORY_MIB,
            "memory_per_deployment": format!("{MEMORY_MIB}MiB"),
            "disk_mb_per_deployment": DISK_MB,
            "disk_per_deployment": format!("{DISK_MB}MB"),
            "total_vcpu": VCPU,
            "total_memory_mib": MEMORY_MIB,
            "total_disk_mb": DISK_MB,
        },
        "defaults": {"vcpus": 0.0625, "memory_mib": 256, "disk_mb": 2000},
    })))
}

/// `GET registries`: this node's.
pub(crate) async fn list(State(app): State<Arc<App>>) -> ApiResult {
    Ok(ok(json!([{"domain": app.config.registry_host}])))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    expiration_minutes: Option<i64>,
    permissions: Option<Vec<String>>,
}

/// Longest life of a password: a day.
const MINUTES: i64 = 24 * 60;

/// `POST registries/<host>/credentials`: a password for `docker login`.
pub(crate) async fn credentials(
    State(app): State<Arc<App>>,
    Path((_, registry)): Path<(String, String)>,
    request: Body,
) -> ApiResult {
    let ours = app.config.registry_host.clone();
    if registry != ours {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            1000,
            format!(
                "registry {registry:?} is not this node's. Set CLOUDFLARE_CONTAINER_REGISTRY={ours}, or run `wharf env`, which prints it."
            ),
        ));
    }
    let ask: Ask = body::json(request).await?;
    if let Some(other) = ask
        .permissions
        .iter()
        .flatten()
        .find(|p| !matches!(p.as_str(), "pull" | "push"))
    {
        return Err(ApiError::bad_request(format!(
            "unknown permission {other:?} in \"permissions\"; there are \"pull\" and \"push\""
        )));
    }
    let push = ask
        .permissions
        .is_none_or(|permissions| permissions.iter().any(|p| p == "push"));
    let minutes = ask.expiration_minutes.unwrap_or(15);
    if !(1..=MINUTES).contains(&minutes) {
        return Err(ApiError::bad_request(format!(
            "expiration_minutes must be from 1 to {MINUTES}, not {minutes}"
        )));
    }
    let password: String = app
        .db(move |store| store.create_registry_token(push, minutes * 60_000))
        .await?;
    Ok(ok(json!({
        "account_id": app.config.account_id,
        "registry_host": ours,
        "username": "v1",
        "password": Value::String(password),
    })))
}
