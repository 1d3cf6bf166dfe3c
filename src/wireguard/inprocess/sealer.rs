//! Sealing inner packets one behind the other, so that a run of them leaves in one GSO send.

use boringtun::noise::{Tunn, TunnResult};

use super::PeerId;
use super::device::Egress;
use crate::io::udp::{CHANNEL_HEADER_LEN, MAX_GSO_BYTES, MAX_SEGMENTS};

/// A transport message's header and tag (WireGuard paper §5.4.6).
pub(super) const DATA_OVERHEAD: usize = 32;
/// The longest handshake message: an initiation.
pub(super) const HANDSHAKE_LEN: usize = 148;
/// Inner packets are padded to a multiple of this (§5.4.6).
pub(super) const PADDING: usize = 16;
/// An inner packet is at most this long.
pub(super) const MAX_PACKET: usize = 65_535;
/// The type word of a transport message.
pub(super) const TRANSPORT: [u8; 4] = [4, 0, 0, 0];

/// What became of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sealed {
    /// Sealed: these bytes will leave.
    Bytes(usize),
    /// There is no session: it waits in the tunnel's queue.
    Queued,
}

/// A run of sealed packets to one peer.
#[derive(Debug)]
pub(super) struct Sealer {
    buffer: Box<[u8]>,
    peer: Option<PeerId>,
    used: usize,
    count: usize,
    segment_size: usize,
    closed: bool,
    mtu: usize,
}

impl Sealer {
    pub(super) fn new(mtu: usize) -> Self {
        Self {
            buffer: vec![0; MAX_GSO_BYTES + MAX_PACKET + DATA_OVERHEAD + HANDSHAKE_LEN]
                .into_boxed_slice(),
            peer: None,
            used: 0,
            count: 0,
            segment_size: 0,
            closed: false,
            mtu: mtu.min(MAX_PACKET),
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu.min(MAX_PACKET);
    }

    /// Seals `packet[..len]` for `peer`. `packet` reaches at least [`PADDING`] bytes past `len`,
    /// and is left as it was.
    pub(super) fn push(
        &mut self,
        peer: PeerId,
        tunn: &mut Tunn,
        packet: &mut [u8],
        len: usize,
        egress: &mut impl Egress,
    ) -> Sealed {
        let padded = self.padded(len);
        let size = padded + DATA_OVERHEAD;
        if !self.accepts(peer, size) {
            self.flush(egress);
            self.peer = Some(peer);
        }
        let mut behind = [0; PADDING];
        let padding = padded - len;
        behind[..padding].copy_from_slice(&packet[len..padded]);
        packet[len..padded].fill(0);
        let result = tunn.encapsulate(&packet[..padded], &mut self.buffer[self.used..]);
        packet[len..padded].copy_from_slice(&behind[..padding]);
        match result {
            TunnResult::WriteToNetwork(sealed) if sealed.starts_with(&TRANSPORT) => {
                let bytes = sealed.len();
                self.took(bytes);
                Sealed::Bytes(bytes)
            }
            TunnResult::WriteToNetwork(initiation) => {
                egress.send(peer, initiation, initiation.len());
                Sealed::Queued
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Sealed::Queued,
        }
    }

    /// Sends what was sealed.
    pub(super) fn flush(&mut self, egress: &mut impl Egress) {
        if let Some(peer) = self.peer
            && self.used > 0
        {
            egress.send(peer, &self.buffer[..self.used], self.segment_size);
        }
        self.peer = None;
        self.used = 0;
        self.count = 0;
        self.segment_size = 0;
        self.closed = false;
    }

    /// Padding hides lengths, but must not make a full packet larger than the MTU that it was made
    /// for.
    pub(super) fn padded(&self, len: usize) -> usize {
        len.next_multiple_of(PADDING).min(self.mtu).max(len)
    }

    /// Leaves room for a ChannelData header on each, or a relayed run would be cut in two.
    fn accepts(&self, peer: PeerId, size: usize) -> bool {
        self.peer == Some(peer)
            && !self.closed
            && (self.count == 0 || size <= self.segment_size)
            && self.count < MAX_SEGMENTS
            && self.used + size + (self.count + 1) * CHANNEL_HEADER_LEN <= MAX_GSO_BYTES
    }

    fn took(&mut self, bytes: usize) {
        if self.count == 0 {
            self.segment_size = bytes;
        }
        self.closed = bytes < self.segment_size;
        self.used += bytes;
        self.count += 1;
    }
}
