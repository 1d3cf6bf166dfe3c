//! What a daemon does around its node: sockets, relay connections, signaling, WireGuard.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use stun_types::attribute::AttributeStaticType as _;
use turn_types::attribute::{Data, XorPeerAddress};
use wice::core::binding::{LOOK_EVERY, LOOK_SENDING};
use wice::core::node::{
    Arrival, Event, HostSocket, Inbound, PeerId, RelayId, RelayServer, Route, Transmit, Via,
    WireGuardPacket,
};
use wice_signaling::protocol::{Advert, RelayTransport, Session};

use crate::host::{Connection, count, port_of};
use crate::network::{Attached, HostId, INTERNET};
use crate::turn_server::{self, Client};
use crate::wireguard;
use crate::world::{Happening, Stream, World};

/// How long a connection attempt goes on that nobody answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl World {
    pub(crate) fn boot(&mut self, id: HostId) {
        let others = self.others(id);
        let seed = self.random.bytes();
        let now = self.now;
        self.hosts[id].boot(&others, &self.servers, seed, now);
        if self.hosts[id].shares && self.hosts[id].looked.is_none() {
            self.look(id);
        }
        if self.signaling.up {
            for record in self.signaling.records.values().cloned().collect::<Vec<_>>() {
                if self.knows(id, record.0) {
                    self.fan_out(id, &record);
                }
            }
        }
        self.drain(id);
    }

    /// The daemon dies; its state stays.
    pub(crate) fn kill(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        host.node = None;
        host.wake = None;
        for connection in std::mem::take(&mut host.relays).into_values() {
            if let Client::Stream(stream) = connection.client {
                self.streams[stream].open = false;
            }
        }
    }

    /// The state is lost too.
    pub(crate) fn forget(&mut self, id: HostId) {
        let session = Session(self.random.bytes());
        let host = &mut self.hosts[id];
        host.session = session;
        host.stored.clear();
        host.sequence = 0;
    }

    pub(crate) fn wake(&mut self, id: HostId) {
        let now = self.now;
        let host = &mut self.hosts[id];
        if host.wake != Some(now) {
            return;
        }
        host.wake = None;
        host.count_wake(now);
        let due: Vec<HostId> = host
            .tunnels
            .iter()
            .filter(|(_, tunnel)| tunnel.poll_timeout().is_some_and(|at| at <= now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            let tunnel = self.hosts[id].tunnels.get_mut(&peer).unwrap();
            let (packets, waits) = tunnel.handle_timeout(now);
            let host = &mut self.hosts[id];
            if let (true, Some(peer), Some(node)) = (waits, host.peer_id(peer), &mut host.node) {
                node.note_wanted(peer, now);
            }
            self.tunnel_send(id, peer, &packets);
        }
        if let Some(node) = &mut self.hosts[id].node
            && let Some((_, why)) = node.poll_timeout().filter(|(at, _)| *at <= now)
        {
            let before = node.counters().agents_touched;
            node.handle_timeout(now);
            let touched = node.counters().agents_touched - before;
            let host = &mut self.hosts[id];
            host.most_touched = host.most_touched.max(touched);
            *host.timeouts.entry(why).or_default() += 1;
        }
        self.drain(id);
    }

    /// Takes all that the node has to say.
    pub(crate) fn drain(&mut self, id: HostId) {
        loop {
            let Some(node) = &mut self.hosts[id].node else {
                return;
            };
            if let Some(transmit) = node.poll_transmit() {
                self.transmit(id, &transmit);
            } else if let Some(event) = node.poll_event() {
                self.event(id, event);
            } else {
                break;
            }
        }
        let host = &mut self.hosts[id];
        let due = host.due().map(|at| at.max(self.now));
        if due != host.wake {
            host.wake = due;
            if let Some(at) = due {
                self.schedule(at, Happening::Wake(id));
            }
        }
    }

    fn transmit(&mut self, id: HostId, transmit: &Transmit) {
        let now = self.now;
        match transmit.via {
            Via::Host {
                socket,
                local,
                interface,
                remote,
            } => {
                self.hosts[id].audit(Some(remote), &transmit.payload, now);
                let from = (SocketAddr::new(local, port_of(socket)), interface);
                self.send_from_host(id, from, remote, &transmit.payload);
            }
            Via::Relay { relay, .. } => {
                if let Some((to, payload)) = relayed(&transmit.payload) {
                    self.hosts[id].audit(to, &payload, now);
                }
                self.send_to_relay(id, relay, &transmit.payload);
            }
        }
    }

    fn send_from_host(
        &mut self,
        id: HostId,
        (from, interface): (SocketAddr, u32),
        remote: SocketAddr,
        payload: &[u8],
    ) {
        // What a host sends to an address of its own never leaves it.
        if self.hosts[id].owns(remote.ip()) {
            return;
        }
        if let Some(realm) = self.hosts[id].realm_of(interface) {
            self.send(Some(id), realm, from, remote, payload);
        }
    }

    fn send_to_relay(&mut self, id: HostId, relay: RelayId, payload: &[u8]) {
        let Some(connection) = self.hosts[id].relays.get(&relay).copied() else {
            return;
        };
        match connection.client {
            Client::Udp(from, server) => {
                self.send(Some(id), connection.realm, from, server, payload);
            }
            Client::Stream(stream) => {
                let at = self.now + self.network.realms[INTERNET].delay;
                self.schedule(at, Happening::ToServer(stream, payload.to_vec()));
            }
        }
    }

    fn event(&mut self, id: HostId, event: Event) {
        let now = self.now;
        match event {
            Event::OpenRelay { relay, server } => self.open_relay(id, relay, &server),
            Event::CloseRelay(relay) => {
                if let Some(connection) = self.hosts[id].relays.remove(&relay)
                    && let Client::Stream(stream) = connection.client
                {
                    self.streams[stream].open = false;
                }
            }
            Event::Publish { advert, sequence } => {
                self.hosts[id].sequence = sequence;
                let said = Advert::decode_verified(&advert).unwrap();
                let addresses = said.candidates.iter().map(|c| c.address).collect();
                let record = Rc::new((id, advert, addresses));
                let at = now + self.signaling.delay;
                self.schedule(at, Happening::Publish(record));
            }
            Event::Bind {
                peer,
                routes,
                handshake,
            } => {
                let other = self.hosts[id].peers[&peer];
                let tunnel = self.hosts[id].tunnels.get_mut(&other).unwrap();
                tunnel.routes = routes;
                if handshake {
                    tunnel.start_handshake(now);
                }
            }
            Event::PathChanged { peer, .. } => {
                let other = self.hosts[id].peers[&peer];
                let changes = &mut self.hosts[id].paths_changed;
                changes.entry(other).or_default().push(now);
            }
            Event::PeerAdded { .. } | Event::PeerRemoved { .. } | Event::Initiation { .. } => {}
        }
    }

    fn open_relay(&mut self, id: HostId, relay: RelayId, server: &RelayServer) {
        let now = self.now;
        let Some((realm, ip)) = self.hosts[id].way_to(server.address.ip()) else {
            if let Some(node) = &mut self.hosts[id].node {
                node.handle_relay_closed(relay, wice::core::turn::Failure::ConnectionClosed, now);
            }
            return;
        };
        let host = &mut self.hosts[id];
        host.next_port += 1;
        let from = SocketAddr::new(ip, host.next_port);
        let client = match server.transport {
            RelayTransport::Udp => Client::Udp(from, server.address),
            RelayTransport::Tcp | RelayTransport::Tls => {
                self.streams.push(Stream {
                    host: id,
                    server: server.address,
                    seen: SocketAddr::from(([203, 0, 113, 250], host.next_port)),
                    open: true,
                });
                Client::Stream(self.streams.len() - 1)
            }
        };
        let connection = Connection { client, realm };
        host.relays.insert(relay, connection);
        match client {
            Client::Udp(..) => {
                if let Some(node) = &mut host.node {
                    node.handle_relay_connected(relay, now);
                }
            }
            Client::Stream(stream) => {
                let at = self.network.realms[INTERNET].at.get(&server.address.ip());
                let alive = matches!(at, Some(Attached::Turn(t)) if self.relays[*t].alive);
                // TCP's handshake is one round trip, TLS costs one more.
                let trip = 2 * self.network.realms[INTERNET].delay;
                let (after, what) = match (alive, server.transport) {
                    (false, _) => (CONNECT_TIMEOUT, Happening::StreamClosed(stream)),
                    (true, RelayTransport::Tls) => (2 * trip, Happening::StreamOpen(stream)),
                    (true, _) => (trip, Happening::StreamOpen(stream)),
                };
                self.schedule(now + after, what);
            }
        }
    }

    fn relay_of_stream(&self, stream: usize) -> Option<(HostId, RelayId)> {
        let Stream { host, open, .. } = self.streams[stream];
        let relays = &self.hosts[host].relays;
        let of_stream = |c: &Connection| c.client == Client::Stream(stream);
        let (relay, _) = relays.iter().find(|(_, c)| of_stream(c))?;
        open.then_some((host, *relay))
    }

    pub(crate) fn stream_opened(&mut self, stream: usize) {
        let now = self.now;
        if let Some((id, relay)) = self.relay_of_stream(stream) {
            if let Some(node) = &mut self.hosts[id].node {
                node.handle_relay_connected(relay, now);
            }
            self.drain(id);
        }
    }

    pub(crate) fn stream_closed(&mut self, stream: usize) {
        let now = self.now;
        if let Some((id, relay)) = self.relay_of_stream(stream) {
            self.streams[stream].open = false;
            if let Some(node) = &mut self.hosts[id].node {
                node.handle_relay_closed(relay, wice::core::turn::Failure::ConnectionClosed, now);
            }
            self.drain(id);
        }
    }

    pub(crate) fn stream_to_host(&mut self, stream: usize, bytes: &[u8]) {
        let now = self.now;
        let Some((id, relay)) = self.relay_of_stream(stream) else {
            return;
        };
        let mut data = Vec::new();
        if let Some(node) = &mut self.hosts[id].node {
            node.handle_relay_stream(relay, bytes, now, |from, payload| {
                data.push((from, payload.to_vec()));
            });
        }
        for (from, payload) in data {
            self.tunnel_receive(id, Arrival::Relay { relay, from }, &payload);
        }
        self.drain(id);
    }

    /// A datagram has come to a host.
    pub(crate) fn deliver(
        &mut self,
        id: HostId,
        interface: u32,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) {
        let now = self.now;
        if self.hosts[id].node.is_none() || self.hosts[id].owns(from.ip()) {
            return;
        }
        if let Some(socket) = self.hosts[id].socket_at(to.port()) {
            self.hosts[id].learn(from, payload);
            let arrival = Arrival::Host {
                socket,
                local: to.ip(),
                interface,
                from,
            };
            let node = self.hosts[id].node.as_mut().unwrap();
            if node.handle_datagram(arrival, payload, now) == Inbound::Data {
                self.tunnel_receive(id, arrival, payload);
            }
            self.drain(id);
            return;
        }
        let of_socket = |c: &Connection| c.client == Client::Udp(to, from);
        let relays = &self.hosts[id].relays;
        let Some(relay) = relays.iter().find(|(_, c)| of_socket(c)).map(|(id, _)| *id) else {
            return;
        };
        self.learn_relayed(id, payload);
        let node = self.hosts[id].node.as_mut().unwrap();
        if let Some((from, payload)) = node.handle_relay_datagram(relay, payload, now) {
            self.tunnel_receive(id, Arrival::Relay { relay, from }, payload);
        }
        self.drain(id);
    }

    pub(crate) fn learn_relayed(&mut self, id: HostId, bytes: &[u8]) {
        if let Some((Some(from), payload)) = relayed(bytes) {
            self.hosts[id].learn(from, &payload);
        }
    }

    fn tunnel_receive(&mut self, id: HostId, arrival: Arrival, payload: &[u8]) {
        let now = self.now;
        let Some((packet, from, to)) = wireguard::decode(payload) else {
            return;
        };
        if to != id {
            return;
        }
        let host = &mut self.hosts[id];
        let (Some(peer), Some(tunnel)) = (host.peer_id(from), host.tunnels.get_mut(&from)) else {
            return;
        };
        let Some(replies) = tunnel.handle(packet, now) else {
            return;
        };
        let at_wireguard = matches!(
            arrival,
            Arrival::Host {
                socket: HostSocket::WireGuard,
                ..
            }
        );
        if at_wireguard {
            let counters = host.counters.entry(from).or_default();
            count(&mut counters.received, packet.0);
        } else if let Some(node) = &mut host.node {
            node.note_received(peer, arrival, packet.0, now);
        }
        // The node may have bound routes by this very packet.
        self.drain(id);
        self.tunnel_send(id, from, &replies);
    }

    pub(crate) fn tunnel_send(&mut self, id: HostId, peer: HostId, packets: &[wireguard::Packet]) {
        for packet in packets {
            let routes = self.hosts[id].tunnels[&peer].routes.clone();
            let Some(number) = self.hosts[id].peer_id(peer).filter(|_| !routes.is_empty()) else {
                continue;
            };
            let bytes = wireguard::encode(*packet, id, peer);
            let native = routes.iter().find_map(|route| match route {
                Route::Host {
                    socket: HostSocket::WireGuard,
                    remote,
                    ..
                } => Some(*remote),
                Route::Host { .. } | Route::Relayed { .. } => None,
            });
            for route in routes {
                self.send_by(id, route, &bytes);
            }
            if native.is_some() {
                let counters = self.hosts[id].counters.entry(peer).or_default();
                counters.endpoint = native;
                count(&mut counters.sent, packet.0);
            } else {
                self.note_sent(id, number, packet.0);
            }
        }
    }

    /// The node hears what WireGuard has counted at its own port, as often as the binder asks while something is sent.
    pub(crate) fn look(&mut self, id: HostId) {
        let now = self.now;
        let looked = self.hosts[id].looked.replace(now).unwrap_or(now);
        let mut all = std::mem::take(&mut self.hosts[id].counters);
        let mut sending = false;
        for (peer, counters) in &mut all {
            let key = self.hosts[*peer].public;
            let (sent, received) = (counters.sent.take(), counters.received.take());
            let quiet_since = counters.heard.look(received.is_some(), looked, now);
            sending |= sent.is_some();
            let node = self.hosts[id].node.as_mut();
            if let (Some(node), Some(endpoint)) = (node, counters.endpoint)
                && (sent.is_some() || received.is_some())
            {
                node.note_counted(&key, endpoint, (sent, received), quiet_since, now);
            }
        }
        self.hosts[id].counters = all;
        let next = if sending { LOOK_SENDING } else { LOOK_EVERY };
        self.schedule(now + next, Happening::Look(id));
        self.drain(id);
    }

    fn note_sent(&mut self, id: HostId, peer: PeerId, packet: WireGuardPacket) {
        let now = self.now;
        if let Some(node) = &mut self.hosts[id].node {
            node.note_sent(peer, packet, now);
        }
    }

    fn send_by(&mut self, id: HostId, route: Route, bytes: &[u8]) {
        match route {
            Route::Host {
                socket,
                local,
                interface,
                remote,
            } => {
                let from = (SocketAddr::new(local, port_of(socket)), interface);
                self.send_from_host(id, from, remote, bytes);
            }
            Route::Relayed { relay, channel } => {
                let Some(connection) = self.hosts[id].relays.get(&relay) else {
                    return;
                };
                let frame = turn_server::frame(channel, bytes, connection.client);
                self.send_to_relay(id, relay, &frame);
            }
        }
    }
}

/// The peer (where it is named, not only numbered) and the payload of a Send or Data indication.
fn relayed(bytes: &[u8]) -> Option<(Option<SocketAddr>, Vec<u8>)> {
    use stun_types::message::{Message, MessageClass};
    if bytes.first()? & 0xC0 == 0x40 {
        return Some((None, bytes.get(4..)?.to_vec()));
    }
    let message = Message::from_bytes(bytes).ok()?;
    if message.class() != MessageClass::Indication {
        return None;
    }
    let peer = message.attribute::<XorPeerAddress>().ok()?;
    let data = message.raw_attribute(Data::TYPE)?.value.to_vec();
    Some((Some(peer.addr(message.transaction_id())), data))
}
