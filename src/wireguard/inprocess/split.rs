//! Cutting what the kernel handed over in one piece (TSO, USO) into the packets that it stands for.

use super::checksum;
use super::vnet::{Gso, VnetHeader};

/// IPv4 with options (60), or IPv6 with up to 64 bytes of extension headers (104), and TCP with
/// options (60).
const MAX_HEADERS: usize = 164;
const TCP_MIN: usize = 20;
const UDP_LEN: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// The vnet header and the packet contradict each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadOffload;

/// Calls `emit(buffer, len)` for each packet, in order: it stands in `buffer[..len]` with its
/// checksums right, and bytes past `len` are those still to be emitted, or slack. `emit` may change
/// `buffer[..len]`, and must leave the rest as it was.
///
/// `buffer[..len]` is the packet as the kernel gave it. No payload is moved: each next header is
/// written over the tail of the segment before, which has been emitted (and so sealed elsewhere) by
/// then.
pub(super) fn split(
    vnet: VnetHeader,
    buffer: &mut [u8],
    len: usize,
    mut emit: impl FnMut(&mut [u8], usize),
) -> Result<(), BadOffload> {
    let (transport, protocol) = match vnet.gso {
        Gso::None => {
            if vnet.needs_csum {
                complete_checksum(vnet, &mut buffer[..len])?;
            }
            emit(buffer, len);
            return Ok(());
        }
        Gso::TcpV4 | Gso::TcpV6 => {
            let start = usize::from(vnet.csum_start);
            let offset = buffer[..len].get(start + 12).ok_or(BadOffload)?;
            (usize::from(offset >> 4) * 4, PROTOCOL_TCP)
        }
        Gso::Udp => (UDP_LEN, PROTOCOL_UDP),
    };
    let template = Template::new(vnet, &buffer[..len], transport, protocol)?;
    let headers = template.len;
    let mss = usize::from(vnet.gso_size);
    let payload = len - headers;
    for index in 0..payload.div_ceil(mss) {
        let start = index * mss;
        let this = mss.min(payload - start);
        let last = start + this == payload;
        template.write(&mut buffer[start..start + headers + this], index, last);
        emit(&mut buffer[start..], headers + this);
    }
    Ok(())
}

/// The headers of the whole, from which each segment's are made.
struct Template {
    bytes: [u8; MAX_HEADERS],
    len: usize,
    ip: usize,
    mss: usize,
    protocol: u8,
}

impl Template {
    fn new(
        vnet: VnetHeader,
        packet: &[u8],
        transport: usize,
        protocol: u8,
    ) -> Result<Self, BadOffload> {
        let ip = usize::from(vnet.csum_start);
        let len = ip + transport;
        let version = packet.first().ok_or(BadOffload)? >> 4;
        let (ip_min, right_version) = match vnet.gso {
            Gso::TcpV4 => (20, version == 4),
            Gso::TcpV6 => (40, version == 6),
            Gso::Udp | Gso::None => (
                if version == 6 { 40 } else { 20 },
                version == 4 || version == 6,
            ),
        };
        let transport_min = if protocol == PROTOCOL_TCP {
            TCP_MIN
        } else {
            UDP_LEN
        };
        let sound = right_version
            && ip >= ip_min
            && transport >= transport_min
            && len <= MAX_HEADERS
            && packet.len() > len
            && vnet.gso_size > 0;
        if !sound {
            return Err(BadOffload);
        }
        let mut bytes = [0; MAX_HEADERS];
        bytes[..len].copy_from_slice(&packet[..len]);
        Ok(Self {
            bytes,
            len,
            ip,
            mss: usize::from(vnet.gso_size),
            protocol,
        })
    }

    fn write(&self, segment: &mut [u8], index: usize, last: bool) {
        segment[..self.len].copy_from_slice(&self.bytes[..self.len]);
        let total = segment.len();
        if segment[0] >> 4 == 4 {
            let id = u16::from_be_bytes([self.bytes[4], self.bytes[5]]).wrapping_add(index as u16);
            put(segment, 2, total as u16);
            put(segment, 4, id);
            put_native(segment, 10, 0);
            let sum = checksum::fold(checksum::sum(&segment[..self.ip]));
            put_native(segment, 10, !sum);
        } else {
            put(segment, 4, (total - 40) as u16);
        }
        let pseudo =
            checksum::pseudo_header(checksum::addresses(segment), self.protocol, total - self.ip);
        let transport = &mut segment[self.ip..];
        if self.protocol == PROTOCOL_TCP {
            let first =
                u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = first.wrapping_add((index * self.mss) as u32);
            transport[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                transport[TCP_FLAGS] &= !(FIN | PSH);
            }
            if index > 0 {
                transport[TCP_FLAGS] &= !CWR;
            }
            put_native(transport, TCP_CHECKSUM, 0);
            put_native(
                transport,
                TCP_CHECKSUM,
                !checksum::fold(pseudo + checksum::sum(transport)),
            );
        } else {
            put(transport, 4, transport.len() as u16);
            put_native(transport, UDP_CHECKSUM, 0);
            let sum = !checksum::fold(pseudo + checksum::sum(transport));
            put_native(transport, UDP_CHECKSUM, never_zero(sum));
        }
    }
}

/// The field holds the pseudo-header's sum, so summing from `csum_start` gives the whole.
fn complete_checksum(vnet: VnetHeader, packet: &mut [u8]) -> Result<(), BadOffload> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if field + 2 > packet.len() || start % 2 != 0 {
        return Err(BadOffload);
    }
    let mut sum = !checksum::fold(checksum::sum(&packet[start..]));
    if usize::from(vnet.csum_offset) == UDP_CHECKSUM {
        sum = never_zero(sum);
    }
    put_native(packet, field, sum);
    Ok(())
}

/// A UDP checksum of 0 means "none" (RFC 768).
fn never_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put_native(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}
