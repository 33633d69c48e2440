//! `cargo xtask escape`: hostile programs in containers (xtask/escape), and the same behind walls that were taken down.
//!
//! Owns: building it with the feature that can take walls down. Must not: leave that feature in what else is built: it is a build of its own.

use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::{run as run_command, step};
use crate::{debian, setup};

/// What the suite can be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The isolation class: namespace, gvisor, microvm
    #[arg(long, default_value = "namespace")]
    class: String,
    /// Only probes whose names contain this
    #[arg(long)]
    probe: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What cargo builds it with.
pub(crate) const PACKAGE: [&str; 4] = ["--package", "escape", "--features", "weak"];

/// Runs the suite. The error says that a probe saw something else than it must.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !debian::is_root() {
        bail!("the escape suite must run as root: it makes namespaces, mounts and cgroups");
    }
    debian::install(&[debian::BUSYBOX])?;
    step("building the escape suite", || {
        run_command(
            setup::cargo()
                .arg("build")
                .args(PACKAGE)
                .current_dir(setup::root()),
        )
    })?;
    let mut suite = Command::new(setup::root().join("target/debug/escape"));
    suite.args(["--class", &options.class]);
    if let Some(probe) = &options.probe {
        suite.args(["--probe", probe]);
    }
    if options.json {
        suite.arg("--json");
    }
    match suite.status()?.success() {
        true => Ok(()),
        false => bail!("the escape suite: not everything is as it must be"),
    }
}
