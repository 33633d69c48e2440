//! The nouns of Wharf: scripts, versions, bindings, Durable Object namespaces, container applications.
//!
//! Owns: plain data types shared by the store, the control API and the workerd supervisor, and their serde forms.
//! Must not: do I/O, read a clock, or hold behaviour that only one crate needs.

pub mod application;
pub mod fields;
pub mod instance;
pub mod names;
pub mod version;

pub use self::application::{
    Application, Configuration, InstanceType, Isolation, Limits, MANAGED_POLICY, Settings, Spec,
};
pub use self::instance::{InstanceState, InstanceView};
pub use self::version::{
    AssetFile, Assets, Binding, ContainerDeclaration, DurableObjectNamespace, Module, ModuleKind,
    Script, Version,
};
