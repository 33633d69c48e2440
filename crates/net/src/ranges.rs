//! Which addresses a container may reach outside. Pure.
//!
//! The daemon dials in the container's stead, so without a rule a container would reach whatever the host reaches: its own
//! services, its private networks, the cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of destination an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// May be reached by whoever may reach the internet.
    Public,
    /// A private network, link-local (with the metadata services), carrier-grade NAT: by [`crate::NetConfig::allow_private`] only.
    Private,
    /// Loopback, unspecified, multicast, broadcast: never. In the daemon's namespace they are not what the container meant.
    Never,
}

/// The range of an address. IPv4 addresses within IPv6 ones (mapped, compatible, NAT64, 6to4) count as the IPv4 address.
pub fn range(address: IpAddr) -> Range {
    match address {
        IpAddr::V4(v4) => range_v4(v4),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => range_v4(v4),
            None => range_v6(v6),
        },
    }
}

fn range_v4(address: Ipv4Addr) -> Range {
    let [a, b, ..] = address.octets();
    match (a, b) {
        // "This network", loopback, multicast, reserved and broadcast (RFC 6890).
        (0 | 127 | 224.., _) => Range::Never,
        // RFC 1918; link-local, where metadata services are (RFC 3927); carrier-grade NAT (RFC 6598).
        (10, _) | (172, 16..=31) | (192, 168) | (169, 254) | (100, 64..=127) => Range::Private,
        _ => Range::Public,
    }
}

fn range_v6(address: Ipv6Addr) -> Range {
    let first = address.segments()[0];
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        Range::Never
    } else if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80 || first & 0xffc0 == 0xfec0 {
        // Unique local (RFC 4193), link-local, and site-local, which old equipment still knows.
        Range::Private
    } else {
        Range::Public
    }
}

/// The IPv4 address that an IPv6 address stands for.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let at = |i: usize| {
        let [a, b] = s[i].to_be_bytes();
        let [c, d] = s[i + 1].to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        // ::ffff:a.b.c.d and ::a.b.c.d (but :: and ::1 are their own thing).
        [0, 0, 0, 0, 0, 0xffff, _, _] => Some(at(6)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => Some(at(6)),
        // NAT64 (RFC 6052), 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(at(6)),
        [0x2002, ..] => Some(at(1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Range {
        range(text.parse().unwrap())
    }

    #[test]
    fn the_well_known_ones() {
        for public in [
            "1.1.1.1",
            "203.0.113.80",
            "100.63.0.1",
            "172.32.0.1",
            "2606:4700::1111",
        ] {
            assert_eq!(of(public), Range::Public, "{public}");
        }
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "fd00::1",
            "fc00::1",
            "fe80::1",
            "::ffff:169.254.169.254",
            "::10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
        ] {
            assert_eq!(of(private), Range::Private, "{private}");
        }
        for never in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
        ] {
            assert_eq!(of(never), Range::Never, "{never}");
        }
    }

    proptest! {
        /// Agrees with the standard library's own classification of IPv4.
        #[test]
        fn agrees_with_the_standard_library(bits: u32) {
            let ip = Ipv4Addr::from(bits);
            let refused = ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast()
                || ip.is_broadcast() || ip.is_unspecified();
            if refused {
                prop_assert_ne!(range(ip.into()), Range::Public);
            }
            if range(ip.into()) == Range::Private {
                prop_assert!(refused || ip.octets()[0] == 100);
            }
        }

        /// Writing an IPv4 address in an IPv6 way opens no door.
        #[test]
        fn no_way_of_writing_it_changes_the_answer(bits: u32) {
            let ip = Ipv4Addr::from(bits);
            let [a, b] = [(bits >> 16) as u16, bits as u16];
            let plain = range(ip.into());
            prop_assert_eq!(range(ip.to_ipv6_mapped().into()), plain);
            prop_assert_eq!(range(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b).into()), plain);
            prop_assert_eq!(range(Ipv6Addr::new(0x2002, a, b, 0, 0, 0, 0, 1).into()), plain);
        }

        /// All of a private prefix is private.
        #[test]
        fn private_prefixes_are_whole(rest: u128) {
            for (prefix, bits) in [(0xfc00u128 << 112, 7), (0xfe80u128 << 112, 10)] {
                let ip = Ipv6Addr::from(prefix | (rest >> bits));
                prop_assert_eq!(range(ip.into()), Range::Private);
            }
        }
    }
}
