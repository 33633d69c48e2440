//! Entrances for fuzzing; not part of the interface.
//!
//! What stands between a client's bytes and the engine: HTTP with its bounds, the version in the path, queries and bodies, and what is read out of
//! names, filters, ports and commands. The engine itself is not here; crates/docker-api/tests/bad_input.rs has both.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request};
use axum::response::{IntoResponse, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::errors::ApiError;
use crate::operator::read_filters;
use crate::script::{read_create, read_start_options};
use crate::serve::{Bounds, connection};
use crate::version::versioned;

/// Far above what any input needs, far below what a person waits for.
const WAIT: Duration = Duration::from_secs(10);
const BOUNDS: Bounds = Bounds {
    head: Duration::from_millis(5),
    body: Duration::from_millis(5),
    connections: 1,
};
const MAX_BODY: usize = 64 << 10;

/// Parts of requests, which random bytes would not often be.
const PIECES: &[&str] = &[
    "GET /v1.43/containers/json?filters=",
    "POST /containers/create?name=workerd-k-0000000000000000000000000000000000000000000000000000000000000000",
    "-proxy",
    "DELETE /v1.",
    "HEAD /_ping",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "Host: x\r\n",
    "Content-Length: 2\r\n",
    "Content-Length: 200\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: Upgrade\r\nUpgrade: tcp\r\n",
    "Expect: 100-continue\r\n",
    "\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "{\"label\":[\"a=b\"],\"status\":{\"exited\":true}}",
    "{\"Image\":\"x\",\"Cmd\":[\"--http-egress-port\"],\"ExposedPorts\":{\"39001/tcp\":{}},\"HostConfig\":",
    "{\"PortBindings\":{\"80/tcp\":[{\"HostIp\":\"::1\",\"HostPort\":\"8080\"}]},\"NetworkMode\":\"none\",\"Memory\":-1}",
    "{\"token\":\"t\",\"instance\":{\"vcpu\":1,\"memoryMib\":1,\"diskMb\":1},\"hardTimeoutMs\":1,\"labels\":{\"a\":\"b\"}}",
    "}",
    "%7B",
    "%ff",
    "&t=",
];
/// Bytes from this one on stand for a piece, unless they come after 0xff, which stands for what follows it.
const FIRST_PIECE: u8 = 0xff - PIECES.len() as u8;

/// What an input stands for.
fn expand(input: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut input = input.iter();
    while let Some(byte) = input.next() {
        match byte.checked_sub(FIRST_PIECE) {
            None => bytes.push(*byte),
            Some(n) => match PIECES.get(usize::from(n)) {
                Some(piece) => bytes.extend_from_slice(piece.as_bytes()),
                None => bytes.extend(input.next()),
            },
        }
    }
    bytes
}

/// What the prelude of a Worker sends along with a start.
pub fn start_options(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        read_start_options(text);
    }
}

/// One connection: the first byte says into how many pieces the rest is cut, and whether the client ends its side.
///
/// # Panics
/// The connection is neither answered nor closed in time, or an answer is not HTTP.
pub fn docker_api(bytes: &[u8]) {
    let Some((how, input)) = bytes.split_first() else {
        return;
    };
    let bytes = expand(input);
    if let Ok(text) = std::str::from_utf8(&bytes) {
        // Every outcome is right, as long as there is one.
        let _ = read_filters(text);
        read_start_options(text);
        read_create(text, text.as_bytes());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return };
    let answer = runtime.block_on(async {
        let talk = talk(&bytes, usize::from(how >> 1) + 1, how & 1 == 1);
        tokio::time::timeout(WAIT, talk).await
    });
    let Ok(answer) = answer else {
        panic!("neither answered nor closed");
    };
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
}

async fn talk(bytes: &[u8], pieces: usize, half_close: bool) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(4096);
    let router = versioned(Router::new().fallback(handle));
    let (_open, closed) = watch::channel(());
    let serving = connection(BOUNDS, server, None, router, closed);
    let (mut read, mut write) = tokio::io::split(client);
    let sending = async {
        for piece in bytes.chunks(bytes.len().div_ceil(pieces).max(1)) {
            // The other side may have had enough.
            if write.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if half_close {
            let _ = write.shutdown().await;
        }
    };
    let reading = async {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        answer
    };
    tokio::join!(serving, sending, reading).2
}

/// Reads everything that a handler may read.
async fn handle(query: Query<BTreeMap<String, String>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    match axum::body::to_bytes(request.into_body(), MAX_BODY).await {
        Ok(body) => {
            read_create(query.get("name").unwrap_or(&path), &body);
            "read".into_response()
        }
        Err(error) => ApiError::bad_request(error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_bytes_are_answered_or_closed(
            how: u8,
            head in prop::sample::select(vec!["", "GET /v1.43/x HTTP/1.1\r\n\r\n", "POST /?name=x HTTP/1.1\r\nContent-Length: 4\r\n\r\n"]),
            rest: Vec<u8>,
        ) {
            docker_api(&[&[how], head.as_bytes(), &rest].concat());
        }
    }
}
