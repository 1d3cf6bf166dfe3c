//! What joining needs to know of a decrypted packet.

use super::checksum;

pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const UDP_LEN: usize = 8;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// More-fragments and offset; don't-fragment is allowed.
const FRAGMENT_MASK: u16 = 0x3fff;

/// A TCP or UDP packet without fragments, IP options or extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) protocol: u8,
    /// Bytes of the IP header.
    pub(super) ip: usize,
    /// Bytes of the IP and transport headers.
    pub(super) headers: usize,
    /// Bytes behind them.
    pub(super) payload: usize,
    /// TCP's sequence number, 0 for UDP.
    pub(super) sequence: u32,
    /// May stand in a run: TCP with payload and no flag but ACK and PSH; UDP with payload and a
    /// checksum.
    pub(super) joinable: bool,
    /// May only end one.
    pub(super) pushed: bool,
}

impl Segment {
    /// `None` for every other packet.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (ip, protocol) = match packet.first()? >> 4 {
            4 => {
                let header = packet.get(..IPV4_LEN)?;
                let whole = header[0] & 0x0f == 5
                    && u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_MASK == 0
                    && usize::from(u16::from_be_bytes([header[2], header[3]])) == packet.len();
                (whole.then_some(IPV4_LEN)?, header[9])
            }
            6 => {
                let header = packet.get(..IPV6_LEN)?;
                let len = usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_LEN;
                ((len == packet.len()).then_some(IPV6_LEN)?, header[6])
            }
            _ => return None,
        };
        let transport = &packet[ip..];
        match protocol {
            PROTOCOL_TCP => {
                let header = transport.get(..20)?;
                let len = usize::from(header[12] >> 4) * 4;
                let payload = transport.len().checked_sub(len).filter(|_| len >= 20)?;
                let flags = header[TCP_FLAGS];
                // The low four bits beside the data offset are reserved or AccECN's.
                let plain = flags & !PSH == ACK && header[12] & 0x0f == 0;
                Some(Self {
                    protocol,
                    ip,
                    headers: ip + len,
                    payload,
                    sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                    joinable: plain && payload > 0,
                    pushed: flags & PSH != 0,
                })
            }
            PROTOCOL_UDP => {
                let header = transport.get(..UDP_LEN)?;
                let whole =
                    usize::from(u16::from_be_bytes([header[4], header[5]])) == transport.len();
                let has_checksum = header[UDP_CHECKSUM..] != [0, 0];
                Some(Self {
                    protocol,
                    ip,
                    headers: ip + UDP_LEN,
                    payload: transport.len() - UDP_LEN,
                    sequence: 0,
                    joinable: whole && has_checksum && transport.len() > UDP_LEN,
                    pushed: false,
                })
            }
            _ => None,
        }
    }

    /// Same addresses, protocol and ports.
    pub(super) fn same_flow(&self, mine: &[u8], other: &Self, theirs: &[u8]) -> bool {
        let ports = self.ip..self.ip + 4;
        self.ip == other.ip
            && self.protocol == other.protocol
            && mine[ports.clone()] == theirs[ports]
            && checksum::addresses(mine) == checksum::addresses(theirs)
    }

    /// Whether, of one flow, all that a joined packet shows once is the same: TOS, TTL, DF, flow
    /// label; for TCP also acknowledgement, window, urgent pointer and options.
    pub(super) fn same_headers(&self, mine: &[u8], other: &Self, theirs: &[u8]) -> bool {
        let same = |range: std::ops::Range<usize>| mine[range.clone()] == theirs[range];
        let ip = if self.ip == IPV4_LEN {
            same(1..2) && same(6..7) && same(8..9)
        } else {
            same(0..4) && same(7..8)
        };
        let t = self.ip;
        ip && self.headers == other.headers
            && (self.protocol == PROTOCOL_UDP
                || (same(t + 8..t + 13) && same(t + 14..t + 16) && same(t + 18..self.headers)))
    }

    /// Whether the checksums hold: joining makes new ones, which would hide that the old ones did
    /// not.
    pub(super) fn intact(&self, packet: &[u8]) -> bool {
        let header_intact =
            self.ip != IPV4_LEN || checksum::fold(checksum::sum(&packet[..IPV4_LEN])) == 0xffff;
        header_intact
            && checksum::fold(self.pseudo(packet, packet.len()) + checksum::sum(&packet[self.ip..]))
                == 0xffff
    }

    /// The sum of the pseudo-header that the packet would have, were it `total` bytes long.
    pub(super) fn pseudo(&self, packet: &[u8], total: usize) -> u64 {
        checksum::pseudo_header(checksum::addresses(packet), self.protocol, total - self.ip)
    }
}
