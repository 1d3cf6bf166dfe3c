//! From a URL to an upgraded connection: resolve, dial, proxy, TLS, WebSocket.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig as WsConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config, tungstenite};
use wice_signaling::protocol::{
    CHALLENGE_HEADER, CHALLENGE_LEN, MAX_FRAME_LEN, SERVERS_HEADER, SUBPROTOCOL, ServerAddress,
    ServerPin, SignalUrl, servers_from_header,
};

use super::proxy::{ProxyError, ProxyUrl, http_connect};
use super::tls::{Tls, TlsError};

/// All of connecting: twelve round trips over a link of 1 s, and lost packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// One address: two lost SYNs (1 s and 2 s, RFC 6298 §2) and an answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The next address is tried beside the last after so long (RFC 8305 §5).
const DIAL_STAGGER: Duration = Duration::from_millis(250);

/// Addresses tried of one name.
const MAX_ADDRESSES: usize = 8;

/// Data that nobody acknowledges for so long ends the connection (RFC 5482).
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// One read: a record and some. The default of 128 KiB would be a hundredth of the daemon's memory.
const READ_BUFFER_LEN: usize = 4 << 10;

/// Prepares a socket before it connects, so that control connections stay in the underlay.
pub type SocketHook = Arc<dyn Fn(&TcpSocket) -> io::Result<()> + Send + Sync>;

/// Ties control connections to an interface (SO_BINDTODEVICE).
#[must_use]
pub fn bind_to_device(device: String) -> SocketHook {
    Arc::new(move |socket| socket.bind_device(Some(device.as_bytes())))
}

/// Marks control connections for policy routing (SO_MARK; needs CAP_NET_ADMIN).
#[must_use]
pub fn fwmark(mark: u32) -> SocketHook {
    Arc::new(move |socket| socket2::SockRef::from(socket).set_mark(mark))
}

/// The service could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address for the name.
    #[error("cannot resolve {host}: {error}\n  check the name and this machine's DNS")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        error: io::Error,
    },
    /// No address answers.
    #[error(
        "cannot reach {host}:{port}: {error}\n  is the server up, and TCP to this port allowed? Else set a proxy"
    )]
    Dial {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What the last address said.
        error: io::Error,
    },
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// TLS cannot be set up here.
    #[error(transparent)]
    TlsSetup(#[from] TlsError),
    /// The pin.
    #[error("signaling server has another certificate than this token expects\n  token pins {}, server sent {}: TLS is being intercepted, or the server was set up anew (make a new invite)", expected.short(), seen.short())]
    PinMismatch {
        /// Of the token.
        expected: ServerPin,
        /// Of the server.
        seen: ServerPin,
    },
    /// TLS failed.
    #[error(
        "no TLS with the signaling server: {0}\n  check the URL; under a company's CA, set a CA file"
    )]
    Tls(io::Error),
    /// Its name cannot stand in a certificate.
    #[error("{0} is no name that a certificate can have: correct the URL")]
    ServerName(String),
    /// HTTP failed.
    #[error(
        "the server at this URL is no wice signaling service of this version: {0}\n  check the URL, and that a proxy in between lets WebSockets through"
    )]
    Upgrade(String),
    /// All of it took too long.
    #[error("the signaling server did not answer in 15 s: is the network up?")]
    TimedOut,
}

/// A stream of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An upgraded connection, and what the service said on the way.
pub(super) struct Upgraded {
    pub(super) socket: WebSocketStream<Box<dyn Stream>>,
    pub(super) challenge: [u8; CHALLENGE_LEN],
    pub(super) servers: Vec<ServerAddress>,
}

/// Connects to `url`.
pub(super) async fn connect(
    url: &SignalUrl,
    tls: &Tls,
    proxy: Option<&ProxyUrl>,
    hook: Option<&SocketHook>,
) -> Result<Upgraded, ConnectError> {
    let connected = timeout(CONNECT_TIMEOUT, async {
        let stream = open(url, tls, proxy, hook).await?;
        upgrade(url, stream).await
    });
    connected.await.unwrap_or(Err(ConnectError::TimedOut))
}

async fn open(
    url: &SignalUrl,
    tls: &Tls,
    proxy: Option<&ProxyUrl>,
    hook: Option<&SocketHook>,
) -> Result<Box<dyn Stream>, ConnectError> {
    let stream = match proxy {
        None => dial(&url.host, url.port, hook).await?,
        Some(proxy) => {
            let mut stream = dial(&proxy.host, proxy.port, hook).await?;
            http_connect(&mut stream, proxy, &url.authority()).await?;
            stream
        }
    };
    if !url.tls {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(url.host.clone())
        .map_err(|_| ConnectError::ServerName(url.host.clone()))?;
    let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(match tls.take_mismatch() {
            Some((expected, seen)) => ConnectError::PinMismatch { expected, seen },
            None => ConnectError::Tls(error),
        }),
    }
}

