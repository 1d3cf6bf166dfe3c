//! The whole node without its sockets: bases, gathering, relays, peers with their agents and paths,
//! and the advert that says it all. `handle_*` in; transmits, events and timeouts out.

mod addresses;
mod adverts;
mod bases;
mod budget;
mod events;
mod excluded;
mod inbound;
mod path;
mod paths;
mod peer;
mod presence;
mod publish;
mod relaying;
mod relays;
mod scheduler;
mod snapshot;
mod types;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use wice_signaling::protocol::{NetworkId, PrivateKey, PublicKey, RevocationList, Session};

use super::credentials::{End, KeyHash};
use super::gather::Gatherer;
use super::ice::AgentEvent;
use super::stun::TransactionId;
use super::timing::{RTO_MIN, TA_NODE};
use addresses::Addresses;
use bases::Bases;
use budget::Budget;
use events::Events;
use excluded::Excluded;
use peer::Peer;
use publish::Publisher;
use relays::Relays;
use scheduler::{AgentRef, Need, Scheduler, Timer};

pub use adverts::{RecordOutcome, RecordRefusal};
pub use bases::SharedPorts;
pub use snapshot::{Counters, NodeSnapshot, PairView, PathView, PeerSnapshot, RelaySnapshot, Way};
pub use types::{
    Admission, Arrival, Event, HostAddress, HostSocket, Inbound, NodeConfig, PathRef, PeerId,
    RelayId, RelayServer, Route, StunServer, Transmit, Via, WireGuardPacket,
};

/// The most messages that wait for the owner's sockets; past them the newest is dropped like a lost
/// packet. The pacing lets 200 checks a second out, the rest are replies of one batch of packets.
const MAX_TRANSMITS: usize = 4096;

/// One node of the mesh.
#[derive(Debug)]
pub struct Node {
    key: PrivateKey,
    own: End,
    name: String,
    admission: Admission,
    membership: Vec<u8>,
    revoked: Option<RevocationList>,
    bases: Bases,
    excluded: Excluded,
    addresses: Addresses,
    gatherer: Gatherer,
    stun_servers: Vec<StunServer>,
    looked_again: Option<Instant>,
    relays: Relays,
    peers: BTreeMap<PeerId, Peer>,
    by_key: BTreeMap<PublicKey, PeerId>,
    by_hash: BTreeMap<KeyHash, PeerId>,
    next_peer: u32,
    next_generation: u32,
    transactions: BTreeMap<TransactionId, AgentRef>,
    scheduler: Scheduler,
    budget: Budget,
    publisher: Publisher,
    counters: Counters,
    rng: ChaCha20Rng,
    transmits: VecDeque<Transmit>,
    events: Events,
    now: Instant,
}

impl Node {
    /// A node without addresses, servers and peers.
    pub fn new(config: NodeConfig, now: Instant) -> Self {
        let public = config.key.public_key();
        Self {
            own: End {
                key: public,
                session: config.session,
            },
            key: config.key,
            name: config.name,
            admission: config.admission,
            membership: config.membership,
            revoked: None,
            bases: Bases::default(),
            excluded: Excluded::default(),
            addresses: Addresses::default(),
            gatherer: Gatherer::default(),
            stun_servers: Vec::new(),
            looked_again: None,
            relays: Relays::default(),
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_hash: BTreeMap::new(),
            next_peer: 0,
            next_generation: 0,
            transactions: BTreeMap::new(),
            scheduler: Scheduler::new(now),
            budget: Budget::default(),
            publisher: Publisher::new(config.sequence),
            counters: Counters::default(),
            rng: ChaCha20Rng::from_seed(config.seed),
            transmits: VecDeque::new(),
            events: Events::default(),
            now,
        }
    }

    /// Our WireGuard public key.
    pub fn public_key(&self) -> PublicKey {
        self.own.key
    }

    /// Our session.
    pub fn session(&self) -> Session {
        self.own.session
    }

    /// The network whose members are our peers, in managed mode.
    pub fn network(&self) -> Option<NetworkId> {
        match self.admission {
            Admission::Members(network) => Some(network),
            Admission::Added | Admission::AddedIn(_) => None,
        }
    }

    /// The number of a peer.
    pub fn peer_of(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        // What is due again at once waits for the next call: the sockets have their turn.
        for _ in 0..self.scheduler.timers() {
            let Some(timer) = self.scheduler.pop_due(now) else {
                break;
            };
            match timer {
                Timer::Agent(agent) => {
                    if let Some(agent) = self.agent_mut(agent) {
                        agent.handle_timeout(now);
                    }
                    self.touch(agent);
                }
                Timer::Path(peer) => self.path_timeout(peer),
            }
        }
        self.drive_relays();
        self.pump();
        if self.gatherer.take_silenced() {
            self.note_candidates();
        }
        self.publish_if_due();
    }

