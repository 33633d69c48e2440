//! The kernel that Debian ships for virtual machines: of `cargo xtask guest`, and of the tests of isolation class microvm.
//!
//! ```text
//! target/tools/guest/<package>/   the unpacked package: boot/, lib/modules/
//! target/tools/guest/kernel       a link to the one in use
//! ```

use crate::progress::{run, step};
use crate::{debian, setup};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

/// Depends on the current kernel package.
const META: &str = "linux-image-cloud-amd64";

pub(crate) struct Kernel {
    /// The unpacked package.
    pub(crate) dir: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) version: String,
}

impl Kernel {
    /// The kernel package that Debian's meta package names, unpacked. Installed it would change what this machine boots.
    pub(crate) fn get() -> Result<Kernel> {
        debian::install(&[debian::KMOD])?;
        let dir = setup::tools_dir().join("guest");
        fs::create_dir_all(&dir)?;
        let depends = run(Command::new("apt-cache").args(["depends", META]))?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .context("the kernel package is not known: run apt-get update")?
            .to_owned();
        let version = package.trim_start_matches("linux-image-").to_owned();
        let unpacked = dir.join(&package);
        if !unpacked.exists() {
            step(&format!("the kernel ({package})"), || {
                let temporary = tempfile::tempdir_in(&dir)?;
                run(Command::new("apt-get")
                    .args(["download", &package])
                    .current_dir(temporary.path()))?;
                let archive = fs::read_dir(temporary.path())?
                    .filter_map(Result::ok)
                    .map(|it| it.path())
                    .find(|it| it.extension().is_some_and(|it| it == "deb"))
                    .context("apt-get download left no package")?;
                let tree = temporary.path().join("tree");
                run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;
                run(Command::new("depmod").arg("-b").arg(&tree).arg(&version))?;
                fs::rename(&tree, &unpacked)?;
                Ok(())
            })?;
        }
        let link = dir.join("kernel");
        if fs::read_link(&link).ok().as_deref() != Some(package.as_ref()) {
            let new = dir.join(format!("kernel.{}", std::process::id()));
            symlink(&package, &new)?;
            fs::rename(&new, &link)?;
        }
        let image = unpacked.join(format!("boot/vmlinuz-{version}"));
        Ok(Kernel {
            dir: unpacked,
            image,
            version,
        })
    }
}
