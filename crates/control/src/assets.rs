//! Uploading static assets (contract: wrangler, section 5).
//!
//! ```text
//! manifest --start--> session token, and buckets of files that are not known yet
//!                     | bucket by bucket, any order: each file checked against its hash, then stored
//!                     v
//!            all files known: completion token --metadata.assets.jwt--> the version's assets
//! ```
//!
//! A session ends by itself after an hour.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, StatusCode};
use multer::{Constraints, Multipart, SizeLimit};
use serde::Deserialize;
use serde_json::json;
use wharf_model::AssetFile;
use wharf_store::{ManifestEntry, Store, StoredAsset, UploadSession};

use crate::deploying::check_script_name;
use crate::envelope::{ApiError, ApiResult, now_ms, ok};
use crate::jwt::{self, Claims, Purpose};
use crate::upload::multipart::{boundary, refused};
use crate::{App, auth, body};

/// As Cloudflare: most files of a Worker.
const FILES_LIMIT: usize = 20_000;
/// As Cloudflare: most bytes of a file.
const FILE_LIMIT: u64 = 25 << 20;
/// Most bytes of a bucket's upload.
const BUCKET_LIMIT: u64 = 100 << 20;
/// Bytes of files that are put into one bucket: with base64 and part headers well below [`BUCKET_LIMIT`].
const BUCKET_BYTES: u64 = 40 << 20;
const BUCKET_FILES: usize = 1000;
/// Most bytes of a manifest: it has a line per file, so it may be larger than other JSON.
const MANIFEST_LIMIT: u64 = 16 << 20;
const SESSION_SECONDS: i64 = 3600;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    manifest: BTreeMap<String, ManifestEntry>,
}

/// `POST workers/scripts/<name>/assets-upload-session`
pub(crate) async fn start(
    State(app): State<Arc<App>>,
    Path((_, script)): Path<(String, String)>,
    request: Body,
) -> ApiResult {
    check_script_name(&script)?;
    let Start { manifest } = body::json_up_to(request, MANIFEST_LIMIT).await?;
    check_manifest(&manifest)?;
    let session = UploadSession {
        id: uuid::Uuid::new_v4().to_string(),
        script,
        manifest,
        expires_ms: now_ms() + SESSION_SECONDS * 1000,
    };
    let answer = app
        .db(move |store| {
            store.create_upload_session(&session)?;
            let buckets = buckets(&missing(store, &session)?);
            let purpose = match buckets.is_empty() {
                true => Purpose::Complete,
                false => Purpose::Upload,
            };
            Ok::<_, ApiError>(json!({"jwt": token(store, &session, purpose)?, "buckets": buckets}))
        })
        .await?;
    Ok(ok(answer))
}

fn check_manifest(manifest: &BTreeMap<String, ManifestEntry>) -> ApiResult<()> {
    if manifest.len() > FILES_LIMIT {
        return Err(ApiError::bad_request(format!(
            "{} static assets; the limit is {FILES_LIMIT}",
            manifest.len()
        )));
    }
    for (path, entry) in manifest {
        let path_ok = path.starts_with('/')
            && path.len() <= 4096
            && !path.contains('\0')
            && !path
                .split('/')
                .any(|segment| segment == ".." || segment == ".");
        if !path_ok {
            return Err(ApiError::bad_request(format!(
                "{path:?} can't be a static asset's path"
            )));
        }
        let hash_ok = entry.hash.len() == 32
            && entry
                .hash
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !hash_ok {
            return Err(ApiError::bad_request(format!(
                "the hash of {path:?} is not 32 lower-case hex digits"
            )));
        }
        if entry.size > FILE_LIMIT {
            return Err(ApiError::too_large(
                &format!("the static asset {path:?}"),
                FILE_LIMIT,
            ));
        }
    }
    Ok(())
}

