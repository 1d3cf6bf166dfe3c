//! Adverts and routes: round trips, damage, forgery, what is not canonical.

use std::net::SocketAddr;

use super::testing::{Random, assert_all_damage};
use super::xeddsa::{self, Domain};
use super::*;

fn host(address: &str, priority: u32) -> Candidate {
    Candidate {
        kind: CandidateKind::Host,
        address: address.parse().unwrap(),
        priority,
        relay_transport: None,
    }
}

fn relayed(address: &str, priority: u32) -> Candidate {
    Candidate {
        kind: CandidateKind::Relayed,
        relay_transport: Some(RelayTransport::Tls),
        ..host(address, priority)
    }
}

fn advert(key: &PrivateKey) -> Advert {
    Advert {
        key: key.public_key(),
        session: Session([3; 16]),
        sequence: 42,
        name: "lab-ä".to_owned(),
        nat: NatBehavior {
            mapping: Mapping::AddressAndPortDependent,
            filtering: Filtering::AddressDependent,
        },
        candidates: vec![
            host("192.168.1.30:51821", 9),
            host("[2001:db8::1]:51821", 8),
            relayed("203.0.113.1:50000", 1),
        ],
        membership: vec![1, 2, 3],
    }
}

/// Signs a body that [`Advert::encode_signed`] would not make.
fn sign_body(key: &PrivateKey, body: &[u8]) -> Vec<u8> {
    [body, &xeddsa::sign(key, Domain::Advert, body, &[5; 64])].concat()
}

fn random_advert(random: &mut Random, key: &PrivateKey) -> Advert {
    let candidates: Vec<Candidate> = (0..random.below(24))
        .map(|_| {
            let ip: std::net::IpAddr = if random.below(2) == 0 {
                random.array::<4>().into()
            } else {
                random.array::<16>().into()
            };
            let (kind, relay_transport) = match random.below(6) {
                0 => (CandidateKind::Host, None),
                1 => (CandidateKind::ServerReflexive, None),
                2 => (CandidateKind::Mapped, None),
                3 => (CandidateKind::Relayed, Some(RelayTransport::Udp)),
                4 => (CandidateKind::Relayed, Some(RelayTransport::Tcp)),
                _ => (CandidateKind::PeerReflexive, None),
            };
            let port = u16::from_be_bytes(random.array());
            let priority = random.below(5) as u32;
            Candidate {
                kind,
                address: SocketAddr::new(ip, port),
                priority,
                relay_transport,
            }
        })
        .collect();
    Advert {
        session: Session(random.array()),
        sequence: u64::from_be_bytes(random.array()),
        name: "n".repeat(random.below(MAX_NAME_LEN + 1)),
        candidates: normalize_candidates(&candidates),
        membership: {
            let len = random.below(1024);
            random.bytes(len)
        },
        ..advert(key)
    }
}

#[test]
fn adverts_round_trip_and_re_encode_to_themselves() {
    let mut random = Random::new(10);
    for _ in 0..200 {
        let key = random.key();
        let advert = random_advert(&mut random, &key);
        let z = random.array();
        let bytes = advert.encode_signed(&key, &z).unwrap();
        let decoded = Advert::decode_verified(&bytes).unwrap();
        assert_eq!(decoded, advert);
        assert_eq!(decoded.encode_signed(&key, &z).unwrap(), bytes);
    }
}

#[test]
fn the_layout_of_an_advert_is_pinned() {
    let key = PrivateKey::from_bytes([1; 32]);
    let bytes = advert(&key).encode_signed(&key, &[0; 64]).unwrap();
    let body = &bytes[..bytes.len() - 64];
    let expected = [
        "01",
        &hex::encode(key.public_key().0),
        "03030303030303030303030303030303",
        "000000000000002a",
        "066c61622dc3a4",
        "42",
        "03",
        "01 00 04 c0a8011e ca6d 00000009",
        "01 00 06 20010db8000000000000000000000001 ca6d 00000008",
        "05 03 04 cb007101 c350 00000001",
        "0003 010203",
    ];
    assert_eq!(hex::encode(body), expected.concat().replace(' ', ""));
}

#[test]
fn the_largest_advert_fits() {
    let key = PrivateKey::from_bytes([1; 32]);
    let candidates = (0..16)
        .map(|n| host(&format!("[2001:db8::{n}]:1"), 100 - n))
        .collect();
    let bare = Advert {
        name: "n".repeat(63),
        candidates,
        membership: Vec::new(),
        ..advert(&key)
    };
    assert!(bare.encode_signed(&key, &[0; 64]).unwrap().len() <= MAX_ADVERT_LEN_BARE);
    let full = Advert {
        membership: vec![0; MAX_MEMBERSHIP_LEN],
        ..bare
    };
    let bytes = full.encode_signed(&key, &[0; 64]).unwrap();
    assert!(bytes.len() <= MAX_ADVERT_LEN, "{}", bytes.len());
    assert_eq!(Advert::decode_verified(&bytes), Ok(full));
}

