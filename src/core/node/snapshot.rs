//! What a node knows of itself and its peers, for diagnosis.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::{CandidateKind, NatBehavior, PublicKey, RelayTransport};

use super::presence::Presences;
use super::{Node, PathRef, PeerId, Via};
use crate::core::gather::Observation;
use crate::core::ice::{Pair, PairKey, PairState, Role, Use};
use crate::core::mtu::Outer;
use crate::core::turn::{Allocation, Failure};

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Checks sent, retransmissions included.
    pub checks_sent: u64,
    /// How often an agent was looked at, in any call: the work that was done.
    pub agents_touched: u64,
    /// Checks answered.
    pub checks_answered: u64,
    /// Messages dropped because the owner did not fetch them.
    pub transmits_dropped: u64,
    /// Checks not sent because their destination has not answered often enough.
    pub over_budget: u64,
    /// STUN that could not be parsed.
    pub malformed: u64,
    /// STUN at an address that is no base.
    pub no_base: u64,
    /// STUN from somebody we do not know, or not for us.
    pub strangers: u64,
    /// STUN whose integrity does not hold.
    pub unauthentic: u64,
    /// Checks under a session that was replaced.
    pub superseded: u64,
    /// Adverts taken.
    pub adverts_accepted: u64,
    /// Adverts refused.
    pub adverts_refused: u64,
    /// Paths whose checks were answered and WireGuard's packets were not.
    pub data_dead: u64,
}

/// The whole node.
#[derive(Clone, Debug)]
pub struct NodeSnapshot {
    /// Our key.
    pub key: PublicKey,
    /// Our name.
    pub name: String,
    /// What STUN says of our NAT.
    pub nat: NatBehavior,
    /// What every STUN server said to every base: the base's own address, and the observation.
    pub observations: Vec<(SocketAddr, String, Observation)>,
    /// Our candidates: kind and address.
    pub candidates: Vec<(CandidateKind, SocketAddr)>,
    /// Our relays.
    pub relays: Vec<RelaySnapshot>,
    /// Our peers, by number.
    pub peers: Vec<PeerSnapshot>,
    /// Counters.
    pub counters: Counters,
}

impl NodeSnapshot {
    /// Whether there is no address to send from: what a relay holds for us outlives that for some minutes.
    pub fn has_no_network(&self) -> bool {
        let relayed = |(kind, _): &(CandidateKind, SocketAddr)| *kind == CandidateKind::Relayed;
        self.candidates.iter().all(relayed)
    }
}

/// A configured TURN server.
#[derive(Clone, Debug)]
pub struct RelaySnapshot {
    /// Its host as configured.
    pub name: String,
    /// How it is reached.
    pub transport: RelayTransport,
    /// Its credentials come from the signaling service, by a secret that both share.
    pub minted: bool,
    /// Its allocation's address, while the server answers.
    pub relayed: Option<SocketAddr>,
    /// Round trip to it.
    pub rtt: Option<Duration>,
    /// Why the last attempt failed.
    pub failure: Option<Failure>,
}

/// A peer.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    /// Its number.
    pub id: PeerId,
    /// Its key.
    pub key: PublicKey,
    /// Its name, once it has published one.
    pub name: Option<String>,
    /// Attached mode: it was revoked, and its WireGuard peer is still there.
    pub revoked: bool,
    /// What it says of its NAT.
    pub nat: Option<NatBehavior>,
    /// The candidates that it has published: kind and address.
    pub advertised: Vec<(CandidateKind, SocketAddr)>,
    /// Our role towards it.
    pub role: Option<Role>,
    /// What carries its data.
    pub path: Option<PathView>,
    /// How often the path has changed.
    pub changes: u64,
    /// For how long paths have been looked for: in the peer's present session, since the last was lost.
    pub looking: Option<Duration>,
    /// Since it was last known to be there: zero while signaling says that it is connected, `None`
    /// where that is not known.
    pub last_seen: Option<Duration>,
    /// All pairs, best first.
    pub pairs: Vec<PairView>,
}

/// What carries a peer's data.
#[derive(Clone, Debug)]
pub struct PathView {
    /// The pair.
    pub pair: PairView,
    /// WireGuard has answered on it.
    pub up: bool,
    /// For how long it has been chosen.
    pub age: Duration,
    /// Our relay's host, where one of ours is in the path.
    pub relay: Option<String>,
    /// It begins at WireGuard's own port: WireGuard sends to the pair's remote address itself.
    pub native: bool,
}

