//! STUN from whom the node does not know, or who does not know the keys: no reply of any kind.

use wice::core::node::{Counters, Event};
use wice::core::stun::{
    TransactionId, encode_binding, encode_enclosed, encode_error, encode_success, integrity_key,
};

use wice_signaling::protocol::Session;

use crate::victim::{ATTACKER, FIRST, SECOND, Victim, check};

/// FINGERPRINT, the last attribute.
const FINGERPRINT: usize = 8;

/// No reply, nothing changed, and counted as `cause`.
fn ignored(victim: &mut Victim, datagram: &[u8], cause: fn(&Counters) -> u64) {
    let (looks, before) = (victim.looks(), cause(&victim.node.counters()));
    assert_eq!(victim.hears(datagram), []);
    assert_eq!(victim.looks(), looks);
    let counters = victim.node.counters();
    assert_eq!(cause(&counters), before + 1, "{counters:?}");
    assert_eq!(counters.checks_answered, 0);
}

#[test]
fn who_knows_the_keys_is_answered_once() {
    let mut victim = Victim::new();
    for (id, session) in [(1, FIRST), (2, SECOND)] {
        let check = victim.check(&victim.peer, session, id);
        // The reply; and perhaps a check of our own towards the new address.
        assert!(!victim.hears(&check).is_empty());
    }
    assert_eq!(victim.node.counters().checks_answered, 2);
}

#[test]
fn names_that_are_not_ours_or_nobodys() {
    let mut victim = Victim::new();
    let (own, peer) = victim.credentials(&victim.peer, FIRST);
    let (_, stranger) = victim.credentials(&victim.stranger, FIRST);
    let (ours, theirs) = (&own.ufrag, &peer.ufrag);
    let no_colon = format!("{ours}{theirs}");
    for username in [
        "",
        ":",
        "a:b",
        ours,
        &no_colon,
        &format!("{theirs}:{ours}"),
        &format!("{ours}x:{theirs}"),
        &format!("{ours}:"),
        &format!("{ours}:{}", stranger.ufrag),
        &format!("{ours}:{theirs}x"),
        &format!("{ours}:{theirs}:"),
        &format!("{ours}:{}", "A".repeat(400)),
        &format!("{ours}:ä{theirs}"),
    ] {
        let datagram = check(1, username, &own.password);
        ignored(&mut victim, &datagram, |counters| counters.strangers);
    }
    // As one asks a STUN server: we are none.
    let datagram = encode_binding(TransactionId::from(2));
    ignored(&mut victim, &datagram, |counters| counters.strangers);
}

