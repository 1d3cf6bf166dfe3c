//! Addresses that somebody else owns: a mesh agent's overlay, pods. They are nobody's candidates, ours or theirs.

use std::net::IpAddr;
use std::time::Instant;

use wice_signaling::protocol::IpPrefix;

use super::scheduler::AgentRef;
use super::{Node, PeerId};

/// The most prefixes that are kept, past them the rest is left out: two overlay addresses of every peer, and room for pods.
const MAX_EXCLUDED: usize = 16_384;

/// Rising, none twice.
#[derive(Debug, Default)]
pub(super) struct Excluded(Vec<IpPrefix>);

impl Excluded {
    /// Whether an address is in one of them. Single addresses, which nearly all are, cost a search by halves.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        IpPrefix::host(address).is_some_and(|host| self.0.binary_search(&host).is_ok())
            || self.networks().any(|prefix| prefix.contains(address))
    }

    fn networks(&self) -> impl Iterator<Item = &IpPrefix> {
        self.0.iter().filter(|prefix| !is_host(prefix))
    }
}

impl Node {
    /// Addresses that are no candidates from now on, all that there are. Our own count from the next
    /// [`Node::handle_addresses`].
    pub fn handle_excluded(&mut self, mut prefixes: Vec<IpPrefix>, now: Instant) {
        self.now = now;
        prefixes.sort();
        prefixes.dedup();
        // Networks first: they are few, and each stands for many.
        prefixes.sort_by_key(is_host);
        prefixes.truncate(MAX_EXCLUDED);
        prefixes.sort();
        if self.excluded.0 == prefixes {
            return;
        }
        self.excluded = Excluded(prefixes);
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in peers {
            self.offer_again(id);
        }
        self.pump();
    }

    /// The peer's candidates, as far as they may be some.
    fn offer_again(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let candidates = peer.remote_candidates(&self.excluded);
        let session = peer.advert.as_ref().map(|advert| advert.session);
        let slot = peer
            .slots
            .iter_mut()
            .find(|slot| Some(slot.session) == session);
        let Some(slot) = slot else { return };
        slot.agent.set_remote_candidates(&candidates);
        let agent = AgentRef {
            peer: id,
            generation: slot.generation,
        };
        self.touch(agent);
    }
}

fn is_host(prefix: &IpPrefix) -> bool {
    prefix.prefix_len() == if prefix.address().is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use wice_signaling::protocol::{
        Advert, Candidate, CandidateKind, NatBehavior, PrivateKey, Session,
    };

    use super::*;
    use crate::core::node::{Admission, HostAddress, NodeConfig};

    const NODE_PORT: u16 = 51821;

    fn node(now: Instant) -> Node {
        let config = NodeConfig {
            key: PrivateKey::from_bytes([1; 32]),
            session: Session([1; 16]),
            sequence: 0,
            name: "a".into(),
            admission: Admission::Added,
            membership: Vec::new(),
            seed: [1; 32],
        };
        Node::new(config, now)
    }

    fn prefixes(texts: &[&str]) -> Vec<IpPrefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// A peer with these candidates.
    fn advert(addresses: &[&str]) -> (PrivateKey, Vec<u8>) {
        let key = PrivateKey::from_bytes([2; 32]);
        let candidate = |(number, text): (usize, &&str)| Candidate {
            kind: CandidateKind::Host,
            relay_transport: None,
            address: text.parse().unwrap(),
            priority: u32::MAX - number as u32,
        };
        let advert = Advert {
            key: key.public_key(),
            session: Session([2; 16]),
            sequence: 1,
            name: "b".into(),
            nat: NatBehavior::default(),
            candidates: addresses.iter().enumerate().map(candidate).collect(),
            membership: Vec::new(),
        };
        let record = advert.encode_signed(&key, &[7; 64]).unwrap();
        (key, record)
    }

    /// Addresses that checks may go to.
    fn remotes(node: &Node) -> Vec<String> {
        let pairs = node
            .peers
            .values()
            .flat_map(|peer| &peer.slots)
            .flat_map(|slot| slot.agent.pairs());
        let mut remotes: Vec<String> = pairs
            .map(|pair| pair.remote().address.to_string())
            .collect();
        remotes.sort();
        remotes
    }

    #[test]
    fn addresses_of_the_overlay_and_of_pods_are_no_candidates_of_anybody() {
        let now = Instant::now();
        let mut node = node(now);
        let host = |text: &str| HostAddress {
            address: (text.parse::<IpAddr>().unwrap(), NODE_PORT).into(),
            interface: 2,
        };
        node.handle_excluded(prefixes(&["10.4.0.1/32", "10.42.1.0/24"]), now);
        let hosts = ["192.0.2.1", "10.4.0.1", "10.42.1.1", "10.42.2.1"].map(host);
        node.handle_addresses(&hosts, now);
        let bases = node
            .bases
            .hosts()
            .map(|(_, host, _)| host.address.to_string());
        let bases: Vec<String> = bases.collect();
        assert_eq!(bases, ["192.0.2.1:51821", "10.42.2.1:51821"]);

        let offered = ["198.51.100.1:9", "10.4.0.2:9", "10.42.1.7:9"];
        let (key, record) = advert(&offered);
        node.add_peer(key.public_key(), now).unwrap();
        node.handle_advert(&record, now).unwrap();
        let before = remotes(&node);
        assert!(before.contains(&"10.4.0.2:9".to_owned()), "{before:?}");
        assert!(!before.contains(&"10.42.1.7:9".to_owned()), "{before:?}");

        // The peer's object is seen after its advert.
        let more = ["10.4.0.1/32", "10.4.0.2/32", "10.42.1.0/24"];
        node.handle_excluded(prefixes(&more), now);
        let after = remotes(&node);
        assert!(
            after.iter().all(|remote| remote == "198.51.100.1:9"),
            "{after:?}"
        );
        node.handle_excluded(Vec::new(), now);
        assert!(remotes(&node).contains(&"10.42.1.7:9".to_owned()));
    }

    #[test]
    fn what_is_kept_is_bounded_and_networks_go_first() {
        let now = Instant::now();
        let mut node = node(now);
        let many = (0..MAX_EXCLUDED as u32 + 10)
            .filter_map(|number| IpPrefix::host(IpAddr::V4((0x0a00_0000 + number).into())));
        let many = many.chain(prefixes(&["192.0.2.0/24"])).collect();
        node.handle_excluded(many, now);
        assert_eq!(node.excluded.0.len(), MAX_EXCLUDED);
        let contains = |text: &str| node.excluded.contains(text.parse().unwrap());
        assert!(contains("192.0.2.77") && contains("10.0.0.0") && contains("::ffff:10.0.0.1"));
        assert!(!contains("192.0.3.1") && !contains("2001:db8::1"));
    }
}
