use std::net::IpAddr;
use std::time::Instant;

use super::super::inbound::{DropReason, MessageKind, Verdict};
use super::super::vnet::{Gso, VnetHeader};
use super::super::*;
use super::*;

const MTU: usize = 1420;
pub(super) const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

pub(super) struct Node {
    pub(super) tunnels: Tunnels,
    pub(super) device: FakeDevice,
    pub(super) wire: Wire,
}

impl Node {
    pub(super) fn new(key: u8, offload: Offload) -> Self {
        Self {
            tunnels: Tunnels::new([key; 32], MTU, Instant::now()),
            device: FakeDevice {
                offload,
                ..FakeDevice::default()
            },
            wire: Wire::default(),
        }
    }

    pub(super) fn add(&mut self, peer: &Node, allowed: &[&str], psk: Option<[u8; 32]>) -> PeerId {
        self.tunnels
            .add_peer(PeerConfig {
                public_key: peer.tunnels.public_key(),
                preshared_key: psk,
                allowed_ips: allowed.iter().map(|p| p.parse().unwrap()).collect(),
                persistent_keepalive: None,
            })
            .unwrap()
    }

    pub(super) fn handle(&mut self, datagram: &[u8]) -> Verdict {
        self.tunnels.handle_datagram(
            SOURCE,
            datagram,
            Instant::now(),
            &mut self.device,
            &mut self.wire,
        )
    }

    pub(super) fn take_sent(&mut self) -> Vec<Vec<u8>> {
        let mut sent = std::mem::take(&mut self.wire.replies);
        sent.append(&mut self.wire.datagrams);
        sent
    }

    fn inject(&mut self, packets: impl IntoIterator<Item = Vec<u8>>) {
        self.device.inbox.extend(
            packets
                .into_iter()
                .map(|p| with_vnet(VnetHeader::default(), &p)),
        );
        while let TunRead::More = self.tunnels.handle_device(&mut self.device, &mut self.wire) {}
        assert!(self.device.inbox.is_empty());
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        self.tunnels.flush(&mut self.device);
        std::mem::take(&mut self.device.outbox)
            .iter()
            .map(|w| without_vnet(w).1.to_vec())
            .collect()
    }
}

/// Carries everything to and fro until both are silent; returns what each was told.
pub(super) fn exchange(a: &mut Node, b: &mut Node) -> (Vec<Verdict>, Vec<Verdict>) {
    let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
    loop {
        let (from_a, from_b) = (a.take_sent(), b.take_sent());
        if from_a.is_empty() && from_b.is_empty() {
            return (to_a, to_b);
        }
        to_b.extend(from_a.iter().map(|d| b.handle(d)));
        to_a.extend(from_b.iter().map(|d| a.handle(d)));
    }
}

fn pair() -> (Node, Node, PeerId, PeerId) {
    let mut a = Node::new(1, ALL);
    let mut b = Node::new(2, ALL);
    let of_b = a.add(&b, &["10.0.0.2/32", "fd00::2/128"], Some([9; 32]));
    let of_a = b.add(&a, &["10.0.0.1/32", "fd00::1/128"], Some([9; 32]));
    (a, b, of_b, of_a)
}

fn connected() -> (Node, Node, PeerId, PeerId) {
    let (mut a, mut b, of_b, of_a) = pair();
    assert!(a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire));
    exchange(&mut a, &mut b);
    (a, b, of_b, of_a)
}

fn authenticated(peer: PeerId, kind: MessageKind) -> Verdict {
    Verdict::Authenticated { peer, kind }
}

#[test]
fn a_handshake_tells_each_side_what_it_proved() {
    let (mut a, mut b, of_b, of_a) = pair();
    let now = Instant::now();
    assert!(a.tunnels.start_handshake(of_b, now, &mut a.wire));
    assert!(
        !a.tunnels.start_handshake(of_b, now, &mut a.wire),
        "no two at once"
    );
    let (to_a, to_b) = exchange(&mut a, &mut b);
    assert_eq!(
        to_b,
        [
            authenticated(of_a, MessageKind::Initiation),
            authenticated(of_a, MessageKind::Keepalive)
        ]
    );
    assert_eq!(to_a, [authenticated(of_b, MessageKind::Response)]);
    for (node, peer) in [(&a, of_b), (&b, of_a)] {
        let stats = node.tunnels.stats(peer, Instant::now()).unwrap();
        assert!(stats.last_handshake.is_some() && stats.rx_bytes > 0 && stats.tx_bytes > 0);
    }
}

