//! From a URL to an upgraded connection: dial, proxy, TLS, WebSocket.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig as WsConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config, tungstenite};
use wice_signaling::protocol::{
    ACCEPTS_CARRY, ACCEPTS_HEADER, ACCEPTS_PRESENCE, CHALLENGE_HEADER, CHALLENGE_LEN,
    MAX_FRAME_LEN, SERVERS_HEADER, SUBPROTOCOL, ServerAddress, ServerPin, SignalUrl,
    servers_from_header,
};

use super::tls::{Tls, TlsError};
use crate::core::turn::url::Host;
use crate::io::certificates::{Refused, refused_certificate};
use crate::io::dial::{DialError, SocketHook, dial};
use crate::io::http_proxy::{ProxyError, ProxyUrl, http_connect};

/// All of connecting: twelve round trips over a link of 1 s, and lost packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// One read: a record and some. The default of 128 KiB would be a hundredth of the daemon's memory.
const READ_BUFFER_LEN: usize = 4 << 10;

/// The service could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address takes a connection.
    #[error(transparent)]
    Dial(#[from] DialError),
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
    /// Its certificate is not taken.
    #[error("no TLS with the signaling server: {what}\n  {remedy}")]
    Certificate {
        /// Why not.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// TLS failed.
    #[error("no TLS with the signaling server: {0}\n  check the URL: is that its port?")]
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
    /// It takes records that are carried.
    pub(super) carries: bool,
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
    let host: Host = url
        .host
        .parse()
        .map_err(|_| ConnectError::ServerName(url.host.clone()))?;
    let stream = match proxy {
        None => dial(&host, url.port, hook).await?,
        Some(proxy) => {
            let mut stream = dial(&proxy.host, proxy.port, hook).await?;
            http_connect(&mut stream, proxy, &host, url.port).await?;
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
            None => match refused_certificate(&error) {
                Some(Refused { what, remedy }) => ConnectError::Certificate { what, remedy },
                None => ConnectError::Tls(error),
            },
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
    request
        .headers_mut()
        .insert(ACCEPTS_HEADER, HeaderValue::from_static(ACCEPTS_PRESENCE));
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
    let accepts = response.headers().get(ACCEPTS_HEADER);
    let accepts = accepts.and_then(|value| value.to_str().ok());
    Ok(Upgraded {
        carries: accepts
            .is_some_and(|words| words.split(',').any(|word| word.trim() == ACCEPTS_CARRY)),
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

#[cfg(test)]
mod tests {
    use super::*;

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
