//! Who may ask: every request bears an API token, and its path the one account's id.
//!
//! The one exception is the upload of assets, which bears the token of its upload session (checked in `assets`).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};

use crate::envelope::{ApiError, ApiResult, BAD_REQUEST};
use crate::{App, body};

/// Lets through what is allowed, and answers the rest.
pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let token = token(request.headers()).unwrap_or_default().to_owned();
    match check(&app, &path, token).await {
        Ok(()) => enveloped(next.run(request).await).await,
        Err(error) => error.into_response(),
    }
}

/// The framework refuses a malformed query or path by itself, in plain text: clients expect the envelope.
async fn enveloped(response: Response) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value == "application/json");
    if status.is_success() || is_json {
        return response;
    }
    let text = match body::bytes(response.into_body(), body::JSON_LIMIT, "the answer").await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => error.message,
    };
    ApiError::new(status, BAD_REQUEST, text).into_response()
}

/// Whether this is the one request that bears another token: `/accounts/<id>/workers/assets/upload`.
fn is_asset_upload(path: &str) -> bool {
    path.strip_prefix("/accounts/")
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(_, rest)| rest == "workers/assets/upload")
}

async fn check(app: &Arc<App>, path: &str, token: String) -> ApiResult<()> {
    if !is_asset_upload(path) {
        let known = app
            .db(move |store| Ok::<_, ApiError>(store.check_token(&token)))
            .await?;
        if !known {
            return Err(unauthenticated());
        }
    }
    if let Some(rest) = path.strip_prefix("/accounts/") {
        let account = rest.split('/').next().unwrap_or_default();
        let ours = &app.config.account_id;
        if account != ours {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                7003,
                format!(
                    "Could not route to {path}: this Wharf has one account, {ours}. \
                     Set CLOUDFLARE_ACCOUNT_ID={ours}, or run `wharf env`, which prints it."
                ),
            ));
        }
    }
    Ok(())
}

/// The token of `Authorization: Bearer`, or of `X-Auth-Key`.
pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
    bearer.or_else(|| headers.get("x-auth-key")?.to_str().ok())
}

/// Cloudflare's answer to a wrong or missing token.
pub(crate) fn unauthenticated() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, 10000, "Authentication error")
}
