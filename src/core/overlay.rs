//! Managed mode's addresses and routes: which inner addresses belong to which peer. Overlay addresses
//! are functions of the key; routes need the admin key's grant or this node's own consent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use wice_signaling::protocol::{
    IpPrefix, Membership, OVERLAY_IPV4, OVERLAY_IPV6, PublicKey, RecordError, Routes, overlay_ipv4,
    overlay_ipv6,
};

/// What a peer has been found to own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Its overlay IPv4 address; `None` where another peer, pinned first, has it.
    pub ipv4: Option<Ipv4Addr>,
    /// Its overlay IPv6 address and its routes.
    pub prefixes: Vec<IpPrefix>,
}

impl Owned {
    /// All of it, as WireGuard's allowed IPs.
    pub fn allowed_ips(&self) -> Vec<IpPrefix> {
        let host = self.ipv4.and_then(|v4| IpPrefix::host(IpAddr::V4(v4)));
        host.into_iter()
            .chain(self.prefixes.iter().copied())
            .collect()
    }
}

/// Why a record of routes was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutesRefusal {
    /// Malformed, or not signed by the key that it names.
    #[error("the record is malformed or forged: {0}")]
    Invalid(#[from] RecordError),
    /// No peer has this key.
    #[error("{0} is not a peer")]
    Stranger(PublicKey),
    /// Not newer than what we have.
    #[error("{0} sent old routes again")]
    Stale(PublicKey),
}

#[derive(Clone, Debug, Default)]
struct Member {
    sequence: u64,
    counter: u8,
    /// Announced and granted.
    prefixes: Vec<IpPrefix>,
    owned: Owned,
}

/// The addresses of a mesh, as this node sees them.
#[derive(Debug)]
pub struct Overlay {
    own: PublicKey,
    counter: u8,
    /// Prefixes that this node takes from whoever announces them.
    accepted: Vec<IpPrefix>,
    members: BTreeMap<PublicKey, Member>,
    pinned: BTreeMap<Ipv4Addr, PublicKey>,
    /// Claims that were refused.
    refused: u64,
}

impl Overlay {
    /// Only ourselves, at the address of `counter`. `accepted`: routes taken without a grant.
    pub fn new(own: PublicKey, counter: u8, accepted: Vec<IpPrefix>) -> Self {
        let pinned = BTreeMap::from([(overlay_ipv4(&own, counter), own)]);
        Self {
            own,
            counter,
            accepted,
            members: BTreeMap::new(),
            pinned,
            refused: 0,
        }
    }

    /// Our own overlay addresses.
    pub fn own_addresses(&self) -> (Ipv4Addr, std::net::Ipv6Addr) {
        (
            overlay_ipv4(&self.own, self.counter),
            overlay_ipv6(&self.own),
        )
    }

    /// A peer has come: its addresses are pinned to it.
    pub fn join(&mut self, key: PublicKey) -> Owned {
        self.members.entry(key).or_default();
        self.claim(key)
    }

    /// A peer has gone.
    pub fn leave(&mut self, key: &PublicKey) {
        self.members.remove(key);
        self.pinned.retain(|_, owner| owner != key);
    }

    /// What a peer owns.
    pub fn owned(&self, key: &PublicKey) -> Option<&Owned> {
        self.members.get(key).map(|member| &member.owned)
    }

    /// All peers with what they own.
    pub fn members(&self) -> impl Iterator<Item = (PublicKey, &Owned)> {
        self.members
            .iter()
            .map(|(key, member)| (*key, &member.owned))
    }

    /// How many claims of others' addresses and ungranted routes were refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// A signed record of routes from a peer whose membership was verified. Returns what the peer
    /// owns now.
    pub fn handle_routes(
        &mut self,
        record: &[u8],
        membership: impl FnOnce(&PublicKey) -> Option<Membership>,
    ) -> Result<(PublicKey, Owned), RoutesRefusal> {
        let routes = Routes::decode_verified(record)?;
        let key = routes.key;
        let Some(member) = self.members.get(&key) else {
            return Err(RoutesRefusal::Stranger(key));
        };
        if routes.sequence <= member.sequence {
            return Err(RoutesRefusal::Stale(key));
        }
        let membership = membership(&key);
        let granted = |prefix: &IpPrefix| {
            !overlaps_overlay(prefix)
                && (membership
                    .as_ref()
                    .is_some_and(|grant| grant.may_route(prefix))
                    || self.accepted.iter().any(|accepted| accepted.covers(prefix)))
        };
        let (prefixes, refused): (Vec<IpPrefix>, Vec<IpPrefix>) =
            routes.prefixes.iter().copied().partition(granted);
        self.refused += refused.len() as u64;
        let Some(member) = self.members.get_mut(&key) else {
            return Err(RoutesRefusal::Stranger(key));
        };
        member.sequence = routes.sequence;
        member.counter = routes.overlay_counter;
        member.prefixes = prefixes;
        Ok((key, self.claim(key)))
    }

