//! The index in memory: one immutable picture of all manifests, names and repositories, replaced whole after each write.
//!
//! Must not: do I/O. The start path looks images up here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use oci_spec::image::ImageConfiguration;

use crate::error::{ImageError, Result};
use crate::manifest::Manifest;
use crate::{Digest, Layer, Reference};

/// A manifest as stored.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) body: Vec<u8>,
    pub(crate) manifest: Manifest,
    pub(crate) stored_ms: i64,
    /// Config and layers, read at first use.
    pub(crate) parsed: OnceLock<Arc<Parsed>>,
}

/// What an image manifest and its config say together.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) id: Digest,
    pub(crate) config: ImageConfiguration,
    pub(crate) layers: Vec<Layer>,
}

impl Stored {
    pub(crate) fn new(
        digest: Digest,
        media_type: String,
        body: Vec<u8>,
        manifest: Manifest,
        stored_ms: i64,
    ) -> Self {
        Self {
            digest,
            media_type,
            body,
            manifest,
            stored_ms,
            parsed: OnceLock::new(),
        }
    }
}

/// All there is. `names` are in full (`docker.io/library/hello:latest`).
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    manifests: BTreeMap<Digest, Arc<Stored>>,
    names: BTreeMap<String, Digest>,
    tags: BTreeMap<String, BTreeMap<String, Digest>>,
    held: BTreeMap<String, BTreeSet<Digest>>,
    // The ways back.
    by_config: BTreeMap<Digest, BTreeSet<Digest>>,
    parents: HashMap<Digest, BTreeSet<Digest>>,
    names_of: HashMap<Digest, BTreeSet<String>>,
    holders: HashMap<Digest, BTreeSet<String>>,
    tags_of: HashMap<Digest, BTreeSet<(String, String)>>,
    pushed: HashMap<Digest, BTreeSet<(String, String)>>,
}

impl Catalog {
    pub(crate) fn add_manifest(&mut self, stored: Arc<Stored>) {
        if let Some(config) = stored.manifest.image_config() {
            self.by_config
                .entry(config.digest.clone())
                .or_default()
                .insert(stored.digest.clone());
        }
        for child in stored.manifest.children() {
            self.parents
                .entry(child.digest.clone())
                .or_default()
                .insert(stored.digest.clone());
        }
        self.manifests.insert(stored.digest.clone(), stored);
    }
    pub(crate) fn add_name(&mut self, name: String, manifest: Digest) {
        self.names_of
            .entry(manifest.clone())
            .or_default()
            .insert(name.clone());
        self.names.insert(name, manifest);
    }
    pub(crate) fn add_held(&mut self, repository: String, manifest: Digest) {
        self.holders
            .entry(manifest.clone())
            .or_default()
            .insert(repository.clone());
        self.held.entry(repository).or_default().insert(manifest);
    }
    pub(crate) fn add_tag(&mut self, repository: String, tag: String, manifest: Digest) {
        self.tags_of
            .entry(manifest.clone())
            .or_default()
            .insert((repository.clone(), tag.clone()));
        self.tags
            .entry(repository)
            .or_default()
            .insert(tag, manifest);
    }
    pub(crate) fn add_pushed(&mut self, host: String, repository: String, manifest: Digest) {
        self.pushed
            .entry(manifest)
            .or_default()
            .insert((host, repository));
    }