#[test]
fn packets_that_waited_for_the_session_arrive_in_order() {
    let (mut a, mut b, of_b, _) = pair();
    let packets: Vec<Vec<u8>> = (0..20)
        .map(|i| udp("10.0.0.1", "10.0.0.2", &[i; 10]))
        .collect();
    a.device.offload = Offload::default();
    b.device.offload = Offload::default();
    a.inject(packets.clone());
    assert_eq!(a.wire.datagrams.len(), 1, "one initiation for all");
    exchange(&mut a, &mut b);
    assert_eq!(b.received(), packets);
    assert!(a.tunnels.peer(of_b).is_some_and(|p| !p.queued));
}

#[test]
fn a_responders_queue_leaves_once_the_session_is_confirmed() {
    let (mut a, mut b, of_b, _) = pair();
    let packets: Vec<Vec<u8>> = (0..5)
        .map(|i| udp("10.0.0.2", "10.0.0.1", &[i; 10]))
        .collect();
    b.inject(packets.clone());
    b.wire = Wire::default(); // Its own initiation is lost.
    a.device.offload = Offload::default();
    a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire);
    exchange(&mut a, &mut b);
    assert_eq!(a.received(), packets);
}

#[test]
fn handshakes_that_cross_under_traffic_end_in_a_session() {
    let (mut a, mut b, of_b, of_a) = pair();
    a.device.offload = Offload::default();
    b.device.offload = Offload::default();
    let now = Instant::now();
    a.tunnels.start_handshake(of_b, now, &mut a.wire);
    b.tunnels.start_handshake(of_a, now, &mut b.wire);
    let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
    let mut initiations = 0;
    // Both send a packet in each half of a round trip, which is how long a datagram takes.
    for i in 0..8u8 {
        let (from_a, from_b) = (a.take_sent(), b.take_sent());
        initiations += from_a.iter().chain(&from_b).filter(|d| d[0] == 1).count();
        for datagram in &from_a {
            b.handle(datagram);
        }
        for datagram in &from_b {
            a.handle(datagram);
        }
        to_b.push(udp("10.0.0.1", "10.0.0.2", &[i; 10]));
        to_a.push(udp("10.0.0.2", "10.0.0.1", &[i; 10]));
        a.inject(to_b.last().cloned());
        b.inject(to_a.last().cloned());
    }
    exchange(&mut a, &mut b);
    assert_eq!(initiations, 2);
    assert_eq!((a.received(), b.received()), (to_a, to_b));
}

#[test]
fn a_lost_answer_holds_packets_up_for_a_second() {
    let (mut a, mut b, of_b, _) = pair();
    b.device.offload = Offload::default();
    a.device.offload = Offload::default();
    a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire);
    let initiation = a.take_sent();
    let answered = Instant::now();
    b.handle(&initiation[0]);
    assert_eq!(b.take_sent().len(), 1, "its answer is lost");
    let packets: Vec<Vec<u8>> = (0..5)
        .map(|i| udp("10.0.0.2", "10.0.0.1", &[i; 10]))
        .collect();
    b.inject(packets.clone());
    b.tunnels
        .handle_timeout(answered + CONFIRMATION / 2, &mut b.wire);
    assert!(b.take_sent().is_empty(), "the session may yet be confirmed");
    b.tunnels
        .handle_timeout(Instant::now() + CONFIRMATION, &mut b.wire);
    assert_eq!(b.wire.datagrams.len(), 1, "an initiation of its own");
    exchange(&mut a, &mut b);
    assert_eq!(a.received(), packets);
}