/// How there is a way to a peer, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The peer.
    pub key: PublicKey,
    /// It has published an advert.
    pub advert: bool,
    /// Signaling says that it is connected.
    pub connected: bool,
    /// It has a path.
    pub has_path: bool,
    /// Where that leads, if it begins at WireGuard's own port.
    pub native: Option<SocketAddr>,
    /// The peer's addresses from which it has reached WireGuard's own port.
    pub met_at: Vec<SocketAddr>,
}

/// One pair.
#[derive(Clone, Debug)]
pub struct PairView {
    /// How our side is known.
    pub local_kind: CandidateKind,
    /// What it sends from.
    pub local: SocketAddr,
    /// At which address the other side sees us.
    pub mapped: Option<SocketAddr>,
    /// How the other side is known.
    pub remote_kind: CandidateKind,
    /// Where it sends to.
    pub remote: SocketAddr,
    /// How a relay in the path is reached: ours, else theirs.
    pub relay_transport: Option<RelayTransport>,
    /// How many relays are in the path.
    pub relays: u8,
    /// Where it stands.
    pub state: PairState,
    /// Whether it waits for our relay to let the peer through.
    pub held: bool,
    /// What it is used for.
    pub used: Use,
    /// Checks sent and answered.
    pub checks: (u32, u32),
    /// Round trip.
    pub rtt: Option<Duration>,
}

impl Node {
    /// Everything, as it is now.
    pub fn snapshot(&self, now: Instant) -> NodeSnapshot {
        NodeSnapshot {
            peers: self
                .peers
                .keys()
                .filter_map(|id| self.peer_snapshot(*id, now))
                .collect(),
            ..self.own_snapshot(now)
        }
    }

    /// Everything but the peers: it costs the same in any mesh.
    pub fn own_snapshot(&self, now: Instant) -> NodeSnapshot {
        NodeSnapshot {
            key: self.own.key,
            name: self.name.clone(),
            nat: self.nat(),
            observations: self.observations(),
            candidates: self
                .local_candidates()
                .iter()
                .map(|c| (c.kind, c.address))
                .collect(),
            relays: self
                .relays
                .views()
                .map(|view| relay_snapshot(&view, now))
                .collect(),
            peers: Vec::new(),
            counters: self.counters,
        }
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Every peer's way.
    pub fn ways(&self) -> impl Iterator<Item = Way> + '_ {
        let of = |peer: &super::Peer| {
            let path = peer.path.selected;
            let native = path.filter(|path| self.bases.is_shared(path.key.base));
            Way {
                key: peer.key,
                advert: peer.advert.is_some(),
                connected: peer.presence == Presences::Connected,
                has_path: path.is_some(),
                native: native.map(|path| path.key.remote),
                met_at: self.met_at(peer),
            }
        };
        self.peers.values().map(of)
    }

    fn met_at(&self, peer: &super::Peer) -> Vec<SocketAddr> {
        let pairs = peer.slots.iter().flat_map(|slot| slot.agent.pairs());
        let met = pairs.filter(|pair| self.bases.is_shared(pair.key().base) && pair.checks().1 > 0);
        met.map(|pair| pair.key().remote).collect()
    }

