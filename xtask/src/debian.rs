//! Debian packages: which are missing, and their installation. Never without naming them first.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::progress::{run, step};

/// A package that a task needs, known by a file of it: faster than asking dpkg, and true on other distributions too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    name: &'static str,
    /// A program in `PATH`, or a path.
    file: &'static str,
}

/// The C compiler, for `examples/hello/server`.
pub(crate) const GCC: Package = Package {
    name: "gcc",
    file: "gcc",
};
/// The static C library.
pub(crate) const LIBC_DEV: Package = Package {
    name: "libc6-dev",
    file: "/usr/lib/x86_64-linux-gnu/libc.a",
};
/// For the `busybox` base image.
pub(crate) const BUSYBOX: Package = Package {
    name: "busybox-static",
    file: "busybox",
};
/// Isolation class gvisor.
pub(crate) const RUNSC: Package = Package {
    name: "runsc",
    file: "runsc",
};
/// Makes the `debian` and `python` base images.
pub(crate) const MMDEBSTRAP: Package = Package {
    name: "mmdebstrap",
    file: "mmdebstrap",
};

/// Runs virtual machines: of isolation class microvm, and of `cargo xtask guest`. Brings virtiofsd on Debian 12.
pub(crate) const QEMU: Package = Package {
    name: "qemu-system-x86",
    file: "qemu-system-x86_64",
};
/// Packs the guest's file system.
pub(crate) const CPIO: Package = Package {
    name: "cpio",
    file: "cpio",
};
/// Finds kernel modules' dependencies.
pub(crate) const KMOD: Package = Package {
    name: "kmod",
    file: "modprobe",
};

/// To be measured against: dockerd, with the containerd that it needs.
pub(crate) const DOCKER: Package = Package {
    name: "docker.io",
    file: "dockerd",
};
/// To be measured against.
pub(crate) const PODMAN: Package = Package {
    name: "podman",
    file: "podman",
};
/// Docker's seccomp profile; podman needs it too.
pub(crate) const CONTAINERS_COMMON: Package = Package {
    name: "golang-github-containers-common",
    file: "/usr/share/containers/seccomp.json",
};
/// To be measured against.
pub(crate) const RUNC: Package = Package {
    name: "runc",
    file: "runc",
};
/// To be measured against.
pub(crate) const CRUN: Package = Package {
    name: "crun",
    file: "crun",
};

/// A program in `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // sudo and cron leave these out of PATH.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

impl Package {
    fn is_there(&self) -> bool {
        if self.file.starts_with('/') {
            Path::new(self.file).exists()
        } else {
            find_program(self.file).is_some()
        }
    }
}

/// Whether this process may install packages, mount, and so on.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0)
}

/// Whether none of these is missing.
pub(crate) fn are_there(packages: &[Package]) -> bool {
    packages.iter().all(Package::is_there)
}

/// Installs those packages that are missing.
///
/// # Errors
/// Without root or apt: which packages to install. When apt fails: its words.
pub(crate) fn install(packages: &[Package]) -> anyhow::Result<()> {
    let missing: Vec<_> = packages
        .iter()
        .filter(|it| !it.is_there())
        .map(|it| it.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "these Debian packages are missing, and there is no apt-get to install them: {names}\n\
             Install what they are called on this system."
        );
    }
    if !is_root() {
        bail!("these packages are missing; install them with:\n  sudo apt-get install {names}");
    }
    eprintln!("Debian packages that are missing and will be installed: {names}");
    step(&format!("apt-get install {names}"), || {
        let apt = |args: &[&str]| {
            let mut command = Command::new("apt-get");
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                .arg("-y")
                .args(args);
            run(&mut command)
        };
        let mut install = vec!["install", "--no-install-recommends"];
        install.extend(&missing);
        // Package lists may be absent or too old: refreshing them costs seconds, so only when it is needed.
        if apt(&install).is_err() {
            apt(&["update"]).context("the package lists can't be refreshed")?;
            apt(&install)?;
        }
        Ok(())
    })?;
    match packages.iter().find(|it| !it.is_there()) {
        Some(package) => bail!(
            "the package {} is installed, but {} is not there",
            package.name,
            package.file
        ),
        None => Ok(()),
    }
}
