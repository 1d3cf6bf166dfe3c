//! UDP headers (RFC 768) by hand: a raw socket gives and takes them.

use std::net::IpAddr;

use super::filter::MAGIC_COOKIE;
use crate::io::udp::Family;
use crate::wireguard::inprocess::checksum;

/// Bytes of a UDP header.
pub(super) const HEADER_LEN: usize = 8;
const IPPROTO_UDP: u8 = 17;
/// Of a STUN message (RFC 8489 §5).
const STUN_HEADER_LEN: usize = 20;
/// What is sent instead of a checksum of zero, which would say that there is none.
const CHECKSUM_ZERO: u16 = 0xffff;

/// A UDP header without a checksum; `None` if the payload does not fit its length field.
pub(super) fn header(source: u16, destination: u16, payload: usize) -> Option<[u8; HEADER_LEN]> {
    let len = u16::try_from(HEADER_LEN + payload).ok()?;
    let [a, b] = source.to_be_bytes();
    let [c, d] = destination.to_be_bytes();
    let [e, f] = len.to_be_bytes();
    Some([a, b, c, d, e, f, 0, 0])
}

/// Puts the checksum into the header of a datagram from one address to another of its family.
pub(super) fn add_checksum(
    header: &mut [u8; HEADER_LEN],
    from: IpAddr,
    to: IpAddr,
    payload: &[u8],
) {
    header[6..8].fill(0);
    let mut addresses = [0; 32];
    let used = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            addresses[..4].copy_from_slice(&from.octets());
            addresses[4..8].copy_from_slice(&to.octets());
            8
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            addresses[..16].copy_from_slice(&from.octets());
            addresses[16..].copy_from_slice(&to.octets());
            32
        }
        // Nothing can be sent between families: the system call fails, whatever stands here.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return,
    };
    let len = HEADER_LEN + payload.len();
    let sum = checksum::pseudo_header(&addresses[..used], IPPROTO_UDP, len)
        + checksum::sum(header)
        + checksum::sum(payload);
    let folded = !checksum::fold(sum);
    let sent = if folded == 0 { CHECKSUM_ZERO } else { folded };
    header[6..8].copy_from_slice(&sent.to_ne_bytes());
}

/// What a datagram that arrived holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// Source port, never zero.
    pub(super) from: u16,
    /// Destination port.
    pub(super) to: u16,
    /// Where the payload starts in what was received.
    pub(super) start: usize,
    /// Bytes of payload.
    pub(super) len: usize,
    /// Bytes of its first STUN message. Where WireGuard's socket has UDP_GRO the kernel joins
    /// datagrams of one flow, and a raw socket sees them as one.
    pub(super) segment_size: usize,
}

/// Takes apart what a raw socket received; `None` if it is no datagram with STUN in it.
pub(super) fn open(family: Family, packet: &[u8]) -> Option<Content> {
    let start = match family {
        Family::V4 => ipv4_header_len(packet)?,
        Family::V6 => 0,
    };
    let (from, to, udp_len) = ports(packet.get(start..)?)?;
    let payload = packet
        .get(start..start.checked_add(udp_len)?)?
        .get(HEADER_LEN..)?;
    let head = payload.get(..STUN_HEADER_LEN)?;
    if from == 0 || head[4..8] != MAGIC_COOKIE.to_be_bytes() {
        return None;
    }
    let message = STUN_HEADER_LEN + usize::from(u16::from_be_bytes([head[2], head[3]]));
    Some(Content {
        from,
        to,
        start: start + HEADER_LEN,
        len: payload.len(),
        segment_size: message.min(payload.len()),
    })
}

/// Source and destination port of a datagram that came back in an ICMP error, from its UDP header on.
pub(super) fn returned_ports(returned: &[u8]) -> Option<(u16, u16)> {
    let (from, to, _) = ports(returned)?;
    Some((from, to))
}

/// Source, destination and length of a datagram, header included.
fn ports(datagram: &[u8]) -> Option<(u16, u16, usize)> {
    let header = datagram.first_chunk::<HEADER_LEN>()?;
    let [a, b, c, d, e, f, _, _] = *header;
    let len = usize::from(u16::from_be_bytes([e, f]));
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), len))
}

