//! Local names, and what images there are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use crate::catalog::{Catalog, Parsed, Stored};
use crate::error::{ImageError, Result};
use crate::layers::local_name;
use crate::manifest::{Kind, MAX_CONFIG, host_architecture};
use crate::reference::familiar;
use crate::{Digest, Image, ImageStore, Layer, Reference};

impl ImageStore {
    /// Finds an image by local name (`:latest` and `docker.io/library/` implied as Docker does), by id or unique id prefix (at least four
    /// digits), by `name@digest`, or, for a reference whose host is one of this node's registry hosts, by repository. A reference with another
    /// host that is not here: `NotFound` with a message that says that only images of this node are supported and how to import or push one.
    /// Of a multi-platform index, the image for this machine.
    pub fn resolve(&self, reference: &str) -> Result<Image> {
        let catalog = self.catalog();
        let top = catalog.find(reference, &self.registry_hosts())?;
        self.image(&catalog, &top)
    }

    /// An image and its layers' directories ([`ImageStore::lower_dirs`]), if neither a file has to be read nor a layer to be unpacked for it: then
    /// this does not block.
    pub fn resolve_ready(&self, reference: &str) -> Option<(Image, Vec<PathBuf>)> {
        let image = {
            let catalog = self.catalog();
            let top = catalog.find(reference, &self.registry_hosts()).ok()?;
            let stored = image_manifest_of(&catalog, &top).ok()?;
            stored.parsed.get()?;
            self.image(&catalog, &top).ok()?
        };
        let mut layers = image.layers.iter();
        if !layers.all(|layer| self.inner.layers.is_ready(&layer.diff_id)) {
            return None;
        }
        let lower = self.lower_dirs(&image.layers).ok()?;
        Some((image, lower))
    }

    pub(crate) fn image(&self, catalog: &Catalog, top: &Digest) -> Result<Image> {
        let stored = image_manifest_of(catalog, top)?;
        let parsed = self.parsed(stored)?;
        let hosts = self.registry_hosts();
        let mut repo_tags = BTreeSet::new();
        let mut repo_digests = BTreeSet::new();
        let mut registry_tags = BTreeSet::new();
        for digest in catalog.tops(&stored.digest) {
            repo_tags.extend(catalog.names_of(digest).map(|n| familiar(n).to_owned()));
            let (repositories, tags) = catalog.places(digest, hosts.first().map(String::as_str));
            repo_digests.extend(repositories.iter().map(|r| format!("{r}@{digest}")));
            registry_tags.extend(tags);
        }
        Ok(Image {
            id: parsed.id.clone(),
            manifest: stored.digest.clone(),
            config: parsed.config.clone(),
            layers: parsed.layers.clone(),
            repo_tags: repo_tags.into_iter().collect(),
            repo_digests: repo_digests.into_iter().collect(),
            registry_tags: registry_tags.into_iter().collect(),
            stored_ms: stored.stored_ms,
        })
    }

