//! Who may: long-term credentials by MD5 and SHA-256, USERHASH, minted users, nonces, bid-down.

use super::*;
use base64::Engine as _;
use hmac::Mac as _;

/// As the signaling service and coturn's clients mint.
fn minted(name: &str, secret: &str) -> (String, String) {
    let mut mac = <hmac::Hmac<sha1::Sha1> as hmac::Mac>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(name.as_bytes());
    let digest = mac.finalize().into_bytes();
    (
        name.into(),
        base64::engine::general_purpose::STANDARD.encode(digest),
    )
}

#[test]
fn md5_sha256_and_userhash_are_all_taken() {
    let mut world = World::new();
    for (n, (sha256, by_hash)) in [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .enumerate()
    {
        let mut alice = world.client(n as u16);
        (alice.sha256, alice.by_hash) = (sha256, by_hash);
        world.allocate(&mut alice);
        assert_eq!(world.permit(&mut alice, "8.8.8.8:1"), 0);
    }
}

#[test]
fn wrong_credentials_are_challenged_again() {
    let mut world = World::new();
    let changes: [fn(&mut Client); 5] = [
        |c| c.password = "wonderlan".into(),
        |c| c.username = "mallory".into(),
        |c| c.username = "alice\nINFO forged".into(),
        |c| c.username = String::new(),
        |c| c.username = "a".repeat(600),
    ];
    for change in changes {
        let mut alice = world.client(1);
        change(&mut alice);
        let response = world.ask(&mut alice, method::ALLOCATE, &[udp()]);
        assert_eq!(response.code, 401);
        assert!(
            response.get(attribute::NONCE).is_some() && response.get(attribute::REALM).is_some()
        );
        assert!(
            response.message().integrity().is_none(),
            "no seal for a stranger"
        );
    }
    assert!(world.server.clients.is_empty());
}

#[test]
fn what_is_missing_is_a_bad_request() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.ask(&mut alice, method::REFRESH, &[]);
    for missing in [attribute::USERNAME, attribute::REALM, attribute::NONCE] {
        let mut writer = Writer::new(Class::Request, method::ALLOCATE, world.id());
        for (kind, value) in [
            (attribute::USERNAME, b"alice".to_vec()),
            (attribute::REALM, REALM.into()),
            (attribute::NONCE, alice.nonce.clone()),
        ] {
            if kind != missing {
                writer.add(kind, &value);
            }
        }
        let bytes = writer.finish(Some((&alice.key(), Hash::Sha1)), false);
        assert_eq!(world.raw(&alice.addr, &bytes).unwrap().code, 400);
    }
}

#[test]
fn a_nonce_goes_stale_with_time_and_with_another_address() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    world.pass(500);
    world.ask(&mut alice, method::REFRESH, &[lifetime(3600)]);
    world.pass(NONCE_LIFETIME.as_secs() - 400);
    let response = world.ask(&mut alice, method::REFRESH, &[]);
    assert_eq!(response.code, 438);
    alice.nonce = response.get(attribute::NONCE).unwrap();
    assert_eq!(world.ask(&mut alice, method::REFRESH, &[]).code, 0);
    let mut elsewhere = world.client(2);
    elsewhere.nonce = alice.nonce.clone();
    assert_eq!(
        world.ask(&mut elsewhere, method::ALLOCATE, &[udp()]).code,
        438
    );
    // The same host behind another port goes on with it.
    let mut port = alice.clone();
    port.addr.remote.set_port(5000);
    world.allocate(&mut port);
}

#[test]
fn algorithms_that_were_tampered_with_are_refused() {
    let mut world = World::new();
    let mut alice = world.client(1);
    alice.sha256 = true;
    world.ask(&mut alice, method::REFRESH, &[]);
    let list = (attribute::PASSWORD_ALGORITHMS, vec![0, 2, 0, 0, 0, 1, 0, 0]);
    let md5_alone = (attribute::PASSWORD_ALGORITHMS, vec![0, 1, 0, 0]);
    let swapped = (attribute::PASSWORD_ALGORITHMS, vec![0, 1, 0, 0, 0, 2, 0, 0]);
    let choice = |n| (attribute::PASSWORD_ALGORITHM, vec![0, n, 0, 0]);
    for (attributes, code) in [
        (vec![list.clone(), choice(2)], 437),
        (vec![list.clone()], 400),
        (vec![choice(2)], 400),
        (vec![md5_alone, choice(1)], 400),
        (vec![swapped, choice(2)], 400),
        (vec![list.clone(), choice(3)], 400),
        // MD5 is one of the list, but this key is of SHA-256.
        (vec![list, choice(1)], 401),
    ] {
        let mut writer = Writer::new(Class::Request, method::REFRESH, world.id());
        writer.add(attribute::USERNAME, b"alice");
        writer.add(attribute::REALM, REALM.as_bytes());
        writer.add(attribute::NONCE, &alice.nonce);
        for (kind, value) in &attributes {
            writer.add(*kind, value);
        }
        let bytes = writer.finish(Some((&alice.key(), Hash::Sha256)), false);
        assert_eq!(
            world.raw(&alice.addr, &bytes).unwrap().code,
            code,
            "{attributes:?}"
        );
    }
}

