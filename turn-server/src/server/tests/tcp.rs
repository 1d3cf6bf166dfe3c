//! TCP allocations (RFC 6062): rights and times. That bytes pass is the shell's.

use super::*;

/// TCP is offered.
fn config() -> Config {
    Config {
        tcp_relay: true,
        ..super::config()
    }
}

fn tcp() -> Attr {
    raw(attribute::REQUESTED_TRANSPORT, &[6, 0, 0, 0])
}

fn id_of(response: &Response) -> ConnectionId {
    let id = response.get(attribute::CONNECTION_ID).unwrap();
    ConnectionId(u32::from_be_bytes(id.try_into().unwrap()))
}

fn stream(world: &World, n: u16) -> Client {
    let mut client = world.client(n);
    client.addr.transport = Transport::Tcp;
    client
}

/// A world with a client that has a TCP allocation.
fn allocated() -> (World, Client, SocketAddr) {
    let mut world = World::with(config());
    let mut alice = stream(&world, 1);
    let response = world.ask(&mut alice, method::ALLOCATE, &[tcp()]);
    assert_eq!(response.code, 0);
    let relayed = response.relayed();
    (world, alice, relayed)
}

/// Connect, which is answered when the peer has accepted.
fn begin(world: &mut World, client: &Client, peer: &str) -> (ConnectionId, SocketAddr) {
    let id = world.id();
    let peer = Attr::Peer(peer.parse().unwrap());
    let bytes = client.sign(method::CONNECT, id, &[peer], &[]);
    assert!(world.raw(&client.addr, &bytes).is_none());
    world.connects.pop().unwrap()
}

fn end(world: &mut World, connection: ConnectionId, connected: bool) -> Option<u16> {
    let now = world.now.instant;
    world
        .server
        .handle_peer_connected(connection, connected, now);
    world.obey();
    told(world)
}

/// The code of the next answer.
fn told(world: &mut World) -> Option<u16> {
    let (_, bytes) = world.sent.pop()?;
    let message = Message::parse(&bytes).unwrap();
    let code = message.get(attribute::ERROR_CODE);
    Some(code.map_or(0, |value| u16::from(value[2]) * 100 + u16::from(value[3])))
}

fn bind(world: &mut World, client: &mut Client, connection: ConnectionId) -> u16 {
    let id = raw(attribute::CONNECTION_ID, &connection.0.to_be_bytes());
    world.ask(client, method::CONNECTION_BIND, &[id]).code
}

#[test]
fn a_connection_is_begun_joined_and_ended() {
    let (mut world, alice, _) = allocated();
    let (connection, to) = begin(&mut world, &alice, "8.8.8.8:80");
    assert_eq!(to, "8.8.8.8:80".parse().unwrap());
    let mut data = stream(&world, 2);
    assert_eq!(bind(&mut world, &mut data, connection), 400, "not yet");
    assert_eq!(end(&mut world, connection, true), Some(0));
    assert_eq!(bind(&mut world, &mut data, connection), 0);
    assert_eq!(world.joined, [(connection, data.addr)]);
    // Joined connections have no time limit of their own.
    world.pass(500);
    assert_eq!(world.closed, []);
    world
        .server
        .handle_disconnected(&data.addr, world.now.instant);
    world.obey();
    assert_eq!(world.closed, [connection]);
    assert!(!world.server.is_data_connection(&data.addr));
    // The same peer again.
    begin(&mut world, &alice, "8.8.8.8:80");
}

#[test]
fn thirty_seconds_for_the_peer_and_thirty_for_the_client() {
    let (mut world, mut alice, relayed) = allocated();
    let (late, _) = begin(&mut world, &alice, "8.8.8.8:80");
    world.pass(29);
    assert_eq!(told(&mut world), None);
    world.pass(1);
    assert_eq!(told(&mut world), Some(447));
    assert_eq!(world.closed, [late]);
    let (connection, _) = begin(&mut world, &alice, "8.8.8.8:80");
    world.pass(20);
    assert_eq!(end(&mut world, connection, true), Some(0));
    world.pass(29);
    assert_eq!(world.closed, [late]);
    world.pass(1);
    assert_eq!(world.closed, [late, connection]);
    assert_eq!(world.permit(&mut alice, "8.8.8.8:0"), 0);
    let accepted = accept(&mut world, relayed, "8.8.8.8:999").unwrap();
    world.sent.clear();
    world.pass(30);
    assert_eq!(world.closed, [late, connection, accepted]);
    // An answer of the shell that comes late closes what it has.
    assert_eq!(end(&mut world, connection, true), None);
    assert_eq!(world.closed.last(), Some(&connection));
}

