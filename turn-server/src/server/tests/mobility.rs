//! Clients that come from another address (RFC 8016).

use super::*;
use crate::server::mobility::TICKET_LEN;

fn ticket(bytes: &[u8]) -> Attr {
    raw(attribute::MOBILITY_TICKET, bytes)
}

/// The relayed address and the ticket.
fn allocate(world: &mut World, client: &mut Client) -> (SocketAddr, Vec<u8>) {
    let response = world.ask(client, method::ALLOCATE, &[udp(), ticket(&[])]);
    assert_eq!(response.code, 0);
    let ticket = response.get(attribute::MOBILITY_TICKET).unwrap();
    (response.relayed(), ticket)
}

/// The same client at another address, which the server has not seen yet.
fn moved(world: &World, client: &Client, n: u16) -> Client {
    let mut moved = world.client(n);
    moved.username.clone_from(&client.username);
    moved.password.clone_from(&client.password);
    moved
}

/// Refresh with a ticket where another thread may have to be asked: the answer comes when letters were carried.
fn show(worlds: &mut [World; 2], at: usize, client: &mut Client, shown: &[u8]) -> Response {
    let world = &mut worlds[at];
    let id = world.id();
    let challenge = world.raw(&client.addr, &plain(method::REFRESH, id, &[]));
    client.nonce = challenge.unwrap().get(attribute::NONCE).unwrap();
    let id = world.id();
    let bytes = client.sign(method::REFRESH, id, &[ticket(shown)], &[]);
    let answer = world.raw(&client.addr, &bytes);
    carry(worlds);
    answer.unwrap_or_else(|| {
        let (to, bytes) = worlds[at].sent.pop().expect("an answer");
        assert_eq!(to, client.addr);
        let message = Message::parse(&bytes).unwrap();
        assert!(message.is_authentic(&client.key()));
        let code = message
            .get(attribute::ERROR_CODE)
            .map_or(0, |value| u16::from(value[2]) * 100 + u16::from(value[3]));
        Response { code, bytes }
    })
}

/// Carries letters between threads until there are none, sockets with them, as a shell does.
fn carry(worlds: &mut [World; 2]) {
    loop {
        let mut letters = Vec::new();
        for world in worlds.iter_mut() {
            for (shard, handover) in std::mem::take(&mut world.handed) {
                let sockets = take_sockets(world, &handover);
                letters.push((usize::from(shard), handover, sockets));
            }
        }
        if letters.is_empty() {
            return;
        }
        for (shard, handover, sockets) in letters {
            let world = &mut worlds[shard];
            let names = world.server.handle_handover(handover, world.now);
            world.relays.extend(names.into_iter().zip(sockets));
            world.obey();
        }
    }
}

fn take_sockets(world: &mut World, handover: &Handover) -> Vec<SocketAddr> {
    let names = handover.relays();
    names
        .iter()
        .map(|name| world.relays.remove(name).unwrap())
        .collect()
}

