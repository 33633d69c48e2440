//! What this API does not answer: features that Cloudflare has and Wharf has not, by name, and everything else.

use axum::extract::OriginalUri;
use http::{Method, StatusCode};

use crate::envelope::{ApiError, ApiResult};

/// Path below the account (or below the root, with a leading `/`) and what lives there.
const FEATURES: &[(&str, &str)] = &[
    ("storage/kv", "KV namespaces"),
    ("r2", "R2 buckets"),
    ("d1", "D1 databases"),
    ("queues", "Queues"),
    ("event_subscriptions", "Queue event subscriptions"),
    ("workflows", "Workflows"),
    ("ai", "Workers AI models"),
    ("vectorize", "Vectorize indexes"),
    ("hyperdrive", "Hyperdrive configurations"),
    ("pipelines", "Pipelines"),
    ("secrets_store", "Secrets Store stores"),
    ("pages", "Pages projects"),
    ("mtls_certificates", "mTLS certificates"),
    ("browser-rendering", "Browser Rendering sessions"),
    ("triggers", "event triggers"),
    ("workers/dispatch", "dispatch namespaces"),
    (
        "workers/subdomain/edge-preview",
        "remote development sessions",
    ),
    ("workers/domains", "custom domains"),
    ("workers/tails", "tail consumers"),
    ("workers/observability", "observability queries"),
    ("workers/placement", "placement hints"),
    ("containers/registries", "external image registries"),
    ("containers/instances", "SSH sessions into containers"),
    ("containers/deployments", "Cloudchamber deployments"),
    ("/zones", "routes and zones"),
    ("/graphql", "analytics queries"),
];

/// The same below `workers/scripts/<name>/`.
const SCRIPT_FEATURES: &[(&str, &str)] = &[
    ("tails", "live tails"),
    ("edge-preview", "remote development sessions"),
    ("routes", "routes"),
    ("domains", "custom domains"),
    ("content", "script downloads"),
    ("usage-model", "usage models"),
    ("previews", "previews"),
];

/// Answers everything that has no route.
pub(crate) async fn fallback(method: Method, OriginalUri(uri): OriginalUri) -> ApiResult {
    Err(refuse(&method, uri.path()))
}

fn refuse(method: &Method, full: &str) -> ApiError {
    let path = full.strip_prefix("/client/v4").unwrap_or(full);
    let below_account = path
        .strip_prefix("/accounts/")
        .and_then(|rest| rest.split_once('/'))
        .map(|(_, rest)| rest);
    let feature = match below_account {
        Some(rest) => named(FEATURES, rest).or_else(|| {
            let (_, rest) = rest.strip_prefix("workers/scripts/")?.split_once('/')?;
            named(SCRIPT_FEATURES, rest)
        }),
        None => named(FEATURES, path),
    };
    match feature {
        Some(feature) => ApiError::unsupported(feature),
        None => ApiError::new(
            StatusCode::NOT_FOUND,
            7003,
            format!("No route for {method} {full}: this Wharf does not know this endpoint"),
        ),
    }
}

fn named(table: &[(&'static str, &'static str)], path: &str) -> Option<&'static str> {
    table
        .iter()
        .find(|(prefix, _)| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .map(|(_, feature)| *feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named_and_the_rest_is_unknown() {
        let message = |path: &str| refuse(&Method::GET, &format!("/client/v4{path}")).message;
        assert_eq!(
            message("/accounts/a/r2/buckets/x"),
            "R2 buckets are not supported by this Wharf yet"
        );
        assert!(message("/accounts/a/workers/scripts/x/tails").starts_with("live tails"));
        assert!(message("/zones").starts_with("routes and zones"));
        assert!(
            message("/accounts/a/r2d2").starts_with("No route for GET /client/v4/accounts/a/r2d2")
        );
    }
}
