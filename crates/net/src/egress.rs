//! Connections that the Worker may want to see itself (contract: workerd, 1.6).
//!
//! Owns: what workerd said of its mappings ([`Egress`]), the look at a connection's first bytes, the questions to workerd, TLS and HTTP/2
//! towards the container. Must not: be on the way of a network without mappings ([`crate::outbound`] carries those), dial what the policy
//! forbids, or let workerd dial it ([`tunnel`]).
//!
//! ```text
//!                       client speaks                     name may be mapped
//!  accepted ── 50 ms ──────────────────────> sniffed ───────────────────────────> ask workerd, with the name
//!     │                                       │  │ no name, or not mapped            │200            │202
//!     │ silence                               │  v                                   v               v
//!     │    *: ask workerd, without a name     │  *: ask workerd, without a name    HTTP (or TLS,  raw, if the policy allows the
//!     │    policy allows: dial outside        │     200 ──> HTTP, TLS, HTTP/2      HTTP/2)        address; else as without a name
//!     v                                       │     202 ──> raw
//!  who speaks first? ── the server ──> raw    │  policy allows ──> dial outside, raw
//!     └──────────── the client ───────────────┘  else ──> reset
//! ```
//!
//! `*` means that there may be a mapping by address ([`hosts`]). While the client is silent nothing is decided against a mapping: a client
//! that takes its time is intercepted as any other, and a server that speaks first (SMTP, MySQL) is heard after 50 ms at the latest.
//!
//! What is decided holds for the connection, as in the original: requests behind the first one go where the first one went, and the Worker
//! sees each one's own Host. TCP mappings are not asked for TLS with a name nor for HTTP on port 80 if the policy allows the address.
//!
//! A process of workerd that has adopted the container passes nothing through. When its mappings are back, TLS with a name and HTTP on port 80 that
//! no mapping takes are dialled here instead ([`Egress`]); the rest stays denied until the container is started again, since nothing tells it from
//! what a mapping of TCP has taken.

mod config;
mod decide;
mod h2;
pub(crate) mod hosts;
mod prefixed;
pub(crate) mod sniff;
pub(crate) mod tls;
mod tunnel;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wharf_sandbox::netns;

pub use self::config::Egress;
pub(crate) use self::config::Update;
use self::decide::{Asked, Way};
pub(crate) use self::hosts::Hosts;
use self::prefixed::Prefixed;
use self::tunnel::Tunnel;
use crate::Shared;
use crate::bandwidth::{Bandwidth, Limited};
use crate::pool::REDIRECT;
use crate::relay::{Guarded, relay, reset};

/// What the DNS answerer says for mapped names that do not exist otherwise (contract: workerd, 1.6). Not dialled.
pub(crate) const FAKE_V4: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
/// The same for IPv6.
pub(crate) const FAKE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// Whether an address stands for names in a network, which has mappings.
pub(crate) fn is_fake(shared: &Shared, address: IpAddr) -> bool {
    (address == FAKE_V4 || address == FAKE_V6) && !shared.egress.borrow().hosts().is_empty()
}

/// Takes over what `PUT /egress` says.
pub(crate) async fn apply(shared: &Shared, update: Update) {
    let internet = update.internet();
    shared
        .egress
        .send_modify(|egress| egress.apply(update, Instant::now()));
    if let Some(internet) = internet {
        shared
            .policy
            .send_modify(|policy| policy.internet = internet);
    }
    // A mapping by address may be of an IPv6 address, also on a host that has none itself.
    if shared.egress.borrow().hosts().any() && !shared.ipv6.load(Ordering::Relaxed) {
        let inside = shared.inside.clone();
        let opened = tokio::task::spawn_blocking(move || {
            netns::add_ipv6(inside.namespace()?.as_fd(), REDIRECT)
        });
        match opened.await.map_err(io::Error::other).flatten() {
            Ok(()) => shared.ipv6.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(%error, "mappings of IPv6 addresses have no effect in a container");
            }
        }
    }
}

/// Carries a connection of a network that has mappings.
pub(crate) async fn carry(shared: Arc<Shared>, client: TcpStream, destination: SocketAddr) {
    let asked = Asked::new(shared, destination);
    let (way, head) = match asked.decide(&client).await {
        Ok(decided) => decided,
        Err(error) => {
            tracing::debug!(%destination, %error, "outbound connection refused");
            return reset(client);
        }
    };
    if let Err(error) = go(asked, way, client, head).await {
        tracing::debug!(%destination, %error, "outbound connection ended");
    }
}

async fn go(asked: Asked, way: Way, client: TcpStream, head: Vec<u8>) -> io::Result<()> {
    let shared = asked.shared.clone();
    let bandwidth = &shared.bandwidth;
    match way {
        Way::Raw {
            tunnel,
            cut_without_internet: false,
        }
        | Way::Http(tunnel) => straight(client, tunnel, &head, bandwidth).await,
        Way::Raw { tunnel, .. } => {
            let mut policy = asked.shared.policy.subscribe();
            tokio::select! {
                end = straight(client, tunnel, &head, bandwidth) => end,
                _ = policy.wait_for(|policy| !policy.internet) => {
                    Err(io::Error::other("the internet was switched off"))
                }
            }
        }
        Way::Tls { tunnel, name } => {
            client.set_nodelay(true)?;
            let client = Prefixed::new(head, Limited::new(client, bandwidth));
            let shown = name
                .clone()
                .unwrap_or_else(|| asked.destination.ip().to_string());
            let mut client = shared.leaves.accept(&shared.ca(), &shown, client).await?;
            if tls::chose_http2(&client) == Some(true) {
                return h2::serve(h2::Route::tls(asked, name, tunnel), client).await;
            }
            let Tunnel { mut stream, early } = tunnel;
            client.write_all(&early).await?;
            tokio::io::copy_bidirectional(&mut client, &mut stream).await?;
            Ok(())
        }
        Way::Http2 => {
            client.set_nodelay(true)?;
            let client = Prefixed::new(head, Limited::new(client, bandwidth));
            h2::serve(h2::Route::clear(asked), client).await
        }
    }
}

/// Carries bytes as they are.
async fn straight(
    client: TcpStream,
    tunnel: Tunnel,
    head: &[u8],
    bandwidth: &Bandwidth,
) -> io::Result<()> {
    let (client, server) = (Guarded::new(client), Guarded::new(tunnel.stream));
    client.set_nodelay()?;
    server.set_nodelay()?;
    client.write_all(&tunnel.early).await?;
    server.write_all(head).await?;
    relay(server, client, bandwidth).await
}
