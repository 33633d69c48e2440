//! Which query parameters each path takes. A parameter that the path does not know is refused by
//! its name, since leaving it unread could answer another question than was asked.

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::Method;

use crate::envelope::ApiError;

/// Method, end of the route, parameters. Those without a comment are read by the route's handler.
const PARAMETERS: &[(&str, &str, &[&str])] = &[
    ("GET", "/accounts", &["page", "per_page"]),
    ("GET", "/memberships", &["page", "per_page"]),
    // The list is empty, in any order.
    (
        "GET",
        "/storage/kv/namespaces",
        &["page", "per_page", "order", "direction"],
    ),
    ("GET", "/workers/scripts", &["page", "per_page"]),
    ("GET", "/durable_objects/namespaces", &["page", "per_page"]),
    // The answer never holds the script; inherited bindings must always exist ("strict"); and
    // wrangler asks for the subdomain by itself.
    (
        "PUT",
        "/workers/scripts/{script}",
        &[
            "excludeScript",
            "bindings_inherit",
            "include_subdomain_availability",
        ],
    ),
    (
        "POST",
        "/scripts/{script}/versions",
        &[
            "excludeScript",
            "bindings_inherit",
            "include_subdomain_availability",
        ],
    ),
    ("DELETE", "/workers/scripts/{script}", &["force"]),
    ("DELETE", "/workers/services/{script}", &["force"]),
    // Every version can be deployed.
    (
        "GET",
        "/scripts/{script}/versions",
        &["page", "per_page", "deployable"],
    ),
    ("POST", "/scripts/{script}/deployments", &["force"]),
    ("GET", "/scripts/{script}/secrets", &["page", "per_page"]),
    // A secret's name in a path is always decoded.
    ("GET", "/secrets/{secret}", &["url_encoded"]),
    ("DELETE", "/secrets/{secret}", &["url_encoded"]),
    ("POST", "/workers/assets/upload", &["base64"]),
    ("GET", "/containers/applications", &["name", "image"]),
    ("GET", "/dash/applications", &["per_page", "page_token"]),
    (
        "GET",
        "/dash/applications/{application}/instances",
        &["per_page", "page_token"],
    ),
];

/// Refuses requests with parameters that their path does not know.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    if let (Some(route), Some(query)) = (route, request.uri().query())
        && let Some(name) = unknown(request.method(), route.as_str(), query)
    {
        return ApiError::unsupported_but(
            format!("query parameters named {name:?} of this path"),
            "leave it out",
        )
        .into_response();
    }
    next.run(request).await
}

fn unknown(method: &Method, route: &str, query: &str) -> Option<String> {
    let known = PARAMETERS
        .iter()
        .find(|(of, end, _)| method.as_str() == *of && route.ends_with(end))
        .map_or(&[][..], |(_, _, names)| names);
    query
        .split('&')
        .map(|pair| pair.split('=').next().unwrap_or_default())
        .find(|name| !name.is_empty() && !known.contains(name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_counts_only_where_it_is_read() {
        let versions = "/client/v4/accounts/{account}/workers/scripts/{script}/versions";
        let get = |query: &str| unknown(&Method::GET, versions, query);
        assert_eq!(get("deployable=true&page=2"), None);
        assert_eq!(get("page=2&force=true"), Some("force".into()));
        assert_eq!(get(""), None);
        assert_eq!(
            unknown(&Method::POST, versions, "deployable=true"),
            Some("deployable".into())
        );
    }
}
