//! From the network to WireGuard: by whose slot, and what is not handed on.

use std::time::Instant;

use wice_signaling::protocol::PublicKey;

use super::notes::{self, Notes};
use crate::core::node::{Arrival, Node};
use crate::core::slots::{Message, Sender, Slots};
use crate::io::slots::SlotSocket;
use crate::io::udp::{Coalescer, Payloads};

/// From the network to WireGuard.
pub(super) struct Inward<'s, 'p> {
    pub(super) out: Coalescer<'s, 'p>,
    pub(super) own: PublicKey,
    pub(super) port: Option<u16>,
    pub(super) notes: &'s mut Notes,
    pub(super) now: Instant,
    /// The last data's arrival, receiver index and sender: it comes in runs.
    pub(super) last: Option<(Arrival, u32, Sender)>,
}

impl<'p> Inward<'_, 'p> {
    pub(super) fn deliver_one(
        &mut self,
        slots: &mut Slots,
        arrival: Arrival,
        payload: &'p [u8],
        node: &Node,
    ) {
        match Message::parse(payload) {
            Some(message) => {
                self.deliver(slots, arrival, message, payload, payload.len(), node);
            }
            None => slots.counters.malformed_in += 1,
        }
    }

    pub(super) fn deliver(
        &mut self,
        slots: &mut Slots,
        arrival: Arrival,
        message: Message,
        bytes: &'p [u8],
        segment_size: usize,
        node: &Node,
    ) {
        if let Some(sender) = self.sender(slots, arrival, message, node) {
            self.hand_on(slots, arrival, sender, message, bytes, segment_size);
        }
    }

    /// To WireGuard, as from the sender's slot.
    pub(super) fn hand_on(
        &mut self,
        slots: &mut Slots,
        arrival: Arrival,
        sender: Sender,
        message: Message,
        bytes: &'p [u8],
        segment_size: usize,
    ) {
        let Some(port) = self.port else {
            slots.counters.no_port += bytes.len().div_ceil(segment_size) as u64;
            return;
        };
        if let Message::Initiation { .. } = message {
            if slots.crosses(sender.peer, &self.own, self.now) {
                notes::tell(slots, sender.peer, message, "crossed ours, dropped");
                return;
            }
            slots.note_asked(sender.peer, arrival, self.now);
        }
        notes::tell(slots, sender.peer, message, "to WireGuard");
        let towards = SlotSocket::towards(port, sender.slot);
        self.out.push_segments(towards, bytes, segment_size);
        slots.note_received(sender.peer, bytes.len(), self.now);
        if let Some(packet) = message.packet().filter(|_| sender.in_session) {
            self.notes.received(sender.peer, arrival, packet);
        }
    }

    /// More of what was delivered last.
    pub(super) fn deliver_alike(&mut self, slots: &mut Slots, payloads: Payloads<'p>) {
        let Some((_, _, sender)) = self.last else {
            return;
        };
        let Some(port) = self.port else {
            slots.counters.no_port += payloads.count() as u64;
            return;
        };
        let towards = SlotSocket::towards(port, sender.slot);
        self.out.push_all(towards, None, payloads);
        let bytes = payloads.count() * payloads.each();
        slots.note_received(sender.peer, bytes, self.now);
    }

    fn sender(
        &mut self,
        slots: &mut Slots,
        arrival: Arrival,
        message: Message,
        node: &Node,
    ) -> Option<Sender> {
        if let Message::Data { receiver, .. } = message
            && let Some((from, index, sender)) = self.last
            && from == arrival
            && index == receiver
        {
            return Some(sender);
        }
        let sender = slots
            .sender(node.peer_at(&arrival), message, self.now)
            .ok()?;
        self.last = match message {
            Message::Data { receiver, .. } => Some((arrival, receiver, sender)),
            Message::Initiation { .. } | Message::Response { .. } | Message::Cookie { .. } => None,
        };
        Some(sender)
    }
}
