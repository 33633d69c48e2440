//! Isolation classes: what holds a container.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Class {
    /// Namespaces, cgroups and filters of the host's kernel.
    Namespace,
    /// A kernel of its own in user space.
    Gvisor,
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Namespace => "namespace",
            Class::Gvisor => "gvisor",
        }
    }

    /// Or the reason why containers of it cannot be started.
    pub(crate) fn available(self) -> Result<(), String> {
        match self {
            Class::Namespace => Ok(()),
            Class::Gvisor => Err("the engine starts no containers of this class".to_owned()),
        }
    }
}
