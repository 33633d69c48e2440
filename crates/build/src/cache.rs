//! The layer cache: what an operation on a parent made. One small file per key, written whole, so that concurrent builds need no lock and a crash leaves
//! nothing half. An entry whose layer the image store no longer has is no entry.
//!
//! Owns: `<cache_dir>/steps/<key>` and the directories of `--mount=type=cache`, `<cache_dir>/mounts/<id>`. Must not: hold layers.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wharf_image::{Digest, Layer};

use crate::source::field;
use crate::trouble::{Context, Result};

/// What a step made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    /// `None`: nothing changed.
    pub(crate) layer: Option<Layer>,
    /// RFC 3339, when it was first made.
    pub(crate) created: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    created: String,
    layer: Option<StoredLayer>,
}

#[derive(Serialize, Deserialize)]
struct StoredLayer {
    digest: String,
    diff_id: String,
    size: u64,
    media_type: String,
}

/// Builds a key from all that decides what a step makes.
#[derive(Debug)]
pub(crate) struct Key(pub(crate) Sha256);

impl Key {
    /// For a kind of step on these parent layers.
    pub(crate) fn new(kind: &str, parent: &[Layer]) -> Self {
        let mut key = Self(Sha256::new());
        // A change to what steps do must change this number.
        key.add("wharf build 2");
        key.add(kind);
        key.list(parent.iter().map(|l| l.diff_id.as_str()));
        key
    }
    pub(crate) fn add(&mut self, text: &str) {
        field(&mut self.0, text.as_bytes());
    }
    pub(crate) fn list<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>) {
        let mut count = 0u64;
        for text in texts {
            self.add(text);
            count += 1;
        }
        self.0.update(count.to_le_bytes());
    }
    pub(crate) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The directory is made when it is first needed.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A directory in this one, which is root's alone: what steps leave in cache mounts may be set-user-id programs that, on disk, belong to
    /// the host's root.
    fn make(&self, dir: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(&self.dir)?;
        std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o700))?;
        std::fs::create_dir_all(dir)
    }

    fn file(&self, key: &str) -> PathBuf {
        self.dir.join("steps").join(key)
    }

    /// An unreadable entry counts as none: the step is done again.
    pub(crate) fn get(&self, key: &str) -> Option<Made> {
        let stored: Stored = serde_json::from_slice(&std::fs::read(self.file(key)).ok()?).ok()?;
        let layer = match stored.layer {
            None => None,
            Some(l) => Some(Layer {
                digest: Digest::parse(&l.digest).ok()?,
                diff_id: Digest::parse(&l.diff_id).ok()?,
                size: l.size,
                media_type: l.media_type,
            }),
        };
        Some(Made {
            layer,
            created: stored.created,
        })
    }

    /// Remembers what was made. If the same had been made before, it keeps its older time; returns what is now stored.
    pub(crate) fn put(&self, key: &str, made: Made) -> Result<Made> {
        let made = match self.get(key) {
            Some(old) if old.layer == made.layer => old,
            _ => made,
        };
        let stored = Stored {
            created: made.created.clone(),
            layer: made.layer.as_ref().map(|l| StoredLayer {
                digest: l.digest.to_string(),
                diff_id: l.diff_id.to_string(),
                size: l.size,
                media_type: l.media_type.clone(),
            }),
        };
        let dir = self.dir.join("steps");
        let writing = || format!("writing the build cache in {}", dir.display());
        self.make(&dir).context(writing)?;
        let bytes = serde_json::to_vec(&stored)
            .map_err(std::io::Error::from)
            .context(writing)?;
        let mut file = tempfile::NamedTempFile::new_in(&dir).context(writing)?;
        file.write_all(&bytes).context(writing)?;
        file.as_file().sync_data().context(writing)?;
        file.persist(self.file(key))
            .map_err(|e| e.error)
            .context(writing)?;
        Ok(made)
    }

    /// The directory of a cache mount, made with this mode and owner if it is new.
    pub(crate) fn mount(&self, id: &str, mode: u32, uid: u32, gid: u32) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let mounts = self.dir.join("mounts");
        let dir = mounts.join(hex::encode(&Sha256::digest(id.as_bytes())[..16]));
        let making = || format!("making the cache directory {}", dir.display());
        self.make(&mounts).context(making)?;
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).context(making)?;
                std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode))
                    .context(making)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).context(making),
        }
        Ok(dir)
    }
}

