//! Every operation that Docker publishes (API 1.43 to 1.51) with the parameters of its query, and
//! what becomes of those that are not here.
//!
//! Owns: the answer to what Docker has and this Wharf does not (501, by its name) and to what
//! neither has (404); the check of queries. Must not: know on which socket an operation is served.
//! A parameter that no published schema has is ignored, as Docker does.

use axum::extract::Query;
use http::{Method, StatusCode, Uri};
use serde_json::{Map, Value};

use crate::errors::ApiError;
use crate::fields::{self, Field, queries as q};

/// Docker's path with `{}` for what the client chooses, and `{*}` for a name that may hold slashes.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Parameters, where this Wharf has the operation.
    pub(crate) query: &'static [Field],
}

const fn op(method: &'static str, path: &'static str, query: &'static [Field]) -> Operation {
    Operation {
        method,
        path,
        query,
    }
}

const NONE: &[Field] = &[];

/// All of them.
pub(crate) const OPERATIONS: &[Operation] = &[
    op("GET", "/containers/json", q::CONTAINERS),
    op("POST", "/containers/create", q::CREATE),
    op("POST", "/containers/prune", NONE),
    op("GET", "/containers/{}/json", q::INSPECT),
    op("GET", "/containers/{}/top", NONE),
    op("GET", "/containers/{}/logs", q::LOGS),
    op("GET", "/containers/{}/changes", NONE),
    op("GET", "/containers/{}/export", NONE),
    op("GET", "/containers/{}/stats", NONE),
    op("POST", "/containers/{}/resize", NONE),
    op("POST", "/containers/{}/start", q::START),
    op("POST", "/containers/{}/stop", q::STOP),
    op("POST", "/containers/{}/restart", NONE),
    op("POST", "/containers/{}/kill", q::KILL),
    op("POST", "/containers/{}/update", NONE),
    op("POST", "/containers/{}/rename", NONE),
    op("POST", "/containers/{}/pause", NONE),
    op("POST", "/containers/{}/unpause", NONE),
    op("POST", "/containers/{}/attach", q::ATTACH),
    op("GET", "/containers/{}/attach/ws", NONE),
    op("POST", "/containers/{}/wait", q::WAIT),
    op("POST", "/containers/{}/exec", NONE),
    op("HEAD", "/containers/{}/archive", q::ARCHIVE),
    op("GET", "/containers/{}/archive", q::ARCHIVE),
    op("PUT", "/containers/{}/archive", q::ARCHIVE_PUT),
    op("DELETE", "/containers/{}", q::REMOVE),
    op("GET", "/images/json", q::IMAGES),
    op("POST", "/images/create", q::IMAGE_CREATE),
    op("GET", "/images/search", NONE),
    op("POST", "/images/prune", NONE),
    op("GET", "/images/get", NONE),
    op("POST", "/images/load", NONE),
    op("GET", "/images/{*}/json", q::IMAGE),
    op("GET", "/images/{*}/history", q::IMAGE),
    op("GET", "/images/{*}/get", NONE),
    op("POST", "/images/{*}/push", q::PUSH),
    op("POST", "/images/{*}/tag", q::TAG),
    op("DELETE", "/images/{*}", q::IMAGE_REMOVE),
    op("POST", "/build", NONE),
    op("POST", "/build/prune", NONE),
    op("POST", "/build/cancel", NONE),
    op("POST", "/commit", q::COMMIT),
    op("POST", "/auth", NONE),
    op("GET", "/info", NONE),
    op("GET", "/version", NONE),
    op("GET", "/_ping", NONE),
    op("HEAD", "/_ping", NONE),
    op("GET", "/events", NONE),
    op("GET", "/system/df", NONE),
    op("POST", "/session", NONE),
    op("POST", "/grpc", NONE),
    op("POST", "/exec/{}/start", NONE),
    op("POST", "/exec/{}/resize", q::RESIZE),
    op("GET", "/exec/{}/json", NONE),
    op("GET", "/volumes", q::VOLUMES),
    op("POST", "/volumes/create", NONE),
    op("POST", "/volumes/prune", NONE),
    op("GET", "/volumes/{}", NONE),
    op("PUT", "/volumes/{}", NONE),
    op("DELETE", "/volumes/{}", q::VOLUME_REMOVE),
    op("GET", "/networks", NONE),
    op("POST", "/networks/create", NONE),
    op("POST", "/networks/prune", NONE),
    op("GET", "/networks/{}", q::NETWORK),
    op("DELETE", "/networks/{}", NONE),
    op("POST", "/networks/{}/connect", NONE),
    op("POST", "/networks/{}/disconnect", NONE),
    op("GET", "/distribution/{*}/json", NONE),
    op("GET", "/plugins", NONE),
    op("GET", "/plugins/privileges", NONE),
    op("POST", "/plugins/pull", NONE),
    op("POST", "/plugins/create", NONE),
    op("GET", "/plugins/{*}/json", NONE),
    op("POST", "/plugins/{*}/enable", NONE),
    op("POST", "/plugins/{*}/disable", NONE),
    op("POST", "/plugins/{*}/upgrade", NONE),
    op("POST", "/plugins/{*}/push", NONE),
    op("POST", "/plugins/{*}/set", NONE),
    op("DELETE", "/plugins/{*}", NONE),
    op("GET", "/swarm", NONE),
    op("POST", "/swarm/init", NONE),
    op("POST", "/swarm/join", NONE),
    op("POST", "/swarm/leave", NONE),
    op("POST", "/swarm/update", NONE),
    op("GET", "/swarm/unlockkey", NONE),
    op("POST", "/swarm/unlock", NONE),
    op("GET", "/nodes", NONE),
    op("GET", "/nodes/{}", NONE),
    op("DELETE", "/nodes/{}", NONE),
    op("POST", "/nodes/{}/update", NONE),
    op("GET", "/services", NONE),
    op("POST", "/services/create", NONE),
    op("GET", "/services/{}", NONE),
    op("DELETE", "/services/{}", NONE),
    op("POST", "/services/{}/update", NONE),
    op("GET", "/services/{}/logs", NONE),
    op("GET", "/tasks", NONE),
    op("GET", "/tasks/{}", NONE),
    op("GET", "/tasks/{}/logs", NONE),
    op("GET", "/secrets", NONE),
    op("POST", "/secrets/create", NONE),
    op("GET", "/secrets/{}", NONE),
    op("DELETE", "/secrets/{}", NONE),
    op("POST", "/secrets/{}/update", NONE),
    op("GET", "/configs", NONE),
    op("POST", "/configs/create", NONE),
    op("GET", "/configs/{}", NONE),
    op("DELETE", "/configs/{}", NONE),
    op("POST", "/configs/{}/update", NONE),
];

