//! Permissions, channels and payloads both ways.

use super::*;
use crate::codec::channel_header;

fn world_with_alice() -> (World, Client, SocketAddr) {
    let mut world = World::new();
    let mut alice = world.client(1);
    let relayed = world.allocate(&mut alice);
    (world, alice, relayed)
}

#[test]
fn nothing_passes_without_a_permission_and_it_ends() {
    let (mut world, mut alice, relayed) = world_with_alice();
    assert!(world.send(&alice, "8.8.8.8:53", b"x").is_none());
    assert!(world.arrive(relayed, "8.8.8.8:53").is_none());
    assert_eq!(
        world.permit(&mut alice, "8.8.8.8:0"),
        0,
        "the port does not count"
    );
    let forward = world.send(&alice, "8.8.8.8:53", b"x").unwrap();
    let Forward::Peer {
        to, dont_fragment, ..
    } = forward
    else {
        panic!("{forward:?}")
    };
    assert_eq!((to, dont_fragment), ("8.8.8.8:53".parse().unwrap(), false));
    let back = world.arrive(relayed, "8.8.8.8:9999").unwrap();
    assert_eq!(back.client, alice.addr);
    let Framing::Indication { id, peer } = back.framing else {
        panic!("{back:?}")
    };
    let bytes = data_indication(id, peer, b"hello");
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(
        (message.class(), message.method()),
        (Class::Indication, method::DATA)
    );
    assert_eq!(message.get(attribute::DATA), Some(&b"hello"[..]));
    let told = message.get(attribute::XOR_PEER_ADDRESS).unwrap();
    assert_eq!(
        message.xor_address(told),
        Some("8.8.8.8:9999".parse().unwrap())
    );

    assert!(
        world.arrive(relayed, "8.8.4.4:53").is_none(),
        "another address"
    );
    world.pass(299);
    assert!(world.arrive(relayed, "8.8.8.8:1").is_some());
    world.pass(1);
    assert!(world.arrive(relayed, "8.8.8.8:1").is_none());
    assert!(world.send(&alice, "8.8.8.8:53", b"x").is_none());
    let counters = world.server.counters();
    assert_eq!((counters.packets_up, counters.packets_down), (1, 2));
    assert_eq!((counters.unpermitted_up, counters.unpermitted_down), (2, 3));
}

#[test]
fn channels_carry_both_ways_and_keep_their_rules() {
    let (mut world, mut alice, relayed) = world_with_alice();
    for (number, code) in [
        (0x3FFF, 400),
        (0x5000, 400),
        (0x7FFE, 400),
        (0xFFFF, 400),
        (0x4FFF, 0),
        (0x4000, 0),
    ] {
        let peer = format!("8.8.8.8:{}", number % 1000);
        assert_eq!(world.bind(&mut alice, number, &peer), code, "{number:#x}");
    }
    assert_eq!(
        world.bind(&mut alice, 0x4000, "8.8.8.8:7"),
        400,
        "the number has a peer"
    );
    assert_eq!(
        world.bind(&mut alice, 0x4001, "8.8.8.8:384"),
        400,
        "the peer has a number"
    );
    assert_eq!(
        world.bind(&mut alice, 0x4000, "8.8.8.8:384"),
        0,
        "again is a refresh"
    );

    let forward = world.send_on(&alice, 0x4000, b"payload").unwrap();
    assert!(matches!(forward, Forward::Peer { to, .. } if to == "8.8.8.8:384".parse().unwrap()));
    assert!(world.send_on(&alice, 0x4002, b"payload").is_none());
    let back = world.arrive(relayed, "8.8.8.8:384").unwrap();
    assert_eq!(back.framing, Framing::Channel(0x4000));
    assert!(matches!(
        world.arrive(relayed, "8.8.8.8:1").unwrap().framing,
        Framing::Indication { .. }
    ));

    // The permission ends first; the channel's peer is let in again by a new one.
    world.pass(301);
    world.ask(&mut alice, method::REFRESH, &[]);
    assert!(world.arrive(relayed, "8.8.8.8:384").is_none());
    assert_eq!(world.permit(&mut alice, "8.8.8.8:1"), 0);
    assert_eq!(
        world.arrive(relayed, "8.8.8.8:384").unwrap().framing,
        Framing::Channel(0x4000)
    );
    world.pass(299);
    assert!(
        world.send_on(&alice, 0x4000, b"payload").is_none(),
        "after 600 s"
    );
    assert_eq!(
        world.bind(&mut alice, 0x4000, "8.8.4.4:1"),
        0,
        "the number is free"
    );
}

#[test]
fn old_channel_numbers_by_a_switch() {
    let mut world = World::with(Config {
        old_clients: true,
        ..config()
    });
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    assert_eq!(world.bind(&mut alice, 0x7FFE, "8.8.8.8:1"), 0);
    assert_eq!(world.bind(&mut alice, 0x7FFF, "8.8.8.8:2"), 400);
    assert!(world.send_on(&alice, 0x7FFE, b"x").is_some());
    let dual = raw(0x8032, &[2, 0, 0, 0]);
    let mut bob = world.client(2);
    let response = world.ask(&mut bob, method::ALLOCATE, &[udp(), dual]);
    assert_eq!(response.addresses(attribute::XOR_RELAYED_ADDRESS).len(), 2);
}

