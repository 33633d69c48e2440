//! `/containers/<name>/archive`: files out of a container and into it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Component, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode};
use rustix::fs::FileType;
use serde::Deserialize;
use serde_json::json;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};
use wharf_image::Extraction;
use wharf_image::tar::{Entry, Kind as TarKind, TarReader, TarWriter};
use wharf_snapshot::{Copied, Draft, Form, Kind, Node, SnapshotError, View, copy, pack};

use super::helpers::Job;
use super::{Storage, blocking, whole_view};
use crate::errors::ApiError;

/// Most bytes of an archive that is put into a container, uncompressed.
const MAX_ARCHIVE: u64 = 16 << 30;
/// The name of the file that carries a token.
const TOKEN_NAME: &[u8] = b".wharf-snapshot-token";
/// An archive with a token is not longer.
const MAX_TOKEN_ARCHIVE: u64 = 4096;
/// Longest answer to a path that says what is there.
const BUFFER: usize = 256 << 10;

#[derive(Debug, Deserialize)]
pub(super) struct PathQuery {
    path: Option<String>,
}

/// A path in a container as Docker's clients write it.
struct Asked {
    /// Without `..` and `.`.
    path: PathBuf,
    /// `/dir/.`: the contents alone.
    contents: bool,
    /// Whether a link at the end is followed.
    follow: bool,
}

impl Asked {
    fn of(query: PathQuery) -> Result<Asked, ApiError> {
        let text = query.path.unwrap_or_default();
        if text.is_empty() || text.contains('\0') {
            return Err(ApiError::bad_request("the parameter \"path\" is missing"));
        }
        let mut path = PathBuf::from("/");
        for component in PathBuf::from(&text).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => drop(path.pop()),
                _ => {}
            }
        }
        let contents = text.ends_with("/.") || text == ".";
        Ok(Asked {
            follow: contents || text.ends_with('/'),
            contents,
            path,
        })
    }

    fn missing(&self, container: &str) -> ApiError {
        ApiError::not_found(format!(
            "Could not find the file {} in container {container}",
            self.path.display()
        ))
    }
}

