//! Docker's error shape: a status and `{"message": ...}`.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use wharf_engine::EngineError;
use wharf_image::ImageError;
use wharf_node::{Refusal, RefusalKind};

/// An error as a Docker client sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// For a person.
    pub(crate) message: String,
}

impl ApiError {
    /// With this status.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
        }
    }

    /// 400.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// 501 for a feature that this Wharf does not have.
    pub(crate) fn unsupported(feature: &str) -> Self {
        ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{feature} is not supported yet by this Wharf"),
        )
    }

    /// Docker's answer to a path that it does not know.
    pub(crate) fn page_not_found() -> Self {
        ApiError::not_found("page not found")
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::NotFound(_) => StatusCode::NOT_FOUND,
            EngineError::Conflict(_) => StatusCode::CONFLICT,
            EngineError::NotModified(_) => StatusCode::NOT_MODIFIED,
            EngineError::Invalid(_) => StatusCode::BAD_REQUEST,
            EngineError::Limit(_) => StatusCode::SERVICE_UNAVAILABLE,
            EngineError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            RefusalKind::Invalid => ApiError::bad_request(refusal.message),
            RefusalKind::Image => {
                ApiError::not_found(format!("No such image: {}", refusal.message))
            }
            RefusalKind::TooLarge => {
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, refusal.message)
            }
            RefusalKind::Unavailable => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, refusal.message)
            }
        }
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let status = match &error {
            ImageError::NotFound(_) => StatusCode::NOT_FOUND,
            ImageError::Invalid(_) => StatusCode::BAD_REQUEST,
            ImageError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        ApiError::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // 304 has no body.
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        let body = serde_json::json!({ "message": self.message });
        (self.status, Json(body)).into_response()
    }
}