#[test]
fn a_large_tcp_packet_crosses_as_one_run_and_is_joined_again() {
    for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let (mut a, mut b, of_b, of_a) = connected();
        let tcp = Tcp::new(from, to, 77, bytes(30 * 1300 + 5));
        let packet = tcp.bytes();
        let start = if from == "10.0.0.1" { 20u16 } else { 40 };
        let vnet = VnetHeader {
            needs_csum: true,
            gso: if start == 20 { Gso::TcpV4 } else { Gso::TcpV6 },
            hdr_len: 0,
            gso_size: 1300,
            csum_start: start,
            csum_offset: 16,
        };
        a.wire = Wire::default();
        a.device.inbox.push_back(with_vnet(vnet, &packet));
        a.tunnels.handle_device(&mut a.device, &mut a.wire);
        // Padded to 16 bytes, under the MTU, and 32 of WireGuard's.
        let segment = (1300 + usize::from(start) + 32).next_multiple_of(16) + 32;
        assert_eq!(a.wire.runs.len(), 1);
        assert_eq!((a.wire.runs[0].0, a.wire.runs[0].2), (of_b, segment));
        let sent = a.take_sent();
        assert_eq!(sent.len(), 31);
        for datagram in &sent {
            assert_eq!(b.handle(datagram), authenticated(of_a, MessageKind::Data));
        }
        b.tunnels.flush(&mut b.device);
        assert_eq!(b.device.outbox.len(), 1);
        let (vnet, joined) = without_vnet(&b.device.outbox[0]);
        assert_eq!(vnet.gso_size, 1300);
        assert_eq!(joined.len(), packet.len());
        assert_eq!(
            joined[usize::from(start) + 32..],
            packet[usize::from(start) + 32..]
        );
    }
}

#[test]
fn padding_is_to_sixteen_bytes_and_never_past_the_mtu() {
    let (mut a, _b, _, _) = connected();
    for (len, sealed) in [
        (100, 112 + 32),
        (112, 112 + 32),
        (1409, 1420 + 32),
        (1416, 1420 + 32),
        (1420, 1420 + 32),
    ] {
        a.wire = Wire::default();
        a.inject([udp("10.0.0.1", "10.0.0.2", &bytes(len - 28))]);
        assert_eq!(a.wire.datagrams[0].len(), sealed, "{len}");
    }
}

#[test]
fn equal_packets_share_a_send_and_a_longer_one_or_another_peer_starts_a_new_one() {
    let (mut a, b, of_b, _) = connected();
    let c = Node::new(3, ALL);
    let of_c = a.add(&c, &["10.0.0.3/32"], None);
    a.wire = Wire::default();
    let to_b = |len: usize| udp("10.0.0.1", "10.0.0.2", &bytes(len));
    a.inject([
        to_b(1000),
        to_b(1000),
        to_b(100),
        to_b(100),
        to_b(1000),
        udp("10.0.0.1", "10.0.0.3", b"x"),
        to_b(1000),
    ]);
    let counts: Vec<(PeerId, usize)> = a
        .wire
        .runs
        .iter()
        .map(|(p, len, size)| (*p, len.div_ceil(*size)))
        .collect();
    // The one to c has no session yet: its initiation goes at once.
    assert_eq!(
        counts,
        [(of_b, 3), (of_b, 1), (of_b, 1), (of_c, 1), (of_b, 1)]
    );
    a.wire = Wire::default();
    a.inject((0..60).map(|_| to_b(1392)));
    let counts: Vec<usize> = a
        .wire
        .runs
        .iter()
        .map(|(_, len, size)| len.div_ceil(*size))
        .collect();
    // With 4 bytes each for a channel's header, 44 segments of 1452 bytes fill 65,507.
    assert_eq!(counts, [44, 16]);
    drop(b);
}

#[test]
fn loss_reordering_and_duplicates_harm_nothing() {
    let (mut a, mut b, _, of_a) = connected();
    b.device.offload = Offload::default();
    let packets: Vec<Vec<u8>> = (0..200u8)
        .map(|i| udp("10.0.0.1", "10.0.0.2", &[i; 50]))
        .collect();
    a.inject(packets.clone());
    let sent = a.take_sent();
    // A shuffle that is the same each time; every seventh is lost, every third comes twice.
    let order: Vec<usize> = (0..200)
        .map(|i| (i * 77) % 200)
        .filter(|i| i % 7 != 0)
        .collect();
    let mut expected = Vec::new();
    for i in order {
        assert_eq!(b.handle(&sent[i]), authenticated(of_a, MessageKind::Data));
        if i % 3 == 0 {
            assert_eq!(b.handle(&sent[i]), Verdict::Duplicate { peer: of_a });
        }
        expected.push(packets[i].clone());
    }
    assert_eq!(b.received(), expected);
}

