use std::collections::BTreeMap;
use std::net::SocketAddr;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use super::indices::{INDEX_LIFE, MAX_INDICES};
use super::*;
use crate::core::node::RelayId;

const A: PeerId = PeerId(1);
const B: PeerId = PeerId(2);

/// Two ends of a real WireGuard session each: ours towards the peer, and the peer's.
struct Pair {
    ours: Tunn,
    theirs: Tunn,
    key: PublicKey,
}

impl Pair {
    fn new(peer: u64, our_index: u32, their_index: u32) -> Self {
        let (our_secret, their_secret) = (secret(0), secret(peer));
        let public = |secret: &x25519::StaticSecret| x25519::PublicKey::from(secret);
        let ours = Tunn::new(
            our_secret.clone(),
            public(&their_secret),
            None,
            None,
            our_index,
            None,
        );
        let key = PublicKey(public(&their_secret).to_bytes());
        let theirs = Tunn::new(
            their_secret,
            public(&our_secret),
            None,
            None,
            their_index,
            None,
        );
        Self { ours, theirs, key }
    }
}

fn secret(number: u64) -> x25519::StaticSecret {
    let mut bytes = [7; 32];
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    x25519::StaticSecret::from(bytes)
}

fn initiation(tunn: &mut Tunn) -> Vec<u8> {
    let mut buffer = [0; 256];
    sent(tunn.format_handshake_initiation(&mut buffer, true))
}

fn answer(tunn: &mut Tunn, datagram: &[u8]) -> Vec<u8> {
    let mut buffer = [0; 256];
    sent(tunn.decapsulate(None, datagram, &mut buffer))
}

fn data(tunn: &mut Tunn) -> Vec<u8> {
    let mut packet = [0; 64];
    packet[0] = 0x45;
    packet[3] = 64;
    let mut buffer = [0; 256];
    sent(tunn.encapsulate(&packet, &mut buffer))
}

fn sent(result: TunnResult<'_>) -> Vec<u8> {
    let TunnResult::WriteToNetwork(bytes) = result else {
        panic!("not sent: {result:?}");
    };
    bytes.to_vec()
}

fn outbound(slots: &mut Slots, slot: Ipv4Addr, datagram: &[u8], now: Instant) -> Vec<PeerId> {
    let message = Message::parse(datagram).expect("a message");
    match slots.recipients(slot, message, datagram, now) {
        Ok(Recipients::One(peer)) => vec![peer],
        Ok(Recipients::All(peers)) => peers,
        Err(_) => Vec::new(),
    }
}

fn inbound(
    slots: &mut Slots,
    from: Option<PeerId>,
    datagram: &[u8],
    now: Instant,
) -> Option<Sender> {
    let message = Message::parse(datagram).expect("a message");
    slots.sender(from, message, now).ok()
}

fn arrival(port: u16) -> Arrival {
    Arrival::Relay {
        relay: RelayId(0),
        from: SocketAddr::from(([192, 0, 2, 1], port)),
    }
}

/// The numbers of two secrets whose keys share a slot: among 2^12 one pair is expected.
fn sharing() -> (u64, u64) {
    let mut seen = BTreeMap::new();
    for number in 1..40_000 {
        let key = PublicKey(x25519::PublicKey::from(&secret(number)).to_bytes());
        if let Some(before) = seen.insert(slot_of(&key), number) {
            return (before, number);
        }
    }
    panic!("no two keys of 40,000 share a slot");
}

/// Two peers on one slot.
fn shared() -> (Slots, Ipv4Addr, Pair, Pair) {
    let (first, second) = sharing();
    let (a, b) = (Pair::new(first, 11, 21), Pair::new(second, 12, 22));
    let mut slots = Slots::default();
    slots.add(A, &a.key);
    slots.add(B, &b.key);
    let slot = slot_of(&a.key);
    assert_eq!(slots.slot(B), Some(slot));
    (slots, slot, a, b)
}

#[test]
fn slots_are_the_same_everywhere_and_never_in_use_otherwise() {
    // Pinned: it may never change, or nodes of two versions would not find each other.
    assert_eq!(
        slot_of(&PublicKey([0; 32])),
        Ipv4Addr::new(127, 171, 4, 186)
    );
    assert_eq!(
        slot_of(&PublicKey([255; 32])),
        Ipv4Addr::new(127, 243, 58, 67)
    );
    for number in 0..20_000u64 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        let [first, second, ..] = slot_of(&PublicKey(key)).octets();
        assert_eq!(first, 127);
        assert_ne!(second, 0);
    }
    assert_eq!(Ipv4Addr::from(FIRST_SLOT), Ipv4Addr::new(127, 1, 0, 0));
    let last = u64::from(FIRST_SLOT) + SLOTS - 1;
    let last = u32::try_from(last).expect("an address");
    assert_eq!(Ipv4Addr::from(last), Ipv4Addr::new(127, 255, 255, 254));
}

