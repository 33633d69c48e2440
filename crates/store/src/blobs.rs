//! Blobs: immutable content in files named by their SHA-256, `<data>/blobs/<2 hex>/<hex>`.
//!
//! A blob appears under its name only after its content is on disk (temporary file, fsync, rename, fsync of the directory), so a name
//! that exists is whole. Reading checks the hash again. Collection removes what no version and no recent upload names.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::OptionalExtension;
use sha2::{Digest, Sha256};

use crate::{Result, Store, StoreError, io, now_ms, random, remove_expired};

/// What a collection removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GcReport {
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes that they held.
    pub bytes: u64,
}

const TEMPORARY: &str = "tmp";

/// Makes the directories, and removes temporary files that a crash left.
pub(crate) fn prepare(blobs: &Path) -> Result<()> {
    let temporary = blobs.join(TEMPORARY);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&temporary)
        .map_err(io("cannot create", &temporary))?;
    for entry in std::fs::read_dir(&temporary).map_err(io("cannot read", &temporary))? {
        let path = entry.map_err(io("cannot read", &temporary))?.path();
        std::fs::remove_file(&path).map_err(io("cannot remove", &path))?;
    }
    Ok(())
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(io("cannot sync", path))
}

fn is_hash(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Store {
    /// Where a blob is, given its lower-case hex SHA-256. Whether it exists is another matter.
    pub fn blob_path(&self, hash: &str) -> PathBuf {
        let prefix = hash.get(..2).unwrap_or("--");
        self.inner.blobs.join(prefix).join(hash)
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, hash: &str) -> bool {
        is_hash(hash) && self.blob_path(hash).is_file()
    }

    /// Stores content durably and returns its hash. Content that is there already costs a look and a fresh time stamp.
    pub fn put_blob(&self, content: &[u8]) -> Result<String> {
        let hash = hex::encode(Sha256::digest(content));
        let path = self.blob_path(&hash);
        if self.touch_blob(&hash, content.len() as u64)? {
            return Ok(hash);
        }
        let dir = self.inner.blobs.join(&hash[..2]);
        let fresh_dir = match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(io("cannot create", &dir)(error)),
        };
        let temporary = self
            .inner
            .blobs
            .join(TEMPORARY)
            .join(hex::encode(random(16)?));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .map_err(io("cannot write", &temporary))
            .and_then(|()| {
                std::fs::rename(&temporary, &path).map_err(io("cannot rename to", &path))
            });
        if let Err(error) = written {
            // The reason for the failure is what matters; a leftover is removed at the next start.
            let _ = std::fs::remove_file(&temporary);
            return Err(error);
        }
        sync_dir(&dir)?;
        if fresh_dir {
            sync_dir(&self.inner.blobs)?;
        }
        Ok(hash)
    }

    /// Marks a blob as in use just now, so that collection leaves it. False if it is not there, or not of this size.
    fn touch_blob(&self, hash: &str, size: u64) -> Result<bool> {
        let path = self.blob_path(hash);
        match File::options().append(true).open(&path) {
            Ok(file) => {
                let metadata = file.metadata().map_err(io("cannot read", &path))?;
                if metadata.len() != size {
                    return Ok(false);
                }
                file.set_modified(SystemTime::now())
                    .map_err(io("cannot touch", &path))?;
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io("cannot open", &path)(error)),
        }
    }

    /// Reads a blob, and checks that it still has its hash.
    pub fn read_blob(&self, hash: &str) -> Result<Vec<u8>> {
        let path = self.blob_path(hash);
        let content = std::fs::read(&path).map_err(io("cannot read", &path))?;
        let found = hex::encode(Sha256::digest(&content));
        if found != hash {
            return Err(StoreError::Corrupt(format!(
                "blob {} has content with hash {found}; redeploy the Worker that uses it after removing the file",
                path.display()
            )));
        }
        Ok(content)
    }

    /// Removes what nothing names and nobody touched for `min_age`: blobs, known assets, expired upload sessions and registry tokens.
    ///
    /// `min_age` must be longer than an upload session lives (one hour): a blob is stored before the version that names it.
    pub fn blob_gc(&self, min_age: Duration) -> Result<GcReport> {
        let oldest_ms = now_ms() - min_age.as_millis() as i64;
        self.change(|transaction| {
            remove_expired(transaction)?;
            transaction.execute(
                "DELETE FROM assets WHERE used_ms < ?1 AND blob NOT IN (SELECT blob FROM version_blobs)",
                [oldest_ms],
            )?;
            Ok(())
        })?;
        let mut report = GcReport::default();
        for path in self.blob_files()? {
            let Some(hash) = path
                .file_name()
                .and_then(|name| name.to_str())
                .filter(|name| is_hash(name))
            else {
                tracing::warn!(path = %path.display(), "left alone: not a blob");
                continue;
            };
            // Under the connection's lock: a deploy that names this blob either committed before, or will find it gone and say so.
            let connection = self.connection();
            let used = connection
                .query_row(
                    "SELECT 1 FROM version_blobs WHERE blob = ?1 UNION ALL SELECT 1 FROM assets WHERE blob = ?1 LIMIT 1",
                    [hash],
                    |_| Ok(()),
                )
                .optional()?
                .is_some();
            let metadata = path.metadata().map_err(io("cannot read", &path))?;
            let age = metadata
                .modified()
                .ok()
                .and_then(|modified| modified.elapsed().ok())
                .unwrap_or_default();
            if !used && age >= min_age {
                std::fs::remove_file(&path).map_err(io("cannot remove", &path))?;
                report.blobs += 1;
                report.bytes += metadata.len();
            }
        }
        Ok(report)
    }

    fn blob_files(&self) -> Result<HashSet<PathBuf>> {
        let mut files = HashSet::new();
        let blobs = &self.inner.blobs;
        for entry in std::fs::read_dir(blobs).map_err(io("cannot read", blobs))? {
            let dir = entry.map_err(io("cannot read", blobs))?.path();
            if dir.ends_with(TEMPORARY) || !dir.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(&dir).map_err(io("cannot read", &dir))? {
                files.insert(file.map_err(io("cannot read", &dir))?.path());
            }
        }
        Ok(files)
    }
}
