//! What holds for every request: the API version in the path, `/v1.43/info`, accepted within the range that this dialect follows and else refused in
//! Docker's words; the headers by which a client learns the version; and the one shape of all errors.

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Uri, header};
use tower::ServiceExt;

use crate::errors::ApiError;
use crate::operations::check_query;

/// The Docker API version that this dialect follows.
pub const API_VERSION: &str = "1.43";
/// The oldest that is accepted; Docker's own.
pub(crate) const OLDEST: &str = "1.24";

/// Longest text of an error that is put into its shape.
const MAX_TEXT: usize = 64 << 10;

/// Puts a router behind the version.
pub(crate) fn versioned(inner: Router) -> Router {
    Router::new().fallback(async move |request: Request| {
        let mut response: Response = match strip(request) {
            Ok(request) => match check_query(request.method(), request.uri()) {
                Ok(()) => inner.oneshot(request).await.into_response(),
                Err(error) => error.into_response(),
            },
            Err(error) => error.into_response(),
        };
        response = shaped(response).await;
        let headers = response.headers_mut();
        headers.insert("api-version", HeaderValue::from_static(API_VERSION));
        headers.insert("ostype", HeaderValue::from_static("linux"));
        headers.insert("server", HeaderValue::from_static("Wharf"));
        response
    })
}

/// An error that the HTTP library found (a query that is none, say) in Docker's shape.
async fn shaped(response: Response) -> Response {
    let status = response.status();
    let is_text = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|it| it.as_bytes().starts_with(b"text/plain"));
    if !is_text || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    match axum::body::to_bytes(response.into_body(), MAX_TEXT).await {
        Ok(text) => ApiError::new(status, String::from_utf8_lossy(&text)).into_response(),
        Err(_) => ApiError::new(status, status.to_string()).into_response(),
    }
}

/// `/v1.43/info` -> `/info`.
fn strip(mut request: Request) -> Result<Request, ApiError> {
    let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let Some((version, rest)) = split(target) else {
        return Ok(request);
    };
    check(version)?;
    let uri = Uri::try_from(rest).map_err(|e| ApiError::bad_request(e.to_string()))?;
    *request.uri_mut() = uri;
    Ok(request)
}

/// The version and what follows it, if the path begins with what Docker takes for a version.
fn split(target: &str) -> Option<(&str, &str)> {
    let rest = target.strip_prefix("/v")?;
    let (version, rest) = rest.split_at(rest.find('/')?);
    let is_version =
        !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    is_version.then_some((version, rest))
}

fn check(version: &str) -> Result<(), ApiError> {
    if parts(version) > parts(API_VERSION) {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    if parts(version) < parts(OLDEST) {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too old. Minimum supported API version is {OLDEST}, please upgrade your client to a newer version"
        )));
    }
    Ok(())
}

/// To be compared. A part that is no number counts as 0, as with Docker; one too long for a number as a very large one.
fn parts(version: &str) -> Vec<u64> {
    let part = |text: &str| match text.parse() {
        Ok(number) => number,
        Err(_) if text.is_empty() => 0,
        Err(_) => u64::MAX,
    };
    version.split('.').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_off() {
        assert_eq!(split("/v1.43/info?a=/v1"), Some(("1.43", "/info?a=/v1")));
        for none in ["/info", "/volumes", "/v1.43", "/vx/info", "/v/info", "/"] {
            assert_eq!(split(none), None, "{none}");
        }
    }

    #[test]
    fn versions_outside_the_range_are_refused_in_dockers_words() {
        for good in ["1.24", "1.43", "1.40"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(
            check("1.99").unwrap_err().message,
            "client version 1.99 is too new. Maximum supported API version is 1.43"
        );
        assert!(check("2.0").is_err() && check("99999999999999999999999.1").is_err());
        assert_eq!(
            check("1.10").unwrap_err().message,
            "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
        assert!(check("...").is_err() && check("0").is_err());
    }
}
