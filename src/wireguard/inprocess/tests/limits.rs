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
