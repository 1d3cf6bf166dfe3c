//! Allocate and Refresh: what is granted, for how long, and that it all comes back.

use super::*;

fn family(number: u8) -> Attr {
    raw(attribute::REQUESTED_ADDRESS_FAMILY, &[number, 0, 0, 0])
}

fn dual() -> Attr {
    raw(attribute::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0])
}

fn even(bits: u8) -> Attr {
    raw(attribute::EVEN_PORT, &[bits])
}

#[test]
fn an_allocation_lives_is_refreshed_and_ends_with_its_time() {
    let mut world = World::new();
    let mut alice = world.client(1);
    let response = world.ask(&mut alice, method::ALLOCATE, &[udp()]);
    assert_eq!((response.code, response.lifetime()), (0, 600));
    let relayed = response.relayed();
    assert_eq!(
        relayed.ip(),
        IpAddr::from([8, 1, 1, 1]),
        "the external address is told"
    );
    assert_eq!(
        world.relays.values().next().unwrap().ip(),
        IpAddr::from([10, 0, 0, 5])
    );
    assert_eq!(
        response.addresses(attribute::XOR_MAPPED_ADDRESS),
        [alice.addr.remote]
    );
    assert!(response.get(0x8022).is_none(), "no SOFTWARE");

    world.pass(599);
    assert_eq!(world.ask(&mut alice, method::REFRESH, &[]).lifetime(), 600);
    world.pass(599);
    assert_eq!((world.server.allocations(), world.ports()), (1, 1));
    world.pass(1);
    assert_eq!((world.server.allocations(), world.ports()), (0, 0));
    assert!(world.relays.is_empty());
    assert_eq!(world.ask(&mut alice, method::REFRESH, &[]).code, 437);
    assert_eq!(world.shared.ledger.count(), (0, 0));
}

#[test]
fn lifetimes_are_bounded_and_zero_ends_at_once() {
    let mut world = World::new();
    for (wish, granted) in [
        (1, 600),
        (599, 600),
        (601, 601),
        (3600, 3600),
        (3601, 3600),
        (u32::MAX, 3600),
    ] {
        let mut alice = world.client(1);
        let response = world.ask(&mut alice, method::ALLOCATE, &[udp(), lifetime(wish)]);
        assert_eq!((response.code, response.lifetime()), (0, granted));
        let response = world.ask(&mut alice, method::REFRESH, &[lifetime(wish)]);
        assert_eq!((response.code, response.lifetime()), (0, granted));
        let response = world.ask(&mut alice, method::REFRESH, &[lifetime(0)]);
        assert_eq!((response.code, response.lifetime()), (0, 0));
        assert_eq!((world.server.allocations(), world.ports()), (0, 0));
        assert_eq!(world.server.poll_timeout(), None);
    }
}

#[test]
fn a_retransmission_is_answered_alike_and_another_request_is_a_mismatch() {
    let mut world = World::new();
    let mut alice = world.client(1);
    let relayed = world.allocate(&mut alice);
    let id = world.server.get(AllocationId(0)).unwrap().id;
    let again = alice.sign(method::ALLOCATE, id, &[udp()], &[]);
    let response = world.raw(&alice.addr, &again).unwrap();
    assert_eq!((response.code, response.relayed()), (0, relayed));
    assert_eq!(world.ask(&mut alice, method::ALLOCATE, &[udp()]).code, 437);
    assert_eq!((world.server.allocations(), world.ports()), (1, 1));
}

#[test]
fn families_alone_together_and_missing() {
    let mut world = World::new();
    let mut clients: Vec<Client> = (0..6).map(|n| world.client(n)).collect();
    let v6 = world.ask(&mut clients[0], method::ALLOCATE, &[udp(), family(2)]);
    assert!(v6.relayed().is_ipv6());
    let v4 = world.ask(&mut clients[1], method::ALLOCATE, &[udp(), family(1)]);
    assert!(v4.relayed().is_ipv4());
    let both = world.ask(&mut clients[2], method::ALLOCATE, &[udp(), dual()]);
    let addresses = both.addresses(attribute::XOR_RELAYED_ADDRESS);
    assert!(addresses.len() == 2 && addresses[0].is_ipv4() && addresses[1].is_ipv6());
    assert_eq!(
        world
            .ask(&mut clients[3], method::ALLOCATE, &[udp(), family(3)])
            .code,
        440
    );

    // One family of a dual allocation ends; the other goes on.
    let refresh = world.ask(&mut clients[2], method::REFRESH, &[lifetime(0), family(2)]);
    assert_eq!(refresh.code, 0);
    assert_eq!(
        world
            .ask(&mut clients[2], method::REFRESH, &[family(2)])
            .code,
        443
    );
    assert_eq!(
        world
            .ask(&mut clients[2], method::REFRESH, &[family(1)])
            .code,
        0
    );
    assert_eq!(world.permit(&mut clients[2], "[2a00::9]:1"), 443);
    assert_eq!(world.permit(&mut clients[2], "8.8.8.8:1"), 0);

    let mut only_v4 = World::with(Config {
        relay_v6: None,
        ..config()
    });
    let mut alice = only_v4.client(1);
    let response = only_v4.ask(&mut alice, method::ALLOCATE, &[udp(), dual()]);
    assert!(response.code == 0 && response.relayed().is_ipv4());
    let error = response.get(attribute::ADDRESS_ERROR_CODE).unwrap();
    assert_eq!(error[..4], [2, 0, 4, 40]);
    let mut bob = only_v4.client(2);
    assert_eq!(
        only_v4
            .ask(&mut bob, method::ALLOCATE, &[udp(), family(2)])
            .code,
        440
    );
    assert_eq!(only_v4.ports(), 1);
}

