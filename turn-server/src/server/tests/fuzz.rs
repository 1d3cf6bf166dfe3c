//! Whatever comes in, in whatever order: no panic, no growth, every port and place in the books accounted for.

#[path = "../../../../tests/hostile/mutator.rs"]
mod mutator;

use super::*;
use crate::codec::{ChannelData, stream_frame};
use mutator::Mutator;

/// Inputs where nothing else is said; `WICE_FUZZ_INPUTS` says otherwise.
const INPUTS: u64 = 200_000;
/// Steps between two looks at what must hold.
const AUDIT: u64 = 64;

fn inputs() -> u64 {
    std::env::var("WICE_FUZZ_INPUTS").map_or(INPUTS, |text| text.parse().unwrap())
}

/// A message of every kind, valid.
fn seeds(world: &mut World, client: &Client) -> Vec<Vec<u8>> {
    let peer = || Attr::Peer("8.8.8.8:1".parse().unwrap());
    let requests: [(u16, Vec<Attr>); 6] = [
        (method::ALLOCATE, vec![udp(), lifetime(700)]),
        (
            method::ALLOCATE,
            vec![udp(), raw(attribute::EVEN_PORT, &[0x80])],
        ),
        (method::REFRESH, vec![lifetime(600)]),
        (method::CREATE_PERMISSION, vec![peer(), peer()]),
        (method::CHANNEL_BIND, vec![channel(0x4000), peer()]),
        (method::BINDING, vec![]),
    ];
    let mut seeds: Vec<Vec<u8>> = requests
        .iter()
        .flat_map(|(method, attributes)| {
            let id = world.id();
            let mut better = client.clone();
            better.sha256 = true;
            [
                plain(*method, id, attributes),
                client.sign(*method, id, attributes, &[]),
                better.sign(*method, id, attributes, &[]),
            ]
        })
        .collect();
    let mut send = Writer::new(Class::Indication, method::SEND, world.id());
    peer().add(&mut send);
    send.add(attribute::DATA, b"payload");
    seeds.push(send.finish(None, true));
    seeds.push(
        [
            &crate::codec::channel_header(0x4000, 5).unwrap()[..],
            b"hello",
        ]
        .concat(),
    );
    seeds
}

#[test]
fn the_parsers_take_anything() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    let mut mutator = Mutator::new("turn-parsers", seeds(&mut world, &alice), 2048);
    let (mut parsed, total) = (0u64, inputs());
    for _ in 0..total {
        let input = mutator.input();
        let framed = stream_frame(&input);
        assert!(framed != Ok(Some(0)));
        if let Some(data) = ChannelData::parse(&input) {
            assert!(data.payload.len() + 4 <= input.len());
        }
        let Ok(message) = Message::parse(&input) else {
            continue;
        };
        parsed += 1;
        assert_eq!(framed, Ok(Some(input.len())), "a message is a frame");
        assert!(message.attributes().count() <= crate::codec::MAX_ATTRIBUTES);
        for (_, value) in message.attributes() {
            let _ = message.xor_address(value);
        }
        let _ = message.is_authentic(&alice.key());
        mutator.keep(input);
    }
    println!("fuzz turn-parsers: {total} inputs, {parsed} parsed");
    assert!(parsed > total / 100 && parsed < total);
}

#[test]
fn the_server_survives_any_sequence() {
    let mut config = config();
    config.quotas.user_bytes_per_second = 1_000_000;
    config.quotas.user = 20;
    config.tcp_relay = true;
    let mut world = World::with(config);
    let mut clients: Vec<Client> = (0..24).map(|n| world.client(n)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.sha256 = n % 2 == 1;
        if n % 6 == 5 {
            client.addr.transport = Transport::Tcp;
        }
        if n % 3 == 2 {
            (client.username, client.password) = ("bob".into(), "builder".into());
        }
    }
    let seeds = seeds(&mut world, &clients[0]);
    let mut mutator = Mutator::new("turn-sequences", seeds, 1600);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let total = inputs();
    let mut forwarded = 0u64;
    for step in 0..total {
        let at = rng.next_u32() as usize % clients.len();
        match rng.next_u32() % 64 {
            0..=23 => forwarded += u64::from(raw_frame(&mut world, &clients[at], &mutator.input())),
            24..=51 => signed(&mut world, &mut clients[at], &mut rng),
            52 => connections(&mut world, &mut rng),
            53..=57 => forwarded += u64::from(from_peer(&mut world, &mut rng)),
            58 => {
                world
                    .server
                    .handle_disconnected(&clients[at].addr, world.now.instant);
                world.obey();
            }
            59 => {
                world.busy = (0..rng.next_u32() % 90)
                    .map(|n| 50_000 + n as u16)
                    .collect()
            }
            60 => world.pass(u64::from(rng.next_u32() % 40)),
            61 if rng.next_u32().is_multiple_of(16) => world.pass(4000),
            _ => forwarded += u64::from(payload(&mut world, &clients[at], &mut rng)),
        }
        world.sent.clear();
        world.handed.clear();
        if step % AUDIT == 0 {
            audit(&world, clients.len());
        }
    }
    let counters = *world.server.counters();
    println!("fuzz turn-sequences: {total} steps, {forwarded} payloads, {counters:?}");
    assert!(
        counters.allocated > total / 200 && forwarded > total / 200,
        "it got somewhere"
    );
    let ended = world.closed.len();
    assert!(
        counters.moved > 0 && ended > 0 && !world.joined.is_empty(),
        "moved and joined as well"
    );
    world.pass(10_000);
    audit(&world, clients.len());
    assert_eq!((world.server.allocations(), world.ports()), (0, 0));
    assert_eq!(
        (world.relays.len(), world.shared.ledger.count()),
        (0, (0, 0))
    );
    assert_eq!(world.server.poll_timeout(), None);
}

