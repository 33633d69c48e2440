//! Installs what the tasks need into `target/tools`, pinned and with integrity checked. Quick when all is there.
//!
//! ```text
//! target/tools/workerd                 the pinned runtime
//! target/tools/wrangler-<version>/     node_modules with wrangler and the Node it needs
//! target/tools/wranglers/               wranglers of all ages, for the tests
//! target/tools/containers-<version>/   node_modules with @cloudflare/containers, for the tests
//! target/tools/*.stamp                 what is installed there; a thing without its stamp is installed again
//! target/tools/guest/                  a kernel for virtual machines (see `guest_kernel`)
//! target/tools/images/                 base images (see `base_image`)
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256, Sha512};

use crate::progress::{run, step};
use crate::{debian, guest_kernel};

/// The npm package that carries the workerd executable.
const WORKERD_PACKAGE: &str = "@cloudflare/workerd-linux-64@1.20261117.1";
/// SHA-512 of that package's archive, as npm writes it.
const WORKERD_INTEGRITY: &str = "sha512-gZLA8X11m/luZwn+YA3+mDu61vdxNJzpksP/QZqjydKTQ+VUCulsK5gtn9Bqst1p3KJu2kafQpJ1nDQv4B23jA==";
/// The published packages that the tests run: one that older apps pin, and a current one.
const CONTAINERS: [&str; 2] = ["0.0.13", "0.3.7"];
/// What `npm ci` always gets: packages' install scripts are not run, the lock file says what is installed.
const NPM_CI: &[&str] = &[
    "ci",
    "--ignore-scripts",
    "--engine-strict=false",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=error",
];

/// A wrangler in `target/tools`, with a Node that it runs on.
#[derive(Debug, Clone)]
pub(crate) struct Wrangler {
    /// Its version.
    pub(crate) version: &'static str,
    /// Where its executable is, and its Node's: to be first in `PATH`.
    pub(crate) bin: PathBuf,
}

/// What is installed.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    /// The workerd executable.
    pub(crate) workerd: PathBuf,
    /// The last wrangler for Node 20, on Node 20.
    pub(crate) wrangler_old: Wrangler,
    /// A current wrangler, on Node 22.
    pub(crate) wrangler: Wrangler,
}

impl Wrangler {
    /// `PATH` with this wrangler and its Node first.
    pub(crate) fn path(&self) -> OsString {
        let mut path = self.bin.clone().into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        path
    }

    /// The folder of all npm packages that came with it.
    pub(crate) fn modules(&self) -> &Path {
        self.bin.parent().unwrap_or(&self.bin)
    }

    /// The `wrangler` command.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.bin.join("wrangler"));
        command
            .env("PATH", self.path())
            .env("WRANGLER_SEND_METRICS", "false");
        command
    }
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The cargo that runs this program, without the variables that it gives to what it runs: ring's build script looks at them, and with others than
/// before everything above it is built again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// `target/tools`.
pub(crate) fn tools_dir() -> PathBuf {
    root().join("target/tools")
}

/// The verb: everything that any task needs.
///
/// # Errors
/// What is missing and how to mend it.
pub(crate) fn everything() -> anyhow::Result<()> {
    debian::install(&[
        debian::GCC,
        debian::LIBC_DEV,
        debian::BUSYBOX,
        debian::MMDEBSTRAP,
        debian::RUNSC,
        debian::QEMU,
    ])?;
    guest_kernel::get()?;
    let tools = tools()?;
    published_packages()?;
    wranglers()?;
    example("hello")?;
    example("python")?;
    eprintln!(
        "ready: {}, wrangler {} and {} in {}",
        tools.workerd.display(),
        tools.wrangler_old.version,
        tools.wrangler.version,
        tools_dir().display()
    );
    Ok(())
}

/// Installs workerd and both wranglers that most tests use.
///
/// # Errors
/// npm is missing, the registry does not answer, or an archive is not what the pin says.
pub(crate) fn tools() -> anyhow::Result<Tools> {
    let dir = tools_dir();
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let _lock = lock(&dir)?;
    Ok(Tools {
        workerd: workerd(&dir)?,
        wrangler_old: wrangler(&dir, "4.86.0")?,
        wrangler: wrangler(&dir, "4.164.0")?,
    })
}

/// Installs what an example imports (not its own wrangler) and returns its folder.
///
/// # Errors
/// As [`tools`].
pub(crate) fn example(name: &str) -> anyhow::Result<PathBuf> {
    let dir = root().join("examples").join(name);
    let lock_file = dir.join("package-lock.json");
    let wanted = digest_of(&lock_file)?;
    let modules = dir.join("node_modules");
    let stamp = modules.join(".wharf-setup");
    if is_stamped(&stamp, &wanted) {
        return Ok(dir);
    }
    if modules.join("wrangler").exists() {
        // Somebody ran `npm ci` here: what they installed is more, and theirs.
        return Ok(dir);
    }
    step(&format!("npm packages of examples/{name}"), || {
        run(npm()?.args(NPM_CI).arg("--omit=dev").current_dir(&dir))?;
        fs::write(&stamp, &wanted).with_context(|| stamp.display().to_string())
    })?;
    Ok(dir)
}

