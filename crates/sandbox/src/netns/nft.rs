//! The redirection rules, as nf_tables messages (linux/netfilter/nf_tables.h).
//!
//! For each address family one table with two chains on the output hook:
//! ```text
//! chain raw (filter, priority raw)
//!   # No connection tracking inside: no table to fill up, less to do per packet.
//!   saddr LOOPBACK daddr LOOPBACK         notrack
//! chain out (nat, priority dstnat; sees the first packet of a connection)
//!   daddr LOOPBACK                        accept
//!   daddr OWN                             accept
//!   udp dport 53                          redirect to :DNS
//!   tcp                                   redirect to :TCP
//!   # Other protocols: sendto(2) fails at once with EPERM.
//!                                         drop
//! ```

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::Redirect;
use super::netlink::{Attributes, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, named};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const HOOK_LOCAL_OUT: u32 = 3;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -100;
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const TABLE: &str = "wharf";

/// One address family's side of the rules.
struct Family {
    proto: u8,
    /// Where the source and destination addresses are in the header.
    source: u32,
    destination: u32,
    loopback: Vec<u8>,
    loopback_mask: Vec<u8>,
    own: Vec<u8>,
}

impl Family {
    fn v4(own: Ipv4Addr) -> Self {
        Self {
            proto: NFPROTO_IPV4,
            source: 12,
            destination: 16,
            loopback: vec![127, 0, 0, 0],
            loopback_mask: vec![255, 0, 0, 0],
            own: own.octets().to_vec(),
        }
    }

    fn v6(own: Ipv6Addr) -> Self {
        Self {
            proto: NFPROTO_IPV6,
            source: 8,
            destination: 24,
            loopback: Ipv6Addr::LOCALHOST.octets().to_vec(),
            loopback_mask: vec![255; 16],
            own: own.octets().to_vec(),
        }
    }
}

