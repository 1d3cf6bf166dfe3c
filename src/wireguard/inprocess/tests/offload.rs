use super::super::coalesce::Coalescer;
use super::super::split::{BadOffload, split};
use super::super::vnet::{Gso, VnetHeader};
use super::*;

const V4: (&str, &str) = ("10.0.0.1", "10.0.0.2");
const V6: (&str, &str) = ("fd00::1", "fd00::2");

fn split_all(vnet: VnetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, BadOffload> {
    let mut buffer = [packet, &[0xee; 16]].concat();
    let mut out = Vec::new();
    split(vnet, &mut buffer, packet.len(), |segment, len| {
        out.push(segment[..len].to_vec());
        // As sealing does: what is emitted may be overwritten.
        segment[..len].fill(0xdd);
    })?;
    Ok(out)
}

fn join_all(packets: &[Vec<u8>], offload: Offload) -> Vec<Vec<u8>> {
    let mut coalescer = Coalescer::new();
    let mut device = FakeDevice {
        offload,
        ..FakeDevice::default()
    };
    for packet in packets {
        assert!(coalescer.has_room(packet.len()));
        coalescer.slot()[..packet.len()].copy_from_slice(packet);
        coalescer.push(packet.len(), offload);
    }
    coalescer.flush(&mut device);
    assert_eq!(coalescer.counters().packets, packets.len() as u64);
    device.outbox
}

/// The kernel's form of a large packet: the transport checksum holds the pseudo-header's sum.
fn large(tcp: &Tcp, mss: usize) -> (VnetHeader, Vec<u8>) {
    let mut packet = tcp.bytes();
    let (start, gso) = if tcp.from.is_ipv4() {
        (20, Gso::TcpV4)
    } else {
        (40, Gso::TcpV6)
    };
    let pseudo = checksum::pseudo_header(checksum::addresses(&packet), 6, packet.len() - start);
    packet[start + 16..start + 18].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
    let vnet = VnetHeader {
        needs_csum: true,
        gso,
        hdr_len: 9999,
        gso_size: mss as u16,
        csum_start: start as u16,
        csum_offset: 16,
    };
    (vnet, packet)
}

#[test]
fn tcp_is_cut_into_what_it_stands_for() {
    for (from, to) in [V4, V6] {
        let payload = bytes(10 * 1000 + 1);
        let mut tcp = Tcp::new(from, to, u32::MAX - 1500, payload.clone());
        tcp.flags = 0x10 | 0x08 | 0x01 | 0x80; // ACK PSH FIN CWR
        let (vnet, packet) = large(&tcp, 1000);
        let segments = split_all(vnet, &packet).unwrap();
        assert_eq!(segments.len(), 11);
        for (i, segment) in segments.iter().enumerate() {
            assert_intact(segment);
            let mut expected = tcp.clone();
            expected.sequence = tcp.sequence.wrapping_add(1000 * i as u32);
            expected.id = tcp.id + i as u16;
            expected.flags = 0x10 | if i == 0 { 0x80 } else { 0 } | if i == 10 { 0x09 } else { 0 };
            expected.payload = payload[1000 * i..payload.len().min(1000 * (i + 1))].to_vec();
            assert_eq!(*segment, expected.bytes(), "segment {i}");
        }
    }
}

#[test]
fn udp_is_cut_and_a_checksum_of_zero_is_never_sent() {
    for (from, to) in [V4, V6] {
        let payload = bytes(2500);
        let packet = udp(from, to, &payload);
        let start = packet.len() - 2508;
        let vnet = VnetHeader {
            needs_csum: true,
            gso: Gso::Udp,
            hdr_len: 0,
            gso_size: 1000,
            csum_start: start as u16,
            csum_offset: 6,
        };
        let mut segments = split_all(vnet, &packet).unwrap();
        assert_eq!(segments.len(), 3);
        for (i, (segment, part)) in segments.iter_mut().zip(payload.chunks(1000)).enumerate() {
            assert_intact(segment);
            assert_eq!(segment[start + 8..], *part);
            if start == 20 {
                assert_eq!(segment[4..6], (7 + i as u16).to_be_bytes());
            }
        }
        // A payload whose checksum comes out as 0: the complement of the sum without it.
        let mut zero = udp(from, to, &[0, 0]);
        let sum = [zero[start + 6], zero[start + 7]];
        zero[start + 8..].copy_from_slice(&sum);
        let pseudo = checksum::fold(checksum::pseudo_header(checksum::addresses(&zero), 17, 10));
        zero[start + 6..start + 8].copy_from_slice(&pseudo.to_ne_bytes());
        let vnet = VnetHeader {
            gso: Gso::None,
            ..vnet
        };
        let single = &split_all(vnet, &zero).unwrap()[0];
        assert_eq!(single[start + 6..start + 8], [0xff, 0xff]);
    }
}

#[test]
fn tiny_segments_are_cut_right_though_headers_are_longer() {
    let tcp = Tcp::new(V4.0, V4.1, 5, bytes(100));
    let (vnet, packet) = large(&tcp, 7);
    let segments = split_all(vnet, &packet).unwrap();
    assert_eq!(segments.len(), 15);
    segments.iter().for_each(|s| assert_intact(s));
    let payload: Vec<u8> = segments.iter().flat_map(|s| s[52..].to_vec()).collect();
    assert_eq!(payload, tcp.payload);
}

#[test]
fn contradictions_are_refused_and_never_panic() {
    let tcp = Tcp::new(V4.0, V4.1, 5, bytes(3000));
    let (vnet, packet) = large(&tcp, 1000);
    for bad in [
        VnetHeader {
            gso_size: 0,
            ..vnet
        },
        VnetHeader {
            csum_start: 0,
            ..vnet
        },
        VnetHeader {
            csum_start: 60_000,
            ..vnet
        },
        VnetHeader {
            gso: Gso::TcpV6,
            ..vnet
        },
        VnetHeader {
            gso: Gso::None,
            csum_start: 3051,
            ..vnet
        },
    ] {
        assert_eq!(split_all(bad, &packet), Err(BadOffload), "{bad:?}");
    }
    for len in 0..60 {
        let _ = split_all(vnet, &packet[..len]);
        let _ = split_all(
            VnetHeader {
                gso: Gso::Udp,
                ..vnet
            },
            &packet[..len],
        );
    }
}

#[test]
fn a_flow_is_joined_and_what_is_joined_cuts_back_into_the_same() {
    for (from, to) in [V4, V6] {
        let payload = bytes(30 * 1000 + 400);
        let packets: Vec<Vec<u8>> = payload
            .chunks(1000)
            .enumerate()
            .map(|(i, part)| {
                let mut tcp = Tcp::new(
                    from,
                    to,
                    u32::MAX - 4500u32.wrapping_sub(1000 * i as u32),
                    part.to_vec(),
                );
                tcp.id = 7 + i as u16;
                tcp.flags |= if i == 30 { 0x08 } else { 0 };
                tcp.bytes()
            })
            .collect();
        let written = join_all(&packets, ALL);
        assert_eq!(written.len(), 1);
        let (vnet, packet) = without_vnet(&written[0]);
        assert_eq!((vnet.gso_size, vnet.needs_csum), (1000, true));
        assert_eq!(usize::from(vnet.hdr_len), packet.len() - payload.len());
        assert_eq!(split_all(vnet, packet).unwrap(), packets);
    }
}

#[test]
fn udp_is_joined_only_where_the_device_takes_it() {
    for (from, to) in [V4, V6] {
        let packets: Vec<Vec<u8>> = bytes(3300).chunks(1000).map(|p| udp(from, to, p)).collect();
        let written = join_all(&packets, ALL);
        assert_eq!(written.len(), 1);
        let (vnet, packet) = without_vnet(&written[0]);
        assert_eq!(vnet.gso, Gso::Udp);
        let back = split_all(vnet, packet).unwrap();
        assert_eq!(back.len(), packets.len());
        let header = packets[0].len() - 1000;
        back.iter()
            .zip(&packets)
            .for_each(|(b, p)| assert_eq!(b[header..], p[header..]));
        back.iter().for_each(|b| assert_intact(b));
        assert_eq!(
            join_all(
                &packets,
                Offload {
                    tcp: true,
                    udp: false
                }
            )
            .len(),
            4
        );
        assert_eq!(join_all(&packets, Offload::default()).len(), 4);
    }
}

#[test]
fn lone_packets_have_an_empty_header_and_are_untouched() {
    let packets = [
        udp(V4.0, V4.1, b"x"),
        Tcp::new(V6.0, V6.1, 1, bytes(9)).bytes(),
        vec![0x45; 33],
    ];
    let written = join_all(&packets, ALL);
    for (packet, written) in packets.iter().zip(&written) {
        assert_eq!(written[..VNET_HEADER_LEN], [0; VNET_HEADER_LEN]);
        assert_eq!(written[VNET_HEADER_LEN..], *packet);
    }
}

/// Each change keeps the second packet from joining the first.
#[test]
fn what_differs_is_not_joined() {
    type Change = fn(&mut Vec<u8>);
    let fix = |packet: &mut Vec<u8>| {
        packet[10..12].fill(0);
        let sum = !checksum::fold(checksum::sum(&packet[..20]));
        packet[10..12].copy_from_slice(&sum.to_ne_bytes());
        packet[36..38].fill(0);
        let pseudo = checksum::pseudo_header(checksum::addresses(packet), 6, packet.len() - 20);
        let sum = !checksum::fold(pseudo + checksum::sum(&packet[20..]));
        packet[36..38].copy_from_slice(&sum.to_ne_bytes());
    };
    let changes: [(&str, Change); 13] = [
        ("tos", |p| p[1] = 4),
        ("df", |p| p[6] = 0),
        ("ttl", |p| p[8] = 63),
        ("source", |p| p[15] = 9),
        ("port", |p| p[21] ^= 1),
        ("gap", |p| p[27] = p[27].wrapping_add(1)),
        ("ack", |p| p[31] ^= 1),
        ("window", |p| p[35] ^= 1),
        ("options", |p| p[51] ^= 1),
        ("syn", |p| p[33] |= 2),
        ("fin", |p| p[33] |= 1),
        ("rst", |p| p[33] |= 4),
        ("ece", |p| p[33] |= 0x40),
    ];
    let first = Tcp::new(V4.0, V4.1, 1000, bytes(500)).bytes();
    let second = Tcp::new(V4.0, V4.1, 1500, bytes(500)).bytes();
    assert_eq!(join_all(&[first.clone(), second.clone()], ALL).len(), 1);
    for (name, change) in changes {
        let mut changed = second.clone();
        change(&mut changed);
        fix(&mut changed);
        let written = join_all(&[first.clone(), changed.clone()], ALL);
        assert_eq!(written.len(), 2, "{name}");
        assert_eq!(written[1][VNET_HEADER_LEN..], changed, "{name}");
    }
    let longer = Tcp::new(V4.0, V4.1, 1500, bytes(501)).bytes();
    assert_eq!(join_all(&[first, longer], ALL).len(), 2);
}

#[test]
fn corruption_is_passed_on_as_it_is_never_laundered() {
    for (from, to) in [V4, V6] {
        let packet = |i: u32| Tcp::new(from, to, 500 * i, bytes(500)).bytes();
        for corrupt in 0..3 {
            let mut packets = [packet(0), packet(1), packet(2)];
            let last = packets[corrupt].len() - 1;
            packets[corrupt][last] ^= 1;
            let written = join_all(&packets, ALL);
            let alone = written
                .iter()
                .filter(|w| w[VNET_HEADER_LEN..] == packets[corrupt])
                .count();
            assert_eq!(alone, 1, "packet {corrupt}");
        }
        let mut packets = [packet(0), packet(1)];
        packets[1][if from == V4.0 { 5 } else { 45 }] ^= 1;
        assert_eq!(join_all(&packets, ALL).len(), 2);
    }
}

#[test]
fn order_within_a_flow_is_kept_whatever_comes_between() {
    let of = |port: u16, i: u32, flags: u8| {
        let mut tcp = Tcp::new(V4.0, V4.1, 100 * i, bytes(100));
        tcp.ports.0 = port;
        tcp.flags = flags;
        tcp.bytes()
    };
    let mut fragment = of(1, 9, 0x10);
    fragment[6] = 0x20;
    // Flow 1 in order but for a PSH, a gap, a retransmission and a fragment; flow 2 in between.
    let packets = [
        of(1, 0, 0x10),
        of(2, 0, 0x10),
        of(1, 1, 0x18),
        of(1, 2, 0x10),
        of(2, 1, 0x10),
        of(1, 4, 0x10),
        of(1, 3, 0x10),
        of(1, 4, 0x10),
        fragment.clone(),
        of(1, 5, 0x10),
        of(2, 2, 0x10),
    ];
    let mut sequences = Vec::new();
    for written in join_all(&packets, ALL) {
        let (vnet, packet) = without_vnet(&written);
        for segment in split_all(vnet, packet).unwrap() {
            if segment[20..22] == 1u16.to_be_bytes() {
                sequences.push(
                    u32::from_be_bytes([segment[24], segment[25], segment[26], segment[27]]) / 100,
                );
            }
        }
    }
    assert_eq!(sequences, [0, 1, 2, 4, 3, 4, 9, 5]);
}

#[test]
fn a_joined_packet_is_at_most_65535_bytes() {
    let packets: Vec<Vec<u8>> = (0..60)
        .map(|i| Tcp::new(V4.0, V4.1, 1400 * i, bytes(1400)).bytes())
        .collect();
    let written = join_all(&packets, ALL);
    assert_eq!(written.len(), 2);
    assert_eq!(written[0].len(), VNET_HEADER_LEN + 52 + 46 * 1400);
}
