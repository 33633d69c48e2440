//! The hostile program, built to run in an image with nothing else in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Builds it, statically linked, and returns where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = root.join("target/escape-probes");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--package",
            "escape-probes",
            "--target",
            &target,
            "--target-dir",
        ])
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .current_dir(&root)
        .status()
        .context("cargo")?;
    anyhow::ensure!(status.success(), "building the hostile program: {status}");
    Ok(directory.join(target).join("debug/probe"))
}
