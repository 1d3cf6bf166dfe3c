use std::time::Instant;

use super::super::inbound::{DropReason, Verdict};
use super::super::limiter::HANDSHAKES_PER_SECOND;
use super::tunnels::{Node, exchange};
use super::*;

#[test]
fn what_is_unknown_gets_no_answer() {
    let mut a = Node::new(1, ALL);
    let mut b = Node::new(2, ALL);
    let mut stranger = Node::new(3, ALL);
    a.add(&b, &["10.0.0.2/32"], None);
    b.add(&a, &["10.0.0.1/32"], None);
    let of_a = stranger.add(&a, &["10.0.0.1/32"], None);
    stranger
        .tunnels
        .start_handshake(of_a, Instant::now(), &mut stranger.wire);
    let initiation = stranger.take_sent().remove(0);
    let mut forged = initiation.clone();
    forged[50] ^= 1;
    let data = [&[4, 0, 0, 0, 1, 2, 3, 4][..], &[0; 40]].concat();
    let mut response = [0; 92];
    response[0] = 2;
    let mut cookie = [0; 64];
    cookie[0] = 3;
    let cases: [(&[u8], DropReason); 9] = [
        (&initiation, DropReason::UnknownPeer),
        (&forged, DropReason::Unauthenticated),
        (&data, DropReason::UnknownReceiver),
        (&response, DropReason::UnknownReceiver),
        (&cookie, DropReason::UnknownReceiver),
        (&initiation[..147], DropReason::Malformed),
        (&[], DropReason::Malformed),
        (&[4, 0, 0], DropReason::Malformed),
        (&[5; 148], DropReason::Malformed),
    ];
    for (datagram, reason) in cases {
        assert_eq!(a.handle(datagram), Verdict::Dropped(reason));
    }
    assert!(a.take_sent().is_empty());
}

#[test]
fn a_forged_packet_of_a_known_session_proves_nothing() {
    let mut a = Node::new(1, ALL);
    let mut b = Node::new(2, ALL);
    let of_b = a.add(&b, &["10.0.0.2/32"], None);
    b.add(&a, &["10.0.0.1/32"], None);
    a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire);
    let initiation = a.take_sent().remove(0);
    assert!(matches!(
        b.handle(&initiation),
        Verdict::Authenticated { .. }
    ));
    assert!(
        matches!(b.handle(&initiation), Verdict::Duplicate { .. }),
        "a replayed initiation"
    );
    let response = b.take_sent().remove(0);
    a.handle(&response);
    let mut keepalive = a.take_sent().remove(0);
    let last = keepalive.len() - 1;
    keepalive[last] ^= 1;
    assert_eq!(
        b.handle(&keepalive),
        Verdict::Dropped(DropReason::Unauthenticated)
    );
    keepalive[last] ^= 1;
    assert!(matches!(
        b.handle(&keepalive),
        Verdict::Authenticated { .. }
    ));
}

#[test]
fn under_load_a_cookie_is_demanded_and_then_taken() {
    let mut a = Node::new(1, ALL);
    let mut b = Node::new(2, ALL);
    let of_b = a.add(&b, &["10.0.0.2/32"], None);
    b.add(&a, &["10.0.0.1/32"], None);
    a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire);
    let initiation = a.take_sent().remove(0);
    let mut reasons = Vec::new();
    for _ in 0..2 * HANDSHAKES_PER_SECOND {
        reasons.push(b.handle(&initiation));
    }
    assert_eq!(
        reasons
            .iter()
            .filter(|v| **v == Verdict::Dropped(DropReason::CookieSent))
            .count() as u64,
        HANDSHAKES_PER_SECOND
    );
    let cookie = b.take_sent().pop().unwrap();
    assert_eq!(a.handle(&cookie), Verdict::CookieReply { peer: of_b });
    std::thread::sleep(super::super::MIN_HANDSHAKE_INTERVAL);
    assert!(a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire));
    let (to_a, to_b) = exchange(&mut a, &mut b);
    assert!(matches!(to_b[0], Verdict::Authenticated { .. }));
    assert!(matches!(
        to_a[0],
        Verdict::Dropped(_) | Verdict::Authenticated { .. }
    ));
    assert!(
        a.tunnels
            .stats(of_b, Instant::now())
            .unwrap()
            .last_handshake
            .is_some()
    );
}