#[test]
fn a_client_takes_its_allocation_along_within_a_thread_and_to_another() {
    for at in [0, 1] {
        let mut worlds = World::pair(config());
        let mut old = worlds[0].client(1);
        let (relayed, first) = allocate(&mut worlds[0], &mut old);
        assert_eq!(worlds[0].bind(&mut old, 0x4000, "8.8.8.8:7"), 0);
        let mut new = moved(&worlds[at], &old, 2);
        let response = show(&mut worlds, at, &mut new, &first);
        assert_eq!((response.code, response.lifetime()), (0, 600));
        let second = response.get(attribute::MOBILITY_TICKET).unwrap();
        assert_ne!(second, first);

        // Channel, permission and relayed address are what they were, at the new place alone.
        let world = &mut worlds[at];
        let forward = world.send_on(&new, 0x4000, b"x");
        let Some(Forward::Peer { relay, to, .. }) = forward else {
            panic!("{forward:?}")
        };
        assert_eq!(to, "8.8.8.8:7".parse().unwrap());
        assert_eq!(world.relays[&relay].port(), relayed.port());
        let back = world.arrive(relayed, "8.8.8.8:7").unwrap();
        assert_eq!(
            (back.client, back.framing),
            (new.addr, Framing::Channel(0x4000))
        );
        assert!(worlds[0].send_on(&old, 0x4000, b"x").is_none());
        let counted = worlds[0].shared.ledger.count();
        assert_eq!(counted, (1, 1), "inside its quota");

        // A retransmission of the Refresh is answered, and the old ticket is worth nothing.
        let again = show(&mut worlds, at, &mut new, &first);
        assert_eq!(again.get(attribute::MOBILITY_TICKET).unwrap(), second);
        let mut late = moved(&worlds[0], &old, 3);
        assert_eq!(show(&mut worlds, 0, &mut late, &first).code, 400);

        // And back, with the new one.
        let mut home = moved(&worlds[0], &old, 4);
        assert_eq!(show(&mut worlds, 0, &mut home, &second).code, 0);
        assert!(worlds[0].send_on(&home, 0x4000, b"x").is_some());
        assert_eq!(
            worlds[0]
                .ask(&mut home, method::REFRESH, &[lifetime(0)])
                .code,
            0
        );
        for world in &worlds {
            assert_eq!((world.server.allocations(), world.ports()), (0, 0));
            assert!(world.relays.is_empty());
        }
        assert_eq!(worlds[0].shared.ledger.count(), (0, 0));
    }
}

#[test]
fn a_ticket_of_another_user_or_a_guess_moves_nothing() {
    let mut worlds = World::pair(config());
    let mut alice = worlds[0].client(1);
    let (_, good) = allocate(&mut worlds[0], &mut alice);
    for at in [0, 1] {
        let mut bob = worlds[at].client(10 + at as u16);
        (bob.username, bob.password) = ("bob".into(), "builder".into());
        assert_eq!(show(&mut worlds, at, &mut bob, &good).code, 441);
        let mut guess = moved(&worlds[at], &alice, 20 + at as u16);
        for byte in 0..TICKET_LEN {
            let mut wrong = good.clone();
            wrong[byte] = if wrong[byte] == b'A' { b'B' } else { b'A' };
            if wrong == good || byte < 2 {
                continue;
            }
            let (code, handed) = {
                let response = show(&mut worlds, at, &mut guess, &wrong);
                (response.code, worlds[at].handed.len())
            };
            assert_eq!((code, handed), (400, 0), "byte {byte}");
        }
        for wrong in [&good[1..], &[], &[0; 500]] {
            assert_eq!(show(&mut worlds, at, &mut guess, wrong).code, 400);
        }
    }
    // Who did not ask for a ticket has none that could be guessed.
    let mut plain = worlds[0].client(30);
    worlds[0].allocate(&mut plain);
    let mut zero = moved(&worlds[0], &plain, 31);
    let mut nothing = good.clone();
    // Thread 0, place 1, a secret of zeros.
    nothing.copy_from_slice(b"AAAAAAEAAAAAAAAAAAAAAAAAAAAA");
    assert_eq!(show(&mut worlds, 0, &mut zero, &nothing).code, 400);
    assert_eq!(worlds[0].server.allocations(), 2);
}

#[test]
fn a_movable_allocation_waits_for_its_client_when_the_connection_broke() {
    let mut worlds = World::pair(config());
    let mut tcp = worlds[0].client(1);
    tcp.addr.transport = Transport::Tcp;
    let (relayed, first) = allocate(&mut worlds[0], &mut tcp);
    assert_eq!(worlds[0].permit(&mut tcp, "8.8.8.8:7"), 0);
    let world = &mut worlds[0];
    world
        .server
        .handle_disconnected(&tcp.addr, world.now.instant);
    world.pass(59);
    // Whoever has the place of the connection now gets nothing of it.
    let to = world.arrive(relayed, "8.8.8.8:7").unwrap();
    assert_ne!(to.client, tcp.addr);
    let mut new = moved(world, &tcp, 2);
    let response = show(&mut worlds, 1, &mut new, &first);
    assert_eq!((response.code, response.lifetime()), (0, 600));
    worlds[1].now = worlds[0].now;
    worlds[1].pass(500);
    assert_eq!(worlds[1].server.allocations(), 1);

    // Nobody comes: it ends a minute later, at the same address twice as well.
    for _ in 0..2 {
        allocate(&mut worlds[0], &mut tcp);
        let world = &mut worlds[0];
        world
            .server
            .handle_disconnected(&tcp.addr, world.now.instant);
        world.obey();
        assert_eq!(world.server.allocations(), 1);
    }
    worlds[0].pass(61);
    assert_eq!(worlds[0].server.allocations(), 0);
    assert_eq!(worlds[0].shared.ledger.count().0, 1);
}

