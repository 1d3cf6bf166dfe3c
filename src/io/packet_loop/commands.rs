//! Commands from the daemon, and the core's events.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::Instant;

use wice_signaling::protocol::{Membership, PublicKey, RelayTransport};

use super::links::RelayLink;
use super::{
    Command, Notice, PacketLoop, Plane, PlaneView, SlotsView, TOKEN_RELAYS, TOKEN_WIREGUARD_V4,
    TOKEN_WIREGUARD_V6, View,
};
use crate::core::node::{Arrival, Event, PeerId, RecordOutcome, RelayId, RelayServer};
use crate::core::overlay::Owned;
use crate::core::slots::INITIATION_LEN;
use crate::core::turn::Failure;
use crate::io::relay::{CloseReason, RelayConnection, RelayEvent};
use crate::io::shared_port::SharedPort;
use crate::io::udp::{Family, UdpSocket};

impl PacketLoop {
    pub(super) fn take_commands(&mut self, now: Instant) {
        for command in self.outlet.drain() {
            self.take(command, now);
        }
    }

    fn take(&mut self, command: Command, now: Instant) {
        match command {
            Command::Addresses { addresses, changed } => {
                self.node.handle_addresses(&addresses, now);
                if changed {
                    self.node.handle_network_change(now);
                }
            }
            Command::Excluded(prefixes) => self.node.handle_excluded(prefixes, now),
            Command::StunServers(servers) => self.node.handle_stun_servers(&servers, now),
            Command::PortMappings(mapped) => self.node.handle_port_mappings(mapped, now),
            Command::RelayServers(servers) => self.node.handle_relay_servers(&servers, now),
            Command::Advert(record) => match self.node.handle_advert(&record, now) {
                Ok(RecordOutcome::Updated(_)) => self.notify(Notice::Accepted(record)),
                Ok(RecordOutcome::Own | RecordOutcome::Known) => {}
                Err(refusal) => {
                    tracing::debug!(event = "advert-refused", %refusal);
                }
            },
            Command::Routes(record) => {
                // Whose advert came just before is a peer by then.
                self.settle(now);
                self.take_routes(&record);
            }
            Command::Presence(key, presence) => self.node.handle_presence(&key, presence, now),
            Command::SignalingLost => self.node.handle_signaling_lost(now),
            Command::Revocations(list) => {
                self.node.handle_revocations(list, now);
            }
            Command::Relay(id, event) => self.take_relay_event(id, event, now),
            Command::AddPeer(key) => {
                if let Err(refusal) = self.node.add_peer(key, now) {
                    tracing::warn!(event = "peer-refused", %refusal);
                }
            }
            Command::RemovePeer(key) => self.node.remove_peer(&key, now),
            Command::WireGuardPort(port, shared) => match &mut self.plane {
                Plane::BySlots(by_slots) => {
                    by_slots.port = port;
                    self.share(shared, now);
                }
                Plane::InProcess(_) => {}
            },
            Command::Counted {
                key,
                endpoint,
                sent,
                received,
                quiet_since,
            } => {
                let counted = (sent, received);
                self.node
                    .note_counted(&key, endpoint, counted, quiet_since, now);
            }
            Command::Initiation(key, initiation) => {
                let Self {
                    node,
                    plane,
                    links,
                    notes,
                    ..
                } = self;
                if let (Plane::BySlots(by_slots), Some(peer)) = (plane, node.peer_of(&key)) {
                    by_slots.send_initiation(peer, &initiation, links, notes, now);
                }
            }
            Command::FwmarkChanged => self.links.mark(),
            Command::LocalChange => {
                for remote in self.node.handle_local_change(now) {
                    if !self.links.has_route(remote) {
                        self.node.handle_path_error(remote, now);
                    }
                }
            }
            Command::Inspect(look) => look(&self.view(now)),
            Command::Stop => self.stopped = true,
        }
    }

