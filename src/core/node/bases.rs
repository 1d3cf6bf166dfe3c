//! What the node can send from: its interfaces' addresses and its allocations.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use wice_signaling::protocol::{
    Candidate, CandidateKind, Mapping, NatBehavior, RelayTransport, normalize_candidates,
};

use super::{Arrival, HostAddress, HostSocket, Node, RelayId, StunServer, Via};
use crate::core::ice::{Base, BaseId, BaseKind, OWN_SOCKET, candidate_priority};
use crate::core::policy;

/// The most host addresses that become bases: 16 remote candidates each fill an agent's 64 pairs.
const MAX_HOST_BASES: usize = 8;
/// Local preferences: IPv6 before IPv4 (RFC 8421 §4), falling with the base's number so that each is
/// unique in its kind (RFC 8445 §5.1.2.1). Below each the half of the node's own sockets ([`OWN_SOCKET`]).
const PREFERENCE_V6: u16 = 65535;
const PREFERENCE_V4: u16 = 49151;
const PREFERENCE_STEP: u32 = 8192;

/// Servers are not asked more often than this because of paths in doubt, whatever becomes of them:
/// a path that is given up has missed its probes for that long.
const LOOK_AGAIN: Duration = Duration::from_secs(4);

#[derive(Debug)]
enum Source {
    Host(HostAddress, HostSocket),
    Relay(RelayId),
}

/// The ports of WireGuard's that are shared, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedPorts {
    /// IPv4.
    pub v4: Option<u16>,
    /// IPv6.
    pub v6: Option<u16>,
}

/// All bases.
#[derive(Debug, Default)]
pub(super) struct Bases {
    known: Vec<(Base, Source)>,
    /// Ports on routers that lead to host bases, by the base's address.
    mapped: BTreeMap<SocketAddr, SocketAddr>,
    /// The interfaces' addresses as they were told last, the preferred first.
    addresses: Vec<HostAddress>,
    shared: SharedPorts,
    next_id: u32,
}

impl Bases {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Base> {
        self.known.iter().map(|(base, _)| base)
    }

    pub(super) fn get(&self, id: BaseId) -> Option<&Base> {
        self.iter().find(|base| base.id == id)
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = (&Base, &HostAddress, HostSocket)> {
        self.known.iter().filter_map(|(base, source)| match source {
            Source::Host(host, socket) => Some((base, host, *socket)),
            Source::Relay(_) => None,
        })
    }

    /// Whether data from this base is sent and received by another program's WireGuard.
    pub(super) fn is_shared(&self, id: BaseId) -> bool {
        self.hosts()
            .any(|(base, _, socket)| base.id == id && socket == HostSocket::WireGuard)
    }

    /// The host bases that there should be: each address with WireGuard's port, where that is shared,
    /// before the node's own.
    fn wanted(&self) -> Vec<(HostAddress, HostSocket)> {
        let mut wanted = Vec::new();
        for own in &self.addresses {
            let port = match own.address {
                SocketAddr::V4(_) => self.shared.v4,
                SocketAddr::V6(_) => self.shared.v6,
            };
            let shared = port.map(|port| HostAddress {
                address: SocketAddr::new(own.address.ip(), port),
                ..*own
            });
            wanted.extend(shared.map(|host| (host, HostSocket::WireGuard)));
            wanted.push((*own, HostSocket::Own));
        }
        wanted.truncate(MAX_HOST_BASES);
        wanted
    }

    /// The base at which something arrived.
    pub(super) fn of_arrival(&self, arrival: &Arrival) -> Option<BaseId> {
        let arrived = |(_, source): &&(Base, Source)| match (source, arrival) {
            (
                Source::Host(host, behind),
                Arrival::Host {
                    socket,
                    local,
                    interface,
                    ..
                },
            ) => behind == socket && host.address.ip() == *local && host.interface == *interface,
            (Source::Relay(known), Arrival::Relay { relay, .. }) => known == relay,
            (Source::Host(..), Arrival::Relay { .. })
            | (Source::Relay(_), Arrival::Host { .. }) => false,
        };
        self.known.iter().find(arrived).map(|(base, _)| base.id)
    }

    /// How something leaves from a host base.
    pub(super) fn via_host(&self, id: BaseId, remote: SocketAddr) -> Option<Via> {
        let (base, host, socket) = self.hosts().find(|(base, ..)| base.id == id)?;
        Some(Via::Host {
            socket,
            local: base.address.ip(),
            interface: host.interface,
            remote,
        })
    }

    pub(super) fn relay_of(&self, id: BaseId) -> Option<RelayId> {
        self.known
            .iter()
            .find(|(base, _)| base.id == id)
            .and_then(|(_, source)| match source {
                Source::Host(..) => None,
                Source::Relay(relay) => Some(*relay),
            })
    }

    pub(super) fn add_relay(
        &mut self,
        relay: RelayId,
        address: SocketAddr,
        transport: RelayTransport,
    ) -> BaseId {
        self.add(address, BaseKind::Relayed(transport), Source::Relay(relay))
    }

    pub(super) fn remove(&mut self, id: BaseId) {
        self.known.retain(|(base, _)| base.id != id);
    }

    fn add(&mut self, address: SocketAddr, kind: BaseKind, source: Source) -> BaseId {
        let id = BaseId(self.next_id);
        self.next_id += 1;
        let top = if address.is_ipv6() {
            PREFERENCE_V6
        } else {
            PREFERENCE_V4
        };
        let step = u16::try_from(id.0 % PREFERENCE_STEP).unwrap_or(0);
        let own = match source {
            // A peer that has not been told of our relay takes it for another address of ours.
            Source::Host(_, HostSocket::Own) | Source::Relay(_) => OWN_SOCKET,
            Source::Host(_, HostSocket::WireGuard) => 0,
        };
        let base = Base {
            id,
            kind,
            address,
            preference: top - step - own,
            reflexive: Vec::new(),
        };
        self.known.push((base, source));
        id
    }

    /// Where servers or peers see a base, beside the port that a router maps to it. True if that
    /// is new.
    fn set_reflexive(&mut self, id: BaseId, seen: Vec<SocketAddr>) -> bool {
        let Some((base, _)) = self.known.iter_mut().find(|(base, _)| base.id == id) else {
            return false;
        };
        let mapped = self.mapped.get(&base.address).copied();
        let seen = seen.into_iter().filter(|address| Some(*address) != mapped);
        let mapped = mapped.map(|address| (address, CandidateKind::Mapped));
        let seen = seen.map(|address| (address, CandidateKind::ServerReflexive));
        let reflexive: Vec<_> = mapped.into_iter().chain(seen).collect();
        let changed = base.reflexive != reflexive;
        base.reflexive = reflexive;
        changed
    }
}

impl Node {
    /// The addresses of this node's interfaces as they are now, the preferred first. Those that may
    /// not be candidates are left out.
    pub fn handle_addresses(&mut self, addresses: &[HostAddress], now: std::time::Instant) {
        self.now = now;
        let mut wanted: Vec<HostAddress> = Vec::new();
        for address in addresses {
            let ip = address.address.ip();
            let may = policy::is_candidate_address(ip) && !self.excluded.contains(ip);
            if may && !wanted.contains(address) {
                wanted.push(*address);
            }
        }
        self.bases.addresses = wanted;
        self.sync_host_bases();
    }

