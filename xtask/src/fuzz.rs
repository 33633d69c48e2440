//! `cargo xtask fuzz <target>`: random input until it finds a mistake or the time is over.
//!
//! The targets are in fuzz/, a workspace of its own for cargo-fuzz. That wants a nightly compiler for the sanitizers' flags; the pinned stable
//! one takes them with RUSTC_BOOTSTRAP=1. No sanitizer is used: apart from one crate there is no unsafe code, and panics and hangs are what counts.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup;

const CARGO_FUZZ: &str = "0.13.2";

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A target in fuzz/fuzz_targets, without `.rs`
    target: String,
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs it; an input that broke something is kept in fuzz/artifacts.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = setup::root();
    let target = root.join(format!("fuzz/fuzz_targets/{}.rs", options.target));
    if !target.exists() {
        bail!("there is no fuzz target {}", target.display());
    }
    let status = Command::new(cargo_fuzz()?)
        .args(["run", "--sanitizer", "none", &options.target, "--"])
        .arg(format!("-max_total_time={}", options.seconds))
        // What reads from sockets is slow in a debugger's sense only.
        .args(["-timeout=30", "-max_len=16384"])
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(&root)
        .status()
        .context("cargo-fuzz")?;
    if !status.success() {
        bail!(
            "the fuzz target {} found something (see above)",
            options.target
        );
    }
    Ok(())
}

/// cargo-fuzz, installed into target/tools if it is not there.
fn cargo_fuzz() -> Result<PathBuf> {
    let dir = setup::tools_dir().join(format!("cargo-fuzz-{CARGO_FUZZ}"));
    let program = dir.join("bin/cargo-fuzz");
    if !program.exists() {
        eprintln!("installing cargo-fuzz {CARGO_FUZZ} into {}", dir.display());
        let status = Command::new(env!("CARGO"))
            .args([
                "install",
                "--locked",
                "--version",
                CARGO_FUZZ,
                "cargo-fuzz",
                "--root",
            ])
            .arg(&dir)
            .status()
            .context("cargo install")?;
        if !status.success() {
            bail!("cargo-fuzz could not be installed");
        }
    }
    Ok(program)
}
