//! What a batch of packets leaves to be told to the core.

use std::net::SocketAddr;

use crate::core::node::{Arrival, PeerId, RelayId, WireGuardPacket};

/// Told once for what follows each other alike, so a batch leaves few.
#[derive(Default)]
pub(super) struct Notes {
    /// What WireGuard has sent.
    pub(super) sent: Vec<(PeerId, WireGuardPacket)>,
    /// What came from peers for WireGuard.
    pub(super) received: Vec<(PeerId, Arrival, WireGuardPacket)>,
    /// Answers to what came through a relay, to be sent by the core.
    pub(super) relay_replies: Vec<(RelayId, SocketAddr, Vec<u8>)>,
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
