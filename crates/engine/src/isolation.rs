//! Isolation classes: which one an instance gets, and what this machine needs to give it.
//!
//! | said by | weight |
//! |---|---|
//! | the application's setting, or the operator's `--runtime` | decides |
//! | the image's label `wharf.isolation` | only if nothing decides, and never weaker than the node's |
//! | the node's `containers.isolation` | if nothing else is said |
//!
//! Must not: start anything.

use crate::EngineError;
use crate::merge::ImageDefaults;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use wharf_microvm::initrd::{self, GuestKernel};
use wharf_model::Isolation;
use wharf_sandbox::{Kernel, Machine};

/// The image's label (`LABEL wharf.isolation=gvisor`).
pub const LABEL: &str = "wharf.isolation";

/// What the image says. Not what a request says with a label of its own.
pub(crate) fn label_of(image: &ImageDefaults) -> Option<&str> {
    image.labels.get(LABEL).map(String::as_str)
}

/// The class that an instance gets.
///
/// # Errors
/// The label has a value that is no class; for whoever made the image.
pub(crate) fn class(
    asked: Option<Isolation>,
    label: Option<&str>,
    node: Isolation,
) -> Result<Isolation, EngineError> {
    // Also of an image whose label does not count: it is a mistake all the same.
    let label = label.map(|name| {
        Isolation::parse(name).ok_or_else(|| {
            EngineError::Invalid(format!(
                "the image's label {LABEL}={name:?} is no isolation class: there are namespace, gvisor and microvm"
            ))
        })
    });
    let label = label.transpose()?.unwrap_or(node);
    Ok(asked.unwrap_or(label.max(node)))
}

/// What the virtual machines of class microvm are made of.
#[derive(Debug, Clone)]
pub struct MicrovmConfig {
    /// The executable that runs the machines, and runs in them ([`wharf_microvm::run`]).
    pub agent: PathBuf,
    /// Root directory below which the guest's kernel is ([`GuestKernel::find`]).
    pub kernel_root: PathBuf,
    /// Where the guest's initial RAM disk is kept.
    pub directory: PathBuf,
    /// By /dev/kvm; else emulated.
    pub kvm: bool,
}

/// Where programs are that are in no PATH.
const VIRTIOFSD: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/lib/virtiofsd",
];

/// Whether this machine can give a class.
///
/// # Errors
/// It cannot: why, and the mend.
pub(crate) fn check(class: Isolation, config: &MicrovmConfig) -> Result<(), EngineError> {
    match class {
        Isolation::Namespace => Ok(()),
        Isolation::Gvisor => runsc().map(drop),
        Isolation::Microvm => parts(config).map(drop),
    }
}

/// What the sandbox needs for a class. Blocks: the first time that a machine is to run, its initial RAM disk is made.
///
/// # Errors
/// As [`check`].
pub(crate) fn kernel(class: Isolation, config: &MicrovmConfig) -> Result<Kernel, EngineError> {
    match class {
        Isolation::Namespace => Ok(Kernel::Host),
        Isolation::Gvisor => Ok(Kernel::Gvisor { runsc: runsc()? }),
        Isolation::Microvm => {
            let parts = parts(config)?;
            let initrd = initrd::prepare(&parts.kernel, &config.agent, &config.directory);
            let initrd = initrd.map_err(|error| {
                EngineError::Internal(format!("the initial RAM disk of virtual machines: {error}"))
            })?;
            Ok(Kernel::Microvm(Machine {
                qemu: parts.qemu,
                virtiofsd: parts.virtiofsd,
                kernel: parts.kernel.image,
                initrd,
                agent: config.agent.clone(),
                kvm: config.kvm,
            }))
        }
    }
}

/// Where the root of a container that runs is, given by its main process.
pub(crate) fn root_of(class: Isolation, pid: i32) -> PathBuf {
    match class {
        Isolation::Namespace => Kernel::Host.root_of(pid),
        Isolation::Gvisor | Isolation::Microvm => Kernel::root_beside_another(pid),
    }
}

fn runsc() -> Result<PathBuf, EngineError> {
    find("runsc", std::env::var_os("PATH").as_deref()).ok_or_else(|| {
        EngineError::Invalid(
            "isolation class gvisor needs gVisor's runsc, which is not in the daemon's PATH: apt-get install runsc"
                .to_owned(),
        )
    })
}

/// Of a machine, as they are installed.
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

fn find(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .map(|directory| directory.join(program))
        .find(|file| file.is_absolute() && file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Isolation::{Gvisor, Microvm, Namespace};

    #[test]
    fn the_more_specific_wins_and_a_label_never_weakens_the_node() {
        let class = |asked, label, node| class(asked, label, node).unwrap();
        assert_eq!(class(None, None, Namespace), Namespace);
        assert_eq!(class(None, None, Gvisor), Gvisor);
        assert_eq!(class(None, Some("gvisor"), Namespace), Gvisor);
        assert_eq!(class(None, Some("namespace"), Gvisor), Gvisor);
        assert_eq!(class(None, Some("microvm"), Gvisor), Microvm);
        assert_eq!(class(Some(Namespace), Some("gvisor"), Gvisor), Namespace);
        assert_eq!(class(Some(Gvisor), Some("namespace"), Namespace), Gvisor);
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_the_mend() {
        let error = class(Some(Gvisor), Some("kata"), Namespace).unwrap_err();
        assert!(error.to_string().contains("kata"), "{error}");
        let here = tempfile::tempdir().unwrap();
        let mut config = MicrovmConfig {
            agent: here.path().join("agent"),
            kernel_root: here.path().to_owned(),
            directory: here.path().join("guest"),
            kvm: false,
        };
        assert_eq!(kernel(Namespace, &config).unwrap(), Kernel::Host);
        let refused = |config: &MicrovmConfig| check(Microvm, config).unwrap_err().to_string();
        let error = refused(&config);
        assert!(error.contains("wharf guest-kernel"), "{error}");
        for (file, content) in [
            ("boot/vmlinuz-6.1.0-9-cloud-amd64", ""),
            ("boot/vmlinuz-6.1.0-48-cloud-amd64", ""),
            ("boot/vmlinuz-6.12.0-generic", ""),
            ("lib/modules/6.1.0-9-cloud-amd64/modules.dep", ""),
            ("lib/modules/6.1.0-48-cloud-amd64/modules.dep", ""),
        ] {
            let file = here.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        let newest = GuestKernel::find(here.path()).unwrap();
        assert!(newest.image.ends_with("vmlinuz-6.1.0-48-cloud-amd64"));
        let error = refused(&config);
        assert!(error.contains("restart the node"), "{error}");
        std::fs::write(&config.agent, "").unwrap();
        check(Microvm, &config).unwrap();
        // Now its modules are missed, by name.
        let error = kernel(Microvm, &config).unwrap_err().to_string();
        assert!(error.contains("virtio_mmio"), "{error}");
        config.kvm = true;
        if !Path::new("/dev/kvm").exists() {
            assert!(refused(&config).contains("/dev/kvm"));
        }
        assert_eq!(find("runsc", Some(here.path().as_os_str())), None);
        assert_eq!(find("runsc", None), None);
        let file = here.path().join("runsc");
        std::fs::write(&file, "").unwrap();
        assert_eq!(find("runsc", Some(here.path().as_os_str())), Some(file));
    }
}
