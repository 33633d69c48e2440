//! Pushing blobs: whole, in chunks, or by mounting one that is here.
//!
//! ```text
//! POST ─┬─ ?mount= (here already) ──────────────> 201
//!       ├─ ?digest= with the body ──────────────> 201
//!       └─ session ── PATCH * ── PUT ?digest= ──> 201
//!                  └─ DELETE, or a day unused ──> gone
//! ```
//!
//! A body goes to disk as it comes, through a channel of a few chunks to a task that may block. A client that drops in the middle keeps what
//! arrived, and goes on from there.

use std::io::Write;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, StatusCode, header};
use tokio::sync::mpsc;
use wharf_image::{Digest, ImageStore};

use crate::blobs::digest;
use crate::error::{ApiError, Code};
use crate::route::Query;
use crate::{CONTENT_DIGEST, MAX_BLOB, empty, run};

/// Chunks between the socket and the disk.
const CHUNKS: usize = 16;
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

fn unknown(error: ApiError) -> ApiError {
    ApiError::of(Code::BlobUploadUnknown, Code::BlobUploadInvalid)(error)
}

pub(crate) async fn begin(
    images: ImageStore,
    name: String,
    query: &Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if let Some(mount) = query.get("mount") {
        let wanted = digest(mount)?;
        let (store, blob) = (images.clone(), wanted.clone());
        let here = run(move || match store.blob(&blob) {
            Ok(_) => Ok(true),
            Err(wharf_image::ImageError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        })
        .await?;
        if here {
            return created(&name, &wanted);
        }
        // Not here: the specification wants a session instead of an error.
    }
    let wanted = query.get("digest").map(digest).transpose()?;
    let store = images.clone();
    let id = run(move || store.begin_upload()).await?;
    let Some(wanted) = wanted else {
        return session(StatusCode::ACCEPTED, &name, &id, 0);
    };
    let result = async {
        receive(&images, &id, headers, body).await?;
        complete(&images, &id, &wanted).await
    }
    .await;
    match result {
        Ok(()) => created(&name, &wanted),
        Err(error) => {
            // Nobody knows this session's id.
            let _ = run(move || images.cancel_upload(&id)).await;
            Err(error)
        }
    }
}

pub(crate) async fn append(
    images: ImageStore,
    name: String,
    id: String,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let length = receive(&images, &id, headers, body)
        .await
        .map_err(|refused| refused.in_session(&name, &id))?;
    session(StatusCode::ACCEPTED, &name, &id, length)
}

pub(crate) async fn finish(
    images: ImageStore,
    name: String,
    id: String,
    query: &Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Some(wanted) = query.get("digest") else {
        return Err(ApiError::new(
            Code::DigestInvalid,
            "the last request of an upload must say ?digest=sha256:...",
        ));
    };
    let wanted = digest(wanted)?;
    receive(&images, &id, headers, body)
        .await
        .map_err(|refused| refused.in_session(&name, &id))?;
    complete(&images, &id, &wanted).await?;
    created(&name, &wanted)
}

pub(crate) async fn status(
    images: ImageStore,
    name: String,
    id: String,
) -> Result<Response, ApiError> {
    let (store, upload) = (images, id.clone());
    let (_, length) = run(move || store.upload(&upload)).await.map_err(unknown)?;
    session(StatusCode::NO_CONTENT, &name, &id, length)
}

pub(crate) async fn cancel(images: ImageStore, id: String) -> Result<Response, ApiError> {
    run(move || images.cancel_upload(&id))
        .await
        .map_err(unknown)?;
    empty(StatusCode::NO_CONTENT, &[])
}

async fn complete(images: &ImageStore, id: &str, wanted: &Digest) -> Result<(), ApiError> {
    let (store, id, wanted) = (images.clone(), id.to_owned(), wanted.clone());
    run(move || store.finish_upload(&id, &wanted))
        .await
        .map_err(ApiError::of(Code::BlobUploadUnknown, Code::DigestInvalid))
}

fn created(name: &str, wanted: &Digest) -> Result<Response, ApiError> {
    empty(
        StatusCode::CREATED,
        &[
            (header::LOCATION, format!("/v2/{name}/blobs/{wanted}")),
            (CONTENT_DIGEST, wanted.to_string()),
            (header::CONTENT_LENGTH, "0".to_owned()),
        ],
    )
}

fn session_headers(name: &str, id: &str, length: u64) -> [(HeaderName, String); 3] {
    [
        (header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}")),
        // Of nothing too, "0-0": there is no other way to write it, and Docker's registry does so.
        (header::RANGE, format!("0-{}", length.saturating_sub(1))),
        (UPLOAD_ID, id.to_owned()),
    ]
}

fn session(status: StatusCode, name: &str, id: &str, length: u64) -> Result<Response, ApiError> {
    empty(status, &session_headers(name, id, length))
}

fn out_of_order(name: &str, id: &str, length: u64) -> ApiError {
    let mut error = ApiError::new(
        Code::BlobUploadInvalid,
        format!("chunks must come in order: the next one begins at byte {length}"),
    )
    .status(StatusCode::RANGE_NOT_SATISFIABLE);
    for (header, value) in session_headers(name, id, length) {
        error = error.with(header, &value);
    }
    error
}

enum Refused {
    /// The chunk does not begin where the upload ends, which is here.
    Range(u64),
    Other(ApiError),
}

impl Refused {
    /// For the client of a session, who can go on where the upload ends.
    fn in_session(self, name: &str, id: &str) -> ApiError {
        match self {
            Self::Range(length) => out_of_order(name, id, length),
            Self::Other(error) => error,
        }
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Other(error)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Range(length) => ApiError::new(
                Code::BlobUploadInvalid,
                format!("the content must begin at byte {length}"),
            ),
            Refused::Other(error) => error,
        }
    }
}

