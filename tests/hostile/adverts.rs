//! Adverts that are not to be believed: each is refused for its own reason, counted, and changes
//! nothing.

use std::collections::BTreeSet;

use wice::core::node::{RecordOutcome, RecordRefusal};
use wice_signaling::protocol::xeddsa::{self, Domain};
use wice_signaling::protocol::{
    AdminKey, Invite, MAX_ADVERT_LEN, PrivateKey, PublicKey, RecordError, RevocationList, Session,
};

use crate::victim::{FIRST, SECOND, Victim, Z};

/// Where the signature begins, from the end.
const SIGNATURE: usize = 64;

fn refused(victim: &mut Victim, record: &[u8]) -> RecordRefusal {
    let (before, counted) = (victim.looks(), victim.node.counters());
    let refusal = victim.take(record).expect_err("it is taken");
    assert_eq!(victim.looks(), before, "{refusal}");
    assert_eq!(victim.drain(), 0, "something is sent or told: {refusal}");
    let counters = victim.node.counters();
    assert_eq!(counters.adverts_refused, counted.adverts_refused + 1);
    assert_eq!(counters.adverts_accepted, counted.adverts_accepted);
    refusal
}

fn next(victim: &Victim) -> Vec<u8> {
    victim.sealed(&victim.advert(&victim.peer, FIRST, 6), &victim.peer)
}

fn invalid(error: RecordError) -> RecordRefusal {
    RecordRefusal::Invalid(error)
}

#[test]
fn the_next_advert_would_be_taken() {
    let mut victim = Victim::new();
    let record = next(&victim);
    assert!(matches!(
        victim.take(&record),
        Ok(RecordOutcome::Updated(_))
    ));
    assert_eq!(victim.take(&record), Ok(RecordOutcome::Known));
    assert_eq!(victim.node.counters().adverts_refused, 0);
}

#[test]
fn forged() {
    let mut victim = Victim::new();
    let record = next(&victim);
    for bit in 0..record.len() * 8 {
        let mut forged = record.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(
            refused(&mut victim, &forged),
            RecordRefusal::Invalid(_)
        ));
    }
    // The peer's words under another's signature, and under its own for something else.
    let body = &record[..record.len() - SIGNATURE];
    for (key, domain) in [
        (victim.stranger.clone(), Domain::Advert),
        (victim.peer.clone(), Domain::Routes),
        (victim.peer.clone(), Domain::Hello),
    ] {
        let forged = [body, &xeddsa::sign(&key, domain, body, &Z)].concat();
        let refusal = refused(&mut victim, &forged);
        assert_eq!(refusal, invalid(RecordError::BadSignature));
    }
}

#[test]
fn cut_short_or_oversized() {
    let mut victim = Victim::new();
    let record = next(&victim);
    for len in 0..record.len() {
        assert!(matches!(
            refused(&mut victim, &record[..len]),
            RecordRefusal::Invalid(_)
        ));
    }
    let mut oversized = record.clone();
    oversized.resize(MAX_ADVERT_LEN + 1, 0);
    let refusal = refused(&mut victim, &oversized);
    assert_eq!(refusal, invalid(RecordError::TooLong));
    let huge = vec![1; 16 << 20];
    assert_eq!(refused(&mut victim, &huge), invalid(RecordError::TooLong));
}

#[test]
fn replayed() {
    let mut victim = Victim::new();
    let peer = victim.peer.clone();
    let stale = RecordRefusal::Stale(peer.public_key());
    let old = victim.sealed(&victim.advert(&peer, FIRST, 5), &peer);
    let newest = victim.sealed(&victim.advert(&peer, SECOND, 9), &peer);
    assert!(victim.take(&newest).is_ok());
    victim.drain();
    assert_eq!(refused(&mut victim, &old), stale);
    for sequence in [0, 4, 8] {
        let older = victim.sealed(&victim.advert(&peer, SECOND, sequence), &peer);
        assert_eq!(refused(&mut victim, &older), stale);
    }
    // The same sequence with something else in it.
    let mut twin = victim.advert(&peer, SECOND, 9);
    twin.name = "other".to_owned();
    let twin = victim.sealed(&twin, &peer);
    assert_eq!(refused(&mut victim, &twin), stale);
    // A session that was replaced does not come back, whatever its sequence.
    let back = victim.sealed(&victim.advert(&peer, FIRST, 10), &peer);
    assert_eq!(refused(&mut victim, &back), stale);
}