    /// When [`Self::handle_timeout`] is to be called, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let gather = self.gatherer.poll_timeout();
        let gather_waits = gather.is_some_and(|at| at <= self.now);
        let gather = gather.filter(|at| *at > self.now);
        [
            (self.scheduler.poll_timeout(gather_waits), "agents"),
            (gather, "gathering"),
            (self.relays.poll_timeout(), "relays"),
            (self.publisher.poll_timeout(), "publishing"),
        ]
        .into_iter()
        .filter_map(|(at, why)| Some((at?, why)))
        .min()
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    fn transmit(&mut self, via: Via, payload: Vec<u8>) {
        if self.transmits.len() >= MAX_TRANSMITS {
            self.counters.transmits_dropped += 1;
            return;
        }
        self.transmits.push_back(Transmit { via, payload });
    }

    /// Sends as many checks and gathering requests as the pacing allows now.
    fn pump(&mut self) {
        while self.scheduler.has_token(self.now) {
            if !self.send_gathering() && !self.send_check() {
                return;
            }
        }
    }

    fn send_gathering(&mut self) -> bool {
        let id = self.next_id();
        let Some(request) = self.gatherer.poll_request(id, self.now) else {
            return false;
        };
        self.scheduler.take_token(self.now);
        if let Some(via) = self.bases.via_host(request.base, request.server) {
            self.transmit(via, request.payload);
        }
        true
    }

    /// Lets the next agent in turn send. False if none wants to.
    fn send_check(&mut self) -> bool {
        let Some(agent) = self.scheduler.pop_ready() else {
            return false;
        };
        let now = self.now;
        let open = u32::try_from(self.transactions.len()).unwrap_or(u32::MAX);
        let rto = RTO_MIN.max(TA_NODE.saturating_mul(open));
        let outgoing = self
            .agent_mut(agent)
            .and_then(|agent| agent.poll_check(rto, now));
        if let Some(outgoing) = outgoing {
            self.scheduler.take_token(now);
            if let Some(id) = outgoing.opened {
                self.transactions.insert(id, agent);
            }
            let target = outgoing.remote.ip();
            if !outgoing.to_stranger || self.budget.take(target, now) {
                self.counters.checks_sent += 1;
                self.send_from(outgoing.base, outgoing.remote, outgoing.payload);
            } else {
                self.counters.over_budget += 1;
            }
        }
        self.touch(agent);
        true
    }

    fn agent_mut(&mut self, agent: AgentRef) -> Option<&mut super::ice::Agent> {
        let slot = self
            .peers
            .get_mut(&agent.peer)?
            .slot_mut(agent.generation)?;
        Some(&mut slot.agent)
    }

    /// An agent may have changed: hears its events, follows its path, sets its timers.
    fn touch(&mut self, at: AgentRef) {
        let mut rebased = None;
        let Some(peer) = self.peers.get_mut(&at.peer) else {
            return;
        };
        let Some(slot) = peer.slot_mut(at.generation) else {
            return;
        };
        self.counters.agents_touched += 1;
        for id in slot.agent.drain_closed() {
            self.transactions.remove(&id);
        }
        let (mut validated, mut restarted, mut doubted) = (false, false, false);
        let mut lost = Vec::new();
        while let Some(event) = slot.agent.poll_event() {
            match event {
                AgentEvent::Validated(_) => validated = true,
                AgentEvent::Nominated(_) => {}
                AgentEvent::Lost(key) => lost.push(key.base),
                AgentEvent::Doubted => doubted = true,
                AgentEvent::Restarted => restarted = true,
                AgentEvent::Reflexive { base, mapped } => rebased = Some((base, mapped)),
            }
        }
        peer.path.handshake_wanted |= restarted;
        if validated {
            self.promote(at);
            // An answer may be all that shows that UDP is not blocked.
            self.note_candidates();
        }
        if let Some((base, mapped)) = rebased {
            self.note_reflexive(base, mapped);
        }
        for base in lost {
            self.verify_relay(base);
        }
        if doubted {
            self.look_again();
        }
        self.update_path(at.peer);
    }

    /// As [`Self::touch`], for all agents of a peer.
    fn touch_peer(&mut self, id: PeerId) {
        let slots = self.peers.get(&id).map(|peer| &peer.slots);
        let agents: Vec<AgentRef> = slots
            .into_iter()
            .flatten()
            .map(|slot| AgentRef {
                peer: id,
                generation: slot.generation,
            })
            .collect();
        for agent in agents {
            self.touch(agent);
        }
    }

    /// Sets the timers of a peer's agents, and queues those that have something to send now.
    fn arm_agents(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let need = match (peer.path.selected, peer.path.has_traffic(now)) {
            (Some(_), _) => Need::HasPath,
            (None, _) if peer.is_away(now) => Need::Away,
            (None, true) => Need::TrafficWaits,
            (None, false) => Need::NoPath,
        };
        for slot in &peer.slots {
            let agent = AgentRef {
                peer: id,
                generation: slot.generation,
            };
            let check = slot.agent.check_due(now);
            let timeout = slot.agent.poll_timeout();
            let due_now = check.is_some_and(|at| at <= now);
            if due_now {
                self.scheduler.enqueue(agent, need);
            }
            let check = check.filter(|_| !due_now);
            self.scheduler.arm(
                Timer::Agent(agent),
                [timeout, check].into_iter().flatten().min(),
            );
        }
    }

    fn next_id(&mut self) -> TransactionId {
        let low = u128::from(self.rng.next_u64());
        TransactionId::from(u128::from(self.rng.next_u32()) << 64 | low)
    }

    fn next_seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        seed
    }
}
