//! Servers that are reached and do not serve: their own host says so by ICMP. UDP leaves, then, and
//! what is silent is not the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::core::stun::{TransactionId, encode_binding};
use crate::io::udp::{Coalescer, Destination, SendFailures, UdpSocket};

/// For ICMP to come back: a satellite's round trip.
const WAIT: Duration = Duration::from_millis(1000);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Which of the servers refuse.
pub(super) async fn refusing(servers: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let asked: Vec<UdpSocket> = servers.into_iter().filter_map(ask).collect();
    let mut refusing = Vec::new();
    let end = tokio::time::Instant::now() + WAIT;
    while refusing.len() < asked.len() && tokio::time::Instant::now() < end {
        tokio::time::sleep(LOOK).await;
        for socket in &asked {
            let refusal = std::iter::from_fn(|| socket.next_error()).find(|e| e.is_refusal());
            refusing.extend(refusal.map(|error| error.remote));
        }
    }
    refusing
}

/// A socket of its own that has asked the server.
fn ask(server: SocketAddr) -> Option<UdpSocket> {
    let local = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::connect(SocketAddr::new(local, 0), server, None).ok()?;
    let id = crate::cli::random::random().ok()?;
    let request = encode_binding(TransactionId::from(u128::from_be_bytes(id)));
    let failures = SendFailures::new();
    let destination = Destination {
        remote: server,
        source: None,
    };
    let mut run = Coalescer::new(&socket, &failures);
    run.push(destination, None, &request);
    run.flush();
    drop(run);
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_where_nothing_listens_is_told_from_one_that_is_silent() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (silent_at, gone_at) = (silent.local_addr().unwrap(), gone.local_addr().unwrap());
        drop(gone);
        assert_eq!(refusing(vec![silent_at, gone_at]).await, [gone_at]);
    }
}
