//! Sockets of kinds that a container has no use for, and names of sockets that are not its own.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use crate::Probe;
use crate::sys::{argument, attempt, io_word};

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("raw-socket", |_| {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("packet-socket", |_| {
        socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
    }),
    ("vsock", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("alg", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("xdp", |_| socket(libc::AF_XDP, libc::SOCK_RAW, 0)),
    ("other-families", |_| {
        let usual = [
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
            libc::AF_PACKET,
        ];
        let kinds = [
            libc::SOCK_STREAM,
            libc::SOCK_DGRAM,
            libc::SOCK_RAW,
            libc::SOCK_SEQPACKET,
        ];
        let others = (0..=46).filter(|family| !usual.contains(family));
        // Whether the kernel's code for a family was reached: it answers otherwise than the filter.
        let reached = others
            .flat_map(|family| kinds.map(|kind| socket(family, kind, 0)))
            .any(|answer| answer != "EAFNOSUPPORT");
        if reached { "reached" } else { "none" }.to_owned()
    }),
    ("abstract-socket", |args| {
        let address = SocketAddr::from_abstract_name(argument(args, 0));
        io_word(address.and_then(|address| UnixStream::connect_addr(&address)))
    }),
    ("unix-sockets", |args| {
        let mut seen: Vec<String> = args
            .iter()
            .map(|path| io_word(UnixStream::connect(path)))
            .collect();
        seen.dedup();
        seen.join(" ")
    }),
];

fn socket(family: i32, kind: i32, protocol: i32) -> String {
    attempt(
        libc::SYS_socket,
        &[family as usize, kind as usize, protocol as usize],
    )
}
