//! Cryptokey routing: which peer an inner address belongs to (WireGuard paper, §2).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::PeerId;
use crate::wireguard::IpPrefix;
use crate::wireguard::mask::{mask_v4, mask_v6};

/// Prefixes by family and length, longest first. A lookup costs one search for each length in use:
/// a mesh has one or two.
#[derive(Debug, Default)]
pub(super) struct AllowedIps {
    v4: Vec<(u8, BTreeMap<u32, PeerId>)>,
    v6: Vec<(u8, BTreeMap<u128, PeerId>)>,
}

impl AllowedIps {
    /// A prefix belongs to one peer: the last that it was given to, as in `wg set`.
    pub(super) fn insert(&mut self, prefix: IpPrefix, peer: PeerId) {
        match prefix.address() {
            IpAddr::V4(v4) => level(&mut self.v4, prefix.prefix_len()).insert(v4.to_bits(), peer),
            IpAddr::V6(v6) => level(&mut self.v6, prefix.prefix_len()).insert(v6.to_bits(), peer),
        };
    }

    pub(super) fn remove_peer(&mut self, peer: PeerId) {
        self.v4
            .iter_mut()
            .for_each(|(_, map)| map.retain(|_, p| *p != peer));
        self.v6
            .iter_mut()
            .for_each(|(_, map)| map.retain(|_, p| *p != peer));
        self.v4.retain(|(_, map)| !map.is_empty());
        self.v6.retain(|(_, map)| !map.is_empty());
    }

    /// The peer of the longest prefix that holds `address`.
    pub(super) fn find(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(v4) => self
                .v4
                .iter()
                .find_map(|(len, map)| map.get(&mask_v4(v4.to_bits(), *len)).copied()),
            IpAddr::V6(v6) => self
                .v6
                .iter()
                .find_map(|(len, map)| map.get(&mask_v6(v6.to_bits(), *len)).copied()),
        }
    }
}

fn level<K: Ord>(levels: &mut Vec<(u8, BTreeMap<K, PeerId>)>, len: u8) -> &mut BTreeMap<K, PeerId> {
    let at = levels.partition_point(|(l, _)| *l > len);
    if levels.get(at).is_none_or(|(l, _)| *l != len) {
        levels.insert(at, (len, BTreeMap::new()));
    }
    &mut levels[at].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_prefixes_move() {
        let mut ips = AllowedIps::default();
        let (a, b, c) = (PeerId(0), PeerId(1), PeerId(2));
        for (prefix, peer) in [
            ("0.0.0.0/0", a),
            ("10.0.0.0/8", b),
            ("10.1.0.0/16", c),
            ("fd00::/8", a),
            ("fd00::1/128", b),
        ] {
            ips.insert(prefix.parse().unwrap(), peer);
        }
        let find = |ips: &AllowedIps, ip: &str| ips.find(ip.parse().unwrap());
        assert_eq!(find(&ips, "10.1.2.3"), Some(c));
        assert_eq!(find(&ips, "10.2.2.3"), Some(b));
        assert_eq!(find(&ips, "8.8.8.8"), Some(a));
        assert_eq!(find(&ips, "fd00::1"), Some(b));
        assert_eq!(find(&ips, "fd00::2"), Some(a));
        assert_eq!(find(&ips, "2001:db8::1"), None);
        ips.insert("10.1.0.0/16".parse().unwrap(), a);
        assert_eq!(find(&ips, "10.1.2.3"), Some(a));
        ips.remove_peer(a);
        assert_eq!(find(&ips, "10.1.2.3"), Some(b));
        assert_eq!(find(&ips, "8.8.8.8"), None);
    }
}
