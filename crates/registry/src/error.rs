//! Errors as the distribution specification writes them: `{"errors":[{"code","message","detail"}]}`.

use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use wharf_image::ImageError;

use crate::json;

/// The codes of the specification's error table, and the one of Docker's registry for a bad page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    Internal,
}

impl Code {
    fn text(self) -> (&'static str, StatusCode) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", StatusCode::BAD_REQUEST),
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND),
            Self::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestBlobUnknown => ("MANIFEST_BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::ManifestInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND),
            Self::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST),
            Self::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Self::PaginationNumberInvalid => ("PAGINATION_NUMBER_INVALID", StatusCode::BAD_REQUEST),
            Self::SizeInvalid => ("SIZE_INVALID", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("UNAUTHORIZED", StatusCode::UNAUTHORIZED),
            Self::Denied => ("DENIED", StatusCode::FORBIDDEN),
            Self::Unsupported => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED),
            Self::Internal => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

#[derive(Debug)]
pub(crate) struct ApiError {
    code: Code,
    status: StatusCode,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            status: code.text().1,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Adds a header; one whose value is none is left out.
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(
            Code::Unauthorized,
            "the token is missing or wrong; log in with any user name and the API token as password",
        )
        .with(header::WWW_AUTHENTICATE, "Basic realm=\"wharf\"")
    }

    /// The details go to the log; the client cannot mend them.
    pub(crate) fn internal(message: &str) -> Self {
        tracing::error!(%message, "registry request failed");
        Self::new(Code::Internal, "the registry failed; its log says why")
    }

    /// What the store says, in the words for what was asked: `missing` when it was not there, `wrong` when it was no good.
    pub(crate) fn of(missing: Code, wrong: Code) -> impl FnOnce(Self) -> Self {
        move |mut error| {
            let code = match error.code {
                Code::NameUnknown => missing,
                Code::NameInvalid => wrong,
                other => other,
            };
            error.code = code;
            error.status = code.text().1;
            error
        }
    }

    pub(crate) fn into_response(self) -> Response {
        let body = serde_json::json!({
            "errors": [{"code": self.code.text().0, "message": self.message, "detail": null}]
        });
        let mut response = json(self.status, &body);
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::NotFound(message) => Self::new(Code::NameUnknown, message),
            ImageError::Invalid(message) => Self::new(Code::NameInvalid, message),
            error @ ImageError::Io { .. } => Self::internal(&error.to_string()),
        }
    }
}
