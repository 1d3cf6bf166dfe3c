//! What WireGuard has counted between two looks, as the core takes it: on a path from WireGuard's own
//! port nobody else sees the packets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use wice_signaling::protocol::PublicKey;

use crate::core::binding::Heard;
use crate::core::node::WireGuardPacket;
use crate::io::packet_loop::Command;
use crate::wireguard::backend::Device;

/// Bytes of a handshake's initiation and of a keepalive (WireGuard paper §5.4.2 and §5.4.6).
const INITIATION: u64 = 148;
const KEEPALIVE: u64 = 32;

/// The last looks.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// When the last was.
    looked: Option<Instant>,
    peers: BTreeMap<PublicKey, Count>,
}

/// A peer as it was at the last look.
#[derive(Clone, Copy, Debug)]
struct Count {
    rx_bytes: u64,
    tx_bytes: u64,
    endpoint: Option<SocketAddr>,
    heard: Heard,
}

impl Counted {
    /// What is new at this look, of each peer that has sent or was sent something.
    pub(super) fn look(&mut self, device: &Device, now: Instant) -> Vec<Command> {
        let looked = self.looked.replace(now).unwrap_or(now);
        let before = std::mem::take(&mut self.peers);
        let mut news = Vec::new();
        for peer in &device.peers {
            let count = before.get(&peer.key);
            let received = count.and_then(|c| packet(peer.rx_bytes.saturating_sub(c.rx_bytes)));
            let sent = count.and_then(|c| packet(peer.tx_bytes.saturating_sub(c.tx_bytes)));
            // Of another endpoint nothing is known yet.
            let here = count.filter(|c| c.endpoint == peer.endpoint);
            let mut heard = here.map(|c| c.heard).unwrap_or_default();
            let quiet_since = heard.look(received.is_some(), looked, now);
            let count = Count {
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
                endpoint: peer.endpoint,
                heard,
            };
            self.peers.insert(peer.key, count);
            let endpoint = peer.endpoint.filter(|e| !e.ip().is_loopback());
            if let Some(endpoint) = endpoint.filter(|_| received.is_some() || sent.is_some()) {
                news.push(Command::Counted {
                    key: peer.key,
                    endpoint,
                    sent,
                    received,
                    quiet_since,
                });
            }
        }
        news
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
    use std::time::Duration;

    use super::*;
    use crate::wireguard::backend::DevicePeer;

    fn device(rx_bytes: u64, tx_bytes: u64) -> Device {
        Device {
            private_key: None,
            public_key: None,
            listen_port: 51_820,
            fwmark: 0,
            peers: vec![DevicePeer {
                key: PublicKey([7; 32]),
                endpoint: "192.0.2.7:51820".parse().ok(),
                last_handshake: None,
                rx_bytes,
                tx_bytes,
                allowed_ips: Vec::new(),
                keepalive: 0,
            }],
        }
    }

    /// What came at the last look may have come right after the look before.
    #[test]
    fn silence_begins_where_it_may_have() {
        let start = Instant::now();
        let at = |look: u64| start + Duration::from_millis(500 * look);
        let mut counted = Counted::default();
        assert!(counted.look(&device(0, 0), at(0)).is_empty());
        let mut quiet_since = |look, rx, tx| {
            let news = counted.look(&device(rx, tx), at(look));
            match news.as_slice() {
                [Command::Counted { quiet_since, .. }] => *quiet_since,
                _ => panic!("{} commands", news.len()),
            }
        };
        assert_eq!(quiet_since(1, 0, 128), at(0));
        assert_eq!(quiet_since(2, 128, 256), at(1));
        assert_eq!(quiet_since(3, 128, 384), at(1));
        assert_eq!(quiet_since(6, 128, 512), at(3), "nothing came lately");
        assert_eq!(quiet_since(7, 256, 640), at(6));
        assert!(counted.look(&device(256, 640), at(8)).is_empty());
        let news = counted.look(&device(256, 768), at(9));
        let [Command::Counted { quiet_since, .. }] = news.as_slice() else {
            panic!("{} commands", news.len());
        };
        assert_eq!(
            *quiet_since,
            at(6),
            "a look at which nothing was to be seen"
        );
    }

    #[test]
    fn what_came_from_elsewhere_says_nothing_of_this_endpoint() {
        let start = Instant::now();
        let at = |look: u64| start + Duration::from_millis(500 * look);
        let mut counted = Counted::default();
        counted.look(&device(0, 0), at(0));
        counted.look(&device(128, 128), at(1));
        let mut moved = device(128, 256);
        moved.peers[0].endpoint = "192.0.2.8:51820".parse().ok();
        let news = counted.look(&moved, at(2));
        let [Command::Counted { quiet_since, .. }] = news.as_slice() else {
            panic!("{} commands", news.len());
        };
        assert_eq!(*quiet_since, at(1));
    }

    #[test]
    fn lengths_tell_what_wants_no_answer() {
        assert_eq!(packet(0), None);
        assert_eq!(packet(148), Some(WireGuardPacket::HandshakeInitiation));
        assert_eq!(packet(32), Some(WireGuardPacket::Keepalive));
        assert_eq!(packet(148 + 96), Some(WireGuardPacket::Data));
    }
}
