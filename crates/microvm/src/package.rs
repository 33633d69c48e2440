//! Debian's kernel for virtual machines: its package, unpacked but not installed, as that would
//! change what this machine boots.
//!
//! Owns: a directory of unpacked packages, and which one is in use. Must not: need more than apt,
//! dpkg-deb and depmod.
//!
//! ```text
//! <directory>/<package>/   boot/, lib/modules/
//! <directory>/kernel       a link to the one in use
//! ```
//! (xtask compiles this file, too: it gets the kernel for the tests before anything else is built.)

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Depends on the current kernel package.
const META: &str = "linux-image-cloud-amd64";
/// The link's name.
pub const LINK: &str = "kernel";

/// A package in use.
#[derive(Debug, Clone)]
pub struct Package {
    /// `linux-image-6.1.0-48-cloud-amd64`.
    pub name: String,
    /// `6.1.0-48-cloud-amd64`.
    pub version: String,
    /// The link.
    pub root: PathBuf,
}

/// Gets the package that Debian's meta package names now, if it is not there, and takes it into
/// use.
///
/// # Errors
/// What apt, dpkg-deb or depmod said, or that they are not there.
pub fn fetch(directory: &Path) -> Result<Package> {
    let depends = run(Command::new("apt-cache").args(["depends", META]))?;
    let name = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| {
            format!("apt knows no {META}: run apt-get update (the package is Debian's; elsewhere, name a directory with a kernel in containers.guest_kernel)")
        })?
        .to_owned();
    let version = name.trim_start_matches("linux-image-").to_owned();
    fs::create_dir_all(directory)?;
    let unpacked = directory.join(&name);
    if !unpacked.exists() {
        // Beside it, so that what was broken off is no package.
        let temporary = directory.join(format!(".{name}.{}", std::process::id()));
        let got = unpack(&name, &version, &temporary, &unpacked);
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => got?,
        }
    }
    let root = directory.join(LINK);
    if fs::read_link(&root).ok().as_deref() != Some(Path::new(&name)) {
        let new = directory.join(format!(".{LINK}.{}", std::process::id()));
        symlink(&name, &new)?;
        fs::rename(&new, &root)?;
    }
    Ok(Package {
        name,
        version,
        root,
    })
}

fn unpack(name: &str, version: &str, temporary: &Path, unpacked: &Path) -> Result<()> {
    fs::create_dir(temporary)?;
    run(Command::new("apt-get")
        .args(["download", name])
        .current_dir(temporary))?;
    let archive = fs::read_dir(temporary)?
        .filter_map(Result::ok)
        .map(|it| it.path())
        .find(|it| it.extension().is_some_and(|it| it == "deb"))
        .context("apt-get download left no package")?;
    let tree = temporary.join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;
    run(Command::new("depmod").arg("-b").arg(&tree).arg(version))?;
    Ok(fs::rename(&tree, unpacked)?)
}

/// What the program printed.
fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("{program} failed: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
