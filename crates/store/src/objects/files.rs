//! Blobs as files named by their SHA-256, `<dir>/<2 hex>/<hex>`.
//!
//! Owns: that directory, and `<dir>/tmp`, where content is written first.
//! Must not: be opened twice at a time: opening removes what a crash left in `tmp`.
//!
//! A blob appears under its name only after its content is on disk (temporary file, fsync, rename,
//! fsync of the directory), so a name that exists is whole. Its age is its modification time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::{ObjectInfo, ObjectStore, ObjectWriter, is_hash};
use crate::meta::BoxFuture;
use crate::{Result, StoreError, io, random};

const TEMPORARY: &str = "tmp";

/// Blobs in a directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FileObjects {
    dir: PathBuf,
}

impl FileObjects {
    /// Opens the directory, and makes it if needed; removes temporary files that a crash left.
    pub fn open(dir: &Path) -> Result<Self> {
        let temporary = dir.join(TEMPORARY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&temporary)
            .map_err(io("cannot create", &temporary))?;
        for entry in std::fs::read_dir(&temporary).map_err(io("cannot read", &temporary))? {
            let path = entry.map_err(io("cannot read", &temporary))?.path();
            std::fs::remove_file(&path).map_err(io("cannot remove", &path))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Where a blob is, given its lower-case hex SHA-256. Whether it exists is another matter.
    pub fn path(&self, hash: &str) -> PathBuf {
        self.dir.join(hash.get(..2).unwrap_or("--")).join(hash)
    }

    fn info_of(&self, hash: &str) -> Result<Option<ObjectInfo>> {
        if !is_hash(hash) {
            return Ok(None);
        }
        let path = self.path(hash);
        let metadata = match path.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("cannot read", &path)(error)),
        };
        let modified = metadata.modified().map_err(io("cannot read", &path))?;
        Ok(Some(ObjectInfo {
            hash: hash.to_owned(),
            bytes: metadata.len(),
            // One from the future is young.
            age: modified.elapsed().unwrap_or_default(),
        }))
    }

    fn touch_file(&self, hash: &str, bytes: u64) -> Result<bool> {
        let path = self.path(hash);
        match File::options().append(true).open(&path) {
            Ok(file) => {
                let metadata = file.metadata().map_err(io("cannot read", &path))?;
                if metadata.len() != bytes {
                    return Ok(false);
                }
                file.set_modified(SystemTime::now())
                    .map_err(io("cannot touch", &path))?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io("cannot open", &path)(error)),
        }
    }

    fn list_files(&self) -> Result<Vec<ObjectInfo>> {
        let mut objects = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io("cannot read", &self.dir))? {
            let dir = entry.map_err(io("cannot read", &self.dir))?.path();
            if dir.ends_with(TEMPORARY) || !dir.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(&dir).map_err(io("cannot read", &dir))? {
                let path = file.map_err(io("cannot read", &dir))?.path();
                let name = path.file_name().and_then(|name| name.to_str());
                match name.filter(|name| is_hash(name)) {
                    Some(hash) => objects.extend(self.info_of(hash)?),
                    None => tracing::warn!(path = %path.display(), "left alone: not a blob"),
                }
            }
        }
        Ok(objects)
    }
}

impl ObjectStore for FileObjects {
    fn begin(&self, expected: Option<&str>) -> BoxFuture<'_, Result<Box<dyn ObjectWriter>>> {
        let expected = expected.map(str::to_owned);
        Box::pin(async move {
            let name = hex::encode(random(16)?);
            let path = self.dir.join(TEMPORARY).join(name);
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(io("cannot create", &path))?;
            let writer: Box<dyn ObjectWriter> = Box::new(FileWriter {
                objects: self.clone(),
                file,
                temporary: Temporary(path),
                expected,
                hash: Sha256::new(),
                bytes: 0,
            });
            Ok(writer)
        })
    }

    fn get<'a>(&'a self, hash: &'a str) -> BoxFuture<'a, Result<Vec<u8>>> {
        Box::pin(async move {
            let absent = || StoreError::NotFound(format!("blob {hash}"));
            if !is_hash(hash) {
                return Err(absent());
            }
            let path = self.path(hash);
            let content = std::fs::read(&path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => absent(),
                _ => io("cannot read", &path)(error),
            })?;
            let found = hex::encode(Sha256::digest(&content));
            if found != hash {
                return Err(StoreError::Corrupt(format!(
                    "blob {} has content with hash {found}; redeploy the Worker that uses it after removing the file",
                    path.display()
                )));
            }
            Ok(content)
        })
    }

    fn info<'a>(&'a self, hash: &'a str) -> BoxFuture<'a, Result<Option<ObjectInfo>>> {
        Box::pin(async move { self.info_of(hash) })
    }

    fn touch<'a>(&'a self, hash: &'a str, bytes: u64) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move { Ok(is_hash(hash) && self.touch_file(hash, bytes)?) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ObjectInfo>>> {
        Box::pin(async move { self.list_files() })
    }

    fn remove<'a>(&'a self, hash: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !is_hash(hash) {
                return Ok(());
            }
            let path = self.path(hash);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(io("cannot remove", &path)(error))
                }
                _ => Ok(()),
            }
        })
    }

    fn local_path(&self, hash: &str) -> Option<PathBuf> {
        Some(self.path(hash))
    }
}

/// Removed when dropped, if it still has its first name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // One that was renamed is gone; what else is left is removed at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

struct FileWriter {
    objects: FileObjects,
    file: File,
    temporary: Temporary,
    expected: Option<String>,
    hash: Sha256,
    bytes: u64,
}

impl FileWriter {
    fn publish(self) -> Result<String> {
        let hash = hex::encode(self.hash.finalize());
        if let Some(expected) = self.expected.filter(|expected| *expected != hash) {
            return Err(StoreError::WrongHash {
                expected,
                found: hash,
            });
        }
        if self.objects.touch_file(&hash, self.bytes)? {
            return Ok(hash);
        }
        let path = self.objects.path(&hash);
        let dir = self.objects.dir.join(&hash[..2]);
        let fresh_dir = match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(io("cannot create", &dir)(error)),
        };
        self.file
            .sync_all()
            .map_err(io("cannot write", &self.temporary.0))?;
        std::fs::rename(&self.temporary.0, &path).map_err(io("cannot rename to", &path))?;
        sync_dir(&dir)?;
        if fresh_dir {
            sync_dir(&self.objects.dir)?;
        }
        Ok(hash)
    }
}

impl ObjectWriter for FileWriter {
    fn write<'a>(&'a mut self, content: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.hash.update(content);
            self.bytes += content.len() as u64;
            self.file
                .write_all(content)
                .map_err(io("cannot write", &self.temporary.0))
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<String>> {
        Box::pin(async move { self.publish() })
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(io("cannot sync", path))
}
