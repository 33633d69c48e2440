//! Who uses which blob, and what is removed.
//!
//! Owns: the promise that a version's blobs are stored. A blob is stored before the version that
//! names it, so what is young is left alone; and what is being removed is named in `collection`,
//! which each deploy reads and guards:
//!
//! ```text
//! collection: write which -> look again who uses them -> remove the rest -> delete `collection`
//! deploy:     read `collection` -> every blob there, and none in it -> commit, if it is unchanged
//! ```
//!
//! So a deploy either committed before the second look, or finds the blob gone and says so. The
//! record goes with the node's lease, if the node dies meanwhile.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use wharf_model::Version;

use crate::assets::AssetRecord;
use crate::draft::Draft;
use crate::meta::List;
use crate::objects::ObjectStore;
use crate::{Result, Store, StoreError, keys, now_ms};

/// What a collection removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GcReport {
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes that they held.
    pub bytes: u64,
}

/// Blobs that one collection removes at most: their names are one record, which etcd wants below
/// 1.5 MiB.
const COLLECTED: usize = 10_000;

impl Store {
    /// Where a blob is, given its lower-case hex SHA-256. Whether it exists is another matter.
    pub fn blob_path(&self, hash: &str) -> PathBuf {
        self.inner.objects.path(hash)
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, hash: &str) -> Result<bool> {
        Ok(crate::meta::wait(self.inner.objects.info(hash))?.is_some())
    }

    /// Stores content durably and returns its hash. Content that is there already costs a look and a fresh time stamp.
    pub fn put_blob(&self, content: &[u8]) -> Result<String> {
        let hash = hash(content);
        let objects = &self.inner.objects;
        crate::meta::wait(async {
            if objects.touch(&hash, content.len() as u64).await? {
                return Ok(hash);
            }
            let mut writer = objects.begin(Some(&hash)).await?;
            writer.write(content).await?;
            writer.finish().await
        })
    }

    /// Reads a blob, and checks that it still has its hash.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if it is not there; [`StoreError::Corrupt`] if it is damaged.
    pub fn read_blob(&self, hash: &str) -> Result<Vec<u8>> {
        crate::meta::wait(self.inner.objects.get(hash))
    }

    /// Removes what nothing names and nobody touched for `min_age`: blobs, known assets, expired upload sessions and registry tokens.
    ///
    /// `min_age` must be longer than an upload session lives (one hour): a blob is stored before the version that names it.
    pub fn blob_gc(&self, min_age: Duration) -> Result<GcReport> {
        self.transact(|draft| draft.remove_expired(now_ms()))?;
        let used = self.blobs_of_versions()?;
        self.forget_assets(min_age, &used)?;
        let known = self.blobs_of_assets()?;
        let unused = |hash: &str| !used.contains(hash) && !known.contains(hash);
        let mut wanted: Vec<String> = crate::meta::wait(self.inner.objects.list())?
            .into_iter()
            .filter(|object| object.age >= min_age && unused(&object.hash))
            .map(|object| object.hash)
            .collect();
        wanted.truncate(COLLECTED);
        if wanted.is_empty() {
            return Ok(GcReport::default());
        }

        let lease = self.session()?;
        let marked = || keys::COLLECTION.to_owned();
        self.transact(|draft| draft.put_leased(marked(), &wanted, lease))?;
        let removed = self.remove_unused(&wanted, min_age);
        self.transact(|draft| {
            draft.delete(marked());
            Ok(())
        })?;
        removed
    }

    /// Removes those of the marked blobs that are still unused.
    fn remove_unused(&self, marked: &[String], min_age: Duration) -> Result<GcReport> {
        let mut used = self.blobs_of_versions()?;
        used.extend(self.blobs_of_assets()?);
        let objects = &self.inner.objects;
        let mut report = GcReport::default();
        for hash in marked.iter().filter(|hash| !used.contains(*hash)) {
            // It may have been stored again meanwhile.
            let info = crate::meta::wait(objects.info(hash))?;
            if let Some(object) = info.filter(|object| object.age >= min_age) {
                crate::meta::wait(objects.remove(hash))?;
                report.blobs += 1;
                report.bytes += object.bytes;
            }
        }
        Ok(report)
    }

    fn blobs_of_versions(&self) -> Result<HashSet<String>> {
        let mut blobs = HashSet::new();
        // Script by script: all bodies at once may be much.
        for script in self.scripts()? {
            let list = List::under(keys::under("versions", &script.name));
            for (_, version) in self.listed::<Version>(&list)? {
                blobs.extend(blobs_of(&version).map(str::to_owned));
            }
        }
        Ok(blobs)
    }

    fn blobs_of_assets(&self) -> Result<HashSet<String>> {
        let assets = self.listed::<AssetRecord>(&List::under(keys::ASSETS))?;
        Ok(assets.into_iter().map(|(_, asset)| asset.blob).collect())
    }

    /// Refuses blobs that are not stored, or are just being removed; holds until the draft commits.
    pub(crate) fn check_blobs<'a>(
        &self,
        draft: &mut Draft<'_>,
        blobs: impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        let going: Vec<String> = draft.get(keys::COLLECTION)?.unwrap_or_default();
        let going: HashSet<String> = going.into_iter().collect();
        for blob in blobs.collect::<HashSet<_>>() {
            if going.contains(blob) || !self.has_blob(blob)? {
                return Err(StoreError::NotFound(format!("blob {blob}")));
            }
        }
        Ok(())
    }
}

/// The blobs that a version names; one may come twice.
pub(crate) fn blobs_of(version: &Version) -> impl Iterator<Item = &str> {
    let assets = version.assets.iter().flat_map(|assets| &assets.files);
    let modules = version.modules.iter().map(|module| module.blob.as_str());
    modules.chain(assets.map(|file| file.blob.as_str()))
}

fn hash(content: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(content))
}
