//! Connections that become raw streams after the request (attach, exec): Docker's `Upgrade: tcp`.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

/// The raw stream, both ways.
pub(crate) type Stream = TokioIo<Upgraded>;

/// Takes the promise of the raw stream out of a request that asks for one.
pub(crate) fn asked(request: &mut Request) -> Option<OnUpgrade> {
    let has = |name, word: &str| {
        let values = request.headers().get_all(name).into_iter();
        values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    let asks = has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "tcp");
    asks.then(|| hyper::upgrade::on(request))
}

/// The 101; `serve` gets the stream once the answer has been sent.
pub(crate) fn switch<F>(
    upgrade: OnUpgrade,
    media_type: &'static str,
    serve: impl FnOnce(Stream) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(TokioIo::new(upgraded)).await,
            // The client went away: its own affair.
            Err(error) => tracing::debug!(%error, "no raw stream"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