/// Installs the rules in the calling thread's network namespace, in one transaction.
pub(super) fn install(redirect: Redirect, v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> io::Result<()> {
    transaction(|messages| {
        family(messages, redirect, &Family::v4(v4));
        if let Some(v6) = v6 {
            family(messages, redirect, &Family::v6(v6));
        }
    })
}

/// Installs the rules of IPv4 alone, in place of those that may be there.
pub(super) fn replace_v4(redirect: Redirect, v4: Ipv4Addr) -> io::Result<()> {
    replace(redirect, &Family::v4(v4))
}

/// Installs the rules of IPv6 alone, in place of those that may be there.
pub(super) fn replace_v6(redirect: Redirect, v6: Ipv6Addr) -> io::Result<()> {
    replace(redirect, &Family::v6(v6))
}

fn replace(redirect: Redirect, of: &Family) -> io::Result<()> {
    transaction(|messages| {
        // Added first, since what does not exist cannot be deleted.
        table(messages, of.proto);
        messages.push(
            "deleting a table",
            DELTABLE,
            NLM_F_ACK,
            &header(of.proto, 0),
            |a| {
                a.string(1, TABLE);
            },
        );
        family(messages, redirect, of);
    })
}

fn transaction(content: impl FnOnce(&mut Messages)) -> io::Result<()> {
    let mut messages = Messages::default();
    messages.push(
        "beginning a rule set",
        BATCH_BEGIN,
        0,
        &header(NFPROTO_UNSPEC, SUBSYSTEM),
        |_| {},
    );
    content(&mut messages);
    messages.push(
        "ending a rule set",
        BATCH_END,
        0,
        &header(NFPROTO_UNSPEC, SUBSYSTEM),
        |_| {},
    );
    messages
        .exchange(Some(rustix::net::netlink::NETFILTER))
        .map_err(|e| {
            named(
                "redirecting a network namespace's traffic (this needs the kernel's nf_tables, nft_ct, nft_redir and nf_nat)",
                e,
            )
        })
}

fn table(messages: &mut Messages, proto: u8) {
    messages.push(
        "adding a table",
        NEWTABLE,
        NLM_F_ACK | NLM_F_CREATE,
        &header(proto, 0),
        |a| {
            a.string(1, TABLE).be32(2, 0);
        },
    );
}

fn family(messages: &mut Messages, redirect: Redirect, family: &Family) {
    table(messages, family.proto);
    chain(messages, family.proto, "raw", "filter", PRIORITY_RAW);
    chain(messages, family.proto, "out", "nat", PRIORITY_DSTNAT);
    rule(messages, family.proto, "raw", |e| {
        family.loopback_at(e, family.source);
        family.loopback_at(e, family.destination);
        expression(e, "notrack", |_| {});
    });
    rule(messages, family.proto, "out", |e| {
        family.loopback_at(e, family.destination);
        verdict(e, NF_ACCEPT);
    });
    rule(messages, family.proto, "out", |e| {
        payload(e, Base::Network, family.destination, family.own.len());
        compare(e, &family.own);
        verdict(e, NF_ACCEPT);
    });
    rule(messages, family.proto, "out", |e| {
        transport(e, IPPROTO_UDP);
        payload(e, Base::Transport, 2, 2);
        compare(e, &53u16.to_be_bytes());
        redirect_to(e, redirect.dns_port);
    });
    rule(messages, family.proto, "out", |e| {
        transport(e, IPPROTO_TCP);
        redirect_to(e, redirect.tcp_port);
    });
    rule(messages, family.proto, "out", |e| verdict(e, NF_DROP));
}

impl Family {
    fn loopback_at(&self, e: &mut Attributes<'_>, offset: u32) {
        payload(e, Base::Network, offset, self.loopback.len());
        mask(e, &self.loopback_mask);
        compare(e, &self.loopback);
    }
}

/// nfgenmsg: family, version 0, resource in network order.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

fn chain(messages: &mut Messages, proto: u8, name: &str, kind: &str, priority: i32) {
    messages.push(
        "adding a chain",
        NEWCHAIN,
        NLM_F_ACK | NLM_F_CREATE,
        &header(proto, 0),
        |a| {
            a.string(1, TABLE)
                .string(3, name)
                .nested(4, |hook| {
                    hook.be32(1, HOOK_LOCAL_OUT)
                        .be32(2, priority.cast_unsigned());
                })
                .be32(5, NF_ACCEPT)
                .string(7, kind);
        },
    );
}

fn rule(
    messages: &mut Messages,
    proto: u8,
    chain: &str,
    expressions: impl FnOnce(&mut Attributes<'_>),
) {
    messages.push(
        "adding a rule",
        NEWRULE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND,
        &header(proto, 0),
        |a| {
            a.string(1, TABLE).string(2, chain).nested(4, expressions);
        },
    );
}

fn expression(e: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    e.nested(1, |element| {
        element.string(1, name).nested(2, data);
    });
}

#[derive(Clone, Copy)]
enum Base {
    Network = 1,
    Transport = 2,
}

/// Loads bytes of a header into register 1.
fn payload(e: &mut Attributes<'_>, base: Base, offset: u32, length: usize) {
    expression(e, "payload", |d| {
        d.be32(1, REG_1)
            .be32(2, base as u32)
            .be32(3, offset)
            .be32(4, u32::try_from(length).unwrap_or(u32::MAX));
    });
}

/// Ands register 1 with a mask.
fn mask(e: &mut Attributes<'_>, mask: &[u8]) {
    expression(e, "bitwise", |d| {
        d.be32(1, REG_1)
            .be32(2, REG_1)
            .be32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX))
            .nested(4, |v| {
                v.bytes(1, mask);
            })
            .nested(5, |v| {
                v.bytes(1, &vec![0; mask.len()]);
            });
    });
}

/// Ends the rule unless register 1 holds the value.
fn compare(e: &mut Attributes<'_>, value: &[u8]) {
    expression(e, "cmp", |d| {
        d.be32(1, REG_1).be32(2, 0).nested(3, |v| {
            v.bytes(1, value);
        });
    });
}

/// Ends the rule unless the packet has this transport protocol.
fn transport(e: &mut Attributes<'_>, protocol: u8) {
    const META_L4PROTO: u32 = 16;
    expression(e, "meta", |d| {
        d.be32(1, REG_1).be32(2, META_L4PROTO);
    });
    compare(e, &[protocol]);
}

fn verdict(e: &mut Attributes<'_>, code: u32) {
    expression(e, "immediate", |d| {
        d.be32(1, REG_VERDICT).nested(2, |v| {
            v.nested(2, |verdict| {
                verdict.be32(1, code);
            });
        });
    });
}

fn redirect_to(e: &mut Attributes<'_>, port: u16) {
    expression(e, "immediate", |d| {
        d.be32(1, REG_1).nested(2, |v| {
            v.bytes(1, &port.to_be_bytes());
        });
    });
    expression(e, "redir", |d| {
        d.be32(1, REG_1);
    });
}