#[test]
fn minted_users_under_every_secret_until_their_time() {
    let mut world = World::new();
    let name = format!("{}:node", world.now.unix + 60);
    for (n, secret) in ["north", "south"].into_iter().enumerate() {
        let mut node = world.client(n as u16);
        (node.username, node.password) = minted(&name, secret);
        node.sha256 = n == 1;
        world.allocate(&mut node);
    }
    let mut forged = world.client(5);
    (forged.username, forged.password) = minted(&name, "west");
    assert_eq!(world.ask(&mut forged, method::ALLOCATE, &[udp()]).code, 401);
    for name in [
        "soon:node".to_owned(),
        format!("{}:node", world.now.unix),
        "99999999999999999999:x".into(),
    ] {
        let mut late = world.client(6);
        (late.username, late.password) = minted(&name, "north");
        assert_eq!(
            world.ask(&mut late, method::ALLOCATE, &[udp()]).code,
            401,
            "{name}"
        );
    }
    let mut bare = world.client(7);
    (bare.username, bare.password) = minted(&(world.now.unix + 60).to_string(), "north");
    world.allocate(&mut bare);
}

#[test]
fn an_allocation_outlives_its_credentials_and_the_secret() {
    let mut world = World::new();
    let mut node = world.client(1);
    (node.username, node.password) = minted(&format!("{}:node", world.now.unix + 60), "north");
    world.allocate(&mut node);
    world.pass(120);
    assert_eq!(world.ask(&mut node, method::REFRESH, &[]).code, 0);
    let rotated = Config {
        credentials: Credentials::new(REALM, [("alice", "other")], ["east"]),
        ..config()
    };
    world.server.set_config(Arc::new(rotated));
    assert_eq!(world.ask(&mut node, method::REFRESH, &[]).code, 0);
    let mut another = node.clone();
    another.addr.remote.set_port(1);
    assert_eq!(
        world.ask(&mut another, method::ALLOCATE, &[udp()]).code,
        401
    );
}

#[test]
fn a_static_user_that_is_taken_out_cannot_refresh() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    let without = Config {
        credentials: Credentials::new(REALM, [("alice", "changed")], []),
        ..config()
    };
    world.server.set_config(Arc::new(without));
    assert_eq!(world.ask(&mut alice, method::REFRESH, &[]).code, 401);
    alice.password = "changed".into();
    assert_eq!(world.ask(&mut alice, method::REFRESH, &[]).code, 0);
}

#[test]
fn new_credentials_are_no_new_user_to_the_quota() {
    let mut config = config();
    config.quotas.user = 2;
    let mut world = World::with(config);
    for n in 0..3 {
        let mut node = world.client(n);
        (node.username, node.password) = minted(
            &format!("{}:node", world.now.unix + 60 + u64::from(n)),
            "north",
        );
        let code = world.ask(&mut node, method::ALLOCATE, &[udp()]).code;
        assert_eq!(code, if n < 2 { 0 } else { 486 });
    }
}

#[test]
fn an_allocation_belongs_to_its_user() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    let mut bob = alice.clone();
    (bob.username, bob.password) = ("bob".into(), "builder".into());
    for method in [
        method::REFRESH,
        method::CREATE_PERMISSION,
        method::CHANNEL_BIND,
    ] {
        assert_eq!(world.ask(&mut bob, method, &[lifetime(0)]).code, 441);
    }
    assert_eq!(world.ask(&mut bob, method::ALLOCATE, &[udp()]).code, 437);
    assert_eq!(world.server.allocations(), 1);
}

#[test]
fn another_implementation_agrees_on_the_seal() {
    use stun_types::message::{LongTermKeyCredentials, Message as Oracle};
    let mut world = World::new();
    for sha256 in [false, true] {
        let mut alice = world.client(u16::from(sha256));
        alice.sha256 = sha256;
        let response = world.ask(&mut alice, method::ALLOCATE, &[udp()]);
        let message = Oracle::from_bytes(&response.bytes).unwrap();
        let credentials =
            LongTermKeyCredentials::new("alice".into(), "wonderland".into(), REALM.into());
        let algorithm = if sha256 {
            stun_types::message::IntegrityAlgorithm::Sha256
        } else {
            stun_types::message::IntegrityAlgorithm::Sha1
        };
        let key = credentials.make_key(algorithm);
        assert!(message.validate_integrity_with_key(&key).is_ok());
        use turn_types::attribute::XorRelayedAddress;
        let relayed = message.attribute::<XorRelayedAddress>().unwrap();
        assert_eq!(relayed.addr(message.transaction_id()), response.relayed());
    }
}