/// Hashes, and sizes, of the files that are not known.
fn missing(store: &Store, session: &UploadSession) -> ApiResult<BTreeMap<String, u64>> {
    let mut files: BTreeMap<String, u64> = session
        .manifest
        .values()
        .map(|entry| (entry.hash.clone(), entry.size))
        .collect();
    let known = store.assets(files.keys().map(String::as_str))?;
    files.retain(|hash, _| !known.contains_key(hash));
    Ok(files)
}

fn buckets(files: &BTreeMap<String, u64>) -> Vec<Vec<String>> {
    let mut buckets: Vec<Vec<String>> = Vec::new();
    let mut room = 0;
    for (hash, size) in files {
        match buckets.last_mut() {
            Some(bucket) if *size <= room && bucket.len() < BUCKET_FILES => {
                bucket.push(hash.clone());
                room -= size;
            }
            _ => {
                buckets.push(vec![hash.clone()]);
                room = BUCKET_BYTES.saturating_sub(*size);
            }
        }
    }
    buckets
}

fn token(store: &Store, session: &UploadSession, purpose: Purpose) -> ApiResult<String> {
    let claims = Claims {
        purpose,
        session: session.id.clone(),
        script: session.script.clone(),
        exp: session.expires_ms / 1000,
    };
    jwt::sign(&store.signing_key(), &claims).map_err(ApiError::internal)
}

