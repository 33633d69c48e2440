//! Whether a peer has received what it was sent.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::sys;

const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Waits until the peer of a Unix stream socket has received all that was sent, or can never do so;
/// but not longer than `limit`.
///
/// # Errors
/// It is no socket.
pub async fn received(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
    let mut left = limit;
    while sys::unreceived(socket)? > 0 && !left.is_zero() {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        left = left.saturating_sub(BETWEEN_LOOKS);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn it_waits_for_the_peer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(b"head").unwrap();
        let long = Duration::from_secs(30);
        let waiting = received(ours.as_fd(), long);
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
        assert!(early.is_err(), "not yet");
        theirs.read_exact(&mut [0; 4]).unwrap();
        waiting.await.unwrap();
        (&ours).write_all(b"more").unwrap();
        received(ours.as_fd(), Duration::from_millis(5))
            .await
            .unwrap();
        drop(theirs);
        received(ours.as_fd(), long).await.unwrap();
    }
}
