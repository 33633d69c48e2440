//! Which way a connection goes: the questions of the drawing in [`super`], in their order.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::Hosts;
use super::sniff::{MAX_HEAD, Sniffed, sniff};
use super::tunnel::{Answer, Destination, Hint, Tunnel, ask};
use crate::Shared;
use crate::outbound::{self, permitted};
use crate::succession;

/// A client that has said nothing for this long waits for the server, or takes its time.
const SILENCE: Duration = Duration::from_millis(50);
/// How long a client may take for its head, once it has begun. A name must not be hidden by sending it slowly.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may be silent where nobody else could speak.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where only a client with a name in mind can have come from: browsers connect long before they ask.
const PATIENCE_FOR_NAMES: Duration = Duration::from_secs(60);
const HTTP_PORT: u16 = 80;

/// A connection that somebody has to decide about.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) shared: Arc<Shared>,
    pub(super) destination: SocketAddr,
    pub(super) hosts: Arc<Hosts>,
}

/// Where a connection goes.
#[derive(Debug)]
pub(super) enum Way {
    /// Bytes as they are, to a mapping of TCP or to the outside.
    Raw {
        tunnel: Tunnel,
        cut_without_internet: bool,
    },
    /// workerd reads HTTP/1.1 from it, and the client speaks that.
    Http(Tunnel),
    /// workerd reads HTTP/1.1 from it, and the client speaks TLS, with this name.
    Tls {
        tunnel: Tunnel,
        name: Option<String>,
    },
    /// Each request has its own way, since none can be read before HTTP/2 has been answered.
    Http2,
}

/// Who spoke first, after silence.
enum Speaks {
    Client(Option<Way>),
    Server(Way),
}

impl Asked {
    pub(super) fn new(shared: Arc<Shared>, destination: SocketAddr) -> Self {
        let hosts = shared.egress.borrow().hosts();
        Self {
            shared,
            destination,
            hosts,
        }
    }

    /// Reads the client's first bytes (and gives them back) until it is clear what becomes of it.
    ///
    /// # Errors
    /// It may not go where it wants to, or cannot.
    pub(super) async fn decide(&self, client: &TcpStream) -> io::Result<(Way, Vec<u8>)> {
        let mut silent = None;
        if timeout(SILENCE, speaks(client)).await.is_err() {
            match self.while_silent(client).await? {
                Speaks::Client(way) => silent = way,
                Speaks::Server(way) => return Ok((way, Vec::new())),
            }
        }
        let (sniffed, head) = read_head(client).await?;
        tracing::trace!(destination = %self.destination, ?sniffed, "outbound connection");
        Ok((self.route(sniffed, silent).await?, head))
    }

    async fn while_silent(&self, client: &TcpStream) -> io::Result<Speaks> {
        let patience = if super::is_fake(&self.shared, self.destination.ip()) {
            PATIENCE_FOR_NAMES
        } else {
            PATIENCE
        };
        let way = if self.hosts.any() {
            match self.ask(&Hint::None).await? {
                Answer::Raw(tunnel) => Some(self.raw(tunnel)),
                // It will be asked again, when the name is known.
                Answer::Http(_) => None,
            }
        } else if self.may_dial() {
            Some(self.outside().await?)
        } else {
            None
        };
        if let Some(Way::Raw { tunnel, .. }) = &way {
            let server = async {
                if !tunnel.early.is_empty() {
                    return Ok(1);
                }
                speaks(&tunnel.stream).await
            };
            tokio::select! {
                read = speaks(client) => {
                    read?;
                    return Ok(Speaks::Client(way));
                }
                read = server => match (read?, way) {
                    (1.., Some(way)) => return Ok(Speaks::Server(way)),
                    // Without a mapping and without internet workerd says nothing. A name may still change that.
                    _ if self.hosts.any() => {}
                    (_, Some(way)) => return Ok(Speaks::Server(way)),
                    (_, None) => {}
                },
            }
        }
        timeout(patience, speaks(client)).await??;
        Ok(Speaks::Client(None))
    }

