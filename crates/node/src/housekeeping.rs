//! What is removed in the background: blobs, layers and upload sessions that nothing names any more, and snapshots that nobody uses.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wharf_engine::Owner;

use crate::Node;

/// From one round to the next.
const EVERY: Duration = Duration::from_secs(600);
/// Nothing younger is removed: a deploy stores content before it names it. Longer than an upload session lives (one hour).
const MIN_AGE: Duration = Duration::from_secs(2 * 3600);

/// Runs until aborted.
pub async fn run(node: Node) {
    loop {
        tokio::time::sleep(EVERY).await;
        let node = node.clone();
        let swept = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let min_age_ms = u64::try_from(MIN_AGE.as_millis())?;
            let bytes = node
                .images
                .collect_garbage(&node.engine.layers_in_use(), min_age_ms)?;
            node.store.blob_gc(MIN_AGE)?;
            let scripts = node.store.scripts()?;
            let mut owners: HashSet<String> = scripts
                .into_iter()
                .map(|script| Owner::Script(script.name).to_string())
                .collect();
            owners.insert(Owner::Operator.to_string());
            sweep_snapshots(&node, |owner| owners.contains(owner))?;
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

/// Removes snapshots whose time is over or whose owner is gone; not those that instances use.
pub(crate) fn sweep_snapshots(node: &Node, known: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let now_ms = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let in_use = node.engine.snapshots_in_use();
    let removed = node.snapshots.sweep(&in_use, known, now_ms)?;
    if removed > 0 {
        tracing::info!(removed, "snapshots removed");
    }
    Ok(())
}