#[test]
fn moving_counts_at_the_new_source_and_its_quota_holds() {
    let mut config = config();
    config.quotas.source = 1;
    let mut worlds = World::pair(config);
    let mut alice = worlds[0].client(1);
    let (_, ticket) = allocate(&mut worlds[0], &mut alice);
    let mut other = worlds[0].client(2);
    worlds[0].allocate(&mut other);
    for at in [0, 1] {
        // Another port of the source that is full.
        let mut crowded = moved(&worlds[at], &alice, 2);
        crowded.addr.remote.set_port(5000);
        assert_eq!(show(&mut worlds, at, &mut crowded, &ticket).code, 486);
    }
    let mut away = moved(&worlds[1], &alice, 3);
    assert_eq!(show(&mut worlds, 1, &mut away, &ticket).code, 0);
    // The old source has its place again.
    let mut new = worlds[0].client(1);
    new.addr.remote.set_port(5000);
    worlds[0].allocate(&mut new);
}

#[test]
fn an_allocation_that_finds_no_room_is_at_home_again() {
    let mut worlds = World::pair(config());
    let mut alice = worlds[0].client(1);
    let (relayed, first) = allocate(&mut worlds[0], &mut alice);
    assert_eq!(worlds[0].permit(&mut alice, "8.8.8.8:7"), 0);
    let mut new = moved(&worlds[1], &alice, 2);
    new.nonce = {
        let id = worlds[1].id();
        let bytes = plain(method::REFRESH, id, &[]);
        let challenge = worlds[1].raw(&new.addr, &bytes).unwrap();
        challenge.get(attribute::NONCE).unwrap()
    };
    let id = worlds[1].id();
    let bytes = new.sign(method::REFRESH, id, &[ticket(&first)], &[]);
    assert!(worlds[1].raw(&new.addr, &bytes).is_none());
    let (_, claim) = worlds[1].handed.pop().unwrap();
    let world = &mut worlds[0];
    world.server.handle_handover(claim, world.now);
    world.obey();
    let (_, arrival) = world.handed.pop().unwrap();
    let sockets = take_sockets(world, &arrival);
    let names = world.server.handle_undelivered(arrival, true);
    world.relays.extend(names.into_iter().zip(sockets));
    assert!(world.send(&alice, "8.8.8.8:7", b"x").is_some());
    assert_eq!(
        world.arrive(relayed, "8.8.8.8:7").unwrap().client,
        alice.addr
    );
    // A ticket of a thread that does not exist is refused.
    let mut far = first.clone();
    far[0] = b'z';
    let mut lost = moved(&worlds[1], &alice, 2);
    lost.addr.remote.set_port(5000);
    lost.nonce.clone_from(&new.nonce);
    let id = worlds[1].id();
    let bytes = lost.sign(method::REFRESH, id, &[ticket(&far)], &[]);
    worlds[1]
        .server
        .handle_client(&lost.addr, &bytes, worlds[1].now);
    worlds[1].obey();
    let (_, claim) = worlds[1].handed.pop().unwrap();
    assert!(worlds[1].server.handle_undelivered(claim, false).is_empty());
    let command = worlds[1].server.poll_command();
    assert!(matches!(command, Some(Command::Send { client, .. }) if client == lost.addr));
}
