//! What real servers got wrong.

use super::*;

#[test]
fn no_denied_peer_by_any_way_or_disguise() {
    let mut world = World::new();
    let mut v4 = world.client(1);
    world.allocate(&mut v4);
    let mut both = world.client(2);
    let dual = raw(attribute::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    assert_eq!(
        world.ask(&mut both, method::ALLOCATE, &[udp(), dual]).code,
        0
    );
    for ip in [
        "0.0.0.0",
        "0.0.0.1",
        "127.0.0.1",
        "10.0.0.1",
        "10.0.0.5",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "2001::1",
    ] {
        let peer = SocketAddr::new(ip.parse().unwrap(), 80).to_string();
        for client in [&mut v4, &mut both] {
            assert_eq!(world.permit(client, &peer), 403, "{ip}");
            assert_eq!(world.bind(client, 0x4000, &peer), 403, "{ip}");
            assert!(world.send(client, &peer, b"x").is_none(), "{ip}");
        }
    }
    assert!(world.sent.is_empty());
}

#[test]
fn what_stands_after_the_integrity_does_not_count() {
    let mut world = World::new();
    let mut alice = world.client(1);
    let relayed = world.allocate(&mut alice);
    let zero = (attribute::LIFETIME, vec![0; 4]);
    let bytes = alice.sign(
        method::REFRESH,
        TransactionId([1; 12]),
        &[],
        std::slice::from_ref(&zero),
    );
    let response = world.raw(&alice.addr, &bytes).unwrap();
    assert_eq!((response.code, response.lifetime()), (0, 600));
    assert_eq!(world.server.allocations(), 1);
    // Nor before a second one.
    let mut peer = Writer::new(
        Class::Request,
        method::CREATE_PERMISSION,
        TransactionId([2; 12]),
    );
    peer.add_xor_address(attribute::XOR_PEER_ADDRESS, "8.8.4.4:1".parse().unwrap());
    let masked = peer.finish(None, false)[24..].to_vec();
    let after = [(attribute::XOR_PEER_ADDRESS, masked)];
    let first = [Attr::Peer("8.8.8.8:1".parse().unwrap())];
    let bytes = alice.sign(
        method::CREATE_PERMISSION,
        TransactionId([2; 12]),
        &first,
        &after,
    );
    assert_eq!(world.raw(&alice.addr, &bytes).unwrap().code, 0);
    assert!(world.arrive(relayed, "8.8.8.8:1").is_some());
    assert!(world.arrive(relayed, "8.8.4.4:1").is_none());
}

#[test]
fn of_duplicates_the_first_counts_and_it_is_the_one_that_is_judged() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    let (good, bad) = (
        Attr::Peer("8.8.8.8:1".parse().unwrap()),
        Attr::Peer("127.0.0.1:1".parse().unwrap()),
    );
    let bound = world.ask(
        &mut alice,
        method::CHANNEL_BIND,
        &[channel(0x4000), bad.clone(), good.clone()],
    );
    assert_eq!(bound.code, 403);
    let bound = world.ask(
        &mut alice,
        method::CHANNEL_BIND,
        &[channel(0x4000), good.clone(), bad.clone()],
    );
    assert_eq!(bound.code, 0);
    assert!(
        matches!(world.send_on(&alice, 0x4000, b"x"), Some(Forward::Peer { to, .. }) if to.ip() == IpAddr::from([8, 8, 8, 8]))
    );
    let mut writer = Writer::new(Class::Indication, method::SEND, world.id());
    good.add(&mut writer);
    bad.add(&mut writer);
    writer.add(attribute::DATA, b"first");
    writer.add(attribute::DATA, b"second");
    let bytes = writer.finish(None, false);
    let (forward, data) = world
        .server
        .handle_client(&alice.addr, &bytes, world.now)
        .unwrap();
    assert!(matches!(forward, Forward::Peer { to, .. } if to.ip() == IpAddr::from([8, 8, 8, 8])));
    assert_eq!(data, b"first");
    let ended = world.ask(&mut alice, method::REFRESH, &[lifetime(600), lifetime(0)]);
    assert_eq!(ended.lifetime(), 600);
}

#[test]
fn no_changed_bit_of_a_request_is_done() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    let zero = [lifetime(0)];
    for sha256 in [false, true] {
        alice.sha256 = sha256;
        let bytes = alice.sign(method::REFRESH, TransactionId([9; 12]), &zero, &[]);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let response = world.raw(&alice.addr, &changed);
            assert!(response.is_none_or(|r| r.code != 0), "bit {bit}");
        }
    }
    assert_eq!(world.server.allocations(), 1);
}

