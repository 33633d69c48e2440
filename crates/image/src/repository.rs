//! What this node's registry serves: repositories with their tags and manifests.
//!
//! Blobs belong to the node, not to a repository: one that any repository has is there for all, so pushing it again sends nothing.
//!
//! A local name under one of the registry's own hosts is another view of a repository's tag. When the registry's tag moves or goes by a
//! client's hand, such a name must not keep meaning the old image: it goes too.

use crate::catalog::Catalog;
use crate::error::{ImageError, Result};
use crate::index::Change;
use crate::manifest::Manifest;
use crate::{Digest, ImageStore, is_repository, is_tag};

/// A manifest that is about another one (distribution specification, referrers API).
#[derive(Debug, Clone)]
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size, bytes.
    pub size: usize,
    /// `artifactType`, or its config's media type.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: Option<serde_json::Value>,
}

fn check_repository(repository: &str) -> Result<()> {
    if is_repository(repository) {
        Ok(())
    } else {
        Err(ImageError::Invalid(format!(
            "invalid repository name \"{}\"",
            repository.escape_default()
        )))
    }
}

fn unknown(repository: &str, reference: &str) -> ImageError {
    ImageError::NotFound(format!(
        "repository {repository} has no manifest {}",
        reference.escape_default()
    ))
}

impl ImageStore {
    /// Stores a manifest (or index) in a repository under a tag or digest; everything it names must be here already (else `NotFound`).
    pub fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest> {
        check_repository(repository)?;
        let manifest = Manifest::parse(media_type, bytes)?;
        let digest = Digest::of(bytes);
        let tag = if reference.contains(':') {
            let claimed = Digest::parse(reference)?;
            if claimed != digest {
                return Err(ImageError::Invalid(format!(
                    "the manifest that was sent has digest {digest}, not {claimed}"
                )));
            }
            None
        } else if is_tag(reference) {
            Some(reference)
        } else {
            return Err(ImageError::Invalid(format!(
                "invalid tag \"{}\"",
                reference.escape_default()
            )));
        };
        let hosts = self.registry_hosts();
        self.change(|change, catalog| {
            for part in manifest.blobs() {
                let size = self.blob_size(&part.digest)?;
                if size != part.size {
                    return Err(ImageError::Invalid(format!(
                        "the manifest says that blob {} has {} bytes, but it has {size}",
                        part.digest, part.size
                    )));
                }
            }
            for child in manifest.children() {
                if !catalog.holds(repository, &child.digest) {
                    return Err(unknown(repository, child.digest.as_str()));
                }
            }
            change.put_manifest(&digest, media_type, bytes)?;
            change.hold(repository, &digest)?;
            if let Some(tag) = tag {
                change.put_tag(repository, tag, &digest)?;
                for name in own_names(&hosts, repository, tag) {
                    if catalog.name(&name).is_some_and(|old| *old != digest) {
                        change.delete_name(&name)?;
                    }
                }
            }
            Ok(digest.clone())
        })
    }

    /// A manifest of a repository by tag or digest: digest, media type, bytes.
    pub fn manifest(&self, repository: &str, reference: &str) -> Result<(Digest, String, Vec<u8>)> {
        let catalog = self.catalog();
        let digest = lookup(&catalog, repository, reference)?;
        let stored = catalog
            .manifest(&digest)
            .ok_or_else(|| unknown(repository, reference))?;
        Ok((digest, stored.media_type.clone(), stored.body.clone()))
    }

    /// Of an index in a repository: the digest of the manifest for this machine. `None` if it is no index or has none.
    pub fn platform_manifest(&self, repository: &str, reference: &str) -> Result<Option<Digest>> {
        let catalog = self.catalog();
        let digest = lookup(&catalog, repository, reference)?;
        Ok(catalog
            .manifest(&digest)
            .and_then(|s| s.manifest.for_this_machine())
            .cloned())
    }

