//! Images on this machine: content by digest, names that point to it, and layers unpacked ready for overlayfs.
//!
//! Owns: `<data>/images`: blobs (verified on write), an SQLite index of names and repositories, unpacked layers.
//! Must not: speak HTTP, know of containers or of builds. All calls are synchronous; async callers use `spawn_blocking`.
//!
//! Two kinds of names. *Local names* (`hello:latest`, `127.0.0.1:7400/acc/hello:1`) are what `docker tag` makes. *Repositories*
//! (`acc/hello` with tags and manifests) are what this node's registry serves. Both point to manifests in the same content store, so
//! pushing to this node's own registry moves no byte.
//!
//! ```text
//! images/index.sqlite         names, repositories, manifests (the bodies too)
//! images/blobs/sha256/<hex>   configs and compressed layers
//! images/layers/<hex>/fs      a layer unpacked, by diff id
//! images/layers/mount-points/fs   what goes under every image
//! images/uploads/<id>         blobs on their way in; they survive a restart, and expire after a day
//! images/tmp/                 anything half made; emptied on open
//! ```
//!
//! Every write is a temporary file, fsync, rename, fsync of the directory, and only then the row that refers to it, so a crash at any
//! instant leaves nothing that is visible and incomplete.
//!
//! Reading never touches SQLite: after each write the whole index is loaded into a `Catalog`, and the lookups of the start path
//! are lookups in its maps.

mod catalog;
mod content;
mod digest;
mod error;
mod extract;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod garbage;
mod index;
mod layers;
mod manifest;
mod names;
mod pack;
mod reference;
mod repository;
mod tar_read;
mod tar_write;
mod types;
mod unpack;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

pub use self::digest::Digest;
pub use self::error::ImageError;
pub use self::extract::{Extraction, extract, extract_as};
pub use self::reference::{Reference, is_repository, is_tag};
pub use self::repository::Referrer;
pub use self::types::{Image, Layer};
pub use self::unpack::is_image_xattr;

/// Archives, with every length in them bounded.
pub mod tar {
    pub use crate::tar_read::{Entry, Kind, TarReader};
    pub use crate::tar_write::TarWriter;
}

use self::error::{Context, Result, held};

/// The store. Cheap to clone. One process at a time has a directory open: opening removes temporaries.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    index: Mutex<index::Index>,
    catalog: RwLock<Arc<catalog::Catalog>>,
    registry_hosts: RwLock<Arc<Vec<String>>>,
    layers: layers::Unpacked,
}

impl ImageStore {
    /// Opens or makes the store in `dir`; removes half-written temporaries of a crash.
    pub fn open(dir: &Path) -> Result<Self> {
        content::prepare(dir)?;
        let index = index::Index::open(&dir.join("index.sqlite"))?;
        let catalog = index.load(&catalog::Catalog::default())?;
        let dir = std::fs::canonicalize(dir)
            .context(|| format!("finding the real path of {}", dir.display()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                dir,
                index: Mutex::new(index),
                catalog: RwLock::new(Arc::new(catalog)),
                registry_hosts: RwLock::default(),
                layers: layers::Unpacked::default(),
            }),
        })
    }

    /// The hosts (`127.0.0.1:7400`, `localhost:7400`) under which this node's registry is reached. The first is the one shown to people.
    pub fn set_registry_hosts(&self, hosts: &[String]) {
        let mut unique = Vec::new();
        for host in hosts.iter().map(|h| h.to_ascii_lowercase()) {
            if !unique.contains(&host) {
                unique.push(host);
            }
        }
        *held(self.inner.registry_hosts.write()) = Arc::new(unique);
    }

    fn registry_hosts(&self) -> Arc<Vec<String>> {
        held(self.inner.registry_hosts.read()).clone()
    }

    fn catalog(&self) -> Arc<catalog::Catalog> {
        held(self.inner.catalog.read()).clone()
    }

    /// Runs one transaction on the index, and shows its result to readers once it is on disk. `write` gets the catalog as it is before;
    /// no other write happens in between.
    fn change<T>(
        &self,
        write: impl FnOnce(&index::Change<'_>, &catalog::Catalog) -> Result<T>,
    ) -> Result<T> {
        let mut index = held(self.inner.index.lock());
        let before = self.catalog();
        let answer = index.transaction(|change| write(change, &before))?;
        let after = index.load(&before)?;
        *held(self.inner.catalog.write()) = Arc::new(after);
        Ok(answer)
    }
}