#[test]
fn strangers_leave_nothing_behind() {
    let mut world = World::new();
    for n in 0..5000u16 {
        let alice = world.client(n);
        for method in [
            method::ALLOCATE,
            method::REFRESH,
            method::CREATE_PERMISSION,
            method::CHANNEL_BIND,
            method::BINDING,
        ] {
            let id = world.id();
            world.raw(&alice.addr, &plain(method, id, &[udp()]));
        }
        let mut forged = alice.clone();
        forged.nonce = b"obMatJos2gAAAAAAAAAAAAAAAAAAA".to_vec();
        let bytes = forged.sign(method::ALLOCATE, TransactionId([3; 12]), &[udp()], &[]);
        assert_eq!(world.raw(&alice.addr, &bytes).unwrap().code, 438);
        assert!(world.send(&alice, "8.8.8.8:1", b"x").is_none());
        assert!(world.send_on(&alice, 0x4000, b"x").is_none());
    }
    let server = &world.server;
    assert_eq!(
        server.clients.capacity() + server.allocations.capacity() + server.relays.capacity(),
        0
    );
    assert_eq!(
        server.openings.len() + server.timers.len() + server.commands.len(),
        0
    );
    assert_eq!((world.ports(), world.shared.ledger.count()), (0, (0, 0)));
}

#[test]
fn challenges_are_small_and_rationed() {
    let mut world = World::new();
    let alice = world.client(1);
    let request = plain(method::ALLOCATE, TransactionId([1; 12]), &[udp()]);
    let response = world.raw(&alice.addr, &request).unwrap();
    let ratio = (response.bytes.len() + 28) as f64 / (request.len() + 28) as f64;
    assert!(ratio <= 2.4, "{ratio}: {} bytes", response.bytes.len());

    let mut bad = alice.clone();
    (bad.nonce, bad.password) = (response.get(attribute::NONCE).unwrap(), "guess".into());
    let answered = |world: &mut World, addr: &ClientAddr, bytes: &[u8]| {
        (0..5000)
            .filter(|_| world.raw(addr, bytes).is_some())
            .count()
    };
    let guesses = bad.sign(method::ALLOCATE, TransactionId([2; 12]), &[udp()], &[]);
    let another = world.client(2).addr;
    // Guesses and bad requests share the ration with challenges.
    assert_eq!(answered(&mut world, &alice.addr, &guesses), 999);
    assert_eq!(answered(&mut world, &alice.addr, &request), 0);
    assert_eq!(answered(&mut world, &another, &request), 1000);
    world.pass(1);
    assert_eq!(answered(&mut world, &alice.addr, &request), 100);
    assert!(world.server.counters().challenges_limited > 10_000);
    // Who has authenticated is not rationed.
    let mut good = world.client(1);
    good.nonce = bad.nonce;
    assert_eq!(world.ask(&mut good, method::ALLOCATE, &[udp()]).code, 0);
}

#[test]
fn methods_that_are_not_offered_and_responses_get_silence() {
    let mut world = World::new();
    let alice = world.client(1);
    for method in [0x002, 0x005, 0x006, 0x007, 0x00A, 0x00B, 0x00C, 0xFFF] {
        assert!(
            world
                .raw(&alice.addr, &plain(method, TransactionId([1; 12]), &[]))
                .is_none()
        );
    }
    for class in [Class::Indication, Class::Success, Class::Error] {
        for method in [method::BINDING, method::ALLOCATE, method::DATA] {
            let bytes = Writer::new(class, method, TransactionId([1; 12])).finish(None, false);
            assert!(world.raw(&alice.addr, &bytes).is_none());
        }
    }
    // Longer than a request can be: no HMAC is spent on it.
    let mut writer = Writer::new(Class::Request, method::ALLOCATE, TransactionId([1; 12]));
    writer.add(0x9999, &[0; 2000]);
    assert!(
        world
            .raw(&alice.addr, &writer.finish(None, false))
            .is_none()
    );
}

#[test]
fn a_bad_fingerprint_gets_no_answer() {
    let mut world = World::new();
    let alice = world.client(1);
    let good =
        Writer::new(Class::Request, method::BINDING, TransactionId([1; 12])).finish(None, true);
    let response = world.raw(&alice.addr, &good).unwrap();
    assert!(response.message().has_fingerprint(), "as asked");
    for at in good.len() - 4..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(world.raw(&alice.addr, &bad).is_none());
    }
}