#[test]
fn a_slot_of_one_takes_whatever_is_sent_to_it() {
    let now = Instant::now();
    let mut a = Pair::new(1, 11, 21);
    let mut slots = Slots::default();
    slots.add(A, &a.key);
    let slot = slot_of(&a.key);
    let first = initiation(&mut a.ours);
    assert_eq!(outbound(&mut slots, slot, &first, now), [A]);
    // Also of a session that began before we did.
    let response = answer(&mut a.theirs, &first);
    answer(&mut a.ours, &response);
    let packet = data(&mut a.ours);
    assert_eq!(outbound(&mut slots, slot, &packet, now), [A]);
    assert_eq!(
        outbound(&mut slots, Ipv4Addr::new(127, 1, 2, 3), &packet, now),
        []
    );
    assert_eq!(slots.counters.unknown_slot, 1);
    slots.remove(A);
    assert_eq!(outbound(&mut slots, slot, &packet, now), []);
}

#[test]
fn two_keys_on_one_slot_are_told_apart_whoever_starts() {
    let now = Instant::now();
    let (mut slots, slot, mut a, mut b) = shared();
    // We start towards A.
    let first = initiation(&mut a.ours);
    assert_eq!(outbound(&mut slots, slot, &first, now), [A]);
    let response = answer(&mut a.theirs, &first);
    let sender = inbound(&mut slots, Some(A), &response, now).expect("A's");
    assert_eq!(
        (sender.peer, sender.slot, sender.in_session),
        (A, slot, true)
    );
    let keepalive = answer(&mut a.ours, &response);
    assert_eq!(outbound(&mut slots, slot, &keepalive, now), [A]);
    // B starts towards us.
    let first = initiation(&mut b.theirs);
    assert_eq!(
        inbound(&mut slots, Some(B), &first, now).map(|s| s.peer),
        Some(B)
    );
    let response = answer(&mut b.ours, &first);
    assert_eq!(outbound(&mut slots, slot, &response, now), [B]);
    let keepalive = answer(&mut b.theirs, &response);
    // From an address that is not known yet, by its index.
    assert_eq!(
        inbound(&mut slots, None, &keepalive, now).map(|s| s.peer),
        Some(B)
    );
    answer_quietly(&mut b.ours, &keepalive);
    for _ in 0..3 {
        let (to_a, to_b) = (data(&mut a.ours), data(&mut b.ours));
        assert_eq!(outbound(&mut slots, slot, &to_b, now), [B]);
        assert_eq!(outbound(&mut slots, slot, &to_a, now), [A]);
    }
    assert_eq!(slots.counters, SlotCounters::default());
}

fn answer_quietly(tunn: &mut Tunn, datagram: &[u8]) {
    let mut buffer = [0; 256];
    assert!(matches!(
        tunn.decapsulate(None, datagram, &mut buffer),
        TunnResult::Done
    ));
}

#[test]
fn sessions_older_than_we_go_to_all_who_share_the_slot() {
    let now = Instant::now();
    let (mut slots, slot, mut a, _) = shared();
    let first = initiation(&mut a.ours);
    let response = answer(&mut a.theirs, &first);
    let keepalive = answer(&mut a.ours, &response);
    assert_eq!(outbound(&mut slots, slot, &keepalive, now), [A, B]);
    assert_eq!(slots.counters.to_all, 1);
    // What A says goes by its address, and counts while no session of A's is known.
    let sender = inbound(&mut slots, Some(A), &data(&mut a.theirs), now).expect("A's");
    assert_eq!((sender.peer, sender.in_session), (A, true));
    // A handshake for neither goes to neither.
    let mut other = Pair::new(77, 13, 23);
    assert_eq!(
        outbound(&mut slots, slot, &initiation(&mut other.ours), now),
        []
    );
    assert_eq!(slots.counters.unknown_recipient, 1);
}