/// Small, fast, the same each time (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len());
            bytes[at] = self.next() as u8;
        }
        if self.below(4) == 0 {
            bytes.truncate(self.below(bytes.len() + 1));
        }
    }
}

#[test]
fn hostile_datagrams_never_panic_and_are_never_answered() {
    let mut a = Node::new(1, ALL);
    let mut b = Node::new(2, ALL);
    let of_b = a.add(&b, &["10.0.0.2/32"], None);
    b.add(&a, &["10.0.0.1/32"], None);
    a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire);
    let initiation = a.take_sent().remove(0);
    b.handle(&initiation);
    let response = b.take_sent().remove(0);
    a.handle(&response);
    let keepalive = a.take_sent().remove(0);
    b.handle(&keepalive);
    let mut past_the_end = keepalive.clone();
    past_the_end[8..16].fill(0xff);
    assert_eq!(
        b.handle(&past_the_end),
        Verdict::Dropped(DropReason::Unauthenticated)
    );
    let mut random = Random(1);
    for _ in 0..20_000 {
        let mut datagram = match random.below(4) {
            0 => response.clone(),
            1 => keepalive.clone(),
            2 => [keepalive.clone(), vec![0; random.below(3000)]].concat(),
            _ => (0..=random.below(200))
                .map(|_| random.next() as u8)
                .collect(),
        };
        random.damage(&mut datagram);
        let verdict = b.handle(&datagram);
        assert!(
            !matches!(verdict, Verdict::Authenticated { .. }),
            "{datagram:?}"
        );
    }
    assert!(b.take_sent().is_empty());
}

/// A peer may send anything inside, and the device's user anything at all.
#[test]
fn hostile_inner_packets_never_panic_and_never_change_their_sender() {
    let mut a = Node::new(1, ALL);
    let mut b = Node::new(2, ALL);
    let of_b = a.add(&b, &["0.0.0.0/0", "::/0"], None);
    b.add(&a, &["10.0.0.1/32", "fd00::1/128"], None);
    a.tunnels.start_handshake(of_b, Instant::now(), &mut a.wire);
    exchange(&mut a, &mut b);
    let mut random = Random(2);
    for round in 0..5_000u32 {
        let mut inner = match random.below(4) {
            0 => Tcp::new("10.0.0.1", "10.0.0.2", round * 100, bytes(100)).bytes(),
            1 => Tcp::new("fd00::1", "fd00::2", round * 100, bytes(100)).bytes(),
            2 => udp("10.0.0.1", "10.0.0.2", &bytes(100)),
            _ => udp("fd00::1", "fd00::2", &bytes(100)),
        };
        random.damage(&mut inner);
        let mut vnet = [0; VNET_HEADER_LEN];
        if random.below(2) == 0 {
            vnet = std::array::from_fn(|i| {
                if i < 2 {
                    random.below(6) as u8
                } else {
                    random.below(64) as u8
                }
            });
        }
        a.device.inbox.push_back([vnet.as_slice(), &inner].concat());
        a.tunnels.handle_device(&mut a.device, &mut a.wire);
        for datagram in a.take_sent() {
            b.handle(&datagram);
        }
        if random.below(20) == 0 {
            b.tunnels.flush(&mut b.device);
        }
    }
    b.tunnels.flush(&mut b.device);
    let (written, counters) = (std::mem::take(&mut b.device.outbox), b.tunnels.counters());
    assert!(
        written.len() > 1000 && counters.wrong_source > 0 && counters.bad_inner > 0,
        "{counters:?}"
    );
    for packet in &written {
        let inner = &packet[VNET_HEADER_LEN..];
        let source: &[u8] = if inner[0] >> 4 == 4 {
            &inner[12..16]
        } else {
            &inner[8..24]
        };
        assert!(
            source == [10, 0, 0, 1] || (source[0] == 0xfd && source[15] == 1),
            "{source:?}"
        );
    }
}