#[test]
fn what_contradicts_itself_is_a_bad_request() {
    let mut world = World::new();
    let token = raw(attribute::RESERVATION_TOKEN, &[1; 8]);
    let cases: [(&[Attr], u16); 12] = [
        (&[], 400),
        (&[raw(attribute::REQUESTED_TRANSPORT, &[17])], 400),
        (&[raw(attribute::REQUESTED_TRANSPORT, &[6, 0, 0, 0])], 442),
        (&[udp(), family(1), dual()], 400),
        (
            &[
                udp(),
                raw(attribute::ADDITIONAL_ADDRESS_FAMILY, &[1, 0, 0, 0]),
            ],
            400,
        ),
        (&[udp(), even(0x80), dual()], 400),
        (&[udp(), token.clone(), even(0)], 400),
        (&[udp(), token.clone(), family(1)], 400),
        (&[udp(), raw(attribute::RESERVATION_TOKEN, &[1; 7])], 400),
        (&[udp(), raw(attribute::LIFETIME, &[0; 3])], 400),
        (&[udp(), token], 508),
        (&[udp(), raw(attribute::EVEN_PORT, &[])], 400),
    ];
    for (n, (attributes, code)) in cases.iter().enumerate() {
        let mut alice = world.client(n as u16);
        assert_eq!(
            world.ask(&mut alice, method::ALLOCATE, attributes).code,
            *code,
            "case {n}"
        );
    }
    assert_eq!((world.server.allocations(), world.ports()), (0, 0));
    assert_eq!(world.shared.ledger.count(), (0, 0));
    let mut alice = world.client(1);
    let unknown = raw(0x7FFF, &[1, 2]);
    let response = world.ask(&mut alice, method::ALLOCATE, &[udp(), unknown]);
    assert_eq!(response.code, 420);
    assert_eq!(
        response.get(attribute::UNKNOWN_ATTRIBUTES).unwrap(),
        [0x7F, 0xFF]
    );
}

#[test]
fn an_even_port_holds_the_next_for_its_user_alone() {
    let mut world = World::new();
    let mut alice = world.client(1);
    let response = world.ask(&mut alice, method::ALLOCATE, &[udp(), even(0x80)]);
    let rtp = response.relayed();
    assert_eq!(rtp.port() % 2, 0);
    let token = raw(
        attribute::RESERVATION_TOKEN,
        &response.get(attribute::RESERVATION_TOKEN).unwrap(),
    );
    assert_eq!(world.ports(), 2);
    let kept: Vec<u16> = world.kept.iter().map(SocketAddr::port).collect();
    assert_eq!(kept, [rtp.port() + 1], "bound before anybody comes for it");

    let mut bob = world.client(2);
    (bob.username, bob.password) = ("bob".into(), "builder".into());
    assert_eq!(
        world
            .ask(&mut bob, method::ALLOCATE, &[udp(), token.clone()])
            .code,
        508
    );
    let mut second = world.client(3);
    let response = world.ask(&mut second, method::ALLOCATE, &[udp(), token.clone()]);
    assert_eq!(response.code, 0);
    assert_eq!(response.relayed().port(), rtp.port() + 1);
    assert!(world.kept.is_empty());
    let mut third = world.client(4);
    assert_eq!(
        world
            .ask(&mut third, method::ALLOCATE, &[udp(), token])
            .code,
        508,
        "used"
    );
    let mut fourth = world.client(5);
    let even_alone = world.ask(&mut fourth, method::ALLOCATE, &[udp(), even(0)]);
    assert_eq!(even_alone.relayed().port() % 2, 0);
    assert!(even_alone.get(attribute::RESERVATION_TOKEN).is_none());
}