#[test]
fn of_another_network_or_of_none() {
    let mut victim = Victim::new();
    let stranger = victim.stranger.clone();
    let key = stranger.public_key();
    let not_member = RecordRefusal::NotMember(key);
    let foreign = AdminKey::from_seed(&[99; 32]);
    let invite = Invite::new(&foreign, &[98; 32], 1_900_000_000, "lab", &[]).unwrap();
    let network = victim.admin.network_id();
    let peers = victim.advert(&victim.peer, FIRST, 6).membership;
    let mut damaged = victim.advert(&stranger, FIRST, 1).membership;
    damaged[40] ^= 1;
    let memberships = [
        // A member of another network, also where its invite signs for ours.
        invite.sign_member(&foreign.network_id(), &key).encode(),
        invite.sign_member(&network, &key).encode(),
        // Our invite for another network, for another node, with more than it was given.
        victim
            .invite
            .sign_member(&foreign.network_id(), &key)
            .encode(),
        peers,
        damaged,
        Vec::new(),
        vec![0; 300],
    ];
    for membership in memberships {
        let mut advert = victim.advert(&stranger, FIRST, 1);
        advert.membership = membership;
        let record = victim.sealed(&advert, &stranger);
        assert_eq!(refused(&mut victim, &record), not_member);
        assert_eq!(victim.node.peer_of(&key), None);
    }
    // A peer that loses its proof keeps what it had.
    let mut advert = victim.advert(&victim.peer, FIRST, 6);
    advert.membership.clear();
    let record = victim.sealed(&advert, &victim.peer);
    let refusal = refused(&mut victim, &record);
    assert_eq!(refusal, RecordRefusal::NotMember(victim.peer.public_key()));
}

#[test]
fn revoked() {
    let by_node = |key: PublicKey| (BTreeSet::from([key]), BTreeSet::new());
    let revoke = |victim: &mut Victim, sequence, (nodes, invites)| {
        let list = RevocationList::sign(&victim.admin, sequence, nodes, invites).unwrap();
        victim.node.handle_revocations(list, victim.now)
    };
    let mut victim = Victim::new();
    let peer = victim.peer.clone();
    let key = peer.public_key();
    assert!(revoke(&mut victim, 2, by_node(key)));
    victim.drain();
    assert_eq!(victim.node.peer_of(&key), None);
    for (session, sequence) in [(FIRST, 5), (FIRST, 6), (SECOND, u64::MAX)] {
        let record = victim.sealed(&victim.advert(&peer, session, sequence), &peer);
        assert_eq!(refused(&mut victim, &record), RecordRefusal::Revoked(key));
    }
    // Its checks are a stranger's from now on.
    for session in [FIRST, SECOND] {
        let check = victim.check(&peer, session, 1);
        assert_eq!(victim.hears(&check), []);
    }
    // An older list, in which it is not, brings it not back.
    assert!(!revoke(&mut victim, 1, (BTreeSet::new(), BTreeSet::new())));
    // With its invite all who came by it are out.
    let mut victim = Victim::new();
    let invite = victim.invite.certificate().id;
    assert!(revoke(
        &mut victim,
        1,
        (BTreeSet::new(), BTreeSet::from([invite]))
    ));
    victim.drain();
    assert!(victim.node.snapshot(victim.now).peers.is_empty());
    let other = PrivateKey::from_bytes([6; 32]);
    for node in [peer, other] {
        let record = victim.sealed(&victim.advert(&node, Session([9; 16]), 9), &node);
        let refusal = RecordRefusal::Revoked(node.public_key());
        assert_eq!(refused(&mut victim, &record), refusal);
    }
}

/// Only whoever has our key can say this; the node goes on all the same.
#[test]
fn our_own_advert_from_the_end_of_time() {
    let mut victim = Victim::new();
    let own = victim.own.clone();
    let record = victim.sealed(&victim.advert(&own, SECOND, u64::MAX), &own);
    assert_eq!(victim.take(&record), Ok(RecordOutcome::Own));
    victim.node.republish(victim.now);
    for _ in 0..20 {
        victim.now += std::time::Duration::from_secs(1);
        victim.node.handle_timeout(victim.now);
    }
    assert!(victim.drain() > 0, "it publishes");
}