#[test]
fn wrong_integrity_or_fingerprint() {
    let mut victim = Victim::new();
    let (own, peer) = victim.credentials(&victim.peer, FIRST);
    let username = format!("{}:{}", own.ufrag, peer.ufrag);
    let whole = victim.check(&victim.peer, FIRST, 1);
    for password in ["", "guess", &peer.password] {
        let datagram = check(1, &username, password);
        ignored(&mut victim, &datagram, |counters| counters.unauthentic);
    }
    let mut fingerprint = whole.clone();
    *fingerprint.last_mut().unwrap() ^= 1;
    ignored(&mut victim, &fingerprint, |counters| counters.malformed);
    // Without it: the length corrected, the integrity still right.
    let mut bare = whole[..whole.len() - FINGERPRINT].to_vec();
    let len = u16::try_from(bare.len() - 20).unwrap();
    bare[2..4].copy_from_slice(&len.to_be_bytes());
    ignored(&mut victim, &bare, |counters| counters.unauthentic);
    for len in 20..whole.len() {
        ignored(&mut victim, &whole[..len], |counters| counters.malformed);
    }
    // Every bit but those of the cookie and the type, without which it is not STUN at all.
    for bit in (0..whole.len() * 8).filter(|bit| !matches!(bit / 8, 0 | 4..8)) {
        let mut datagram = whole.clone();
        datagram[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(victim.hears(&datagram), [], "bit {bit}");
    }
    assert_eq!(victim.node.counters().checks_answered, 0);
}

#[test]
fn a_session_that_was_replaced_is_over() {
    let mut victim = Victim::new();
    let peer = victim.peer.clone();
    let session = |n: u8| Session([2 + n; 16]);
    assert_eq!(session(0), FIRST);
    // The last two have their agents: the old path carries traffic until the new one works. The
    // seven before them are remembered, and not heard again.
    for n in 1..=9 {
        let record = victim.sealed(&victim.advert(&peer, session(n), 5 + u64::from(n)), &peer);
        victim.take(&record).unwrap();
        victim.drain();
        for past in n.saturating_sub(8)..n - 1 {
            let datagram = victim.check(&peer, session(past), 100 + u128::from(past));
            ignored(&mut victim, &datagram, |counters| counters.superseded);
        }
    }
    let datagram = victim.check(&peer, session(9), 1);
    assert!(!victim.hears(&datagram).is_empty());
    assert_eq!(victim.node.counters().checks_answered, 1);
}

#[test]
fn answers_to_what_nobody_asked() {
    let mut victim = Victim::new();
    let (_, peer) = victim.credentials(&victim.peer, FIRST);
    let key = integrity_key(&peer.password);
    let id = TransactionId::from(77);
    for datagram in [
        encode_success(id, ATTACKER.into(), &key),
        encode_error(id, 487, &key),
    ] {
        ignored(&mut victim, &datagram, |counters| counters.strangers);
    }
}

#[test]
fn where_the_node_is_not() {
    let mut victim = Victim::new();
    let datagram = victim.check(&victim.peer, FIRST, 1);
    let elsewhere = [[192, 168, 1, 11], [127, 0, 0, 1]];
    for local in elsewhere {
        assert_eq!(victim.hears_at(&datagram, local.into()), []);
    }
    assert_eq!(victim.node.counters().no_base, 2);
}

/// An initiation that is enclosed in STUN is told of if it is the peer's, and costs no cryptography else.
#[test]
fn what_others_enclose_goes_nowhere() {
    let mut victim = Victim::new();
    let enclosed = |username: &str, password: &str, datagram: &[u8]| {
        let id = TransactionId::from(1);
        encode_enclosed(id, username, datagram, &integrity_key(password))
    };
    let (own, peer) = victim.credentials(&victim.peer, FIRST);
    let (_, stranger) = victim.credentials(&victim.stranger, FIRST);
    let (_, unknown) = victim.credentials(&victim.peer, SECOND);
    let named = |sender: &str| format!("{}:{sender}", own.ufrag);
    let by_peer = named(&peer.ufrag);
    let initiation = [1; 148];
    for datagram in [
        enclosed(&named(&stranger.ufrag), &own.password, &initiation),
        enclosed("a:b", &own.password, &initiation),
    ] {
        ignored(&mut victim, &datagram, |counters| counters.strangers);
    }
    // Where the peer has not been met: it may be somebody who has recorded it.
    let recorded = enclosed(&by_peer, &own.password, &initiation);
    ignored(&mut victim, &recorded, |counters| counters.strangers);

    let check = victim.check(&victim.peer, FIRST, 7);
    assert!(!victim.hears(&check).is_empty(), "it is met there now");
    for datagram in [
        enclosed(&by_peer, &peer.password, &initiation),
        enclosed(&named(&unknown.ufrag), &own.password, &initiation),
    ] {
        let before = victim.node.counters().unauthentic;
        assert_eq!(victim.hears(&datagram), []);
        assert_eq!(victim.node.counters().unauthentic, before + 1);
    }
    let told = |victim: &mut Victim| {
        let events = std::iter::from_fn(|| victim.node.poll_event());
        let initiation = |event| {
            if let Event::Initiation {
                arrival,
                initiation,
                ..
            } = event
            {
                Some((arrival, *initiation))
            } else {
                None
            }
        };
        events.filter_map(initiation).collect::<Vec<_>>()
    };
    // Neither a keepalive nor anything that is no initiation.
    for datagram in [&[][..], &[1; 147], &[1; 149]] {
        let enclosed = enclosed(&by_peer, &own.password, datagram);
        assert_eq!(victim.hears(&enclosed), []);
        assert_eq!(told(&mut victim), []);
    }
    let arrival = Victim::arrival(ATTACKER.into());
    for _ in 0..3 {
        victim.node.handle_datagram(arrival, &recorded, victim.now);
    }
    let latest = [(arrival, initiation)];
    assert_eq!(told(&mut victim), latest, "of a peer one waits");
}