fn accept(world: &mut World, relayed: SocketAddr, from: &str) -> Option<ConnectionId> {
    let found = world
        .relays
        .iter()
        .find(|(_, local)| local.port() == relayed.port());
    let (relay, from) = (*found.unwrap().0, from.parse().unwrap());
    let now = world.now.instant;
    let connection = world.server.handle_peer_accepted(relay, from, now);
    world.obey();
    connection
}

#[test]
fn only_permitted_peers_are_accepted_and_the_client_is_told_of_them() {
    let (mut world, mut alice, relayed) = allocated();
    assert_eq!(accept(&mut world, relayed, "8.8.8.8:999"), None);
    assert!(world.sent.is_empty());
    assert_eq!(world.permit(&mut alice, "8.8.8.8:0"), 0);
    let connection = accept(&mut world, relayed, "8.8.8.8:999").unwrap();
    let (to, bytes) = world.sent.pop().unwrap();
    assert_eq!(to, alice.addr);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.class(), Class::Indication);
    assert_eq!(message.method(), method::CONNECTION_ATTEMPT);
    let id = message.word(attribute::CONNECTION_ID).unwrap();
    assert_eq!(id, connection.0.to_be_bytes());
    let peer = message.get(attribute::XOR_PEER_ADDRESS).unwrap();
    let peer = message.xor_address(peer).unwrap();
    assert_eq!(peer, "8.8.8.8:999".parse().unwrap());
    world.pass(301);
    assert_eq!(accept(&mut world, relayed, "8.8.8.8:999"), None, "expired");
}

#[test]
fn an_allocation_has_a_bounded_number_and_takes_them_along() {
    let (mut world, mut alice, relayed) = allocated();
    assert_eq!(world.permit(&mut alice, "8.8.8.8:0"), 0);
    let mut all = Vec::new();
    for port in 1..=64 {
        let from = format!("8.8.8.8:{port}");
        all.push(accept(&mut world, relayed, &from).unwrap());
    }
    assert_eq!(accept(&mut world, relayed, "8.8.8.8:100"), None);
    let peer = Attr::Peer("8.8.4.4:80".parse().unwrap());
    assert_eq!(world.ask(&mut alice, method::CONNECT, &[peer]).code, 508);
    let mut distinct = all.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 64);
    assert_eq!(
        world.ask(&mut alice, method::REFRESH, &[lifetime(0)]).code,
        0
    );
    world.closed.sort_unstable();
    assert_eq!(world.closed, distinct);
    assert!(world.relays.is_empty());
    assert_eq!(world.server.poll_timeout(), None);
}

#[test]
fn what_a_tcp_allocation_does_not_have() {
    let (mut world, mut alice, relayed) = allocated();
    assert_eq!(world.permit(&mut alice, "8.8.8.8:7"), 0);
    assert_eq!(world.bind(&mut alice, 0x4000, "8.8.8.8:7"), 403);
    assert!(world.send(&alice, "8.8.8.8:7", b"x").is_none());
    // Nor do datagrams of another relayed address of ours reach it.
    let mut bob = world.client(2);
    (bob.username, bob.password) = ("bob".into(), "builder".into());
    let at_bob = world.allocate(&mut bob);
    assert_eq!(world.permit(&mut alice, &at_bob.to_string()), 0);
    assert_eq!(world.permit(&mut bob, &relayed.to_string()), 0);
    let sent = world.send(&bob, &relayed.to_string(), b"x");
    assert!(matches!(sent, Some(Forward::Peer { .. })), "{sent:?}");
    // Nor has a UDP allocation connections.
    let peer = Attr::Peer("8.8.8.8:80".parse().unwrap());
    assert_eq!(world.ask(&mut bob, method::CONNECT, &[peer]).code, 400);
}

