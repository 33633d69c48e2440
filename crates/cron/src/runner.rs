//! The task that waits for due times and calls back.
//!
//! Owns: waiting. Must not: decide what is due; the timetable does.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::timetable::{Due, Key, Timetable};

/// The clock may be set while the task sleeps, so it looks at least so often.
const LOOK_MS: u64 = 10_000;

/// A trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    /// Whose handler runs.
    pub script: String,
    /// The expression as the user wrote it.
    pub cron: String,
    /// The due time that was recorded last, Unix milliseconds. Only looked at when the trigger is new in the list.
    pub last_run_ms: Option<i64>,
}

type Fut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the task needs from the daemon.
pub trait Triggers: Send + Sync + 'static {
    /// Unix time in milliseconds.
    fn now_ms(&self) -> i64;
    /// Persists that the due time was run; called before [`Triggers::fire`], so that a crash between them loses a run rather than
    /// repeating one. When it fails, the run does not take place.
    fn record<'a>(
        &'a self,
        script: &'a str,
        cron: &'a str,
        due_ms: i64,
    ) -> Fut<'a, Result<(), String>>;
    /// Runs the handler.
    fn fire<'a>(&'a self, script: &'a str, cron: &'a str, due_ms: i64) -> Fut<'a, ()>;
}

