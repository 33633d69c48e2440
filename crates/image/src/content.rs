//! Blobs and uploads: files on disk.
//!
//! ```text
//! begin -> appended to (any number of requests, restarts) -> finish: hash, fsync, rename to blobs/sha256/<hex>
//!                                                         \> cancel, or a day without a write: removed
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::digest::{Hasher, is_hex};
use crate::error::{Context, ImageError, Result};
use crate::{Digest, ImageStore};

/// Uploads that nobody wrote to for so long are removed.
const UPLOAD_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// Makes the store's directories; removes what a crash left half made.
pub(crate) fn prepare(dir: &Path) -> Result<()> {
    let make = |path: &Path| {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .context(|| format!("making {}", path.display()))
    };
    let tmp = dir.join("tmp");
    if tmp.exists() {
        fs::remove_dir_all(&tmp).context(|| format!("emptying {}", tmp.display()))?;
    }
    for path in [
        dir.to_owned(),
        dir.join("blobs/sha256"),
        dir.join("layers"),
        dir.join("uploads"),
        tmp,
    ] {
        make(&path)?;
    }
    expire_uploads(dir)?;
    mount_points(&dir.join("layers").join(MOUNT_POINTS).join("fs"))?;
    sync_dir(dir)
}

/// Name, among the layers, of the one that has nothing but what every container mounts something on.
pub(crate) const MOUNT_POINTS: &str = "mount-points";

/// Makes what is missing of it.
fn mount_points(root: &Path) -> Result<()> {
    let doing = || format!("making {}", root.display());
    fs::create_dir_all(root).context(doing)?;
    for (name, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("etc", 0o755),
    ] {
        let path = root.join(name);
        match fs::create_dir(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(e).context(doing);
            }
            _ => fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context(doing)?,
        }
    }
    for name in ["etc/resolv.conf", "etc/hosts", "etc/hostname"] {
        let path = root.join(name);
        fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .context(doing)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).context(doing)?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).context(doing)
}

/// Removes uploads that nobody wrote to for a day.
pub(crate) fn expire_uploads(dir: &Path) -> Result<()> {
    let uploads = dir.join("uploads");
    let doing = || format!("looking through {}", uploads.display());
    for entry in fs::read_dir(&uploads).context(doing)? {
        let entry = entry.context(doing)?;
        let written = entry.metadata().and_then(|m| m.modified()).context(doing)?;
        if SystemTime::now()
            .duration_since(written)
            .is_ok_and(|age| age > UPLOAD_EXPIRY)
        {
            fs::remove_file(entry.path())
                .context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .context(|| format!("syncing {}", dir.display()))
}

/// A directory below `tmp/`, removed on drop unless it was moved away.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary directory; the next start will");
        }
    }
}

/// A blob on its way in: a temporary file and the digest of what was written so far. Dropped unfinished, it leaves nothing.
pub(crate) struct BlobWriter {
    file: BufWriter<File>,
    path: PathBuf,
    hasher: Hasher,
    size: u64,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // Gone already if it was renamed into place; whatever else fails, the next open empties tmp/.
        let _ = fs::remove_file(&self.path);
    }
}