/// The session of a token for a purpose.
fn session(store: &Store, token: &str, purpose: Purpose) -> ApiResult<UploadSession> {
    let claims = jwt::verify(&store.signing_key(), token, purpose, now_ms() / 1000);
    let session = match claims {
        Some(claims) => store.upload_session(&claims.session)?,
        None => None,
    };
    session.ok_or_else(|| {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            10000,
            "Authentication error: the token of the asset upload is not valid any more; deploy again",
        )
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Encoding {
    base64: bool,
}

/// `POST workers/assets/upload`: some of a session's files. The answer to the one that completes them has the completion token.
pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    Query(encoding): Query<Encoding>,
    headers: HeaderMap,
    request: Body,
) -> ApiResult {
    let bearer = auth::token(&headers).unwrap_or_default().to_owned();
    let session = app
        .db(move |store| session(store, &bearer, Purpose::Upload))
        .await?;
    let boundary = boundary(&headers)?;
    let mut stream = request.into_data_stream();
    let limits = SizeLimit::new()
        .whole_stream(BUCKET_LIMIT)
        .per_field(FILE_LIMIT / 3 * 4 + 4);
    let stored = {
        let constraints = Constraints::new().size_limit(limits);
        let multipart = Multipart::with_constraints(&mut stream, boundary, constraints);
        store_files(&app, &session, multipart, encoding.base64).await
    };
    if stored.is_err() {
        body::drain(&mut stream).await;
    }
    stored?;
    let completion = app
        .db(move |store| {
            let complete = missing(store, &session)?.is_empty();
            complete
                .then(|| token(store, &session, Purpose::Complete))
                .transpose()
        })
        .await?;
    Ok(ok(match completion {
        Some(jwt) => json!({"jwt": jwt}),
        None => json!({}),
    }))
}

async fn store_files(
    app: &Arc<App>,
    session: &UploadSession,
    mut multipart: Multipart<'_>,
    base64: bool,
) -> ApiResult<()> {
    let by_hash: BTreeMap<&str, (&str, u64)> = session
        .manifest
        .iter()
        .map(|(path, entry)| (entry.hash.as_str(), (path.as_str(), entry.size)))
        .collect();
    while let Some(field) = multipart.next_field().await.map_err(refused)? {
        let hash = field.name().unwrap_or_default().to_owned();
        let Some((path, size)) = by_hash.get(hash.as_str()).copied() else {
            return Err(ApiError::bad_request(format!(
                "the upload has a file {hash:?} that is not in its manifest"
            )));
        };
        let content_type = field
            .content_type()
            .map(|mime| mime.essence_str().to_owned())
            .filter(|mime| mime != "application/null");
        let mut content = field.bytes().await.map_err(refused)?.to_vec();
        if base64 {
            content = BASE64.decode(&content).map_err(|error| {
                ApiError::bad_request(format!("the static asset {path:?} is not base64: {error}"))
            })?;
        }
        let (path, found) = (path.to_owned(), content.len() as u64);
        if found != size {
            return Err(ApiError::bad_request(format!(
                "the static asset {path:?} has {found} bytes, its manifest says {size}; deploy again"
            )));
        }
        app.db(move |store| {
            if asset_hash(&content, &path) != hash {
                return Err(ApiError::bad_request(format!(
                    "the static asset {path:?} does not have the hash that its manifest says; deploy again"
                )));
            }
            let asset = StoredAsset {
                blob: store.put_blob(&content)?,
                size,
                content_type,
            };
            Ok(store.put_asset(&hash, &asset)?)
        })
        .await?;
    }
    Ok(())
}

/// The client's hash of a file: it covers the content and the path's extension.
pub(crate) fn asset_hash(content: &[u8], path: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(BASE64.encode(content).as_bytes());
    hasher.update(extension(path).as_bytes());
    let mut hash = hex::encode(hasher.finalize().as_bytes());
    hash.truncate(32);
    hash
}

/// As Node's `path.extname`, without the dot: what follows the name's last dot, unless the name starts with it.
fn extension(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rfind('.') {
        None | Some(0) => "",
        Some(dot) => &name[dot + 1..],
    }
}

/// The files of a completed upload for this script.
pub(crate) fn completed(store: &Store, script: &str, token: &str) -> ApiResult<Vec<AssetFile>> {
    let session = session(store, token, Purpose::Complete)?;
    if session.script != script {
        return Err(ApiError::invalid(format!(
            "the static assets were uploaded for Worker {:?}",
            session.script
        )));
    }
    let hashes: BTreeSet<&str> = session
        .manifest
        .values()
        .map(|entry| entry.hash.as_str())
        .collect();
    let known = store.assets(hashes)?;
    session
        .manifest
        .iter()
        .map(|(path, entry)| {
            let asset = known.get(&entry.hash).ok_or_else(|| {
                ApiError::invalid(format!(
                    "the static asset {path:?} is not stored any more; deploy again"
                ))
            })?;
            Ok(AssetFile {
                path: path.clone(),
                blob: asset.blob.clone(),
                size: asset.size,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_nodes() {
        for (path, expected) in [
            ("/a/b.html", "html"),
            ("/a.d/b", ""),
            ("/.assetsignore", ""),
            ("/a.tar.gz", "gz"),
            ("/a.", ""),
            ("/.a.b", "b"),
        ] {
            assert_eq!(extension(path), expected, "{path}");
        }
    }

    #[test]
    fn a_bucket_holds_no_more_than_it_may() {
        let files: BTreeMap<String, u64> = (0..2500)
            .map(|n| {
                (
                    format!("{n:032}"),
                    if n % 100 == 0 { FILE_LIMIT } else { 10 },
                )
            })
            .collect();
        let made = buckets(&files);
        assert_eq!(made.iter().map(Vec::len).sum::<usize>(), files.len());
        for bucket in &made {
            let bytes: u64 = bucket.iter().map(|hash| files[hash]).sum();
            assert!(bytes <= BUCKET_BYTES && bucket.len() <= BUCKET_FILES);
        }
        assert!(made.len() < 40);
    }

    #[test]
    fn manifests_with_bad_paths_or_hashes_are_refused() {
        let check = |path: &str, hash: &str, size: u64| {
            let hash = hash.to_owned();
            check_manifest(&BTreeMap::from([(
                path.to_owned(),
                ManifestEntry { hash, size },
            )]))
        };
        let good = "0123456789abcdef0123456789abcdef";
        assert!(check("/a/b.txt", good, 1).is_ok());
        assert!(check("a", good, 1).is_err());
        assert!(check("/../a", good, 1).is_err());
        assert!(check("/a", &good.to_uppercase(), 1).is_err());
        assert_eq!(check("/a", good, FILE_LIMIT + 1).unwrap_err().status, 413);
    }
}