    /// WireGuard's ports that are shared, which changes when WireGuard's listen port does. The sockets
    /// are there: what is sent from these ports leaves.
    pub fn handle_shared_ports(&mut self, shared: SharedPorts, now: std::time::Instant) {
        self.now = now;
        if self.bases.shared != shared {
            self.bases.shared = shared;
            self.sync_host_bases();
        }
    }

    fn sync_host_bases(&mut self) {
        let now = self.now;
        let wanted = self.bases.wanted();
        let gone: Vec<BaseId> = self
            .bases
            .hosts()
            .filter(|(_, host, socket)| !wanted.contains(&(**host, *socket)))
            .map(|(base, ..)| base.id)
            .collect();
        for base in gone {
            self.drop_base(base);
        }
        for (host, socket) in wanted {
            let mut known = self.bases.hosts();
            if known.any(|(_, known, behind)| (*known, behind) == (host, socket)) {
                continue;
            }
            drop(known);
            let id = self
                .bases
                .add(host.address, BaseKind::Host, Source::Host(host, socket));
            self.bases.set_reflexive(id, Vec::new());
            self.spread_base(id);
        }
        let hosts = self
            .bases
            .hosts()
            .map(|(base, host, _)| (base.id, host.address))
            .collect();
        self.gatherer.set_bases(hosts, now);
        self.note_candidates();
        self.pump();
    }

    /// The STUN servers, best first. They are told of when signaling is there again, with which UDP may be, too.
    pub fn handle_stun_servers(&mut self, servers: &[StunServer], now: std::time::Instant) {
        self.now = now;
        self.stun_servers = servers.to_vec();
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        self.gatherer.set_servers(&addresses, now);
        self.gatherer.ask_silent(now);
        self.pump();
    }

    /// Ports on our routers that lead to host addresses of ours: all that there are now.
    pub fn handle_port_mappings(
        &mut self,
        mapped: BTreeMap<SocketAddr, SocketAddr>,
        now: std::time::Instant,
    ) {
        self.now = now;
        self.bases.mapped = mapped;
        self.update_reflexive();
        self.pump();
    }

    /// The network has changed under us (an address, a default route): everything that was seen from
    /// outside may be different now.
    pub fn handle_network_change(&mut self, now: std::time::Instant) {
        self.now = now;
        self.gatherer.restart(now);
        self.pump();
    }

    /// A path that worked has fallen silent, and it may be our router that has another address now,
    /// or has forgotten its mappings: STUN servers and relays are asked at once how they see us.
    pub(super) fn look_again(&mut self) {
        let now = self.now;
        if self.looked_again.is_some_and(|at| now < at + LOOK_AGAIN) {
            return;
        }
        self.looked_again = Some(now);
        self.gatherer.ask_again(now);
        for relay in self.relays.active.values_mut() {
            relay.allocation.verify(now);
        }
    }

