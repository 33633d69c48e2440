//! Measures.

/// The verb.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("being written")
}
