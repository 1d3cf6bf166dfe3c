//! What `kg` knows of Nodes and Peers, and what it has on its interface by that: full granularity, no encapsulation.
//! By Kilo's `pkg/mesh`: `Node.Ready` in backend.go, `nodesAreEqual` and `discoverNATEndpoints` in mesh.go, `NewTopology`,
//! `updateEndpoint` and `Conf` in topology.go, `Routes` in routes.go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A Node whose check-in is older is in nobody's mesh: two periods of check-ins, in seconds.
pub(super) const READY_FOR: u64 = 60;
/// Of Kilo's subnet, 10.4.0.0/16: leaders have addresses in it by the order of their names.
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 4, 0, 0);

/// A Node as its annotations tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub key: String,
    pub endpoint: Option<SocketAddr>,
    pub internal_ip: Option<IpAddr>,
    /// Seconds of UNIX time.
    pub last_seen: u64,
    pub keepalive: u16,
    pub wireguard_ip: String,
    pub pods: String,
    pub discovered: BTreeMap<String, SocketAddr>,
}

impl Node {
    /// Whether it is in the mesh.
    pub(super) fn is_ready(&self, now: u64) -> bool {
        self.endpoint.is_some()
            && !self.key.is_empty()
            && !self.pods.is_empty()
            && now.saturating_sub(self.last_seen) < READY_FOR
    }

    /// Whether nothing has changed that the topology is made of.
    pub(super) fn equals(&self, other: &Self, now: u64) -> bool {
        let undated = Self {
            last_seen: other.last_seen,
            ..self.clone()
        };
        undated == *other && self.is_ready(now) == other.is_ready(now)
    }
}

/// A Peer object: a machine outside of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    pub key: String,
    pub endpoint: Option<SocketAddr>,
    pub allowed: BTreeSet<String>,
    pub keepalive: Option<u16>,
}

/// A peer as the interface has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub endpoint: Option<SocketAddr>,
    pub allowed: BTreeSet<String>,
    pub keepalive: u16,
}

/// The interface as it is.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub private_key: String,
    pub peers: BTreeMap<String, Peer>,
    pub handshakes: BTreeSet<String>,
}

/// What shall be there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of the interface, with the subnet's length.
    pub address: String,
    pub peers: BTreeMap<String, Peer>,
    /// By destination, through these addresses of the mesh.
    pub routes: BTreeMap<String, Option<IpAddr>>,
}

/// By name.
#[derive(Debug, Default)]
pub(super) struct Topology {
    pub nodes: BTreeMap<String, Node>,
    pub outside: BTreeMap<String, Outside>,
}