fn workerd(dir: &Path) -> anyhow::Result<PathBuf> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the pinned workerd is for x86-64; this machine is not");
    }
    let binary = dir.join("workerd");
    let stamp = dir.join("workerd.stamp");
    if binary.exists() && is_stamped(&stamp, WORKERD_INTEGRITY) {
        return Ok(binary);
    }
    step(&format!("workerd ({WORKERD_PACKAGE})"), || {
        let temporary = tempfile::tempdir_in(dir)?;
        run(npm()?
            .args([
                "pack",
                WORKERD_PACKAGE,
                "--loglevel=error",
                "--pack-destination",
            ])
            .arg(temporary.path()))?;
        let archive = fs::read_dir(temporary.path())?
            .filter_map(Result::ok)
            .map(|it| it.path())
            .find(|it| it.extension().is_some_and(|it| it == "tgz"))
            .context("npm pack left no archive")?;
        let bytes = fs::read(&archive)?;
        let found = format!("sha512-{}", BASE64.encode(Sha512::digest(&bytes)));
        ensure!(
            found == WORKERD_INTEGRITY,
            "the archive of {WORKERD_PACKAGE} is not the pinned one: it has {found}"
        );
        let unpacked = temporary.path().join("workerd");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let mut found = false;
        for entry in archive.entries()? {
            let mut entry = entry?;
            if *entry.path()? == *Path::new("package/bin/workerd") {
                entry.unpack(&unpacked)?;
                found = true;
            }
        }
        ensure!(found, "{WORKERD_PACKAGE} has no bin/workerd");
        fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))?;
        run(Command::new(&unpacked).arg("--version"))?;
        fs::rename(&unpacked, &binary)?;
        fs::write(&stamp, WORKERD_INTEGRITY)?;
        Ok(())
    })?;
    Ok(binary)
}

/// Both from the lock file in `xtask/tools/wrangler-<version>`, which carries every package's hash.
fn wrangler(dir: &Path, version: &'static str) -> anyhow::Result<Wrangler> {
    let wrangler = Wrangler {
        version,
        bin: dir.join(format!("wrangler-{version}/node_modules/.bin")),
    };
    let what = format!("wrangler {version} and its Node");
    packages(dir, &format!("wrangler-{version}"), &what, || {
        let answer = run(wrangler.command().arg("--version").current_dir(dir))?;
        ensure!(
            answer.contains(version),
            "wrangler --version says {:?} instead of {version}",
            answer.trim()
        );
        Ok(())
    })?;
    Ok(wrangler)
}

/// Installs the versions of @cloudflare/containers that the tests deploy.
///
/// # Errors
/// npm's.
pub(crate) fn published_packages() -> anyhow::Result<()> {
    for version in CONTAINERS {
        containers(&tools_dir(), version)?;
    }
    Ok(())
}

/// Installs the wranglers that the tests deploy with beside the two pinned ones. They run on those
/// ones' Nodes. Each would bring a workerd of its own, over 100 MB, which no deploy starts: all of
/// them get the pinned one in its place.
///
/// # Errors
/// npm's.
pub(crate) fn wranglers() -> anyhow::Result<()> {
    let dir = tools_dir();
    let workerd = tools()?.workerd;
    let _lock = lock(&dir)?;
    packages(&dir, "wranglers", "wranglers of all ages", || {
        let package = dir.join("wranglers/node_modules/@cloudflare/workerd-linux-64");
        fs::create_dir_all(package.join("bin"))?;
        fs::write(package.join("package.json"), "{}")?;
        std::os::unix::fs::symlink(&workerd, package.join("bin/workerd"))?;
        Ok(())
    })
}

fn containers(dir: &Path, version: &str) -> anyhow::Result<()> {
    let _lock = lock(dir)?;
    let what = format!("@cloudflare/containers {version}");
    packages(dir, &format!("containers-{version}"), &what, || Ok(()))
}

/// Installs what the lock file in `xtask/tools/<name>` says into `dir/<name>`, unless it is there.
fn packages(
    dir: &Path,
    name: &str,
    what: &str,
    check: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let source = root().join("xtask/tools").join(name);
    let target = dir.join(name);
    let stamp = dir.join(format!("{name}.stamp"));
    let wanted = digest_of(&source.join("package-lock.json"))?;
    if target.join("node_modules").exists() && is_stamped(&stamp, &wanted) {
        return Ok(());
    }
    step(what, || {
        // Made aside and renamed: npm's links inside are relative, so nothing notices.
        let temporary = tempfile::tempdir_in(dir)?;
        for file in ["package.json", "package-lock.json", ".npmrc"] {
            fs::copy(source.join(file), temporary.path().join(file))
                .with_context(|| format!("{} of {}", file, source.display()))?;
        }
        run(npm()?.args(NPM_CI).current_dir(temporary.path()))?;
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        fs::rename(temporary.path(), &target)?;
        check()?;
        fs::write(&stamp, &wanted)?;
        Ok(())
    })
}

fn npm() -> anyhow::Result<Command> {
    if debian::find_program("npm").is_none() {
        bail!(
            "npm is missing: install Node.js 20.3 or newer, with npm (Debian and Ubuntu: apt-get install nodejs npm)"
        );
    }
    Ok(Command::new("npm"))
}

/// One task at a time installs; another waits.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        eprintln!("another cargo xtask is installing; waiting for it");
        file.lock().with_context(|| path.display().to_string())?;
    }
    Ok(file)
}

fn is_stamped(stamp: &Path, wanted: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|found| found == wanted)
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn digest_of(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}
