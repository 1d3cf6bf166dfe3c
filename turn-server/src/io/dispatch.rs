//! Payloads on their way out: runs to one destination leave in one system call, headers gathered in front, nothing copied
//! (UDP), or are queued at their connection (TCP, TLS).

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use wice_udp::{Coalescer, Destination, Payloads, SendFailures, Source, UdpSocket};

use super::streams::Streams;
use crate::codec::channel_header;
use crate::server::{ClientAddr, Forward, Framing, RelayId, ToClient, Transport, data_indication};

/// Payloads of one run and where they go; behind an indication each is alone, for that has its own transaction id.
pub(super) type Routed<'p> = (Forward, Payloads<'p>);

/// The sockets of a thread that payloads leave by.
#[derive(Default)]
pub(super) struct Sockets {
    /// UDP listeners, by link.
    pub(super) listeners: Vec<UdpSocket>,
    /// Relay sockets, by [`RelayId`].
    pub(super) relays: Vec<Option<UdpSocket>>,
    /// Relays of TCP allocations.
    pub(super) tcp_relays: BTreeMap<RelayId, TcpListener>,
}

impl Sockets {
    pub(super) fn relay(&self, relay: RelayId) -> Option<&UdpSocket> {
        self.relays.get(relay.0 as usize)?.as_ref()
    }

    pub(super) fn set_relay(&mut self, relay: RelayId, socket: UdpSocket) {
        let index = relay.0 as usize;
        if self.relays.len() <= index {
            self.relays.resize_with(index + 1, || None);
        }
        self.relays[index] = Some(socket);
    }

    pub(super) fn take_relay(&mut self, relay: RelayId) -> Option<UdpSocket> {
        self.relays.get_mut(relay.0 as usize)?.take()
    }

    /// Sends all of `batch`: what goes to one place in order, and together.
    pub(super) fn dispatch(
        &self,
        batch: &mut [Routed<'_>],
        streams: &mut Streams,
        failures: &mut SendFailures,
    ) {
        group(batch);
        let mut batch = &*batch;
        while let Some(((forward, _), rest)) = batch.split_first() {
            let sent = match forward {
                Forward::Peer {
                    relay,
                    dont_fragment: false,
                    ..
                } => self.send_to_peers(*relay, batch, failures),
                Forward::Peer { .. } => self.send_unfragmented(&batch[0], failures),
                Forward::Client(to) if to.client.transport == Transport::Udp => {
                    self.send_to_clients(to.client.link, batch, failures)
                }
                Forward::Client(to) => {
                    for payload in batch[0].1.iter() {
                        streams.send_payload(to, payload);
                    }
                    1
                }
            };
            // Whatever had no socket is gone: its allocation ended in this very batch.
            batch = if sent == 0 { rest } else { &batch[sent..] };
        }
    }

    /// One message to a client by UDP.
    pub(super) fn send_message(
        &self,
        client: &ClientAddr,
        message: &[u8],
        failures: &mut SendFailures,
    ) {
        if let Some(socket) = self.listeners.get(client.link as usize) {
            Coalescer::new(socket, failures).push(reply_to(client), None, message);
        }
    }

    /// The entries at the start of `batch` that leave by `relay`; returns how many.
    fn send_to_peers(
        &self,
        relay: RelayId,
        batch: &[Routed<'_>],
        failures: &mut SendFailures,
    ) -> usize {
        let Some(socket) = self.relay(relay) else {
            return 0;
        };
        let mut out = Coalescer::new(socket, failures);
        let mut sent = 0;
        for (forward, payloads) in batch {
            match forward {
                Forward::Peer {
                    relay: other,
                    to,
                    dont_fragment: false,
                } if *other == relay => out.push_all(by_route(*to), None, *payloads),
                Forward::Peer { .. } | Forward::Client(_) => break,
            }
            sent += 1;
        }
        sent
    }

    /// DONT-FRAGMENT: the kernel has it for a whole socket only.
    fn send_unfragmented(&self, routed: &Routed<'_>, failures: &mut SendFailures) -> usize {
        let (Forward::Peer { relay, to, .. }, payloads) = routed else {
            return 0;
        };
        let Some(socket) = self.relay(*relay) else {
            return 0;
        };
        // Where it cannot be set the datagram leaves as any other.
        let _ = socket.set_fragment(false);
        Coalescer::new(socket, failures).push_all(by_route(*to), None, *payloads);
        let _ = socket.set_fragment(true);
        1
    }

    /// The entries at the start of `batch` that go to UDP clients of one listener; returns how many.
    fn send_to_clients(
        &self,
        link: u32,
        batch: &[Routed<'_>],
        failures: &mut SendFailures,
    ) -> usize {
        let Some(socket) = self.listeners.get(link as usize) else {
            return 0;
        };
        let mut out = Coalescer::new(socket, failures);
        let mut sent = 0;
        for (forward, payloads) in batch {
            let Forward::Client(ToClient { client, framing }) = forward else {
                break;
            };
            if client.transport != Transport::Udp || client.link != link {
                break;
            }
            match framing {
                Framing::Channel(number) => {
                    if let Some(header) = channel_header(*number, payloads.each()) {
                        out.push_all(reply_to(client), Some(header), *payloads);
                    }
                }
                Framing::Indication { id, peer } if sent == 0 => {
                    drop(out);
                    for payload in payloads.iter() {
                        let message = data_indication(*id, *peer, payload);
                        Coalescer::new(socket, failures).push(reply_to(client), None, &message);
                    }
                    return 1;
                }
                Framing::Indication { .. } => break,
            }
            sent += 1;
        }
        sent
    }
}

/// Brings together what leaves by one socket to one port: packets of many clients come mixed, and only neighbours share a
/// system call. All payloads of a batch lie in one buffer as they arrived, so their places in memory keep their order.
fn group(batch: &mut [Routed<'_>]) {
    batch.sort_unstable_by_key(|(forward, payloads)| {
        let (kind, socket, port) = match forward {
            Forward::Peer { relay, to, .. } => (0, relay.0, to.port()),
            Forward::Client(to) => {
                let kind = match to.client.transport {
                    Transport::Udp => 1,
                    Transport::Tcp | Transport::Tls => 2,
                };
                (kind, to.client.link, to.client.remote.port())
            }
        };
        (kind, socket, port, payloads.start().addr())
    });
}

fn by_route(remote: SocketAddr) -> Destination {
    Destination {
        remote,
        source: None,
    }
}

/// From the address that the client speaks to.
fn reply_to(client: &ClientAddr) -> Destination {
    Destination {
        remote: client.remote,
        source: Some(Source {
            ip: client.local.ip(),
            ifindex: 0,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_one_place_stands_together_and_in_order() {
        let buffer = [0u8; 64];
        let to_peer = |relay, port: u16| Forward::Peer {
            relay: RelayId(relay),
            to: SocketAddr::from(([8, 8, 8, 8], port)),
            dont_fragment: false,
        };
        // Four clients in turns, each to two peers.
        let mut batch: Vec<Routed<'_>> = buffer
            .chunks(1)
            .enumerate()
            .map(|(n, byte)| {
                let to = to_peer(n as u32 % 4, 7 + (n as u16 / 4) % 2);
                (to, Payloads::one(byte))
            })
            .collect();
        group(&mut batch);
        let changes = batch.windows(2).filter(|pair| pair[0].0 != pair[1].0);
        assert_eq!(changes.count(), 7);
        let in_order =
            |pair: &[Routed<'_>]| pair[0].0 != pair[1].0 || pair[0].1.start() < pair[1].1.start();
        assert!(batch.windows(2).all(in_order));
    }
}
