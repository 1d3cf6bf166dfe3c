//! Load balancers that speak the PROXY protocol, version 2.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use wice_turn::server::Transport;

use crate::World;
use crate::client::Client;

fn world(from: &str) -> World {
    World::new(|settings| settings.proxy_protocol_from = vec![from.parse().unwrap()])
}

fn header(client: SocketAddrV4) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C".to_vec();
    bytes.extend(client.ip().octets());
    bytes.extend([127, 0, 0, 1]);
    bytes.extend(client.port().to_be_bytes());
    bytes.extend([0x0D, 0x96]);
    bytes
}

#[test]
fn the_client_is_who_the_load_balancer_says() {
    let world = world("127.0.0.1/32");
    let at: SocketAddrV4 = "8.8.4.4:4660".parse().unwrap();
    let mut tcp = Client::connect_with(world.at(Transport::Tcp, false), &header(at));
    assert_eq!(tcp.binding(), SocketAddr::V4(at));
    tcp.allocate(&[]);
    let mut tls = Client::connect_tls_with(world.at(Transport::Tls, false), &header(at));
    assert_eq!(tls.binding(), SocketAddr::V4(at));
    tls.allocate(&[]);
    // A health check of its own (LOCAL).
    let own = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let mut own = Client::connect_with(world.at(Transport::Tcp, false), own);
    assert_eq!(own.binding(), own.local);
    assert_eq!(world.service.allocations(), 2);
}

#[test]
fn quotas_count_the_client_and_not_the_load_balancer() {
    let world = World::new(|settings| {
        settings.proxy_protocol_from = vec!["127.0.0.1/32".parse().unwrap()];
        settings.quotas.source = 1;
    });
    let connect = |ip: [u8; 4]| {
        let at = SocketAddrV4::new(ip.into(), 4660);
        Client::connect_with(world.at(Transport::Tcp, false), &header(at))
    };
    let mut one = connect([8, 8, 4, 4]);
    one.allocate(&[]);
    assert_eq!(connect([8, 8, 4, 4]).try_allocate(&[]), Err(486));
    connect([8, 8, 4, 5]).allocate(&[]);
}

#[test]
fn without_a_header_a_connection_ends_and_from_elsewhere_with_one() {
    let closes = |world: &World, transport: Transport, bytes: &[u8]| {
        let mut stream = TcpStream::connect(world.at(transport, false)).unwrap();
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).unwrap();
        stream.write_all(bytes).unwrap();
        matches!(stream.read(&mut [0; 16]), Ok(0))
            || stream.take_error().is_ok_and(|error| error.is_some())
            || stream.write_all(bytes).is_err()
    };
    let binding = [
        0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    ];
    let trusted = world("127.0.0.1/32");
    assert!(closes(&trusted, Transport::Tcp, &binding));
    assert!(closes(
        &trusted,
        Transport::Tcp,
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"
    ));
    assert!(closes(
        &trusted,
        Transport::Tls,
        &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 0, 0, 0, 0, 0]
    ));
    let other = world("127.0.0.2/32");
    let spoofed = header("8.8.4.4:4660".parse().unwrap());
    assert!(closes(&other, Transport::Tcp, &spoofed), "not trusted");
    let mut plain = other.client(Transport::Tcp);
    assert_eq!(plain.binding(), plain.local);
}
