//! Reading request bodies, bounded, and without trust in their Content-Type (wrangler sends JSON under several names).

use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use crate::envelope::{ApiError, ApiResult};

/// Most bytes of a JSON body.
pub(crate) const JSON_LIMIT: u64 = 1 << 20;

/// Most bytes that are read away from a client that sent too much, so that it gets to read the answer.
const DRAIN_LIMIT: u64 = 1 << 30;

/// Reads a body whole.
pub(crate) async fn bytes(body: Body, limit: u64, what: &str) -> ApiResult<Bytes> {
    let mut stream = body.into_data_stream();
    let mut content = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| ApiError::bad_request(format!("{what} broke off: {error}")))?;
        if (content.len() + chunk.len()) as u64 > limit {
            drain(&mut stream).await;
            return Err(ApiError::too_large(what, limit));
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content.freeze())
}

/// Reads JSON.
pub(crate) async fn json<T: DeserializeOwned>(body: Body) -> ApiResult<T> {
    json_up_to(body, JSON_LIMIT).await
}

/// Reads JSON of at most `limit` bytes.
pub(crate) async fn json_up_to<T: DeserializeOwned>(body: Body, limit: u64) -> ApiResult<T> {
    let content = bytes(body, limit, "the request's JSON body").await?;
    serde_json::from_slice(&content).map_err(|error| {
        ApiError::bad_request(format!(
            "the request's body is not the JSON expected: {error}"
        ))
    })
}

/// Reads the rest away: a client that is still sending when the connection closes never sees why.
pub(crate) async fn drain(stream: &mut BodyDataStream) {
    let mut seen = 0;
    while let Some(Ok(chunk)) = stream.next().await {
        seen += chunk.len() as u64;
        if seen > DRAIN_LIMIT {
            return;
        }
    }
}