    /// Tells all agents of a base, or of what has changed about it.
    pub(super) fn spread_base(&mut self, id: BaseId) {
        let Some(base) = self.bases.get(id).cloned() else {
            return;
        };
        for agent in self.agents() {
            if let Some(agent) = self.agent_mut(agent) {
                agent.set_base(base.clone());
            }
            self.ask_permissions(agent);
            self.touch(agent);
        }
    }

    /// Takes a base from all agents: its pairs fail now.
    pub(super) fn drop_base(&mut self, id: BaseId) {
        self.bases.remove(id);
        for agent in self.agents() {
            if let Some(agent) = self.agent_mut(agent) {
                agent.remove_base(id);
            }
            self.touch(agent);
        }
    }

    /// A STUN server has told something: bases may be seen elsewhere than before.
    pub(super) fn update_reflexive(&mut self) {
        let hosts: Vec<BaseId> = self.bases.hosts().map(|(base, ..)| base.id).collect();
        for id in hosts {
            let seen = self.gatherer.reflexive(id);
            if self.bases.set_reflexive(id, seen) {
                self.spread_base(id);
            }
        }
        self.note_candidates();
    }

    /// A peer sees a base where no STUN server has seen it. Where STUN answers, that is one mapping
    /// of a symmetric NAT, of use to nobody else; where it does not, it is all that is known.
    pub(super) fn note_reflexive(&mut self, id: BaseId, mapped: SocketAddr) {
        let is_host = self
            .bases
            .get(id)
            .is_some_and(|base| base.kind == BaseKind::Host);
        if !is_host || !self.gatherer.reflexive(id).is_empty() {
            return;
        }
        if self.bases.set_reflexive(id, vec![mapped]) {
            self.spread_base(id);
            self.note_candidates();
        }
    }

    /// What is known of our NAT. Silence of all STUN servers means that UDP is blocked unless
    /// something else shows that it leaves: a relay's answer, a peer's, or a server's refusal.
    pub(super) fn nat(&self) -> NatBehavior {
        let nat = self.gatherer.nat();
        if nat.mapping == Mapping::Blocked && self.udp_leaves() {
            return NatBehavior::default();
        }
        nat
    }

    fn udp_leaves(&self) -> bool {
        let is_host = |base| self.bases.relay_of(base).is_none();
        let mut pairs = self
            .peers
            .values()
            .flat_map(|peer| &peer.slots)
            .flat_map(|slot| slot.agent.pairs());
        self.gatherer.is_refused()
            || self.relays.answers_udp()
            || pairs.any(|pair| pair.is_valid() && is_host(pair.key().base))
    }

    /// What the advert says of our addresses.
    pub(super) fn local_candidates(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for base in self.bases.iter() {
            let relay_transport = match base.kind {
                BaseKind::Host => None,
                BaseKind::Relayed(transport) => Some(transport),
            };
            let kind = base.host_kind();
            let priority = candidate_priority(kind, base.preference);
            candidates.push(Candidate {
                kind,
                address: base.address,
                priority,
                relay_transport,
            });
            for (address, kind) in &base.reflexive {
                candidates.push(Candidate {
                    kind: *kind,
                    address: *address,
                    priority: candidate_priority(*kind, base.preference),
                    relay_transport: None,
                });
            }
        }
        normalize_candidates(&candidates)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use wice_signaling::protocol::{PrivateKey, Session};

    use super::super::{Admission, NodeConfig};
    use super::*;

    #[test]
    fn a_mapped_port_is_a_candidate_while_it_lasts() {
        let now = Instant::now();
        let config = NodeConfig {
            key: PrivateKey::from_bytes([1; 32]),
            session: Session([1; 16]),
            sequence: 0,
            name: "a".into(),
            admission: Admission::Added,
            membership: Vec::new(),
            seed: [1; 32],
        };
        let mut node = Node::new(config, now);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let host = |address: &str| HostAddress {
            address: at(address),
            interface: 2,
        };
        let outside = at("203.0.114.4:51821");
        let mapped = BTreeMap::from([(at("192.168.1.2:51821"), outside)]);
        // Whichever is known first.
        node.handle_port_mappings(mapped, now);
        let hosts = [host("192.168.1.2:51821"), host("192.168.1.3:51821")];
        node.handle_addresses(&hosts, now);
        let candidates = node.local_candidates();
        let [.., last] = candidates.as_slice() else {
            panic!("no candidates");
        };
        assert_eq!((last.kind, last.address), (CandidateKind::Mapped, outside));
        assert_eq!(candidates.len(), 3);
        let priority = |kind| candidate_priority(kind, PREFERENCE_V4 - OWN_SOCKET);
        assert_eq!(last.priority, priority(CandidateKind::Mapped));
        assert!(last.priority < priority(CandidateKind::PeerReflexive));
        assert!(last.priority > priority(CandidateKind::ServerReflexive));
        node.handle_port_mappings(BTreeMap::new(), now);
        assert_eq!(node.local_candidates().len(), 2);
    }
}
