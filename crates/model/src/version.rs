//! A script and its immutable versions: what one `wrangler deploy` uploads (contracts: wrangler, section 5).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A script (Cloudflare's word for a deployed Worker): a name and what is currently deployed under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// The Worker's name, unique in the node. `[a-z0-9_-]`, at most 63 bytes.
    pub name: String,
    /// Small stable number, never reused; the workerd user id and the storage folder derive from it.
    pub number: u32,
    /// Id (dashed UUID) of the version that serves, if any was deployed.
    pub deployed_version: Option<String>,
    /// Tag of the last Durable Object migration applied.
    pub migration_tag: Option<String>,
    /// Whether its Durable Object classes were declared by `exports`: then migrations are refused.
    pub class_exports: bool,
    /// Cron expressions as the user wrote them.
    pub schedules: Vec<String>,
    /// Unix time in milliseconds.
    pub created_ms: i64,
    /// Unix time in milliseconds.
    pub modified_ms: i64,
}

/// One immutable upload of a script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Dashed UUID.
    pub id: String,
    /// Name of the script it belongs to.
    pub script: String,
    /// 1 for a script's first version, then counting up.
    pub number: u32,
    /// Unix time in milliseconds.
    pub created_ms: i64,
    /// Name of the entry module.
    pub main_module: String,
    /// All modules, the entry module included.
    pub modules: Vec<Module>,
    /// Bindings after secrets and `inherit` were resolved.
    pub bindings: Vec<Binding>,
    /// `YYYY-MM-DD`.
    pub compatibility_date: String,
    /// Compatibility flags as uploaded.
    pub compatibility_flags: Vec<String>,
    /// Static assets, if the Worker has any.
    pub assets: Option<Assets>,
    /// Durable Object classes that have a container.
    pub container_classes: Vec<String>,
    /// What the upload says of a class's container, by class; nothing for a version of an older Wharf.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub containers: BTreeMap<String, ContainerDeclaration>,
    /// `workers/message`, `workers/tag`, `workers/triggered_by` as uploaded.
    pub annotations: BTreeMap<String, String>,
    /// Parts of the upload's metadata that Wharf keeps but does not act on (observability,
    /// placement, ...), and `limits`.
    pub extra: serde_json::Value,
}

impl Version {
    /// How long its JavaScript may compute without a pause, CPU milliseconds, if the upload says so
    /// (`limits.cpu_ms`).
    pub fn cpu_limit_ms(&self) -> Option<u64> {
        self.extra.get("limits")?.get("cpu_ms")?.as_u64()
    }

    /// The named images of a class's container: `ctx.container.images`. Where there are some, there is no image besides them.
    pub fn named_images(&self, class: &str) -> Option<&BTreeMap<String, String>> {
        let images = &self.containers.get(class)?.images;
        (!images.is_empty()).then_some(images)
    }
}

/// A container as an upload declares it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDeclaration {
    /// Name of its application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// References of images by the names that the Worker has for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, String>,
}

/// A file of the Worker's code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Path as uploaded, without a leading `./`.
    pub name: String,
    /// What workerd shall take it for.
    pub kind: ModuleKind,
    /// Blob that holds the content: lower-case hex SHA-256.
    pub blob: String,
}

/// How a module is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleKind {
    /// `application/javascript+module`
    EsModule,
    /// `application/javascript`: CommonJS beside an ES entry module
    CommonJs,
    /// `application/wasm`
    Wasm,
    /// `application/octet-stream`
    Data,
    /// `text/plain`
    Text,
    /// `application/json`
    Json,
}

/// What a Worker finds in `env`. The `type` tags are Cloudflare's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Binding {
    /// A variable.
    PlainText {
        /// Name in `env`.
        name: String,
        /// Value.
        text: String,
    },
    /// A JSON variable.
    Json {
        /// Name in `env`.
        name: String,
        /// Value.
        json: serde_json::Value,
    },
    /// A secret: like a variable, never shown by the API.
    SecretText {
        /// Name in `env`.
        name: String,
        /// Value.
        text: String,
    },
    /// A namespace of Durable Objects of a class of the same script.
    DurableObjectNamespace {
        /// Name in `env`.
        name: String,
        /// Exported class.
        class_name: String,
        /// Id of the namespace, see [`DurableObjectNamespace::id`].
        namespace_id: String,
    },
    /// Another Worker (or this one).
    Service {
        /// Name in `env`.
        name: String,
        /// Script name.
        service: String,
        /// Named entrypoint, or the default one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entrypoint: Option<String>,
        /// `ctx.props` of the callee.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        props: Option<serde_json::Value>,
    },
    /// The static assets of this version.
    Assets {
        /// Name in `env`.
        name: String,
    },
    /// `{id, tag, timestamp}` of this version.
    VersionMetadata {
        /// Name in `env`.
        name: String,
    },
}

impl Binding {
    /// The same binding under another name.
    #[must_use]
    pub fn named(&self, new_name: &str) -> Binding {
        let mut binding = self.clone();
        match &mut binding {
            Binding::PlainText { name, .. }
            | Binding::Json { name, .. }
            | Binding::SecretText { name, .. }
            | Binding::DurableObjectNamespace { name, .. }
            | Binding::Service { name, .. }
            | Binding::Assets { name }
            | Binding::VersionMetadata { name } => new_name.clone_into(name),
        }
        binding
    }

    /// The binding's name in `env`.
    pub fn name(&self) -> &str {
        match self {
            Binding::PlainText { name, .. }
            | Binding::Json { name, .. }
            | Binding::SecretText { name, .. }
            | Binding::DurableObjectNamespace { name, .. }
            | Binding::Service { name, .. }
            | Binding::Assets { name }
            | Binding::VersionMetadata { name } => name,
        }
    }
}

/// A version's static assets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assets {
    /// Every file.
    pub files: Vec<AssetFile>,
    /// `assets.config` as uploaded: html_handling, not_found_handling, run_worker_first, `_headers`, `_redirects`.
    pub config: serde_json::Value,
}

/// One static asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetFile {
    /// Absolute URL path, e.g. `/css/site.css`.
    pub path: String,
    /// Blob that holds the content: lower-case hex SHA-256.
    pub blob: String,
    /// Bytes.
    pub size: u64,
}

/// A Durable Object namespace: stable over deploys and class renames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableObjectNamespace {
    /// 32 lower-case hex digits, what the API shows.
    pub id: String,
    /// Owning script.
    pub script: String,
    /// Current class name.
    pub class: String,
    /// Whether the class was made by `new_sqlite_classes`.
    pub use_sqlite: bool,
    /// workerd's `uniqueKey`: 32 lower-case hex digits, random, never shown; object ids are MACs under it.
    pub unique_key: String,
}
