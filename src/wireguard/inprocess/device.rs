//! The two seams of in-process WireGuard: the device with the inner packets, and the way out for
//! the sealed ones.

use std::io::{self, IoSlice};

use super::PeerId;

/// What joined packets a device takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// TCP over IPv4 and IPv6 (TSO).
    pub tcp: bool,
    /// UDP over IPv4 and IPv6 (USO).
    pub udp: bool,
}

/// A TUN device, or a test's stand-in for one. Each packet stands behind a `virtio_net_hdr` of 10
/// bytes, zero where the device has no offload.
pub trait Device {
    /// Reads one packet, header first, and returns the bytes of both; `WouldBlock` when there is
    /// none.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes one packet, header first, gathered from `parts`.
    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()>;
    /// What may be written joined.
    fn offload(&self) -> Offload;
}

/// Where sealed packets go. The packet loop knows each peer's route: direct, a TURN channel, TURN
/// over TCP, or two at once while a path changes.
pub trait Egress {
    /// Sends `segments`, all `segment_size` bytes long but the last, which may be shorter, by the
    /// route of `peer`.
    fn send(&mut self, peer: PeerId, segments: &[u8], segment_size: usize);
    /// Sends one packet back to where the datagram now being handled came from: handshake responses
    /// and cookies, which are due before the peer has a route.
    fn reply(&mut self, packet: &[u8]);
}