impl ImageStore {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.dir.join("blobs/sha256").join(digest.hex())
    }

    fn tmp_path(&self) -> PathBuf {
        // 16 digits: short, because overlayfs wants all its lower directories' paths in one page.
        let name = uuid::Uuid::new_v4().simple().to_string();
        self.inner.dir.join("tmp").join(&name[..16])
    }

    fn make_tmp_dir(&self) -> Result<PathBuf> {
        let path = self.tmp_path();
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn temp_dir(&self) -> Result<TempDir> {
        self.make_tmp_dir().map(TempDir)
    }

    /// A fresh directory on the store's file system for an overlay upper; give it to [`ImageStore::commit_upper`] or remove it. Mode 0755,
    /// owned by root: in an overlay these are the container's `/`. It does not survive a restart.
    pub fn scratch_dir(&self) -> Result<PathBuf> {
        let path = self.make_tmp_dir()?;
        // The process's umask must not decide what a container's root directory looks like.
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o755))
            .context(|| format!("setting the mode of {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn blob_writer(&self) -> Result<BlobWriter> {
        let path = self.tmp_path();
        let file =
            File::create_new(&path).context(|| format!("making a file at {}", path.display()))?;
        Ok(BlobWriter {
            file: BufWriter::with_capacity(256 * 1024, file),
            path,
            hasher: Hasher::default(),
            size: 0,
        })
    }

    /// Puts a finished blob in its place. Returns its digest and size.
    pub(crate) fn finish_blob(&self, mut writer: BlobWriter) -> Result<(Digest, u64)> {
        writer
            .file
            .flush()
            .and_then(|()| writer.file.get_ref().sync_all())
            .context(|| "writing a blob".to_owned())?;
        let digest = std::mem::take(&mut writer.hasher).finish();
        self.place(&writer.path, &digest)?;
        Ok((digest, writer.size))
    }

    /// Stores bytes as a blob.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let mut writer = self.blob_writer()?;
        writer
            .write_all(bytes)
            .context(|| "writing a blob".to_owned())?;
        Ok(self.finish_blob(writer)?.0)
    }

    /// Renames a synced file to where its digest says. One that is there already has the same content, and becomes as young as this one.
    fn place(&self, from: &Path, digest: &Digest) -> Result<()> {
        let to = self.blob_path(digest);
        fs::rename(from, &to).context(|| format!("moving a blob to {}", to.display()))?;
        sync_dir(&self.inner.dir.join("blobs/sha256"))
    }

    /// Path of a blob to stream from, and its size in bytes. Who asks for a blob may be about to name it in a manifest, so asking makes it young
    /// again in the eyes of [`ImageStore::collect_garbage`].
    pub fn blob(&self, digest: &Digest) -> Result<(PathBuf, u64)> {
        let path = self.blob_path(digest);
        let size = self.blob_size(digest)?;
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        rustix::fs::utimensat(
            rustix::fs::CWD,
            &path,
            &rustix::fs::Timestamps {
                last_access: now,
                last_modification: now,
            },
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .context(|| format!("touching {}", path.display()))?;
        Ok((path, size))
    }

    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<u64> {
        match fs::metadata(self.blob_path(digest)) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(
                ImageError::NotFound(format!("there is no blob {digest} on this node")),
            ),
            Err(error) => Err(error).context(|| format!("looking for blob {digest}")),
        }
    }

    /// Reads a small blob whole: a config.
    pub(crate) fn read_blob(&self, digest: &Digest, at_most: u64) -> Result<Vec<u8>> {
        let size = self.blob_size(digest)?;
        if size > at_most {
            return Err(ImageError::Invalid(format!(
                "blob {digest} has {size} bytes; more than {at_most} are not read as an image configuration"
            )));
        }
        fs::read(self.blob_path(digest)).context(|| format!("reading blob {digest}"))
    }

    /// Begins an upload; the id survives a restart of the daemon.
    pub fn begin_upload(&self) -> Result<String> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let path = self.inner.dir.join("uploads").join(&id);
        File::create_new(&path).context(|| format!("making {}", path.display()))?;
        Ok(id)
    }

    /// The file to append to, and its present length. Take its lock (`File::try_lock`) while writing.
    pub fn upload(&self, id: &str) -> Result<(PathBuf, u64)> {
        let unknown = || {
            ImageError::NotFound(format!(
                "there is no upload {}: it was finished, cancelled, or had no write for a day",
                id.escape_default()
            ))
        };
        if id.len() != 32 || !is_hex(id) {
            return Err(unknown());
        }
        let path = self.inner.dir.join("uploads").join(id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok((path, metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(unknown()),
            Err(error) => Err(error).context(|| format!("looking for upload {id}")),
        }
    }

    /// Verifies the digest, fsyncs, renames into place. With a wrong digest the upload is dropped.
    pub fn finish_upload(&self, id: &str, digest: &Digest) -> Result<()> {
        let (path, _) = self.upload(id)?;
        let doing = || format!("reading upload {id}");
        let mut file = File::open(&path).context(doing)?;
        if file.try_lock().is_err() {
            return Err(ImageError::Invalid(format!(
                "upload {id} is still being written by another request"
            )));
        }
        file.rewind().context(doing)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let n = file.read(&mut buffer).context(doing)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
        let found = hasher.finish();
        if found != *digest {
            self.cancel_upload(id)?;
            return Err(ImageError::Invalid(format!(
                "the content that was sent has digest {found}, not {digest}"
            )));
        }
        file.sync_all().context(|| format!("syncing upload {id}"))?;
        self.place(&path, digest)
    }

    /// Drops an upload.
    pub fn cancel_upload(&self, id: &str) -> Result<()> {
        let (path, _) = self.upload(id)?;
        fs::remove_file(&path).context(|| format!("removing {}", path.display()))
    }
}