impl Topology {
    /// What a Node shall have, and nothing while it is not in the mesh itself: then all stays as it is. What it has discovered of
    /// others is noted on the way.
    pub(super) fn wanted(&mut self, own: &str, device: &Device, now: u64) -> Option<Wanted> {
        let ready: BTreeMap<&str, &Node> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.is_ready(now))
            .map(|(name, node)| (name.as_str(), node))
            .collect();
        let keepalive = ready.get(own)?.keepalive;
        let found = self.discover(&ready, device);
        let mut discovered = found.clone();
        for (_, node) in ready.iter().filter(|(name, _)| **name != own) {
            for (key, at) in &node.discovered {
                discovered.entry(key.clone()).or_insert(*at);
            }
        }
        // Only of nodes with keepalive may an endpoint differ from what they tell.
        let endpoint = |told: Option<SocketAddr>, key: &str, roams: bool| {
            let at = discovered.get(key).copied().filter(|_| roams);
            at.or(told)
        };
        let mut wanted = Wanted {
            address: String::new(),
            peers: BTreeMap::new(),
            routes: BTreeMap::new(),
        };
        for ((name, node), number) in ready.iter().zip(1u32..) {
            let address = Ipv4Addr::from_bits(SUBNET.to_bits() + number);
            if *name == own {
                wanted.address = format!("{address}/16");
                continue;
            }
            let endpoint = endpoint(node.endpoint, &node.key, node.keepalive != 0);
            let through = Some(IpAddr::V4(address));
            let mut allowed = BTreeSet::from([format!("{address}/32"), node.pods.clone()]);
            wanted.routes.insert(node.pods.clone(), through);
            if let Some(ip) = node.internal_ip {
                allowed.insert(format!("{ip}/32"));
                // WireGuard's own packets would enter the tunnel again, without end.
                if Some(ip) != endpoint.map(|endpoint| endpoint.ip()) {
                    wanted.routes.insert(format!("{ip}/32"), through);
                }
            }
            let peer = Peer {
                endpoint,
                allowed,
                keepalive,
            };
            wanted.peers.insert(node.key.clone(), peer);
        }
        for outside in self.outside.values() {
            let roams = outside.keepalive.is_some_and(|seconds| seconds != 0);
            let peer = Peer {
                endpoint: endpoint(outside.endpoint, &outside.key, roams),
                allowed: outside.allowed.clone(),
                keepalive,
            };
            let routes = outside.allowed.iter().map(|to| (to.clone(), None));
            wanted.routes.extend(routes);
            wanted.peers.insert(outside.key.clone(), peer);
        }
        if let Some(node) = self.nodes.get_mut(own) {
            node.discovered = found;
        }
        Some(wanted)
    }

    /// Where WireGuard has shaken hands with those that may roam.
    fn discover(
        &self,
        ready: &BTreeMap<&str, &Node>,
        device: &Device,
    ) -> BTreeMap<String, SocketAddr> {
        let nodes = ready.values().filter(|node| node.keepalive != 0);
        let outside = self.outside.values();
        let outside = outside.filter(|outside| outside.keepalive.is_some());
        nodes
            .map(|node| &node.key)
            .chain(outside.map(|outside| &outside.key))
            .filter(|key| device.handshakes.contains(*key))
            .filter_map(|key| Some((key.clone(), device.peers.get(key)?.endpoint?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn node(number: u8, seen: u64) -> Node {
        Node {
            key: format!("key-{number}"),
            endpoint: at(&format!("192.168.{number}.2:51820")),
            internal_ip: Some(IpAddr::from([192, 168, number, 2])),
            last_seen: seen,
            keepalive: 25,
            pods: format!("10.42.{number}.0/24"),
            ..Node::default()
        }
    }

    fn three(seen: [u64; 3]) -> Topology {
        let names = ["a", "b", "c"].map(str::to_owned);
        let nodes = (1u8..).zip(seen).map(|(number, seen)| node(number, seen));
        Topology {
            nodes: names.into_iter().zip(nodes).collect(),
            outside: BTreeMap::new(),
        }
    }

    /// An interface with a peer that has shaken hands, or not.
    fn device(key: &str, endpoint: &str, shaken: bool) -> Device {
        let peer = Peer {
            endpoint: at(endpoint),
            allowed: BTreeSet::new(),
            keepalive: 25,
        };
        let key = key.to_owned();
        Device {
            handshakes: shaken.then(|| key.clone()).into_iter().collect(),
            peers: BTreeMap::from([(key, peer)]),
            ..Device::default()
        }
    }

    fn endpoint(wanted: &Wanted, key: &str) -> Option<SocketAddr> {
        wanted.peers[key].endpoint
    }

    #[test]
    fn an_endpoint_that_has_shaken_hands_is_kept_and_passed_on() {
        let mut kg = three([NOW; 3]);
        let wanted = kg.wanted("a", &device("key-2", "127.1.2.3:9", true), NOW);
        assert_eq!(
            endpoint(&wanted.unwrap(), "key-2"),
            at("127.1.2.3:9"),
            "kept"
        );
        assert_eq!(
            kg.nodes["a"].discovered["key-2"],
            at("127.1.2.3:9").unwrap()
        );
        // Another that has none of its own takes it.
        let wanted = kg.wanted("c", &Device::default(), NOW).unwrap();
        assert_eq!(endpoint(&wanted, "key-2"), at("127.1.2.3:9"), "passed on");
        // One without a handshake is overwritten.
        kg.nodes.get_mut("a").unwrap().discovered.clear();
        let wanted = kg.wanted("c", &device("key-2", "127.9.9.9:9", false), NOW);
        assert_eq!(endpoint(&wanted.unwrap(), "key-2"), at("192.168.2.2:51820"));
    }

    #[test]
    fn a_node_without_keepalive_is_where_it_says() {
        let mut kg = three([NOW; 3]);
        kg.nodes.get_mut("b").unwrap().keepalive = 0;
        let wanted = kg.wanted("a", &device("key-2", "127.1.2.3:9", true), NOW);
        assert_eq!(endpoint(&wanted.unwrap(), "key-2"), at("192.168.2.2:51820"));
    }

    #[test]
    fn who_has_not_checked_in_for_a_minute_is_dropped_and_moves_the_addresses_of_others() {
        let mut kg = three([NOW - READY_FOR, NOW - 10, NOW]);
        let wanted = kg.wanted("b", &Device::default(), NOW).unwrap();
        assert_eq!(wanted.address, "10.4.0.1/16");
        let keys: Vec<_> = wanted.peers.keys().collect();
        assert_eq!(keys, ["key-3"]);
        assert!(wanted.peers["key-3"].allowed.contains("10.4.0.2/32"));
    }

    #[test]
    fn who_has_not_checked_in_itself_leaves_all_as_it_is() {
        let mut kg = three([NOW, NOW - READY_FOR, NOW]);
        assert_eq!(kg.wanted("b", &Device::default(), NOW), None);
    }

    #[test]
    fn a_check_in_alone_is_no_change_unless_it_brings_a_node_back() {
        let (old, new) = (node(1, NOW - 30), node(1, NOW));
        assert!(old.equals(&new, NOW));
        assert!(!old.equals(&new, NOW + 40));
        let roamed = Node {
            endpoint: at("1.2.3.4:5"),
            ..new.clone()
        };
        assert!(!new.equals(&roamed, NOW));
    }

    #[test]
    fn a_private_address_is_routed_into_the_mesh_unless_wireguard_sends_to_it() {
        let mut kg = three([NOW; 3]);
        let wanted = kg.wanted("a", &device("key-2", "127.1.2.3:9", true), NOW);
        let routes = wanted.unwrap().routes;
        let through: Option<IpAddr> = Some("10.4.0.2".parse().unwrap());
        assert_eq!(routes.get("192.168.2.2/32"), Some(&through));
        assert_eq!(routes.get("192.168.3.2/32"), None);
    }
}
