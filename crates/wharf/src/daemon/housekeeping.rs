//! What is removed in the background: blobs, layers and upload sessions that nothing names any more.

use super::Node;
use std::time::Duration;

/// From one round to the next.
const EVERY: Duration = Duration::from_secs(600);
/// Nothing younger is removed: a deploy stores content before it names it. Longer than an upload session lives (one hour).
const MIN_AGE: Duration = Duration::from_secs(2 * 3600);

/// Runs until aborted.
pub(super) async fn run(node: Node) {
    loop {
        tokio::time::sleep(EVERY).await;
        let node = node.clone();
        let swept = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let min_age_ms = u64::try_from(MIN_AGE.as_millis())?;
            let bytes = node
                .images
                .collect_garbage(&node.engine.layers_in_use(), min_age_ms)?;
            node.store.blob_gc(MIN_AGE)?;
            tracing::debug!(bytes, "unused images removed");
            Ok(())
        });
        match swept.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!("unused content could not be removed: {e:#}"),
            Err(e) => tracing::error!("unused content could not be removed: {e}"),
        }
    }
}