/// `<first>-<last>`, as the specification writes `Content-Range` of a chunk (without RFC 9110's unit; with it is taken too).
fn content_range(headers: &HeaderMap) -> Result<Option<(u64, u64)>, ApiError> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|text| {
        let text = text.strip_prefix("bytes ").unwrap_or(text);
        let text = text.split('/').next().unwrap_or_default();
        let (first, last) = text.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    match parsed {
        Some((first, last)) if first <= last => Ok(Some((first, last))),
        _ => Err(ApiError::new(
            Code::BlobUploadInvalid,
            "Content-Range must be <first byte>-<last byte>",
        )),
    }
}

/// Appends a body to an upload; returns its length after that.
async fn receive(
    images: &ImageStore,
    id: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<u64, Refused> {
    let range = content_range(headers)?;
    let (send, chunks) = mpsc::channel::<Bytes>(CHUNKS);
    let (store, upload) = (images.clone(), id.to_owned());
    let writer = tokio::task::spawn_blocking(move || write_chunks(&store, &upload, range, chunks));
    let mut stream = body.into_data_stream();
    let mut broken = None;
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => {
                if send.send(chunk).await.is_err() {
                    // The writer gave up; its answer says why.
                    break;
                }
            }
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(send);
    let length = match writer.await {
        Ok(result) => result?,
        Err(error) => {
            return Err(ApiError::internal(&format!("a task failed: {error}")).into());
        }
    };
    match broken {
        None => Ok(length),
        Some(error) => Err(ApiError::new(
            Code::BlobUploadInvalid,
            format!("the body broke off after byte {length}: {error}"),
        )
        .into()),
    }
}

fn write_chunks(
    images: &ImageStore,
    id: &str,
    range: Option<(u64, u64)>,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<u64, Refused> {
    let (path, _) = images.upload(id).map_err(|e| unknown(e.into()))?;
    let failed = |e: std::io::Error| {
        Refused::Other(ApiError::internal(&format!("writing upload {id}: {e}")))
    };
    let mut file = std::fs::File::options()
        .append(true)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(ApiError::new(
                Code::BlobUploadInvalid,
                "another request is writing to this upload",
            )
            .into());
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    let start = file.metadata().map_err(failed)?.len();
    if range.is_some_and(|(first, _)| first != start) {
        return Err(Refused::Range(start));
    }
    let mut length = start;
    while let Some(chunk) = chunks.blocking_recv() {
        length += chunk.len() as u64;
        if length > MAX_BLOB {
            images
                .cancel_upload(id)
                .map_err(|e| Refused::Other(e.into()))?;
            return Err(ApiError::new(
                Code::SizeInvalid,
                format!("a blob may have {MAX_BLOB} bytes at most"),
            )
            .status(StatusCode::PAYLOAD_TOO_LARGE)
            .into());
        }
        file.write_all(&chunk).map_err(failed)?;
    }
    if let Some((first, last)) = range
        && length != last + 1
    {
        // As if the chunk had never come: the client believes it sent something else.
        file.set_len(start).map_err(failed)?;
        return Err(ApiError::new(
            Code::SizeInvalid,
            format!(
                "Content-Range says {} bytes, but {} came",
                last - first + 1,
                length - start
            ),
        )
        .into());
    }
    Ok(length)
}
