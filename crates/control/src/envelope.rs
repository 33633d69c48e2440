//! What every answer looks like: Cloudflare's envelope, its errors, and pages of a list (contract: wrangler, section 2).

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::{Value, json};
use wharf_store::StoreError;

/// An error as wrangler prints it: `<message> [code: <code>]`.
#[derive(Debug, thiserror::Error)]
#[error("{message} [code: {code}]")]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: u32,
    pub(crate) message: String,
    /// `meta` of the error, where a client reads more than the message.
    pub(crate) meta: Option<Value>,
}

/// What handlers return.
pub(crate) type ApiResult<T = Response> = Result<T, ApiError>;

/// The request can't be understood.
pub(crate) const BAD_REQUEST: u32 = 10004;
/// "This Worker does not exist", of every path but `workers/services/...`.
pub(crate) const WORKER_NOT_FOUND: u32 = 10007;
/// The same, of `workers/services/...`. Wranglers from 4.58 on take either code for it on any path;
/// older ones want this one here, and end their first deploy at any other.
pub(crate) const SERVICE_NOT_FOUND: u32 = 10090;
/// The request is too large.
pub(crate) const TOO_LARGE: u32 = 10027;
/// The version is refused: its metadata is wrong, or the Worker does not start.
pub(crate) const INVALID_VERSION: u32 = 10021;
/// Wharf's own: Cloudflare has the feature, this Wharf does not.
pub(crate) const UNSUPPORTED: u32 = 10501;

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: u32, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            meta: None,
        }
    }

    /// The same error with `meta`.
    pub(crate) fn with_meta(self, meta: Value) -> Self {
        Self {
            meta: Some(meta),
            ..self
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, BAD_REQUEST, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_VERSION, message)
    }

    /// `what` is a plural: "KV namespaces". The status is 400, as wrangler tries again after a 501.
    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            UNSUPPORTED,
            format!("{what} are not supported by this Wharf yet"),
        )
    }

    /// The same, with what the user can do instead.
    pub(crate) fn unsupported_but(what: impl std::fmt::Display, mend: &str) -> Self {
        let mut error = Self::unsupported(what);
        error.message.push_str(": ");
        error.message.push_str(mend);
        error
    }

    pub(crate) fn worker_not_found(script: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            WORKER_NOT_FOUND,
            format!("This Worker does not exist on your account: {script:?}"),
        )
    }

    /// [`ApiError::worker_not_found`] as `workers/services/...` says it.
    pub(crate) fn service_not_found(script: &str) -> Self {
        Self {
            code: SERVICE_NOT_FOUND,
            ..Self::worker_not_found(script)
        }
    }

    pub(crate) fn too_large(what: &str, limit: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            TOO_LARGE,
            format!("{what} exceeds the limit of {}", size(limit)),
        )
    }

    pub(crate) fn internal(reason: impl std::fmt::Display) -> Self {
        tracing::error!(%reason, "request failed inside");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            10013,
            format!("Wharf could not do this: {reason}"),
        )
    }
}

/// `100 MiB`, or the plain number if it is no whole number of MiB.
fn size(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes.is_multiple_of(MIB) {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{bytes} bytes")
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(meta) = self.meta {
            error["meta"] = meta;
        }
        answer(
            self.status,
            &json!({
                "success": false,
                "errors": [error],
                "messages": [],
                "result": null,
            }),
        )
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

/// A success.
pub(crate) fn ok(result: Value) -> Response {
    answer(
        StatusCode::OK,
        &json!({"success": true, "errors": [], "messages": [], "result": result}),
    )
}

/// A success with `result_info`.
pub(crate) fn ok_with_info(result: Value, result_info: Value) -> Response {
    answer(
        StatusCode::OK,
        &json!({
            "success": true, "errors": [], "messages": [], "result": result, "result_info": result_info,
        }),
    )
}

/// `page` and `per_page` of a list. Past the end a list is empty: some commands go on until it is.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Page {
    pub(crate) page: u32,
    pub(crate) per_page: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            page: 1,
            per_page: 1000,
        }
    }
}

impl Page {
    /// First item's index, and how many.
    pub(crate) fn window(self) -> (usize, usize) {
        let per_page = self.per_page.clamp(1, 1000) as usize;
        let offset = (self.page.max(1) as usize - 1).saturating_mul(per_page);
        (offset, per_page)
    }

    pub(crate) fn info(self, count: usize, total: usize) -> Value {
        let (_, per_page) = self.window();
        json!({
            "page": self.page.max(1),
            "per_page": per_page,
            "count": count,
            "total_count": total,
            "total_pages": total.div_ceil(per_page),
        })
    }

    /// The page of a list that is at hand whole.
    pub(crate) fn of(self, items: Vec<Value>) -> Response {
        let (offset, per_page) = self.window();
        let total = items.len();
        let items: Vec<Value> = items.into_iter().skip(offset).take(per_page).collect();
        let info = self.info(items.len(), total);
        ok_with_info(Value::Array(items), info)
    }
}

/// Cloudflare's form of a time, with microseconds so that the text sorts as the time does.
pub(crate) fn timestamp(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| String::new(), |time| format!("{time:.6}"))
}

/// Now, Unix time in milliseconds.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sort_as_text() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(1_700_000_000_123), "2023-11-14T22:13:20.123000Z");
    }

    #[test]
    fn a_page_past_the_end_is_empty_whatever_the_numbers() {
        for (page, per_page) in [(2, 10), (u32::MAX, u32::MAX), (u32::MAX, 0)] {
            let page = Page { page, per_page };
            let (offset, _) = page.window();
            assert!(offset >= 1, "{page:?}");
        }
        assert_eq!(
            Page {
                page: 0,
                per_page: 5
            }
            .window(),
            (0, 5)
        );
    }
}
