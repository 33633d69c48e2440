//! Reading what every request has: a JSON body, and Docker's booleans in queries.

use axum::extract::rejection::BytesRejection;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::errors::ApiError;

/// Docker's booleans in queries: anything but nothing and these is true.
pub(crate) fn is_true(text: Option<&str>) -> bool {
    let text = text.unwrap_or("").trim().to_ascii_lowercase();
    !matches!(text.as_str(), "" | "0" | "no" | "false" | "none")
}

/// The fields that a handler reads of a JSON body.
pub(crate) fn typed<T: DeserializeOwned>(body: &serde_json::Value) -> Result<T, ApiError> {
    T::deserialize(body)
        .map_err(|error| ApiError::bad_request(format!("the request body is not valid: {error}")))
}

/// A JSON body, whatever its Content-Type (workerd sends none with an empty one).
pub(crate) fn parse<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, ApiError> {
    serde_json::from_slice(&body?)
        .map_err(|error| ApiError::bad_request(format!("the request body is not valid: {error}")))
}