fn ipv4_header_len(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    (first >> 4 == 4).then_some(usize::from(first & 0xf) * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn message(attributes: usize) -> Vec<u8> {
        let mut message = vec![0, 1];
        message.extend((attributes as u16).to_be_bytes());
        message.extend(MAGIC_COOKIE.to_be_bytes());
        message.resize(STUN_HEADER_LEN + attributes, 9);
        message
    }

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let mut datagram = header(1234, 51820, payload.len()).unwrap().to_vec();
        datagram.extend(payload);
        datagram
    }

    /// The sum of RFC 1071 over the words as RFC 768 lists them: pseudo-header, header, "abc" and its
    /// padding.
    #[test]
    fn an_ipv4_checksum_is_the_sum_of_its_words() {
        let payload = *b"abc";
        let mut header = header(1234, 51820, payload.len()).unwrap();
        let words = [
            0x0a00u32, 0x0001, 0x0a00, 0x0002, 0x0011, 11, 1234, 51820, 11, 0x6162, 0x6300,
        ];
        let sum: u32 = words.iter().sum();
        let expected = !(((sum & 0xffff) + (sum >> 16)) as u16);
        add_checksum(&mut header, ip("10.0.0.1"), ip("10.0.0.2"), &payload);
        assert_eq!(u16::from_be_bytes([header[6], header[7]]), expected);
    }

    /// The receiver's rule: pseudo-header and datagram sum to all ones.
    #[test]
    fn every_checksum_verifies_and_none_is_zero() {
        for (from, to) in [
            ("192.0.2.1", "198.51.100.77"),
            ("2001:db8::1", "fd7a:91c:20::ffff"),
        ] {
            let (from, to) = (ip(from), ip(to));
            for value in 0..=u16::MAX {
                // Goes through every sum, so through the one that comes out as zero as well.
                let payload = value.to_be_bytes();
                let mut header = header(51820, 3478, payload.len()).unwrap();
                add_checksum(&mut header, from, to, &payload);
                assert_ne!(header[6..8], [0, 0]);
                let mut bytes = match (from, to) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
                    (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
                    _ => unreachable!(),
                };
                bytes.extend([0, IPPROTO_UDP, 0, 10]);
                bytes.extend(header);
                bytes.extend(payload);
                let sum: u32 = bytes
                    .chunks(2)
                    .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
                    .sum();
                assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{value}");
            }
        }
    }

    #[test]
    fn a_payload_past_the_length_field_has_no_header() {
        assert!(header(1, 2, 65_527).is_some());
        assert!(header(1, 2, 65_528).is_none());
    }

    #[test]
    fn what_arrives_is_taken_apart() {
        let six = datagram(&message(8));
        let content = open(Family::V6, &six).unwrap();
        let expected = Content {
            from: 1234,
            to: 51820,
            start: 8,
            len: 28,
            segment_size: 28,
        };
        assert_eq!(content, expected);
        let mut four = vec![0; 24];
        four[0] = 0x46;
        four.extend(&six);
        let start = 24 + HEADER_LEN;
        assert_eq!(open(Family::V4, &four), Some(Content { start, ..expected }));
    }

    #[test]
    fn datagrams_that_the_kernel_joined_are_told_apart_by_their_length() {
        let joined = [message(8), message(8), message(4)].concat();
        let content = open(Family::V6, &datagram(&joined)).unwrap();
        assert_eq!((content.len, content.segment_size), (28 + 28 + 24, 28));
    }

    #[test]
    fn a_message_that_lies_about_its_length_stays_within_the_datagram() {
        let mut long = message(8);
        long[2..4].copy_from_slice(&[0xff, 0xfc]);
        assert_eq!(open(Family::V6, &datagram(&long)).unwrap().segment_size, 28);
    }

    #[test]
    fn what_is_malformed_is_nothing() {
        let good = datagram(&message(0));
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        let mut from_zero = good.clone();
        from_zero[..2].fill(0);
        for (what, bytes) in [
            ("cut", good[..27].to_vec()),
            ("a length past the end", changed(5, 29)),
            ("a length within the header", changed(5, 7)),
            ("another cookie", changed(12, 0)),
            ("from port zero", from_zero),
            ("nothing", Vec::new()),
        ] {
            assert_eq!(open(Family::V6, &bytes), None, "{what}");
        }
        assert_eq!(open(Family::V4, &good), None, "no IPv4 header");
        assert_eq!(
            open(Family::V4, &[0x4f; 20]),
            None,
            "an IPv4 header past the end"
        );
        assert_eq!(returned_ports(&good[..7]), None);
        assert_eq!(returned_ports(&good[..8]), Some((1234, 51820)));
    }
}
