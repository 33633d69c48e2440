//! The DNS servers that are asked: configured, or those of the host's /etc/resolv.conf, read again as it changes.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::packet::{Query, is_failure};

/// How long one server may take. Clients repeat a query after five seconds.
const TIMEOUT: Duration = Duration::from_secs(2);
/// More servers than a client waits for are not asked.
const SERVERS: usize = 3;
const READ_AGAIN: Duration = Duration::from_secs(5);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Whom to ask.
#[derive(Debug)]
pub(crate) struct Upstreams {
    configured: Vec<SocketAddr>,
    host: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Upstreams {
    /// No servers means those of the host.
    pub(crate) fn new(configured: Vec<SocketAddr>) -> Self {
        Self {
            configured,
            host: Mutex::default(),
        }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut servers = if self.configured.is_empty() {
            self.of_host()
        } else {
            self.configured.clone()
        };
        servers.truncate(SERVERS);
        servers
    }

    fn of_host(&self) -> Vec<SocketAddr> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        match &*host {
            Some((read, servers)) if read.elapsed() < READ_AGAIN => servers.clone(),
            _ => {
                let servers = match std::fs::read_to_string(RESOLV_CONF) {
                    Ok(text) => parse(&text),
                    Err(error) => {
                        tracing::warn!(%error, "{RESOLV_CONF} cannot be read: containers resolve no names; configure DNS servers");
                        Vec::new()
                    }
                };
                *host = Some((Instant::now(), servers.clone()));
                servers
            }
        }
    }

    /// Asks one server after the other by UDP.
    ///
    /// # Errors
    /// The last one's, if none answered.
    pub(crate) async fn ask_udp(&self, query: Query<'_>) -> io::Result<Vec<u8>> {
        self.ask(query, ask_udp).await
    }

    /// Asks one server after the other by TCP.
    ///
    /// # Errors
    /// The last one's, if none answered.
    pub(crate) async fn ask_tcp(&self, query: Query<'_>) -> io::Result<Vec<u8>> {
        self.ask(query, ask_tcp).await
    }

    async fn ask<'q>(
        &self,
        query: Query<'q>,
        one: impl AsyncFn(SocketAddr, Query<'q>) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let mut last = Err(io::Error::new(
            ErrorKind::NotFound,
            "there are no DNS servers to ask",
        ));
        for server in self.servers() {
            let answer = timeout(TIMEOUT, one(server, query))
                .await
                .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
            match answer {
                Ok(answer) if !is_failure(&answer) => return Ok(answer),
                // Better than nothing, if the others have nothing.
                Ok(failure) => last = Ok(failure),
                Err(error) => {
                    tracing::debug!(%server, %error, "a DNS server did not answer");
                    last = last.or(Err(error));
                }
            }
        }
        last
    }
}

async fn ask_udp(server: SocketAddr, query: Query<'_>) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // A socket of its own for each query: the port is as hard to guess as the id.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(forwardable(query)?).await?;
    let mut answer = Vec::with_capacity(usize::from(u16::MAX));
    loop {
        answer.clear();
        socket.recv_buf(&mut answer).await?;
        if query.is_answered_by(&answer) {
            answer.shrink_to_fit();
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: Query<'_>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    write_message(&mut stream, forwardable(query)?).await?;
    let answer = read_message(&mut stream).await?;
    if query.is_answered_by(&answer) {
        Ok(answer)
    } else {
        Err(io::Error::new(
            ErrorKind::InvalidData,
            "it answered something else",
        ))
    }
}

fn forwardable(query: Query<'_>) -> io::Result<&[u8]> {
    query.forwardable().ok_or(ErrorKind::InvalidInput.into())
}

/// Reads a message with its length in front (RFC 1035, 4.2.2).
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length in front.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// The `nameserver` lines (resolv.conf(5)).
fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        .filter_map(server)
        .collect()
}

fn server(text: &str) -> Option<SocketAddr> {
    let (address, scope) = text.split_once('%').unwrap_or((text, ""));
    match address.parse().ok()? {
        IpAddr::V4(v4) => Some(SocketAddr::from((v4, 53))),
        IpAddr::V6(v6) => Some(SocketAddrV6::new(v6, 53, 0, scope_id(scope)?).into()),
    }
}

/// The number of a device, for link-local servers (`fe80::1%eth0`).
fn scope_id(device: &str) -> Option<u32> {
    if device.is_empty() {
        return Some(0);
    }
    if device.contains('/') {
        return None;
    }
    device.parse().ok().or_else(|| {
        std::fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))
            .ok()?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_servers_of_the_host() {
        let text = "# by hand\nsearch example.com\n nameserver 192.0.2.53 # first\nnameserver\t2001:db8::53\n\
                    nameserver fe80::1%lo\nnameserver fe80::1%no-such-device\nnameserver nonsense\nnameservers 192.0.2.54\nnameserver";
        let servers: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(
            servers,
            ["192.0.2.53:53", "[2001:db8::53]:53", "[fe80::1%1]:53"]
        );
    }
}
