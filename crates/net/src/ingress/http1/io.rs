//! The client's side of a tunnel as hyper wants it: first what was read already, then the connection.
//!
//! hyper breaks an exchange off when the client ends its side. Here that is for the app to decide, so hyper hears of the end only
//! when the exchange is over ([`Signs`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustix::net::RecvFlags;
use tokio::net::TcpStream;

use super::body::Signs;

/// A connection of which the first bytes were read already.
#[derive(Debug)]
pub(super) struct Prefixed {
    prefix: BytesMut,
    stream: TokioIo<TcpStream>,
    signs: Arc<Signs>,
}

impl Prefixed {
    pub(super) fn new(prefix: BytesMut, stream: TcpStream, signs: Arc<Signs>) -> Self {
        Self {
            prefix,
            stream: TokioIo::new(stream),
            signs,
        }
    }

    /// The connection, and what of the first bytes nobody has taken.
    pub(super) fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream.into_inner(), self.prefix)
    }

    /// Whether the client has ended its side and everything before that has been read.
    fn has_ended(&self, context: &mut Context<'_>) -> io::Result<bool> {
        let stream = self.stream.inner();
        if stream.poll_read_ready(context)?.is_pending() {
            return Ok(false);
        }
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let ended = matches!(rustix::net::recv(stream, &mut [0u8], flags), Ok((_, 0)));
        if ended {
            self.signs.client_ended.store(true, Ordering::Relaxed);
        }
        Ok(ended)
    }

    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        let blocked = written.is_pending();
        self.signs.client_blocks.store(blocked, Ordering::Relaxed);
        written
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl Read for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            if self.signs.is_busy() && self.has_ended(context)? {
                return Poll::Pending;
            }
            return self.stream().poll_read(context, buffer);
        }
        let length = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl Write for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.as_mut().stream().poll_write(context, bytes);
        self.note(written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.as_mut().stream().poll_write_vectored(context, slices);
        self.note(written)
    }
}
