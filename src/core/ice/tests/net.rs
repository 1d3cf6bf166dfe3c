//! Agents in virtual time: translators (mapping × filtering), relays, loss, delay, duplication,
//! blocked and rewritten routes, moving sockets. It checks on every step what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

pub(super) use super::world::{Depends, Route};
use super::world::{Nat, Packet, Port};
use crate::core::ice::*;
use crate::core::stun::{Binding, BindingClass, TransactionId};
use crate::core::timing::TA_NODE;

pub(super) const STUN_SERVER: &str = "192.0.2.1:3478";

pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) agents: Vec<Agent>,
    /// Nominates the best valid pair and uses what is nominated, as a node would.
    pub(super) owners: bool,
    pub(super) loss: f64,
    pub(super) duplicates: f64,
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    pub(super) events: Vec<(usize, AgentEvent)>,
    /// Requests that left: agent, destination, bytes.
    pub(super) sent: Vec<(Instant, usize, PairKey, Vec<u8>)>,
    pub(super) routes: BTreeMap<(SocketAddr, SocketAddr), Route>,
    pub(super) open_ids: BTreeSet<TransactionId>,
    peers: Vec<usize>,
    ports: Vec<Port>,
    nats: Vec<Nat>,
    queue: Vec<Packet>,
    paced: Vec<Instant>,
    pub(super) asked: Vec<Option<PairKey>>,
    pub(super) used: Vec<Option<PairKey>>,
    known: Vec<BTreeSet<SocketAddr>>,
    all_ids: BTreeSet<TransactionId>,
    rng: ChaCha8Rng,
}

pub(super) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

pub(super) fn credentials(name: &str) -> Credentials {
    Credentials {
        ufrag: format!("{name}frag"),
        password: format!("{name}-password-of-22-chars"),
    }
}

