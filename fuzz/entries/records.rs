//! Signed and sealed records. Where an input is a well-formed body without its signature, it is
//! signed and tried again, so that what lies behind the signature is reached too.

use std::collections::BTreeSet;

use wice::core::overlay::{Overlay, RoutesRefusal};
use wice_signaling::protocol::xeddsa::{self, Domain};
use wice_signaling::protocol::{
    Advert, IpPrefix, MAX_CANDIDATES, MAX_ROUTES, Membership, NetworkKey, OVERLAY_IPV4,
    OVERLAY_IPV6, PrivateKey, PublicKey, RecordError, RecordKind, RevocationList, Routes,
    normalize_candidates,
};

use super::Fed;
use super::world::{Z, world};

const SIGNATURE: usize = 64;
const VERSION: u8 = 1;

pub(super) fn advert(data: &[u8]) -> Fed {
    let first = Advert::decode_verified(data);
    let decoded = match signed_anew(data, Domain::Advert, &first) {
        Some(bytes) => Advert::decode_verified(&bytes).map(|advert| (advert, bytes)),
        None => first.map(|advert| (advert, data.to_vec())),
    };
    let Ok((advert, bytes)) = decoded else {
        return Fed::one(false);
    };
    assert!(advert.candidates.len() <= MAX_CANDIDATES);
    assert_eq!(normalize_candidates(&advert.candidates), advert.candidates);
    let peer = &world().peer;
    if advert.key == peer_key() && is_sampled(data) {
        // One meaning, one encoding.
        let again = advert.encode_signed(peer, &Z).unwrap();
        assert_eq!(body(&again), body(&bytes));
    }
    Fed::one(true)
}

pub(super) fn advert_seeds() -> Vec<Vec<u8>> {
    let world = world();
    let mut bare = Advert::decode_verified(&world.advert).unwrap();
    bare.candidates.clear();
    bare.membership.clear();
    bare.name.clear();
    let bare = bare.encode_signed(&world.peer, &Z).unwrap();
    let unsigned = |bytes: &[u8]| [body(bytes), &[0; SIGNATURE]].concat();
    vec![
        world.advert.clone(),
        unsigned(&world.advert),
        unsigned(&bare),
        bare,
    ]
}

pub(super) fn routes(data: &[u8]) -> Fed {
    let first = Routes::decode_verified(data);
    let decoded = match signed_anew(data, Domain::Routes, &first) {
        Some(bytes) => Routes::decode_verified(&bytes).map(|routes| (routes, bytes)),
        None => first.map(|routes| (routes, data.to_vec())),
    };
    let Ok((routes, bytes)) = decoded else {
        return Fed::one(false);
    };
    assert!(routes.prefixes.len() <= MAX_ROUTES);
    let peer = &world().peer;
    if routes.key == peer_key() && is_sampled(data) {
        let again = routes.encode_signed(peer, &Z).unwrap();
        assert_eq!(body(&again), body(&bytes));
    }
    Fed::one(true)
}

pub(super) fn routes_seeds() -> Vec<Vec<u8>> {
    let record = |prefixes: &[&str], counter| {
        let peer = &world().peer;
        let mut prefixes: Vec<IpPrefix> = prefixes.iter().map(|p| p.parse().unwrap()).collect();
        prefixes.sort();
        let routes = Routes {
            key: peer.public_key(),
            sequence: 5,
            overlay_counter: counter,
            prefixes,
        };
        routes.encode_signed(peer, &Z).unwrap()
    };
    let full = record(
        &["10.1.2.0/24", "0.0.0.0/0", "100.91.0.0/24", "fd00:1::/48"],
        3,
    );
    let unsigned = [body(&full), &[0; SIGNATURE]].concat();
    vec![full, unsigned, record(&[], 0)]
}

/// The mesh's addresses, with one peer that has a grant for 10.1.0.0/16.
pub(super) fn overlay_routes(data: &[u8]) -> Fed {
    let world = world();
    let (own, peer) = (world.own_key, world.peer_key);
    let consent: IpPrefix = "172.20.0.0/16".parse().unwrap();
    let mut overlay = Overlay::new(own, 0, vec![consent]);
    let before = overlay.join(peer);
    let membership = |key: &_| Some(world.invite.sign_member(&world.network, key));
    let first = overlay.handle_routes(data, membership);
    let forged = matches!(
        first,
        Err(RoutesRefusal::Invalid(RecordError::BadSignature))
    );
    let signed = (forged && is_unsigned(data))
        .then(|| sign(data, Domain::Routes))
        .flatten();
    let outcome = match signed {
        Some(bytes) => overlay.handle_routes(&bytes, membership),
        None => first,
    };
    let Ok((key, owned)) = outcome else {
        assert_eq!(overlay.owned(&peer), Some(&before));
        return Fed::one(false);
    };
    assert_eq!(key, peer, "nobody else has joined");
    let grant: IpPrefix = "10.1.0.0/16".parse().unwrap();
    // After the IPv6 address: never a route of the overlay, never one without leave.
    for prefix in &owned.prefixes[1..] {
        assert!(grant.covers(prefix) || consent.covers(prefix), "{prefix}");
        assert!(!OVERLAY_IPV4.covers(prefix) && !OVERLAY_IPV6.covers(prefix));
    }
    assert_ne!(owned.ipv4, Some(overlay.own_addresses().0));
    Fed::one(true)
}

