//! How many bytes a second a container may send, and receive.
//!
//! Owns: the count, for all connections of one network together, and the waits that keep to it. Must not: carry bytes. DNS is not counted, nor what
//! stays inside.
//!
//! What has been moved is waited for afterwards: a mover says how much it was, and moves nothing before its wait is over. The kernel's buffers fill
//! meanwhile, and hold up the sender. Up to a tenth of a second's worth goes without a wait.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What may go at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// The limits of one network. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bandwidth {
    /// What the container sends.
    up: Arc<Bucket>,
    /// What it receives.
    down: Arc<Bucket>,
}

impl Bandwidth {
    /// Bytes a second each way; `None`: no limit.
    pub(crate) fn set(&self, rate: Option<u64>) {
        for bucket in [&self.up, &self.down] {
            bucket.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
        }
    }

    pub(crate) fn up(&self) -> Throttle {
        Throttle::new(&self.up)
    }

    pub(crate) fn down(&self) -> Throttle {
        Throttle::new(&self.down)
    }
}

#[derive(Debug, Default)]
struct Bucket {
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    /// When all that was moved so far would have been moved at that rate.
    due: Mutex<Option<Instant>>,
}

impl Bucket {
    /// Counts bytes; how long to wait before the next.
    fn charge(&self, bytes: usize, now: Instant) -> Option<Duration> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || bytes == 0 {
            return None;
        }
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let next = due.map_or(earliest, |due| due.max(earliest))
            + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *due = Some(next);
        next.checked_duration_since(now)
            .filter(|wait| !wait.is_zero())
    }
}

/// One mover's way to keep to a limit.
#[derive(Debug)]
pub(crate) struct Throttle {
    bucket: Arc<Bucket>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    fn new(bucket: &Arc<Bucket>) -> Self {
        Self {
            bucket: bucket.clone(),
            wait: None,
        }
    }

    /// Whether something may be moved.
    pub(crate) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(context));
            self.wait = None;
        }
        Poll::Ready(())
    }

    /// Waits until something may be moved.
    pub(crate) async fn ready(&mut self) {
        if self.wait.is_some() {
            poll_fn(|context| self.poll_ready(context)).await;
        }
    }

    /// So much has been moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        if let Some(wait) = self.bucket.charge(bytes, Instant::now()) {
            self.wait = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }
}

/// A connection to the container: what is read from it, it sends.
#[derive(Debug)]
pub(crate) struct Limited<S> {
    stream: S,
    up: Throttle,
    down: Throttle,
}

impl<S> Limited<S> {
    pub(crate) fn new(stream: S, bandwidth: &Bandwidth) -> Self {
        Self {
            stream,
            up: bandwidth.up(),
            down: bandwidth.down(),
        }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.up.poll_ready(context));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.up.moved(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.down.poll_ready(context));
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.down.moved(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.down.poll_ready(context));
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.down.moved(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_limit_nothing_waits() {
        let bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.up.charge(usize::MAX, Instant::now()), None);
        bandwidth.set(Some(1000));
        assert!(bandwidth.up.charge(1000, Instant::now()).is_some());
        bandwidth.set(None);
        assert_eq!(bandwidth.up.charge(1000, Instant::now()), None);
    }

    proptest! {
        /// Movers that wait as they are told never get more than the rate and the burst, and never much less while they always have something.
        #[test]
        fn the_rate_is_kept(rate in 1_000u64..100_000_000, sizes in prop::collection::vec(1usize..200_000, 1..60)) {
            let bucket = Bucket::default();
            bucket.rate.store(rate, Ordering::Relaxed);
            let start = Instant::now() + Duration::from_secs(3600);
            let mut now = start;
            let mut moved = 0;
            for size in sizes {
                let allowed = rate as f64 * ((now - start).as_secs_f64() + BURST.as_secs_f64());
                prop_assert!(moved as f64 <= allowed + 1.0, "{moved} of {allowed}");
                moved += size;
                if let Some(wait) = bucket.charge(size, now) {
                    now += wait;
                    let least = rate as f64 * ((now - start).as_secs_f64() + BURST.as_secs_f64());
                    prop_assert!(moved as f64 >= least * 0.999 - 1.0, "{moved} of {least}");
                }
            }
        }
    }
}