#[test]
fn every_damage_of_an_advert_is_refused() {
    let key = PrivateKey::from_bytes([1; 32]);
    let bytes = advert(&key).encode_signed(&key, &[0; 64]).unwrap();
    assert_all_damage(&bytes, |damaged| Advert::decode_verified(damaged).is_err());
}

#[test]
fn an_advert_signed_by_another_key_is_refused() {
    let (own, other) = (
        PrivateKey::from_bytes([1; 32]),
        PrivateKey::from_bytes([2; 32]),
    );
    assert_eq!(
        advert(&own).encode_signed(&other, &[0; 64]),
        Err(RecordError::BadSignature)
    );
    let bytes = advert(&own).encode_signed(&own, &[0; 64]).unwrap();
    let forged = sign_body(&other, &bytes[..bytes.len() - 64]);
    assert_eq!(
        Advert::decode_verified(&forged),
        Err(RecordError::BadSignature)
    );
}

#[test]
fn a_routes_record_is_no_advert() {
    let key = PrivateKey::from_bytes([1; 32]);
    let bytes = advert(&key).encode_signed(&key, &[0; 64]).unwrap();
    let body = &bytes[..bytes.len() - 64];
    let foreign = [body, &xeddsa::sign(&key, Domain::Routes, body, &[5; 64])].concat();
    assert_eq!(
        Advert::decode_verified(&foreign),
        Err(RecordError::BadSignature)
    );
}

#[test]
fn candidates_that_no_advert_may_carry() {
    let key = PrivateKey::from_bytes([1; 32]);
    for address in [
        "0.0.0.0:1",
        "0.1.2.3:1",
        "127.0.0.1:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "169.254.1.1:1",
        "10.0.0.1:0",
        "[::]:1",
        "[::1]:1",
        "[ff02::1]:1",
        "[fe80::1]:1",
        "[::ffff:10.0.0.1]:1",
    ] {
        let bad = host(address, 1);
        assert!(!bad.is_advertisable(), "{address}");
        let refused = Advert {
            candidates: vec![bad],
            ..advert(&key)
        };
        assert_eq!(
            refused.encode_signed(&key, &[0; 64]),
            Err(RecordError::BadValue("candidate"))
        );
        // The decoder does not rely on the encoder: the same bytes, rightly signed.
        let mut body = Advert {
            candidates: Vec::new(),
            membership: Vec::new(),
            ..advert(&key)
        }
        .encode_signed(&key, &[0; 64])
        .unwrap();
        body.truncate(body.len() - 64 - 3);
        body.push(1);
        bad.put(&mut body);
        body.extend_from_slice(&[0, 0]);
        assert_eq!(
            Advert::decode_verified(&sign_body(&key, &body)),
            Err(RecordError::BadValue("candidate")),
            "{address}"
        );
    }
    let peer_reflexive = Candidate {
        kind: CandidateKind::PeerReflexive,
        ..host("192.0.2.1:1", 1)
    };
    assert!(!peer_reflexive.is_advertisable());
    assert!(
        !Candidate {
            relay_transport: None,
            ..relayed("192.0.2.1:1", 1)
        }
        .is_advertisable()
    );
    let host_over_udp = Candidate {
        relay_transport: Some(RelayTransport::Udp),
        ..host("192.0.2.1:1", 1)
    };
    assert!(!host_over_udp.is_advertisable());
}

#[test]
fn candidates_must_be_sorted_and_differ() {
    let key = PrivateKey::from_bytes([1; 32]);
    let [a, b] = [host("192.0.2.1:1", 9), host("192.0.2.2:1", 8)];
    for (candidates, error) in [
        (vec![b, a], RecordError::NotCanonical("candidates")),
        (vec![a, a], RecordError::NotCanonical("candidates")),
        (
            vec![a, Candidate { priority: 3, ..a }],
            RecordError::NotCanonical("candidates"),
        ),
        (vec![a; 17], RecordError::TooLong),
    ] {
        let mut body = Advert {
            candidates: Vec::new(),
            membership: Vec::new(),
            ..advert(&key)
        }
        .encode_signed(&key, &[0; 64])
        .unwrap();
        body.truncate(body.len() - 64 - 3);
        body.push(candidates.len() as u8);
        for candidate in &candidates {
            candidate.put(&mut body);
        }
        body.extend_from_slice(&[0, 0]);
        assert_eq!(Advert::decode_verified(&sign_body(&key, &body)), Err(error));
        let refused = Advert {
            candidates,
            ..advert(&key)
        };
        assert_eq!(refused.encode_signed(&key, &[0; 64]), Err(error));
    }
}