    /// WireGuard's port is shared by these from now on, and by no others.
    pub(super) fn share(&mut self, ports: Vec<SharedPort>, now: Instant) {
        let mut watched = Vec::new();
        for port in ports {
            let token = match port.family() {
                Family::V4 => TOKEN_WIREGUARD_V4,
                Family::V6 => TOKEN_WIREGUARD_V6,
            };
            match self.watch(port.as_fd(), token) {
                Ok(()) => watched.push(port),
                Err(error) => tracing::warn!(event = "shared-port-lost", %error),
            }
        }
        let shared = self.links.share(watched);
        self.node.handle_shared_ports(shared, now);
    }

    fn view(&self, now: Instant) -> View<'_> {
        let plane = match &self.plane {
            Plane::InProcess(in_process) => PlaneView::InProcess(&in_process.tunnels),
            Plane::BySlots(by_slots) => PlaneView::BySlots(SlotsView {
                slots: &by_slots.slots,
                socket: &by_slots.socket,
                port: by_slots.port,
            }),
        };
        View {
            node: &self.node,
            overlay: self.overlay.as_ref(),
            plane,
            oversize: &self.links.oversize,
            now,
        }
    }

    fn take_routes(&mut self, record: &[u8]) {
        let Self { node, overlay, .. } = self;
        let Some(overlay) = overlay else {
            // The interface's allowed IPs are its owner's.
            return;
        };
        let outcome = overlay.handle_routes(record, |key| {
            let advert = node.advert_of(node.peer_of(key)?)?;
            Membership::decode_verified(&advert.membership, &node.network()?, key).ok()
        });
        match outcome {
            Ok((key, owned)) => {
                if let Plane::InProcess(in_process) = &mut self.plane {
                    in_process.give(&key, &owned);
                }
                let owned = Some(owned);
                self.notify(Notice::Owned { key, owned });
                self.notify(Notice::AcceptedRoutes(record.to_vec()));
            }
            Err(refusal) => tracing::debug!(event = "routes-refused", %refusal),
        }
    }

    pub(super) fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::OpenRelay { relay, server } => self.open_relay(relay, &server, now),
            Event::CloseRelay(relay) => self.close_relay(relay),
            Event::Publish { advert, sequence } => {
                self.notify(Notice::Publish { advert, sequence });
            }
            Event::PeerAdded { peer, key } => self.add_peer(peer, key),
            Event::PeerRemoved { peer, key } => self.remove_peer(peer, key),
            Event::Bind {
                peer,
                routes,
                handshake,
            } => {
                let Self {
                    node,
                    plane,
                    links,
                    notes,
                    ..
                } = self;
                match plane {
                    Plane::InProcess(in_process) => {
                        in_process.bind(peer, routes, handshake, links, notes, now);
                    }
                    // Its handshakes are WireGuard's own.
                    Plane::BySlots(by_slots) => {
                        let native = node.ends_at_wireguard(peer);
                        by_slots.bind(peer, routes, native, links, notes, now);
                    }
                }
            }
            Event::PathChanged { peer, .. } => {
                if let Some(snapshot) = self.node.peer_snapshot(peer, now) {
                    self.notify(Notice::Path(Box::new(snapshot)));
                }
            }
            Event::Initiation {
                peer,
                arrival,
                initiation,
            } => self.take_initiation(peer, arrival, &initiation, now),
        }
    }

    fn take_initiation(
        &mut self,
        peer: PeerId,
        arrival: Arrival,
        initiation: &[u8; INITIATION_LEN],
        now: Instant,
    ) {
        let Self {
            plane,
            links,
            notes,
            ..
        } = self;
        match plane {
            // Nobody encloses what goes to sockets of our own, but what is authentic is welcome.
            Plane::InProcess(in_process) => {
                in_process.handle_datagram(arrival, initiation, links, notes, now);
            }
            Plane::BySlots(by_slots) => {
                by_slots.take_enclosed(peer, arrival, initiation, notes, now);
            }
        }
    }

    fn add_peer(&mut self, peer: PeerId, key: PublicKey) {
        let owned = self.overlay.as_mut().map(|overlay| overlay.join(key));
        match &mut self.plane {
            Plane::InProcess(in_process) => {
                let allowed_ips = owned.as_ref().map(Owned::allowed_ips);
                in_process.add_peer(peer, key, allowed_ips.unwrap_or_default());
            }
            Plane::BySlots(by_slots) => by_slots.add_peer(peer, &key),
        }
        if owned.is_some() {
            self.notify(Notice::Owned { key, owned });
        }
    }

    fn remove_peer(&mut self, peer: PeerId, key: PublicKey) {
        match &mut self.plane {
            Plane::InProcess(in_process) => in_process.remove_peer(peer),
            Plane::BySlots(by_slots) => by_slots.remove_peer(peer),
        }
        if let Some(overlay) = &mut self.overlay {
            overlay.leave(&key);
            self.notify(Notice::Owned { key, owned: None });
        }
    }

    fn open_relay(&mut self, relay: RelayId, server: &RelayServer, now: Instant) {
        match server.transport {
            RelayTransport::Udp => match self.open_udp(relay, server.address) {
                Ok(socket) => {
                    self.links.relays.insert(relay, RelayLink::Udp(socket));
                    self.node.handle_relay_connected(relay, now);
                }
                Err(error) => {
                    tracing::debug!(event = "relay-unreachable", server = server.name, error);
                    self.node
                        .handle_relay_closed(relay, Failure::ConnectionClosed, now);
                }
            },
            RelayTransport::Tcp | RelayTransport::Tls => {
                let Some(endpoint) = (self.endpoint)(server) else {
                    return self
                        .node
                        .handle_relay_closed(relay, Failure::ConnectionClosed, now);
                };
                let _runtime = self.runtime.enter();
                let id = u64::from(relay.0);
                let connection = RelayConnection::open(id, endpoint, self.relay_events.clone());
                self.links
                    .relays
                    .insert(relay, RelayLink::Stream(connection));
            }
        }
    }

    fn open_udp(&mut self, relay: RelayId, server: SocketAddr) -> Result<UdpSocket, String> {
        let local: SocketAddr = match server {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let mark = self.links.fwmark.get();
        let socket = UdpSocket::connect_marked(local, server, None, mark);
        let socket = socket.map_err(|e| e.to_string())?;
        let token = TOKEN_RELAYS + u64::from(relay.0);
        self.watch(socket.as_fd(), token)
            .map_err(|e| e.to_string())?;
        Ok(socket)
    }

    /// The farewell of an allocation over a stream is still flushed.
    fn close_relay(&mut self, relay: RelayId) {
        self.transmit();
        if let Some(RelayLink::Stream(connection)) = self.links.relays.remove(&relay) {
            connection.close();
            self.links
                .relays
                .insert(relay, RelayLink::Closing { connection });
        }
    }

    fn take_relay_event(&mut self, id: u64, event: RelayEvent, now: Instant) {
        let relay = RelayId(u32::try_from(id).unwrap_or(u32::MAX));
        match event {
            RelayEvent::Connected { .. } => self.node.handle_relay_connected(relay, now),
            RelayEvent::Data(bytes) => {
                let mut data: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
                self.node
                    .handle_relay_stream(relay, &bytes, now, |from, payload| {
                        data.push((from, payload.to_vec()));
                    });
                let Self {
                    node,
                    plane,
                    links,
                    notes,
                    ..
                } = self;
                for (from, payload) in &data {
                    let arrival = Arrival::Relay { relay, from: *from };
                    match plane {
                        Plane::InProcess(in_process) => {
                            in_process.handle_datagram(arrival, payload, links, notes, now);
                        }
                        Plane::BySlots(by_slots) => {
                            by_slots.take_relayed(arrival, payload, node, notes, now);
                        }
                    }
                }
                if let Plane::InProcess(in_process) = plane {
                    in_process.flush();
                }
            }
            RelayEvent::Closed(reason) => {
                tracing::debug!(event = "relay-closed", relay = id, %reason);
                self.links.relays.remove(&relay);
                self.node
                    .handle_relay_closed(relay, failure_of(&reason), now);
            }
        }
    }
}

/// What the core is to know of a connection that is over.
fn failure_of(reason: &CloseReason) -> Failure {
    match reason {
        CloseReason::Certificate(_) => Failure::Certificate,
        CloseReason::Asked
        | CloseReason::ByRelay
        | CloseReason::Dial(_)
        | CloseReason::Timeout
        | CloseReason::Proxy(_)
        | CloseReason::Tls(_)
        | CloseReason::Io(_) => Failure::ConnectionClosed,
    }
}
