//! Sockets, and a view, of the network namespace of the calling thread. For functions that
//! [`super::run_inside`] runs, to make several on one thread.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::UnconnectedSockets;

/// How many connections wait for accept.
const BACKLOG: i32 = 1024;

/// A non-blocking TCP listener for both families, at all addresses: one descriptor does for both.
/// On a kernel without IPv6 it listens on 127.0.0.1 alone.
///
/// # Errors
/// Those of socket(2), bind(2), listen(2).
pub fn listen_tcp_dual(port: u16) -> io::Result<std::net::TcpListener> {
    match dual(SocketType::STREAM)? {
        Some(socket) => listening(socket, (Ipv6Addr::UNSPECIFIED, port).into()),
        None => listen_tcp((Ipv4Addr::LOCALHOST, port).into()),
    }
}

/// A non-blocking UDP socket for both families, at all addresses, as [`listen_tcp_dual`].
/// [`super::send_from_loopback`] answers what was redirected to it.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn bind_udp_dual(port: u16) -> io::Result<std::net::UdpSocket> {
    let Some(socket) = dual(SocketType::DGRAM)? else {
        return bind_udp((Ipv4Addr::LOCALHOST, port).into());
    };
    rustix::net::bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    Ok(socket.into())
}

/// A non-blocking TCP listener.
///
/// # Errors
/// Those of socket(2), bind(2), listen(2).
pub fn listen_tcp(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    listening(socket(family_of(addr), SocketType::STREAM)?, addr)
}

fn listening(socket: OwnedFd, addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &addr)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A non-blocking UDP socket.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn bind_udp(addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket(family_of(addr), SocketType::DGRAM)?;
    rustix::net::bind(&socket, &addr)?;
    Ok(socket.into())
}

/// As [`super::tcp_sockets`].
///
/// # Errors
/// Those of socket(2).
pub fn tcp_sockets(v4: usize, v6: usize) -> io::Result<UnconnectedSockets> {
    let first = (0..v4)
        .map(|_| socket(AddressFamily::INET, SocketType::STREAM))
        .collect::<io::Result<Vec<_>>>()?;
    let second = (0..v6)
        .map(|_| socket(AddressFamily::INET6, SocketType::STREAM))
        .collect::<io::Result<Vec<_>>>();
    match second {
        Ok(second) => Ok((first, second)),
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok((first, Vec::new())),
        Err(e) => Err(e),
    }
}

/// A mount of its sysfs (/sys of a container in it), read-only and attached nowhere. For
/// [`crate::SpawnFds::sys`].
///
/// # Errors
/// Those of fsopen(2) and fsmount(2); no CAP_SYS_ADMIN.
pub fn system_files() -> io::Result<OwnedFd> {
    crate::mount::system_files()
}

/// An IPv6 socket that serves IPv4 too; `None` if the kernel has no IPv6, or it is switched off.
fn dual(kind: SocketType) -> io::Result<Option<OwnedFd>> {
    match open(AddressFamily::INET6, kind) {
        Ok(socket) => {
            sockopt::set_ipv6_v6only(&socket, false)?;
            Ok(Some(socket))
        }
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn family_of(addr: SocketAddr) -> AddressFamily {
    if addr.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    }
}

fn socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = open(family, kind)?;
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

fn open(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    let protocol = (kind == SocketType::STREAM).then_some(ipproto::TCP);
    let socket = rustix::net::socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        protocol,
    )?;
    Ok(socket)
}
