//! The classic BPF programs of the raw socket: what is not STUN to our port is dropped by the kernel
//! before it is copied, WireGuard's data above all.

use libc::sock_filter;

use crate::io::udp::Family;

/// RFC 8489 §5.
pub(super) const MAGIC_COOKIE: u32 = 0x2112_a442;
/// The two most significant bits of a STUN message are zero (RFC 8489 §5).
const NOT_STUN_BITS: u32 = 0xc0;
/// Bytes of the packet that an accepted one keeps: more than any has.
const WHOLE: u32 = u32::MAX;

/// Offsets in the UDP datagram.
const DESTINATION_PORT: u32 = 2;
const FIRST_BYTE: u32 = 8;
const COOKIE: u32 = 12;

const LOAD_IP_HEADER_LEN: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_IND) as u16;
const LOAD_X: u16 = (libc::BPF_LDX | libc::BPF_IMM) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
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
        let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
        let load = |at: u32, len: usize| -> Option<u32> {
            let bytes = packet.get(at as usize..at as usize + len)?;
            Some(bytes.iter().fold(0, |sum, &b| (sum << 8) | u32::from(b)))
        };
        loop {
            let i = program.get(at)?;
            at += 1;
            let from_packet = match i.code {
                LOAD_IP_HEADER_LEN => load(i.k, 1),
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
                LOAD_BYTE | LOAD_HALF | LOAD_WORD => a = value,
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
}
