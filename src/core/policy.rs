//! Which addresses may be candidates, and which candidates may meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ice::{Base, BaseKind, RemoteCandidate};

/// The overlay's own ranges: a path through the overlay would carry itself.
const OVERLAY_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(100, 91, 0, 0), 16);
const OVERLAY_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd7a, 0x091c, 0x0020, 0, 0, 0, 0, 0), 64);

/// Whether an address may be a candidate at all, ours or theirs: never loopback, link-local,
/// multicast, broadcast, unspecified, or of the overlay.
pub fn is_candidate_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                || v4.octets()[0] >= 240
                || in_v4(v4, OVERLAY_V4))
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || in_v6(v6, OVERLAY_V6))
        }
    }
}

/// Whether an address is private to a site or carrier: RFC 1918, RFC 6598, RFC 4193.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || in_v4(v4, (Ipv4Addr::new(100, 64, 0, 0), 10)),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Whether a base and an advertised candidate may meet: one family, an address that may be a
/// candidate, and no relay on the public internet towards somebody's private network (its server
/// would refuse, or reach a stranger).
pub fn pairable(base: &Base, remote: &RemoteCandidate) -> bool {
    if base.address.is_ipv4() != remote.address.is_ipv4()
        || !is_candidate_address(remote.address.ip())
    {
        return false;
    }
    match base.kind {
        BaseKind::Host => true,
        BaseKind::Relayed(_) => !is_private(remote.address.ip()) || is_private(base.address.ip()),
    }
}

fn in_v4(address: Ipv4Addr, (network, length): (Ipv4Addr, u8)) -> bool {
    let mask = u32::MAX << (32 - u32::from(length));
    address.to_bits() & mask == network.to_bits() & mask
}

fn in_v6(address: Ipv6Addr, (network, length): (Ipv6Addr, u8)) -> bool {
    let mask = u128::MAX << (128 - u32::from(length));
    address.to_bits() & mask == network.to_bits() & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_no_candidates() {
        for refused in [
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "240.0.0.1",
            "100.91.4.17",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "fd7a:91c:20::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(!is_candidate_address(refused.parse().unwrap()), "{refused}");
        }
        for taken in [
            "192.168.1.2",
            "100.64.0.1",
            "198.51.100.7",
            "2001:db8::1",
            "fd00::1",
        ] {
            assert!(is_candidate_address(taken.parse().unwrap()), "{taken}");
        }
    }
}