#[test]
fn the_session_decides_not_the_address() {
    let now = Instant::now();
    let (mut a, b) = (Pair::new(1, 11, 21), Pair::new(2, 12, 22));
    let mut slots = Slots::default();
    slots.add(A, &a.key);
    slots.add(B, &b.key);
    let first = initiation(&mut a.ours);
    outbound(&mut slots, slot_of(&a.key), &first, now);
    // A has moved to where B was: WireGuard knows A by A's slot.
    let response = answer(&mut a.theirs, &first);
    let sender = inbound(&mut slots, Some(B), &response, now).expect("A's");
    assert_eq!((sender.peer, sender.slot), (A, slot_of(&a.key)));
    // From A's address, of a session that A does not have: it may not keep a path up.
    let stray = [&[4, 0, 0, 0, 99, 99, 99, 99][..], &[0; 40]].concat();
    let sender = inbound(&mut slots, Some(A), &stray, now).expect("A's");
    assert!(!sender.in_session);
}

#[test]
fn strangers_are_dropped_and_counted() {
    let now = Instant::now();
    let mut a = Pair::new(1, 11, 21);
    let mut slots = Slots::default();
    slots.add(A, &a.key);
    let first = initiation(&mut a.theirs);
    assert_eq!(inbound(&mut slots, None, &first, now), None);
    assert_eq!(slots.counters.unknown_initiation, 1);
    let stray = [&[4, 0, 0, 0, 9, 9, 9, 9][..], &[0; 40]].concat();
    assert_eq!(inbound(&mut slots, None, &stray, now), None);
    assert_eq!(slots.counters.unknown_sender, 1);
    // An address of a peer that has just gone.
    assert_eq!(inbound(&mut slots, Some(B), &first, now), None);
}

#[test]
fn indices_live_as_long_as_sessions_and_are_few() {
    let start = Instant::now();
    let mut a = Pair::new(1, 11, 21);
    let mut slots = Slots::default();
    slots.add(A, &a.key);
    let slot = slot_of(&a.key);
    let first = initiation(&mut a.ours);
    outbound(&mut slots, slot, &first, start);
    let response = answer(&mut a.theirs, &first);
    let late = start + INDEX_LIFE;
    let soon = late - Duration::from_secs(1);
    assert!(inbound(&mut slots, None, &response, soon).is_some());
    assert!(inbound(&mut slots, None, &response, late).is_none());
    for _ in 0..10 * MAX_INDICES {
        outbound(&mut slots, slot, &initiation(&mut a.ours), start);
    }
    assert!(slots.by_index.len() <= MAX_INDICES);
    slots.remove(A);
    assert!(slots.by_index.is_empty() && slots.by_slot.is_empty() && slots.peers.is_empty());
}

/// Whoever shares a slot could name another's session as its own: the data would go astray.
#[test]
fn nobody_takes_the_index_of_another() {
    let now = Instant::now();
    let (mut slots, slot, mut a, mut b) = shared();
    let first = initiation(&mut a.theirs);
    inbound(&mut slots, Some(A), &first, now);
    let response = answer(&mut a.ours, &first);
    outbound(&mut slots, slot, &response, now);
    // B answers our initiation under A's index.
    let first = initiation(&mut b.ours);
    outbound(&mut slots, slot, &first, now);
    let mut forged = answer(&mut b.theirs, &first);
    let index = response[8..12].to_vec();
    forged[4..8].copy_from_slice(&index);
    inbound(&mut slots, Some(B), &forged, now);
    let packet = [&[4, 0, 0, 0][..], &index, &[0; 40]].concat();
    assert_eq!(outbound(&mut slots, slot, &packet, now), [A]);
}

#[test]
fn an_index_that_wireguard_draws_anew_is_the_new_peers() {
    let now = Instant::now();
    let (a, b) = (Pair::new(1, 11, 21), Pair::new(2, 12, 22));
    let mut slots = Slots::default();
    slots.add(A, &a.key);
    slots.add(B, &b.key);
    let again = [&[1, 0, 0, 0, 5, 5, 5, 5][..], &[0; 140]].concat();
    outbound(&mut slots, slot_of(&a.key), &again, now);
    outbound(&mut slots, slot_of(&b.key), &again, now);
    let packet = [&[4, 0, 0, 0, 5, 5, 5, 5][..], &[0; 40]].concat();
    assert_eq!(
        inbound(&mut slots, None, &packet, now).map(|s| s.peer),
        Some(B)
    );
    // A's history may not take it away.
    for sender in 0..MAX_INDICES as u8 {
        let next = [&[1, 0, 0, 0, sender, 0, 0, 0][..], &[0; 140]].concat();
        outbound(&mut slots, slot_of(&a.key), &next, now);
    }
    assert_eq!(
        inbound(&mut slots, None, &packet, now).map(|s| s.peer),
        Some(B)
    );
}