    fn claim(&mut self, key: PublicKey) -> Owned {
        self.pinned.retain(|_, owner| *owner != key);
        let Some(member) = self.members.get_mut(&key) else {
            return Owned::default();
        };
        let wanted = overlay_ipv4(&key, member.counter);
        let taken = self.pinned.contains_key(&wanted);
        if taken {
            self.refused += 1;
        } else {
            self.pinned.insert(wanted, key);
        }
        let ipv6 = IpPrefix::host(IpAddr::V6(overlay_ipv6(&key)));
        let prefixes = ipv6
            .into_iter()
            .chain(member.prefixes.iter().copied())
            .collect();
        member.owned = Owned {
            ipv4: (!taken).then_some(wanted),
            prefixes,
        };
        member.owned.clone()
    }
}

fn overlaps_overlay(prefix: &IpPrefix) -> bool {
    let overlaps = |overlay: &IpPrefix| overlay.covers(prefix) || prefix.covers(overlay);
    overlaps(&OVERLAY_IPV4) || overlaps(&OVERLAY_IPV6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wice_signaling::protocol::{AdminKey, Invite, PrivateKey};

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes([byte; 32])
    }

    fn routes(of: &PrivateKey, sequence: u64, counter: u8, prefixes: &[&str]) -> Vec<u8> {
        let prefixes = prefixes.iter().map(|p| p.parse().unwrap()).collect();
        let record = Routes {
            key: of.public_key(),
            sequence,
            overlay_counter: counter,
            prefixes,
        };
        record.encode_signed(of, &[7; 64]).unwrap()
    }

    #[test]
    fn an_address_stays_with_whom_it_was_pinned_to() {
        let own = key(1).public_key();
        let mut overlay = Overlay::new(own, 0, Vec::new());
        let peer = key(2).public_key();
        let owned = overlay.join(peer);
        assert_eq!(owned.ipv4, Some(overlay_ipv4(&peer, 0)));
        // Another peer that comes to the same address by its counter gets nothing of it.
        let thief = key(3);
        overlay.join(thief.public_key());
        overlay
            .pinned
            .insert(overlay_ipv4(&thief.public_key(), 9), peer);
        let record = routes(&thief, 1, 9, &[]);
        let (_, owned) = overlay.handle_routes(&record, |_| None).unwrap();
        assert_eq!(owned.ipv4, None);
        assert_eq!(owned.allowed_ips().len(), 1, "IPv6 alone");
        assert_eq!(overlay.refused(), 1);
    }

    #[test]
    fn routes_need_a_grant_or_consent() {
        let admin = AdminKey::from_seed(&[4; 32]);
        let lan = "192.168.7.0/24".parse().unwrap();
        let invite = Invite::new(&admin, &[5; 32], 0, "lab", &[lan]).unwrap();
        let peer = key(2);
        let network = admin.network_id();
        let member = invite.sign_member(&network, &peer.public_key());
        let consent = "10.9.0.0/16".parse().unwrap();
        let mut overlay = Overlay::new(key(1).public_key(), 0, vec![consent]);
        overlay.join(peer.public_key());
        let announced = [
            "10.1.0.0/16",
            "10.9.3.0/24",
            "100.91.0.0/24",
            "192.168.7.128/25",
        ];
        let record = routes(&peer, 1, 0, &announced);
        let (_, owned) = overlay
            .handle_routes(&record, |_| Some(member.clone()))
            .unwrap();
        let texts: Vec<String> = owned.prefixes[1..].iter().map(|p| p.to_string()).collect();
        assert_eq!(texts, ["10.9.3.0/24", "192.168.7.128/25"]);
        assert_eq!(overlay.refused(), 2);
        let stale = overlay.handle_routes(&record, |_| None);
        assert_eq!(stale, Err(RoutesRefusal::Stale(peer.public_key())));
        let stranger = routes(&key(9), 1, 0, &[]);
        assert!(matches!(
            overlay.handle_routes(&stranger, |_| None),
            Err(RoutesRefusal::Stranger(_))
        ));
    }
}