    pub(crate) fn manifest(&self, digest: &Digest) -> Option<&Arc<Stored>> {
        self.manifests.get(digest)
    }
    pub(crate) fn manifests(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.manifests.values()
    }
    pub(crate) fn name(&self, full: &str) -> Option<&Digest> {
        self.names.get(full)
    }
    pub(crate) fn names_of(&self, digest: &Digest) -> impl Iterator<Item = &String> {
        self.names_of.get(digest).into_iter().flatten()
    }
    pub(crate) fn holds(&self, repository: &str, digest: &Digest) -> bool {
        self.held
            .get(repository)
            .is_some_and(|set| set.contains(digest))
    }
    pub(crate) fn has_repository(&self, repository: &str) -> bool {
        self.held.contains_key(repository)
    }
    pub(crate) fn repositories(&self) -> impl Iterator<Item = &String> {
        self.held.keys()
    }
    pub(crate) fn held(&self, repository: &str) -> impl Iterator<Item = &Digest> {
        self.held.get(repository).into_iter().flatten()
    }
    pub(crate) fn tags(&self, repository: &str) -> impl Iterator<Item = &String> {
        self.tags
            .get(repository)
            .into_iter()
            .flat_map(BTreeMap::keys)
    }
    pub(crate) fn tag(&self, repository: &str, tag: &str) -> Option<&Digest> {
        self.tags.get(repository)?.get(tag)
    }
    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        self.holders.contains_key(digest)
    }
    pub(crate) fn held_by(&self, digest: &Digest) -> impl Iterator<Item = &String> {
        self.holders.get(digest).into_iter().flatten()
    }
    pub(crate) fn parents(&self, digest: &Digest) -> impl Iterator<Item = &Digest> {
        self.parents.get(digest).into_iter().flatten()
    }
    /// The manifest itself and the indexes that name it: what a name may point to and still mean this image.
    pub(crate) fn tops<'a>(&'a self, digest: &'a Digest) -> impl Iterator<Item = &'a Digest> {
        std::iter::once(digest).chain(self.parents(digest))
    }
    /// `host/repository` and `host/repository:tag` of every place in this node's registry where the manifest is. `first_host` is what a
    /// repository is shown under; other hosts only if it was pushed under them.
    pub(crate) fn places(
        &self,
        digest: &Digest,
        first_host: Option<&str>,
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut digests: BTreeSet<String> = self
            .pushed
            .get(digest)
            .into_iter()
            .flatten()
            .map(|(host, repository)| format!("{host}/{repository}"))
            .collect();
        let mut tags = BTreeSet::new();
        if let Some(host) = first_host {
            digests.extend(
                self.holders
                    .get(digest)
                    .into_iter()
                    .flatten()
                    .map(|repository| format!("{host}/{repository}")),
            );
            tags.extend(
                self.tags_of
                    .get(digest)
                    .into_iter()
                    .flatten()
                    .map(|(repository, tag)| format!("{host}/{repository}:{tag}")),
            );
        }
        (digests, tags)
    }

    /// What a reference points to: a manifest or an index.
    pub(crate) fn find(&self, text: &str, registry_hosts: &[String]) -> Result<Digest> {
        let bare = text.strip_prefix("sha256:").unwrap_or(text);
        let hex = crate::digest::is_hex(bare).then_some(bare);
        if let Some(hex) = hex
            && hex.len() == 64
        {
            let digest = Digest::parse(&format!("sha256:{hex}"))?;
            if let Some(manifest) = self.by_config.get(&digest).and_then(|m| self.best(m)) {
                return Ok(manifest);
            }
            return match self.manifests.contains_key(&digest) {
                true => Ok(digest),
                false => Err(ImageError::NotFound(format!(
                    "there is no image with id {digest} on this node"
                ))),
            };
        }
        let reference = Reference::parse(text);
        if let Ok(reference) = &reference
            && let Some(digest) = self.find_reference(reference, registry_hosts)
        {
            return Ok(digest);
        }
        if let Some(prefix) = hex.filter(|h| h.len() >= 4)
            && let Some(digest) = self.find_prefix(prefix)?
        {
            return Ok(digest);
        }
        let reference = reference?;
        let registry = registry_hosts
            .first()
            .map_or(String::new(), |host| format!(" ({host})"));
        Err(ImageError::NotFound(
            if registry_hosts.contains(&reference.host) {
                format!(
                    "image {} is not in this node's registry; push it there first",
                    reference.familiar()
                )
            } else {
                format!(
                    "image {} is not on this node, and images are not fetched from other registries: import one with `wharf image import NAME rootfs.tar`, or push it to this node's registry{registry}",
                    reference.familiar()
                )
            },
        ))
    }

    fn find_reference(&self, reference: &Reference, registry_hosts: &[String]) -> Option<Digest> {
        let ours = registry_hosts.contains(&reference.host);
        let Some(digest) = &reference.digest else {
            return self
                .names
                .get(&reference.tagged())
                .or_else(|| {
                    self.tag(&reference.repository, reference.tag_or_latest())
                        .filter(|_| ours)
                })
                .cloned();
        };
        if ours && self.holds(&reference.repository, digest) {
            return Some(digest.clone());
        }
        // A local name in that repository that means the same manifest.
        let within = format!("{}:", reference.name());
        self.tops(digest)
            .any(|top| self.names_of(top).any(|name| name.starts_with(&within)))
            .then(|| digest.clone())
    }

    fn find_prefix(&self, prefix: &str) -> Result<Option<Digest>> {
        let matching: Vec<_> = self
            .by_config
            .iter()
            .filter(|(id, _)| id.hex().starts_with(prefix))
            .collect();
        match matching.as_slice() {
            [] => Ok(None),
            [(_, manifests)] => Ok(self.best(manifests)),
            several => Err(ImageError::Invalid(format!(
                "image id {prefix} is ambiguous: {} images begin with it; give more digits",
                several.len()
            ))),
        }
    }

    /// Of several manifests with one config, the one that people named.
    fn best(&self, manifests: &BTreeSet<Digest>) -> Option<Digest> {
        manifests
            .iter()
            .max_by_key(|m| {
                (
                    self.tops(m).any(|t| self.names_of.contains_key(t)),
                    self.is_held(m),
                )
            })
            .cloned()
    }
}
