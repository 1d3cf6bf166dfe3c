//! Payloads (RFC 8656 §11, §12): from a client to a peer, from a peer to a client, and from one of our relayed addresses to
//! another without leaving the process.

use std::net::SocketAddr;
use std::time::Instant;

use rand_core::RngCore as _;

use super::allocation::Family;
use super::types::{
    ClientAddr, Forward, Framing, IcmpError, PeerAddr, RelayAddr, RelayId, ToClient,
};
use super::{AllocationId, Command, Server};
use crate::codec::{ChannelData, Class, Message, TransactionId, Writer, attribute, method};

/// Bytes of a Data indication besides its payload: header, the larger XOR-PEER-ADDRESS, the head of DATA, padding.
const INDICATION_OVERHEAD: usize = 20 + 24 + 4 + 3;

impl Server {
    pub(super) fn handle_channel_data<'a>(
        &mut self,
        client: &ClientAddr,
        frame: &'a [u8],
        now: Instant,
    ) -> Option<(Forward, &'a [u8])> {
        let Some(data) = ChannelData::parse(frame) else {
            self.counters.malformed += 1;
            return None;
        };
        let (forward, _) = self.forward_on_channel(client, &data, 1, now)?;
        Some((forward, data.payload))
    }

    /// `packets` more frames of ChannelData with the header of `frame`, which was sent on just now, in the same run of datagrams:
    /// how many of them go where it went. Their user's rate may not have room for all.
    pub fn handle_alike(
        &mut self,
        client: &ClientAddr,
        frame: &[u8],
        packets: usize,
        now: Instant,
    ) -> usize {
        let data = ChannelData::parse(frame);
        let sent = data.and_then(|data| self.forward_on_channel(client, &data, packets, now));
        sent.map_or(0, |(_, packets)| packets)
    }

    fn forward_on_channel(
        &mut self,
        client: &ClientAddr,
        data: &ChannelData<'_>,
        packets: usize,
        now: Instant,
    ) -> Option<(Forward, usize)> {
        let id = self.sender(client);
        let channel = id.and_then(|id| Some((id, self.get(id)?.peer_of(data.number, now)?)));
        let Some((id, peer)) = channel else {
            self.counters.unpermitted_up += packets as u64;
            return None;
        };
        self.forward(id, peer, (packets, data.payload.len()), false, now)
    }

    pub(super) fn handle_send<'a>(
        &mut self,
        client: &ClientAddr,
        message: &Message<'a>,
        now: Instant,
    ) -> Option<(Forward, &'a [u8])> {
        let peer = message
            .get(attribute::XOR_PEER_ADDRESS)
            .and_then(|value| message.xor_address(value));
        let (Some(peer), Some(payload)) = (peer, message.get(attribute::DATA)) else {
            self.counters.malformed += 1;
            return None;
        };
        if !message.unknown().is_empty() {
            self.counters.malformed += 1;
            return None;
        }
        let peer = PeerAddr(peer);
        let id = self.sender(client);
        let permitted = id.filter(|id| {
            // Datagrams of a TCP allocation go nowhere (RFC 6062 §5).
            self.get(*id).is_some_and(|allocation| {
                allocation.connections.is_none() && allocation.is_permitted(peer.0.ip(), now)
            })
        });
        let Some(id) = permitted.filter(|_| self.may_send_to(peer)) else {
            self.counters.unpermitted_up += 1;
            return None;
        };
        let dont_fragment = message.has(attribute::DONT_FRAGMENT);
        let (forward, _) = self.forward(id, peer, (1, payload.len()), dont_fragment, now)?;
        Some((forward, payload))
    }

    /// Payloads of one peer at a relay socket: `packets` of them, of `len` bytes each. Says how each goes to the client, and how
    /// many of them: the user's rate may not have room for all.
    pub fn handle_peer(
        &mut self,
        relay: RelayId,
        from: SocketAddr,
        (packets, len): (usize, usize),
        now: Instant,
    ) -> Option<(ToClient, usize)> {
        let slot = self.relay(relay)?;
        let id = slot.allocation;
        let peer = PeerAddr(self.as_clients_see(slot.local, slot.external, from));
        self.deliver(id, peer, (packets, len), now)
    }

    /// An ICMP error at a relay socket: the client is told (RFC 8656 §11.5, §11.6).
    pub fn handle_icmp(&mut self, relay: RelayId, to: SocketAddr, error: IcmpError, now: Instant) {
        let Some(slot) = self.relay(relay) else {
            return;
        };
        let peer = PeerAddr(self.as_clients_see(slot.local, slot.external, to));
        let Some(allocation) = self.get(slot.allocation) else {
            return;
        };
        if !allocation.is_permitted(peer.0.ip(), now) {
            return;
        }
        let client = allocation.client;
        let mut writer = Writer::new(Class::Indication, method::DATA, self.new_id());
        writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer.0);
        // 16 bits reserved, type in 7, code in 9 (RFC 8656 §18.13).
        let word = u16::from(error.kind & 0x7F) << 9 | u16::from(error.code);
        let mut value = [0; 8];
        value[2..4].copy_from_slice(&word.to_be_bytes());
        value[4..].copy_from_slice(&error.data.to_be_bytes());
        writer.add(attribute::ICMP, &value);
        let message = writer.finish(None, false);
        self.commands.push_back(Command::Send { client, message });
    }

    /// `packets` of `len` bytes each, to one peer: where, and how many of them.
    fn forward(
        &mut self,
        id: AllocationId,
        peer: PeerAddr,
        (packets, len): (usize, usize),
        dont_fragment: bool,
        now: Instant,
    ) -> Option<(Forward, usize)> {
        let allocation = self.get(id)?;
        let relayed = allocation.relayed(Family::of(peer.0.ip()))?;
        let rate = self.config.quotas.user_bytes_per_second;
        let paid = allocation.grant.pay(packets, len, rate, now);
        self.counters.over_rate += (packets - paid) as u64;
        if paid == 0 {
            return None;
        }
        let external = PeerAddr(self.relay(relayed.relay)?.external.0);
        let other = (peer.0.ip() == external.0.ip())
            .then(|| self.by_address.get(&RelayAddr(peer.0)))
            .flatten();
        let (forward, sent) = match other {
            Some(other) => {
                let other = self.relay(*other)?.allocation;
                let (to, sent) = self.deliver(other, external, (paid, len), now)?;
                (Forward::Client(to), sent)
            }
            None => {
                let forward = Forward::Peer {
                    relay: relayed.relay,
                    to: self.as_bound(peer.0),
                    dont_fragment,
                };
                (forward, paid)
            }
        };
        self.counters.packets_up += sent as u64;
        self.counters.bytes_up += (sent * len) as u64;
        Some((forward, sent))
    }

    fn deliver(
        &mut self,
        id: AllocationId,
        peer: PeerAddr,
        (packets, len): (usize, usize),
        now: Instant,
    ) -> Option<(ToClient, usize)> {
        let allocation = self.get(id)?;
        if !allocation.is_permitted(peer.0.ip(), now) {
            self.counters.unpermitted_down += packets as u64;
            return None;
        }
        let rate = self.config.quotas.user_bytes_per_second;
        let paid = allocation.grant.pay(packets, len, rate, now);
        let (client, channel) = (allocation.client, allocation.channel_of(peer, now));
        self.counters.over_rate += (packets - paid) as u64;
        if paid == 0 {
            return None;
        }
        self.counters.packets_down += paid as u64;
        self.counters.bytes_down += (paid * len) as u64;
        let framing = match channel {
            Some(number) => Framing::Channel(number),
            None => Framing::Indication {
                id: self.new_id(),
                peer,
            },
        };
        Some((ToClient { client, framing }, paid))
    }

    /// A relayed address of ours arrives as what it is bound to; clients know it by the other name.
    pub(super) fn as_clients_see(
        &self,
        local: SocketAddr,
        external: RelayAddr,
        from: SocketAddr,
    ) -> SocketAddr {
        let translated = SocketAddr::new(external.0.ip(), from.port());
        if from.ip() == local.ip() && self.is_relayed(translated) {
            translated
        } else {
            SocketAddr::new(from.ip(), from.port())
        }
    }

    /// The other way: another thread's relayed address is reached by what it is bound to, without a NAT that turns packets back.
    pub(super) fn as_bound(&self, peer: SocketAddr) -> SocketAddr {
        match self.relay_config(Family::of(peer.ip())) {
            Some(relay) if self.is_relayed(peer) => SocketAddr::new(relay.local, peer.port()),
            Some(_) | None => peer,
        }
    }

    pub(super) fn new_id(&mut self) -> TransactionId {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        TransactionId(id)
    }
}

/// The bytes of a Data indication (RFC 8656 §11.4).
pub fn data_indication(id: TransactionId, peer: PeerAddr, payload: &[u8]) -> Vec<u8> {
    let capacity = payload.len() + INDICATION_OVERHEAD;
    let mut writer = Writer::with_capacity(Class::Indication, method::DATA, id, capacity);
    writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer.0);
    writer.add(attribute::DATA, payload);
    writer.finish(None, false)
}
