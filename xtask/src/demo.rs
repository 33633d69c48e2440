//! Builds, starts a node, deploys examples/hello, asks it.

/// The verb.
pub(crate) fn run(once: bool) -> anyhow::Result<()> {
    let _ = once;
    anyhow::bail!("being written")
}