#[test]
fn permissions_and_channels_have_their_caps() {
    let (mut world, mut alice, _) = world_with_alice();
    for n in 0..4 {
        assert_eq!(
            world.bind(&mut alice, 0x4000 + n, &format!("8.8.8.{n}:1")),
            0
        );
    }
    assert_eq!(world.bind(&mut alice, 0x4100, "8.8.8.0:9"), 508);
    for n in 4..8 {
        assert_eq!(world.permit(&mut alice, &format!("8.8.8.{n}:1")), 0);
    }
    assert_eq!(world.permit(&mut alice, "8.8.9.1:1"), 508);
    assert_eq!(
        world.permit(&mut alice, "8.8.8.7:1"),
        0,
        "one that is there is refreshed"
    );
    // All or none.
    let both = [
        Attr::Peer("8.8.8.1:1".parse().unwrap()),
        Attr::Peer("8.8.9.1:1".parse().unwrap()),
    ];
    assert_eq!(
        world.ask(&mut alice, method::CREATE_PERMISSION, &both).code,
        508
    );
    world.pass(301);
    assert_eq!(
        world.permit(&mut alice, "8.8.9.1:1"),
        0,
        "what expired makes room"
    );
}

#[test]
fn a_permission_request_is_done_whole_or_not() {
    let (mut world, mut alice, relayed) = world_with_alice();
    let peers = |texts: &[&str]| -> Vec<Attr> {
        texts
            .iter()
            .map(|text| Attr::Peer(text.parse().unwrap()))
            .collect()
    };
    for (texts, code) in [
        (&["8.8.8.8:1", "127.0.0.1:1"][..], 403),
        (&["8.8.8.8:1", "[2a00::9]:1"], 443),
        (&[], 400),
    ] {
        assert_eq!(
            world
                .ask(&mut alice, method::CREATE_PERMISSION, &peers(texts))
                .code,
            code
        );
        assert!(world.arrive(relayed, "8.8.8.8:1").is_none(), "{texts:?}");
    }
    let cut = [
        peers(&["8.8.8.8:1"]).remove(0),
        raw(attribute::XOR_PEER_ADDRESS, &[0, 1, 0]),
    ];
    assert_eq!(
        world.ask(&mut alice, method::CREATE_PERMISSION, &cut).code,
        400
    );
    assert_eq!(
        world
            .ask(
                &mut alice,
                method::CREATE_PERMISSION,
                &peers(&["8.8.8.8:1", "8.8.4.4:1"])
            )
            .code,
        0
    );
    assert!(world.arrive(relayed, "8.8.4.4:1").is_some());
}

#[test]
fn relay_to_relay_stays_inside_and_keeps_both_permissions() {
    let mut world = World::new();
    let (mut alice, mut bob) = (world.client(1), world.client(2));
    let (at_alice, at_bob) = (world.allocate(&mut alice), world.allocate(&mut bob));
    assert_eq!(at_bob.ip(), IpAddr::from([8, 1, 1, 1]));
    assert_eq!(
        world.permit(&mut alice, &at_bob.to_string()),
        0,
        "our own address is reachable for this"
    );
    assert!(
        world.send(&alice, &at_bob.to_string(), b"x").is_none(),
        "bob has not permitted it"
    );
    assert_eq!(world.permit(&mut bob, &at_alice.to_string()), 0);
    let forward = world.send(&alice, &at_bob.to_string(), b"x").unwrap();
    let Forward::Client(to) = forward else {
        panic!("{forward:?}")
    };
    assert_eq!(to.client, bob.addr);
    assert!(matches!(to.framing, Framing::Indication { peer, .. } if peer.0 == at_alice));
    assert_eq!(world.bind(&mut bob, 0x4000, &at_alice.to_string()), 0);
    assert_eq!(world.bind(&mut alice, 0x4000, &at_bob.to_string()), 0);
    let forward = world.send_on(&alice, 0x4000, b"x").unwrap();
    assert_eq!(
        forward,
        Forward::Client(ToClient {
            client: bob.addr,
            framing: Framing::Channel(0x4000)
        })
    );
    // Ports of ours that relay nothing are no peers.
    for port in [
        3478,
        22,
        49_999,
        if at_bob.port() == 50_000 {
            50_001
        } else {
            50_000
        },
    ] {
        if port == at_alice.port() {
            continue;
        }
        let peer = format!("8.1.1.1:{port}");
        assert_eq!(world.bind(&mut alice, 0x4001, &peer), 403, "{port}");
        assert!(world.send(&alice, &peer, b"x").is_none());
    }
    world.ask(&mut bob, method::REFRESH, &[lifetime(0)]);
    assert!(
        world.send(&alice, &at_bob.to_string(), b"x").is_none(),
        "bob is gone"
    );
}

