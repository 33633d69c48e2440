//! Runs every check and test.

/// The verb.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("being written")
}
