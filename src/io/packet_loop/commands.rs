//! Commands from the daemon, and the core's events.

use std::net::SocketAddr;
use std::time::Instant;

use wice_signaling::protocol::{Membership, PublicKey, RelayTransport};

use super::{
    Arrival, Command, Event, Notice, PacketLoop, PeerId, RelayConnection, RelayEvent, RelayId,
    RelayLink, RelayServer, TOKEN_RELAYS, UdpSocket, View,
};
use crate::core::node::RecordOutcome;
use crate::core::overlay::Owned;
use crate::wireguard::inprocess::PeerConfig;

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
            Command::Inspect(look) => look(&View {
                node: &self.node,
                tunnels: &self.tunnels,
                overlay: &self.overlay,
                now,
            }),
            Command::Stop => self.stopped = true,
        }
    }

    fn take_routes(&mut self, record: &[u8]) {
        let Self { node, overlay, .. } = self;
        let outcome = overlay.handle_routes(record, |key| {
            let advert = node.advert_of(node.peer_of(key)?)?;
            Membership::decode_verified(&advert.membership, &node.network()?, key).ok()
        });
        match outcome {
            Ok((key, owned)) => {
                self.give(key, &owned);
                self.notify(Notice::AcceptedRoutes(record.to_vec()));
            }
            Err(refusal) => tracing::debug!(event = "routes-refused", %refusal),
        }
    }

    /// WireGuard takes these inner addresses as the peer's.
    fn give(&mut self, key: PublicKey, owned: &Owned) {
        if let Some(tunnel) = self.tunnels.find(&key) {
            self.tunnels.set_allowed_ips(tunnel, owned.allowed_ips());
        }
        self.notify(Notice::Owned {
            key,
            prefixes: owned.prefixes.clone(),
        });
    }

    pub(super) fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::OpenRelay { relay, server } => self.open_relay(relay, &server, now),
            Event::CloseRelay(relay) => self.close_relay(relay),
            Event::Publish { advert, sequence } => {
                self.notify(Notice::Publish { advert, sequence });
            }
            Event::PeerAdded { peer, key } => self.add_peer(peer, key),
            Event::PeerRemoved { peer, key } => {
                self.overlay.leave(&key);
                if let Some(tunnel) = self.numbers.remove(&peer) {
                    self.tunnels.remove_peer(tunnel);
                    self.ways.routes.remove(&tunnel);
                }
                self.notify(Notice::Owned {
                    key,
                    prefixes: Vec::new(),
                });
            }
            Event::Bind {
                peer,
                routes,
                handshake,
            } => {
                let Some(tunnel) = self.numbers.get(&peer).copied() else {
                    return;
                };
                self.ways.routes.insert(tunnel, (peer, routes));
                if handshake {
                    self.tunnels.start_handshake(tunnel, now, &mut self.ways);
                }
            }
            Event::PathChanged { peer, .. } => {
                if let Some(snapshot) = self.node.peer_snapshot(peer, now) {
                    self.notify(Notice::Path(Box::new(snapshot)));
                }
            }
        }
    }

    fn add_peer(&mut self, peer: PeerId, key: PublicKey) {
        let owned = self.overlay.join(key);
        let config = PeerConfig {
            public_key: key,
            preshared_key: None,
            allowed_ips: owned.allowed_ips(),
            persistent_keepalive: None,
        };
        match self.tunnels.add_peer(config) {
            Ok(tunnel) => {
                self.numbers.insert(peer, tunnel);
                self.ways.routes.insert(tunnel, (peer, Vec::new()));
                self.notify(Notice::Owned {
                    key,
                    prefixes: owned.prefixes,
                });
            }
            Err(error) => tracing::warn!(event = "peer-refused", %error),
        }
    }

    fn open_relay(&mut self, relay: RelayId, server: &RelayServer, now: Instant) {
        match server.transport {
            RelayTransport::Udp => match self.open_udp(relay, server.address) {
                Ok(socket) => {
                    self.ways.relays.insert(relay, RelayLink::Udp(socket));
                    self.node.handle_relay_connected(relay, now);
                }
                Err(error) => {
                    tracing::debug!(event = "relay-unreachable", server = server.name, error);
                    self.node.handle_relay_closed(relay, now);
                }
            },
            RelayTransport::Tcp | RelayTransport::Tls => {
                let Some(endpoint) = (self.endpoint)(server) else {
                    return self.node.handle_relay_closed(relay, now);
                };
                let _runtime = self.runtime.enter();
                let id = u64::from(relay.0);
                let connection = RelayConnection::open(id, endpoint, self.relay_events.clone());
                self.ways
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
        let socket = UdpSocket::connect(local, server, None).map_err(|e| e.to_string())?;
        let token = TOKEN_RELAYS + u64::from(relay.0);
        self.watch(std::os::fd::AsFd::as_fd(&socket), token)
            .map_err(|e| e.to_string())?;
        Ok(socket)
    }

    /// The farewell of an allocation over a stream is still flushed.
    fn close_relay(&mut self, relay: RelayId) {
        self.transmit();
        if let Some(RelayLink::Stream(connection)) = self.ways.relays.remove(&relay) {
            connection.close();
            self.ways
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
                for (from, payload) in data {
                    self.wireguard(Arrival::Relay { relay, from }, &payload, now);
                }
                self.tunnels.flush(&mut self.tun);
            }
            RelayEvent::Closed(reason) => {
                tracing::debug!(event = "relay-closed", relay = id, %reason);
                self.ways.relays.remove(&relay);
                self.node.handle_relay_closed(relay, now);
            }
        }
    }
}
