//! The ways out: the shared sockets and the relays, and batches of WireGuard's packets over them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

use super::oversize::Oversize;
use crate::core::node::{HostSocket, RelayId, Route, SharedPorts};
use crate::core::turn::channel_data_header;
use crate::io::dial::Fwmark;
use crate::io::relay::RelayConnection;
use crate::io::shared_port::SharedPort;
use crate::io::udp::{
    Coalescer, Destination, ErrorOrigin, Family, PathError, PathErrorKind, SendFailures, Source,
    UdpSocket,
};

/// Over a stream ChannelData is padded to four bytes (RFC 8656 §12.5).
const STREAM_ALIGNMENT: usize = 4;

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

/// The shared sockets and the relays.
pub(super) struct Links {
    pub(super) v4: Option<UdpSocket>,
    pub(super) v6: Option<UdpSocket>,
    /// WireGuard's own port, by family, where it is shared.
    pub(super) wireguard_v4: Option<SharedPort>,
    pub(super) wireguard_v6: Option<SharedPort>,
    pub(super) relays: BTreeMap<RelayId, RelayLink>,
    /// Each is one lost packet or more; the sockets count them.
    pub(super) failures: SendFailures,
    pub(super) oversize: Oversize,
    /// What every socket is marked with.
    pub(super) fwmark: Fwmark,
}

impl Links {
    pub(super) fn new(v4: Option<UdpSocket>, v6: Option<UdpSocket>) -> Self {
        Self {
            v4,
            v6,
            wireguard_v4: None,
            wireguard_v6: None,
            relays: BTreeMap::new(),
            failures: SendFailures::new(),
            oversize: Oversize::default(),
            fwmark: Fwmark::default(),
        }
    }

    /// Whether this machine has a route there, by whichever interface.
    pub(super) fn has_route(&self, remote: SocketAddr) -> bool {
        let socket = Socket::new(Domain::for_address(remote), Type::DGRAM.cloexec(), None);
        // Out of descriptors nothing can be said.
        let Ok(socket) = socket else { return true };
        let mark = self.fwmark.get();
        (mark != 0 && socket.set_mark(mark).is_err()) || socket.connect(&remote.into()).is_ok()
    }

    /// Sends one datagram.
    pub(super) fn send_host(&self, from: HostSocket, destination: Destination, payload: &[u8]) {
        match from {
            HostSocket::Own => {
                if let Some(socket) = self.shared(destination.remote) {
                    Coalescer::new(socket, &self.failures).push(destination, None, payload);
                }
            }
            HostSocket::WireGuard => self.send_wireguard(&destination, payload, payload.len()),
        }
    }

    /// Marks all sockets as it is wanted now. One that cannot be stays as it is: its packets may go into the tunnel.
    pub(super) fn mark(&self) {
        let mark = self.fwmark.get();
        let relays = self.relays.values().filter_map(|link| match link {
            RelayLink::Udp(socket) => Some(socket),
            RelayLink::Stream(_) | RelayLink::Closing { .. } => None,
        });
        let sockets = self.v4.iter().chain(&self.v6).chain(relays);
        let shared = self.wireguard_v4.iter().chain(&self.wireguard_v6);
        let marked = sockets.map(|socket| socket.set_mark(mark));
        for error in marked
            .chain(shared.map(|port| port.set_mark(mark)))
            .filter_map(Result::err)
        {
            tracing::warn!(event = "not-marked", mark, %error, "CAP_NET_ADMIN is missing");
        }
    }

    /// The same for sockets that have just been made: without a mark nothing is asked of the kernel.
    pub(super) fn mark_new(&self) {
        if self.fwmark.get() != 0 {
            self.mark();
        }
    }

    /// Takes what shares WireGuard's port from now on.
    pub(super) fn share(&mut self, ports: Vec<SharedPort>) -> SharedPorts {
        (self.wireguard_v4, self.wireguard_v6) = (None, None);
        for port in ports {
            match port.family() {
                Family::V4 => self.wireguard_v4 = Some(port),
                Family::V6 => self.wireguard_v6 = Some(port),
            }
        }
        self.mark_new();
        SharedPorts {
            v4: self.wireguard_v4.as_ref().map(SharedPort::port),
            v6: self.wireguard_v6.as_ref().map(SharedPort::port),
        }
    }

    /// From WireGuard's port: checks, and what WireGuard has sent to the slot while its endpoint was on
    /// its way there. One call a datagram; what fails is lost and counted.
    fn send_wireguard(&self, destination: &Destination, segments: &[u8], segment_size: usize) {
        let shared = match destination.remote {
            SocketAddr::V4(_) => &self.wireguard_v4,
            SocketAddr::V6(_) => &self.wireguard_v6,
        };
        let Some(shared) = shared else { return };
        for payload in segments.chunks(segment_size.max(1)) {
            if let Err(failure) = shared.send(destination, payload) {
                self.failures.push(failure);
            }
        }
    }

