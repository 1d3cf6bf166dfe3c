//! Sealed packets on their way out: each peer's routes, over the shared sockets, a channel, or both
//! during a switch.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::core::node::{Arrival, PeerId, RelayId, Route, WireGuardPacket};
use crate::core::turn::channel_data_header;
use crate::io::relay::RelayConnection;
use crate::io::udp::{Coalescer, Destination, SendFailures, Source, UdpSocket};
use crate::wireguard::inprocess::{self, Egress};

/// A packet with an empty payload has this length (WireGuard paper §5.4.6).
const KEEPALIVE_LEN: usize = 32;

/// The connection to a TURN server.
pub(super) enum RelayLink {
    /// A connected socket of the loop's own.
    Udp(UdpSocket),
    /// TCP or TLS, served by a task of the runtime.
    Stream(RelayConnection),
    /// Flushing its last requests; it ends when it is dropped.
    Closing {
        #[expect(dead_code, reason = "held until it has flushed")]
        connection: RelayConnection,
    },
}

/// The shared sockets, the relays and every peer's routes.
pub(super) struct Ways {
    pub(super) v4: Option<UdpSocket>,
    pub(super) v6: Option<UdpSocket>,
    pub(super) relays: BTreeMap<RelayId, RelayLink>,
    pub(super) routes: BTreeMap<inprocess::PeerId, (PeerId, Vec<Route>)>,
    /// Where the datagram came from that is being handled.
    pub(super) arrival: Option<Arrival>,
    /// What WireGuard has sent, to be told to the core.
    pub(super) sent: Vec<(PeerId, WireGuardPacket)>,
    /// Answers to what came through a relay, to be sent by the core.
    pub(super) relay_replies: Vec<(RelayId, SocketAddr, Vec<u8>)>,
    pub(super) failures: SendFailures,
    /// Packets of peers without a route.
    pub(super) unrouted: u64,
}

impl Ways {
    /// Sends one datagram from a shared socket.
    pub(super) fn send_host(&mut self, destination: Destination, payload: &[u8]) {
        let Self {
            v4, v6, failures, ..
        } = self;
        let socket = if destination.remote.is_ipv4() { v4 } else { v6 };
        if let Some(socket) = socket {
            Coalescer::new(socket, failures).push(destination, None, payload);
        }
    }

    /// Sends a message of TURN to a server.
    pub(super) fn send_relay(&mut self, relay: RelayId, message: Vec<u8>, droppable: bool) {
        let Self {
            relays, failures, ..
        } = self;
        match relays.get(&relay) {
            Some(RelayLink::Udp(socket)) => {
                if let Some(destination) = server(socket) {
                    Coalescer::new(socket, failures).push(destination, None, &message);
                }
            }
            Some(RelayLink::Stream(connection)) => {
                connection.send(message, droppable);
            }
            Some(RelayLink::Closing { .. }) | None => {}
        }
    }

    fn send_route(&mut self, route: &Route, segments: &[u8], segment_size: usize) {
        match route {
            Route::Host {
                local,
                interface,
                remote,
            } => {
                let source = Some(Source {
                    ip: *local,
                    ifindex: *interface,
                });
                let destination = Destination {
                    remote: *remote,
                    source,
                };
                let Self {
                    v4, v6, failures, ..
                } = self;
                let socket = if remote.is_ipv4() { v4 } else { v6 };
                if let Some(socket) = socket {
                    Coalescer::new(socket, failures).push_segments(
                        destination,
                        |_| None,
                        segments,
                        segment_size,
                    );
                }
            }
            Route::Relayed { relay, channel } => {
                let header = |payload: &[u8]| channel_data_header(*channel, payload.len() as u16);
                let Self {
                    relays, failures, ..
                } = self;
                match relays.get(relay) {
                    Some(RelayLink::Udp(socket)) => {
                        let Some(destination) = server(socket) else {
                            return;
                        };
                        Coalescer::new(socket, failures).push_segments(
                            destination,
                            |payload| Some(header(payload)),
                            segments,
                            segment_size,
                        );
                    }
                    Some(RelayLink::Stream(connection)) => {
                        for payload in segments.chunks(segment_size.max(1)) {
                            // Over a stream ChannelData is padded to four bytes (RFC 8656 §12.5).
                            let mut frame = Vec::with_capacity(payload.len() + 8);
                            frame.extend_from_slice(&header(payload));
                            frame.extend_from_slice(payload);
                            frame.resize(frame.len().next_multiple_of(4), 0);
                            connection.send(frame, true);
                        }
                    }
                    Some(RelayLink::Closing { .. }) | None => {}
                }
            }
        }
    }

    fn note(&mut self, peer: PeerId, packet: &[u8]) {
        let Some(packet) = kind_of(packet) else {
            return;
        };
        if self.sent.last() != Some(&(peer, packet)) {
            self.sent.push((peer, packet));
        }
    }
}

impl Egress for Ways {
    fn send(&mut self, peer: inprocess::PeerId, segments: &[u8], segment_size: usize) {
        let Some((id, routes)) = self.routes.get(&peer) else {
            return;
        };
        let id = *id;
        // At most two, and cheap to copy.
        let routes = routes.clone();
        if routes.is_empty() {
            self.unrouted += 1;
        }
        self.note(id, segments);
        for route in &routes {
            self.send_route(route, segments, segment_size);
        }
    }

    fn reply(&mut self, packet: &[u8]) {
        match self.arrival {
            Some(Arrival::Host {
                local,
                interface,
                from,
            }) => {
                let source = Some(Source {
                    ip: local,
                    ifindex: interface,
                });
                self.send_host(
                    Destination {
                        remote: from,
                        source,
                    },
                    packet,
                );
            }
            Some(Arrival::Relay { relay, from }) => {
                self.relay_replies.push((relay, from, packet.to_vec()));
            }
            None => {}
        }
    }
}

/// What a WireGuard message is, by its type word and length.
fn kind_of(packet: &[u8]) -> Option<WireGuardPacket> {
    match (packet.first()?, packet.len()) {
        (1, _) => Some(WireGuardPacket::HandshakeInitiation),
        (2, _) => Some(WireGuardPacket::HandshakeResponse),
        (4, KEEPALIVE_LEN) => Some(WireGuardPacket::Keepalive),
        (4, _) => Some(WireGuardPacket::Data),
        _ => None,
    }
}

fn server(socket: &UdpSocket) -> Option<Destination> {
    Some(Destination {
        remote: socket.connected()?,
        source: None,
    })
}
