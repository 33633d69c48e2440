//! Loopback, its address and its default route (rtnetlink(7)).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::netlink::{Messages, NLM_F_ACK, NLM_F_CREATE};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const LOOPBACK_INDEX: u32 = 1;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x2;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Does `ip link set lo up; ip addr add V4/32 dev lo; ip route add default dev lo src V4`, and for
/// IPv6, if it is given, `ip addr add V6/128 dev lo nodad; ip route add local default dev lo src
/// V6`.
///
/// Without `src`, connections would come from 127.0.0.1 and hang. The IPv6 route is of type
/// `local`, because the kernel turns any other route over loopback into a refusal.
pub(super) fn configure(v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> io::Result<()> {
    let mut messages = Messages::default();
    let mut link = [0u8; 16];
    link[4..8].copy_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    link[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    link[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    messages.push(
        "bringing loopback up",
        RTM_NEWLINK,
        NLM_F_ACK,
        &link,
        |_| {},
    );
    address(&mut messages, AF_INET, &v4.octets());
    route(
        &mut messages,
        (AF_INET, RT_SCOPE_LINK, RTN_UNICAST),
        &v4.octets(),
    );
    if let Some(v6) = v6 {
        configure_v6(&mut messages, v6);
    }
    messages.exchange(None)
}

/// Adds the IPv6 part to what [`configure`] did without it. None if it is there already.
pub(super) fn add_v6(v6: Ipv6Addr) -> io::Result<()> {
    let mut messages = Messages::default();
    configure_v6(&mut messages, v6);
    match messages.exchange(None) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn configure_v6(messages: &mut Messages, v6: Ipv6Addr) {
    address(messages, AF_INET6, &v6.octets());
    route(
        messages,
        (AF_INET6, RT_SCOPE_UNIVERSE, RTN_LOCAL),
        &v6.octets(),
    );
}

fn address(messages: &mut Messages, family: u8, address: &[u8]) {
    // Of IPv6 alone: duplicate address detection would keep the address from use for a while; and
    // the kernel, which makes the address's own route in the background, would until then refuse it
    // by a route to its prefix over loopback.
    let (prefix, flags) = if family == AF_INET {
        (32, 0)
    } else {
        (128, IFA_F_NODAD | IFA_F_NOPREFIXROUTE)
    };
    let mut header = [family, prefix, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    messages.push(
        "adding an address to loopback",
        RTM_NEWADDR,
        NLM_F_ACK | NLM_F_CREATE,
        &header,
        |a| {
            a.bytes(IFA_LOCAL, address)
                .bytes(IFA_ADDRESS, address)
                .bytes(IFA_FLAGS, &u32::to_ne_bytes(flags));
        },
    );
}

fn route(messages: &mut Messages, (family, scope, kind): (u8, u8, u8), source: &[u8]) {
    let header = [
        family,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        scope,
        kind,
        0,
        0,
        0,
        0,
    ];
    messages.push(
        "adding the default route to loopback",
        RTM_NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE,
        &header,
        |a| {
            a.bytes(RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes())
                .bytes(RTA_PREFSRC, source);
        },
    );
}
