//! `cargo xtask conformance`: suites that others wrote, run against a node of this checkout.
//!
//! A suite lies outside the repository and nothing of it is kept: what has to be changed is changed in a copy in a temporary folder.

mod workerd;

use anyhow::Result;

/// Which suite.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Suite {
    /// workerd's suite for container engines (src/workerd/server/tests/container-client)
    Workerd(workerd::Options),
}

/// Runs a suite.
///
/// # Errors
/// The suite or something that it needs is missing, or a test failed.
pub(crate) fn run(suite: &Suite) -> Result<()> {
    match suite {
        Suite::Workerd(options) => workerd::run(options),
    }
}
