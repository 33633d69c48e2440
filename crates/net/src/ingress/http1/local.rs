//! Wakes that stay in the task.
//!
//! The two connections of a tunnel wake each other all the time, through hyper's channels. To the runtime each such wake would be one more round
//! of scheduling, often on another thread; here it is one more turn of a loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// After so many turns others get theirs.
const TURNS: usize = 32;

/// A waker for what is polled within one task.
#[derive(Debug, Default)]
struct Local {
    task: AtomicWaker,
    /// The task is being polled now.
    polling: AtomicBool,
    again: AtomicBool,
}

impl Wake for Local {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

/// A future of a poll function that is called again at once when it was woken meanwhile.
pub(super) async fn poll_fn<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let local = Arc::new(Local::default());
    let waker = Waker::from(local.clone());
    std::future::poll_fn(move |context| {
        local.task.register(context.waker());
        local.polling.store(true, Ordering::SeqCst);
        for _ in 0..TURNS {
            local.again.store(false, Ordering::SeqCst);
            if let Poll::Ready(result) = poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(result);
            }
            if !local.again.load(Ordering::SeqCst) {
                break;
            }
        }
        // Whoever wakes from here on wakes the task; whoever has done so since the last turn is seen here.
        local.polling.store(false, Ordering::SeqCst);
        if local.again.load(Ordering::SeqCst) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_within_is_another_turn_and_one_from_outside_wakes_the_task() {
        let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
        let other = std::thread::spawn(move || {
            let waker = receiver.recv().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            waker.wake();
        });
        let mut turns = 0;
        poll_fn(|context| {
            turns += 1;
            match turns {
                1 => context.waker().wake_by_ref(),
                2 => sender.send(context.waker().clone()).unwrap(),
                _ => return Poll::Ready(()),
            }
            Poll::Pending
        })
        .await;
        assert_eq!(turns, 3);
        other.join().unwrap();
    }

    #[tokio::test]
    async fn whoever_always_wakes_lets_others_run() {
        let mut turns = 0;
        let busy = poll_fn(|context| {
            turns += 1;
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        tokio::select! {
            biased;
            () = busy => {}
            () = tokio::task::yield_now() => {}
        }
        assert!((TURNS..=3 * TURNS).contains(&turns), "{turns}");
    }
}
