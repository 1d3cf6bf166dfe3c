//! From an endpoint to an open stream: connect, proxy, TLS.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{CloseReason, Endpoint};
use crate::io::dial::dial;
use crate::io::http_proxy::{ProxyUrl, http_connect};

/// How long resolving, connecting, the proxy and TLS may take together: three SYNs (at 0, 1 and 3 s)
/// and some round trips.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much unsent data the kernel holds (TCP_NOTSENT_LOWAT): one TLS record. What waits beyond it waits
/// in our queue, where it can be dropped.
const NOTSENT_LOWAT: u32 = 16 * 1024;

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// The same socket once more, for its options.
    pub(super) socket: OwnedFd,
}

pub(super) async fn open(endpoint: &Endpoint) -> Result<Connection, CloseReason> {
    let hook = endpoint.mark.hook();
    let (host, port) = match &endpoint.proxy {
        Some(ProxyUrl { host, port, .. }) => (host, *port),
        None => (&endpoint.host, endpoint.port),
    };
    let mut tcp = dial(host, port, Some(&hook)).await?;
    SockRef::from(&tcp)
        .set_tcp_notsent_lowat(NOTSENT_LOWAT)
        .map_err(CloseReason::Io)?;
    let local = tcp.local_addr().map_err(CloseReason::Io)?;
    let remote = tcp.peer_addr().map_err(CloseReason::Io)?;
    let socket = tcp.as_fd().try_clone_to_owned().map_err(CloseReason::Io)?;
    if let Some(proxy) = &endpoint.proxy {
        http_connect(&mut tcp, proxy, &endpoint.host, endpoint.port).await?;
    }
    let stream = match &endpoint.tls {
        Some(tls) => Stream::Tls(Box::new(tls.connect(&endpoint.host, tcp).await?)),
        None => Stream::Plain(tcp),
    };
    Ok(Connection {
        stream,
        local,
        remote,
        socket,
    })
}
