//! Paths of the peers: chosen again whenever something has changed, and told to the owner.

use std::net::SocketAddr;
use std::time::Instant;

use wice_signaling::protocol::{CandidateKind, PublicKey};

use super::path::{assign_uses, choose, ranked};
use super::scheduler::{AgentRef, Timer};
use super::{Arrival, Event, Node, PathRef, PeerId, Route, Via, WireGuardPacket};
use crate::core::ice::{Failure, PairKey, Role, is_own_socket};
use crate::core::timing::{EAGER_PEERS, HANDSHAKE_GRACE};

impl Node {
    /// WireGuard sent something to this peer by the routes that it was told.
    pub fn note_sent(&mut self, id: PeerId, packet: WireGuardPacket, now: Instant) {
        self.now = now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let had_traffic = peer.path.has_traffic(now);
        peer.path.note_sent(packet, now);
        if let Some(path) = peer.path.selected {
            self.note_sent_on(id, path, now);
        }
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        if had_traffic != peer.path.has_traffic(now) {
            self.follow_traffic(id);
        }
        self.arm_path(id);
    }

    /// Data left on this path at `at`. Its agent is looked at when that would be silence, not before its next check: with
    /// packets both ways that is once in [`SILENCE`](crate::core::timing::SILENCE), however many they are.
    fn note_sent_on(&mut self, id: PeerId, path: PathRef, at: Instant) {
        let slot = self
            .peers
            .get_mut(&id)
            .and_then(|peer| peer.slot_mut(path.generation));
        if let Some(due) = slot.and_then(|slot| slot.agent.note_sent(path.key, at)) {
            let agent = AgentRef {
                peer: id,
                generation: path.generation,
            };
            self.scheduler.arm_by(Timer::Agent(agent), due);
        }
    }

