//! Datagrams whose source address the sender chooses.
//!
//! Owns: that one system call. Must not: know why an address is chosen.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for one control message with a `struct in6_pktinfo`, aligned as a `struct cmsghdr` is.
#[repr(align(8))]
struct Control([u8; 64]);

/// sendmsg(2) with IPV6_PKTINFO (RFC 3542, section 6), which also holds for IPv4-mapped addresses.
/// Does not block.
///
/// # Errors
/// Those of sendmsg(2).
pub(super) fn send_from(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    to: SocketAddrV6,
    source: Ipv6Addr,
) -> io::Result<()> {
    let address = |octets| libc::in6_addr { s6_addr: octets };
    let mut name = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: to.port().to_be(),
        sin6_flowinfo: to.flowinfo(),
        sin6_addr: address(to.ip().octets()),
        sin6_scope_id: to.scope_id(),
    };
    let info = libc::in6_pktinfo {
        ipi6_addr: address(source.octets()),
        ipi6_ifindex: 0,
    };
    let mut part = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    let mut control = Control([0; 64]);
    // SAFETY: a `struct msghdr` of zeros is a valid one: no name, no parts, no control messages.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control.0).cast();
    // SAFETY: computes sizes alone, and dereferences nothing.
    let (space, length) = unsafe {
        let size = size_of::<libc::in6_pktinfo>() as u32;
        (libc::CMSG_SPACE(size), libc::CMSG_LEN(size))
    };
    message.msg_controllen = space as _;
    // SAFETY: the buffer is aligned, and with 64 bytes larger than `space` (40), so the first
    // header and its data lie within it. All that `message` points to outlives the call, which
    // writes to none of it.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::IPPROTO_IPV6;
        (*header).cmsg_type = libc::IPV6_PKTINFO;
        (*header).cmsg_len = length as _;
        libc::CMSG_DATA(header)
            .cast::<libc::in6_pktinfo>()
            .write_unaligned(info);
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const message,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