#[test]
fn normalizing_keeps_the_best_sixteen() {
    let many: Vec<Candidate> = (0..40)
        .map(|n| host(&format!("192.0.2.{}:1", n % 30 + 1), n))
        .collect();
    let kept = normalize_candidates(&many);
    assert_eq!(kept.len(), MAX_CANDIDATES);
    assert_eq!(kept[0].priority, 39);
    assert!(kept.is_sorted_by(|a, b| a.priority > b.priority));
    // 192.0.2.1 came with priorities 0 and 30.
    let twice: Vec<u32> = kept
        .iter()
        .filter(|c| c.address == host("192.0.2.1:1", 0).address)
        .map(|c| c.priority)
        .collect();
    assert_eq!(twice, [30]);
}

#[test]
fn names_that_could_harm_a_terminal_are_refused() {
    let key = PrivateKey::from_bytes([1; 32]);
    for name in [
        "a\nb",
        "\u{1b}[2J",
        "x\u{202e}y",
        "a\u{2028}b",
        &"n".repeat(64),
    ] {
        let bad = Advert {
            name: (*name).to_owned(),
            ..advert(&key)
        };
        assert_eq!(
            bad.encode_signed(&key, &[0; 64]),
            Err(RecordError::BadValue("name"))
        );
    }
}

#[test]
fn arbitrary_bytes_never_decode_and_never_panic() {
    let mut random = Random::new(11);
    let key = random.key();
    let valid = advert(&key).encode_signed(&key, &[0; 64]).unwrap();
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.array::<1>()[0];
        }
        bytes.truncate(random.below(bytes.len() + 1));
        if bytes != valid {
            assert!(Advert::decode_verified(&bytes).is_err());
            assert!(Routes::decode_verified(&bytes).is_err());
        }
    }
}

fn routes(key: &PrivateKey) -> Routes {
    Routes {
        key: key.public_key(),
        sequence: 7,
        overlay_counter: 1,
        prefixes: vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
    }
}

#[test]
fn routes_round_trip_and_refuse_damage() {
    let key = PrivateKey::from_bytes([1; 32]);
    let bytes = routes(&key).encode_signed(&key, &[0; 64]).unwrap();
    assert_eq!(Routes::decode_verified(&bytes), Ok(routes(&key)));
    assert_all_damage(&bytes, |damaged| Routes::decode_verified(damaged).is_err());
}

#[test]
fn routes_are_bounded_sorted_and_differ() {
    let key = PrivateKey::from_bytes([1; 32]);
    let many: Vec<IpPrefix> = (0..=255u8)
        .map(|n| format!("10.{n}.0.0/16").parse().unwrap())
        .collect();
    let with = |prefixes: &[IpPrefix]| {
        Routes {
            prefixes: prefixes.to_vec(),
            ..routes(&key)
        }
        .encode_signed(&key, &[0; 64])
    };
    assert!(with(&many[..MAX_ROUTES]).unwrap().len() <= MAX_ROUTES_LEN);
    assert_eq!(with(&many[..MAX_ROUTES + 1]), Err(RecordError::TooLong));
    assert_eq!(
        with(&[many[1], many[0]]),
        Err(RecordError::NotCanonical("routes"))
    );
    assert_eq!(
        with(&[many[1], many[1]]),
        Err(RecordError::NotCanonical("routes"))
    );
}

/// Below the signature too: what decodes, decodes to one meaning and encodes to the same bytes.
#[test]
fn a_body_that_decodes_re_encodes_to_itself() {
    let mut random = Random::new(12);
    let (mut decoded, mut refused) = (0, 0);
    for _ in 0..300 {
        let key = random.key();
        let valid = random_advert(&mut random, &key).body().unwrap();
        for _ in 0..100 {
            let mut body = valid.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(body.len());
                body[at] ^= 1 << random.below(8);
            }
            match Advert::take(&body) {
                Ok(advert) => {
                    decoded += 1;
                    assert_eq!(advert.body().unwrap(), body);
                }
                Err(_) => refused += 1,
            }
        }
    }
    // Both happen, or the test would show nothing.
    assert!(decoded > 1000 && refused > 1000, "{decoded} {refused}");
}
