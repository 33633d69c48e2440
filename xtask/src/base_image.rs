//! Base images made on this machine: a root filesystem as a tar, from the packages that this machine's apt is set up to use.
//!
//! Kept in `target/tools/images` under a hash of all that goes in (recipe, apt sources, certificates), so that it is made once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::progress::{run, step};
use crate::{debian, setup};

/// A change here makes all images anew.
const RECIPE: u32 = 2;
/// What this machine trusts; builds inside the image shall trust the same.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const LOCAL_CERTIFICATES: &str = "/usr/local/share/ca-certificates";
/// Settings of the machine's apt that package installation in the image needs too.
const APT_SETTINGS: &[&str] = &[
    "Acquire::Check-Date ",
    "Acquire::Check-Valid-Until ",
    "Acquire::http::Proxy ",
    "Acquire::https::Proxy ",
];

/// Which base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// busybox and nothing else, about 2 MB
    Busybox,
    /// Debian (or this machine's Ubuntu) with the smallest set of packages
    Debian,
    /// the same with Python 3 and pip
    Python,
    /// the same with Node.js
    Node,
    /// the same with Python 3, NumPy, FastAPI and uvicorn
    #[value(name = "numpy")]
    NumPy,
    /// the same as debian with sudo and ping, for tests
    Sudo,
}

/// Makes a base image, or finds the one made before, and returns its tar.
///
/// # Errors
/// Missing packages that can't be installed; what mmdebstrap says.
pub(crate) fn base_image(kind: Kind) -> anyhow::Result<PathBuf> {
    match kind {
        Kind::Busybox => busybox(),
        Kind::Debian => debian_image("debian", &[]),
        Kind::Python => debian_image("python", &["python3", "python3-pip"]),
        Kind::Node => debian_image("node", &["nodejs"]),
        Kind::Sudo => debian_image("sudo", &["sudo", "iputils-ping"]),
        Kind::NumPy => debian_image(
            "numpy",
            &[
                "python3",
                "python3-numpy",
                "python3-fastapi",
                "python3-uvicorn",
            ],
        ),
    }
}

/// Runs `make` unless the image of this name and recipe is there. A half-made one is never left under its name.
fn cached(
    name: &str,
    recipe: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let key = hex::encode(Sha256::digest(format!("{RECIPE}\n{recipe}")));
    let dir = setup::tools_dir().join("images");
    let path = dir.join(format!("{name}-{}.tar", &key[..12]));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    step(&format!("base image {name}"), || {
        let temporary = tempfile::tempdir_in(&dir)?;
        let made = temporary.path().join("rootfs.tar");
        make(&made)?;
        fs::rename(&made, &path)?;
        Ok(())
    })?;
    Ok(path)
}

fn busybox() -> anyhow::Result<PathBuf> {
    debian::install(&[debian::BUSYBOX])?;
    let program = debian::find_program("busybox").context("busybox is not in PATH")?;
    cached("busybox", &setup::digest_of(&program)?, |out| {
        let applets = run(Command::new(&program).arg("--list-full"))?;
        write_busybox(&program, &applets, out)
    })
}

