//! Requests to the daemon's operator socket: HTTP/1.1 on a Unix socket, one connection a request.
//!
//! Owns: connecting and reading answers. Must not: know commands.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// Everything but the unreserved characters of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Largest head of an answer, bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Percent-encodes a path segment or a query value.
pub fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// A request body: bytes, or a stream of a file.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("Cannot connect to the Wharf daemon at unix://{0}: {1}. {mend}", mend = mend(.1))]
    Connect(PathBuf, std::io::Error),
    /// `DOCKER_HOST` that isn't a Unix socket.
    #[error("the host \"{0}\" is not supported; use unix:///path/to/wharf.sock")]
    Host(String),
    /// The daemon refused: status and its message.
    #[error("Error response from daemon: {message}")]
    Daemon {
        /// HTTP status.
        status: u16,
        /// The daemon's words.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Transport(String),
    /// A file on this side.
    #[error("{0}")]
    Local(String),
}

fn mend(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "The socket is root's: try again with `sudo`, as root."
        }
        _ => "Is it running? Start it with `wharf up`.",
    }
}

/// Speaks to one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// No body.
pub fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|e| match e {}).boxed()
}

/// A JSON body.
pub fn json_body(value: &Value) -> Body {
    Full::new(Bytes::from(value.to_string()))
        .map_err(|e| match e {})
        .boxed()
}

/// A body read from `reader` as it is sent.
pub fn stream(reader: impl tokio::io::AsyncRead + Send + Sync + Unpin + 'static) -> Body {
    let chunks =
        futures_util::stream::unfold((reader, vec![0u8; 64 * 1024]), |(mut r, mut buf)| async {
            use tokio::io::AsyncReadExt;
            match r.read(&mut buf).await {
                Ok(0) => None,
                Ok(n) => {
                    let frame = hyper::body::Frame::data(Bytes::copy_from_slice(&buf[..n]));
                    Some((Ok(frame), (r, buf)))
                }
                Err(e) => Some((Err(e), (r, buf))),
            }
        });
    BodyExt::boxed(StreamBody::new(chunks))
}

impl Client {
    /// A client for `host`: `unix:///path` or a bare path.
    pub fn new(host: &str) -> Result<Self, ClientError> {
        let path = host.strip_prefix("unix://").unwrap_or(host);
        if !path.starts_with('/') {
            return Err(ClientError::Host(host.into()));
        }
        Ok(Client {
            socket: path.into(),
        })
    }

    /// Sends a request; an answer of 400 and above is an error with the daemon's message.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = tokio::net::UnixStream::connect(&self.socket)
            .await
            .map_err(|e| ClientError::Connect(self.socket.clone(), e))?;
        let transport = |e: hyper::Error| ClientError::Transport(e.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_header_size(MAX_HEAD)
            .max_headers(wharf_http_head::fields_within(MAX_HEAD))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(transport)?;
        tokio::spawn(async move {
            // An error here reaches the caller through the response future or its body.
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost")
            .header("Content-Type", "application/json")
            .body(body)
            .map_err(|e| ClientError::Local(format!("the request {path} can't be formed: {e}")))?;
        let response = sender.send_request(request).await.map_err(transport)?;
        let status = response.status();
        if status.as_u16() < 400 {
            return Ok(response);
        }
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(transport)?
            .to_bytes();
        let message = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|v| v.get("message").and_then(Value::as_str).map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned());
        Err(ClientError::Daemon {
            status: status.as_u16(),
            message,
        })
    }

    /// Sends a request and reads a JSON answer (`null` for an empty one).
    pub async fn json(&self, method: Method, path: &str, body: Body) -> Result<Value, ClientError> {
        let response = self.send(method, path, body).await?;
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|e| ClientError::Transport(e.to_string()))?
            .to_bytes();
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| ClientError::Transport(format!("the answer of {path} is not JSON: {e}")))
    }

    /// Sends a request whose answer is a stream of JSON lines, as builds and pushes give; `each` sees every one. An `error` line is an error.
    pub async fn json_lines(
        &self,
        method: Method,
        path: &str,
        body: Body,
        mut each: impl FnMut(&Value),
    ) -> Result<(), ClientError> {
        let mut incoming = self.send(method, path, body).await?.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|e| ClientError::Transport(e.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let value: Value = serde_json::from_slice(&line)
                    .map_err(|e| ClientError::Transport(format!("bad progress line: {e}")))?;
                if let Some(message) = value.get("error").and_then(Value::as_str) {
                    return Err(ClientError::Daemon {
                        status: 200,
                        message: message.to_owned(),
                    });
                }
                each(&value);
            }
        }
        Ok(())
    }
}
