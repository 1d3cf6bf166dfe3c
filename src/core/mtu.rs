//! How large a packet inside the tunnel a path carries in one piece.

use std::net::{IpAddr, SocketAddr};

/// IPv4's header without options (RFC 791 §3.1).
const IPV4_HEADER: u32 = 20;
/// IPv6's fixed header (RFC 8200 §3).
const IPV6_HEADER: u32 = 40;
/// UDP's header (RFC 768).
const UDP_HEADER: u32 = 8;
/// WireGuard's data message: type, receiver and counter, 16 bytes, and the tag, 16. Its padding to 16 bytes never
/// goes past the interface's MTU.
const WIREGUARD: u32 = 32;
/// ChannelData's header (RFC 8656 §12.4).
const CHANNEL_DATA: u32 = 4;

/// The least that a link with IPv6 carries (RFC 8200 §5): what an interface with IPv6 in it cannot go below.
pub const MIN_INNER: u32 = 1280;

/// How the packets of a path leave this node over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outer {
    /// The source address, and the interface by which they leave; `None` leaves both to the route.
    pub from: Option<(IpAddr, u32)>,
    /// Where they go: the peer, its relay, or ours.
    pub remote: SocketAddr,
    /// They go on as ChannelData, from here or from the peer's relay to the peer.
    pub relayed: bool,
}

impl Outer {
    /// Bytes of the largest inner packet that a path of this MTU (bytes, IP header included) carries in one piece.
    pub fn largest_inner(&self, path_mtu: u32) -> u32 {
        let ip = match self.remote.ip().to_canonical() {
            IpAddr::V4(_) => IPV4_HEADER,
            IpAddr::V6(_) => IPV6_HEADER,
        };
        let relay = if self.relayed { CHANNEL_DATA } else { 0 };
        path_mtu.saturating_sub(ip + UDP_HEADER + WIREGUARD + relay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_on_the_way_is_counted() {
        let outer = |remote: &str, relayed| Outer {
            from: None,
            remote: remote.parse().unwrap(),
            relayed,
        };
        let (v4, v6) = ("192.0.2.1:51821", "[2001:db8::1]:51821");
        assert_eq!(outer(v4, false).largest_inner(1500), 1440);
        assert_eq!(outer(v4, true).largest_inner(1500), 1436);
        // WireGuard's usual 1420 fits an Ethernet with IPv6, and not with a relay.
        assert_eq!(outer(v6, false).largest_inner(1500), 1420);
        assert_eq!(outer(v6, true).largest_inner(1500), 1416);
        assert_eq!(
            outer("[::ffff:192.0.2.1]:1", false).largest_inner(1500),
            1440
        );
        assert_eq!(outer(v4, false).largest_inner(40), 0);
    }
}