/// The same input gives the same bytes: no times, no order of the host's file system.
fn write_busybox(program: &Path, applets: &str, out: &Path) -> anyhow::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::new(File::create(out)?));
    for (dir, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sbin", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
        ("var/tmp", 0o1777),
    ] {
        let mut header = header(tar::EntryType::Directory, mode);
        archive.append_data(&mut header, dir, std::io::empty())?;
    }
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    append_file(&mut archive, "bin/busybox", 0o755, &bytes)?;
    append_file(
        &mut archive,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    append_file(
        &mut archive,
        "etc/group",
        0o644,
        b"root:x:0:\nnogroup:x:65534:\n",
    )?;
    let links: BTreeSet<String> = applets
        .lines()
        .map(|it| it.trim().trim_start_matches('/'))
        .filter(|it| !it.is_empty() && !it.ends_with("/busybox"))
        .map(|it| match it {
            // Applets without a place of their own.
            "linuxrc" => "sbin/init".to_owned(),
            name if name.contains('/') => name.to_owned(),
            name => format!("bin/{name}"),
        })
        .collect();
    for link in &links {
        let mut header = header(tar::EntryType::Symlink, 0o777);
        archive.append_link(&mut header, link, "/bin/busybox")?;
    }
    let file = archive.into_inner()?.into_inner()?;
    file.sync_all()?;
    Ok(())
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn append_file<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> anyhow::Result<()> {
    let mut header = header(tar::EntryType::Regular, mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes)?;
    Ok(())
}

/// Debian or Ubuntu as this machine runs it, from the sources that this machine uses.
fn debian_image(name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let release = release(&fs::read_to_string("/etc/os-release").context("/etc/os-release")?)?;
    let sources = sources(&release, Path::new("/etc/apt"))?;
    let sources_text = fs::read_to_string(&sources).context(sources.display().to_string())?;
    let packages = [&["ca-certificates"], packages].concat().join(",");
    let settings = run(Command::new("apt-config").arg("dump"))?;
    let settings: Vec<_> = settings
        .lines()
        .filter(|line| APT_SETTINGS.iter().any(|it| line.starts_with(it)))
        .map(str::to_owned)
        .collect();
    let certificates = certificates()?;

    let mut recipe = format!("{release} {packages}\n{sources_text}\n{settings:?}\n");
    for file in &certificates {
        recipe += &setup::digest_of(file)?;
    }
    cached(name, &recipe, |out| {
        debian::install(&[debian::MMDEBSTRAP])?;
        if !debian::is_root() {
            bail!("making a Debian image needs root: run this with sudo");
        }
        let mut command = Command::new("mmdebstrap");
        command
            .env("SOURCE_DATE_EPOCH", "0")
            // Devices are the sandbox's matter.
            .args([
                "--quiet",
                "--mode=root",
                "--variant=minbase",
                "--skip=output/dev",
            ])
            .arg(format!("--include={packages}"));
        for what in ["man", "doc", "locale", "info"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{what}/*"));
        }
        for setting in &settings {
            command.arg(format!("--aptopt={setting}"));
        }
        for hook in hooks(&certificates) {
            command.arg(format!("--customize-hook={hook}"));
        }
        run(command.arg(&release).arg(out).arg(&sources))?;
        Ok(())
    })
}

/// What is done in the new root, as mmdebstrap's hooks (mmdebstrap(1), HOOKS). The bundle comes last: making it anew would lose what this
/// machine's has beyond the packages'.
fn hooks(certificates: &[PathBuf]) -> Vec<String> {
    let mut hooks = vec![
        // An image is one app's: pip may install where the app looks.
        "rm -f \"$1\"/usr/lib/python3*/EXTERNALLY-MANAGED".to_owned(),
        "if [ -e \"$1/usr/bin/python3\" ] && [ ! -e \"$1/usr/bin/python\" ]; then ln -s python3 \"$1/usr/bin/python\"; fi"
            .to_owned(),
    ];
    for file in certificates {
        let path = file.display();
        hooks.push(format!("upload \"{path}\" \"{path}\""));
    }
    hooks
}

/// The machine's own certificate authorities, and the bundle of all that it trusts.
fn certificates() -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if let Ok(entries) = fs::read_dir(LOCAL_CERTIFICATES) {
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "crt") && path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    if Path::new(CERTIFICATES).exists() {
        files.push(PathBuf::from(CERTIFICATES));
    }
    Ok(files)
}

fn release(os_release: &str) -> anyhow::Result<String> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|value| value.trim_matches('"').to_owned())
        .filter(|value| !value.is_empty())
        .context("this machine is not Debian or Ubuntu: /etc/os-release has no VERSION_CODENAME. Base images are made from its packages")
}

/// The file that says where this machine gets its distribution's packages.
fn sources(release: &str, apt: &Path) -> anyhow::Result<PathBuf> {
    [
        "sources.list.d/debian.sources",
        "sources.list.d/ubuntu.sources",
        "sources.list",
    ]
    .iter()
    .map(|name| apt.join(name))
    .find(|path| {
        fs::read_to_string(path).is_ok_and(|text| {
            text.lines()
                .filter(|line| !line.trim_start().starts_with('#'))
                .any(|line| line.split_whitespace().any(|word| word == release))
        })
    })
    .with_context(|| {
        format!(
            "no apt sources for \"{release}\" in {0}/sources.list or {0}/sources.list.d/{{debian,ubuntu}}.sources",
            apt.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_machines_own() {
        assert_eq!(
            release("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap(),
            "bookworm"
        );
        assert_eq!(release("VERSION_CODENAME=\"noble\"\n").unwrap(), "noble");
        assert!(release("ID=arch\n").is_err());
    }

    #[test]
    fn sources_are_the_file_that_names_the_release() {
        let apt = tempfile::tempdir().unwrap();
        fs::create_dir(apt.path().join("sources.list.d")).unwrap();
        assert!(sources("bookworm", apt.path()).is_err());
        let list = apt.path().join("sources.list");
        fs::write(&list, "# deb x bookworm main\ndeb [a=b] y bookworm main\n").unwrap();
        assert_eq!(sources("bookworm", apt.path()).unwrap(), list);
        assert!(sources("trixie", apt.path()).is_err());
        let deb822 = apt.path().join("sources.list.d/debian.sources");
        fs::write(&deb822, "Types: deb\nSuites: bookworm bookworm-updates\n").unwrap();
        assert_eq!(sources("bookworm", apt.path()).unwrap(), deb822);
    }

    #[test]
    fn a_busybox_image_is_the_same_each_time_and_has_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("busybox");
        fs::write(&program, "not really").unwrap();
        let make = |name: &str, applets: &str| {
            let out = dir.path().join(name);
            write_busybox(&program, applets, &out).unwrap();
            fs::read(out).unwrap()
        };
        let first = make("1.tar", "bin/sh\nusr/bin/wget\nlinuxrc\nbin/busybox\n");
        assert_eq!(first, make("2.tar", "usr/bin/wget\nbin/sh\nlinuxrc\n"));
        let mut archive = tar::Archive::new(first.as_slice());
        let links: Vec<_> = archive
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .filter(|it| it.header().entry_type().is_symlink())
            .map(|it| it.path().unwrap().display().to_string())
            .collect();
        assert_eq!(links, ["bin/sh", "sbin/init", "usr/bin/wget"]);
    }
}
