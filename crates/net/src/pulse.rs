//! Keeps the runtime awake while somebody waits.
//!
//! A connection that is held is woken by the runtime's timers and by its threads waking each other.
//! If one of those wake-ups got lost, everything would stand still until the next event comes from
//! outside, and on a quiet node that can be the end of the hold. So a thread, which depends on none
//! of that, gives the runtime something to do every few milliseconds while anybody is held.
//!
//! Owns: that thread. Must not: know who waits, and for what.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The time between two beats. Most starts are over before the first.
const BEAT: Duration = Duration::from_millis(10);

type Kick = Box<dyn Fn() + Send>;

/// See the module's text. Its thread ends when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pulse")
    }
}

#[derive(Default)]
struct State {
    held: usize,
    has_thread: bool,
    closed: bool,
}

/// Somebody waits as long as this lives.
#[derive(Debug)]
pub(crate) struct Held(Arc<Shared>);

impl Pulse {
    /// Somebody waits, in a task of the present runtime.
    pub(crate) fn hold(&self) -> Held {
        let runtime = tokio::runtime::Handle::current();
        self.hold_with(move || {
            Box::new(move || {
                runtime.spawn(std::future::ready(()));
            })
        })
    }

    fn hold_with(&self, kick: impl FnOnce() -> Kick) -> Held {
        let mut state = self.0.state();
        state.held += 1;
        if !state.has_thread {
            state.has_thread = true;
            let (shared, kick) = (self.0.clone(), kick());
            let started = std::thread::Builder::new()
                .name("wharf-net-pulse".to_owned())
                .stack_size(128 * 1024)
                .spawn(move || shared.beat(&kick));
            if let Err(error) = started {
                // The next one who waits tries again.
                state.has_thread = false;
                tracing::debug!(%error, "no thread for the pulse");
            }
        } else if state.held == 1 {
            self.0.changed.notify_all();
        }
        drop(state);
        Held(self.0.clone())
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state().held -= 1;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self, kick: &Kick) {
        let mut state = self.state();
        while !state.closed {
            if state.held == 0 {
                let waited = self.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            std::thread::sleep(BEAT);
            state = self.state();
            if state.held > 0 {
                drop(state);
                kick();
                state = self.state();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn it_beats_while_somebody_waits_and_then_rests() {
        let (sender, beats) = mpsc::channel();
        let pulse = Pulse::default();
        let kick = |sender: &mpsc::Sender<()>| {
            let sender = sender.clone();
            Box::new(move || {
                let _ = sender.send(());
            }) as Kick
        };
        let (one, other) = (
            pulse.hold_with(|| kick(&sender)),
            pulse.hold_with(|| kick(&sender)),
        );
        drop(one);
        for _ in 0..5 {
            beats.recv_timeout(LONG).unwrap();
        }
        drop(other);
        // One may have been on its way.
        let _ = beats.recv_timeout(BEAT * 2);
        while beats.try_recv().is_ok() {}
        assert!(beats.recv_timeout(BEAT * 10).is_err());
        let _again = pulse.hold_with(|| kick(&sender));
        beats.recv_timeout(LONG).unwrap();
        drop((pulse, sender));
        // The thread ends, and its sender with it.
        while beats.recv_timeout(LONG).is_ok() {}
        assert!(matches!(
            beats.try_recv(),
            Err(mpsc::TryRecvError::Disconnected)
        ));
    }

    /// A runtime whose only thread is in nobody's hands but the pulse's.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_it_gives_a_runtime_to_do_is_done() {
        let pulse = Pulse::default();
        let held = pulse.hold();
        tokio::time::sleep(BEAT * 3).await;
        drop(held);
    }
}
