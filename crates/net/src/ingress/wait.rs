//! What a held connection does until it is dialled or refused.
//!
//! It waits for news: the process has started or ended, or its port was seen to listen. News may
//! get lost: whoever gives it may have died, a timer may have been missed. So a held connection
//! also looks for itself, every few milliseconds ([`hold::look_again`]), and lost news costs no
//! more than that.
//!
//! Owns: that waiting. Must not: know of sockets and namespaces ([`Behind`] does).

use std::future::Future;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hold;
use crate::Target;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum DialError {
    /// Nobody listens, and the time to wait for it is over; the process has been running for this long, or has not been started.
    NotListening(Option<Duration>),
    /// The process has ended; this is how.
    Ended(Arc<str>),
    /// The kernel refused.
    Io(io::Error),
}

/// The program that a held connection waits for.
pub(super) trait Behind {
    /// A connection to it.
    type Stream;

    /// The state of its process. [`Behind::news`] tells of changes after this call.
    fn target(&mut self) -> Target;

    /// Whether its port is worth a try now.
    fn look(&self) -> bool;

    /// Tries to connect. ConnectionRefused: nobody listens.
    fn dial(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Ends when the process has started or ended, or the port was seen to listen.
    fn news(&mut self) -> impl Future<Output = ()> + Send;
}

/// How long the process has been running.
pub(super) fn age(target: &Target) -> Option<Duration> {
    match target {
        Target::Running(since) => Some(since.elapsed()),
        Target::Pending | Target::Ended(_) => None,
    }
}

/// Dials `port`, and waits within `bound` until somebody listens there.
pub(super) async fn connect<B: Behind + Send>(
    behind: &mut B,
    port: u16,
    bound: Duration,
    look_again: fn(Duration) -> Duration,
) -> Result<B::Stream, DialError> {
    let began = Instant::now();
    let mut target = behind.target();
    let mut deadline = began + hold::held_for(port, bound, age(&target));
    let mut worth_a_try = true;
    loop {
        if let Target::Ended(how) = target {
            return Err(DialError::Ended(how));
        }
        if worth_a_try {
            match behind.dial().await {
                Ok(stream) => return Ok(stream),
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                Err(e) => return Err(DialError::Io(e)),
            }
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(DialError::NotListening(age(&target)));
        }
        let next = deadline.min(now + look_again(now - began));
        worth_a_try = tokio::select! {
            () = behind.news() => true,
            () = tokio::time::sleep_until(next) => next == deadline || behind.look(),
        };
        let latest = behind.target();
        if latest != target {
            target = latest;
            deadline = Instant::now() + hold::held_for(port, bound, age(&target));
            worth_a_try = true;
        }
    }
}

#[cfg(test)]
#[path = "wait_tests.rs"]
mod tests;
