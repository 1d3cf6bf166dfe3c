//! What WireGuard has counted between two looks, as the core takes it: on a path from WireGuard's own
//! port nobody else sees the packets.

use std::collections::BTreeMap;

use wice_signaling::protocol::PublicKey;

use crate::core::node::WireGuardPacket;
use crate::io::packet_loop::Command;
use crate::wireguard::backend::{Device, DevicePeer};

/// Bytes of a handshake's initiation and of a keepalive (WireGuard paper §5.4.2 and §5.4.6).
const INITIATION: u64 = 148;
const KEEPALIVE: u64 = 32;

/// Bytes received and sent as they were at the last look.
#[derive(Debug, Default)]
pub(super) struct Counted(BTreeMap<PublicKey, (u64, u64)>);

impl Counted {
    /// What is new at this look, of each peer that has sent or was sent something.
    pub(super) fn look(&mut self, device: &Device) -> Vec<Command> {
        let before = std::mem::take(&mut self.0);
        let count = |peer: &DevicePeer| (peer.key, (peer.rx_bytes, peer.tx_bytes));
        self.0 = device.peers.iter().map(count).collect();
        let command = |peer: &DevicePeer| {
            let (rx, tx) = before.get(&peer.key)?;
            let received = packet(peer.rx_bytes.saturating_sub(*rx));
            let sent = packet(peer.tx_bytes.saturating_sub(*tx));
            let endpoint = peer.endpoint.filter(|e| !e.ip().is_loopback())?;
            (received.is_some() || sent.is_some()).then_some(Command::Counted {
                key: peer.key,
                endpoint,
                sent,
                received,
            })
        };
        device.peers.iter().filter_map(command).collect()
    }
}

/// What so many bytes are: alone, the messages whose length nothing else has; else data.
fn packet(bytes: u64) -> Option<WireGuardPacket> {
    match bytes {
        0 => None,
        INITIATION => Some(WireGuardPacket::HandshakeInitiation),
        KEEPALIVE => Some(WireGuardPacket::Keepalive),
        _ => Some(WireGuardPacket::Data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_tell_what_wants_no_answer() {
        assert_eq!(packet(0), None);
        assert_eq!(packet(148), Some(WireGuardPacket::HandshakeInitiation));
        assert_eq!(packet(32), Some(WireGuardPacket::Keepalive));
        assert_eq!(packet(148 + 96), Some(WireGuardPacket::Data));
    }
}
