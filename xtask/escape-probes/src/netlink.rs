//! Changes to the container's own network namespace, whose rules lead its traffic to the daemon.

use crate::Probe;
use crate::sys::{call, errno};

const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_SETLINK: u16 = 19;
const RTM_NEWLINK: u16 = 16;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const NFNL_BATCH_BEGIN: u16 = 16;
const NFNL_BATCH_END: u16 = 17;
const NFT_DELTABLE: u16 = 10 << 8 | 2;

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("flush-rules", |_| {
        // All tables of all families, in one batch.
        let batch = [
            message(NFNL_BATCH_BEGIN, 0, &[0, 0, 0, 10]),
            message(NFT_DELTABLE, ACK, &[0, 0, 0, 0]),
            message(NFNL_BATCH_END, 0, &[0, 0, 0, 10]),
        ]
        .concat();
        exchange(libc::NETLINK_NETFILTER, &batch)
    }),
    ("add-address", |_| {
        // ifaddrmsg for the interface with number 1, loopback; IFA_LOCAL.
        let mut body = vec![libc::AF_INET as u8, 32, 0, 0, 1, 0, 0, 0];
        body.extend(attribute(2, &[192, 0, 2, 77]));
        body.extend(attribute(1, &[192, 0, 2, 77]));
        exchange(
            libc::NETLINK_ROUTE,
            &message(RTM_NEWADDR, ACK | CREATE, &body),
        )
    }),
    ("add-route", |_| {
        // rtmsg: /32, main table, boot protocol, link scope, unicast; RTA_DST, RTA_OIF.
        let mut body = vec![libc::AF_INET as u8, 32, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0];
        body.extend(attribute(1, &[192, 0, 2, 78]));
        body.extend(attribute(4, &1u32.to_ne_bytes()));
        exchange(
            libc::NETLINK_ROUTE,
            &message(RTM_NEWROUTE, ACK | CREATE, &body),
        )
    }),
    ("link-down", |_| {
        // ifinfomsg with a change that changes nothing: up, as it is.
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&1i32.to_ne_bytes());
        body[8..12].copy_from_slice(&1u32.to_ne_bytes());
        body[12..16].copy_from_slice(&1u32.to_ne_bytes());
        exchange(libc::NETLINK_ROUTE, &message(RTM_SETLINK, ACK, &body))
    }),
    ("add-link", |_| {
        // A pair of virtual interfaces: IFLA_LINKINFO with IFLA_INFO_KIND.
        let mut body = vec![0; 16];
        body.extend(attribute(18, &attribute(1, b"veth\0")));
        exchange(
            libc::NETLINK_ROUTE,
            &message(RTM_NEWLINK, ACK | CREATE, &body),
        )
    }),
];

fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = (data.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | REQUEST).to_ne_bytes());
    bytes.extend(7u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends, and returns the first error among the answers.
fn exchange(protocol: i32, bytes: &[u8]) -> String {
    let args = [
        libc::AF_NETLINK as usize,
        libc::SOCK_RAW as usize,
        protocol as usize,
    ];
    let socket = match call(libc::SYS_socket, &args) {
        Ok(fd) => fd as usize,
        Err(number) => return format!("socket: {}", errno(number)),
    };
    let args = [socket, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0];
    if let Err(number) = call(libc::SYS_sendto, &args) {
        return errno(number);
    }
    let mut buffer = vec![0u8; 8192];
    let args = [socket, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    match call(libc::SYS_recvfrom, &args) {
        Ok(length) if length >= 20 => {
            let code = i32::from_ne_bytes([buffer[16], buffer[17], buffer[18], buffer[19]]);
            match code {
                0 => "worked".to_owned(),
                code => errno(-code),
            }
        }
        Ok(_) => "a short answer".to_owned(),
        Err(number) => errno(number),
    }
}
