//! Bytes carried both ways between two TCP connections.
//!
//! An end of stream on one side becomes a half-close of the other, so each way ends for itself. An error on either side, or the end
//! of the carrying task, resets both: the peers must be able to tell a cut from an end.
//! No buffer is kept while nothing flows: threads have one each, and what a peer does not take at once is copied.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bandwidth::{Bandwidth, Throttle};

const BUFFER: usize = 128 * 1024;

/// How long the open way may lie still after the other has ended. A peer that closed wholly looks the same as one that half-closed
/// until something is sent to it, so without a bound such a pair would stay for ever.
const HALF_OPEN: Duration = Duration::from_secs(15 * 60);

/// How long a connection that has ended in order is read until the peer ends it too.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// A connection that is reset when it is dropped, unless it came to its end.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: TcpStream,
    clean: bool,
}

impl Guarded {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            clean: false,
        }
    }

    /// Ends it in order: the peer gets all that was sent, and then an end. What it still sends is read for a moment and thrown away, since
    /// closing a connection with something unread in it would cut the peer off from what it has not read itself.
    pub(crate) async fn end(mut self) -> io::Result<()> {
        shut(&self.stream)?;
        let emptied = async {
            loop {
                self.stream.readable().await?;
                match SHARED.with_borrow_mut(|buffer| self.stream.try_read(buffer)) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        };
        let emptied = timeout(LINGER, emptied).await;
        self.clean = true;
        emptied.unwrap_or(Ok(()))
    }

    /// Sends small writes at once.
    pub(crate) fn set_nodelay(&self) -> io::Result<()> {
        self.stream.set_nodelay(true)
    }

    /// Sends all of it.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.clean {
            // It fails only on sockets that are gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// Resets a connection.
pub(crate) fn reset(stream: TcpStream) {
    drop(Guarded::new(stream));
}

/// Carries bytes until both ways have ended, no faster than the container may.
///
/// # Errors
/// The first error of either side; both connections are reset then.
pub(crate) async fn relay(
    mut outside: Guarded,
    mut inside: Guarded,
    bandwidth: &Bandwidth,
) -> io::Result<()> {
    {
        let moved = AtomicU64::new(0);
        let there = one_way(&outside.stream, &inside, &moved, bandwidth.down());
        let back = one_way(&inside.stream, &outside, &moved, bandwidth.up());
        tokio::pin!(there, back);
        tokio::select! {
            end = &mut there => { end?; last_way(back, &moved).await?; }
            end = &mut back => { end?; last_way(there, &moved).await?; }
        }
    }
    outside.clean = true;
    inside.clean = true;
    Ok(())
}

/// Waits for the way that is still open, as long as something moves.
async fn last_way(
    mut way: Pin<&mut impl Future<Output = io::Result<()>>>,
    moved: &AtomicU64,
) -> io::Result<()> {
    loop {
        let before = moved.load(Ordering::Relaxed);
        if let Ok(end) = timeout(HALF_OPEN, &mut way).await {
            return end;
        }
        if moved.load(Ordering::Relaxed) == before {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

async fn one_way(
    from: &TcpStream,
    to: &Guarded,
    moved: &AtomicU64,
    mut throttle: Throttle,
) -> io::Result<()> {
    loop {
        throttle.ready().await;
        from.readable().await?;
        match pump(from, &to.stream) {
            Ok(Pumped::End) => break,
            Ok(Pumped::Some { read, left }) => {
                to.write_all(&left).await?;
                moved.fetch_add(read as u64, Ordering::Relaxed);
                throttle.moved(read);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    shut(&to.stream)
}

/// Sends an end of stream.
fn shut(stream: &TcpStream) -> io::Result<()> {
    match rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
        // The peer is gone wholly; the other way learns it for itself.
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

enum Pumped {
    End,
    Some {
        read: usize,
        /// What the receiver did not take.
        left: Vec<u8>,
    },
}

/// One read, and one write of what was read.
fn pump(from: &TcpStream, to: &TcpStream) -> io::Result<Pumped> {
    SHARED.with_borrow_mut(|buffer| {
        let read = from.try_read(buffer)?;
        if read == 0 {
            return Ok(Pumped::End);
        }
        let written = match to.try_write(&buffer[..read]) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        Ok(Pumped::Some {
            read,
            left: buffer[written..read].to_vec(),
        })
    })
}