#[test]
fn reserved_ports_do_not_leak() {
    let mut world = World::new();
    for round in 0..500 {
        let mut alice = world.client(round);
        let response = world.ask(&mut alice, method::ALLOCATE, &[udp(), even(0x80)]);
        assert_eq!(response.code, 0, "round {round}");
        match round % 3 {
            // Never claimed, its allocation ends first, or last.
            0 => drop(world.ask(&mut alice, method::REFRESH, &[lifetime(0)])),
            1 => world
                .server
                .handle_disconnected(&alice.addr, world.now.instant),
            _ => {}
        }
        world.pass(31);
        assert!(world.ports() <= 20, "{} taken after {round}", world.ports());
    }
    world.pass(700);
    assert_eq!(world.ports(), 0);
    assert_eq!(world.shared.ledger.count(), (0, 0));
    assert_eq!(world.server.poll_timeout(), None);
}

#[test]
fn ports_of_other_programs_are_passed_over_and_a_full_range_is_said() {
    let mut world = World::new();
    world.busy = (50_000..50_100).filter(|port| port % 5 != 0).collect();
    let mut made = 0;
    for n in 0..40 {
        let mut alice = world.client(n);
        let attributes: &[Attr] = if n % 2 == 0 {
            &[udp()]
        } else {
            &[udp(), even(0)]
        };
        made += usize::from(world.ask(&mut alice, method::ALLOCATE, attributes).code == 0);
    }
    assert!(made > 5, "{made}");
    assert_eq!(world.ports(), world.relays.len(), "failures hold no port");
    assert_eq!(world.shared.ledger.count().0 as usize, world.relays.len());

    let mut world = World::new();
    let codes: Vec<u16> = (0..101)
        .map(|n| {
            let mut alice = world.client(n);
            world.ask(&mut alice, method::ALLOCATE, &[udp()]).code
        })
        .collect();
    assert!(codes[..100].iter().all(|code| *code == 0));
    assert_eq!(codes[100], 508);
}

#[test]
fn quotas_are_named_and_come_back() {
    let mut config = config();
    config.quotas.user = 2;
    let mut world = World::with(config);
    let mut clients: Vec<Client> = (0..3).map(|n| world.client(n)).collect();
    world.allocate(&mut clients[0]);
    // A reservation counts, and what it does not get is not held.
    let response = world.ask(&mut clients[1], method::ALLOCATE, &[udp(), even(0x80)]);
    assert_eq!(response.code, 486);
    assert_eq!((world.ports(), world.kept.len()), (1, 0));
    world.allocate(&mut clients[1]);
    assert_eq!(
        world.ask(&mut clients[2], method::ALLOCATE, &[udp()]).code,
        486
    );
    world.ask(&mut clients[0], method::REFRESH, &[lifetime(0)]);
    world.allocate(&mut clients[2]);
}

#[test]
fn a_closed_connection_and_a_drain() {
    let mut world = World::new();
    let mut alice = world.client(1);
    alice.addr.transport = Transport::Tcp;
    world.allocate(&mut alice);
    assert!(world.server.has_allocation(&alice.addr));
    world
        .server
        .handle_disconnected(&alice.addr, world.now.instant);
    world.obey();
    assert_eq!(
        (
            world.server.allocations(),
            world.ports(),
            world.relays.len()
        ),
        (0, 0, 0)
    );

    world.allocate(&mut alice);
    world.server.drain();
    let mut bob = world.client(2);
    assert_eq!(world.ask(&mut bob, method::ALLOCATE, &[udp()]).code, 508);
    assert_eq!(world.ask(&mut alice, method::REFRESH, &[]).code, 0);
}

#[test]
fn a_binding_tells_the_address_and_no_more() {
    let mut world = World::new();
    for remote in ["9.9.9.9:1234", "[2a00::9]:1234", "[::ffff:9.9.9.9]:1234"] {
        let mut addr = world.client(1).addr;
        addr.remote = remote.parse().unwrap();
        let id = world.id();
        let request = plain(method::BINDING, id, &[]);
        let response = world.raw(&addr, &request).unwrap();
        let told = response.addresses(attribute::XOR_MAPPED_ADDRESS);
        assert_eq!(told, [canonical(addr.remote)]);
        let ip = if told[0].is_ipv4() { 28 } else { 48 };
        let ratio = (response.bytes.len() + ip) as f64 / (request.len() + ip) as f64;
        assert!(ratio <= 1.6, "{ratio}");
    }
    assert!(world.server.clients.is_empty());
}
