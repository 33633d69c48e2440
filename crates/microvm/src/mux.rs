//! Streams over one connection (yamux).
//!
//! Owns: the task that drives the connection. Must not: know what is in the streams.

use futures_util::future::poll_fn;
use std::collections::VecDeque;
use std::io;
use std::task::Poll;
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
    /// A stream to the other side.
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

/// Drives the connection in a task of its own, until it is gone or nobody takes streams any more. Returns what opens streams, and what the other side
/// opens.
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
                        // Nobody takes them as fast as they come: the stream is refused by being dropped.
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
