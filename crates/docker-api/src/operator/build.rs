//! Builds of Dockerfiles.

use std::collections::BTreeMap;
use std::path::PathBuf;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_build::{BuildRequest, Progress};

use super::Operator;
use crate::errors::ApiError;

/// `docker build` as Docker's own client does it.
pub(super) async fn with_uploaded_context() -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "builds with an uploaded context are not supported yet; use `wharf docker build`",
    )
}

/// The request of `wharf docker build`: the context is a directory on this machine, read by the daemon.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Build {
    context: PathBuf,
    dockerfile: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    build_args: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    target: Option<String>,
    #[serde(default)]
    no_cache: bool,
}

pub(super) async fn build(State(op): State<Operator>, Json(request): Json<Build>) -> Response {
    let (progress, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let tags = request.tags.clone();
    let request = BuildRequest {
        context: request.context,
        dockerfile: request.dockerfile,
        tags: request.tags,
        build_args: request.build_args,
        target: request.target,
        no_cache: request.no_cache,
        labels: request.labels,
    };
    // The build runs inside the response's stream: a client that goes away drops the stream, and with it the build.
    let stream = async_lines(
        async move |out: tokio::sync::mpsc::UnboundedSender<Value>| {
            let forward = async {
                while let Some(event) = lines.recv().await {
                    // The receiver is this same stream; it can't be gone while this runs.
                    let _ = out.send(progress_line(event));
                }
            };
            let (result, ()) = tokio::join!(op.builder.build(request, progress), forward);
            let last = match result {
                Ok(image) => {
                    let _ = out.send(json!({"stream": format!("Successfully built {}\n", &image.id.hex()[..12])}));
                    // An image that came out as before has the names of earlier builds too.
                    let asked = |name: &&String| {
                        tags.iter()
                            .any(|tag| **name == *tag || **name == format!("{tag}:latest"))
                    };
                    for tag in image.repo_tags.iter().filter(asked) {
                        let _ = out.send(json!({"stream": format!("Successfully tagged {tag}\n")}));
                    }
                    json!({"aux": {"ID": image.id.as_str()}})
                }
                Err(e) => {
                    json!({"error": e.to_string(), "errorDetail": {"message": e.to_string()}})
                }
            };
            let _ = out.send(last);
        },
    );
    (
        [("content-type", "application/json")],
        Body::from_stream(stream),
    )
        .into_response()
}

fn progress_line(event: Progress) -> Value {
    match event {
        Progress::Step {
            number,
            total,
            text,
            cached,
        } => {
            let cached = if cached { " (cached)" } else { "" };
            json!({"stream": format!("[{number}/{total}] {text}{cached}\n")})
        }
        Progress::Output(bytes) => json!({"stream": String::from_utf8_lossy(&bytes)}),
    }
}

/// A stream of JSON lines that `work` sends while it is polled by the stream itself.
fn async_lines<F, Fut>(
    work: F,
) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send
where
    F: FnOnce(tokio::sync::mpsc::UnboundedSender<Value>) -> Fut,
    Fut: Future<Output = ()> + Send,
{
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let work = Box::pin(work(sender));
    futures_util::stream::unfold(
        (receiver, Some(work)),
        |(mut receiver, mut work)| async move {
            loop {
                let line = match &mut work {
                    None => receiver.recv().await,
                    Some(running) => tokio::select! {
                        biased;
                        line = receiver.recv() => line,
                        () = running => {
                            work = None;
                            continue;
                        }
                    },
                };
                return line.map(|l| (Ok(Bytes::from(format!("{l}\n"))), (receiver, work)));
            }
        },
    )
}
