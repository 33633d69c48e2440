//! Kinds of bindings: what a Worker finds in `env`.
//!
//! Each kind is a module with one [`Kind`]: which fields an upload has for it, how they become a
//! [`Binding`], whether that fits to what exists, and what it is for workerd. [`KINDS`] names them
//! all. A new kind is a variant of [`Binding`], a module here, and a line in [`KINDS`]; the control
//! API and workerd's configuration take it from there.
//!
//! ```text
//!  upload ──> control ── parse, check ──> Binding, in the version ──> workerd ── configure ──> config
//! ```
//!
//! Owns: the rules of each kind. Must not: do I/O, or write workerd's configuration (its crate
//! renders [`WorkerdBinding`]).

mod assets;
mod durable_object;
mod service;
mod unsupported;
mod variables;
mod version_metadata;

use std::collections::BTreeMap;

use serde_json::Value;
use wharf_model::fields::Fate;
use wharf_model::{Binding, DurableObjectNamespace, Version};

pub use self::durable_object::no_namespace;
pub use self::service::{Entry, bound_entries};

/// All kinds.
pub const KINDS: &[&dyn Kind] = &[
    &variables::PlainText,
    &variables::Json,
    &variables::SecretText,
    &durable_object::DurableObject,
    &service::Service,
    &assets::StaticAssets,
    &version_metadata::VersionMetadata,
];

/// A kind of binding.
pub trait Kind: Sync {
    /// Cloudflare's `type`.
    fn name(&self) -> &'static str;

    /// The fields of an upload's binding of this kind, besides `type` and `name`.
    fn fields(&self) -> &'static [(&'static str, Fate)];

    /// Reads what an upload says.
    ///
    /// # Errors
    /// What is missing or wrong, for the deployer.
    fn parse(&self, said: &Said<'_>, around: &Surroundings<'_>) -> Result<Binding, Refusal>;

    /// Checks a binding, new or taken over from another version, against what exists now.
    ///
    /// # Errors
    /// What it refers to does not exist.
    fn check(&self, binding: Binding, around: &Surroundings<'_>) -> Result<Binding, Refusal> {
        let _ = around;
        Ok(binding)
    }

    /// What it is for workerd.
    ///
    /// # Errors
    /// workerd cannot have it, for the deployer.
    fn configure(&self, binding: &Binding, worker: &Worker<'_>) -> Result<WorkerdBinding, String>;
}

/// What an upload says of one binding.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// Its name in `env`.
    pub name: &'a str,
    /// Its type.
    pub kind: &'a str,
    /// All of it.
    pub value: &'a Value,
}

impl<'a> Said<'a> {
    /// A field's text.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.value.get(key).and_then(Value::as_str)
    }

    /// A field's text.
    ///
    /// # Errors
    /// There is none.
    pub fn need(&self, key: &str) -> Result<String, Refusal> {
        let Said { name, kind, .. } = self;
        self.text(key).map(str::to_owned).ok_or_else(|| {
            Refusal::Invalid(format!("binding {name:?} of type {kind:?} needs {key:?}"))
        })
    }
}

/// What an upload's bindings are checked against.
pub struct Surroundings<'a> {
    /// The script that is uploaded.
    pub script: &'a str,
    /// Its namespaces, after the upload's migrations.
    pub namespaces: &'a [DurableObjectNamespace],
    /// Whether there is a script of this name; an error is the store's.
    pub script_exists: &'a dyn Fn(&str) -> Result<bool, String>,
    /// Whether the upload has static assets.
    pub has_assets: bool,
}

/// What a version's bindings are configured for.
#[derive(Debug, Clone, Copy)]
pub struct Worker<'a> {
    /// The version.
    pub version: &'a Version,
    /// Its script's namespaces, by class.
    pub namespaces: &'a BTreeMap<String, DurableObjectNamespace>,
}

/// Why a binding is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field is missing or wrong.
    #[error("{0}")]
    Invalid(String),
    /// Cloudflare has it, and Wharf has not; what, as a plural.
    #[error("{0} are not supported by this Wharf yet")]
    Unsupported(String),
    /// Cloudflare has this type of binding, and Wharf has not.
    #[error("{what} are not supported by this Wharf yet (binding {name:?})")]
    UnsupportedType {
        /// What it gives, as a plural.
        what: String,
        /// Its name in `env`.
        name: String,
    },
    /// It refers to something that does not exist.
    #[error("{message}")]
    Missing {
        /// Cloudflare's code for that.
        code: u32,
        /// The remedy, too.
        message: String,
    },
    /// The store could not be read.
    #[error("{0}")]
    Store(String),
}

/// A binding, in the terms of workerd's configuration (workerd.capnp, `Worker.Binding`).
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerdBinding {
    /// `text`
    Text(String),
    /// `json`
    Json(Value),
    /// `fromEnvironment`: a value that never is on disk.
    FromEnvironment(String),
    /// `durableObjectNamespace`, by class.
    DurableObjectNamespace(String),
    /// `service`: an entry of this Worker itself.
    OwnService(Entry),
    /// `service`: an entry of another Worker.
    OtherService(String, Entry),
    /// `service`: the static assets of this Worker.
    Assets,
}

/// The kind of this type; `None`: Wharf does not have it.
pub fn kind(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// A binding's kind.
pub fn kind_of(binding: &Binding) -> &'static dyn Kind {
    match binding {
        Binding::PlainText { .. } => &variables::PlainText,
        Binding::Json { .. } => &variables::Json,
        Binding::SecretText { .. } => &variables::SecretText,
        Binding::DurableObjectNamespace { .. } => &durable_object::DurableObject,
        Binding::Service { .. } => &service::Service,
        Binding::Assets { .. } => &assets::StaticAssets,
        Binding::VersionMetadata { .. } => &version_metadata::VersionMetadata,
    }
}

/// The refusal of a type that Wharf does not have.
pub fn unsupported(kind: &str, name: &str) -> Refusal {
    Refusal::UnsupportedType {
        what: unsupported::plural(kind),
        name: name.to_owned(),
    }
}

/// A binding of another kind than its module expects: a fault in [`kind_of`], never the outside's.
fn foreign(binding: &Binding) -> String {
    format!("binding {:?} is of another kind", binding.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_registered_once_and_is_none_that_is_refused() {
        for (number, kind) in KINDS.iter().enumerate() {
            let same = |other: &&dyn Kind| other.name() == kind.name();
            assert_eq!(KINDS.iter().position(same), Some(number));
            assert!(unsupported::plural(kind.name()).starts_with("bindings of type"));
        }
    }
}
