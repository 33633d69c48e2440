//! Outbound TCP: connections that the namespace's rules redirect to the daemon, dialled outside after policy.
//!
//! Networks with mappings go another way ([`crate::egress`]). What is refused or cannot be reached is reset: the container's connect has succeeded by then, so this is the clearest there is.

use std::fmt::Debug;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use wharf_sandbox::netns;

use crate::Shared;
use crate::dns;
use crate::egress;
use crate::ranges::{Range, range};
use crate::relay::{Guarded, relay, reset};

/// How many outbound connections one network may have; more wait to be accepted. Each takes two of the daemon's descriptors.
const CONNECTIONS: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer outside that is silent for this long is asked whether it still exists.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Makes connections to the outside world.
pub trait Dial: Debug + Send + Sync {
    /// Connects, after policy has allowed it.
    fn dial(&self, destination: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;

    /// Whether IPv6 destinations can be reached at all. If not, networks get no IPv6 route, so that programs use IPv4 at once.
    fn ipv6(&self) -> bool;
}

/// Dials from the daemon's own network.
#[derive(Debug)]
pub struct Direct;

impl Dial for Direct {
    fn dial(&self, destination: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let socket = if destination.is_ipv4() {
                TcpSocket::new_v4()?
            } else {
                TcpSocket::new_v6()?
            };
            socket.set_keepalive(true)?;
            sockopt::set_tcp_keepidle(&socket, KEEPALIVE)?;
            socket.connect(destination).await
        })
    }

    /// True if the route to the internet has a source address that is valid there. Sends nothing.
    fn ipv6(&self) -> bool {
        const INTERNET: SocketAddr =
            SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1)), 53);
        matches!(source_for(INTERNET), Ok(IpAddr::V6(source)) if source.segments()[0] & 0xe000 == 0x2000)
    }
}

/// Accepts redirected connections.
pub(crate) async fn serve(shared: Arc<Shared>, listener: Arc<TcpListener>) {
    crate::serve_each(
        shared,
        listener,
        CONNECTIONS,
        |shared, stream, _| async move {
            carry(shared, stream).await;
        },
    )
    .await;
}

async fn carry(shared: Arc<Shared>, stream: TcpStream) {
    let destination = match netns::original_destination(stream.as_fd()) {
        Ok(destination) => destination,
        Err(error) => {
            tracing::debug!(%error, "a connection to the outbound port that was not redirected");
            return reset(stream);
        }
    };
    if destination.port() == dns::PORT {
        return dns::serve_tcp(&shared, stream).await;
    }
    if !shared.egress.borrow().hosts().is_empty() {
        return egress::carry(shared, stream, destination).await;
    }
    let inside = Guarded::new(stream);
    let mut policy = shared.policy.subscribe();
    let carried = async {
        let outside = dial(&shared, destination).await?;
        outside.set_nodelay(true)?;
        inside.set_nodelay()?;
        relay(Guarded::new(outside), inside, &shared.bandwidth).await
    };
    tokio::select! {
        end = carried => if let Err(error) = end {
            tracing::debug!(%destination, %error, "outbound connection ended");
        },
        _ = policy.wait_for(|policy| !policy.internet) => {
            tracing::debug!(%destination, "outbound connection cut: there is no internet, or no more");
        }
    }
}

/// Dials outside, if the policy allows it.
///
/// # Errors
/// It does not, or the destination cannot be reached.
pub(crate) async fn dial(shared: &Shared, destination: SocketAddr) -> io::Result<TcpStream> {
    permitted(shared, destination)
        .map_err(|reason| io::Error::new(ErrorKind::PermissionDenied, reason))?;
    tokio::time::timeout(CONNECT_TIMEOUT, shared.config.dialer.dial(destination))
        .await
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// Whether the policy allows an address, or why not.
pub(crate) fn permitted(shared: &Shared, destination: SocketAddr) -> Result<(), &'static str> {
    if !shared.policy.borrow().internet {
        return Err("the container has no internet");
    }
    match range(destination.ip()) {
        _ if egress::is_fake(shared, destination.ip()) => {
            Err("an address of names that exist for mappings only")
        }
        Range::Never => Err("loopback, multicast or reserved address"),
        _ if shared.config.allow_private => Ok(()),
        Range::Private => Err("private address"),
        Range::Public if is_own(destination) => Err("the host's own address"),
        Range::Public => Ok(()),
    }
}

/// Whether an address is one of the host's. Services there often trust what comes from the host itself.
fn is_own(destination: SocketAddr) -> bool {
    // To its own addresses a host speaks from those same addresses.
    source_for(destination).is_ok_and(|source| source == destination.ip())
}

/// The source address that the kernel takes for a destination.
fn source_for(destination: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if destination.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(destination)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        assert!(is_own("127.0.0.1:80".parse().unwrap()));
        assert!(!is_own("203.0.113.5:80".parse().unwrap()));
    }
}