/// An upper and a work directory for one step; removed on drop, whatever of them is left.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    pub(crate) fn new(images: &wharf_image::ImageStore) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Self {
            dir: images.scratch_dir()?,
        };
        let making = || format!("making {}", scratch.dir.display());
        for dir in [scratch.upper(), scratch.work()] {
            std::fs::create_dir(&dir).context(making)?;
            // It becomes the container's `/`, whatever the umask.
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))
                .context(making)?;
        }
        Ok(scratch)
    }
    pub(crate) fn upper(&self) -> PathBuf {
        self.dir.join("fs")
    }
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.join("work")
    }
    /// Whether anything was written.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let upper = self.upper();
        let mut entries =
            std::fs::read_dir(&upper).context(|| format!("reading {}", upper.display()))?;
        Ok(entries.next().is_none())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "a build's scratch directory stays until the next start");
        }
    }
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(n: u8) -> Layer {
        let digest = Digest::of(&[n]);
        Layer {
            diff_id: digest.clone(),
            digest,
            size: 1,
            media_type: "m".into(),
        }
    }

    #[test]
    fn the_first_time_is_kept_while_the_result_is_the_same() {
        let dir = tempfile::tempdir().expect("dir");
        let cache = Cache::new(dir.path().join("build"));
        let made = |n, created: &str| Made {
            layer: Some(layer(n)),
            created: created.into(),
        };
        assert_eq!(cache.get("k"), None);
        cache.put("k", made(1, "first")).expect("put");
        assert_eq!(
            cache.put("k", made(1, "second")).expect("put").created,
            "first"
        );
        assert_eq!(cache.get("k"), Some(made(1, "first")));
        assert_eq!(
            cache.put("k", made(2, "third")).expect("put"),
            made(2, "third")
        );
        std::fs::write(cache.file("k"), "{").expect("damage");
        assert_eq!(cache.get("k"), None);
    }

    /// A RUN step can leave a set-user-id program in a cache mount, and on disk that belongs to the host's root.
    #[test]
    fn no_user_of_the_host_gets_at_what_steps_leave() {
        use std::os::unix::fs::PermissionsExt;
        let node = tempfile::tempdir().expect("dir");
        let others = |path: &Path| {
            let metadata = std::fs::metadata(path).expect("metadata");
            metadata.permissions().mode() & 0o077
        };
        let dir = node.path().join("build");
        let cache = Cache::new(dir.clone());
        cache.mount("pip", 0o755, 0, 0).expect("mount");
        assert_eq!(others(&dir), 0);
        // One that was made open.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("mode");
        cache.mount("pip", 0o755, 0, 0).expect("mount");
        assert_eq!(others(&dir), 0);
    }

    #[test]
    fn keys_do_not_confuse_neighbours() {
        let key = |parts: &[&[&str]]| {
            let mut k = Key::new("run", &[layer(1)]);
            for p in parts {
                k.list(p.iter().copied());
            }
            k.finish()
        };
        assert_ne!(key(&[&["ab", "c"]]), key(&[&["a", "bc"]]));
        assert_ne!(key(&[&["a"], &["b"]]), key(&[&["a", "b"], &[]]));
        assert_eq!(key(&[&["a"]]), key(&[&["a"]]));
        assert_ne!(
            Key::new("run", &[layer(1)]).finish(),
            Key::new("run", &[layer(2)]).finish()
        );
    }
}
