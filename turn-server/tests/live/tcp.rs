//! TCP allocations (RFC 6062): connections to and from peers, joined with clients' on whichever thread these arrive.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use wice_turn::codec::attribute;
use wice_turn::server::Transport;

use crate::World;
use crate::client::Client;

/// Longer than anything on loopback takes.
const PATIENCE: Duration = Duration::from_secs(10);

fn world() -> World {
    World::new(|settings| settings.tcp_relay = true)
}

/// Sends back what comes, until the end.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut out = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut out);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

/// A data connection of `transport`, joined.
fn join(world: &World, transport: Transport, connection: [u8; 4]) -> Client {
    let mut data = world.client(transport);
    data.bind_connection(connection).unwrap();
    data
}

fn read_exactly(data: &mut Client, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < len {
        let more = data.raw_read();
        assert!(!more.is_empty(), "ended after {} of {len}", got.len());
        got.extend(more);
    }
    got
}

#[test]
fn bytes_pass_to_a_peer_and_back_over_tcp_and_tls_on_every_thread() {
    let world = world();
    let peer = echo();
    for (control, data) in [
        (Transport::Tcp, Transport::Tcp),
        (Transport::Tls, Transport::Tls),
        (Transport::Tcp, Transport::Tls),
    ] {
        // Of two threads each connection hits one by chance.
        for round in 0..8u8 {
            let mut client = world.client(control);
            client.allocate_tcp(&[]).unwrap();
            let connection = client.connect_to(peer).unwrap();
            assert_eq!(client.connect_to(peer), Err(446));
            let mut data = join(&world, data, connection);
            let sent: Vec<u8> = (0..20_000u32).map(|n| n as u8 ^ round).collect();
            data.raw_write(&sent);
            assert_eq!(read_exactly(&mut data, sent.len()), sent);
            client.refresh(0);
            assert_eq!(data.raw_read(), b"", "the end of the allocation is its end");
        }
    }
    assert_eq!(world.service.allocations(), 0);
}

#[test]
fn a_peer_that_connects_is_told_of_if_it_is_permitted() {
    let world = world();
    let mut client = world.client(Transport::Tcp);
    let relayed = client.allocate_tcp(&[]).unwrap();
    let mut stranger = TcpStream::connect(relayed).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(
        matches!(stranger.read(&mut [0; 8]), Ok(0) | Err(_)),
        "no permission"
    );
    client.permit("127.0.0.1:0".parse().unwrap());
    for _ in 0..6 {
        let mut peer = TcpStream::connect(relayed).unwrap();
        // What it says before anybody listens is not lost.
        peer.write_all(b"early").unwrap();
        let (from, connection) = client.attempt();
        assert_eq!(from, peer.local_addr().unwrap());
        let mut data = join(&world, Transport::Tcp, connection);
        assert_eq!(read_exactly(&mut data, 5), b"early");
        data.raw_write(b"late");
        let mut got = [0; 4];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"late");
        // The peer's last words and its end arrive.
        peer.write_all(b"bye").unwrap();
        drop(peer);
        assert_eq!(read_exactly(&mut data, 3), b"bye");
        assert_eq!(data.raw_read(), b"");
    }
}

#[test]
fn a_client_that_ends_ends_its_peer_with_all_that_it_said() {
    let world = world();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = world.client(Transport::Tcp);
    client.allocate_tcp(&[]).unwrap();
    let connection = client.connect_to(listener.local_addr().unwrap()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let mut data = join(&world, Transport::Tcp, connection);
    let sent = vec![7; 300_000];
    let reader = std::thread::spawn(move || {
        // Slower than the client: the rest waits in the server.
        std::thread::sleep(Duration::from_millis(200));
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        got.len()
    });
    data.raw_write(&sent);
    drop(data);
    assert_eq!(reader.join().unwrap(), sent.len());
}

#[test]
fn a_peer_that_does_not_read_holds_its_client_back_and_no_memory() {
    let world = world();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = world.client(Transport::Tcp);
    client.allocate_tcp(&[]).unwrap();
    let connection = client.connect_to(listener.local_addr().unwrap()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let data = join(&world, Transport::Tcp, connection);
    let stream = data.tcp();
    stream.set_nonblocking(true).unwrap();
    let block = vec![9; 1 << 20];
    let (mut sent, mut quiet) = (0usize, 0);
    // The kernel's buffers of three sockets fill up, and then nothing is taken any more.
    while quiet < 50 {
        match (&*stream).write(&block) {
            Ok(len) => (sent, quiet) = (sent + len, 0),
            Err(_) => {
                quiet += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(
            sent < 64 << 20,
            "{sent} bytes taken for a peer that reads none"
        );
    }
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut got = 0;
    while got < sent {
        let len = peer.read(&mut buffer).unwrap();
        assert_ne!(len, 0);
        got += len;
    }
    assert_eq!(got, sent);
}

#[test]
fn what_is_wrong_gets_its_code() {
    let world = world();
    let mut udp = world.client(Transport::Udp);
    assert_eq!(udp.allocate_tcp(&[]), Err(400), "not over UDP");
    let mut client = world.client(Transport::Tcp);
    for attribute in [attribute::EVEN_PORT, attribute::DONT_FRAGMENT] {
        let value = if attribute == attribute::EVEN_PORT {
            vec![0]
        } else {
            vec![]
        };
        assert_eq!(client.allocate_tcp(&[(attribute, value)]), Err(400));
    }
    client.allocate_tcp(&[]).unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    assert_eq!(client.connect_to(closed), Err(447), "nobody listens there");
    assert_eq!(client.connect_to("10.1.2.3:25".parse().unwrap()), Err(403));
    assert_eq!(
        client.bind_connection([0; 4]),
        Err(400),
        "a control connection"
    );
    for guess in [[0; 4], [1, 2, 3, 4], [250, 0, 0, 0]] {
        let mut data = world.client(Transport::Tcp);
        assert_eq!(data.bind_connection(guess), Err(400), "{guess:?}");
    }
    let off = World::new(|_| {});
    assert_eq!(off.client(Transport::Tcp).allocate_tcp(&[]), Err(442));
}

#[test]
fn another_user_cannot_have_a_connection() {
    let world = World::new(|settings| {
        settings.tcp_relay = true;
        settings.users.push(("bob".into(), "builder".into()));
    });
    let mut client = world.client(Transport::Tcp);
    client.allocate_tcp(&[]).unwrap();
    let connection = client.connect_to(echo()).unwrap();
    let mut bob = world.client(Transport::Tcp);
    bob.login("bob", "builder");
    assert_eq!(bob.bind_connection(connection), Err(441));
    join(&world, Transport::Tcp, connection);
    let mut twice = world.client(Transport::Tcp);
    assert_eq!(twice.bind_connection(connection), Err(400), "it is taken");
}

#[test]
fn a_user_has_its_rate_over_tcp_as_well() {
    let world = World::new(|settings| {
        settings.tcp_relay = true;
        settings.quotas.user_bytes_per_second = 1 << 20;
    });
    let mut client = world.client(Transport::Tcp);
    client.allocate_tcp(&[]).unwrap();
    let connection = client.connect_to(echo()).unwrap();
    let mut data = join(&world, Transport::Tcp, connection);
    let start = Instant::now();
    // Up and down count together: 1 MiB at 1 MiB a second, less the burst and what was read ahead.
    let sent = vec![5; 512 << 10];
    data.raw_write(&sent);
    assert_eq!(read_exactly(&mut data, sent.len()).len(), sent.len());
    let took = start.elapsed();
    assert!(took > Duration::from_millis(600), "{took:?}");
}