async fn upgrade(url: &SignalUrl, stream: Box<dyn Stream>) -> Result<Upgraded, ConnectError> {
    let fail = |error: tungstenite::Error| ConnectError::Upgrade(error.to_string());
    let scheme = if url.tls { "wss" } else { "ws" };
    let target = format!("{scheme}://{}{}", url.authority(), url.path);
    let mut request = target.into_client_request().map_err(fail)?;
    request.headers_mut().insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(SUBPROTOCOL),
    );
    let config = WsConfig::default()
        .read_buffer_size(READ_BUFFER_LEN)
        .max_message_size(Some(MAX_FRAME_LEN))
        .max_frame_size(Some(MAX_FRAME_LEN));
    let (socket, response) = client_async_with_config(request, stream, Some(config))
        .await
        .map_err(fail)?;
    let challenge = challenge_of(response.headers())
        .ok_or_else(|| ConnectError::Upgrade("its answer has no challenge".to_owned()))?;
    let servers = response
        .headers()
        .get(SERVERS_HEADER)
        .and_then(|value| value.to_str().ok());
    Ok(Upgraded {
        socket,
        challenge,
        servers: servers.map(servers_from_header).unwrap_or_default(),
    })
}

fn challenge_of(headers: &HeaderMap) -> Option<[u8; CHALLENGE_LEN]> {
    STANDARD
        .decode(headers.get(CHALLENGE_HEADER)?)
        .ok()?
        .try_into()
        .ok()
}

/// Connects to the first address of `host` that answers, the families by turns (RFC 8305).
async fn dial(host: &str, port: u16, hook: Option<&SocketHook>) -> Result<TcpStream, ConnectError> {
    let resolved = lookup_host((host, port)).await;
    let addresses = resolved
        .map_err(|error| ConnectError::Resolve {
            host: host.to_owned(),
            error,
        })?
        .take(MAX_ADDRESSES);
    let mut waiting = by_turns(addresses);
    let mut attempts = JoinSet::new();
    let mut last = io::Error::other("it has no address");
    loop {
        if let Some(address) = waiting.pop_front() {
            attempts.spawn(dial_one(address, hook.cloned()));
        }
        tokio::select! {
            attempt = attempts.join_next() => match attempt {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = error,
                Some(Err(error)) => last = io::Error::other(error),
                None => {
                    let host = host.to_owned();
                    return Err(ConnectError::Dial { host, port, error: last });
                }
            },
            () = sleep(DIAL_STAGGER), if !waiting.is_empty() => {}
        }
    }
}

async fn dial_one(address: SocketAddr, hook: Option<SocketHook>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_nodelay(true)?;
    if let Some(hook) = hook {
        hook(&socket)?;
    }
    socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    timeout(DIAL_TIMEOUT, socket.connect(address))
        .await
        .map_err(late)?
}

/// The resolver's order, but no two of one family in a row while the other has some left.
fn by_turns(addresses: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let mut addresses = addresses.peekable();
    let first_is_v4 = addresses.peek().is_some_and(SocketAddr::is_ipv4);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        addresses.partition(|address| address.is_ipv4() == first_is_v4);
    let mut mixed = VecDeque::with_capacity(first.len() + second.len());
    while !first.is_empty() || !second.is_empty() {
        mixed.extend(first.pop_front());
        mixed.extend(second.pop_front());
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(|a| a.parse().unwrap());
        let mixed: Vec<String> = by_turns(all.into_iter())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(mixed, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
        assert!(by_turns(std::iter::empty()).is_empty());
    }

    #[test]
    fn a_pin_mismatch_reads_as_people_need_it() {
        let (mut expected, mut seen) = ([0; 32], [0; 32]);
        expected[..2].copy_from_slice(&[0x9f, 0x2c]);
        seen[..2].copy_from_slice(&[0x41, 0xab]);
        let error = ConnectError::PinMismatch {
            expected: ServerPin(expected),
            seen: ServerPin(seen),
        };
        assert_eq!(
            error.to_string(),
            "signaling server has another certificate than this token expects\n  \
             token pins sha256:9f2c…, server sent sha256:41ab…: TLS is being intercepted, or the \
             server was set up anew (make a new invite)"
        );
    }
}
