//! Network namespaces with nothing but loopback in them, and sockets inside them.
//!
//! All functions run on a short-lived or dedicated thread that enters the namespace; the caller's thread never changes namespace.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Ports, inside every namespace, where redirected traffic arrives.
#[derive(Debug, Clone, Copy)]
pub struct Redirect {
    /// All outbound TCP (nft nat REDIRECT; the original destination by SO_ORIGINAL_DST).
    pub tcp_port: u16,
    /// All outbound UDP to port 53.
    pub dns_port: u16,
}

/// Makes a namespace: loopback up, a default route to it (with `src`), TCP and UDP/53 to non-loopback destinations redirected.
/// IPv4 and IPv6. `net.ipv4.ip_unprivileged_port_start` is 0 inside and pings need no capability.
pub fn create(redirect: Redirect) -> io::Result<OwnedFd> {
    let _ = redirect;
    todo!()
}

/// The network namespace of a running process.
pub fn of_process(pid: i32) -> io::Result<OwnedFd> {
    let _ = pid;
    todo!()
}

/// A non-blocking TCP listener bound inside.
pub fn listen_tcp(netns: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let _ = (netns, addr);
    todo!()
}

/// A non-blocking UDP socket bound inside.
pub fn bind_udp(netns: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let _ = (netns, addr);
    todo!()
}

/// A non-blocking TCP socket made inside, on which `connect` to `addr` has been begun; the caller awaits writability.
/// A refusal is reported at once where the kernel knows it (loopback does).
pub fn connect_tcp(netns: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<std::net::TcpStream> {
    let _ = (netns, addr);
    todo!()
}

/// Where a redirected connection wanted to go (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST).
pub fn original_destination(stream: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let _ = stream;
    todo!()
}
