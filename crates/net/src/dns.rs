//! The DNS answerer of a network: every query that leaves the container by port 53 arrives here, whomever it was meant for.
//!
//! Messages go to the upstream servers as they are, and back. Without internet every name is said not to exist, at once.
//! Names that the Worker has mapped exist in any case (contract: workerd, 1.6): where nobody else knows them, they get an address that stands
//! for names alone, so that a connection is made whose first bytes tell the name again ([`crate::egress`]).
//! By UDP and by TCP, so that a client may follow up on a truncated answer.

mod packet;
mod upstream;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wharf_sandbox::netns;

use self::packet::{Code, Query, is_failure, is_no_error, is_no_such_name};
pub(crate) use self::upstream::Upstreams;
use crate::Shared;
use crate::egress::{FAKE_V4, FAKE_V6, Hosts};

/// How many queries of one network may be under way; more are dropped, and clients ask again.
const IN_FLIGHT: usize = 256;
/// Where everybody's DNS servers listen (RFC 1035, section 4.2).
pub(crate) const PORT: u16 = 53;
/// How long a client's TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);

/// Reads messages of any kind, and sees that what comes out of them holds together.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some((&length, rest)) = bytes.split_first() else {
        return;
    };
    let (packet, other) = rest.split_at(usize::from(length).min(rest.len()));
    let Some(query) = Query::parse(packet) else {
        return;
    };
    let found = query.answer_with(&[FAKE_V4.into(), FAKE_V6.into()]);
    for answer in [&query.answer(Code::NoSuchName), &found] {
        assert_eq!(answer[..2], packet[..2]);
        let takes_it = query.is_answered_by(answer);
        assert_eq!(takes_it, query.forwardable().is_some());
    }
    assert_eq!(query.name().is_some(), query.forwardable().is_some());
    assert!(found.len() <= packet.len() + 40, "no use for amplifying");
    Mapped::of(&Hosts::new(&["*.example".to_owned()]), &query);
    query.is_answered_by(other);
    is_failure(other);
    is_no_error(other);
    is_no_such_name(other);
}

#[derive(Clone, Copy)]
enum By {
    Udp,
    Tcp,
}

/// Answers queries that come by UDP.
pub(crate) async fn serve_udp(shared: Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Errors of single packets (a client that is gone already) arrive here too.
                tracing::debug!(%error, "receiving a DNS query");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let packet = buffer[..length].to_vec();
        let (socket, shared2) = (socket.clone(), shared.clone());
        shared.spawn(async move {
            let _slot = slot;
            if let Some(answer) = answer(&shared2, &packet, By::Udp).await
                && let Err(error) = send(&socket, &answer, client).await
            {
                tracing::debug!(%error, "sending a DNS answer");
            }
        });
    }
}

/// Answers a datagram.
async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) -> io::Result<()> {
    let send = || netns::send_from_loopback(socket.as_fd(), answer, client);
    socket.async_io(Interest::WRITABLE, send).await
}

/// Answers the queries of a connection.
pub(crate) async fn serve_tcp(shared: &Shared, stream: TcpStream) {
    match connection(shared, stream).await {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {}
        Err(error) => tracing::debug!(%error, "a DNS connection ended"),
    }
}

async fn connection(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let query = timeout(IDLE, upstream::read_message(&mut stream)).await??;
        let Some(answer) = answer(shared, &query, By::Tcp).await else {
            return Ok(());
        };
        timeout(IDLE, upstream::write_message(&mut stream, &answer)).await??;
    }
}

async fn answer(shared: &Shared, packet: &[u8], by: By) -> Option<Vec<u8>> {
    let query = Query::parse(packet)?;
    if query.forwardable().is_none() {
        return Some(query.answer(Code::FormatError));
    }
    let hosts = shared.egress.borrow().hosts();
    let mapped = Mapped::of(&hosts, &query);
    if !shared.policy.borrow().internet {
        return Some(match mapped {
            Mapped::No => query.answer(Code::NoSuchName),
            Mapped::Perhaps | Mapped::ByName => invented(shared, &query),
        });
    }
    let upstreams = &shared.config.upstreams;
    let answer = match by {
        By::Udp => upstreams.ask_udp(query).await,
        By::Tcp => upstreams.ask_tcp(query).await,
    };
    Some(match (answer, mapped) {
        (Ok(answer), Mapped::Perhaps | Mapped::ByName) if is_no_such_name(&answer) => {
            invented(shared, &query)
        }
        // Also when nobody can be asked: the Worker is there.
        (Ok(answer), Mapped::ByName) if is_failure(&answer) => invented(shared, &query),
        (Err(_), Mapped::ByName) => invented(shared, &query),
        // A network may have IPv6 for the sake of its mappings alone. What is outside is not reached by it.
        (Ok(answer), _)
            if query.is_for_ipv6()
                && shared.ipv6.load(Ordering::Relaxed)
                && !shared.config.ipv6
                && is_no_error(&answer) =>
        {
            query.answer_with(&[])
        }
        (Ok(answer), _) => answer,
        (Err(error), _) => {
            tracing::warn!(%error, "no DNS server answered a container's query");
            query.answer(Code::ServerFailure)
        }
    })
}

/// What is known of mappings for the name of a query.
#[derive(Debug, Clone, Copy)]
enum Mapped {
    No,
    /// There is one that may be for any name.
    Perhaps,
    ByName,
}

impl Mapped {
    fn of(hosts: &Hosts, query: &Query<'_>) -> Self {
        match query.name() {
            Some(name) if hosts.names(&name) => Mapped::ByName,
            Some(_) if hosts.any() => Mapped::Perhaps,
            _ => Mapped::No,
        }
    }
}

/// The addresses that stand for names.
fn invented(shared: &Shared, query: &Query<'_>) -> Vec<u8> {
    let addresses = [FAKE_V4.into(), FAKE_V6.into()];
    // Without a route to it the second would only cost the client an attempt.
    let count = if shared.config.ipv6 { 2 } else { 1 };
    query.answer_with(&addresses[..count])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fuzz;

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&bytes);
        }

        /// With a head that says that there is one question.
        #[test]
        fn any_question(rest in proptest::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..300)) {
            let head = [255, 1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            fuzz(&[&head[..], &rest[..]].concat());
        }
    }
}
