//! The order to stop: SIGINT or SIGTERM, once for everybody.

use tokio::sync::watch;

/// Set once, when the process is asked to stop.
pub(super) struct Stopping(watch::Receiver<bool>);

impl Stopping {
    pub(super) fn new() -> Self {
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let (mut int, mut term) = match (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
            ) {
                (Ok(int), Ok(term)) => (int, term),
                (Err(e), _) | (_, Err(e)) => {
                    tracing::error!("signals can't be received: {e}");
                    return;
                }
            };
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            // The receiver lives as long as the daemon serves.
            let _ = sender.send(true);
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            eprintln!(
                "wharf: stopping already; send SIGKILL to give up (the next start cleans up)"
            );
        });
        Stopping(receiver)
    }

    pub(super) fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.0.clone();
        async move {
            // An error means that the signal task is gone: then only SIGKILL ends the daemon, as it would have anyway.
            if receiver.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
