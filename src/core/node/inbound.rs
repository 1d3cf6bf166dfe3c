//! Datagrams: told apart by their first bytes, and found their agent without trying every one.

use std::net::SocketAddr;
use std::time::Instant;

use super::peer::Peer;
use super::scheduler::AgentRef;
use super::{Arrival, Event, Inbound, Node, PathRef, PeerId, Via};
use crate::core::credentials::{End, derive, parse_ufrag};
use crate::core::ice::{BaseId, PairKey, Reply, Witness};
use crate::core::slots::INITIATION_LEN;
use crate::core::stun::{Binding, BindingClass, integrity_key, is_stun, quoted_id};
use wice_signaling::protocol::Session;

impl Node {
    /// A datagram that came in. Data is the caller's; STUN is dealt with here. What is unknown costs
    /// no cryptography and gets no reply.
    pub fn handle_datagram(&mut self, arrival: Arrival, datagram: &[u8], now: Instant) -> Inbound {
        if !is_stun(datagram) {
            return Inbound::Data;
        }
        self.now = now;
        let Some(message) = Binding::parse(datagram) else {
            self.counters.malformed += 1;
            return Inbound::Consumed;
        };
        let Some(base) = self.bases.of_arrival(&arrival) else {
            self.counters.no_base += 1;
            return Inbound::Consumed;
        };
        let from = match arrival {
            Arrival::Host { from, .. } | Arrival::Relay { from, .. } => from,
        };
        match message.class() {
            BindingClass::Request => self.handle_request(base, from, &message),
            BindingClass::Success | BindingClass::Error => {
                self.handle_response(base, from, &message);
            }
            BindingClass::Indication => self.handle_indication(arrival, &message),
        }
        self.pump();
        Inbound::Consumed
    }

    /// The network says (hard ICMP error) that a datagram of ours cannot be delivered, and quotes how
    /// it began. Only a check that is open counts: who is not on the path cannot quote its id.
    pub fn handle_unreachable(&mut self, quoted: &[u8], now: Instant) {
        self.now = now;
        let Some(id) = quoted_id(quoted) else {
            return;
        };
        let Some(agent) = self.transactions.get(&id).copied() else {
            return;
        };
        if let Some(engine) = self.agent_mut(agent) {
            engine.handle_unreachable(id, now);
            self.touch(agent);
        }
    }

    /// A host says (ICMP port unreachable, from its own address) that nothing listens where a datagram
    /// of ours went. If that is a STUN server, UDP has reached it: what is missing is the server.
    pub fn handle_refused(&mut self, remote: SocketAddr, now: Instant) {
        self.now = now;
        if self.gatherer.handle_refused(remote) {
            self.note_candidates();
        }
    }

    /// A router says, or this machine's kernel, that what was sent to an address cannot get there: a path
    /// that leads there is probed at once, and has a second to answer.
    pub fn handle_path_error(&mut self, remote: SocketAddr, now: Instant) {
        self.now = now;
        let bases: Vec<BaseId> = self.bases.hosts().map(|(base, _, _)| base.id).collect();
        for base in bases {
            let Some(id) = self.peer_of_pair(PairKey { base, remote }) else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            for slot in &mut peer.slots {
                slot.agent.suspect(Witness::Network, Some(remote), now);
            }
            self.touch_peer(id);
        }
    }

    /// What is no keepalive encloses an initiation of a known session's WireGuard ([`Self::send_enclosed`]).
    fn handle_indication(&mut self, arrival: Arrival, indication: &Binding<'_>) {
        let Some(initiation) = indication.enclosed::<INITIATION_LEN>() else {
            return;
        };
        // The answer goes back there, so it must be where the peer has been met: who has recorded one can repeat it from anywhere.
        let met = self.peer_at(&arrival);
        let named = self.named(indication);
        let Some((peer, session)) = named.filter(|(peer, _)| met == Some(peer.id)) else {
            self.counters.strangers += 1;
            return;
        };
        let slot = peer.slots.iter().find(|slot| slot.session == session);
        if !slot.is_some_and(|slot| slot.agent.is_from_other_side(indication)) {
            self.counters.unauthentic += 1;
            return;
        }
        let peer = peer.id;
        self.events.push(Event::Initiation {
            peer,
            arrival,
            initiation: Box::new(initiation),
        });
    }

