//! Isolation classes: what holds a container.

const RUNSC: &str = "/usr/bin/runsc";

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
            Class::Gvisor => match std::path::Path::new(RUNSC).exists() {
                true => Ok(()),
                false => Err(format!("{RUNSC} is missing: apt-get install runsc")),
            },
        }
    }

    pub(crate) fn isolation(self) -> wharf_engine::Isolation {
        match self {
            Class::Namespace => wharf_engine::Isolation::Namespace,
            Class::Gvisor => wharf_engine::Isolation::Gvisor,
        }
    }

    /// What the sandbox calls it.
    pub(crate) fn kernel(self) -> wharf_sandbox::Kernel {
        match self {
            Class::Namespace => wharf_sandbox::Kernel::Host,
            Class::Gvisor => wharf_sandbox::Kernel::Gvisor {
                runsc: RUNSC.into(),
            },
        }
    }
}