/// What must hold at every moment.
fn audit(world: &World, clients: usize) {
    let server = &world.server;
    let live = server.allocations.iter().flatten().count();
    assert_eq!(server.clients.len(), live);
    assert_eq!(server.timers.len(), live);
    // Each client may have left one behind whose connection broke.
    assert!(live <= 2 * clients && server.allocations.len() <= 2 * clients);
    let relays = server.relays.iter().flatten().count();
    let datagrams = server.relays.iter().flatten();
    let datagrams = datagrams.filter(|relay| relay.kind == RelayKind::Udp);
    assert_eq!(
        (world.relays.len(), server.by_address.len()),
        (relays, datagrams.count())
    );
    let of_allocations = server.allocations.iter().flatten();
    let named = of_allocations.filter_map(|a| a.connections.as_ref());
    assert_eq!(named.map(Vec::len).sum::<usize>(), server.connections.len());
    let joined = server.connections.len() - server.connection_timers.len();
    assert_eq!(
        server.data_clients.len(),
        joined,
        "joined, or with a time limit"
    );
    assert!(server.openings.is_empty() && server.commands.is_empty());
    let (granted, _) = world.shared.ledger.count();
    let reserved = granted as usize - live;
    assert_eq!(
        world.ports(),
        relays + reserved,
        "ports, sockets and reservations"
    );
    for allocation in server.allocations.iter().flatten() {
        let relayed = allocation.all_relayed().count();
        assert!(relayed == 1 || relayed == 2);
        let (permissions, channels) = allocation.peers();
        assert!(permissions <= server.config.max_permissions);
        assert!(channels <= server.config.max_channels);
    }
}

fn raw_frame(world: &mut World, client: &Client, frame: &[u8]) -> bool {
    let forward = world.server.handle_client(&client.addr, frame, world.now);
    let there = forward.is_some_and(|(_, payload)| payload.len() <= frame.len());
    world.obey();
    there
}

fn payload(world: &mut World, client: &Client, rng: &mut ChaCha8Rng) -> bool {
    let peer = address(rng).to_string();
    if rng.next_u32().is_multiple_of(2) {
        world.send(client, &peer, b"payload").is_some()
    } else {
        let number = 0x4000 + (rng.next_u32() % 6) as u16;
        world.send_on(client, number, b"payload").is_some()
    }
}

fn from_peer(world: &mut World, rng: &mut ChaCha8Rng) -> bool {
    let relay = RelayId(rng.next_u32() % 30);
    let from = address(rng);
    let error = IcmpError {
        kind: rng.next_u32() as u8,
        code: rng.next_u32() as u8,
        data: rng.next_u32(),
    };
    world
        .server
        .handle_icmp(relay, from, error, world.now.instant);
    world.obey();
    let to = world
        .server
        .handle_peer(relay, from, (1, 100), world.now.instant);
    to.is_some()
}

/// Peers that accept or do not, that connect, and that close.
fn connections(world: &mut World, rng: &mut ChaCha8Rng) {
    let now = world.now.instant;
    while let Some((connection, _)) = world.connects.pop() {
        let connected = !rng.next_u32().is_multiple_of(4);
        world
            .server
            .handle_peer_connected(connection, connected, now);
    }
    let (relay, from) = (RelayId(rng.next_u32() % 30), address(rng));
    world.server.handle_peer_accepted(relay, from, now);
    let any = world.server.connections.keys().next().copied();
    if let Some(any) = any.filter(|_| rng.next_u32().is_multiple_of(8)) {
        world.server.handle_peer_closed(any);
    }
    world.obey();
}