pub(super) fn overlay_routes_seeds() -> Vec<Vec<u8>> {
    routes_seeds()
}

pub(super) fn membership(data: &[u8]) -> Fed {
    let world = world();
    let key = world.peer_key;
    let Ok(membership) = Membership::decode_verified(data, &world.network, &key) else {
        return Fed::one(false);
    };
    assert_eq!(membership.encode(), data);
    assert!(!membership.may_route(&"0.0.0.0/0".parse().unwrap()));
    let other = world.stranger.public_key();
    assert!(Membership::decode_verified(data, &world.network, &other).is_err());
    Fed::one(true)
}

pub(super) fn membership_seeds() -> Vec<Vec<u8>> {
    let world = world();
    let of = |key: &PrivateKey| {
        let membership = world.invite.sign_member(&world.network, &key.public_key());
        membership.encode()
    };
    vec![of(&world.peer), of(&world.stranger)]
}

pub(super) fn revocations(data: &[u8]) -> Fed {
    let Ok(list) = RevocationList::decode_verified(data, &world().network) else {
        return Fed::one(false);
    };
    assert_eq!(list.encoded(), data);
    Fed::one(true)
}

pub(super) fn revocations_seeds() -> Vec<Vec<u8>> {
    let world = world();
    let list = |sequence, nodes: usize, invites| {
        let keys = [&world.peer, &world.stranger, &world.own];
        let nodes: BTreeSet<_> = keys.iter().take(nodes).map(|k| k.public_key()).collect();
        let invites: BTreeSet<_> = [world.invite.certificate().id]
            .into_iter()
            .take(invites)
            .collect();
        let list = RevocationList::sign(&world.admin, sequence, nodes, invites).unwrap();
        list.encoded().to_vec()
    };
    vec![list(1, 3, 1), list(9, 0, 0), list(2, 1, 0)]
}

pub(super) fn sealed(data: &[u8]) -> Fed {
    let (secret, key) = (NetworkKey::from_bytes([6; 32]), world().peer_key);
    let network = world().network;
    let opened = secret.open(&network, &key, RecordKind::Advert, data);
    if opened.is_ok() {
        let other = secret.open(&network, &key, RecordKind::Routes, data);
        assert!(other.is_err(), "an advert is no record of routes");
    }
    Fed::one(opened.is_ok())
}

pub(super) fn sealed_seeds() -> Vec<Vec<u8>> {
    let (secret, key) = (NetworkKey::from_bytes([6; 32]), world().peer_key);
    let seal = |record: &[u8]| {
        let (network, nonce) = (world().network, [8; 12]);
        secret
            .seal(&network, &key, RecordKind::Advert, &nonce, record)
            .unwrap()
    };
    vec![seal(&world().advert), seal(&[])]
}

/// The peer's own record with what `data` says of it, if `first` lacked a signature alone.
fn signed_anew<T>(data: &[u8], domain: Domain, first: &Result<T, RecordError>) -> Option<Vec<u8>> {
    let forged = matches!(first, Err(RecordError::BadSignature));
    (forged && is_unsigned(data))
        .then(|| sign(data, domain))
        .flatten()
}

/// Nobody has signed it; the signatures of the rest are to be seen to fail.
fn is_unsigned(data: &[u8]) -> bool {
    data.ends_with(&[0; SIGNATURE / 2])
}

fn sign(data: &[u8], domain: Domain) -> Option<Vec<u8>> {
    let peer = &world().peer;
    let (body, _) = data.split_last_chunk::<SIGNATURE>()?;
    let mut bytes = body.to_vec();
    *bytes.first_mut()? = VERSION;
    bytes.get_mut(1..33)?.copy_from_slice(&peer_key().0);
    let signature = xeddsa::sign(peer, domain, &bytes, &Z);
    bytes.extend_from_slice(&signature);
    Some(bytes)
}

/// Signing again costs more than all the rest: one in four is enough.
fn is_sampled(data: &[u8]) -> bool {
    data.len().is_multiple_of(4)
}

/// The peer's public key, which takes a multiplication to make.
fn peer_key() -> PublicKey {
    world().peer_key
}

fn body(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() - SIGNATURE]
}
