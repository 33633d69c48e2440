//! Manifests and indexes, in OCI's and in Docker's media types.
//!
//! Must not: touch the disk. What is parsed here came from a client: everything is checked before it is stored.

use oci_spec::image::Descriptor;

use crate::error::{ImageError, Result};
use crate::{Digest, Layer};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Most bytes of a manifest (distribution specification: a registry should take at least 4 MiB).
pub(crate) const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// Most bytes of an image configuration.
pub(crate) const MAX_CONFIG: u64 = 8 * 1024 * 1024;

/// What a manifest names.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) kind: Kind,
    /// What it is about (referrers API).
    pub(crate) subject: Option<Digest>,
    /// `artifactType`, or for a manifest without one the config's media type.
    pub(crate) artifact_type: Option<String>,
    pub(crate) annotations: Option<serde_json::Value>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// An image, or another artifact in an image manifest's clothes.
    Image { config: Part, layers: Vec<Part> },
    /// One manifest for each platform.
    Index { manifests: Vec<Child> },
}

/// A blob that a manifest names.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) media_type: String,
}

/// A manifest that an index names.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) digest: Digest,
    /// `os/architecture`, if it says so.
    pub(crate) platform: Option<(String, String)>,
}

impl Manifest {
    /// Parses and checks the body of a manifest or index.
    pub(crate) fn parse(media_type: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |why: String| ImageError::Invalid(format!("invalid manifest: {why}"));
        if bytes.len() > MAX_MANIFEST {
            return Err(wrong(format!(
                "it has {} bytes, the most is {MAX_MANIFEST}",
                bytes.len()
            )));
        }
        let json: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        if json.get("schemaVersion").and_then(|v| v.as_u64()) != Some(2) {
            return Err(wrong(
                "schemaVersion must be 2 (Docker's schema 1 is not supported)".to_owned(),
            ));
        }
        if let Some(inner) = json.get("mediaType").and_then(|v| v.as_str())
            && inner != media_type
        {
            return Err(wrong(format!(
                "its mediaType is {inner}, but it was sent as {media_type}"
            )));
        }
        let kind = match media_type {
            OCI_MANIFEST | DOCKER_MANIFEST => {
                let body: oci_spec::image::ImageManifest =
                    serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
                Kind::Image {
                    config: part(body.config())?,
                    layers: body.layers().iter().map(part).collect::<Result<_>>()?,
                }
            }
            OCI_INDEX | DOCKER_LIST => {
                let body: oci_spec::image::ImageIndex =
                    serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
                Kind::Index {
                    manifests: body.manifests().iter().map(child).collect::<Result<_>>()?,
                }
            }
            other => {
                return Err(wrong(format!(
                    "media type \"{}\" is not supported; send {OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST} or {DOCKER_LIST}",
                    other.escape_default()
                )));
            }
        };
        let subject = match json.get("subject").filter(|s| !s.is_null()) {
            Some(subject) => Some(Digest::parse(
                subject
                    .get("digest")
                    .and_then(|d| d.as_str())
                    .unwrap_or_default(),
            )?),
            None => None,
        };
        let artifact_type = json
            .get("artifactType")
            .and_then(|t| t.as_str())
            .map(str::to_owned)
            .or_else(|| match &kind {
                Kind::Image { config, .. } => Some(config.media_type.clone()),
                Kind::Index { .. } => None,
            });
        Ok(Self {
            kind,
            subject,
            artifact_type,
            annotations: json.get("annotations").filter(|a| !a.is_null()).cloned(),
        })
    }

    /// Config digest, if this is an image that a container can be made of.
    pub(crate) fn image_config(&self) -> Option<&Part> {
        match &self.kind {
            Kind::Image { config, .. }
                if matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) =>
            {
                Some(config)
            }
            _ => None,
        }
    }

    /// The blobs that it names.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Part> {
        let (config, layers) = match &self.kind {
            Kind::Image { config, layers } => (Some(config), layers.as_slice()),
            Kind::Index { .. } => (None, [].as_slice()),
        };
        config.into_iter().chain(layers)
    }

    /// The manifests that it names.
    pub(crate) fn children(&self) -> &[Child] {
        match &self.kind {
            Kind::Index { manifests } => manifests,
            Kind::Image { .. } => &[],
        }
    }

    /// Of an index: the manifest for this machine.
    pub(crate) fn for_this_machine(&self) -> Option<&Digest> {
        let wanted = ("linux", host_architecture());
        self.children()
            .iter()
            .find(|c| {
                c.platform
                    .as_ref()
                    .is_some_and(|(os, arch)| (os.as_str(), arch.as_str()) == wanted)
            })
            .map(|c| &c.digest)
    }
}

