//! Which peers may be reached. A relay stands inside somebody's network: what is not plainly public is denied unless the
//! operator says otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::prefix::Prefix;

/// IPv4 that is not public unicast (IANA's special-purpose registry, "globally reachable: false"), and multicast and class E.
const SPECIAL_V4: [([u8; 4], u8); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];
/// Global unicast (RFC 4291 §2.4): whatever is outside is special in one way or another.
const GLOBAL_UNICAST: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0);
const GLOBAL_UNICAST_LEN: u8 = 3;
/// Within global unicast, and not public: IETF protocol assignments (Teredo, ORCHID, benchmarking), documentation, 6to4
/// (judged by the address inside as well).
const SPECIAL_V6: [([u16; 2], u8); 4] = [
    ([0x2001, 0x0000], 23),
    ([0x2001, 0x0db8], 32),
    ([0x2002, 0x0000], 16),
    ([0x3fff, 0x0000], 20),
];
/// The well-known prefix of NAT64 (RFC 6052 §2.1): the last 32 bits are an IPv4 address.
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// What may be sent to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Any port.
    Allowed,
    /// Our own address: its relay ports alone.
    RelayPorts,
    /// Nothing.
    Denied,
}

/// Allow and deny lists over the built-in rules: never-unicast, then denied by the operator, then allowed by the operator, then
/// own addresses, then special ranges.
#[derive(Clone, Debug, Default)]
pub struct PeerPolicy {
    /// Opens special ranges and own addresses.
    pub allow: Vec<Prefix>,
    /// Closes what would be open.
    pub deny: Vec<Prefix>,
    /// Every address of this machine, and those that the world knows it by.
    pub own: Vec<IpAddr>,
    /// Of those, the ones that relayed addresses have, as peers see them.
    pub relay: Vec<IpAddr>,
}

impl PeerPolicy {
    /// Judges an address as it stands in XOR-PEER-ADDRESS.
    pub fn judge(&self, address: IpAddr) -> Verdict {
        if never(address) {
            return Verdict::Denied;
        }
        let inner = embedded(address);
        let forms = || std::iter::once(address).chain(inner);
        if forms().any(|form| self.deny.iter().any(|prefix| prefix.contains(form)))
            || inner.is_some_and(never)
        {
            return Verdict::Denied;
        }
        // Allowing the IPv6 form of an address allows what it stands for only together with it.
        if forms().all(|form| self.allow.iter().any(|prefix| prefix.contains(form))) {
            return Verdict::Allowed;
        }
        if self.relay.contains(&address) {
            return Verdict::RelayPorts;
        }
        if forms().any(|form| self.own.contains(&form)) {
            return Verdict::Denied;
        }
        // NAT64 leads wherever the IPv4 address does; its own range is special only by name.
        let special = match inner {
            Some(inner) if is_nat64(address) => is_special(inner),
            Some(_) | None => forms().any(is_special),
        };
        if special {
            Verdict::Denied
        } else {
            Verdict::Allowed
        }
    }
}

/// What no list opens: no address of one host, or an IPv4 address in disguise, which no IPv6 socket sends to.
fn never(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_multicast()
                || ip.to_ipv4_mapped().is_some()
                // v4-compatible (RFC 4291 §2.5.5.1); ::1 is loopback.
                || (ip.to_bits() >> 32 == 0 && !ip.is_loopback())
        }
    }
}

/// The IPv4 address that packets to a 6to4 (RFC 3056) or NAT64 (RFC 6052) address end up at.
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = address else {
        return None;
    };
    let s = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
    };
    if s[0] == 0x2002 {
        return v4(s[1], s[2]);
    }
    if is_nat64(address) {
        return v4(s[6], s[7]);
    }
    None
}

fn is_nat64(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.segments()[..6] == NAT64,
    }
}

fn is_special(address: IpAddr) -> bool {
    let within =
        |base: IpAddr, len| Prefix::new(base, len).is_some_and(|prefix| prefix.contains(address));
    match address {
        IpAddr::V4(_) => SPECIAL_V4
            .iter()
            .any(|(base, len)| within(IpAddr::from(*base), *len)),
        IpAddr::V6(_) => {
            !within(IpAddr::V6(GLOBAL_UNICAST), GLOBAL_UNICAST_LEN)
                || SPECIAL_V6.iter().any(|([a, b], len)| {
                    within(Ipv6Addr::new(*a, *b, 0, 0, 0, 0, 0, 0).into(), *len)
                })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(policy: &PeerPolicy, text: &str) -> Verdict {
        policy.judge(text.parse().unwrap())
    }

    #[test]
    fn what_is_not_public_is_denied_by_default() {
        let policy = PeerPolicy::default();
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "3fff::1",
            "2001::1",
            "2001:2::1",
            "2001:20::1",
            "100::1",
            "5f00::1",
            "64:ff9b:1::1",
            "4000::1",
            // IPv4 in disguise.
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "::8.8.8.8",
            "::2",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2002:0a00:0001::1",
            "2002:808:808::1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.1.2.3",
            "64:ff9b::169.254.169.254",
            "64:ff9b::0.0.0.0",
            "64:ff9b::255.255.255.255",
        ] {
            assert_eq!(judge(&policy, text), Verdict::Denied, "{text}");
        }
        for text in [
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "2001:4860::8888",
            "64:ff9b::8.8.8.8",
        ] {
            assert_eq!(judge(&policy, text), Verdict::Allowed, "{text}");
        }
    }

    #[test]
    fn lists_open_and_close_but_never_what_is_no_host() {
        let prefixes = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
        let policy = PeerPolicy {
            allow: prefixes(&["10.1.0.0/16", "0.0.0.0/0", "::/0"]),
            deny: prefixes(&["10.1.9.0/24", "8.8.4.0/24", "2a00::/16"]),
            own: Vec::new(),
            relay: Vec::new(),
        };
        for text in [
            "10.1.0.1",
            "127.0.0.1",
            "::1",
            "fd00::1",
            "64:ff9b::10.1.0.1",
        ] {
            assert_eq!(judge(&policy, text), Verdict::Allowed, "{text}");
        }
        for text in [
            "10.1.9.1",
            "8.8.4.4",
            "2a00::1",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "::ffff:10.1.0.1",
            "64:ff9b::10.1.9.1",
            "2002:0a01:0901::1",
            "64:ff9b::224.0.0.1",
        ] {
            assert_eq!(judge(&policy, text), Verdict::Denied, "{text}");
        }
        // Allowing all of IPv6 does not allow an IPv4 range by its back door.
        let policy = PeerPolicy {
            allow: prefixes(&["::/0"]),
            ..PeerPolicy::default()
        };
        assert_eq!(judge(&policy, "64:ff9b::10.0.0.1"), Verdict::Denied);
        assert_eq!(judge(&policy, "2002:0a00:0001::1"), Verdict::Denied);
    }

    #[test]
    fn own_addresses_are_denied_but_for_relay_ports() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let policy = PeerPolicy {
            own: vec![ip("8.1.1.1"), ip("8.1.1.2"), ip("2a00::1")],
            relay: vec![ip("8.1.1.2")],
            ..PeerPolicy::default()
        };
        assert_eq!(judge(&policy, "8.1.1.1"), Verdict::Denied);
        assert_eq!(judge(&policy, "8.1.1.2"), Verdict::RelayPorts);
        assert_eq!(judge(&policy, "2a00::1"), Verdict::Denied);
        assert_eq!(judge(&policy, "64:ff9b::8.1.1.2"), Verdict::Denied);
    }
}