    /// Sends a message of TURN to a server.
    pub(super) fn send_relay(&self, relay: RelayId, message: Vec<u8>, droppable: bool) {
        match self.relays.get(&relay) {
            Some(RelayLink::Udp(socket)) => {
                if let Some(destination) = server(socket) {
                    Coalescer::new(socket, &self.failures).push(destination, None, &message);
                }
            }
            Some(RelayLink::Stream(connection)) => {
                connection.send(message, droppable);
            }
            Some(RelayLink::Closing { .. }) | None => {}
        }
    }

    /// The loop's own socket to a server.
    pub(super) fn udp_relay(&self, relay: RelayId) -> Option<&UdpSocket> {
        match self.relays.get(&relay)? {
            RelayLink::Udp(socket) => Some(socket),
            RelayLink::Stream(_) | RelayLink::Closing { .. } => None,
        }
    }

    /// What a router says of a datagram that did not fit. What this machine refused has failed to leave, and is
    /// counted there.
    pub(super) fn note_too_large(&mut self, error: &PathError) {
        if let (PathErrorKind::TooLarge { .. }, ErrorOrigin::Icmp(_)) = (error.kind, error.origin) {
            self.oversize.note(error.remote);
        }
    }

    /// Nothing gathered yet.
    pub(super) fn batch<'p>(&self) -> Batch<'_, 'p> {
        Batch {
            links: self,
            open: None,
        }
    }

    fn shared(&self, remote: SocketAddr) -> Option<&UdpSocket> {
        match remote {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }
}

/// Which socket a batch is gathering for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    V4,
    V6,
    Relay(RelayId),
}

/// WireGuard's packets on their way out, gathered from where they lie. What goes by one route one
/// after the other leaves together; what is left leaves when the batch is dropped.
pub(super) struct Batch<'s, 'p> {
    links: &'s Links,
    open: Option<(Way, Coalescer<'s, 'p>)>,
}

impl<'s, 'p> Batch<'s, 'p> {
    /// Adds `segments`, all `segment_size` bytes long but the last, which may be shorter.
    pub(super) fn push(&mut self, route: &Route, segments: &'p [u8], segment_size: usize) {
        match route {
            Route::Host {
                socket: from,
                local,
                interface,
                remote,
            } => {
                let destination = Destination {
                    remote: *remote,
                    source: Some(Source {
                        ip: *local,
                        ifindex: *interface,
                    }),
                };
                match from {
                    HostSocket::Own => {
                        let way = if remote.is_ipv4() { Way::V4 } else { Way::V6 };
                        let Some(socket) = self.links.shared(*remote) else {
                            return;
                        };
                        self.over(way, socket)
                            .push_segments(destination, segments, segment_size);
                    }
                    HostSocket::WireGuard => {
                        self.links
                            .send_wireguard(&destination, segments, segment_size);
                    }
                }
            }
            Route::Relayed { relay, channel } => {
                let header = |len: usize| channel_data_header(*channel, len as u16);
                match self.links.relays.get(relay) {
                    Some(RelayLink::Udp(socket)) => {
                        let Some(destination) = server(socket) else {
                            return;
                        };
                        self.over(Way::Relay(*relay), socket).push_framed_segments(
                            destination,
                            header,
                            segments,
                            segment_size,
                        );
                    }
                    Some(RelayLink::Stream(connection)) => {
                        for payload in segments.chunks(segment_size.max(1)) {
                            let header = header(payload.len());
                            let len =
                                (header.len() + payload.len()).next_multiple_of(STREAM_ALIGNMENT);
                            let mut frame = Vec::with_capacity(len);
                            frame.extend_from_slice(&header);
                            frame.extend_from_slice(payload);
                            frame.resize(len, 0);
                            connection.send(frame, true);
                        }
                    }
                    Some(RelayLink::Closing { .. }) | None => {}
                }
            }
        }
    }

    /// The coalescer of this socket; another's sends what it has.
    fn over(&mut self, way: Way, socket: &'s UdpSocket) -> &mut Coalescer<'s, 'p> {
        if self.open.as_ref().is_some_and(|(open, _)| *open != way) {
            self.open = None;
        }
        let links = self.links;
        let (_, coalescer) = self
            .open
            .get_or_insert_with(|| (way, Coalescer::new(socket, &links.failures)));
        coalescer
    }
}

fn server(socket: &UdpSocket) -> Option<Destination> {
    Some(Destination {
        remote: socket.connected()?,
        source: None,
    })
}
