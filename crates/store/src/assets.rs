//! Static assets by the client's hash, and the sessions in which they are uploaded.
//!
//! The client's hash covers content and file extension (contract: wrangler, section 5), so several hashes may name one blob.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::meta::List;
use crate::{Result, Store, StoreError, keys, now_ms};

/// A file of an upload session's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The client's hash: 32 lower-case hex digits.
    pub hash: String,
    /// Bytes.
    pub size: u64,
}

/// A running or completed upload of static assets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// An asset as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AssetRecord {
    pub(crate) blob: String,
    pub(crate) size: u64,
    pub(crate) content_type: Option<String>,
    pub(crate) used_ms: i64,
}

/// A use is noted if the one before is as old as this. Collection leaves what is younger than two
/// hours, so that nothing goes for the minutes that are not noted.
const NOTE_EVERY_MS: i64 = 10 * 60 * 1000;

fn asset_key(hash: &str) -> String {
    keys::one("assets", hash)
}

pub(crate) fn session_key(id: &str) -> String {
    keys::one("upload-sessions", id)
}

impl Store {
    /// Stores a new session; expired ones are removed on the way.
    pub fn create_upload_session(&self, session: &UploadSession) -> Result<()> {
        self.transact(|draft| {
            draft.remove_expired(now_ms())?;
            draft.put_expiring(session_key(&session.id), session, session.expires_ms)
        })
    }

    /// A session that has not expired.
    pub fn upload_session(&self, id: &str) -> Result<Option<UploadSession>> {
        let found: Option<UploadSession> = self.transact(|draft| draft.get(&session_key(id)))?;
        Ok(found.filter(|session| session.expires_ms >= now_ms()))
    }

    /// Notes an asset whose blob is stored.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if it is not.
    pub fn put_asset(&self, hash: &str, asset: &StoredAsset) -> Result<()> {
        self.transact(|draft| {
            self.check_blobs(draft, std::iter::once(asset.blob.as_str()))?;
            let record = AssetRecord {
                blob: asset.blob.clone(),
                size: asset.size,
                content_type: asset.content_type.clone(),
                used_ms: now_ms(),
            };
            draft.put(asset_key(hash), &record)
        })
    }

    /// Looks assets up by the client's hashes; those found count as used now, so that collection leaves them.
    /// One that is known but whose blob is gone is left out.
    pub fn assets<'a>(
        &self,
        hashes: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, StoredAsset>> {
        let mut hashes: Vec<&str> = hashes.into_iter().collect();
        hashes.sort_unstable();
        hashes.dedup();
        let mut found = BTreeMap::new();
        // Half: each may need a compare and a step.
        for hashes in hashes.chunks(self.inner.meta.max_ops() / 2) {
            let keys: Vec<String> = hashes.iter().map(|hash| asset_key(hash)).collect();
            let records = self.transact(|draft| {
                let now = now_ms();
                let records = draft.peek_all::<AssetRecord>(&keys)?;
                let unnoted = |record: &AssetRecord| record.used_ms < now - NOTE_EVERY_MS;
                for (key, _) in keys
                    .iter()
                    .zip(&records)
                    .filter(|(_, record)| record.as_ref().is_some_and(unnoted))
                {
                    // Again, guarded: collection may have forgotten it meanwhile.
                    if let Some(record) = draft.get::<AssetRecord>(key)? {
                        let used = AssetRecord {
                            used_ms: now,
                            ..record
                        };
                        draft.put(key.clone(), &used)?;
                    }
                }
                Ok(records)
            })?;
            for (hash, record) in hashes.iter().zip(records) {
                if let Some(record) = record
                    && self.has_blob(&record.blob)?
                {
                    let asset = StoredAsset {
                        blob: record.blob,
                        size: record.size,
                        content_type: record.content_type,
                    };
                    found.insert((*hash).to_owned(), asset);
                }
            }
        }
        Ok(found)
    }

    /// Forgets assets that nobody used for so long, but for those whose blob is used anyway.
    pub(crate) fn forget_assets(&self, min_age: Duration, used: &HashSet<String>) -> Result<()> {
        let age_ms = i64::try_from(min_age.as_millis())
            .map_err(|_| StoreError::InvalidTxn("an age is too long".to_owned()))?;
        let oldest = now_ms().saturating_sub(age_ms);
        let stale = |asset: &AssetRecord| asset.used_ms < oldest && !used.contains(&asset.blob);
        let assets = self.listed::<AssetRecord>(&List::under(keys::ASSETS))?;
        let gone: Vec<String> = assets
            .into_iter()
            .filter(|(_, asset)| stale(asset))
            .map(|(key, _)| key)
            .collect();
        for keys in gone.chunks(self.inner.meta.max_ops() / 2) {
            self.transact(|draft| {
                for key in keys {
                    // Again, guarded: it may have been used meanwhile.
                    if draft.get(key)?.is_some_and(|asset| stale(&asset)) {
                        draft.delete(key.clone());
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