/// This machine's architecture, in the words that images use.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn part(descriptor: &Descriptor) -> Result<Part> {
    Ok(Part {
        digest: Digest::parse(descriptor.digest().as_ref())?,
        size: descriptor.size(),
        media_type: descriptor.media_type().to_string(),
    })
}

fn child(descriptor: &Descriptor) -> Result<Child> {
    Ok(Child {
        digest: Digest::parse(descriptor.digest().as_ref())?,
        platform: descriptor
            .platform()
            .as_ref()
            .map(|p| (p.os().to_string(), p.architecture().to_string())),
    })
}

/// The body of an OCI image manifest for a config and layers. Equal inputs give equal bytes.
pub(crate) fn image_manifest(config: &Digest, config_size: u64, layers: &[Layer]) -> Vec<u8> {
    let descriptor = |media_type: &str, digest: &Digest, size: u64| serde_json::json!({"mediaType": media_type, "digest": digest.as_str(), "size": size});
    canonical(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config, config_size),
        "layers": layers.iter().map(|l| descriptor(&l.media_type, &l.digest, l.size)).collect::<Vec<_>>(),
    }))
}

/// JSON with the keys of every object sorted: `oci-spec` keeps labels, ports and volumes in hash maps, whose order changes from run to run.
pub(crate) fn canonical(value: &serde_json::Value) -> Vec<u8> {
    use serde_json::Value;
    fn write(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Object(map) => {
                let mut keys: Vec<_> = map.iter().collect();
                keys.sort_by_key(|(key, _)| *key);
                out.push(b'{');
                for (at, (key, value)) in keys.into_iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    write(&Value::String(key.clone()), out);
                    out.push(b':');
                    write(value, out);
                }
                out.push(b'}');
            }
            Value::Array(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    write(item, out);
                }
                out.push(b']');
            }
            leaf => out.extend_from_slice(leaf.to_string().as_bytes()),
        }
    }
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image(config_type: &str) -> serde_json::Value {
        json!({"schemaVersion": 2, "config": {"mediaType": config_type, "digest": Digest::of(b"c").as_str(), "size": 1},
               "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": Digest::of(b"l").as_str(), "size": 1}]})
    }

    #[test]
    fn both_dialects_are_images_and_artifacts_are_not() {
        for (media_type, config, is_image) in [
            (OCI_MANIFEST, OCI_CONFIG, true),
            (DOCKER_MANIFEST, DOCKER_CONFIG, true),
            (OCI_MANIFEST, "application/vnd.oci.empty.v1+json", false),
        ] {
            let body = image(config).to_string();
            let manifest = Manifest::parse(media_type, body.as_bytes()).unwrap();
            assert_eq!(manifest.image_config().is_some(), is_image);
            assert_eq!(manifest.blobs().count(), 2);
        }
    }

    #[test]
    fn an_index_answers_with_the_manifest_for_this_machine() {
        let entry = |arch: &str| {
            json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(arch.as_bytes()).as_str(), "size": 1,
                   "platform": {"os": "linux", "architecture": arch}})
        };
        let body =
            json!({"schemaVersion": 2, "manifests": [entry("s390x"), entry(host_architecture())]});
        let index = Manifest::parse(OCI_INDEX, body.to_string().as_bytes()).unwrap();
        assert_eq!(
            index.for_this_machine(),
            Some(&Digest::of(host_architecture().as_bytes()))
        );
    }

    #[test]
    fn refuses_what_it_cannot_vouch_for() {
        let mut schema1 = image(OCI_CONFIG);
        schema1["schemaVersion"] = json!(1);
        let mut contradicting = image(OCI_CONFIG);
        contradicting["mediaType"] = json!(DOCKER_MANIFEST);
        let mut weak = image(OCI_CONFIG);
        weak["config"]["digest"] = json!("sha512:abc");
        for (media_type, body, why) in [
            (OCI_MANIFEST, schema1.to_string(), "schemaVersion"),
            (OCI_MANIFEST, contradicting.to_string(), "was sent as"),
            (OCI_MANIFEST, weak.to_string(), "digest"),
            (OCI_MANIFEST, "{".to_owned(), "invalid manifest"),
            ("text/plain", image(OCI_CONFIG).to_string(), "not supported"),
            (OCI_MANIFEST, " ".repeat(MAX_MANIFEST + 1), "the most is"),
        ] {
            let error = Manifest::parse(media_type, body.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn canonical_json_is_sorted_at_every_depth() {
        let value = json!({"b": [{"z": 1, "a": "\"\n"}], "a": null});
        assert_eq!(canonical(&value), br#"{"a":null,"b":[{"a":"\"\n","z":1}]}"#);
    }
}