    /// How the packets of every peer with a path leave this node; `None` where a stream carries them, in which any size
    /// fits.
    pub fn outers(&self) -> impl Iterator<Item = (PublicKey, Option<Outer>)> + '_ {
        self.peers.values().filter_map(|peer| {
            let path = peer.path.selected?;
            let pair = peer.pair(path)?;
            Some((peer.key, self.outer(path, pair.relays() > 0)?))
        })
    }

    fn outer(&self, path: PathRef, relayed: bool) -> Option<Option<Outer>> {
        let PairKey { base, remote } = path.key;
        let Some(relay) = self.bases.relay_of(base) else {
            let Via::Host {
                local, interface, ..
            } = self.bases.via_host(base, remote)?
            else {
                return None;
            };
            return Some(Some(Outer {
                from: Some((local, interface)),
                remote,
                relayed,
            }));
        };
        let server = &self.relays.active.get(&relay)?.server;
        let over_udp = server.transport == RelayTransport::Udp;
        Some(over_udp.then_some(Outer {
            from: None,
            remote: server.address,
            relayed: true,
        }))
    }

    /// How many peers have a path.
    pub fn paths(&self) -> usize {
        let has_path = |peer: &&super::Peer| peer.path.selected.is_some();
        self.peers.values().filter(has_path).count()
    }

    /// One peer, as it is now.
    pub fn peer_snapshot(&self, id: PeerId, now: Instant) -> Option<PeerSnapshot> {
        let peer = self.peers.get(&id)?;
        let slot = peer.slots.last();
        let mut pairs: Vec<(u64, PairView)> = slot
            .map(|slot| {
                slot.agent
                    .pairs()
                    .map(|p| (p.priority(), self.pair_view(p)))
                    .collect()
            })
            .unwrap_or_default();
        let lost = match (peer.path.selected, slot) {
            (None, _) if peer.path.changes > 0 => peer.path.since,
            (Some(_), Some(slot)) => slot.started,
            (_, _) => peer.path.since,
        };
        pairs.sort_by_key(|(priority, view)| (view.used != Use::Selected, u64::MAX - priority));
        Some(PeerSnapshot {
            id,
            key: peer.key,
            name: peer.advert.as_ref().map(|advert| advert.name.clone()),
            revoked: peer.revoked,
            nat: peer.advert.as_ref().map(|advert| advert.nat),
            advertised: peer
                .advert
                .iter()
                .flat_map(|advert| &advert.candidates)
                .map(|candidate| (candidate.kind, candidate.address))
                .collect(),
            role: slot.map(|slot| slot.agent.role()),
            path: peer
                .path
                .selected
                .and_then(|path| self.path_view(id, path, now)),
            changes: peer.path.changes,
            looking: slot.map(|slot| now.saturating_duration_since(slot.started.max(lost))),
            last_seen: peer.last_seen(now),
            pairs: pairs.into_iter().map(|(_, view)| view).collect(),
        })
    }

    fn path_view(&self, id: PeerId, path: PathRef, now: Instant) -> Option<PathView> {
        let peer = self.peers.get(&id)?;
        let relay = self
            .bases
            .relay_of(path.key.base)
            .and_then(|id| self.relays.active.get(&id));
        Some(PathView {
            pair: self.pair_view(peer.pair(path)?),
            up: peer.path.up,
            age: now.saturating_duration_since(peer.path.since),
            relay: relay.map(|relay| relay.server.name.clone()),
            native: self.bases.is_shared(path.key.base),
        })
    }

    fn pair_view(&self, pair: &Pair) -> PairView {
        let key = pair.key();
        let local = self.bases.get(key.base).map(|base| base.address);
        PairView {
            local_kind: pair.local_kind(),
            local: local.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))),
            mapped: pair.mapped(),
            remote_kind: pair.remote().kind,
            remote: key.remote,
            relay_transport: pair.relay_transport().or(pair.remote().relay_transport),
            relays: pair.relays(),
            state: pair.state(),
            held: pair.is_held(),
            used: pair.used(),
            checks: pair.checks(),
            rtt: pair.rtt(),
        }
    }

    fn observations(&self) -> Vec<(SocketAddr, String, Observation)> {
        let name = |server: SocketAddr| {
            let known = self
                .stun_servers
                .iter()
                .find(|known| known.address == server);
            known.map_or_else(|| server.to_string(), |known| known.name.clone())
        };
        self.gatherer
            .observations()
            .filter_map(|seen| Some((self.bases.get(seen.base)?.address, name(seen.server), seen)))
            .collect()
    }
}

fn relay_snapshot(view: &super::relays::ServerView<'_>, now: Instant) -> RelaySnapshot {
    let allocation = view.relay.map(|relay| &relay.allocation);
    let silent = allocation.is_some_and(|allocation| allocation.is_silent(now));
    // It may come back with all that it held, but nothing can count on it.
    let answering = allocation.filter(|_| !silent);
    RelaySnapshot {
        name: view.server.name.clone(),
        transport: view.server.transport,
        minted: view.server.is_minted(),
        relayed: answering.and_then(Allocation::relayed_address),
        rtt: answering.and_then(Allocation::rtt),
        failure: silent.then_some(Failure::NoAnswer).or(view.last_failure),
    }
}
