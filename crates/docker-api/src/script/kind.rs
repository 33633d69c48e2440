//! What a container's name stands for: there are three things that workerd takes for containers.
//!
//! Owns: telling them apart, for every call that names one. Must not: serve any of them.

use super::Shared;

/// What workerd and Docker's clients call a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// workerd's network sidecar: a [`wharf_net::Network`] with its ingress.
    Sidecar,
    /// A container that only carries a snapshot's files, which no process does here.
    Helper,
    /// An instance of the engine, or a name that nothing has.
    Instance,
}

impl Shared {
    /// What this name stands for.
    pub(super) async fn kind(&self, name: &str) -> Kind {
        if self.is_sidecar(name).await {
            Kind::Sidecar
        } else if self.storage.is_helper(name) {
            Kind::Helper
        } else {
            Kind::Instance
        }
    }
}
