//! Waits between attempts to connect inside. The kernel tells nobody when a port begins to be
//! listened on, so one tries; and since a static server listens after a millisecond, the waits are
//! shorter than the runtime's timer can do (it counts in milliseconds).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// A timer with its descriptor opened at the first short wait.
#[derive(Debug, Default)]
pub struct Pause(Option<AsyncFd<OwnedFd>>);

impl Pause {
    /// Waits. Without a descriptor to be had the wait is rounded up to the runtime's.
    pub async fn wait(&mut self, duration: Duration) {
        if duration >= Duration::from_millis(1) || self.short(duration).await.is_err() {
            tokio::time::sleep(duration).await;
        }
    }

    async fn short(&mut self, duration: Duration) -> io::Result<()> {
        let timer = match &self.0 {
            Some(timer) => timer,
            None => {
                let timer = timerfd_create(
                    TimerfdClockId::Monotonic,
                    TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
                )?;
                // SAFETY: the AsyncFd owns the descriptor, which nothing else closes, so it stays
                // open and the same while registered.
                self.0.insert(unsafe { AsyncFd::register(timer)? })
            }
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            // Zero would disarm it.
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(duration.subsec_nanos().max(1)),
            },
        };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = timer.readable().await?;
            let mut count = [0u8; 8];
            match rustix::io::read(timer, &mut count) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
