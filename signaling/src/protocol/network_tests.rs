//! Membership, revocation, receipts: round trips, damage, forgery, foreign networks.

use std::collections::BTreeSet;

use super::testing::{Random, assert_all_damage};
use super::*;

const EXPIRY: u64 = 1_800_000_000;

struct Network {
    admin: AdminKey,
    id: NetworkId,
    invite: Invite,
    node: PublicKey,
}

fn network(seed: u64) -> Network {
    let mut random = Random::new(seed);
    let admin = AdminKey::from_seed(&random.array());
    let prefixes = [
        "10.1.0.0/16".parse().unwrap(),
        "10.0.0.0/24".parse().unwrap(),
    ];
    let invite = Invite::new(&admin, &random.array(), EXPIRY, "lab", &prefixes).unwrap();
    let node = random.key().public_key();
    Network {
        id: admin.network_id(),
        admin,
        invite,
        node,
    }
}

#[test]
fn a_membership_holds_for_its_node_and_network_only() {
    let (own, other) = (network(1), network(2));
    let bytes = own.invite.sign_member(&own.id, &own.node).encode();
    let membership = Membership::decode_verified(&bytes, &own.id, &own.node).unwrap();
    assert_eq!(membership.encode(), bytes);
    assert_eq!(membership.invite(), own.invite.certificate());
    for (network, node) in [
        (own.id, other.node),
        (other.id, own.node),
        (other.id, other.node),
    ] {
        assert_eq!(
            Membership::decode_verified(&bytes, &network, &node),
            Err(RecordError::BadSignature)
        );
    }
    assert_all_damage(&bytes, |damaged| {
        Membership::decode_verified(damaged, &own.id, &own.node).is_err()
    });
}

#[test]
fn an_invite_of_another_network_makes_no_member() {
    let (own, other) = (network(1), network(2));
    let forged = other.invite.sign_member(&own.id, &own.node).encode();
    assert_eq!(
        Membership::decode_verified(&forged, &own.id, &own.node),
        Err(RecordError::BadSignature)
    );
}

#[test]
fn the_largest_membership_is_within_its_bound() {
    let own = network(1);
    let prefixes: Vec<IpPrefix> = (0..16)
        .map(|n| format!("2001:db8:{n}::/48").parse().unwrap())
        .collect();
    let invite = Invite::new(&own.admin, &[7; 32], EXPIRY, &"l".repeat(63), &prefixes).unwrap();
    let bytes = invite.sign_member(&own.id, &own.node).encode();
    assert_eq!(bytes.len(), MAX_MEMBERSHIP_LEN);
    assert!(Membership::decode_verified(&bytes, &own.id, &own.node).is_ok());
    let many = [prefixes, vec!["10.0.0.0/8".parse().unwrap()]].concat();
    assert!(Invite::new(&own.admin, &[7; 32], EXPIRY, "", &many).is_err());
}

#[test]
fn a_member_may_route_what_was_granted_and_all_within() {
    let own = network(1);
    let membership = own.invite.sign_member(&own.id, &own.node);
    for (prefix, may) in [
        ("10.1.0.0/16", true),
        ("10.1.2.0/24", true),
        ("10.0.0.0/8", false),
        ("10.2.0.0/16", false),
        ("0.0.0.0/0", false),
        ("::/0", false),
    ] {
        assert_eq!(
            membership.may_route(&prefix.parse().unwrap()),
            may,
            "{prefix}"
        );
    }
}

#[test]
fn revocations_round_trip_and_refuse_damage() {
    let (own, other) = (network(1), network(2));
    let invites = BTreeSet::from([other.invite.certificate().id]);
    let list = RevocationList::sign(&own.admin, 3, BTreeSet::from([own.node]), invites).unwrap();
    assert_eq!(
        RevocationList::decode_verified(list.encoded(), &own.id).unwrap(),
        list
    );
    assert!(RevocationList::decode_verified(list.encoded(), &other.id).is_err());
    assert_all_damage(list.encoded(), |damaged| {
        RevocationList::decode_verified(damaged, &own.id).is_err()
    });
}

#[test]
fn a_revoked_node_or_invite_is_refused() {
    let (own, other) = (network(1), network(2));
    let membership = own.invite.sign_member(&own.id, &own.node);
    let list = |nodes: &[PublicKey], invites: &[InviteId]| {
        let (nodes, invites) = (nodes.iter().copied(), invites.iter().copied());
        RevocationList::sign(&own.admin, 1, nodes.collect(), invites.collect()).unwrap()
    };
    let id = own.invite.certificate().id;
    assert!(list(&[own.node], &[]).refuses(&own.node, &membership));
    assert!(list(&[], &[id]).refuses(&own.node, &membership));
    assert!(!list(&[], &[]).refuses(&own.node, &membership));
    let others = list(&[other.node], &[other.invite.certificate().id]);
    assert!(!others.refuses(&own.node, &membership));
}

#[test]
fn revocations_are_bounded_and_rising() {
    let own = network(1);
    let keys = |count: u16| -> BTreeSet<PublicKey> {
        (0..count)
            .map(|n| {
                let mut key = [0; 32];
                key[..2].copy_from_slice(&n.to_be_bytes());
                PublicKey(key)
            })
            .collect()
    };
    let none = BTreeSet::new;
    let full = RevocationList::sign(&own.admin, 1, keys(1024), none()).unwrap();
    assert_eq!(full.encoded().len(), MAX_REVOCATION_LEN);
    assert!(RevocationList::decode_verified(full.encoded(), &own.id).is_ok());
    assert!(RevocationList::sign(&own.admin, 1, keys(1025), none()).is_err());

    let two = RevocationList::sign(&own.admin, 1, keys(2), none()).unwrap();
    let mut swapped = two.encoded().to_vec();
    swapped[11..75].rotate_left(32);
    assert_eq!(
        RevocationList::decode_verified(&swapped, &own.id),
        Err(RecordError::NotCanonical("revoked nodes"))
    );
}

#[test]
fn a_receipt_holds_for_its_service_network_node_and_invite() {
    let secret = ServiceSecret::from_bytes([1; 32]);
    let (network, key, invite) = (NetworkId([2; 32]), PublicKey([3; 32]), InviteId([4; 32]));
    let receipt = secret.receipt(&network, &key, &invite);
    assert!(secret.accepts(&receipt, &network, &key, &invite));
    assert!(!secret.accepts(&receipt, &NetworkId([9; 32]), &key, &invite));
    assert!(!secret.accepts(&receipt, &network, &PublicKey([9; 32]), &invite));
    assert!(!secret.accepts(&receipt, &network, &key, &InviteId([9; 32])));
    let other = ServiceSecret::from_bytes([9; 32]);
    assert!(!other.accepts(&receipt, &network, &key, &invite));
}

#[test]
fn secrets_are_never_printed() {
    let own = network(1);
    let seed = hex::encode(own.admin.expose_seed());
    let printed = format!(
        "{:?} {:?} {:?}",
        own.admin,
        own.invite,
        NetworkKey::from_bytes([5; 32])
    );
    assert!(!printed.contains(&seed) && !printed.contains("5, 5") && !printed.contains("0505"));
}
