use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::UdpSocket;
use wice_signaling::protocol::{Filtering, Mapping, NatBehavior};

use super::nat::{Family, Server, examine};
use super::*;
use crate::core::stun::{Binding, encode_success, integrity_key};

/// What a fake server says: which address it saw, given its own and the client's.
type See = fn(SocketAddr, SocketAddr) -> SocketAddr;

/// A STUN server on 127.0.0.1 and 127.0.0.2 (RFC 5780), behind a filter that lets answers from elsewhere through or not.
async fn rfc5780_server(lets_address: bool, lets_port: bool, see: See) -> SocketAddr {
    let bind =
        |ip: &str, port: u16| UdpSocket::bind(SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port));
    let primary = Arc::new(bind("127.0.0.1", 0).await.unwrap());
    let other_port = bind("127.0.0.1", 0).await.unwrap();
    let other = bind("127.0.0.2", 0).await.unwrap();
    let address = primary.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = primary.recv_from(&mut buffer).await.unwrap();
            let datagram = &buffer[..length];
            let id = Binding::parse(datagram).unwrap().id();
            let mut answer = encode_success(id, see(address, from), &integrity_key("x"));
            // Without integrity and fingerprint, which must come last: header and mapped address alone.
            answer.truncate(20 + 12);
            answer.extend_from_slice(&[0x80, 0x2C, 0, 8, 0, 1]);
            let SocketAddr::V4(v4) = other.local_addr().unwrap() else {
                unreachable!()
            };
            answer.extend_from_slice(&v4.port().to_be_bytes());
            answer.extend_from_slice(&v4.ip().octets());
            let length = u16::try_from(answer.len() - 20).unwrap();
            answer[2..4].copy_from_slice(&length.to_be_bytes());
            let asks_change = datagram[20..22] == [0, 3];
            let change = if asks_change { datagram[27] } else { 0 };
            let sent = match change {
                0 => primary.send_to(&answer, from).await,
                0x02 if lets_port => other_port.send_to(&answer, from).await,
                0x06 if lets_address => other.send_to(&answer, from).await,
                _ => continue,
            };
            sent.unwrap();
        }
    });
    address
}

fn as_it_is(_: SocketAddr, from: SocketAddr) -> SocketAddr {
    from
}

/// Another port for every server, at an address where nobody listens.
fn symmetric(server: SocketAddr, _: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 77], server.port()))
}

/// A NAT that turns traffic around: the whole of 127/8 is this machine.
fn hairpinning(_: SocketAddr, from: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 9], from.port()))
}

async fn examined(servers: Vec<SocketAddr>) -> nat::FamilyResult {
    let servers: Vec<Server> = servers
        .into_iter()
        .map(|address| Server {
            name: "fake".into(),
            address,
        })
        .collect();
    examine(Family::V4, &servers).await
}

#[tokio::test]
async fn filtering_is_told_by_a_server_with_two_addresses() {
    for (lets_address, lets_port, expected) in [
        (true, true, Filtering::EndpointIndependent),
        (false, true, Filtering::AddressDependent),
        (false, false, Filtering::AddressAndPortDependent),
    ] {
        let server = rfc5780_server(lets_address, lets_port, as_it_is).await;
        let found = examined(vec![server]).await;
        assert_eq!(
            found.behavior,
            NatBehavior {
                mapping: Mapping::None,
                filtering: expected
            }
        );
        assert_eq!(found.hairpin, None, "no NAT");
        assert_eq!(found.works(), Some(true));
    }
}

#[tokio::test]
async fn mapping_and_hairpin_are_told_by_two_servers() {
    let two = |see: See| async move {
        let (a, b) = (
            rfc5780_server(true, true, see).await,
            rfc5780_server(true, true, see).await,
        );
        examined(vec![a, b]).await
    };
    let found = two(symmetric).await;
    // Both servers have one address: the ports alone differ, and so do their mappings.
    assert_eq!(found.behavior.mapping, Mapping::AddressAndPortDependent);
    assert_eq!(found.hairpin, Some(false));
    assert_eq!(found.mappings.len(), 2);
    let found = two(hairpinning).await;
    assert_eq!(found.behavior.mapping, Mapping::EndpointIndependent);
    assert_eq!(found.hairpin, Some(true));
}

#[tokio::test]
async fn a_silent_server_is_blocked_udp() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let v4 = examined(vec![silent.local_addr().unwrap()]).await;
    assert_eq!(v4.works(), Some(false));
    let nothing = examine(Family::V6, &[]).await;
    assert_eq!(nothing.works(), None);
    let netcheck = report(v4, nothing, Vec::new(), Vec::new(), &[], Vec::new());
    assert_eq!(netcheck.udp, Udp::Blocked);
    assert_eq!(netcheck.nat.mapping, "blocked");
    assert_eq!(netcheck.health(), Health::Broken);
}

#[tokio::test]
async fn a_server_that_does_not_run_is_no_blocked_udp() {
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let v4 = examined(vec![address]).await;
    let nothing = examine(Family::V6, &[]).await;
    let netcheck = report(v4, nothing, Vec::new(), Vec::new(), &[], Vec::new());
    assert_eq!(netcheck.udp, Udp::Unknown);
    assert_eq!(netcheck.nat.mapping, "unknown");
    assert!(netcheck.notes[0].contains(&address.to_string()));
    // Nobody answers, for whatever reason.
    assert_eq!(netcheck.health(), Health::Broken);
}

#[test]
fn hostile_answers_are_no_answers() {
    let id = crate::core::stun::TransactionId::from(7);
    let good = encode_success(id, "192.0.2.1:9".parse().unwrap(), &integrity_key("x"));
    assert!(stun::parse(&good).is_some());
    for length in 0..good.len() {
        assert!(stun::parse(&good[..length]).is_none(), "{length}");
    }
    let request = stun::encode(id, stun::Change::AddressAndPort);
    assert_eq!(request.len(), 28);
    assert!(Binding::parse(&request).is_some());
    assert!(stun::parse(&request).is_none(), "a request is no answer");
}
