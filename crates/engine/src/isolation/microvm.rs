//! Class microvm: QEMU, virtiofsd and a guest's kernel as they are installed, and Wharf's own
//! executable as the agent.

use std::path::{Path, PathBuf};

use wharf_microvm::initrd::{self, GuestKernel};
use wharf_sandbox::{IsolationSpec, Machine};

use super::{MicrovmConfig, find};
use crate::EngineError;

/// Where distributions put virtiofsd, outside of PATH.
const VIRTIOFSD: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/lib/virtiofsd",
];

pub(super) fn check(config: &MicrovmConfig) -> Result<(), EngineError> {
    parts(config).map(drop)
}

/// Blocks: the first time that a machine is to run, its initial RAM disk is made.
pub(super) fn spec(config: &MicrovmConfig) -> Result<IsolationSpec, EngineError> {
    let parts = parts(config)?;
    let initrd = initrd::prepare(&parts.kernel, &config.agent, &config.directory);
    let initrd = initrd.map_err(|error| {
        EngineError::Internal(format!("the initial RAM disk of virtual machines: {error}"))
    })?;
    Ok(IsolationSpec::Microvm(Machine {
        qemu: parts.qemu,
        virtiofsd: parts.virtiofsd,
        kernel: parts.kernel.image,
        initrd,
        agent: config.agent.clone(),
        kvm: config.kvm,
    }))
}

/// Host programs and files that a virtual machine needs.
struct Parts {
    qemu: PathBuf,
    virtiofsd: PathBuf,
    kernel: GuestKernel,
}

fn parts(config: &MicrovmConfig) -> Result<Parts, EngineError> {
    let needs = |what: &str, mend: &str| {
        EngineError::Invalid(format!("isolation class microvm needs {what}: {mend}"))
    };
    if cfg!(not(target_arch = "x86_64")) {
        return Err(needs("an x86-64 machine", "use gvisor or namespace"));
    }
    let path = std::env::var_os("PATH");
    let qemu = find("qemu-system-x86_64", path.as_deref()).ok_or_else(|| {
        needs(
            "QEMU, which is not in the daemon's PATH",
            "apt-get install qemu-system-x86",
        )
    })?;
    let virtiofsd = find("virtiofsd", path.as_deref())
        .or_else(|| {
            VIRTIOFSD
                .map(PathBuf::from)
                .into_iter()
                .find(|it| it.is_file())
        })
        .ok_or_else(|| {
            needs(
                "virtiofsd",
                "apt-get install virtiofsd (on Debian 12: qemu-system-common)",
            )
        })?;
    let root = &config.kernel_root;
    let kernel = GuestKernel::find(root).ok_or_else(|| {
        let place = root.join("boot/vmlinuz-*-cloud-*");
        needs(
            &format!(
                "a kernel for its guests, and there is no {}",
                place.display()
            ),
            "wharf guest-kernel gets one",
        )
    })?;
    if config.kvm && !Path::new("/dev/kvm").exists() {
        return Err(needs(
            "KVM, and there is no /dev/kvm",
            "switch virtualisation on in the firmware or at the provider (containers.microvm = \"emulated\" in wharf.toml does without, many times slower)",
        ));
    }
    if !config.agent.is_file() {
        return Err(needs(
            &format!(
                "wharf's own executable, and {} is not there any more",
                config.agent.display()
            ),
            "restart the node",
        ));
    }
    Ok(Parts {
        qemu,
        virtiofsd,
        kernel,
    })
}
