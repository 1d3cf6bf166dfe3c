//! What a batch of packets leaves to be told to the core.

use std::net::SocketAddr;

use crate::core::node::{Arrival, PeerId, RelayId, WireGuardPacket};
use crate::core::slots::{INITIATION_LEN, Message, Slots};

/// A step of a handshake's way, at level debug: it shows where one has stayed. Data is not told of.
pub(super) fn tell(slots: &Slots, peer: PeerId, message: Message, step: &'static str) {
    let message = match message {
        Message::Initiation { .. } => "initiation",
        Message::Response { .. } => "response",
        Message::Cookie { .. } => "cookie",
        Message::Data { .. } => return,
    };
    if let Some(peer) = slots.key(peer) {
        tracing::debug!(event = "handshake", %peer, message, step);
    }
}

/// Told once for what follows each other alike, so a batch leaves few.
#[derive(Default)]
pub(super) struct Notes {
    /// What WireGuard has sent.
    pub(super) sent: Vec<(PeerId, WireGuardPacket)>,
    /// What came from peers for WireGuard.
    pub(super) received: Vec<(PeerId, Arrival, WireGuardPacket)>,
    /// Answers to what came through a relay, to be sent by the core.
    pub(super) relay_replies: Vec<(RelayId, SocketAddr, Vec<u8>)>,
    /// Initiations for the wice of peers rather than their WireGuard, to be sent by the core.
    pub(super) enclosed: Vec<(PeerId, Box<[u8; INITIATION_LEN]>)>,
}

impl Notes {
    pub(super) fn sent(&mut self, peer: PeerId, packet: WireGuardPacket) {
        if self.sent.last() != Some(&(peer, packet)) {
            self.sent.push((peer, packet));
        }
    }

    pub(super) fn received(&mut self, peer: PeerId, arrival: Arrival, packet: WireGuardPacket) {
        if self.received.last() != Some(&(peer, arrival, packet)) {
            self.received.push((peer, arrival, packet));
        }
    }
}
