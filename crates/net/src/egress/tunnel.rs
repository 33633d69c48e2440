//! Asking workerd what becomes of a connection (contract: workerd, 1.6): `CONNECT <where the container wanted to go>`, with the name that was found.
//!
//! The answer is the connection itself, or a refusal. workerd says 200 if a mapping of HTTP or HTTPS takes it, and then reads plain HTTP/1.1. It
//! says 202 if one of TCP takes it, *or if none does*: then it dials the destination itself, with a network that has no limits, provided that the
//! container may reach the internet. Nothing in the answer tells these two apart. So what the container may not reach is written in a way
//! ([`Destination::Unreachable`]) that is the same to workerd's mappings, and cannot be dialled.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::door::Door;

/// workerd answers at once, unless its one thread is busy with JavaScript.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 16 * 1024;

/// Where the container wanted to go, as it is told to workerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// The policy allows it: workerd may dial it.
    Reachable(SocketAddr),
    /// The policy does not. workerd reads a port in hexadecimal where it looks for mappings; where it dials, that is no port.
    Unreachable(SocketAddr),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Reachable(address) => address.fmt(f),
            Destination::Unreachable(SocketAddr::V4(v4)) => {
                write!(f, "{}:{:#x}", v4.ip(), v4.port())
            }
            Destination::Unreachable(SocketAddr::V6(v6)) => {
                write!(f, "[{}]:{:#x}", v6.ip(), v6.port())
            }
        }
    }
}

/// What is known of a connection besides where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hint {
    /// Nothing: mappings by address are looked for, of all protocols.
    None,
    /// The name in a ClientHello: mappings of HTTPS are looked for.
    Sni(String),
    /// The Host of a request: mappings of HTTP are looked for (and those of HTTPS by address).
    Host(String),
}

/// What workerd does with a connection.
#[derive(Debug)]
pub(super) enum Answer {
    /// 200: it speaks HTTP/1.1, without TLS.
    Http(Tunnel),
    /// 202: it takes bytes as they are. See the module.
    Raw(Tunnel),
}

/// A connection to workerd, or straight to where the container wanted to go.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) stream: TcpStream,
    /// What came behind the answer's head: a server may speak first.
    pub(super) early: Vec<u8>,
}

impl Tunnel {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            early: Vec::new(),
        }
    }
}

/// Asks workerd at a port of its loopback.
///
/// # Errors
/// It cannot be reached, or refuses.
pub(super) async fn ask(
    door: &Door,
    port: u16,
    to: Destination,
    hint: &Hint,
) -> io::Result<Answer> {
    timeout(TIMEOUT, connect(door, port, to, hint))
        .await
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

async fn connect(door: &Door, port: u16, to: Destination, hint: &Hint) -> io::Result<Answer> {
    let mut stream = door.dial(port).await?;
    stream.set_nodelay(true)?;
    let hint = match hint {
        Hint::None => String::new(),
        Hint::Sni(name) => format!("X-Tls-Sni: {}\r\n", field_value(name)?),
        Hint::Host(name) => format!("X-Hostname: {}\r\n", field_value(name)?),
    };
    let request = format!(
        "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nX-Proto: tcp\r\n{hint}Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(256);
    let end = loop {
        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        if head.len() > MAX_HEAD {
            return Err(malformed("the head of its answer does not end"));
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    };
    let status: u16 = std::str::from_utf8(&head[..end])
        .ok()
        .and_then(|head| head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
        .ok_or_else(|| malformed("it answers something other than HTTP/1.1"))?;
    let tunnel = Tunnel {
        stream,
        early: head.split_off(end),
    };
    match status {
        200 => Ok(Answer::Http(tunnel)),
        202 => Ok(Answer::Raw(tunnel)),
        _ => Err(io::Error::new(
            ErrorKind::ConnectionRefused,
            format!("workerd answers {status}"),
        )),
    }
}

/// What a container sent must not become fields of ours.
fn field_value(name: &str) -> io::Result<&str> {
    if name.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(name)
    } else {
        Err(malformed("a host name that is none"))
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_as_workerd_reads_them() {
        for (address, reachable, unreachable) in [
            ("10.0.0.1:80", "10.0.0.1:80", "10.0.0.1:0x50"),
            ("[fd00::1]:65535", "[fd00::1]:65535", "[fd00::1]:0xffff"),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(Destination::Reachable(address).to_string(), reachable);
            assert_eq!(Destination::Unreachable(address).to_string(), unreachable);
        }
    }

    #[test]
    fn a_host_cannot_smuggle_fields() {
        assert!(field_value("a\r\nX-Dst: b").is_err());
        assert!(field_value("a b").is_err());
        assert!(field_value("a:80").is_ok());
    }
}