#[test]
fn a_new_handshake_takes_over_while_old_packets_still_arrive() {
    let (mut a, mut b, of_b, of_a) = connected();
    a.device.offload = Offload::default();
    b.device.offload = Offload::default();
    for round in 0..20u8 {
        a.inject([udp("10.0.0.1", "10.0.0.2", &[round; 20])]);
        let old = a.take_sent();
        // Either side starts; the kernel's limit on initiations is kept by waiting it out.
        std::thread::sleep(MIN_HANDSHAKE_INTERVAL);
        let (node, peer) = if round % 2 == 0 {
            (&mut a, of_b)
        } else {
            (&mut b, of_a)
        };
        assert!(
            node.tunnels
                .start_handshake(peer, Instant::now(), &mut node.wire)
        );
        exchange(&mut a, &mut b);
        assert_eq!(
            b.handle(&old[0]),
            authenticated(of_a, MessageKind::Data),
            "round {round}"
        );
        b.inject([udp("10.0.0.2", "10.0.0.1", &[round; 20])]);
        exchange(&mut a, &mut b);
        assert_eq!(
            (a.received().len(), b.received().len()),
            (1, 1),
            "round {round}"
        );
    }
}

#[test]
fn a_source_that_is_not_the_peers_is_dropped() {
    let (mut a, mut b, _, of_a) = connected();
    a.inject([
        udp("10.0.0.9", "10.0.0.2", b"spoofed"),
        udp("fd00::9", "fd00::2", b"spoofed"),
    ]);
    let sent = a.take_sent();
    assert_eq!(sent.len(), 2);
    for datagram in sent {
        assert_eq!(b.handle(&datagram), authenticated(of_a, MessageKind::Data));
    }
    assert!(b.received().is_empty());
    assert_eq!(b.tunnels.counters().wrong_source, 2);
    a.inject([udp("10.0.0.1", "10.0.0.77", b"nobody's"), vec![0xff; 40]]);
    assert_eq!(
        (
            a.tunnels.counters().no_peer,
            a.tunnels.counters().bad_from_device
        ),
        (1, 1)
    );
}

#[test]
fn peers_come_and_go() {
    let (mut a, mut b, of_b, of_a) = connected();
    let config = |key| PeerConfig {
        public_key: key,
        preshared_key: None,
        allowed_ips: vec!["10.0.0.2/32".parse().unwrap()],
        persistent_keepalive: None,
    };
    let own = a.tunnels.public_key();
    assert_eq!(
        a.tunnels.add_peer(config(own)),
        Err(AddPeerError::OwnKey(own))
    );
    let key = b.tunnels.public_key();
    assert_eq!(
        a.tunnels.add_peer(config(key)),
        Err(AddPeerError::Exists(key))
    );
    b.inject([udp("10.0.0.2", "10.0.0.1", b"late")]);
    let late = b.take_sent();
    a.tunnels.remove_peer(of_b);
    assert_eq!(
        a.handle(&late[0]),
        Verdict::Dropped(DropReason::UnknownReceiver)
    );
    assert!(a.tunnels.find(&key).is_none() && a.tunnels.poll_timeout().is_none());
    a.inject([udp("10.0.0.1", "10.0.0.2", b"nobody")]);
    assert!(a.take_sent().is_empty());
    // Back again, without its key mixed in: the handshake fails until both agree.
    let of_b = a.tunnels.add_peer(config(key)).unwrap();
    a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire);
    let (to_a, _) = exchange(&mut a, &mut b);
    assert_eq!(to_a, [Verdict::Dropped(DropReason::Unauthenticated)]);
    b.tunnels
        .set_allowed_ips(of_a, vec!["10.9.0.0/16".parse().unwrap()]);
    b.inject([udp("10.0.0.2", "10.0.0.1", b"moved")]);
    assert_eq!(b.tunnels.counters().no_peer, 1);
}

#[test]
fn timers_retry_and_are_looked_at_four_times_a_second() {
    let (mut a, _b, _, _) = pair();
    let start = a.tunnels.poll_timeout().unwrap();
    a.tunnels
        .handle_timeout(start - Duration::from_millis(1), &mut a.wire);
    assert_eq!(a.tunnels.poll_timeout(), Some(start));
    a.tunnels.handle_timeout(start, &mut a.wire);
    assert_eq!(a.tunnels.poll_timeout(), Some(start + TIMER_INTERVAL));
    assert!(a.take_sent().is_empty(), "a peer without traffic is silent");
}