    /// WireGuard has authenticated something from this peer.
    pub fn note_received(
        &mut self,
        id: PeerId,
        arrival: Arrival,
        packet: WireGuardPacket,
        now: Instant,
    ) {
        self.now = now;
        let base = self.bases.of_arrival(&arrival);
        let remote = match arrival {
            Arrival::Host { from, .. } | Arrival::Relay { from, .. } => from,
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.note_heard(now);
        let had_traffic = peer.path.has_traffic(now);
        let key = base.map(|base| PairKey { base, remote });
        let slot = key.and_then(|key| {
            peer.slots
                .iter_mut()
                .rev()
                .find(|slot| slot.agent.pair(key).is_some())
        });
        let path = slot.zip(key).map(|(slot, key)| {
            slot.agent.note_received(key);
            PathRef {
                generation: slot.generation,
                key,
            }
        });
        let doubled = peer.path.previous.is_some();
        peer.path.note_received(path, packet, now);
        let settled = doubled && peer.path.previous.is_none();
        if had_traffic != peer.path.has_traffic(now) {
            self.follow_traffic(id);
        }
        if settled {
            self.update_path(id);
        }
        self.arm_path(id);
    }

    /// What another program's WireGuard has counted of a peer whose endpoint is `endpoint`: the last that was sent and
    /// received, and if nothing was received, since when that may be. The endpoint is where the last authentic packet
    /// came from, so what was received came by the path that leads there from WireGuard's own port; on all others data is
    /// seen and noted as it passes.
    pub fn note_counted(
        &mut self,
        key: &PublicKey,
        endpoint: SocketAddr,
        (sent, received): (Option<WireGuardPacket>, Option<WireGuardPacket>),
        quiet_since: Instant,
        now: Instant,
    ) {
        let Some(id) = self.peer_of(key) else { return };
        let path = self.peers.get(&id).and_then(|peer| peer.path.selected);
        let native =
            path.filter(|path| path.key.remote == endpoint && self.bases.is_shared(path.key.base));
        let Some(via) = native.and_then(|path| self.bases.via_host(path.key.base, endpoint)) else {
            return;
        };
        if let Some(packet) = sent {
            if let (Some(path), None) = (native, received) {
                self.note_sent_on(id, path, quiet_since);
            }
            self.note_sent(id, packet, now);
        }
        if let (
            Some(packet),
            Via::Host {
                socket,
                local,
                interface,
                remote,
            },
        ) = (received, via)
        {
            let arrival = Arrival::Host {
                socket,
                local,
                interface,
                from: remote,
            };
            self.note_received(id, arrival, packet, now);
        }
    }

    /// Routes or firewall of this machine have changed. What WireGuard sends from its own port may not get out any more,
    /// and nobody but WireGuard would hear of it: the paths of such peers that have traffic are checked now. Gives where
    /// the direct paths with traffic lead: whether there is a route is for the owner to ask, for what leaves by a given
    /// interface is sent without one, and looked for on its link ([`Self::handle_path_error`]).
    pub fn handle_local_change(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.now = now;
        let busy = self
            .peers
            .values()
            .filter(|peer| peer.path.has_traffic(now));
        let direct = busy.filter_map(|peer| {
            let path = peer.path.selected?;
            let is_direct = self.bases.relay_of(path.key.base).is_none();
            is_direct.then_some((peer.id, path.key))
        });
        // Checked within half a second; of more, silence tells.
        let direct: Vec<(PeerId, PairKey)> = direct.take(EAGER_PEERS).collect();
        for (id, _) in direct
            .iter()
            .filter(|(_, key)| self.bases.is_shared(key.base))
        {
            let slots = self.peers.get_mut(id).map(|peer| &mut peer.slots);
            for slot in slots.into_iter().flatten() {
                slot.agent.check_selected(now);
            }
        }
        for (id, _) in &direct {
            self.touch_peer(*id);
        }
        direct.into_iter().map(|(_, key)| key.remote).collect()
    }

    /// Whether the peer's end of a path that carries its packets, during a switch of either, is its WireGuard's own port: what
    /// arrives there nobody sees before WireGuard does.
    pub fn ends_at_wireguard(&self, id: PeerId) -> bool {
        let Some(peer) = self.peers.get(&id) else {
            return false;
        };
        let mut pairs = peer.carrying().filter_map(|path| peer.pair(path));
        pairs.any(|pair| {
            let remote = pair.remote();
            remote.kind != CandidateKind::Relayed && !is_own_socket(remote.priority)
        })
    }

    /// Traffic waits for this peer and there may be no path: its checks go first.
    pub fn note_wanted(&mut self, id: PeerId, now: Instant) {
        self.note_sent(id, WireGuardPacket::Data, now);
    }

    /// Chooses the peer's path anew and tells the owner what has changed.
    pub(super) fn update_path(&mut self, id: PeerId) {
        let now = self.now;
        let eager = self.peers.len() <= EAGER_PEERS;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let chosen = choose(peer, now);
        // Not before there is a way to send on it: a relay's channel takes a round trip.
        let ready = match chosen {
            Some(path) if Some(path) != peer.path.selected => self.is_ready(id, path),
            Some(_) | None => true,
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.path.pending = chosen.filter(|_| !ready);
        let present_works = peer
            .path
            .selected
            .is_some_and(|path| peer.pair(path).is_some_and(|p| p.is_valid()));
        if chosen != peer.path.selected && (ready || !present_works) {
            let chosen = if ready { chosen } else { self.best_ready(id) };
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            if chosen != peer.path.selected {
                peer.path.select(chosen, now);
                self.events.push(Event::PathChanged { peer: id, at: now });
            }
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.path.previous.is_some_and(|(_, until)| until <= now) {
            peer.path.previous = None;
        }
        assign_uses(peer, eager, now);
        self.nominate(id);
        self.release_channels(id);
        self.bind(id);
        self.arm_path(id);
        self.arm_agents(id);
    }

    /// What can carry data at once while the best waits for its relay's channel.
    fn best_ready(&self, id: PeerId) -> Option<PathRef> {
        let peer = self.peers.get(&id)?;
        let by_choice = ranked(peer);
        by_choice
            .into_iter()
            .find(|path| self.route(id, *path).is_some())
    }

    /// The controlling side says which pair it has chosen.
    fn nominate(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(path) = peer.path.selected else {
            return;
        };
        let Some(slot) = peer.slot_mut(path.generation) else {
            return;
        };
        let agent = &mut slot.agent;
        if agent.role() == Role::Controlling
            && agent.nominated() != Some(path.key)
            && !agent.is_nominating(path.key)
        {
            agent.nominate(path.key);
        }
    }

    pub(super) fn path_timeout(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let dead = peer.path.data_dead_at().is_some_and(|at| at <= now);
        if let Some(path) = peer.path.selected.filter(|_| dead) {
            peer.path.hold_down(path, now);
            self.counters.data_dead += 1;
            if let Some(slot) = peer.slot_mut(path.generation) {
                slot.agent.fail(path.key, Failure::DataDead, now);
            }
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.path.handshake_at.take_if(|at| *at <= now).is_some() {
            let routes = peer.path.bound.clone();
            self.events.push(Event::Bind {
                peer: id,
                routes,
                handshake: true,
            });
        }
        if peer.path.is_lonely(now) {
            for slot in &mut peer.slots {
                slot.agent.recheck(now);
            }
        }
        self.follow_traffic(id);
    }

    /// Agents watch paths closely while there is traffic, and loosely when there is none.
    fn follow_traffic(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let has_traffic = peer.path.has_traffic(now);
        let mut agents = Vec::new();
        for slot in &mut peer.slots {
            slot.agent.set_traffic(has_traffic, now);
            agents.push(super::AgentRef {
                peer: id,
                generation: slot.generation,
            });
        }
        for agent in agents {
            self.touch(agent);
        }
    }

    /// Whether data can be sent on a path at once. A relay's channel that is missing is asked for.
    fn is_ready(&mut self, id: PeerId, path: PathRef) -> bool {
        if self.route(id, path).is_some() {
            return true;
        }
        if let Some(relay) = self.bases.relay_of(path.key.base) {
            self.bind_channel(relay, path.key.remote, id);
        }
        false
    }

    fn route(&self, id: PeerId, path: PathRef) -> Option<Route> {
        let pair = self.peers.get(&id)?.pair(path)?;
        let key = pair.key();
        if let Some(relay) = self.bases.relay_of(key.base) {
            let channel = self
                .relays
                .active
                .get(&relay)?
                .allocation
                .channel(key.remote)?;
            return Some(Route::Relayed { relay, channel });
        }
        match self.bases.via_host(key.base, key.remote)? {
            Via::Host {
                socket,
                local,
                interface,
                remote,
            } => Some(Route::Host {
                socket,
                local,
                interface,
                remote,
            }),
            Via::Relay { .. } => None,
        }
    }

    /// Tells the owner the routes if they have changed.
    fn bind(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let selected = peer.path.selected;
        let routes = peer.carrying().filter_map(|path| self.route(id, path));
        let routes: Vec<Route> = routes.collect();
        let controls = self.own.key > peer.key;
        let confirmed = |path: PathRef| peer.pair(path).is_some_and(|pair| pair.is_confirmed());
        let is_confirmed = selected.is_some_and(confirmed) && !routes.is_empty();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        // The other side has restarted, and has answered on the path that we have: who begins
        // handshakes need not wait for a better one.
        let restarted = peer.path.handshake_wanted && controls && is_confirmed;
        if routes == peer.path.bound && !restarted {
            return;
        }
        // One side starts at once, for both at once would cost a handshake more; the other too if it
        // has traffic, and else a little later: it may have restarted, and the first not know it.
        let first = peer.path.bound.is_empty() && !routes.is_empty();
        let handshake = first && (controls || peer.path.has_traffic(now))
            || peer.path.handshake_wanted && !routes.is_empty();
        peer.path.handshake_wanted &= routes.is_empty();
        peer.path.handshake_at = (first && !handshake).then(|| now + HANDSHAKE_GRACE);
        peer.path.bound.clone_from(&routes);
        self.events.push(Event::Bind {
            peer: id,
            routes,
            handshake,
        });
    }

    fn arm_path(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.path.is_lonely(now);
        let at = peer.path.poll_timeout(now);
        self.scheduler.arm(Timer::Path(id), at);
    }
}