pub(super) fn candidate(kind: CandidateKind, address: SocketAddr) -> RemoteCandidate {
    RemoteCandidate {
        address,
        kind,
        priority: candidate_priority(kind, 65535),
        relay_transport: (kind == CandidateKind::Relayed).then_some(RelayTransport::Udp),
    }
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Instant::now(),
            agents: Vec::new(),
            owners: false,
            loss: 0.0,
            duplicates: 0.0,
            delay: Duration::from_millis(20),
            jitter: Duration::ZERO,
            events: Vec::new(),
            sent: Vec::new(),
            routes: BTreeMap::new(),
            open_ids: BTreeSet::new(),
            peers: Vec::new(),
            ports: Vec::new(),
            nats: Vec::new(),
            queue: Vec::new(),
            paced: Vec::new(),
            asked: Vec::new(),
            used: Vec::new(),
            known: Vec::new(),
            all_ids: BTreeSet::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Two agents of these roles, without candidates.
    pub(super) fn pair(roles: [Role; 2], nomination: Nomination, seed: u64) -> Self {
        let mut net = Self::new(seed);
        net.add_agent(("a", "b"), 1, roles[0], nomination);
        net.add_agent(("b", "a"), 0, roles[1], nomination);
        net
    }

    /// Controlling and controlled, one public host base each (base 0 and base 1), not advertised.
    pub(super) fn direct() -> Self {
        let roles = [Role::Controlling, Role::Controlled];
        let mut net = Self::pair(roles, Nomination::Repeated, 7);
        net.host(0, "198.51.100.1:1000", None);
        net.host(1, "198.51.100.2:2000", None);
        net
    }

    /// As [`Self::direct`], advertised, with traffic and owners, run until it is nominated.
    pub(super) fn connected() -> Self {
        let mut net = Self::direct();
        net.owners = true;
        net.advertise_all();
        net.traffic(true);
        net.run(Duration::from_millis(300));
        assert!(net.agreed().is_some());
        net
    }

    pub(super) fn add_agent(
        &mut self,
        (name, other): (&str, &str),
        peer: usize,
        role: Role,
        nomination: Nomination,
    ) -> usize {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        self.agents.push(Agent::new(AgentConfig {
            local: credentials(name),
            remote: Some(credentials(other)),
            role,
            nomination,
            seed,
        }));
        self.peers.push(peer);
        self.paced.push(self.now);
        self.asked.push(None);
        self.used.push(None);
        self.known.push(BTreeSet::new());
        self.agents.len() - 1
    }

    pub(super) fn nat(&mut self, external: &str, mapping: Depends, filtering: Depends) -> usize {
        let external = external.parse().unwrap();
        self.nats.push(Nat::new(external, mapping, filtering));
        self.nats.len() - 1
    }

    /// A host base; behind a translator it learns from the STUN server how it is seen.
    pub(super) fn host(&mut self, agent: usize, address: &str, nat: Option<usize>) -> BaseId {
        let address = at(address);
        let reflexive = nat
            .map(|nat| {
                let mapped = self.nats[nat].outbound(address, at(STUN_SERVER));
                (mapped, CandidateKind::ServerReflexive)
            })
            .into_iter()
            .collect();
        self.plug(agent, BaseKind::Host, address, nat, reflexive)
    }

    pub(super) fn relay(&mut self, agent: usize, address: &str) -> BaseId {
        let kind = BaseKind::Relayed(RelayTransport::Udp);
        self.plug(agent, kind, at(address), None, Vec::new())
    }

    fn plug(
        &mut self,
        agent: usize,
        kind: BaseKind,
        address: SocketAddr,
        nat: Option<usize>,
        reflexive: Vec<(SocketAddr, CandidateKind)>,
    ) -> BaseId {
        let base = BaseId(self.ports.len() as u32);
        self.ports.push(Port {
            agent,
            base,
            address,
            nat,
            permitted: (kind != BaseKind::Host).then(BTreeSet::new),
        });
        self.agents[agent].set_base(Base {
            id: base,
            kind,
            address,
            preference: 65535,
            reflexive,
        });
        base
    }

    /// The socket's address changes and the agent is not told.
    pub(super) fn move_port(&mut self, base: BaseId, address: &str) {
        self.ports[base.0 as usize].address = at(address);
    }

    /// A translator forgets everything: new ports from here on.
    pub(super) fn rebind(&mut self, nat: usize) {
        self.nats[nat].forget();
    }

    /// An agent's candidates, as an advert would have them.
    pub(super) fn candidates(&self, agent: usize) -> Vec<RemoteCandidate> {
        let mut candidates = Vec::new();
        for base in self.agents[agent].bases() {
            candidates.push(candidate(base.host_kind(), base.address));
            for (address, kind) in &base.reflexive {
                candidates.push(candidate(*kind, *address));
            }
        }
        candidates
    }

    /// Tells an agent what its peer's advert says.
    pub(super) fn tell(&mut self, agent: usize, candidates: &[RemoteCandidate]) {
        self.known[agent].extend(candidates.iter().map(|c| c.address));
        self.agents[agent].set_remote_candidates(candidates);
    }

    /// An address that an agent may send to from now on.
    pub(super) fn known_to(&mut self, agent: usize, address: &str) {
        self.known[agent].insert(at(address));
    }

    pub(super) fn advertise(&mut self, agent: usize) {
        let candidates = self.candidates(agent);
        self.tell(self.peers[agent], &candidates);
    }

    pub(super) fn advertise_all(&mut self) {
        for agent in 0..self.agents.len() {
            self.advertise(agent);
        }
    }

    pub(super) fn traffic(&mut self, has_traffic: bool) {
        for agent in &mut self.agents {
            agent.set_traffic(has_traffic, self.now);
        }
    }

    /// Cuts what leaves `from` towards `to`, public addresses.
    pub(super) fn block(&mut self, from: &str, to: &str) {
        self.routes.insert((at(from), at(to)), Route::Blocked);
    }

    pub(super) fn cut(&mut self) {
        self.ports.clear();
    }

    /// A random number in 0..1.
    pub(super) fn random(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / f64::from(u32::MAX)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.rng.next_u64() % limit as u64) as usize
    }

    /// Sends from a port, as a raw datagram.
    pub(super) fn send(&mut self, agent: usize, base: BaseId, to: SocketAddr, bytes: Vec<u8>) {
        let Some((source, to)) = self.route(agent, base, to) else {
            return;
        };
        let copies = if self.random() < self.duplicates {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if self.random() < self.loss {
                continue;
            }
            let jitter = self.jitter.mul_f64(self.random());
            self.queue.push(Packet {
                at: self.now + self.delay + jitter,
                to,
                source,
                bytes: bytes.clone(),
            });
        }
    }

    /// Where a datagram comes out, and from where it seems to come.
    fn route(
        &mut self,
        agent: usize,
        base: BaseId,
        to: SocketAddr,
    ) -> Option<(SocketAddr, (usize, BaseId))> {
        let port = self.ports.get_mut(base.0 as usize)?;
        assert_eq!((port.agent, port.base), (agent, base));
        let (inner, nat) = (port.address, port.nat);
        if let Some(permitted) = &mut port.permitted {
            permitted.insert(to.ip());
        }
        let inside = |p: &&Port| p.nat == nat && nat.is_some() && p.address == to;
        if let Some(neighbour) = self.ports.iter().find(inside) {
            return Some((inner, (neighbour.agent, neighbour.base)));
        }
        let mut source = nat.map_or(inner, |nat| self.nats[nat].outbound(inner, to));
        match self.routes.get(&(source, to)) {
            Some(Route::Blocked) => return None,
            Some(Route::From(other)) => source = *other,
            None => {}
        }
        let behind = self.nats.iter().position(|nat| nat.external == to.ip());
        let target = match behind {
            Some(nat) => self.nats[nat].inbound(source, to.port())?,
            None => to,
        };
        let found = self
            .ports
            .iter()
            .find(|p| p.address == target && p.nat == behind)?;
        let lets_in = found
            .permitted
            .as_ref()
            .is_none_or(|permitted| permitted.contains(&source.ip()));
        lets_in.then_some((source, (found.agent, found.base)))
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let mut next = end;
            for agent in 0..self.agents.len() {
                next = next.min(self.drive(agent));
            }
            next = self.queue.iter().map(|p| p.at).fold(next, Instant::min);
            self.now = self.now.max(next);
            let (due, rest) = self.queue.drain(..).partition(|p| p.at <= self.now);
            self.queue = rest;
            let due: Vec<Packet> = due;
            let idle = due.is_empty();
            for packet in due {
                self.deliver(&packet);
            }
            if idle && self.now >= end {
                return;
            }
        }
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        self.run(Duration::from_millis(ms));
    }

    /// Runs until the condition holds; panics with the elapsed time past `limit`.
    pub(super) fn run_until(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !holds(self) {
            assert!(self.now - start < limit, "not within {limit:?}");
            self.run(Duration::from_millis(5));
        }
        self.now - start
    }

    /// Everything that one agent has to do now; when it wants to be asked again.
    fn drive(&mut self, i: usize) -> Instant {
        let now = self.now;
        self.agents[i].handle_timeout(now);
        if self.owners {
            self.own(i);
            self.agents[i].handle_timeout(now);
        }
        let timeout = self.agents[i].poll_timeout();
        assert!(timeout.is_none_or(|at| at > now), "nothing is left due");
        for port in self.ports.iter_mut().filter(|port| port.agent == i) {
            let Some(permitted) = &mut port.permitted else {
                continue;
            };
            let wanted: Vec<IpAddr> = self.agents[i].wanted_permissions(port.base).collect();
            for peer in wanted {
                self.agents[i].permit(port.base, peer);
                permitted.insert(peer);
            }
        }
        let due = self.agents[i].check_due(now).is_some_and(|at| at <= now);
        if due && self.paced[i] <= now {
            self.paced[i] = now + TA_NODE;
            if let Some(out) = self.agents[i].poll_check(Duration::ZERO, now) {
                self.sent_check(i, out);
            }
        }
        while let Some(event) = self.agents[i].poll_event() {
            self.events.push((i, event));
        }
        for id in self.agents[i].drain_closed() {
            assert!(self.open_ids.remove(&id), "closed twice or never opened");
        }
        self.assert_sound(i);
        let far = now + Duration::from_secs(3600);
        let check = self.agents[i].check_due(now).unwrap_or(far);
        let timeout = self.agents[i].poll_timeout().unwrap_or(far);
        check.max(self.paced[i]).min(timeout)
    }

    fn sent_check(&mut self, i: usize, out: Outgoing) {
        let key = PairKey {
            base: out.base,
            remote: out.remote,
        };
        assert!(
            self.known[i].contains(&out.remote),
            "{} was neither advertised nor authenticated",
            out.remote
        );
        if let Some(id) = out.opened {
            assert!(self.all_ids.insert(id), "transaction ids are unique");
            self.open_ids.insert(id);
        }
        self.sent.push((self.now, i, key, out.payload.clone()));
        self.send(i, out.base, out.remote, out.payload);
    }

    fn deliver(&mut self, packet: &Packet) {
        let (i, base) = packet.to;
        // Sockets may be shared: the request's ufrag and the response's id find the agent.
        let address = self.ports.get(base.0 as usize).map(|p| p.address);
        let sharing: Vec<(usize, BaseId)> = self
            .ports
            .iter()
            .filter(|p| Some(p.address) == address && p.permitted.is_none())
            .map(|p| (p.agent, p.base))
            .collect();
        let receivers = if sharing.is_empty() {
            vec![(i, base)]
        } else {
            sharing
        };
        let Some(message) = Binding::parse(&packet.bytes) else {
            return;
        };
        for (i, base) in receivers {
            match message.class() {
                BindingClass::Request => {
                    let reply = self.agents[i].handle_request(base, packet.source, &message);
                    if let Reply::Send(reply) = reply {
                        self.known[i].insert(packet.source);
                        self.send(i, base, packet.source, reply);
                    }
                }
                BindingClass::Success | BindingClass::Error => {
                    let now = self.now;
                    self.agents[i].handle_response(base, packet.source, &message, now);
                }
                BindingClass::Indication => {}
            }
        }
    }
}
