//! Packets, a device and a network in memory.

mod limits;
mod offload;
mod tunnels;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::IpAddr;

use super::device::{Device, Egress, Offload};
use super::vnet::{VNET_HEADER_LEN, VnetHeader};
use super::{PeerId, checksum};

pub(super) const ALL: Offload = Offload {
    tcp: true,
    udp: true,
};

#[derive(Default)]
pub(super) struct FakeDevice {
    pub(super) inbox: VecDeque<Vec<u8>>,
    pub(super) outbox: Vec<Vec<u8>>,
    pub(super) offload: Offload,
}

impl Device for FakeDevice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let packet = self.inbox.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.outbox
            .push(parts.iter().flat_map(|part| part.iter().copied()).collect());
        Ok(())
    }

    fn offload(&self) -> Offload {
        self.offload
    }
}

/// What was sent, datagram by datagram, and in how many runs.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) datagrams: Vec<Vec<u8>>,
    pub(super) runs: Vec<(PeerId, usize, usize)>,
    pub(super) replies: Vec<Vec<u8>>,
}

impl Egress for Wire {
    fn send(&mut self, peer: PeerId, segments: &[u8], segment_size: usize) {
        self.runs.push((peer, segments.len(), segment_size));
        self.datagrams
            .extend(segments.chunks(segment_size).map(<[u8]>::to_vec));
    }

    fn reply(&mut self, packet: &[u8]) {
        self.replies.push(packet.to_vec());
    }
}

/// A TCP packet to be.
#[derive(Clone)]
pub(super) struct Tcp {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) ports: (u16, u16),
    pub(super) sequence: u32,
    pub(super) flags: u8,
    pub(super) id: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Tcp {
    pub(super) fn new(from: &str, to: &str, sequence: u32, payload: Vec<u8>) -> Self {
        Self {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            ports: (40000, 443),
            sequence,
            flags: 0x10,
            id: 7,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.ports.0.to_be_bytes());
        transport.extend(self.ports.1.to_be_bytes());
        transport.extend(self.sequence.to_be_bytes());
        transport.extend(99u32.to_be_bytes());
        transport.push((((20 + self.options.len()) / 4) << 4) as u8);
        transport.push(self.flags);
        transport.extend([1, 0, 0, 0, 0, 0]);
        transport.extend(&self.options);
        transport.extend(&self.payload);
        ip(self.from, self.to, 6, self.id, &transport, 16)
    }
}

pub(super) fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(5000u16.to_be_bytes());
    transport.extend(6000u16.to_be_bytes());
    transport.extend((8 + payload.len() as u16).to_be_bytes());
    transport.extend([0, 0]);
    transport.extend(payload);
    ip(
        from.parse().unwrap(),
        to.parse().unwrap(),
        17,
        7,
        &transport,
        6,
    )
}

/// An IP packet with both checksums right.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, id: u16, transport: &[u8], field: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let header = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + transport.len() as u16).to_be_bytes());
            packet.extend(id.to_be_bytes());
            packet.extend([0x40, 0, 64, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let sum = !checksum::fold(checksum::sum(&packet));
            packet[10..12].copy_from_slice(&sum.to_ne_bytes());
            20
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((transport.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            40
        }
        _ => panic!("one family"),
    };
    packet.extend(transport);
    let pseudo = checksum::pseudo_header(checksum::addresses(&packet), protocol, transport.len());
    let sum = !checksum::fold(pseudo + checksum::sum(&packet[header..]));
    packet[header + field..header + field + 2].copy_from_slice(&sum.to_ne_bytes());
    packet
}

/// Checks both checksums of a packet that stands alone.
pub(super) fn assert_intact(packet: &[u8]) {
    let (header, protocol) = if packet[0] >> 4 == 4 {
        assert_eq!(
            checksum::fold(checksum::sum(&packet[..20])),
            0xffff,
            "IPv4 header"
        );
        assert_eq!(
            u16::from_be_bytes([packet[2], packet[3]]) as usize,
            packet.len()
        );
        (20, packet[9])
    } else {
        assert_eq!(
            u16::from_be_bytes([packet[4], packet[5]]) as usize + 40,
            packet.len()
        );
        (40, packet[6])
    };
    let pseudo =
        checksum::pseudo_header(checksum::addresses(packet), protocol, packet.len() - header);
    assert_eq!(
        checksum::fold(pseudo + checksum::sum(&packet[header..])),
        0xffff,
        "transport"
    );
}

pub(super) fn with_vnet(vnet: VnetHeader, packet: &[u8]) -> Vec<u8> {
    [vnet.to_bytes().as_slice(), packet].concat()
}

pub(super) fn without_vnet(written: &[u8]) -> (VnetHeader, &[u8]) {
    let (header, packet) = written.split_first_chunk::<VNET_HEADER_LEN>().unwrap();
    (VnetHeader::parse(header).unwrap(), packet)
}

pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}
