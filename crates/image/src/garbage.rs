//! Removing what nothing refers to.
//!
//! ```text
//! roots: local names, manifests held by repositories, anything young
//!   -> manifests (an index reaches its children) -> blobs, and the unpacked layers of their diff ids
//! ```

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::catalog::Catalog;
use crate::content::{self, expire_uploads};
use crate::error::{Context, ImageError, Result, held, now_ms};
use crate::{Digest, ImageStore};

impl ImageStore {
    /// Removes manifests, blobs and unpacked layers that nothing refers to and that are older than `min_age_ms`, and uploads that were given
    /// up. `in_use` are layer diff ids of live instances. Returns the bytes of the blobs that went.
    pub fn collect_garbage(&self, in_use: &[Digest], min_age_ms: u64) -> Result<u64> {
        self.collect(Some(in_use), min_age_ms)
    }

    /// The same for a caller that does not know which instances live: unpacked layers stay.
    pub fn collect_blobs(&self, min_age_ms: u64) -> Result<u64> {
        self.collect(None, min_age_ms)
    }

    fn collect(&self, in_use: Option<&[Digest]>, min_age_ms: u64) -> Result<u64> {
        let newest = now_ms().saturating_sub(i64::try_from(min_age_ms).unwrap_or(i64::MAX));
        // Held to the end: no manifest may come to name a blob between the look and the removal.
        let mut index = held(self.inner.index.lock());
        let before = self.catalog();
        let kept = reachable(&before, newest);
        index.transaction(|change| {
            before
                .manifests()
                .filter(|stored| !kept.contains(&stored.digest))
                .try_for_each(|stored| change.delete_manifest(&stored.digest))
        })?;
        // Rows first: a crash from here on leaves files without rows, which the next collection finds.
        let after = index.load(&before)?;
        let mut blobs = HashSet::new();
        let mut diff_ids: HashSet<Digest> = in_use.unwrap_or_default().iter().cloned().collect();
        for stored in after.manifests() {
            blobs.extend(stored.manifest.blobs().map(|part| part.digest.clone()));
            if stored.manifest.image_config().is_some() {
                match self.parsed(stored) {
                    Ok(parsed) => {
                        diff_ids.extend(parsed.layers.iter().map(|l| l.diff_id.clone()));
                    }
                    // Cannot run, so nothing of it is unpacked.
                    Err(ImageError::Invalid(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        *held(self.inner.catalog.write()) = std::sync::Arc::new(after);

        let mut freed = 0;
        for (digest, modified) in digests_in(&self.inner.dir.join("blobs/sha256"))? {
            if !blobs.contains(&digest) && modified <= newest {
                let size = self.blob_size(&digest)?;
                fs::remove_file(self.blob_path(&digest))
                    .context(|| format!("removing blob {digest}"))?;
                freed += size;
            }
        }
        if in_use.is_some() {
            for (diff_id, made) in digests_in(&self.layers_dir())? {
                let used = self.inner.layers.last_used(&diff_id).unwrap_or(made);
                if !diff_ids.contains(&diff_id) && used.max(made) <= newest {
                    self.remove_layer(&diff_id)?;
                }
            }
        }
        expire_uploads(&self.inner.dir)?;
        Ok(freed)
    }

    /// Out of sight by one rename, then removed: a crash leaves no half layer.
    fn remove_layer(&self, diff_id: &Digest) -> Result<()> {
        let temp = self.temp_dir()?;
        self.inner.layers.alone(diff_id, || {
            self.inner.layers.forget(diff_id);
            fs::rename(
                self.layers_dir().join(diff_id.hex()),
                temp.path().join("layer"),
            )
            .context(|| format!("removing layer {diff_id}"))
        })
    }
}

/// The manifests that stay.
fn reachable(catalog: &Catalog, newest: i64) -> HashSet<Digest> {
    let mut kept = HashSet::new();
    for stored in catalog.manifests() {
        let is_root = stored.stored_ms > newest
            || catalog.is_held(&stored.digest)
            || catalog.names_of(&stored.digest).next().is_some();
        if is_root {
            kept.insert(stored.digest.clone());
            kept.extend(stored.manifest.children().iter().map(|c| c.digest.clone()));
        }
    }
    kept
}

/// The entries of a directory that are named by a digest's hex, and when each was last modified (Unix milliseconds).
fn digests_in(dir: &Path) -> Result<Vec<(Digest, i64)>> {
    let doing = || format!("looking through {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).context(doing)? {
        let entry = entry.context(doing)?;
        let name = entry.file_name();
        if name == content::MOUNT_POINTS {
            continue;
        }
        let Ok(digest) = Digest::parse(&format!("sha256:{}", name.to_string_lossy())) else {
            tracing::warn!(path = %entry.path().display(), "not made by this store; left alone");
            continue;
        };
        let modified = entry.metadata().and_then(|m| m.modified()).context(doing)?;
        let modified = modified
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
        found.push((digest, modified));
    }
    Ok(found)
}
