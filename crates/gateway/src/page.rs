//! The gateway's own answers: short plain text, or JSON for a client that asks for it.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use crate::body::ReplyBody;

/// Why a request was not carried to a Worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the request has no Host header")]
    HostMissing,
    #[error("the request has more than one Host header")]
    HostRepeated,
    #[error("the request has more than one {0} header, and they differ")]
    FieldRepeated(http::HeaderName),
    #[error("the Host header is not a host name")]
    HostInvalid,
    #[error("CONNECT is not supported: this is not a forward proxy")]
    Connect,
    #[error("a request for \"*\" is not supported")]
    Asterisk,
    #[error("only \"Expect: 100-continue\" is supported")]
    Expectation,
    #[error("only \"Transfer-Encoding: chunked\" is supported")]
    TransferCoding,
    #[error("{0}")]
    NoWorker(String),
    #[error("the request's body broke off or is malformed")]
    RequestBody,
    #[error("{0}")]
    BadGateway(String),
    #[error("{0}")]
    Unavailable(String),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::HostMissing
            | Self::HostRepeated
            | Self::FieldRepeated(_)
            | Self::HostInvalid
            | Self::Asterisk
            | Self::RequestBody => StatusCode::BAD_REQUEST,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::NoWorker(_) => StatusCode::NOT_FOUND,
            Self::BadGateway(_) => StatusCode::BAD_GATEWAY,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The answer; `json` when the client prefers that.
    pub(crate) fn page(&self, ray: &HeaderValue, json: bool) -> Response<ReplyBody> {
        let status = self.status();
        let ray = ray.to_str().unwrap_or_default();
        let text = if json {
            serde_json::json!({"error": {
                "status": status.as_u16(),
                "reason": self.to_string(),
                "ray": ray,
            }})
            .to_string()
                + "\n"
        } else {
            format!("{status}: {self}\n\nrequest {ray}\n")
        };
        let mut response = Response::new(ReplyBody::Text(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(if json {
                "application/json"
            } else {
                "text/plain; charset=utf-8"
            }),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Whether a client names JSON among what it accepts. Browsers do not.
pub(crate) fn wants_json(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.to_ascii_lowercase().contains("application/json"))
    })
}

/// The 404's text. Which hosts exist is said in dev mode only.
pub(crate) fn no_worker(host: &str, dev: Option<(&[String], &str, u16)>) -> Refusal {
    let Some((scripts, base, port)) = dev else {
        return Refusal::NoWorker("nothing is served at this host".to_owned());
    };
    let port = if port == 80 {
        String::new()
    } else {
        format!(":{port}")
    };
    let mut text = format!("no Worker is deployed at \"{host}\"\n\n");
    if scripts.is_empty() {
        text += "Nothing is deployed yet.";
    } else {
        text += "Deployed here:";
        for script in scripts {
            text += &format!("\n  http://{script}.{base}{port}");
        }
    }
    text += "\n\nTo deploy one, run in its directory:\n  wharf wrangler deploy";
    Refusal::NoWorker(text)
}

/// The 404's text for a script that is deployed without an address; in dev mode only.
pub(crate) fn not_public(host: &str, script: &str) -> Refusal {
    Refusal::NoWorker(format!(
        "the Worker \"{script}\" is not served at \"{host}\": \"workers_dev\" is false in its \
         configuration, so it is reached by service bindings and cron triggers alone\n\n\
         To serve it here, set \"workers_dev\": true and deploy it again."
    ))
}