    /// `silent` is the raw way that was found while the client was silent.
    async fn route(&self, sniffed: Sniffed, silent: Option<Way>) -> io::Result<Way> {
        let (name, is_tls) = match &sniffed {
            Sniffed::Http2 => return Ok(Way::Http2),
            Sniffed::Tls(name) => (name, true),
            Sniffed::Http(host) => (host, false),
            Sniffed::Other | Sniffed::More => (&None, false),
        };
        let intercepted = |tunnel| match &sniffed {
            Sniffed::Tls(name) => Way::Tls {
                tunnel,
                name: name.clone(),
            },
            _ => Way::Http(tunnel),
        };
        if let Some(name) = name
            && self.hosts.may_match(name)
        {
            let hint = if is_tls {
                Hint::Sni(name.clone())
            } else {
                Hint::Host(name.clone())
            };
            match self.ask(&hint).await? {
                Answer::Http(tunnel) => return Ok(intercepted(tunnel)),
                Answer::Raw(tunnel) => {
                    // What workerd passes through now it would not look up again, with one exception: its mappings of TCP are asked for all
                    // protocols, but only without a name. Where the policy allows the address, that would cost each connection to it a second
                    // one; so there it is done on unusual ports only.
                    let usual = is_tls || self.destination.port() == HTTP_PORT;
                    if silent.is_none() && self.may_dial() && (usual || !self.hosts.any()) {
                        let here = self.shared.egress.borrow().passes_nothing(now());
                        if here {
                            drop(tunnel);
                            return self.outside().await;
                        }
                        return Ok(self.raw(tunnel));
                    }
                }
            }
        }
        match silent {
            Some(way) => Ok(way),
            None if self.hosts.any() => Ok(match self.ask(&Hint::None).await? {
                Answer::Http(tunnel) => intercepted(tunnel),
                Answer::Raw(tunnel) => self.raw(tunnel),
            }),
            None => self.outside().await,
        }
    }

    /// Asks workerd.
    ///
    /// # Errors
    /// It refuses, or is not there: then what it may have mapped goes nowhere.
    pub(super) async fn ask(&self, hint: &Hint) -> io::Result<Answer> {
        let port = self.shared.egress.borrow().port;
        let port = port.ok_or_else(|| io::Error::from(ErrorKind::NotConnected))?;
        let destination = if self.may_dial() {
            Destination::Reachable(self.destination)
        } else {
            Destination::Unreachable(self.destination)
        };
        let known = succession::known_by(&self.shared);
        ask(&known.door, port, destination, hint).await
    }

    /// Whether the policy allows the address.
    pub(super) fn may_dial(&self) -> bool {
        permitted(&self.shared, self.destination).is_ok()
    }

    /// Dials outside.
    ///
    /// # Errors
    /// The policy forbids it, or it cannot be reached.
    pub(super) async fn outside(&self) -> io::Result<Way> {
        let stream = outbound::dial(&self.shared, self.destination).await?;
        Ok(self.raw(Tunnel::new(stream)))
    }

    /// A raw way, which ends with the internet if that is what it uses.
    pub(super) fn raw(&self, tunnel: Tunnel) -> Way {
        Way::Raw {
            tunnel,
            cut_without_internet: self.may_dial(),
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Waits until a peer has sent something, or (0) has ended. Unlike readiness alone, this never comes too early.
async fn speaks(stream: &TcpStream) -> io::Result<usize> {
    stream.peek(&mut [0]).await
}

/// Reads as much as it takes to know what it is.
async fn read_head(client: &TcpStream) -> io::Result<(Sniffed, Vec<u8>)> {
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let mut head = Vec::with_capacity(1024);
    loop {
        match client.try_read_buf(&mut head) {
            // It says no more; what it said is no head.
            Ok(0) => return Ok((Sniffed::Other, head)),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                timeout_at(deadline, client.readable()).await??;
                continue;
            }
            Err(e) => return Err(e),
        }
        match sniff(&head) {
            Sniffed::More => head.reserve(1024.min(MAX_HEAD)),
            sniffed => return Ok((sniffed, head)),
        }
    }
}