#[test]
fn denied_peers_and_those_that_are_denied_later() {
    let (mut world, mut alice, _) = allocated();
    for peer in [
        "127.0.0.1:22",
        "169.254.169.254:80",
        "10.0.0.5:22",
        "8.1.1.1:22",
    ] {
        let peer = Attr::Peer(peer.parse().unwrap());
        assert_eq!(world.ask(&mut alice, method::CONNECT, &[peer]).code, 403);
    }
    let (connection, _) = begin(&mut world, &alice, "8.8.8.8:80");
    let (other, _) = begin(&mut world, &alice, "9.9.9.9:80");
    let mut closed = config();
    closed.policy.deny.push("8.8.8.0/24".parse().unwrap());
    world.server.set_config(Arc::new(closed));
    world.obey();
    assert_eq!(world.closed, [connection]);
    assert_eq!(end(&mut world, other, true), Some(0));
}

#[test]
fn a_connection_is_joined_by_its_user_alone_also_when_the_credentials_have_ended() {
    let mut world = World::with(config());
    let mut minted = stream(&world, 1);
    let (name, password) = mint("north", "carol", START + 60);
    (minted.username, minted.password) = (name, password.to_string());
    assert_eq!(world.ask(&mut minted, method::ALLOCATE, &[tcp()]).code, 0);
    world.pass(100);
    let (connection, _) = begin(&mut world, &minted, "8.8.8.8:80");
    assert_eq!(end(&mut world, connection, true), Some(0));
    let mut other = stream(&world, 2);
    assert_eq!(bind(&mut world, &mut other, connection), 441);
    let mut udp = world.client(3);
    (udp.username, udp.password) = (minted.username.clone(), minted.password.clone());
    assert_eq!(bind(&mut world, &mut udp, connection), 400);
    let mut own = stream(&world, 4);
    (own.username, own.password) = (minted.username.clone(), minted.password.clone());
    assert_eq!(bind(&mut world, &mut own, connection), 0);
}

#[test]
fn a_failed_connect_is_told_and_may_be_tried_again() {
    let (mut world, alice, _) = allocated();
    let (connection, _) = begin(&mut world, &alice, "8.8.8.8:80");
    assert_eq!(end(&mut world, connection, false), Some(447));
    let (again, _) = begin(&mut world, &alice, "8.8.8.8:80");
    assert_eq!(end(&mut world, again, true), Some(0));
    // A retransmission is no second connection.
    let mut asked = alice.clone();
    let peer = Attr::Peer("8.8.8.8:80".parse().unwrap());
    let response = world.ask(&mut asked, method::CONNECT, &[peer]);
    assert_eq!(response.code, 446);
    assert!(response.get(attribute::CONNECTION_ID).is_none());
}

#[test]
fn the_thread_of_a_connection_is_read_from_its_name() {
    let mut worlds = World::pair(config());
    let mut alice = stream(&worlds[1], 1);
    assert_eq!(
        worlds[1].ask(&mut alice, method::ALLOCATE, &[tcp()]).code,
        0
    );
    let (connection, _) = begin(&mut worlds[1], &alice, "8.8.8.8:80");
    let id = raw(attribute::CONNECTION_ID, &connection.0.to_be_bytes());
    let bind = std::slice::from_ref(&id);
    let frame = alice.sign(method::CONNECTION_BIND, TransactionId([1; 12]), bind, &[]);
    assert_eq!(thread_of(&frame), Some(1));
    let other = alice.sign(method::CONNECT, TransactionId([1; 12]), &[id], &[]);
    assert_eq!(thread_of(&other), None);
    assert_eq!(thread_of(&frame[..30]), None);
}

#[test]
fn a_success_names_the_connection() {
    let (mut world, alice, _) = allocated();
    let (connection, _) = begin(&mut world, &alice, "8.8.8.8:80");
    let now = world.now.instant;
    world.server.handle_peer_connected(connection, true, now);
    world.obey();
    let (to, bytes) = world.sent.pop().unwrap();
    assert_eq!(to, alice.addr);
    let response = Response { code: 0, bytes };
    assert_eq!(id_of(&response), connection);
    assert!(response.message().is_authentic(&alice.key()));
}
