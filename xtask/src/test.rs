//! `cargo xtask test`: everything that must hold, in the order in which a failure is cheapest to learn of.

use crate::base_image::{Kind, base_image};
use crate::{debian, hello, setup};
use anyhow::{Context, Result, bail};

/// Runs the checks and all tests.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    if !debian::is_root() {
        bail!("the tests must run as root: they make namespaces, mounts and cgroups");
    }
    debian::install(&[debian::BUSYBOX, debian::MMDEBSTRAP, debian::RUNSC])?;
    hello::prepare()?;
    setup::example("python")?;
    setup::published_packages()?;
    for kind in [Kind::Busybox, Kind::Python] {
        base_image(kind)?;
    }
    if filter.is_empty() {
        cargo("formatting", &["fmt", "--all", "--check"])?;
        cargo(
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        )?;
    }
    // The daemon and the test programs that are not tests themselves must be there before tests start them.
    cargo("building", &["build", "--workspace", "--bins", "--tests"])?;
    let nextest = setup::cargo().args(["nextest", "--version"]).output();
    let mut args = if nextest.is_ok_and(|o| o.status.success()) {
        vec!["nextest", "run", "--workspace"]
    } else {
        eprintln!("cargo-nextest is not installed; using cargo test");
        vec!["test", "--workspace"]
    };
    args.extend(filter.iter().map(String::as_str));
    cargo("tests", &args)
}

fn cargo(what: &str, args: &[&str]) -> Result<()> {
    eprintln!("  ... {what}");
    let status = setup::cargo()
        .args(args)
        .current_dir(setup::root())
        .status()
        .context("cargo")?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}