/// A request that is truly its client's, of attributes that seldom fit together.
fn signed(world: &mut World, client: &mut Client, rng: &mut ChaCha8Rng) {
    // What datagrams need comes more often than what streams do.
    let methods = [
        method::ALLOCATE,
        method::REFRESH,
        method::CREATE_PERMISSION,
        method::CHANNEL_BIND,
        method::ALLOCATE,
        method::CREATE_PERMISSION,
        method::CHANNEL_BIND,
        method::CREATE_PERMISSION,
        method::CHANNEL_BIND,
        method::CONNECT,
        method::CONNECTION_BIND,
    ];
    let method = methods[rng.next_u32() as usize % methods.len()];
    let mut attributes: Vec<Attr> = match method {
        method::ALLOCATE if client.addr.transport == Transport::Tcp => {
            vec![raw(attribute::REQUESTED_TRANSPORT, &[6, 0, 0, 0])]
        }
        method::ALLOCATE => vec![udp()],
        method::CONNECT => vec![Attr::Peer(address(rng))],
        method::CONNECTION_BIND => {
            let any = world.server.connections.keys().next_back();
            let any = any.map_or(0, |connection| connection.0);
            vec![raw(attribute::CONNECTION_ID, &any.to_be_bytes())]
        }
        method::REFRESH => vec![],
        method::CREATE_PERMISSION => vec![Attr::Peer(address(rng))],
        _ => vec![
            channel(0x4000 + (rng.next_u32() % 6) as u16),
            Attr::Peer(address(rng)),
        ],
    };
    for _ in 0..rng.next_u32() % 3 {
        attributes.push(match rng.next_u32() % 14 {
            0 => lifetime(0),
            1 => lifetime(rng.next_u32() % 5000),
            2 => raw(attribute::EVEN_PORT, &[0x80]),
            3 => raw(attribute::EVEN_PORT, &[0]),
            4 => raw(attribute::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
            5 => raw(
                attribute::REQUESTED_ADDRESS_FAMILY,
                &[(rng.next_u32() % 4) as u8, 0, 0, 0],
            ),
            6 => Attr::Peer(address(rng)),
            7 => raw(attribute::DONT_FRAGMENT, &[]),
            8 => raw(
                rng.next_u32() as u16,
                &rng.next_u32().to_be_bytes()[..(rng.next_u32() % 5) as usize],
            ),
            9 => channel(rng.next_u32() as u16),
            10 => token(world),
            11 => raw(attribute::MOBILITY_TICKET, &[]),
            12 => ticket(world),
            _ => raw(attribute::LIFETIME, &[1]),
        });
    }
    if client.nonce.is_empty() {
        client.nonce = nonce::mint(
            &nonce_key(b"test"),
            source_of(client.addr.remote),
            world.now.unix,
            false,
        )
        .to_vec();
    }
    let id = world.id();
    let bytes = client.sign(method, id, &attributes, &[]);
    let response = world.raw(&client.addr, &bytes);
    if response.is_some_and(|response| response.code == 438) {
        client.nonce.clear();
    }
}

/// One that was told, if one was.
fn token(world: &World) -> Attr {
    let told = world
        .server
        .allocations
        .iter()
        .flatten()
        .find_map(|a| a.token);
    raw(attribute::RESERVATION_TOKEN, &told.unwrap_or_default())
}

/// A ticket that was told, if one was.
fn ticket(world: &World) -> Attr {
    let movable = world.server.clients.values();
    let told = movable
        .copied()
        .filter_map(|id| world.server.ticket(id))
        .min();
    raw(attribute::MOBILITY_TICKET, &told.unwrap_or_default())
}

/// Peers that meet again, our own relayed addresses, and some that are denied.
fn address(rng: &mut ChaCha8Rng) -> SocketAddr {
    let n = rng.next_u32();
    let port = 50_000 + (n >> 8) as u16 % 40;
    match n % 8 {
        0..=3 => SocketAddr::from(([8, 8, 8, (n >> 16) as u8 % 12], 1 + (n >> 24) as u16 % 3)),
        4 => SocketAddr::from(([8, 1, 1, 1], port)),
        5 => SocketAddr::new("2a00::5".parse().unwrap(), port),
        6 => SocketAddr::new("2a00::9".parse().unwrap(), (n >> 24) as u16 % 3),
        _ => SocketAddr::from(([127, 0, 0, 1], port)),
    }
}
