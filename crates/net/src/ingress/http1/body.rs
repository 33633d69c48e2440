//! Bodies on their way through, and the signs by which the two sides of a tunnel know how far an exchange is.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// What the client's side of a tunnel and the exchange on it tell each other.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// The client was seen to end its side during an exchange.
    pub(super) client_ended: AtomicBool,
    /// The client takes no more for now.
    pub(super) client_blocks: AtomicBool,
    /// An exchange is going on.
    exchange: AtomicBool,
    /// The request has been handed to the app's connection; nothing more is read of it.
    request_taken: AtomicBool,
    /// And that before its end.
    request_cut: AtomicBool,
}

impl Signs {
    pub(super) fn in_exchange(&self) -> bool {
        self.exchange.load(Ordering::Relaxed)
    }

    /// An exchange is going on, or its end is still on the way to the client.
    pub(super) fn is_busy(&self) -> bool {
        self.in_exchange() || self.client_blocks.load(Ordering::Relaxed)
    }

    /// All answers have been sent, and no further request can come: the client has ended its side, or there is a rest of the last request in the way
    /// that nobody wants.
    pub(super) fn is_over(&self) -> bool {
        !self.is_busy()
            && (self.client_ended.load(Ordering::Relaxed)
                || self.request_cut.load(Ordering::Relaxed))
    }

    pub(super) fn client_has_ended_after_its_request(&self) -> bool {
        self.client_ended.load(Ordering::Relaxed)
            && self.in_exchange()
            && self.request_taken.load(Ordering::Relaxed)
    }
}

/// An exchange is going on as long as this lives.
#[derive(Debug)]
pub(super) struct Busy(Arc<Signs>);

impl Busy {
    pub(super) fn new(signs: Arc<Signs>) -> Self {
        signs.exchange.store(true, Ordering::Relaxed);
        signs.request_taken.store(false, Ordering::Relaxed);
        signs.request_cut.store(false, Ordering::Relaxed);
        Self(signs)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.exchange.store(false, Ordering::Relaxed);
    }
}

/// A request's body.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None`: the request has none, or all of it has been taken.
    body: Option<Incoming>,
    signs: Arc<Signs>,
}

impl RequestBody {
    pub(super) fn new(body: Option<Incoming>, signs: Arc<Signs>) -> Self {
        Self { body, signs }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        };
        match frame {
            Poll::Ready(Some(frame)) => Poll::Ready(Some(frame.map_err(Into::into))),
            Poll::Ready(None) => {
                self.body = None;
                Poll::Ready(None)
            }
            Poll::Pending if self.signs.client_ended.load(Ordering::Relaxed) => {
                Poll::Ready(Some(Err("the client ended in the middle of a body".into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// hyper drops a body when it has sent all of it, or cannot.
impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.is_end_stream() {
            self.signs.request_cut.store(true, Ordering::Relaxed);
        }
        self.signs.request_taken.store(true, Ordering::Relaxed);
    }
}

/// An answer's body: the app's, or a text of the ingress.
#[derive(Debug)]
pub(super) struct AnswerBody {
    pub(super) body: Result<Incoming, Full<Bytes>>,
    /// Dropped with it.
    pub(super) _busy: Busy,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Ok(body) => Pin::new(body).poll_frame(context),
            Err(text) => Pin::new(text)
                .poll_frame(context)
                .map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Ok(body) => body.is_end_stream(),
            Err(text) => text.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Ok(body) => body.size_hint(),
            Err(text) => text.size_hint(),
        }
    }
}