    /// Sends an initiation of our WireGuard's by the peer's path to its wice, where that ends at the port of its
    /// WireGuard and so would be taken before anybody has seen it.
    pub fn send_enclosed(&mut self, id: PeerId, initiation: &[u8; INITIATION_LEN], now: Instant) {
        self.now = now;
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let paths: Vec<PathRef> = peer.carrying().collect();
        for path in paths {
            let slot = self
                .peers
                .get_mut(&id)
                .and_then(|peer| peer.slot_mut(path.generation));
            if let Some(enclosed) = slot.and_then(|slot| slot.agent.enclose(initiation)) {
                self.send_from(path.key.base, path.key.remote, enclosed);
            }
        }
    }

    /// Whom a message to us says it is from.
    fn named(&self, message: &Binding<'_>) -> Option<(&Peer, Session)> {
        let (receiver, sender) = message.username()?;
        let (hash, session) = parse_ufrag(&sender).filter(|_| receiver == self.own.ufrag())?;
        let peer = self.by_hash.get(&hash).and_then(|id| self.peers.get(id))?;
        Some((peer, session))
    }

    fn handle_request(&mut self, base: BaseId, from: SocketAddr, request: &Binding<'_>) {
        // Through a mesh agent's overlay: a path would carry itself.
        if self.excluded.contains(from.ip()) {
            self.counters.strangers += 1;
            return;
        }
        let Some((peer, session)) = self.named(request) else {
            self.counters.strangers += 1;
            return;
        };
        let id = peer.id;
        let known = peer.slots.iter().find(|slot| slot.session == session);
        let agent = match known {
            Some(slot) => AgentRef {
                peer: id,
                generation: slot.generation,
            },
            None => match self.bear_agent(id, session, request) {
                Some(agent) => agent,
                None => return,
            },
        };
        let Some(engine) = self.agent_mut(agent) else {
            return;
        };
        match engine.handle_request(base, from, request) {
            Reply::Send(reply) => {
                self.note_heard(id);
                self.counters.checks_answered += 1;
                self.send_from(base, from, reply);
                self.note_spoken(id, PairKey { base, remote: from });
                self.prepare_channel(id, base, from);
            }
            Reply::Ignore => self.counters.unauthentic += 1,
        }
        self.touch(agent);
    }

    /// A check of a known peer under a session that we have not heard of: authenticated from the
    /// static keys, it starts that agent without signaling.
    fn bear_agent(
        &mut self,
        id: PeerId,
        session: Session,
        request: &Binding<'_>,
    ) -> Option<AgentRef> {
        let now = self.now;
        let peer = self.peers.get_mut(&id)?;
        if peer.revoked {
            self.counters.strangers += 1;
            return None;
        }
        if peer.is_superseded(session) {
            self.counters.superseded += 1;
            return None;
        }
        if !peer.may_be_born(now) {
            return None;
        }
        let theirs = End {
            key: peer.key,
            session,
        };
        let (local, _) = derive(&peer.shared, &self.own, &theirs);
        if !request.is_authentic(&integrity_key(&local.password)) {
            self.counters.unauthentic += 1;
            return None;
        }
        Some(self.start_agent(id, session, true))
    }

    fn handle_response(&mut self, base: BaseId, from: SocketAddr, response: &Binding<'_>) {
        if self.gatherer.handle_response(from, response, self.now) {
            self.update_reflexive();
            return;
        }
        let Some(agent) = self.transactions.get(&response.id()).copied() else {
            self.counters.strangers += 1;
            return;
        };
        let now = self.now;
        let Some(engine) = self.agent_mut(agent) else {
            return;
        };
        if engine.handle_response(base, from, response, now) {
            self.budget.note_answer(from.ip());
            self.note_heard(agent.peer);
            self.note_spoken(agent.peer, PairKey { base, remote: from });
        } else {
            self.counters.unauthentic += 1;
        }
        self.touch(agent);
    }

    fn note_heard(&mut self, id: PeerId) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.note_heard(now);
        }
    }

    /// Sends a STUN message from a base.
    pub(super) fn send_from(&mut self, base: BaseId, to: SocketAddr, payload: Vec<u8>) {
        if let Some(relay) = self.bases.relay_of(base) {
            return self.send_relayed(relay, to, &payload);
        }
        if let Some(via) = self.bases.via_host(base, to) {
            self.transmit(via, payload);
        }
    }

    /// What waits at an allocation goes out over its connection.
    pub(super) fn flush_relay(&mut self, relay: super::RelayId) {
        while let Some(message) = self
            .relays
            .active
            .get_mut(&relay)
            .and_then(|relay| relay.allocation.poll_transmit())
        {
            let via = Via::Relay {
                relay,
                droppable: message.droppable,
            };
            self.transmit(via, message.data);
        }
    }
}
