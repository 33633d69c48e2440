//! What workerd tells and asks its sidecar besides connections: `PUT /egress` and `GET /ca` (contract: workerd, 1.5).

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

use super::{Answer, text};
use crate::egress::{self, Update};
use crate::{Shared, succession};

const MAX_BODY: usize = 256 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The certificate of the network's authority.
pub(super) fn get_ca(shared: &Shared) -> Answer {
    let mut answer = Response::new(Full::from(shared.ca().pem()));
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/x-pem-file"),
    );
    answer
}

pub(super) async fn put_egress(own: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            return text(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body of PUT /egress ({MAX_BODY} bytes at most): {error}"),
            );
        }
        Err(_) => {
            return text(
                StatusCode::REQUEST_TIMEOUT,
                "the body of PUT /egress took too long".to_owned(),
            );
        }
    };
    let update: Update = match serde_json::from_slice(&body) {
        Ok(update) => update,
        Err(error) => {
            return text(
                StatusCode::BAD_REQUEST,
                format!("the body of PUT /egress: {error}"),
            );
        }
    };
    // A network that has taken over meanwhile began with what was said before.
    loop {
        let shared = succession::current(own);
        egress::apply(&shared, update.clone()).await;
        if Arc::ptr_eq(&shared, &succession::current(own)) {
            break;
        }
    }
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}
