//! The tunnel's connection to the app, and when it may be used again.
//!
//! A server closes a connection that has been idle for some time, and may do so at the very moment when a request comes. Then the request is
//! lost, and one that is not idempotent must not be sent again, since nobody knows how far the server came (RFC 9112, 9.3.1 and 9.5). So such
//! requests use a connection only for a moment after its last answer, which is much less than servers wait; else they get a new one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use tokio::net::TcpStream;

use super::RequestBody;
use crate::bandwidth::{Bandwidth, Limited};

/// For how long after an answer a connection takes requests that cannot be repeated.
const REUSE: Duration = Duration::from_millis(100);
/// Largest head of a message, bytes; as the gateway allows.
pub(super) const MAX_HEAD: usize = 256 * 1024;
/// hyper allows 100 otherwise.
pub(super) const MAX_HEADERS: usize = wharf_http_head::fields_within(MAX_HEAD);

type Driver = hyper::client::conn::http1::Connection<AppIo, RequestBody>;

/// For how long connections to this app are used again; less if it was seen to close idle ones early.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reuse(Duration);

impl Default for Reuse {
    fn default() -> Self {
        Self(REUSE)
    }
}

impl Reuse {
    /// The app has closed a connection that was idle for this long.
    pub(super) fn closed_after(&mut self, idle: Duration) {
        self.0 = self.0.min(idle / 2);
    }
}

/// A connection to the app. It has to be driven ([`App::poll`]).
pub(super) struct App {
    sender: SendRequest<RequestBody>,
    driver: Driver,
    /// The same connection, to be looked at past hyper.
    socket: OwnedFd,
    blocked: Arc<AtomicBool>,
    /// Since when it has nothing to do; `None` during an exchange.
    idle_since: Option<Instant>,
    served: bool,
    /// Its end has been sent.
    ended: bool,
    /// HTTP is over on it.
    finished: bool,
}

impl App {
    pub(super) async fn new(stream: TcpStream, bandwidth: &Bandwidth) -> io::Result<Self> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        let blocked = Arc::new(AtomicBool::new(false));
        let io = AppIo {
            stream: TokioIo::new(Limited::new(stream, bandwidth)),
            blocked: blocked.clone(),
        };
        let (sender, driver) = Builder::new()
            .preserve_header_case(true)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            sender,
            driver,
            socket,
            blocked,
            idle_since: Some(Instant::now()),
            served: false,
            ended: false,
            finished: false,
        })
    }

    /// Does what there is to do; the result, which comes once, means that the connection has ended (or, after a 101, that HTTP has).
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        if self.finished {
            return Poll::Pending;
        }
        let result = self.driver.poll_without_shutdown(context);
        self.finished = result.is_ready();
        if result.is_pending() && self.idle_since.is_none() && self.sender.is_ready() {
            self.idle_since = Some(Instant::now());
            self.served = true;
        }
        result
    }

    /// Whether HTTP is over on it.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// How long it has been idle; `None` during an exchange.
    pub(super) fn idle(&self) -> Option<Duration> {
        self.idle_since.map(|since| since.elapsed())
    }

    /// Whether the app may have grown tired of it.
    pub(super) fn is_used(&self) -> bool {
        self.served || self.idle().is_some_and(|idle| idle > REUSE)
    }

    /// Whether it takes a request. One that is not `repeatable` must not meet its end.
    pub(super) fn takes(&self, repeatable: bool, reuse: Reuse) -> bool {
        let Some(idle) = self.idle() else {
            return false;
        };
        let is_open = !self.finished && !self.ended;
        is_open && self.sender.is_ready() && (repeatable || (idle < reuse.0 && self.is_silent()))
    }

    /// Whether nothing has come, not even an end.
    fn is_silent(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(&self.socket, &mut [0u8], flags) == Err(Errno::AGAIN)
    }

    /// The way to send a request; from now on it is busy.
    pub(super) fn sender(&mut self) -> &mut SendRequest<RequestBody> {
        self.idle_since = None;
        &mut self.sender
    }

    /// The client will send no more: so the app is told, once everything has been sent.
    pub(super) fn end_requests(&mut self) {
        if !self.ended && !self.blocked.load(Ordering::Relaxed) {
            self.ended = true;
            // It fails only on connections that are gone.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
    }

    /// The connection and what was read of it behind the last message.
    pub(super) fn into_parts(self) -> (TcpStream, bytes::Bytes) {
        let parts = self.driver.into_parts();
        (parts.io.stream.into_inner().into_inner(), parts.read_buf)
    }
}

/// Knows whether it could not write.
pub(super) struct AppIo {
    stream: TokioIo<Limited<TcpStream>>,
    blocked: Arc<AtomicBool>,
}

impl AppIo {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl Read for AppIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for AppIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(written)
    }
}
