//! Images on this machine: content by digest, names that point to it, and layers unpacked ready for overlayfs.
//!
//! Owns: `<data>/images`: blobs (verified on write), an SQLite index of names and repositories, unpacked layers.
//! Must not: speak HTTP, know of containers or of builds. All calls are synchronous; async callers use `spawn_blocking`.
//!
//! Two kinds of names. *Local names* (`hello:latest`, `127.0.0.1:7400/acc/hello:1`) are what `docker tag` makes. *Repositories*
//! (`acc/hello` with tags and manifests) are what this node's registry serves. Both point to manifests in the same content store, so
//! pushing to this node's own registry moves no byte.

use std::io::Read;
use std::path::{Path, PathBuf};

/// `sha256:<64 hex>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

/// What went wrong, told apart where the registry or the docker dialect answers differently.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No such image, manifest, blob or repository.
    #[error("{0}")]
    NotFound(String),
    /// The content does not have the digest that was claimed, a manifest names blobs that are not here, a bad tar, a bad name.
    #[error("{0}")]
    Invalid(String),
    /// Disk or database.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore {}

/// An image: a config, its layers, and what names it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the config blob: Docker's image id.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The OCI image configuration.
    pub config: oci_spec::image::ImageConfiguration,
    /// Layers, base first.
    pub layers: Vec<Layer>,
    /// Local names, `repo:tag`.
    pub repo_tags: Vec<String>,
    /// `repo@sha256:...` for each repository reference (with registry host) it was pushed under.
    pub repo_digests: Vec<String>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob (compressed).
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Blob size, bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
}

impl Digest {
    /// Parses `sha256:<64 lower-case hex>`.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let _ = text;
        todo!()
    }
    /// Of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let _ = bytes;
        todo!()
    }
    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Image {
    /// Sum of layer blob sizes, bytes.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).sum()
    }
}

/// For the engine and the builder.
impl ImageStore {
    /// Opens or makes the store in `dir`; removes half-written temporaries of a crash.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let _ = dir;
        todo!()
    }

    /// Finds an image by local name (`:latest` and `docker.io/library/` implied as Docker does), by id or unique id prefix, by `name@digest`, or,
    /// for a reference whose host is one of this node's registry hosts, by repository. A reference with another host that is not here: `NotFound`
    /// with a message that says that only images of this node are supported and how to import or push one.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let _ = reference;
        todo!()
    }

    /// The hosts (`127.0.0.1:7400`, `localhost:7400`) under which this node's registry is reached.
    pub fn set_registry_hosts(&self, hosts: &[String]) {
        let _ = hosts;
        todo!()
    }

    /// Overlay lower directories of an image, topmost first, unpacking what is not unpacked yet (verified against the diff ids, safe paths,
    /// atomic by rename). Concurrent calls for the same layer unpack once.
    pub fn lower_dirs(&self, layers: &[Layer]) -> Result<Vec<PathBuf>, ImageError> {
        let _ = layers;
        todo!()
    }

    /// Imports a root file system tar (plain, gzip or zstd) as a one-layer image named `name`.
    pub fn import_rootfs(&self, name: &str, tar: impl Read) -> Result<Image, ImageError> {
        let _ = (name, tar);
        todo!()
    }

    /// A fresh directory on the store's file system for an overlay upper; give it to [`ImageStore::commit_upper`] or remove it.
    pub fn scratch_dir(&self) -> Result<PathBuf, ImageError> {
        todo!()
    }

    /// Turns an overlay upper directory into a layer: overlay whiteouts and opaque markers become OCI whiteouts in a gzip'd tar blob (entries sorted,
    /// so equal trees give equal digests), and the directory itself is moved into place as the unpacked layer. Consumes the directory.
    pub fn commit_upper(&self, upper: &Path) -> Result<Layer, ImageError> {
        let _ = upper;
        todo!()
    }

    /// Writes config and manifest of an image made of these layers; gives it the local names. `config.rootfs` is set from the layers.
    pub fn create(
        &self,
        config: oci_spec::image::ImageConfiguration,
        layers: &[Layer],
        names: &[String],
    ) -> Result<Image, ImageError> {
        let _ = (config, layers, names);
        todo!()
    }
}

/// Names.
impl ImageStore {
    /// All images.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        todo!()
    }
    /// `docker tag`.
    pub fn tag(&self, source: &str, target: &str) -> Result<(), ImageError> {
        let _ = (source, target);
        todo!()
    }
    /// `docker rmi`: removes a name, and with the last name of an image that no repository holds, the image. Returns Docker's lines
    /// (`("Untagged", ref)`, `("Deleted", digest)`).
    pub fn remove(&self, reference: &str) -> Result<Vec<(&'static str, String)>, ImageError> {
        let _ = reference;
        todo!()
    }
    /// Makes a local image available in this node's own registry under `reference` (whose host is this node's). No byte is copied. Returns the manifest digest.
    pub fn push_local(&self, reference: &str) -> Result<Digest, ImageError> {
        let _ = reference;
        todo!()
    }
    /// Removes blobs and unpacked layers that nothing refers to and that are older than `min_age_ms`. `in_use` are layer diff ids of live instances.
    pub fn collect_garbage(&self, in_use: &[Digest], min_age_ms: u64) -> Result<u64, ImageError> {
        let _ = (in_use, min_age_ms);
        todo!()
    }
}

/// For the registry.
impl ImageStore {
    /// Path of a blob to stream from.
    pub fn blob(&self, digest: &Digest) -> Result<(PathBuf, u64), ImageError> {
        let _ = digest;
        todo!()
    }
    /// Begins an upload; the id survives a restart of the daemon.
    pub fn begin_upload(&self) -> Result<String, ImageError> {
        todo!()
    }
    /// The file to append to, and its present length.
    pub fn upload(&self, id: &str) -> Result<(PathBuf, u64), ImageError> {
        let _ = id;
        todo!()
    }
    /// Verifies the digest, fsyncs, renames into place.
    pub fn finish_upload(&self, id: &str, digest: &Digest) -> Result<(), ImageError> {
        let _ = (id, digest);
        todo!()
    }
    /// Drops an upload.
    pub fn cancel_upload(&self, id: &str) -> Result<(), ImageError> {
        let _ = id;
        todo!()
    }
    /// Stores a manifest (or index) in a repository under a tag or digest; everything it names must be here already.
    pub fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, ImageError> {
        let _ = (repository, reference, media_type, bytes);
        todo!()
    }
    /// A manifest of a repository by tag or digest: digest, media type, bytes.
    pub fn manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<(Digest, String, Vec<u8>), ImageError> {
        let _ = (repository, reference);
        todo!()
    }
    /// Removes a tag, or a manifest with all its tags.
    pub fn delete_manifest(&self, repository: &str, reference: &str) -> Result<(), ImageError> {
        let _ = (repository, reference);
        todo!()
    }
    /// Repositories with their tags, sorted.
    pub fn repositories(&self) -> Result<Vec<(String, Vec<String>)>, ImageError> {
        todo!()
    }
}
