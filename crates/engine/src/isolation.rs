//! Isolation classes: which one an instance gets, and what this machine needs to give it.
//!
//! | said by | weight |
//! |---|---|
//! | the application's setting, or the operator's `--runtime` | decides |
//! | the image's label `wharf.isolation` | if nothing decides, and never weaker than the node's |
//! | the node's `containers.isolation` | if nothing else is said |
//!
//! Owns: these rules, and the dispatch over the classes: what one has of its own is in its module.
//! Must not: start anything.

mod gvisor;
mod microvm;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use wharf_model::Isolation;
use wharf_sandbox::{IsolationClass, IsolationSpec};

use crate::merge::ImageDefaults;
use crate::{EngineError, blocking};

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
    /// Root directory below which the guest's kernel is
    /// ([`wharf_microvm::initrd::GuestKernel::find`]).
    pub kernel_root: PathBuf,
    /// Where the guest's initial RAM disk is kept.
    pub directory: PathBuf,
    /// Whether /dev/kvm runs the machines; else QEMU emulates them.
    pub kvm: bool,
}

/// Whether this machine can give a class.
///
/// # Errors
/// It cannot: why, and what helps.
pub(crate) fn check(class: Isolation, config: &MicrovmConfig) -> Result<(), EngineError> {
    match class {
        Isolation::Namespace => Ok(()),
        Isolation::Gvisor => gvisor::check(),
        Isolation::Microvm => microvm::check(config),
    }
}

/// What the sandbox needs for a class.
///
/// # Errors
/// As [`check`].
pub(crate) async fn spec(
    class: Isolation,
    config: &MicrovmConfig,
) -> Result<IsolationSpec, EngineError> {
    match class {
        Isolation::Namespace => Ok(IsolationSpec::Namespace),
        Isolation::Gvisor => blocking(gvisor::spec).await?,
        Isolation::Microvm => {
            let config = config.clone();
            blocking(move || microvm::spec(&config)).await?
        }
    }
}

/// The sandbox's name for a class.
pub(crate) fn sandbox_class(class: Isolation) -> IsolationClass {
    match class {
        Isolation::Namespace => IsolationClass::Namespace,
        Isolation::Gvisor => IsolationClass::Gvisor,
        Isolation::Microvm => IsolationClass::Microvm,
    }
}

/// Whether a class has a read-only root file system and directories in memory.
pub(crate) fn has_surroundings(class: Isolation) -> bool {
    match class {
        Isolation::Namespace => true,
        Isolation::Gvisor => false,
        Isolation::Microvm => false,
    }
}

/// How long a container takes to answer after it is thawed.
pub(crate) fn wakes_within(class: Isolation) -> Duration {
    match class {
        Isolation::Namespace => Duration::ZERO,
        Isolation::Gvisor => gvisor::WAKES_WITHIN,
        Isolation::Microvm => Duration::ZERO,
    }
}

fn find(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .map(|directory| directory.join(program))
        .find(|file| file.is_absolute() && file.is_file())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use Isolation::{Gvisor, Microvm, Namespace};
    use wharf_microvm::initrd::GuestKernel;

    use super::*;

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

    #[tokio::test]
    async fn a_class_is_the_same_one_in_the_sandbox() {
        let config = MicrovmConfig {
            agent: PathBuf::new(),
            kernel_root: PathBuf::new(),
            directory: PathBuf::new(),
            kvm: false,
        };
        // The others need programs that the machine may not have.
        let spec = spec(Namespace, &config).await.unwrap();
        assert_eq!(spec.class(), sandbox_class(Namespace));
        assert!(sandbox_class(Namespace).is_on_host_kernel());
        assert!(!sandbox_class(Gvisor).is_on_host_kernel());
        assert!(!sandbox_class(Microvm).is_on_host_kernel());
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
        let error = microvm::spec(&config).unwrap_err().to_string();
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
