//! Connections to TURN servers, their allocations, and what peers send through them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wice_signaling::protocol::RelayTransport;

use super::scheduler::AgentRef;
use super::{Arrival, Event, Inbound, Node, PeerId, RelayId, RelayServer};
use crate::core::ice::{BaseId, PairKey, Use};
use crate::core::timing::EAGER_PEERS;
use crate::core::turn::{AllocationEvent, Failure};

/// The most datagrams that one piece of a stream may hold: 64 KiB of the smallest frames that carry
/// anything of use.
const MAX_FRAMES: usize = 1024;

impl Node {
    /// The TURN servers with credentials that hold now.
    pub fn handle_relay_servers(&mut self, servers: &[RelayServer], now: Instant) {
        self.now = now;
        for gone in self.relays.set_servers(servers, now) {
            self.close_relay(gone);
        }
        self.drive_relays();
        self.pump();
    }

    /// The connection that was asked for stands.
    pub fn handle_relay_connected(&mut self, relay: RelayId, now: Instant) {
        self.now = now;
        if let Some(relay) = self.relays.active.get_mut(&relay) {
            relay.allocation.handle_connected(now);
        }
        self.drive_relays();
    }

    /// The connection could not be made, or is gone.
    pub fn handle_relay_closed(&mut self, relay: RelayId, failure: Failure, now: Instant) {
        self.now = now;
        let Some(known) = self.relays.active.get_mut(&relay) else {
            return;
        };
        known.allocation.handle_closed(failure, now);
        self.drive_relays();
        if self.relays.active.contains_key(&relay) {
            self.lose_relay(relay, Some(failure));
        }
        self.pump();
    }

