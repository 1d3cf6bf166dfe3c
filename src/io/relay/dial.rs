//! From an endpoint to an open stream: resolve, connect, proxy, TLS.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::client::TlsStream;

use super::proxy::{self, ProxyUrl};
use super::{CloseReason, Endpoint};
use crate::core::turn::url::Host;

/// How long resolving, connecting, the proxy and TLS may take together: three SYNs (at 0, 1 and 3 s)
/// and some round trips.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between attempts at several addresses (RFC 8305 §5: 250 ms).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The most addresses of one name that are tried: the last starts after 1.75 s.
const MAX_ADDRESSES: usize = 8;
/// How much unsent data the kernel holds (TCP_NOTSENT_LOWAT): one TLS record. What waits beyond it waits
/// in our queue, where it can be dropped.
const NOTSENT_LOWAT: u32 = 16 * 1024;
/// How long sent data may stay unacknowledged (TCP_USER_TIMEOUT): the kernel's own limit is about 15 min,
/// longer than the allocation lives.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

pub(super) async fn dial(endpoint: &Endpoint) -> Result<Connection, CloseReason> {
    let device = endpoint.device.as_deref();
    let (host, port) = match &endpoint.proxy {
        Some(ProxyUrl { host, port, .. }) => (host, *port),
        None => (&endpoint.host, endpoint.port),
    };
    let mut tcp = connect(host, port, device).await?;
    let local = tcp.local_addr().map_err(CloseReason::Io)?;
    let remote = tcp.peer_addr().map_err(CloseReason::Io)?;
    if let Some(proxy) = &endpoint.proxy {
        proxy::tunnel(&mut tcp, proxy, &endpoint.host, endpoint.port).await?;
    }
    let stream = match &endpoint.tls {
        Some(tls) => Stream::Tls(Box::new(tls.connect(&endpoint.host, tcp).await?)),
        None => Stream::Plain(tcp),
    };
    Ok(Connection {
        stream,
        local,
        remote,
    })
}

/// Connects to the first address that answers, each started a little after the one before it.
async fn connect(host: &Host, port: u16, device: Option<&str>) -> Result<TcpStream, CloseReason> {
    let addresses = resolve(host, port).await?;
    let mut attempts = JoinSet::new();
    let mut delay = Duration::ZERO;
    for address in addresses {
        let device = device.map(str::to_owned);
        attempts.spawn(async move {
            sleep(delay).await;
            connect_to(address, device.as_deref()).await
        });
        delay += ATTEMPT_DELAY;
    }
    let mut last = None;
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(reason)) => last = Some(reason),
            Err(_) => {}
        }
    }
    Err(last.unwrap_or_else(|| CloseReason::Resolve {
        host: host.to_string(),
        error: "it has no address".to_owned(),
    }))
}

/// The addresses of a host, families alternating and IPv6 first (RFC 8305 §4).
async fn resolve(host: &Host, port: u16) -> Result<Vec<SocketAddr>, CloseReason> {
    let name = match host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
        Host::Name(name) => name,
    };
    let found = lookup_host((name.as_str(), port)).await;
    let found = found.map_err(|error| CloseReason::Resolve {
        host: name.clone(),
        error: error.to_string(),
    })?;
    let (v6, v4): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut addresses = Vec::new();
    while addresses.len() < MAX_ADDRESSES {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            break;
        }
        addresses.extend(pair.into_iter().flatten());
    }
    Ok(addresses)
}

async fn connect_to(address: SocketAddr, device: Option<&str>) -> Result<TcpStream, CloseReason> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(CloseReason::Io)?;
    if let Some(device) = device {
        let bound = socket.bind_device(Some(device.as_bytes()));
        bound.map_err(|error| CloseReason::Device {
            device: device.to_owned(),
            error,
        })?;
    }
    let failed = |error| CloseReason::Connect {
        remote: address.to_string(),
        error,
    };
    let stream = socket.connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let options = SockRef::from(&stream);
    options
        .set_tcp_notsent_lowat(NOTSENT_LOWAT)
        .map_err(failed)?;
    options
        .set_tcp_user_timeout(Some(USER_TIMEOUT))
        .map_err(failed)?;
    Ok(stream)
}
