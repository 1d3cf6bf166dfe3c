//! The data plane of in-process WireGuard: between a TUN device and the routes.

use std::collections::BTreeMap;
use std::time::Instant;

use wice_signaling::protocol::{IpPrefix, PublicKey};

use super::links::Links;
use super::notes::Notes;
use crate::core::node::{
    Arrival, HostSocket, Inbound, Node, PeerId, RelayId, Route, WireGuardPacket,
};
use crate::core::overlay::Owned;
use crate::core::slots::Message;
use crate::io::udp::{Destination, ReceiveBuffers, Source};
use crate::wireguard::inprocess::{
    self, Egress, MessageKind, PeerConfig, TunRead, Tunnels, Verdict,
};
use crate::wireguard::tun::Tun;

/// Every peer's routes.
type Routes = BTreeMap<inprocess::PeerId, (PeerId, Vec<Route>)>;

/// WireGuard and its device.
pub(super) struct InProcess {
    pub(super) tunnels: Tunnels,
    pub(super) tun: Tun,
    numbers: BTreeMap<PeerId, inprocess::PeerId>,
    routes: Routes,
}

/// Sealed packets on their way out: each peer's routes, over the shared sockets, a channel, or both
/// during a switch.
struct Out<'a> {
    links: &'a Links,
    notes: &'a mut Notes,
    routes: &'a Routes,
    /// Where the datagram came from that is being handled.
    arrival: Option<Arrival>,
}

impl InProcess {
    pub(super) fn new(tunnels: Tunnels, tun: Tun) -> Self {
        Self {
            tunnels,
            tun,
            numbers: BTreeMap::new(),
            routes: Routes::new(),
        }
    }

    /// Adds a peer with its inner addresses.
    pub(super) fn add_peer(&mut self, peer: PeerId, key: PublicKey, allowed_ips: Vec<IpPrefix>) {
        let config = PeerConfig {
            public_key: key,
            preshared_key: None,
            allowed_ips,
            persistent_keepalive: None,
        };
        match self.tunnels.add_peer(config) {
            Ok(tunnel) => {
                self.numbers.insert(peer, tunnel);
                self.routes.insert(tunnel, (peer, Vec::new()));
            }
            Err(error) => tracing::warn!(event = "peer-refused", %error),
        }
    }

    pub(super) fn remove_peer(&mut self, peer: PeerId) {
        if let Some(tunnel) = self.numbers.remove(&peer) {
            self.tunnels.remove_peer(tunnel);
            self.routes.remove(&tunnel);
        }
    }

    /// WireGuard takes these inner addresses as the peer's.
    pub(super) fn give(&mut self, key: &PublicKey, owned: &Owned) {
        if let Some(tunnel) = self.tunnels.find(key) {
            self.tunnels.set_allowed_ips(tunnel, owned.allowed_ips());
        }
    }

