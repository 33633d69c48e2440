//! Which TCP ports are listened on inside a namespace (sock_diag(7)).
//!
//! One question costs the kernel some two microseconds, a quarter of a connect that is refused, and
//! the program that listens notices nothing.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::netlink::{NLM_F_REQUEST, named};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
/// struct inet_diag_req_v2.
const REQUEST: usize = 56;
/// The fixed part of struct inet_diag_msg up to and with idiag_dport.
const ANSWER_PORT: usize = 4;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u8 = 10;
const NO_COOKIE: u32 = u32::MAX;
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// A way to ask which ports are listened on inside.
#[derive(Debug)]
pub struct Listeners(OwnedFd);

impl Listeners {
    /// Opens it; blocks for a moment. `known` is a port that is listened on already, on 127.0.0.1:
    /// the kernel's answer for it shows whether it answers such questions at all.
    ///
    /// # Errors
    /// As [`super::run_inside`], those of socket(2), and Unsupported if the kernel does not know of
    /// the listener (it has no inet_diag).
    pub fn open(netns: BorrowedFd<'_>, known: u16) -> io::Result<Self> {
        super::run_inside(netns, || Self::here(known))?
    }

    /// The same, on a thread that is inside already.
    ///
    /// # Errors
    /// As [`Listeners::open`].
    pub fn here(known: u16) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )
        .map_err(|e| named("opening a sock_diag socket", e.into()))?;
        let mut listeners = Self(socket);
        match listeners.is_listening(known) {
            Ok(true) => Ok(listeners),
            Ok(false) => Err(io::ErrorKind::Unsupported.into()),
            Err(e) => Err(e),
        }
    }

    /// Whether a connection to 127.0.0.1 or ::1 at that port would find a listener. Does not block.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn is_listening(&mut self, port: u16) -> io::Result<bool> {
        for address in LOOPBACK {
            self.ask(&request(address, Some(port)))?;
            let mut answer = [0u8; 1024];
            let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::DONTWAIT)
                .map_err(|e| named("awaiting sock_diag's answer", e.into()))?;
            match message(&answer[..length])? {
                (SOCK_DIAG_BY_FAMILY, body, _) if body.get(1) == Some(&TCP_LISTEN) => {
                    return Ok(true);
                }
                // A connection that has this address by chance.
                (SOCK_DIAG_BY_FAMILY, ..) => {}
                (_, body, _) => match error_of(body) {
                    // ENOENT: nobody. A kernel without IPv6 says that too, or one of the others.
                    Some(Errno::NOENT | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT) => {}
                    Some(e) => return Err(named("sock_diag", e.into())),
                    None => return Err(io::ErrorKind::InvalidData.into()),
                },
            }
        }
        Ok(false)
    }

    /// All ports that are listened on inside, at any address, in order.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn ports(&mut self) -> io::Result<BTreeSet<u16>> {
        let mut ports = BTreeSet::new();
        for address in LOOPBACK {
            self.ask(&request(address, None))?;
            self.collect(&mut ports)?;
        }
        Ok(ports)
    }

    fn ask(&self, request: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, request, SendFlags::empty())
            .map(drop)
            .map_err(|e| named("asking sock_diag", e.into()))
    }

    fn collect(&self, ports: &mut BTreeSet<u16>) -> io::Result<()> {
        let mut answer = vec![0u8; 32 * 1024];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::DONTWAIT)
                .map_err(|e| named("awaiting sock_diag's answer", e.into()))?;
            let mut rest = &answer[..length];
            while rest.len() >= NLMSG_HEADER {
                let (kind, body, length) = message(rest)?;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => match error_of(body) {
                        Some(Errno::NOENT | Errno::AFNOSUPPORT) => return Ok(()),
                        Some(e) => return Err(named("sock_diag", e.into())),
                        None => return Err(io::ErrorKind::InvalidData.into()),
                    },
                    _ => {
                        let port = body.get(ANSWER_PORT..ANSWER_PORT + 2);
                        ports.extend(port.map(|p| u16::from_be_bytes([p[0], p[1]])));
                    }
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

/// One listener, or without a port all of a family.
fn request(address: IpAddr, port: Option<u16>) -> [u8; NLMSG_HEADER + REQUEST] {
    let mut message = [0u8; NLMSG_HEADER + REQUEST];
    let (head, body) = message.split_at_mut(NLMSG_HEADER);
    head[..4].copy_from_slice(&((NLMSG_HEADER + REQUEST) as u32).to_ne_bytes());
    head[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let dump = if port.is_none() { NLM_F_DUMP } else { 0 };
    head[6..8].copy_from_slice(&(NLM_F_REQUEST | dump).to_ne_bytes());
    // sdiag_family, sdiag_protocol, idiag_ext, pad, idiag_states; then struct inet_diag_sockid.
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    body[0] = family.as_raw() as u8;
    body[1] = IPPROTO_TCP;
    body[4..8].copy_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
    body[8..10].copy_from_slice(&port.unwrap_or(0).to_be_bytes());
    match address {
        IpAddr::V4(a) => body[12..16].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => body[12..28].copy_from_slice(&a.octets()),
    }
    body[48..52].copy_from_slice(&NO_COOKIE.to_ne_bytes());
    body[52..56].copy_from_slice(&NO_COOKIE.to_ne_bytes());
    message
}

/// Kind, body and length of the first message.
fn message(bytes: &[u8]) -> io::Result<(u16, &[u8], usize)> {
    let wrong = || io::Error::other("a sock_diag answer has a wrong length");
    let head = bytes.get(..NLMSG_HEADER).ok_or_else(wrong)?;
    let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let body = bytes.get(NLMSG_HEADER..length).ok_or_else(wrong)?;
    Ok((u16::from_ne_bytes([head[4], head[5]]), body, length))
}

fn error_of(body: &[u8]) -> Option<Errno> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    Some(Errno::from_raw_os_error(-code))
}
