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
use std::path::PathBuf;
use wharf_model::Isolation;
use wharf_sandbox::Kernel;

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

/// What the sandbox needs for a class.
///
/// # Errors
/// This machine, or this version, cannot give it: why, and the mend.
pub(crate) fn kernel(class: Isolation) -> Result<Kernel, EngineError> {
    match class {
        Isolation::Namespace => Ok(Kernel::Host),
        Isolation::Gvisor => match find("runsc", std::env::var_os("PATH").as_deref()) {
            Some(runsc) => Ok(Kernel::Gvisor { runsc }),
            None => Err(EngineError::Invalid(
                "isolation class gvisor needs gVisor's runsc, which is not in the daemon's PATH: apt-get install runsc"
                    .to_owned(),
            )),
        },
        Isolation::Microvm => Err(EngineError::Invalid(
            "isolation class microvm is not built in this version of Wharf: use gvisor or namespace"
                .to_owned(),
        )),
    }
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
        let error = kernel(Microvm).unwrap_err().to_string();
        assert!(error.contains("microvm is not built"), "{error}");
        assert_eq!(kernel(Namespace).unwrap(), Kernel::Host);
        let here = tempfile::tempdir().unwrap();
        assert_eq!(find("runsc", Some(here.path().as_os_str())), None);
        assert_eq!(find("runsc", None), None);
        let file = here.path().join("runsc");
        std::fs::write(&file, "").unwrap();
        assert_eq!(find("runsc", Some(here.path().as_os_str())), Some(file));
    }
}