/// Calls back for every due time of every trigger in the list, one at a time per trigger. Ends, waiting for what runs, when the
/// list's sender is dropped; dropping the future ends what runs.
pub async fn run(mut list: watch::Receiver<Vec<Cron>>, triggers: Arc<dyn Triggers>) {
    let mut table = Timetable::default();
    let mut running: JoinSet<Key> = JoinSet::new();
    let mut keys = std::collections::HashMap::new();
    let mut update = true;
    loop {
        let now = triggers.now_ms();
        if update {
            let crons = list.borrow_and_update().clone();
            for ((script, _), error) in table.update(&crons, now) {
                tracing::error!(script, %error, "a cron trigger is ignored");
            }
            update = false;
        }
        for due in table.due(now) {
            match due {
                Due::Run(key, due_ms) => {
                    let task = running.spawn(once(triggers.clone(), key.clone(), due_ms));
                    keys.insert(task.id(), key);
                }
                Due::Busy((script, cron), due_ms) => {
                    tracing::warn!(script, cron, due_ms, "skipped: the run before is not over");
                }
                Due::Missed((script, cron), due_ms) => {
                    tracing::warn!(script, cron, due_ms, "missed: noticed too late");
                }
            }
        }
        let wait = table.next_ms().map_or(LOOK_MS, |next| {
            u64::try_from(next - now).unwrap_or(0).min(LOOK_MS)
        });
        tokio::select! {
            changed = list.changed() => match changed {
                Ok(()) => update = true,
                Err(_) => break,
            },
            Some(ended) = running.join_next_with_id() => {
                let id = match ended {
                    Ok((id, _)) => id,
                    Err(error) => {
                        tracing::error!(%error, "a cron run failed");
                        error.id()
                    }
                };
                if let Some(key) = keys.remove(&id) {
                    table.finished(&key);
                }
            }
            () = tokio::time::sleep(Duration::from_millis(wait)) => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn once(triggers: Arc<dyn Triggers>, key: Key, due_ms: i64) -> Key {
    let (script, cron) = &key;
    match triggers.record(script, cron, due_ms).await {
        Ok(()) => triggers.fire(script, cron, due_ms).await,
        Err(error) => {
            tracing::error!(
                script,
                cron,
                due_ms,
                error,
                "not run: it could not be recorded"
            );
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    /// A quarter past some minute.
    const START_MS: i64 = 1_767_225_600_000 + 15_000;
    const MINUTE: u64 = 60_000;

    struct Book {
        from: Instant,
        events: Mutex<Vec<String>>,
        run_ms: u64,
        record_fails: bool,
    }

    impl Book {
        fn new(run_ms: u64, record_fails: bool) -> Arc<Self> {
            Arc::new(Self {
                from: Instant::now(),
                events: Mutex::default(),
                run_ms,
                record_fails,
            })
        }
        fn note(&self, text: String) {
            self.events.lock().unwrap().push(text);
        }
        fn taken(&self) -> Vec<String> {
            std::mem::take(&mut self.events.lock().unwrap())
        }
    }

    impl Triggers for Book {
        fn now_ms(&self) -> i64 {
            START_MS + i64::try_from(self.from.elapsed().as_millis()).unwrap()
        }
        fn record<'a>(
            &'a self,
            script: &'a str,
            _: &'a str,
            due_ms: i64,
        ) -> Fut<'a, Result<(), String>> {
            Box::pin(async move {
                self.note(format!("record {script} {}", (due_ms - START_MS) / 1000));
                if self.record_fails {
                    return Err("disk full".into());
                }
                Ok(())
            })
        }
        fn fire<'a>(&'a self, script: &'a str, _: &'a str, due_ms: i64) -> Fut<'a, ()> {
            Box::pin(async move {
                assert!(self.now_ms() >= due_ms, "too early");
                self.note(format!("fire {script} {}", (due_ms - START_MS) / 1000));
                tokio::time::sleep(Duration::from_millis(self.run_ms)).await;
            })
        }
    }

    fn cron(script: &str, expression: &str) -> Cron {
        Cron {
            script: script.into(),
            cron: expression.into(),
            last_run_ms: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn triggers_fire_on_time_after_being_recorded_and_the_list_may_change() {
        let book = Book::new(0, false);
        let (list, watch) = watch::channel(vec![cron("a", "* * * * *")]);
        let task = tokio::spawn(run(watch, book.clone()));
        tokio::time::sleep(Duration::from_millis(MINUTE)).await;
        assert_eq!(book.taken(), ["record a 45", "fire a 45"]);
        list.send_replace(vec![cron("a", "* * * * *"), cron("b", "*/2 * * * *")]);
        tokio::time::sleep(Duration::from_millis(MINUTE)).await;
        let mut events = book.taken();
        events.sort();
        assert_eq!(
            events,
            ["fire a 105", "fire b 105", "record a 105", "record b 105"]
        );
        list.send_replace(vec![]);
        tokio::time::sleep(Duration::from_millis(5 * MINUTE)).await;
        assert_eq!(book.taken(), Vec::<String>::new());
        drop(list);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_run_is_not_overtaken_by_the_next() {
        let book = Book::new(150_000, false);
        let (list, watch) = watch::channel(vec![cron("a", "* * * * *")]);
        let task = tokio::spawn(run(watch, book.clone()));
        tokio::time::sleep(Duration::from_millis(4 * MINUTE)).await;
        assert_eq!(
            book.taken(),
            ["record a 45", "fire a 45", "record a 225", "fire a 225"]
        );
        drop(list);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_recorded_is_not_run() {
        let book = Book::new(0, true);
        let (list, watch) = watch::channel(vec![cron("a", "* * * * *")]);
        let task = tokio::spawn(run(watch, book.clone()));
        tokio::time::sleep(Duration::from_millis(2 * MINUTE)).await;
        assert_eq!(book.taken(), ["record a 45", "record a 105"]);
        drop(list);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_was_run_before_a_restart_is_not_run_again() {
        let book = Book::new(0, false);
        let mut again = cron("a", "* * * * *");
        again.last_run_ms = Some(START_MS + 45_000);
        let (list, watch) = watch::channel(vec![again]);
        let task = tokio::spawn(run(watch, book.clone()));
        tokio::time::sleep(Duration::from_millis(2 * MINUTE)).await;
        assert_eq!(book.taken(), ["record a 105", "fire a 105"]);
        drop(list);
        task.await.unwrap();
    }
}