    /// Removes a tag, or a manifest with all its tags. A manifest goes with its last tag. Blobs stay until
    /// [`ImageStore::collect_garbage`].
    pub fn delete_manifest(&self, repository: &str, reference: &str) -> Result<()> {
        self.change(|change, catalog| {
            let digest = lookup(catalog, repository, reference)?;
            if is_tag(reference) {
                self.delete_tag(change, catalog, repository, reference)?;
                return Ok(());
            }
            let hosts = self.registry_hosts();
            for tag in catalog.tags(repository) {
                if catalog.tag(repository, tag) == Some(&digest) {
                    for name in own_names(&hosts, repository, tag) {
                        change.delete_name(&name)?;
                    }
                }
            }
            change.release(repository, &digest)
        })
    }

    /// Removes a tag that exists; returns whether its manifest left the repository with it.
    pub(crate) fn delete_tag(
        &self,
        change: &Change<'_>,
        catalog: &Catalog,
        repository: &str,
        tag: &str,
    ) -> Result<bool> {
        let Some(digest) = catalog.tag(repository, tag) else {
            return Err(unknown(repository, tag));
        };
        change.delete_tag(repository, tag)?;
        for name in own_names(&self.registry_hosts(), repository, tag) {
            if catalog.name(&name) == Some(digest) {
                change.delete_name(&name)?;
            }
        }
        let other_tag = catalog
            .tags(repository)
            .any(|other| other != tag && catalog.tag(repository, other) == Some(digest));
        let in_index = catalog
            .parents(digest)
            .any(|parent| catalog.holds(repository, parent));
        if other_tag || in_index {
            return Ok(false);
        }
        change.release(repository, digest)?;
        for child in catalog
            .manifest(digest)
            .iter()
            .flat_map(|s| s.manifest.children())
        {
            let elsewhere = catalog
                .parents(&child.digest)
                .any(|parent| parent != digest && catalog.holds(repository, parent));
            let tagged = catalog
                .tags(repository)
                .any(|t| catalog.tag(repository, t) == Some(&child.digest));
            if !elsewhere && !tagged {
                change.release(repository, &child.digest)?;
            }
        }
        Ok(true)
    }

    /// Repositories with their tags, sorted.
    pub fn repositories(&self) -> Result<Vec<(String, Vec<String>)>> {
        let catalog = self.catalog();
        Ok(catalog
            .repositories()
            .map(|name| (name.clone(), catalog.tags(name).cloned().collect()))
            .collect())
    }

    /// Tags of one repository, sorted.
    pub fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let catalog = self.catalog();
        require_repository(&catalog, repository)?;
        Ok(catalog.tags(repository).cloned().collect())
    }

    /// The manifests of a repository whose subject is `digest`. None is no error (distribution specification, listing referrers).
    pub fn referrers(&self, repository: &str, digest: &Digest) -> Vec<Referrer> {
        let catalog = self.catalog();
        catalog
            .held(repository)
            .filter_map(|held| catalog.manifest(held))
            .filter(|stored| stored.manifest.subject.as_ref() == Some(digest))
            .map(|stored| Referrer {
                digest: stored.digest.clone(),
                media_type: stored.media_type.clone(),
                size: stored.body.len(),
                artifact_type: stored.manifest.artifact_type.clone(),
                annotations: stored.manifest.annotations.clone(),
            })
            .collect()
    }

    /// What a manifest of a repository is about, if it says so.
    pub fn subject(&self, repository: &str, digest: &Digest) -> Option<Digest> {
        let catalog = self.catalog();
        catalog
            .manifest(digest)
            .filter(|_| catalog.holds(repository, digest))
            .and_then(|stored| stored.manifest.subject.clone())
    }
}

/// The local names that are views of a tag.
fn own_names(hosts: &[String], repository: &str, tag: &str) -> Vec<String> {
    hosts
        .iter()
        .map(|host| format!("{host}/{repository}:{tag}"))
        .collect()
}

fn require_repository(catalog: &Catalog, repository: &str) -> Result<()> {
    if catalog.has_repository(repository) {
        return Ok(());
    }
    Err(ImageError::NotFound(format!(
        "there is no repository \"{}\"",
        repository.escape_default()
    )))
}

fn lookup(catalog: &Catalog, repository: &str, reference: &str) -> Result<Digest> {
    require_repository(catalog, repository)?;
    let found = if reference.contains(':') {
        let digest = Digest::parse(reference)?;
        catalog.holds(repository, &digest).then_some(digest)
    } else {
        catalog.tag(repository, reference).cloned()
    };
    found.ok_or_else(|| unknown(repository, reference))
}
