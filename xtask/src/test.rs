//! `cargo xtask test`: everything that must hold, in the order in which a failure is cheapest to learn of.

use anyhow::{Context, Result, bail};

use crate::base_image::{Kind, base_image};
use crate::{debian, escape, guest_kernel, hello, setup};

/// Runs the checks and all tests.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    if !debian::is_root() {
        bail!("the tests must run as root: they make namespaces, mounts and cgroups");
    }
    debian::install(&[
        debian::BUSYBOX,
        debian::MMDEBSTRAP,
        debian::RUNSC,
        debian::QEMU,
    ])?;
    guest_kernel::get()?;
    hello::prepare()?;
    setup::example("python")?;
    setup::published_packages()?;
    setup::wranglers()?;
    for kind in [Kind::Busybox, Kind::Python, Kind::NumPy, Kind::Sudo] {
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
        let mut weak = vec!["clippy", "--all-targets"];
        weak.extend(escape::PACKAGE);
        weak.extend(["--", "-D", "warnings"]);
        cargo("lints of the escape suite", &weak)?;
    }
    // The daemon and the test programs that are not tests themselves must be there before tests start them.
    cargo("building", &["build", "--workspace", "--bins", "--tests"])?;
    let nextest = setup::cargo().args(["nextest", "--version"]).output();
    let runner = if nextest.is_ok_and(|o| o.status.success()) {
        vec!["nextest", "run"]
    } else {
        eprintln!("cargo-nextest is not installed; using cargo test");
        vec!["test"]
    };
    let filter = || filter.iter().map(String::as_str);
    let mut args = runner.clone();
    args.push("--workspace");
    args.extend(filter());
    cargo("tests", &args)?;
    if filter().next().is_some() {
        return Ok(());
    }
    // A build of its own: nothing else has the feature that takes walls down.
    let mut args = runner;
    args.extend(escape::PACKAGE);
    cargo("the escape suite", &args)
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