    /// Takes a peer's routes, and starts a handshake on them if it is wanted.
    pub(super) fn bind(
        &mut self,
        peer: PeerId,
        routes: Vec<Route>,
        handshake: bool,
        links: &Links,
        notes: &mut Notes,
        now: Instant,
    ) {
        let Some(tunnel) = self.numbers.get(&peer).copied() else {
            return;
        };
        self.routes.insert(tunnel, (peer, routes));
        if handshake {
            let (tunnels, _, mut out) = self.parts(links, notes, None);
            tunnels.start_handshake(tunnel, now, &mut out);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.tunnels.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, links: &Links, notes: &mut Notes, now: Instant) {
        self.flush();
        let (tunnels, _, mut out) = self.parts(links, notes, None);
        tunnels.handle_timeout(now, &mut out);
    }

    /// What was decrypted goes to the device.
    pub(super) fn flush(&mut self) {
        self.tunnels.flush(&mut self.tun);
    }

    /// Reads the device.
    pub(super) fn take_device(&mut self, links: &Links, notes: &mut Notes) -> TunRead {
        let (tunnels, tun, mut out) = self.parts(links, notes, None);
        tunnels.handle_device(tun, &mut out)
    }

    /// What came in at a shared socket: STUN is the core's, the rest is for WireGuard.
    pub(super) fn take_host(
        &mut self,
        buffers: &ReceiveBuffers,
        node: &mut Node,
        links: &Links,
        notes: &mut Notes,
        now: Instant,
    ) {
        for run in buffers.arrivals() {
            let Some(local) = run.local else { continue };
            let arrival = Arrival::Host {
                socket: HostSocket::Own,
                local,
                interface: run.ifindex,
                from: run.remote,
            };
            for datagram in run.datagrams() {
                match node.handle_datagram(arrival, datagram.payload, now) {
                    Inbound::Consumed => {}
                    Inbound::Data => {
                        self.handle_datagram(arrival, datagram.payload, links, notes, now);
                    }
                }
            }
        }
        self.flush();
    }

    /// What came from a TURN server over UDP.
    pub(super) fn take_relay(
        &mut self,
        relay: RelayId,
        buffers: &ReceiveBuffers,
        node: &mut Node,
        links: &Links,
        notes: &mut Notes,
        now: Instant,
    ) {
        for datagram in buffers.datagrams() {
            let data = node.handle_relay_datagram(relay, datagram.payload, now);
            if let Some((from, payload)) = data {
                let arrival = Arrival::Relay { relay, from };
                self.handle_datagram(arrival, payload, links, notes, now);
            }
        }
        self.flush();
    }

    /// A datagram that is not STUN.
    pub(super) fn handle_datagram(
        &mut self,
        arrival: Arrival,
        datagram: &[u8],
        links: &Links,
        notes: &mut Notes,
        now: Instant,
    ) {
        let source = match arrival {
            Arrival::Host { from, .. } | Arrival::Relay { from, .. } => from.ip(),
        };
        let (tunnels, tun, mut out) = self.parts(links, notes, Some(arrival));
        let verdict = tunnels.handle_datagram(source, datagram, now, tun, &mut out);
        let Verdict::Authenticated { peer, kind } = verdict else {
            return;
        };
        let Some((id, _)) = self.routes.get(&peer) else {
            return;
        };
        let packet = match kind {
            MessageKind::Initiation => WireGuardPacket::HandshakeInitiation,
            MessageKind::Response => WireGuardPacket::HandshakeResponse,
            MessageKind::Keepalive => WireGuardPacket::Keepalive,
            MessageKind::Data => WireGuardPacket::Data,
        };
        notes.received(*id, arrival, packet);
    }

    fn parts<'a>(
        &'a mut self,
        links: &'a Links,
        notes: &'a mut Notes,
        arrival: Option<Arrival>,
    ) -> (&'a mut Tunnels, &'a mut Tun, Out<'a>) {
        let Self {
            tunnels,
            tun,
            routes,
            ..
        } = self;
        let out = Out {
            links,
            notes,
            routes,
            arrival,
        };
        (tunnels, tun, out)
    }
}

impl Egress for Out<'_> {
    fn send(&mut self, peer: inprocess::PeerId, segments: &[u8], segment_size: usize) {
        let Some((id, routes)) = self.routes.get(&peer) else {
            return;
        };
        let first = segments.get(..segment_size.min(segments.len()));
        if let Some(packet) = first.and_then(Message::parse).and_then(|m| m.packet()) {
            self.notes.sent(*id, packet);
        }
        let mut batch = self.links.batch();
        for route in routes {
            batch.push(route, segments, segment_size);
        }
    }

    fn reply(&mut self, packet: &[u8]) {
        match self.arrival {
            Some(Arrival::Host {
                socket,
                local,
                interface,
                from,
            }) => {
                let source = Some(Source {
                    ip: local,
                    ifindex: interface,
                });
                let destination = Destination {
                    remote: from,
                    source,
                };
                self.links.send_host(socket, destination, packet);
            }
            Some(Arrival::Relay { relay, from }) => {
                let reply = (relay, from, packet.to_vec());
                self.notes.relay_replies.push(reply);
            }
            None => {}
        }
    }
}
