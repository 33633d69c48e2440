//! Isolation classes: what holds a container.

use std::path::PathBuf;

use anyhow::{Context, Result};
use wharf_engine::isolation::MicrovmConfig;
use wharf_microvm::initrd::{self, GuestKernel};
use wharf_sandbox::{IsolationSpec, Machine};

const RUNSC: &str = "/usr/bin/runsc";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Where Debian 12 and later ones have it.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Class {
    /// Namespaces, cgroups and filters of the host's kernel.
    Namespace,
    /// A kernel of its own in user space.
    Gvisor,
    /// A kernel of its own in a virtual machine.
    Microvm,
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Namespace => "namespace",
            Class::Gvisor => "gvisor",
            Class::Microvm => "microvm",
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
            Class::Microvm => match (guest_kernel(), virtiofsd()) {
                _ if !std::path::Path::new(QEMU).exists() => Err(format!(
                    "{QEMU} is missing: apt-get install qemu-system-x86"
                )),
                (Some(_), Some(_)) => Ok(()),
                (None, _) => Err("there is no guest kernel: cargo xtask setup".to_owned()),
                (_, None) => Err("there is no virtiofsd".to_owned()),
            },
        }
    }

    pub(crate) fn isolation(self) -> wharf_engine::Isolation {
        match self {
            Class::Namespace => wharf_engine::Isolation::Namespace,
            Class::Gvisor => wharf_engine::Isolation::Gvisor,
            Class::Microvm => wharf_engine::Isolation::Microvm,
        }
    }

    /// What an engine makes machines of; emulated ones, as not every machine has KVM.
    pub(crate) fn machines(self, directory: PathBuf) -> Result<MicrovmConfig> {
        Ok(MicrovmConfig {
            agent: std::env::current_exe()?,
            kernel_root: wharf_testkit::guest_kernel(),
            directory,
            kvm: false,
        })
    }

    /// What the sandbox calls it. `directory`: for what is made for it.
    pub(crate) fn spec(self, directory: PathBuf) -> Result<IsolationSpec> {
        Ok(match self {
            Class::Namespace => IsolationSpec::Namespace,
            Class::Gvisor => IsolationSpec::Gvisor {
                runsc: RUNSC.into(),
            },
            Class::Microvm => {
                let agent = std::env::current_exe()?;
                let kernel = guest_kernel().context("no guest kernel")?;
                IsolationSpec::Microvm(Machine {
                    qemu: QEMU.into(),
                    virtiofsd: virtiofsd().context("no virtiofsd")?,
                    initrd: initrd::prepare(&kernel, &agent, &directory)?,
                    kernel: kernel.image,
                    agent,
                    kvm: false,
                })
            }
        })
    }
}

fn guest_kernel() -> Option<GuestKernel> {
    GuestKernel::find(&wharf_testkit::guest_kernel())
}

fn virtiofsd() -> Option<PathBuf> {
    VIRTIOFSD
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
}
