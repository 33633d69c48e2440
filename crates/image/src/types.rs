//! What callers see of an image.

use oci_spec::image::ImageConfiguration;

use crate::Digest;

/// An image: a config, its layers, and what names it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the config blob: Docker's image id.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The OCI image configuration.
    pub config: ImageConfiguration,
    /// Layers, base first.
    pub layers: Vec<Layer>,
    /// Local names, `repo:tag`.
    pub repo_tags: Vec<String>,
    /// `repo@sha256:...` for each repository reference (with registry host) it was pushed under.
    pub repo_digests: Vec<String>,
    /// Tags in this node's registry, `host/repo:tag` under the registry's first host. An image that someone pushed has these, and no local name.
    pub registry_tags: Vec<String>,
    /// When its manifest came into this store, Unix milliseconds.
    pub stored_ms: i64,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

impl Image {
    /// Sum of layer blob sizes, bytes.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).sum()
    }
    /// When it was made, RFC 3339, if its configuration says so. [`Image::stored_ms`] is always there.
    pub fn created(&self) -> Option<&str> {
        self.config.created().as_deref()
    }
    /// `amd64`, `arm64`, ...
    pub fn architecture(&self) -> String {
        self.config.architecture().to_string()
    }
    /// `linux`.
    pub fn os(&self) -> String {
        self.config.os().to_string()
    }
}