fn fault(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// What a container has at a path.
enum Found {
    Nothing,
    /// With what a link at the end leads to.
    Node(View, Box<Node>, Option<PathBuf>),
}

fn look(files: &wharf_engine::Files, asked: &Asked) -> io::Result<Found> {
    let view = whole_view(files)?;
    match view.find(&asked.path, asked.follow)? {
        Some(node) => {
            let target = match node.kind() {
                FileType::Symlink => view.find(&asked.path, true)?.map(|node| node.at),
                _ => None,
            };
            Ok(Found::Node(view, Box::new(node), target))
        }
        None => Ok(Found::Nothing),
    }
}

pub(super) async fn get(
    State(storage): State<Arc<Storage>>,
    Path(name): Path<String>,
    Query(query): Query<PathQuery>,
) -> Result<Response, ApiError> {
    let asked = Asked::of(query)?;
    if storage.by_token && asked.contents {
        // A task of its own: a caller who goes away in the middle leaves no container frozen.
        let taken = tokio::spawn(async move { storage.take(name, asked).await });
        let bytes = taken.await.map_err(fault)??;
        return Ok(([("content-type", "application/x-tar")], bytes).into_response());
    }
    let files = storage.engine.files(&storage.owner, &name)?;
    let (found, asked) = tokio::task::spawn_blocking(move || (look(&files, &asked), asked))
        .await
        .map_err(fault)?;
    let Found::Node(view, node, target) = found.map_err(fault)? else {
        return Err(asked.missing(&name));
    };
    if asked.contents && node.dir.is_none() {
        return Err(ApiError::bad_request(format!(
            "{} is not a directory",
            asked.path.display()
        )));
    }
    let headers = stat_header(&asked, &node, target)?;
    let top = match asked.path.file_name().filter(|_| !asked.contents) {
        Some(name) => name.to_owned(),
        None => OsString::from("."),
    };
    let (reader, writer) = tokio::io::duplex(BUFFER);
    let writer = io::BufWriter::with_capacity(BUFFER, SyncIoBridge::new(writer));
    tokio::task::spawn_blocking(move || {
        let packed = pack(&view, &node, &top, writer);
        let done = packed.and_then(|mut out| {
            out.flush().map_err(|source| SnapshotError::Io {
                context: "sending an archive".to_owned(),
                source,
            })
        });
        if let Err(error) = done {
            // The connection ends before the archive does, which is how its reader knows.
            tracing::debug!(%error, "an archive was not sent to its end");
        }
    });
    Ok((headers, Body::from_stream(ReaderStream::new(reader))).into_response())
}

pub(super) async fn head(
    State(storage): State<Arc<Storage>>,
    Path(name): Path<String>,
    Query(query): Query<PathQuery>,
) -> Result<Response, ApiError> {
    let asked = Asked::of(query)?;
    let files = storage.engine.files(&storage.owner, &name)?;
    let (found, asked) = tokio::task::spawn_blocking(move || (look(&files, &asked), asked))
        .await
        .map_err(fault)?;
    match found.map_err(fault)? {
        Found::Nothing => Err(asked.missing(&name)),
        Found::Node(_, node, target) => Ok(stat_header(&asked, &node, target)?.into_response()),
    }
}

/// What `docker cp` reads before it asks for or sends files: base64 of JSON, with Go's file modes.
fn stat_header(asked: &Asked, node: &Node, target: Option<PathBuf>) -> Result<HeaderMap, ApiError> {
    let stat = &node.stat;
    let mode = stat.st_mode;
    let kind: u32 = match node.kind() {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        _ => 0,
    };
    let special = |bit: u32, go: u32| if mode & bit != 0 { 1 << go } else { 0 };
    let go_mode =
        kind | mode & 0o777 | special(0o4000, 23) | special(0o2000, 22) | special(0o1000, 20);
    let name = asked.path.file_name().unwrap_or_else(|| "/".as_ref());
    let body = json!({
        "name": name.to_string_lossy(),
        "size": stat.st_size,
        "mode": go_mode,
        "mtime": crate::json::time(Some(stat.st_mtime.saturating_mul(1000))),
        "linkTarget": target.map_or(String::new(), |at| format!("/{}", at.display())),
    });
    let encoded = base64::engine::general_purpose::STANDARD.encode(body.to_string());
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_str(&encoded).map_err(fault)?;
    headers.insert("x-docker-container-path-stat", value);
    let tar = HeaderValue::from_static("application/x-tar");
    headers.insert(http::header::CONTENT_TYPE, tar);
    Ok(headers)
}

impl Storage {
    /// Takes a snapshot of a directory; returns an archive with the token of it.
    async fn take(self: Arc<Self>, name: String, asked: Asked) -> Result<Vec<u8>, ApiError> {
        let held = self.engine.hold(&self.owner, &name).await?;
        let files = held.files().clone();
        let storage = self.clone();
        let missing = asked.missing(&name);
        let copied = tokio::task::spawn_blocking(move || -> Result<(Draft, Copied), ApiError> {
            let Found::Node(view, node, _) = look(&files, &asked).map_err(fault)? else {
                return Err(missing);
            };
            if node.dir.is_none() {
                let text = format!("{} is not a directory", asked.path.display());
                return Err(ApiError::bad_request(text));
            }
            let draft = storage.snapshots.draft()?;
            let allowance = storage.snapshots.allowance(&storage.key);
            let copied = copy(&view, &node, &draft.files(), Form::Tree, &allowance)?;
            Ok((draft, copied))
        });
        let copied = copied.await.map_err(fault)?;
        let released = held.release().await;
        let offered = blocking(move || {
            Ok(match (copied, released) {
                (Ok((draft, copied)), Ok(())) => {
                    let token = self.snapshots.offer(&self.key, draft, copied);
                    Ok(token_archive(&token))
                }
                // A draft goes here, where that may take its time.
                (Err(error), _) => Err(error),
                (_, Err(error)) => Err(error.into()),
            })
        });
        let archive = offered.await?;
        archive.inspect_err(|error| {
            if error.status == StatusCode::NOT_FOUND {
                return; // The Worker hears that there is no such directory.
            }
            // Else workerd tells it no more than the status.
            tracing::warn!(
                container = name,
                reason = error.message,
                "no snapshot of a directory"
            );
        })
    }

    /// Fills a snapshot: with what the archive's token names, or with the archive.
    fn fill(&self, volume: &str, mut archive: impl Read) -> Result<(), ApiError> {
        let labels = self.volumes().get(volume).map(|v| v.labels.clone());
        let Some(labels) = labels else {
            return Err(ApiError::not_found(format!("get {volume}: no such volume")));
        };
        let filled = self.fill_from(&mut archive);
        // Whoever still sends would not hear the answer.
        let _ = io::copy(&mut archive.take(MAX_ARCHIVE), &mut io::sink());
        let (draft, copied) = filled?;
        let kind = Kind::Directory;
        self.snapshots
            .keep(draft, &self.key, volume, kind, labels, copied)?;
        self.volumes().remove(volume);
        Ok(())
    }

    fn fill_from(&self, mut archive: impl Read) -> Result<(Draft, Copied), ApiError> {
        let mut first = Vec::new();
        let block = archive.by_ref().take(512).read_to_end(&mut first);
        block.map_err(|error| ApiError::bad_request(error.to_string()))?;
        if self.by_token && first.starts_with(TOKEN_NAME) {
            let token = read_token(first.as_slice().chain(archive.take(MAX_TOKEN_ARCHIVE)))?;
            return self.snapshots.take(&self.key, &token).ok_or_else(|| {
                ApiError::new(
                    StatusCode::GONE,
                    "the snapshot that this archive stands for has expired",
                )
            });
        }
        let draft = self.snapshots.draft()?;
        let allowance = self.snapshots.allowance(&self.key);
        let count = AtomicU64::new(0);
        let counted = Counted {
            from: first.as_slice().chain(archive),
            count: &count,
        };
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let root = rustix::fs::open(draft.files(), flags, rustix::fs::Mode::empty());
        let to = Extraction {
            root: root.map_err(fault)?,
            into: Vec::new(),
            max_bytes: allowance.bytes,
        };
        wharf_image::extract(counted, to)?;
        let bytes = count.into_inner();
        let copied = Copied {
            bytes,
            linked: 0,
            archive: bytes,
        };
        Ok((draft, copied))
    }
}

/// Counts what is read through it.
struct Counted<'a, R> {
    from: R,
    count: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

fn token_archive(token: &str) -> Vec<u8> {
    let mut entry = Entry::bare(TarKind::File, TOKEN_NAME.to_vec());
    entry.size = token.len() as u64;
    let mut tar = TarWriter::new(Vec::new());
    let written = tar.append(&entry, &mut token.as_bytes());
    // Memory does not fail.
    written.and_then(|()| tar.finish()).unwrap_or_default()
}

fn read_token(archive: impl Read) -> Result<String, ApiError> {
    let mut tar = TarReader::new(archive);
    let mut token = [0u8; 64];
    let mut length = 0;
    if tar.next_entry()?.is_some() {
        while length < token.len() {
            match tar.read_data(&mut token[length..])? {
                0 => break,
                n => length += n,
            }
        }
    }
    Ok(String::from_utf8_lossy(&token[..length]).into_owned())
}

pub(super) async fn put(
    State(storage): State<Arc<Storage>>,
    Path(name): Path<String>,
    Query(query): Query<PathQuery>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let asked = Asked::of(query)?;
    let stream = body.into_data_stream();
    let stream = stream.map(|chunk| chunk.map_err(io::Error::other));
    let archive = SyncIoBridge::new(Box::pin(StreamReader::new(stream)));
    if let Some(helper) = storage.helper(&name) {
        let Job::Fill { volume, at } = helper.job else {
            return Err(ApiError::bad_request("this helper takes no archive"));
        };
        if asked.path != *at {
            return Err(asked.missing(&name));
        }
        let filled = tokio::task::spawn_blocking(move || storage.fill(&volume, archive));
        filled.await.map_err(fault)??;
        return Ok(StatusCode::OK);
    }
    if !storage.by_token {
        // Docker: the directory must be there. workerd counts on /etc, which an image from scratch does not have.
        let files = storage.engine.files(&storage.owner, &name)?;
        let follow = Asked {
            path: asked.path.clone(),
            contents: true,
            follow: true,
        };
        let found = tokio::task::spawn_blocking(move || look(&files, &follow));
        match found.await.map_err(fault)?.map_err(fault)? {
            Found::Nothing => return Err(asked.missing(&name)),
            Found::Node(_, node, _) if node.dir.is_none() => {
                return Err(ApiError::bad_request("extraction point is not a directory"));
            }
            Found::Node(..) => {}
        }
    }
    let (engine, owner) = (&storage.engine, &storage.owner);
    let archive = Box::new(archive);
    engine
        .extract(owner, &name, &asked.path, MAX_ARCHIVE, archive)
        .await?;
    Ok(StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_archive() {
        let archive = token_archive("0123456789abcdef");
        assert!(archive.starts_with(TOKEN_NAME));
        assert!(archive.len() as u64 <= MAX_TOKEN_ARCHIVE);
        assert_eq!(read_token(archive.as_slice()).unwrap(), "0123456789abcdef");
    }

    #[test]
    fn paths_are_cleaned() {
        let of = |path: &str| {
            let query = PathQuery {
                path: Some(path.to_owned()),
            };
            let asked = Asked::of(query).unwrap();
            (asked.path.display().to_string(), asked.contents)
        };
        assert_eq!(of("/app/data/."), ("/app/data".to_owned(), true));
        assert_eq!(of("/."), ("/".to_owned(), true));
        assert_eq!(of("etc/../a/"), ("/a".to_owned(), false));
        assert_eq!(of("/../../.."), ("/".to_owned(), false));
    }
}