#[test]
fn another_threads_relay_is_reached_by_what_it_is_bound_to() {
    let mut world = World::new();
    let mut alice = world.client(1);
    let at_alice = world.allocate(&mut alice);
    // Another thread takes a port of the same range.
    let ports = Arc::clone(&world.server.config.relay_v4.as_ref().unwrap().ports);
    let other = ports.take(at_alice.port() - 50_000 + 1, 1).unwrap();
    let (external, local) = (format!("8.1.1.1:{other}"), format!("10.0.0.5:{other}"));
    assert_eq!(world.permit(&mut alice, &external), 0);
    let forward = world.send(&alice, &external, b"x").unwrap();
    assert!(matches!(forward, Forward::Peer { to, .. } if to == local.parse().unwrap()));
    let back = world.arrive(at_alice, &local).unwrap();
    assert!(
        matches!(back.framing, Framing::Indication { peer, .. } if peer.0 == external.parse().unwrap())
    );
    assert_eq!(
        world.permit(&mut alice, &local),
        403,
        "its private name is no peer"
    );
    assert!(
        world.arrive(at_alice, "10.0.0.5:22").is_none(),
        "nor is the rest of this machine"
    );
}

#[test]
fn a_user_over_its_rate_loses_packets() {
    let mut config = config();
    config.quotas.user_bytes_per_second = 10_000;
    let mut world = World::with(config);
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    world.permit(&mut alice, "8.8.8.8:1");
    let passed = (0..50)
        .filter(|_| world.send(&alice, "8.8.8.8:1", &[0; 100]).is_some())
        .count();
    assert_eq!(passed, 10, "a tenth of a second");
    assert_eq!(world.server.counters().over_rate, 40);
}

#[test]
fn of_a_run_as_much_passes_as_the_rate_has_room_for() {
    let mut config = config();
    config.quotas.user_bytes_per_second = 10_000;
    let mut world = World::with(config);
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    world.bind(&mut alice, 0x4000, "8.8.8.8:1");
    let header = channel_header(0x4000, 100).unwrap();
    let frame = [&header[..], &[0; 100]].concat();
    let now = world.now.instant;
    let sent = world.server.handle_alike(&alice.addr, &frame, 40, now);
    assert_eq!(sent, 10, "a tenth of a second");
    let counters = world.server.counters();
    assert_eq!((counters.packets_up, counters.bytes_up), (10, 1000));
    assert_eq!(counters.over_rate, 30);
}

#[test]
fn dont_fragment_and_icmp() {
    let (mut world, mut alice, relayed) = world_with_alice();
    world.permit(&mut alice, "8.8.8.8:1");
    let mut writer = Writer::new(Class::Indication, method::SEND, world.id());
    writer.add_xor_address(attribute::XOR_PEER_ADDRESS, "8.8.8.8:1".parse().unwrap());
    writer.add(attribute::DONT_FRAGMENT, &[]);
    writer.add(attribute::DATA, b"whole");
    let bytes = writer.finish(None, false);
    let (forward, _) = world
        .server
        .handle_client(&alice.addr, &bytes, world.now)
        .unwrap();
    assert!(matches!(
        forward,
        Forward::Peer {
            dont_fragment: true,
            ..
        }
    ));

    let relay = *world
        .relays
        .iter()
        .find(|(_, at)| at.port() == relayed.port())
        .unwrap()
        .0;
    let error = IcmpError {
        kind: 3,
        code: 4,
        data: 1400,
    };
    world.server.handle_icmp(
        relay,
        "8.8.4.4:1".parse().unwrap(),
        error,
        world.now.instant,
    );
    world.obey();
    assert!(world.sent.is_empty(), "no permission, no news");
    world.server.handle_icmp(
        relay,
        "8.8.8.8:1".parse().unwrap(),
        error,
        world.now.instant,
    );
    world.obey();
    let (to, bytes) = world.sent.pop().unwrap();
    assert_eq!(to, alice.addr);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(
        (message.class(), message.method()),
        (Class::Indication, method::DATA)
    );
    assert_eq!(
        message.get(attribute::ICMP).unwrap(),
        [0, 0, 3 << 1, 4, 0, 0, 5, 120]
    );
    assert!(!message.has(attribute::DATA));
}

#[test]
fn a_deny_list_that_comes_later_takes_back() {
    let (mut world, mut alice, relayed) = world_with_alice();
    world.bind(&mut alice, 0x4000, "8.8.8.8:1");
    world.permit(&mut alice, "8.8.4.4:1");
    let mut config = config();
    config.policy.deny = vec!["8.8.8.0/24".parse().unwrap()];
    world.server.set_config(Arc::new(config));
    assert!(world.send_on(&alice, 0x4000, b"x").is_none());
    assert!(world.arrive(relayed, "8.8.8.8:1").is_none());
    assert!(world.arrive(relayed, "8.8.4.4:1").is_some());
}