    /// Config and layers of an image manifest. Read once: a manifest never changes.
    pub(crate) fn parsed(&self, stored: &Stored) -> Result<Arc<Parsed>> {
        if let Some(parsed) = stored.parsed.get() {
            return Ok(parsed.clone());
        }
        let wrong = |why: String| ImageError::Invalid(format!("manifest {}: {why}", stored.digest));
        let Kind::Image { layers, .. } = &stored.manifest.kind else {
            return Err(wrong("it is an index, not an image".to_owned()));
        };
        let Some(config_part) = stored.manifest.image_config() else {
            return Err(wrong("it is an artifact, not a container image".to_owned()));
        };
        let bytes = self.read_blob(&config_part.digest, MAX_CONFIG)?;
        let config: ImageConfiguration = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(format!("its configuration is not one of an image: {e}")))?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != layers.len() {
            return Err(wrong(format!(
                "it has {} layers, but its configuration {}",
                layers.len(),
                diff_ids.len()
            )));
        }
        let layers = layers
            .iter()
            .zip(diff_ids)
            .map(|(part, diff_id)| {
                Ok(Layer {
                    digest: part.digest.clone(),
                    diff_id: Digest::parse(diff_id)?,
                    size: part.size,
                    media_type: part.media_type.clone(),
                })
            })
            .collect::<Result<_>>()?;
        let parsed = Arc::new(Parsed {
            id: config_part.digest.clone(),
            config,
            layers,
        });
        // Two at once parse the same; either may stay.
        let _ = stored.parsed.set(parsed.clone());
        Ok(parsed)
    }

    /// All images, sorted by their names. Artifacts that are no container images, and other machines' parts of an index, are left out.
    pub fn list(&self) -> Result<Vec<Image>> {
        let catalog = self.catalog();
        let mut images = Vec::new();
        for stored in catalog.manifests() {
            if stored.manifest.image_config().is_none() || is_for_others(&catalog, stored) {
                continue;
            }
            match self.image(&catalog, &stored.digest) {
                Ok(image) => images.push(image),
                Err(ImageError::Invalid(why)) => {
                    // A registry takes what is pushed; that one thing there cannot run must not hide the others.
                    tracing::debug!(%why, "not listed as an image");
                }
                Err(error) => return Err(error),
            }
        }
        images.sort_by(|a, b| {
            let key = |i: &Image| {
                (
                    i.repo_tags.first().or(i.registry_tags.first()).cloned(),
                    i.id.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        Ok(images)
    }

    /// `docker tag`.
    pub fn tag(&self, source: &str, target: &str) -> Result<()> {
        let name = local_name(target)?;
        let hosts = self.registry_hosts();
        self.change(|change, catalog| change.put_name(&name, &catalog.find(source, &hosts)?))
    }

    /// `docker rmi`: removes a name, and with the last name of an image that no repository holds, the image. Returns Docker's lines
    /// (`("Untagged", ref)`, `("Deleted", digest)`). A reference to this node's registry that is no local name is removed there. An id removes
    /// all the names of its image, if they are in one repository.
    pub fn remove(&self, reference: &str) -> Result<Vec<(&'static str, String)>> {
        let hosts = self.registry_hosts();
        self.change(|change, catalog| {
            let parsed = Reference::parse(reference).ok();
            let top = catalog.find(reference, &hosts)?;
            let mut lines = Vec::new();
            let mut names = Vec::new();
            let mut released = None;
            match &parsed {
                Some(r) if r.digest.is_none() && catalog.name(&r.tagged()).is_some() => {
                    names.push(r.tagged());
                }
                Some(r) if r.digest.is_none() && hosts.contains(&r.host)
                    && catalog.tag(&r.repository, r.tag_or_latest()).is_some() =>
                {
                    lines.push(("Untagged", r.tagged()));
                    if self.delete_tag(change, catalog, &r.repository, r.tag_or_latest())? {
                        released = Some(r.repository.clone());
                    }
                }
                Some(r) if r.digest.is_some() => {
                    let within = format!("{}:", r.name());
                    names.extend(
                        catalog.tops(&top)
                            .flat_map(|t| catalog.names_of(t))
                            .filter(|n| n.starts_with(&within))
                            .cloned(),
                    );
                    if hosts.contains(&r.host) && catalog.holds(&r.repository, &top) {
                        change.release(&r.repository, &top)?;
                        released = Some(r.repository.clone());
                    }
                    lines.push(("Untagged", r.familiar()));
                }
                _ => {
                    names.extend(catalog.tops(&top).flat_map(|t| catalog.names_of(t)).cloned());
                    let repositories: BTreeSet<_> =
                        names.iter().filter_map(|n| n.rsplit_once(':')).map(|(r, _)| r).collect();
                    if repositories.len() > 1 {
                        return Err(ImageError::Invalid(format!(
                            "image {reference} has names in {} repositories; remove them by name: {}",
                            repositories.len(),
                            names.iter().map(|n| familiar(n)).collect::<Vec<_>>().join(", ")
                        )));
                    }
                }
            }
            for name in &names {
                change.delete_name(name)?;
                lines.push(("Untagged", familiar(name).to_owned()));
            }
            let still_named = |digest: &Digest| {
                catalog.names_of(digest).any(|n| !names.contains(n))
                    || catalog.held_by(digest).any(|r| Some(r) != released.as_ref())
            };
            if !catalog.tops(&top).any(still_named) && catalog.parents(&top).next().is_none() {
                change.delete_manifest(&top)?;
                let id = match catalog.manifest(&top).and_then(|s| s.manifest.image_config()) {
                    Some(config) => config.digest.to_string(),
                    None => top.to_string(),
                };
                lines.push(("Deleted", id));
            }
            Ok(lines)
        })
    }

    /// Makes a local image available in this node's own registry under `reference` (whose host is this node's). No byte is copied. Returns the
    /// manifest digest.
    pub fn push_local(&self, reference: &str) -> Result<Digest> {
        let parsed = Reference::parse(reference)?;
        if parsed.digest.is_some() {
            return Err(ImageError::Invalid(format!(
                "cannot push \"{reference}\": name a tag, not a digest"
            )));
        }
        let hosts = self.registry_hosts();
        if !hosts.contains(&parsed.host) {
            return Err(ImageError::Invalid(format!(
                "cannot push to {}: only this node's own registry is supported ({})",
                parsed.host,
                hosts.join(", ")
            )));
        }
        self.change(|change, catalog| {
            let Some(digest) = catalog.name(&parsed.tagged()) else {
                return Err(ImageError::NotFound(format!(
                    "there is no local image {}; give it that name first, with `tag`",
                    parsed.tagged()
                )));
            };
            change.hold(&parsed.repository, digest)?;
            for child in catalog
                .manifest(digest)
                .iter()
                .flat_map(|s| s.manifest.children())
            {
                change.hold(&parsed.repository, &child.digest)?;
            }
            change.put_tag(&parsed.repository, parsed.tag_or_latest(), digest)?;
            change.put_pushed(&parsed.host, &parsed.repository, digest)?;
            Ok(digest.clone())
        })
    }
}

/// The image manifest that a name's manifest stands for.
fn image_manifest_of<'a>(catalog: &'a Catalog, top: &Digest) -> Result<&'a Arc<Stored>> {
    let missing = |digest: &Digest| {
        ImageError::NotFound(format!("there is no manifest {digest} on this node"))
    };
    let stored = catalog.manifest(top).ok_or_else(|| missing(top))?;
    if stored.manifest.children().is_empty() {
        return Ok(stored);
    }
    match stored.manifest.for_this_machine() {
        Some(child) => catalog.manifest(child).ok_or_else(|| missing(child)),
        None => Err(ImageError::Invalid(format!(
            "index {top} has no image for linux/{}; build or push one for this machine",
            host_architecture()
        ))),
    }
}

/// A part of an index that is not for this machine, and that nobody named by itself.
fn is_for_others(catalog: &Catalog, stored: &Stored) -> bool {
    let mut parents = catalog
        .parents(&stored.digest)
        .filter_map(|p| catalog.manifest(p))
        .peekable();
    parents.peek().is_some()
        && parents.all(|p| p.manifest.for_this_machine() != Some(&stored.digest))
        && catalog.names_of(&stored.digest).next().is_none()
}
