//! Static assets by the client's hash, and the sessions in which they are uploaded.
//!
//! The client's hash covers content and file extension (contract: wrangler, section 5), so several hashes may name one blob.

use std::collections::BTreeMap;

use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use crate::{Result, Store, StoreError, from_json, now_ms, remove_expired, to_json};

/// A file of an upload session's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The client's hash: 32 lower-case hex digits.
    pub hash: String,
    /// Bytes.
    pub size: u64,
}

/// A running or completed upload of static assets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadSession {
    /// Id, unguessable only together with its signature.
    pub id: String,
    /// Name of the script that the assets are for.
    pub script: String,
    /// Every file, by absolute URL path.
    pub manifest: BTreeMap<String, ManifestEntry>,
    /// Unix time in milliseconds after which it is gone.
    pub expires_ms: i64,
}

/// An asset that need not be uploaded again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAsset {
    /// Blob that holds the content: lower-case hex SHA-256.
    pub blob: String,
    /// Bytes.
    pub size: u64,
    /// As the client told; `None` if it knew none.
    pub content_type: Option<String>,
}

impl Store {
    /// Stores a new session; expired ones are removed on the way.
    pub fn create_upload_session(&self, session: &UploadSession) -> Result<()> {
        let manifest = to_json(&session.manifest)?;
        self.change(|transaction| {
            remove_expired(transaction)?;
            transaction.execute(
                "INSERT INTO upload_sessions (id, script, manifest, expires_ms) VALUES (?1, ?2, ?3, ?4)",
                (&session.id, &session.script, manifest, session.expires_ms),
            )?;
            Ok(())
        })
    }

    /// A session that has not expired.
    pub fn upload_session(&self, id: &str) -> Result<Option<UploadSession>> {
        self.connection()
            .prepare_cached(
                "SELECT script, manifest, expires_ms FROM upload_sessions WHERE id = ?1 AND expires_ms >= ?2",
            )?
            .query_row((id, now_ms()), |row| {
                Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?))
            })
            .optional()?
            .map(|(script, manifest, expires_ms)| {
                Ok(UploadSession {
                    id: id.to_owned(),
                    script,
                    manifest: from_json("an upload session's manifest", &manifest)?,
                    expires_ms,
                })
            })
            .transpose()
    }

    /// Notes an asset whose blob is stored.
    pub fn put_asset(&self, hash: &str, asset: &StoredAsset) -> Result<()> {
        if !self.has_blob(&asset.blob) {
            return Err(StoreError::NotFound(format!("blob {}", asset.blob)));
        }
        self.change(|transaction| {
            transaction.execute(
                "INSERT INTO assets (hash, blob, size, content_type, used_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (hash) DO UPDATE SET blob = excluded.blob, size = excluded.size,
                     content_type = excluded.content_type, used_ms = excluded.used_ms",
                (
                    hash,
                    &asset.blob,
                    asset.size as i64,
                    &asset.content_type,
                    now_ms(),
                ),
            )?;
            Ok(())
        })
    }

    /// Looks assets up by the client's hashes; those found count as used now, so that collection leaves them.
    /// One that is known but whose blob is gone is left out.
    pub fn assets<'a>(
        &self,
        hashes: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, StoredAsset>> {
        let now = now_ms();
        let mut found = BTreeMap::new();
        self.change(|transaction| {
            let mut touch = transaction.prepare_cached(
                "UPDATE assets SET used_ms = ?2 WHERE hash = ?1 RETURNING blob, size, content_type",
            )?;
            for hash in hashes {
                let asset = touch
                    .query_row((hash, now), |row| {
                        Ok(StoredAsset {
                            blob: row.get(0)?,
                            size: row.get::<_, i64>(1)? as u64,
                            content_type: row.get(2)?,
                        })
                    })
                    .optional()?;
                if let Some(asset) = asset
                    && self.has_blob(&asset.blob)
                {
                    found.insert(hash.to_owned(), asset);
                }
            }
            Ok(())
        })?;
        Ok(found)
    }
}
