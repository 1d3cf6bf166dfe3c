//! The classic BPF programs: what is not STUN to our port, or an initiation from it, is dropped by the
//! kernel before it is copied, WireGuard's data above all.

use libc::sock_filter;

use crate::core::slots::INITIATION_LEN;
use crate::io::udp::Family;

/// RFC 8489 §5.
pub(super) const MAGIC_COOKIE: u32 = 0x2112_a442;
/// The two most significant bits of a STUN message are zero (RFC 8489 §5).
const NOT_STUN_BITS: u32 = 0xc0;
/// Bytes of the packet that an accepted one keeps: more than any has.
const WHOLE: u32 = u32::MAX;

/// Offsets in the UDP datagram.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
const UDP_LENGTH: u32 = 4;
const FIRST_BYTE: u32 = 8;
const COOKIE: u32 = 12;
/// Of IPv4's fragments the first alone has ports (RFC 791 §3.1): where the offset stands, and its bits.
const FRAGMENT: u32 = 6;
const FRAGMENT_OFFSET: u32 = 0x1fff;
/// Where the two families name what follows the header, and how long IPv6's is (RFC 8200 §3).
const PROTOCOL_V4: u32 = 9;
const NEXT_HEADER_V6: u32 = 6;
const HEADER_LEN_V6: u32 = 40;
/// The first word of an initiation (WireGuard paper §5.4.2), and its length behind a UDP header.
const INITIATION: u32 = 0x0100_0000;
const INITIATION_DATAGRAM: u32 = 8 + INITIATION_LEN as u32;
/// What the kernel tells beside the packet (filter.txt, "ancillary data"): its direction and EtherType.
const DIRECTION: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
const ETHERTYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;

const LOAD_IP_HEADER_LEN: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const LOAD_AT: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_BYTE_AT: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const LOAD_HALF_AT: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_IND) as u16;
const LOAD_X: u16 = (libc::BPF_LDX | libc::BPF_IMM) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Accepts STUN to `port` and nothing else. A load past the packet's end drops it (filter.txt). A
/// raw IPv4 socket shows packets from the IP header on, a raw IPv6 one from the UDP header.
pub(super) fn stun_to(family: Family, port: u16) -> [sock_filter; 9] {
    let start = match family {
        Family::V4 => statement(LOAD_IP_HEADER_LEN, 0),
        Family::V6 => statement(LOAD_X, 0),
    };
    [
        start,
        statement(LOAD_HALF, DESTINATION_PORT),
        jump(JUMP_IF_EQUAL, u32::from(port), 0, 5),
        statement(LOAD_WORD, COOKIE),
        jump(JUMP_IF_EQUAL, MAGIC_COOKIE, 0, 3),
        statement(LOAD_BYTE, FIRST_BYTE),
        jump(JUMP_IF_SET, NOT_STUN_BITS, 1, 0),
        statement(RETURN, WHOLE),
        statement(RETURN, 0),
    ]
}

/// Accepts WireGuard's initiations that leave this machine from `port`, of both families; for a packet
/// socket without link headers.
pub(super) fn initiations_from(port: u16) -> [sock_filter; 22] {
    let udp = libc::IPPROTO_UDP as u32;
    [
        statement(LOAD_AT, DIRECTION),
        jump(JUMP_IF_EQUAL, u32::from(libc::PACKET_OUTGOING), 0, 19),
        statement(LOAD_AT, ETHERTYPE),
        jump(JUMP_IF_EQUAL, libc::ETH_P_IPV6 as u32, 7, 0),
        jump(JUMP_IF_EQUAL, libc::ETH_P_IP as u32, 0, 16),
        statement(LOAD_BYTE_AT, PROTOCOL_V4),
        jump(JUMP_IF_EQUAL, udp, 0, 14),
        statement(LOAD_HALF_AT, FRAGMENT),
        jump(JUMP_IF_SET, FRAGMENT_OFFSET, 12, 0),
        statement(LOAD_IP_HEADER_LEN, 0),
        statement(JUMP, 3),
        statement(LOAD_BYTE_AT, NEXT_HEADER_V6),
        jump(JUMP_IF_EQUAL, udp, 0, 8),
        statement(LOAD_X, HEADER_LEN_V6),
        statement(LOAD_HALF, SOURCE_PORT),
        jump(JUMP_IF_EQUAL, u32::from(port), 0, 5),
        statement(LOAD_HALF, UDP_LENGTH),
        jump(JUMP_IF_EQUAL, INITIATION_DATAGRAM, 0, 3),
        statement(LOAD_WORD, FIRST_BYTE),
        jump(JUMP_IF_EQUAL, INITIATION, 0, 1),
        statement(RETURN, WHOLE),
        statement(RETURN, 0),
    ]
}

fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// The offsets count from the next instruction.
fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::shared_port::packet;

    /// What the kernel's interpreter does with these instructions; `None` for one that it would
    /// refuse.
    fn accepts(program: &[sock_filter], packet: &[u8]) -> Option<bool> {
        accepts_sent(program, packet, (libc::PACKET_OUTGOING, libc::ETH_P_IP))
    }

    /// The same with direction and EtherType, which packet sockets know.
    fn accepts_sent(
        program: &[sock_filter],
        packet: &[u8],
        (direction, ethertype): (u8, i32),
    ) -> Option<bool> {
        let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
        let load = |at: u32, len: usize| -> Option<u32> {
            match at {
                DIRECTION => return Some(u32::from(direction)),
                ETHERTYPE => return u32::try_from(ethertype).ok(),
                _ => {}
            }
            let bytes = packet.get(at as usize..at as usize + len)?;
            Some(bytes.iter().fold(0, |sum, &b| (sum << 8) | u32::from(b)))
        };
        loop {
            let i = program.get(at)?;
            at += 1;
            let from_packet = match i.code {
                LOAD_IP_HEADER_LEN => load(i.k, 1),
                LOAD_AT => load(i.k, 4),
                LOAD_HALF_AT => load(i.k, 2),
                LOAD_BYTE_AT => load(i.k, 1),
                LOAD_BYTE => load(x + i.k, 1),
                LOAD_HALF => load(x + i.k, 2),
                LOAD_WORD => load(x + i.k, 4),
                _ => Some(0),
            };
            let Some(value) = from_packet else {
                return Some(false);
            };
            match i.code {
                LOAD_IP_HEADER_LEN => x = 4 * (value & 0xf),
                LOAD_X => x = i.k,
                LOAD_AT | LOAD_HALF_AT | LOAD_BYTE_AT | LOAD_BYTE | LOAD_HALF | LOAD_WORD => {
                    a = value;
                }
                JUMP => at += i.k as usize,
                JUMP_IF_EQUAL => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                JUMP_IF_SET => at += usize::from(if a & i.k != 0 { i.jt } else { i.jf }),
                RETURN => return Some(i.k > 0),
                _ => return None,
            }
        }
    }

    fn stun(port: u16) -> Vec<u8> {
        let mut message = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        message.extend([7; 12]);
        let mut datagram = packet::header(9, port, message.len()).unwrap().to_vec();
        datagram.extend(message);
        datagram
    }

    fn with_ip_header(words: u8, datagram: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; usize::from(words) * 4];
        packet[0] = 0x40 | words;
        packet.extend(datagram);
        packet
    }

    #[test]
    fn stun_to_the_port_passes_with_and_without_ip_options() {
        let port = 51820;
        for words in [5, 6, 15] {
            let packet = with_ip_header(words, &stun(port));
            let program = stun_to(Family::V4, port);
            assert_eq!(accepts(&program, &packet), Some(true), "{words} words");
        }
        assert_eq!(accepts(&stun_to(Family::V6, port), &stun(port)), Some(true));
    }

    #[test]
    fn everything_else_is_dropped() {
        let port = 51820;
        let change = |at: usize, to: u8| {
            let mut datagram = stun(port);
            datagram[at] = to;
            datagram
        };
        let mut wireguard = stun(port);
        wireguard[8..16].copy_from_slice(&[4, 0, 0, 0, 1, 2, 3, 4]);
        let cases = [
            ("another port", change(3, 0)),
            ("no cookie", change(15, 0x43)),
            ("ChannelData's bits", change(8, 0x40)),
            ("WireGuard", wireguard),
            ("cut within the cookie", stun(port)[..15].to_vec()),
            ("a header alone", stun(port)[..8].to_vec()),
            ("nothing", Vec::new()),
        ];
        for (what, datagram) in cases {
            let v4 = with_ip_header(5, &datagram);
            assert_eq!(
                accepts(&stun_to(Family::V4, port), &v4),
                Some(false),
                "{what}"
            );
            let v6 = accepts(&stun_to(Family::V6, port), &datagram);
            assert_eq!(v6, Some(false), "{what}");
        }
    }

    /// Written out by hand after linux/filter.h and linux/bpf_common.h.
    #[test]
    fn the_bytes_are_these() {
        let raw = stun_to(Family::V4, 51820).map(|i| (i.code, i.jt, i.jf, i.k));
        let expected = [
            (0xb1, 0, 0, 0),
            (0x48, 0, 0, 2),
            (0x15, 0, 5, 51820),
            (0x40, 0, 0, 12),
            (0x15, 0, 3, 0x2112_a442),
            (0x50, 0, 0, 8),
            (0x45, 1, 0, 0xc0),
            (0x06, 0, 0, 0xffff_ffff),
            (0x06, 0, 0, 0),
        ];
        assert_eq!(raw, expected);
        let first = stun_to(Family::V6, 51820)[0];
        assert_eq!((first.code, first.k), (0x01, 0));
    }

    /// A datagram from WireGuard's port behind an IP header.
    fn sent(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = packet::header(port, 9, payload.len()).unwrap().to_vec();
        datagram.extend(payload);
        let mut header = if v6 { vec![0; 40] } else { vec![0; 24] };
        header[0] = if v6 { 0x60 } else { 0x46 };
        header[if v6 { 6 } else { 9 }] = 17;
        [header, datagram].concat()
    }

    fn initiation() -> Vec<u8> {
        [&[1, 0, 0, 0][..], &[9; INITIATION_LEN - 4]].concat()
    }

    #[test]
    fn initiations_that_leave_are_overheard_and_nothing_else() {
        const OUT: u8 = libc::PACKET_OUTGOING;
        let program = initiations_from(51820);
        let v4 = sent(false, 51820, &initiation());
        let v6 = sent(true, 51820, &initiation());
        let passes = |packet: &[u8], beside| accepts_sent(&program, packet, beside);
        assert_eq!(passes(&v4, (OUT, libc::ETH_P_IP)), Some(true));
        assert_eq!(passes(&v6, (OUT, libc::ETH_P_IPV6)), Some(true));
        let change = |at: usize, to: u8| {
            let mut packet = v4.clone();
            packet[at] = to;
            packet
        };
        let response = [&[2, 0, 0, 0][..], &[9; 88]].concat();
        let data = [&[4, 0, 0, 0][..], &[9; INITIATION_LEN - 4]].concat();
        let cases = [
            ("comes in", v4.clone(), (0, libc::ETH_P_IP)),
            ("is ARP", v4.clone(), (OUT, libc::ETH_P_ARP)),
            ("is TCP", change(9, 6), (OUT, libc::ETH_P_IP)),
            ("is a later fragment", change(7, 1), (OUT, libc::ETH_P_IP)),
            (
                "another port",
                sent(false, 51821, &initiation()),
                (OUT, libc::ETH_P_IP),
            ),
            (
                "a response",
                sent(false, 51820, &response),
                (OUT, libc::ETH_P_IP),
            ),
            ("data", sent(true, 51820, &data), (OUT, libc::ETH_P_IPV6)),
            (
                "longer",
                sent(false, 51820, &[initiation(), vec![0]].concat()),
                (OUT, libc::ETH_P_IP),
            ),
            ("cut", v4[..30].to_vec(), (OUT, libc::ETH_P_IP)),
            ("nothing", Vec::new(), (OUT, libc::ETH_P_IP)),
        ];
        for (what, packet, beside) in cases {
            assert_eq!(passes(&packet, beside), Some(false), "{what}");
        }
    }
}