#[test]
fn what_waits_for_a_path_is_the_latest_initiation_and_not_for_ever() {
    let start = Instant::now();
    let mut a = Pair::new(1, 11, 21);
    let mut slots = Slots::default();
    slots.add(A, &a.key);
    let (first, second) = (initiation(&mut a.ours), initiation(&mut a.ours));
    slots.hold(A, &first, start);
    slots.hold(A, &second, start);
    slots.hold(A, &second[..40], start);
    assert_eq!(
        slots.take_held(A, start).as_deref().map(|h| &h[..]),
        Some(&second[..])
    );
    assert_eq!(slots.take_held(A, start), None);
    slots.hold(A, &first, start);
    assert_eq!(slots.take_held(A, start + HELD_TIME), None);
    slots.note_asked(A, arrival(1), start);
    slots.note_asked(A, arrival(2), start);
    assert_eq!(
        slots.take_asked(A, start + Duration::from_secs(1)),
        Some(arrival(2))
    );
    assert_eq!(slots.take_asked(A, start), None);
    slots.note_asked(A, arrival(1), start);
    assert_eq!(slots.take_asked(A, start + ANSWER_TIME), None);
}

#[test]
fn spans_are_cut_where_the_session_changes() {
    let datagram = |kind: u8, index: u8, len: usize| {
        let mut bytes = vec![0; len];
        (bytes[0], bytes[4]) = (kind, index);
        bytes
    };
    let lens = |run: &[u8], size| -> Vec<(bool, usize)> {
        spans(run, size)
            .map(|span| (span.message.is_some(), span.bytes.len()))
            .collect()
    };
    let run = [
        datagram(4, 1, 148),
        datagram(4, 1, 148),
        datagram(4, 2, 148),
        datagram(1, 2, 148),
    ];
    assert_eq!(
        lens(&run.concat(), 148),
        [(true, 296), (true, 148), (true, 148)]
    );
    // A keepalive ends a run of data; STUN is nobody's here.
    let run = [datagram(4, 1, 100), datagram(4, 1, 32)];
    assert_eq!(lens(&run.concat(), 100), [(true, 132)]);
    let run = [datagram(0, 1, 100), datagram(0, 1, 100), datagram(4, 1, 64)];
    assert_eq!(
        lens(&run.concat(), 100),
        [(false, 100), (false, 100), (true, 64)]
    );
    assert_eq!(lens(&[], 100), []);
    assert_eq!(lens(&[4, 0, 0], 0), [(false, 1), (false, 1), (false, 1)]);
}

#[test]
fn only_messages_of_the_right_type_and_length_are_messages() {
    for len in 0..200 {
        for kind in 0..6 {
            let mut bytes = vec![0; len];
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let expected = match kind {
                1 => len == 148,
                2 => len == 92,
                3 => len == 64,
                4 => len >= 32,
                _ => false,
            };
            assert_eq!(
                Message::parse(&bytes).is_some(),
                expected,
                "{kind} of {len}"
            );
            if len > 1 {
                bytes[1] = 1;
                assert_eq!(Message::parse(&bytes), None);
            }
        }
    }
}

/// Both WireGuards start at once: one of the two initiations is dropped, by the same side always, and
/// not when the other has been answered or is long gone.
#[test]
fn of_two_initiations_that_cross_one_comes_through() {
    let now = Instant::now();
    let keys = [PublicKey([1; 32]), PublicKey([2; 32])];
    let peer = PeerId(0);
    let crossing = |own: usize, after: Duration| {
        let mut slots = Slots::default();
        slots.add(peer, &keys[1 - own]);
        slots.note_initiated(peer, now);
        slots.crosses(peer, &keys[own], now + after)
    };
    assert!(!crossing(0, Duration::ZERO));
    assert!(crossing(1, Duration::ZERO));
    assert!(!crossing(1, CROSSING));
    let mut slots = Slots::default();
    slots.add(peer, &keys[0]);
    assert!(
        !slots.crosses(peer, &keys[1], now),
        "nothing of ours is open"
    );
    let response = Message::Response {
        sender: 5,
        receiver: 9,
    };
    let initiation = Message::Initiation { sender: 9 };
    slots.learn_outbound(peer, initiation, now);
    slots.note_initiated(peer, now);
    slots.sender(None, response, now).unwrap();
    assert!(!slots.crosses(peer, &keys[1], now), "it was answered");
    assert_eq!(slots.counters.crossed, 0);
}
