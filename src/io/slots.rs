//! The socket behind all slots: one for every peer, on the loopback interface, for WireGuard alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use crate::io::udp::{
    Arrival, Coalescer, Destination, PathError, ReceiveBuffers, SendFailures, Source, UdpError,
    UdpSocket,
};

/// `lo` has this index in every network namespace (Linux, net/flow.h: LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

/// A socket at every address of 127.0.0.0/8, which takes datagrams from WireGuard only.
#[derive(Debug)]
pub struct SlotSocket {
    udp: UdpSocket,
    bound_to_loopback: bool,
}

impl SlotSocket {
    /// Opens it at `port`, which is the same for all slots.
    pub fn open(port: u16) -> Result<Self, UdpError> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let (udp, bound_to_loopback) = UdpSocket::bind_on(any, LOOPBACK)?;
        Ok(Self {
            udp,
            bound_to_loopback,
        })
    }

    /// The socket.
    pub fn udp(&self) -> &UdpSocket {
        &self.udp
    }

    /// Whether the kernel keeps other interfaces' datagrams away; else every one is looked at, which
    /// is done in any case.
    pub fn is_bound_to_loopback(&self) -> bool {
        self.bound_to_loopback
    }

    /// As [`UdpSocket::receive`].
    pub(super) fn receive(&self, buffers: &mut ReceiveBuffers) -> std::io::Result<usize> {
        self.udp.receive(buffers)
    }

    /// As [`UdpSocket::next_error`].
    pub(super) fn next_error(&self) -> Option<PathError> {
        self.udp.next_error()
    }

    /// The slot that a run was sent to, if WireGuard sent it: from 127.0.0.1, from the port
    /// `wireguard` that it has bound, and by the loopback interface. Both checks are needed: with
    /// route_localnet and without rp_filter a host of the LAN can send from 127.0.0.1 too.
    pub(super) fn slot(&self, run: &Arrival<'_>, wireguard: u16) -> Option<Ipv4Addr> {
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, wireguard));
        match run.local {
            Some(IpAddr::V4(slot)) if run.remote == from && run.ifindex == LOOPBACK => Some(slot),
            Some(_) | None => None,
        }
    }

    /// Towards WireGuard, coalesced.
    pub(super) fn coalescer<'s, 'p>(&'s self, failures: &'s SendFailures) -> Coalescer<'s, 'p> {
        Coalescer::new(&self.udp, failures)
    }

    /// WireGuard at its port, from a peer's slot.
    pub(super) fn towards(wireguard: u16, slot: Ipv4Addr) -> Destination {
        Destination {
            remote: SocketAddr::from((Ipv4Addr::LOCALHOST, wireguard)),
            source: Some(Source {
                ip: slot.into(),
                // The route decides: only the source is ours to say.
                ifindex: 0,
            }),
        }
    }
}

impl AsFd for SlotSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel keeps other interfaces away where it lets us ask for it; where it does not, this
    /// check alone does.
    #[test]
    fn a_source_that_fits_is_refused_from_another_interface() {
        let socket = SlotSocket::open(0).unwrap();
        let slot = Ipv4Addr::new(127, 1, 2, 3);
        let run = Arrival {
            remote: "127.0.0.1:51820".parse().unwrap(),
            local: Some(slot.into()),
            ifindex: LOOPBACK,
            at: None,
            segment_size: 1,
            bytes: &[1],
        };
        assert_eq!(socket.slot(&run, 51820), Some(slot));
        assert_eq!(socket.slot(&run, 51821), None);
        let by_ethernet = Arrival { ifindex: 2, ..run };
        assert_eq!(socket.slot(&by_ethernet, 51820), None);
        let unsaid = Arrival { local: None, ..run };
        assert_eq!(socket.slot(&unsaid, 51820), None);
        let remote = "127.0.0.2:51820".parse().unwrap();
        assert_eq!(socket.slot(&Arrival { remote, ..run }, 51820), None);
    }
}
