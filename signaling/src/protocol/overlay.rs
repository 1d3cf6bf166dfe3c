//! Overlay addresses: functions of the key, so that nobody hands them out and a false claim
//! shows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest as _, Sha256};

use super::{IpPrefix, PublicKey};

/// Overlay IPv4 addresses: out of 100.64.0.0/10 (RFC 6598), which no LAN should use.
pub const OVERLAY_IPV4: IpPrefix = prefix(IpAddr::V4(Ipv4Addr::new(100, 91, 0, 0)), 16);

/// Overlay IPv6 addresses: a unique local prefix (RFC 4193).
pub const OVERLAY_IPV6: IpPrefix = prefix(
    IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x091c, 0x0020, 0, 0, 0, 0, 0)),
    64,
);

const IPV4_LABEL: &[u8] = b"wice-overlay4-v1\0";
const IPV6_LABEL: &[u8] = b"wice-overlay6-v1\0";

/// The node's overlay IPv6 address: the prefix and 8 bytes of SHA-256 over a label and the key.
#[must_use]
pub fn overlay_ipv6(key: &PublicKey) -> Ipv6Addr {
    let digest = Sha256::new()
        .chain_update(IPV6_LABEL)
        .chain_update(key.0)
        .finalize();
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&[0xfd, 0x7a, 0x09, 0x1c, 0x00, 0x20, 0, 0]);
    octets[8..].copy_from_slice(&digest[..8]);
    Ipv6Addr::from(octets)
}

/// The node's overlay IPv4 address for `counter`: 16 bits hold collisions (one in two for 300
/// nodes), so the later of two nodes takes its next counter. Never .0.0 or .255.255.
#[must_use]
pub fn overlay_ipv4(key: &PublicKey, counter: u8) -> Ipv4Addr {
    let hash = Sha256::new()
        .chain_update(IPV4_LABEL)
        .chain_update(key.0)
        .chain_update([counter]);
    let digest = hash.finalize();
    let mut wide = [0; 8];
    wide.copy_from_slice(&digest[..8]);
    // 64 bits modulo 65,534 leave no measurable bias.
    let host = (u64::from_be_bytes(wide) % 65_534 + 1) as u16;
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(100, 91, high, low)
}

/// Whether `address` is one that the node of `key` may claim with `counter`.
#[must_use]
pub fn may_claim_overlay(key: &PublicKey, counter: u8, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4 == overlay_ipv4(key, counter),
        IpAddr::V6(v6) => v6 == overlay_ipv6(key),
    }
}

const fn prefix(address: IpAddr, len: u8) -> IpPrefix {
    match IpPrefix::new(address, len) {
        Some(prefix) => prefix,
        // Evaluated when compiled: a wrong constant does not build.
        None => panic!("host bits in an overlay prefix"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_pinned() {
        // Changing these renumbers every mesh.
        let key = PublicKey([7; 32]);
        assert_eq!(
            overlay_ipv6(&key).to_string(),
            "fd7a:91c:20:0:c0b0:5dd4:c583:c06e"
        );
        assert_eq!(overlay_ipv4(&key, 0).to_string(), "100.91.193.207");
        assert_eq!(overlay_ipv4(&key, 1).to_string(), "100.91.2.95");
    }

    #[test]
    fn addresses_lie_within_and_never_at_the_ends() {
        for n in 0..=255u8 {
            for counter in 0..=255 {
                let v4 = overlay_ipv4(&PublicKey([n; 32]), counter);
                assert!(OVERLAY_IPV4.contains(v4.into()));
                assert!(
                    v4 != Ipv4Addr::new(100, 91, 0, 0) && v4 != Ipv4Addr::new(100, 91, 255, 255)
                );
            }
            assert!(OVERLAY_IPV6.contains(overlay_ipv6(&PublicKey([n; 32])).into()));
        }
    }

    #[test]
    fn only_the_own_address_may_be_claimed() {
        let (own, other) = (PublicKey([1; 32]), PublicKey([2; 32]));
        assert!(may_claim_overlay(&own, 3, overlay_ipv4(&own, 3).into()));
        assert!(!may_claim_overlay(&own, 2, overlay_ipv4(&own, 3).into()));
        assert!(!may_claim_overlay(&own, 3, overlay_ipv4(&other, 3).into()));
        assert!(may_claim_overlay(&own, 0, overlay_ipv6(&own).into()));
        assert!(!may_claim_overlay(&own, 0, overlay_ipv6(&other).into()));
    }
}
