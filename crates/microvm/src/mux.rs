//! Streams over one connection (yamux).
//!
//! Owns: the task that drives the connection. Must not: know what is in the streams.

use std::collections::VecDeque;
use std::io;
use std::task::Poll;

use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

/// A stream. Dropped, it is closed for both.
pub(crate) type Stream = Compat<yamux::Stream>;

/// Each connection of the container is a stream, and so is each of its processes.
const MOST: usize = 8192;
/// Bytes that may be under way in all streams together.
const WINDOW: usize = 4 << 30;

/// Opens streams.
#[derive(Debug, Clone)]
pub(crate) struct Opener(mpsc::Sender<oneshot::Sender<Stream>>);

impl Opener {
    /// A stream to the other side, which learns of it with the first byte.
    ///
    /// # Errors
    /// The connection is gone, or has too many streams.
    pub(crate) async fn open(&self) -> io::Result<Stream> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let (reply, stream) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| gone())?;
        stream.await.map_err(|_| gone())
    }
}

/// Which side this is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Outside,
    Inside,
}

/// Drives the connection in a task of its own, until it is gone or nobody takes streams any more.
/// Returns what opens streams, and what the other side opens.
pub(crate) fn connect(
    connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    side: Side,
) -> (Opener, mpsc::Receiver<Stream>) {
    let mut config = Config::default();
    config.set_max_connection_receive_window(Some(WINDOW));
    config.set_max_num_streams(MOST);
    let mode = match side {
        Side::Outside => Mode::Client,
        Side::Inside => Mode::Server,
    };
    let mut connection = Connection::new(connection.compat(), config, mode);
    let (wishes, mut wished) = mpsc::channel::<oneshot::Sender<Stream>>(64);
    let (arrive, arrived) = mpsc::channel(256);
    let driver = async move {
        let mut waiting: VecDeque<oneshot::Sender<Stream>> = VecDeque::new();
        let ended = poll_fn(|cx| {
            loop {
                // Always asked: this is what moves all streams.
                match connection.poll_next_inbound(cx) {
                    Poll::Ready(Some(Ok(stream))) => {
                        // Nobody takes them as fast as they come: the stream is refused by being
                        // dropped.
                        let _ = arrive.try_send(stream.compat());
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(error)),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => {}
                }
                if let Poll::Ready(Some(wish)) = wished.poll_recv(cx) {
                    waiting.push_back(wish);
                    continue;
                }
                if waiting.is_empty() {
                    return Poll::Pending;
                }
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(wish) = waiting.pop_front() {
                            let _ = wish.send(stream.compat()); // Who gave up needs none.
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        if let Some(error) = ended {
            eprintln!("wharf: the connection with the virtual machine: {error}");
        }
    };
    tokio::spawn(driver);
    (Opener(wishes), arrived)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_sides_open_streams_and_one_that_is_not_read_holds_up_no_other() {
        let (outside, inside) = tokio::io::duplex(16 << 10);
        let (out, mut from_inside) = connect(outside, Side::Outside);
        let (inn, mut from_outside) = connect(inside, Side::Inside);
        // Nobody reads this one; more than its window fits into it in no case.
        let mut stuck = inn.open().await.unwrap();
        let stuck = tokio::spawn(async move { stuck.write_all(&vec![0; 64 << 20]).await });
        let unread = from_inside.recv().await.unwrap();
        let echo = tokio::spawn(async move {
            while let Some(mut stream) = from_outside.recv().await {
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).await.unwrap();
                    stream.write_all(&all).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            }
        });
        let mut asked = tokio::task::JoinSet::new();
        for n in 1..=200u32 {
            let out = out.clone();
            asked.spawn(async move {
                let sent = vec![n as u8; 100 * n as usize];
                let mut stream = out.open().await.unwrap();
                stream.write_all(&sent).await.unwrap();
                // The other side answers at the end.
                stream.shutdown().await.unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, sent);
            });
        }
        asked.join_all().await;
        assert!(!stuck.is_finished());
        // Dropped, it is over for who writes.
        drop(unread);
        stuck.await.unwrap().unwrap_err();
        // Without the connection there are no streams.
        drop((out, from_inside));
        echo.abort();
    }
}