impl Operation {
    fn matches(&self, method: &Method, path: &str) -> bool {
        if self.method != method.as_str() {
            return false;
        }
        if let Some((before, after)) = self.path.split_once("{*}") {
            return path
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .is_some_and(|name| !name.is_empty());
        }
        let (mut asked, mut known) = (path.split('/'), self.path.split('/'));
        loop {
            match (asked.next(), known.next()) {
                (None, None) => return true,
                (Some(asked), Some("{}")) if !asked.is_empty() => {}
                (Some(asked), Some(known)) if asked == known => {}
                _ => return false,
            }
        }
    }
}

/// Docker's operation that a request asks for; the path is without the version.
fn find(method: &Method, path: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|it| it.matches(method, path))
}

/// The answer to a request that no route of the socket takes.
pub(crate) async fn absent(method: Method, uri: Uri) -> ApiError {
    let Some(operation) = find(&method, uri.path()) else {
        return ApiError::page_not_found();
    };
    let path = operation
        .path
        .replace("{}", "{id}")
        .replace("{*}", "{name}");
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        format!(
            "Wharf does not have {method} {path}; COMPATIBILITY.md, \"Docker API\", lists what this socket has"
        ),
    )
}

/// Refuses a query that asks for what there is not, by the parameter's name.
///
/// # Errors
/// 501, with the mend.
pub(crate) fn check_query(method: &Method, uri: &Uri) -> Result<(), ApiError> {
    if uri.query().is_none_or(str::is_empty) {
        return Ok(());
    }
    let Some(operation) = find(method, uri.path()) else {
        return Ok(());
    };
    // One that cannot be read is refused by the handler that reads it.
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return Ok(());
    };
    let pairs = pairs.into_iter().map(|(k, v)| (k, Value::String(v)));
    let given: Map<String, Value> = pairs.collect();
    fields::check(&Value::Object(given), operation.query, false)
}

#[cfg(test)]
mod tests;
