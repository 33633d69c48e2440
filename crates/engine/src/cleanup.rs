//! Work that is left when an instance is gone, and that nobody waits for.
//!
//! Owns: when it is done: together, after a while, so that of starts that follow one upon the other
//! few meet it. Must not: know what it is.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the first of them waits. Where an end is followed by a start, that is over by then.
const DELAY: Duration = Duration::from_millis(20);

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Cleanup(Mutex<Vec<Work>>);

impl fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Later").field(&self.waiting().len()).finish()
    }
}

impl Cleanup {
    /// Does this, which may block, later. At the end of the daemon's runtime it is dropped instead.
    pub(crate) fn add(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut waiting = self.waiting();
        waiting.push(Box::new(work));
        if waiting.len() == 1 {
            let cleanup = self.clone();
            runtime.spawn(async move {
                tokio::time::sleep(DELAY).await;
                tokio::task::spawn_blocking(move || cleanup.finish());
            });
        }
    }

    /// Does all of it now. Blocks.
    pub(crate) fn finish(&self) {
        let work = std::mem::take(&mut *self.waiting());
        work.into_iter().for_each(|work| work());
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn it_is_done_later_in_order_and_at_once_when_that_is_asked_for() {
        let (cleanup, (said, heard)) = (Arc::new(Cleanup::default()), mpsc::channel());
        let say = |what: u32| {
            let said = said.clone();
            cleanup.add(move || said.send(what).expect("somebody listens"));
        };
        say(1);
        say(2);
        assert!(heard.try_recv().is_err(), "not while it is added");
        tokio::time::sleep(DELAY * 10).await;
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [1, 2]);
        say(3);
        cleanup.finish();
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [3]);
        say(4);
        tokio::time::sleep(DELAY * 10).await;
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [4]);
    }
}
