//! Cron triggers of all scripts: tells the runner what the store says, and runs what is due through the supervisor.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use wharf_cron::{Cron, Triggers};

use crate::Node;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs due schedules until aborted.
pub async fn run(node: Node) {
    let (list, receiver) = watch::channel(Vec::new());
    let changes = async {
        loop {
            match stored(&node) {
                Ok(crons) => {
                    list.send_replace(crons);
                }
                Err(e) => tracing::error!("cron triggers can't be read: {e:#}"),
            }
            node.schedules.notified().await;
        }
    };
    tokio::select! {
        () = wharf_cron::run(receiver, Arc::new(Handlers(node.clone()))) => {}
        () = changes => {}
    }
}

fn stored(node: &Node) -> anyhow::Result<Vec<Cron>> {
    let mut crons = Vec::new();
    for script in node.store.scripts()? {
        if script.deployed_version.is_none() {
            continue;
        }
        for cron in &script.schedules {
            let last_run_ms = node.store.cron_last_run(&script.name, cron)?;
            crons.push(Cron {
                script: script.name.clone(),
                cron: cron.clone(),
                last_run_ms,
            });
        }
    }
    Ok(crons)
}

struct Handlers(Node);

impl Triggers for Handlers {
    fn now_ms(&self) -> i64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }

    fn record<'a>(
        &'a self,
        script: &'a str,
        cron: &'a str,
        due_ms: i64,
    ) -> Boxed<'a, Result<(), String>> {
        let (store, script, cron) = (self.0.store.clone(), script.to_owned(), cron.to_owned());
        Box::pin(async move {
            tokio::task::spawn_blocking(move || store.set_cron_last_run(&script, &cron, due_ms))
                .await
                .map_err(|e| e.to_string())?
                .map_err(|e| e.to_string())
        })
    }

    fn fire<'a>(&'a self, script: &'a str, cron: &'a str, due_ms: i64) -> Boxed<'a, ()> {
        Box::pin(async move {
            match self.0.supervisor.scheduled(script, cron, due_ms).await {
                Ok(outcome) => {
                    tracing::info!(script, cron, outcome = outcome.outcome, "cron trigger ran")
                }
                Err(e) => tracing::error!(script, cron, "cron trigger: {e}"),
            }
        })
    }
}