    /// A datagram from a TURN server over UDP. What a peer sent through it and is not STUN is
    /// returned with the peer's address.
    pub fn handle_relay_datagram<'a>(
        &mut self,
        relay: RelayId,
        datagram: &'a [u8],
        now: Instant,
    ) -> Option<(SocketAddr, &'a [u8])> {
        self.now = now;
        let known = self.relays.active.get_mut(&relay)?;
        let received = known.allocation.handle_datagram(datagram, now);
        let data = received.and_then(|received| {
            let arrival = Arrival::Relay {
                relay,
                from: received.peer,
            };
            match self.handle_datagram(arrival, received.payload, now) {
                Inbound::Data => Some((received.peer, received.payload)),
                Inbound::Consumed => None,
            }
        });
        if data.is_none() {
            self.drive_relays();
            self.pump();
        }
        data
    }

    /// Bytes of the stream from a TURN server over TCP or TLS; `deliver` gets what peers sent
    /// through it and is not STUN.
    pub fn handle_relay_stream(
        &mut self,
        relay: RelayId,
        bytes: &[u8],
        now: Instant,
        mut deliver: impl FnMut(SocketAddr, &[u8]),
    ) {
        self.now = now;
        let Some(known) = self.relays.active.get_mut(&relay) else {
            return;
        };
        let mut frames: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        known.allocation.handle_stream(bytes, now, |received| {
            if crate::core::stun::is_stun(received.payload) {
                if frames.len() < MAX_FRAMES {
                    frames.push((received.peer, received.payload.to_vec()));
                }
            } else {
                deliver(received.peer, received.payload);
            }
        });
        for (from, payload) in frames {
            self.handle_datagram(Arrival::Relay { relay, from }, &payload, now);
        }
        self.drive_relays();
        self.pump();
    }

    /// Opens what is to be opened, lets every allocation do what is due, and hears what happened.
    pub(super) fn drive_relays(&mut self) {
        let now = self.now;
        let heard = self.relays.note_silence(now);
        if heard.by_udp {
            self.gatherer.ask_silent(now);
        }
        if heard.changed {
            self.note_candidates();
            self.close_superfluous();
        }
        let has_ipv4 = self.bases.hosts().any(|(base, ..)| base.address.is_ipv4());
        loop {
            let Self { relays, rng, .. } = self;
            let seed = || {
                let mut seed = [0; 32];
                rand_core::RngCore::fill_bytes(rng, &mut seed);
                seed
            };
            let Some((relay, server)) = relays.poll_open(has_ipv4, seed, now) else {
                break;
            };
            self.events.push(Event::OpenRelay { relay, server });
        }
        let ids: Vec<RelayId> = self.relays.active.keys().copied().collect();
        for id in ids {
            if let Some(relay) = self.relays.active.get_mut(&id)
                && relay.allocation.poll_timeout().is_some_and(|at| at <= now)
            {
                relay.allocation.handle_timeout(now);
            }
            while let Some(event) = self
                .relays
                .active
                .get_mut(&id)
                .and_then(|relay| relay.allocation.poll_event())
            {
                self.handle_allocation(id, event);
            }
            self.flush_relay(id);
        }
    }

    /// Sends a STUN message to a peer through an allocation.
    pub(super) fn send_relayed(&mut self, relay: RelayId, to: SocketAddr, payload: &[u8]) {
        let Some(known) = self.relays.active.get_mut(&relay) else {
            return;
        };
        // What cannot be sent is a lost packet.
        if known.allocation.send(to, payload, self.now).is_err() {
            self.counters.transmits_dropped += 1;
        }
        self.flush_relay(relay);
    }

    /// Answers what came through a relay before there is a channel: WireGuard's handshake response to
    /// a peer that has found us first.
    pub fn reply_relayed(&mut self, relay: RelayId, to: SocketAddr, packet: &[u8], now: Instant) {
        self.now = now;
        self.send_relayed(relay, to, packet);
    }

    /// A pair from this base has fallen silent: if it is an allocation, is it still there? Behind a
    /// router that has rebooted it is at an address that the server does not know.
    pub(super) fn verify_relay(&mut self, base: BaseId) {
        let now = self.now;
        let relay = self.bases.relay_of(base);
        if let Some(known) = relay.and_then(|relay| self.relays.active.get_mut(&relay)) {
            known.allocation.verify(now);
        }
    }

    /// Asks the relays to let this agent's remote addresses through, and no longer what the peer's
    /// agents have forgotten.
    pub(super) fn ask_permissions(&mut self, at: AgentRef) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&at.peer) else {
            return;
        };
        let mut wanted: BTreeSet<(RelayId, IpAddr)> = BTreeSet::new();
        for base in self.bases.iter() {
            let Some(relay) = self.bases.relay_of(base.id) else {
                continue;
            };
            for slot in &peer.slots {
                let addresses = slot.agent.wanted_permissions(base.id);
                wanted.extend(addresses.map(|address| (relay, address)));
            }
        }
        let forgotten: Vec<_> = peer.wishes.difference(&wanted).copied().collect();
        peer.wishes.clone_from(&wanted);
        for (relay, address) in forgotten {
            self.relays.unwish(relay, address, at.peer);
        }
        for (relay, address) in wanted {
            self.relays.wish(relay, address, at.peer);
            if self.relays.permit(relay, address, now) {
                self.let_through(relay, address, at.peer);
            }
        }
        self.drive_relays();
    }

    /// The relay lets this address through: the peer's pairs that waited for it may be checked.
    fn let_through(&mut self, relay: RelayId, address: IpAddr, id: PeerId) {
        let base = self.relays.active.get(&relay).and_then(|relay| relay.base);
        let (Some(base), Some(peer)) = (base, self.peers.get_mut(&id)) else {
            return;
        };
        for slot in &mut peer.slots {
            slot.agent.permit(base, address);
        }
    }

    /// A peer has reached us through our relay and may be about to need it: the channel is bound
    /// while the checks are on their way.
    pub(super) fn prepare_channel(&mut self, peer: PeerId, base: BaseId, from: SocketAddr) {
        let Some(relay) = self.bases.relay_of(base) else {
            return;
        };
        let Some(peer) = self.peers.get(&peer) else {
            return;
        };
        // Numbers are few: many peers wait the round trip.
        if peer.path.selected.is_some() || self.peers.len() > EAGER_PEERS {
            return;
        }
        let id = peer.id;
        self.bind_channel(relay, from, id);
    }

    /// Binds a channel to this address of the peer, who hears of it.
    pub(super) fn bind_channel(&mut self, relay: RelayId, peer: SocketAddr, id: PeerId) {
        let now = self.now;
        if self.relays.is_refused(relay, peer, now) {
            return;
        }
        self.relays.wish(relay, peer.ip(), id);
        if let Some(known) = self.peers.get_mut(&id) {
            known.wishes.insert((relay, peer.ip()));
        }
        if let Some(known) = self.relays.active.get_mut(&relay)
            && known.allocation.channel(peer).is_none()
        {
            known.allocation.bind_channel(peer, now);
            known.allocation.handle_timeout(now);
            self.flush_relay(relay);
        }
    }

    /// Channels of pairs that nobody selects any more are not refreshed.
    pub(super) fn release_channels(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let previous = peer.path.previous.map(|(path, _)| path.key);
        let pending = peer.path.pending.map(|path| path.key);
        let unused: Vec<(BaseId, SocketAddr)> = peer
            .slots
            .iter()
            .flat_map(|slot| slot.agent.pairs())
            .filter(|pair| pair.relay_transport().is_some() && pair.used() != Use::Selected)
            .filter(|pair| pair.is_valid())
            .filter(|pair| ![previous, pending].contains(&Some(pair.key())))
            .map(|pair| (pair.key().base, pair.key().remote))
            .collect();
        for (base, remote) in unused {
            let relay = self.bases.relay_of(base);
            if let Some(relay) = relay.and_then(|id| self.relays.active.get_mut(&id)) {
                relay.allocation.unbind_channel(remote);
            }
        }
    }

    fn handle_allocation(&mut self, id: RelayId, event: AllocationEvent) {
        match event {
            AllocationEvent::Allocated { relayed, .. } => {
                self.relays.note_allocated(id);
                let Some(relay) = self.relays.active.get_mut(&id) else {
                    return;
                };
                if relay.server.transport == RelayTransport::Udp {
                    self.gatherer.ask_silent(self.now);
                }
                let base = self.bases.add_relay(id, relayed, relay.server.transport);
                relay.base = Some(base);
                self.spread_base(base);
                self.note_candidates();
                self.close_superfluous();
            }
            AllocationEvent::PermissionInstalled(address) => {
                for peer in self.relays.wishers(id, address) {
                    self.let_through(id, address, peer);
                    self.touch_peer(peer);
                }
            }
            AllocationEvent::PermissionRefused { peer: address, .. } => {
                let now = self.now;
                let base = self.relays.active.get(&id).and_then(|relay| relay.base);
                let Some(base) = base else { return };
                for id in self.relays.wishers(id, address) {
                    for slot in self
                        .peers
                        .get_mut(&id)
                        .into_iter()
                        .flat_map(|p| &mut p.slots)
                    {
                        slot.agent.forbid(base, address, now);
                    }
                    self.touch_peer(id);
                }
            }
            AllocationEvent::ChannelRefused { peer: remote, .. } => {
                self.relays.note_refused(id, remote, self.now);
            }
            AllocationEvent::ChannelBound { peer: remote, .. } => {
                let base = self.relays.active.get(&id).and_then(|relay| relay.base);
                let Some(base) = base else { return };
                let key = PairKey { base, remote };
                for id in self.relays.wishers(id, remote.ip()) {
                    if self.peers.get(&id).is_some_and(|peer| peer.has_pair(key)) {
                        self.update_path(id);
                    }
                }
            }
            AllocationEvent::Failed { failure, .. } | AllocationEvent::Lost { failure, .. } => {
                self.lose_relay(id, Some(failure));
            }
            AllocationEvent::Closed => self.lose_relay(id, None),
        }
    }

    /// Slower ways to a host that is reached in a better way are closed once no path needs them.
    pub(super) fn close_superfluous(&mut self) {
        for id in self.relays.superfluous() {
            let base = self.relays.active.get(&id).and_then(|relay| relay.base);
            let selects = |base: BaseId| {
                self.peers
                    .values()
                    .filter_map(|peer| peer.path.selected)
                    .any(|path| path.key.base == base)
            };
            if !base.is_some_and(selects) {
                self.close_relay(id);
            }
        }
    }

    fn close_relay(&mut self, id: RelayId) {
        let now = self.now;
        if let Some(relay) = self.relays.active.get_mut(&id) {
            relay.allocation.close(now);
            relay.allocation.handle_timeout(now);
        }
        self.flush_relay(id);
        self.lose_relay(id, None);
    }

    fn lose_relay(&mut self, id: RelayId, failure: Option<Failure>) {
        let base = self.relays.active.get(&id).and_then(|relay| relay.base);
        self.relays.remove(id, failure, self.now);
        self.events.push(Event::CloseRelay(id));
        if let Some(base) = base {
            self.drop_base(base);
            self.note_candidates();
        }
    }
}
