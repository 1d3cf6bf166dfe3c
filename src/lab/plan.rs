//! The address plan. IPv4 is from the ranges for documentation (RFC 5737), carriers' insides from
//! the shared space (RFC 6598), IPv6 from 2001:db8::/32 (RFC 3849).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::config::LanSubnet;

/// First STUN server and relay; its other address for RFC 5780 is 198.51.100.2.
pub const TURN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The relay's second address.
pub(super) const TURN_OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Second STUN server.
pub const STUN_2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
/// Signaling service.
pub const SIGNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The relay over IPv6.
pub const TURN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The relay's second IPv6 address.
pub(super) const TURN_OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// Second STUN server over IPv6.
pub const STUN_2_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);
/// Signaling service over IPv6.
pub const SIGNAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

/// Where public addresses of homes are, which a relay must be told to reach: to the world these are for documentation.
pub(super) const PUBLIC_RANGES: [&str; 3] = ["192.0.2.0/24", "203.0.113.0/24", "2001:db8::/32"];

/// Their names in the lab's `/etc/hosts`.
pub(super) const TURN_NAME: &str = "turn.lab.example";
pub(super) const STUN_2_NAME: &str = "stun-2.lab.example";
pub(super) const SIGNAL_NAME: &str = "signal.lab.example";

/// The low five bits of a WAN address start behind those of the STUN servers.
const FIRST_WAN: u8 = 4;
/// WAN addresses that differ by this share their low five bits.
const RENUMBERING_STEP: u8 = 32;
/// How often a WAN can be renumbered before an address comes again.
const GENERATIONS: u8 = 8;
/// Private subnets start at 192.168.10.0, clear of what real routers use.
const FIRST_LAN: u8 = 10;
/// The subnet of every overlapping home.
const OVERLAPPING_LAN: u8 = 1;
/// Where the proxy is in its LAN.
const PROXY_HOST: u8 = 200;
/// A public home's nodes come after the router, at 5 and 6 of its /29: not in the low five bits of
/// a STUN server.
const FIRST_PUBLIC_NODE: u8 = 5;

/// The public address of the `site`-th home or carrier, renumbered `generation` times.
pub(super) fn wan(site: u8, generation: u8) -> Ipv4Addr {
    Ipv4Addr::new(
        203,
        0,
        113,
        FIRST_WAN + site + RENUMBERING_STEP * (generation % GENERATIONS),
    )
}

/// The same for a router that maps ports: next to the range for documentation, in the lab alone.
pub(super) fn mapper_wan(site: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(wan(site, 0).to_bits() + (1 << 8))
}

/// The IPv6 address of a router on the internet.
pub(super) fn wan6(site: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, u16::from(site), 0, 0, 0, 1)
}

/// A carrier's address inside (`subscriber` `None`), or a subscriber's.
pub(super) fn carrier(site: u8, subscriber: Option<u8>) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, site, subscriber.map_or(1, |number| 2 + number))
}

/// A home's LAN.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lan {
    pub(super) router: Ipv4Addr,
    pub(super) length: u8,
    pub(super) router6: Ipv6Addr,
    first_node: u8,
}

impl Lan {
    pub(super) const LENGTH6: u8 = 64;

    pub(super) fn private(site: u8, subnet: LanSubnet) -> Self {
        let third = match subnet {
            LanSubnet::Own => FIRST_LAN + site,
            LanSubnet::Overlapping => OVERLAPPING_LAN,
        };
        let router = Ipv4Addr::new(192, 168, third, 1);
        Self {
            router,
            length: 24,
            router6: router6(site),
            first_node: 2,
        }
    }

    pub(super) fn public(site: u8) -> Self {
        let router = Ipv4Addr::new(192, 0, 2, 8 * site + 1);
        Self {
            router,
            length: 29,
            router6: router6(site),
            first_node: FIRST_PUBLIC_NODE,
        }
    }

    pub(super) fn node(&self, index: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits((self.router.to_bits() & !7) + u32::from(self.first_node + index))
    }

    pub(super) fn node6(&self, index: u8) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.router6.to_bits() + 1 + u128::from(index))
    }

    pub(super) fn proxy(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.router.octets();
        Ipv4Addr::new(a, b, c, PROXY_HOST)
    }
}

fn router6(site: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, u16::from(site), 0, 0, 0, 1)
}

/// `/etc/hosts` of the lab.
pub(super) fn hosts() -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    let names: [(IpAddr, IpAddr, &str); 3] = [
        (TURN.into(), TURN_V6.into(), TURN_NAME),
        (STUN_2.into(), STUN_2_V6.into(), STUN_2_NAME),
        (SIGNAL.into(), SIGNAL_V6.into(), SIGNAL_NAME),
    ];
    for (v4, v6, name) in names {
        text.push_str(&format!("{v4} {name}\n{v6} {name}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::lab::config::MAX_SITES;

    /// The address-dependent NAT groups destinations by the low five bits.
    #[test]
    fn no_wan_shares_its_group_with_another_or_with_a_stun_server() {
        let mut groups = BTreeSet::new();
        let servers = [TURN, TURN_OTHER, STUN_2];
        let wans = (0..MAX_SITES as u8).map(|site| wan(site, 3));
        for address in servers.into_iter().chain(wans) {
            assert!(groups.insert(address.octets()[3] % 32), "{address}");
        }
        for site in 0..MAX_SITES as u8 {
            for node in 0..2 {
                let group = Lan::public(site).node(node).octets()[3] % 32;
                assert!(!servers.iter().any(|s| s.octets()[3] % 32 == group));
            }
        }
    }

    #[test]
    fn nodes_are_in_their_lan() {
        assert_eq!(Lan::public(3).node(1), Ipv4Addr::new(192, 0, 2, 30));
        let lan = Lan::private(0, LanSubnet::Own);
        assert_eq!(lan.node(0), Ipv4Addr::new(192, 168, 10, 2));
        assert_eq!(lan.node6(0), "2001:db8:2::2".parse::<Ipv6Addr>().unwrap());
    }
}
