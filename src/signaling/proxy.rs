//! HTTP CONNECT (RFC 9110 §9.3.6), for networks that let nothing else out.

use std::io;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use wice_signaling::protocol::host_and_port;

/// What `http_proxy` has commonly meant without a port.
const DEFAULT_PORT: u16 = 3128;

/// The longest head of a proxy's answer: what browsers and curl accept is larger, proxies send
/// some hundred bytes.
const MAX_HEAD_LEN: usize = 8 << 10;

/// An HTTP proxy: `http://[user:password@]host[:port]`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Basic credentials (RFC 7617), encoded.
    authorization: Option<String>,
}

/// A text is not a proxy's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP proxy: write it like http://proxy.example:3128")]
pub struct ProxyParseError;

/// A proxy did not open the tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It went away.
    #[error("the connection to the proxy broke: {0}")]
    Io(#[from] io::Error),
    /// It wants credentials, or others.
    #[error("the proxy wants credentials (407): write it like http://user:password@host:port")]
    Unauthorized,
    /// It refused.
    #[error("the proxy refused CONNECT to {target} ({status}): let it allow this host and port")]
    Refused {
        /// Where to.
        target: String,
        /// HTTP status.
        status: u16,
    },
    /// It is none.
    #[error("what answers at the proxy's address is no HTTP proxy: check host and port")]
    NotHttp,
}

impl FromStr for ProxyUrl {
    type Err = ProxyParseError;

    fn from_str(text: &str) -> Result<Self, ProxyParseError> {
        let rest = text.strip_prefix("http://").ok_or(ProxyParseError)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (authorization, authority) = match rest.rsplit_once('@') {
            Some((credentials, authority)) => (Some(STANDARD.encode(credentials)), authority),
            None => (None, rest),
        };
        let (host, port) = host_and_port(authority, DEFAULT_PORT).ok_or(ProxyParseError)?;
        Ok(Self {
            host,
            port,
            authorization,
        })
    }
}

impl std::fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProxyUrl({}:{})", self.host, self.port)
    }
}

/// Asks the proxy at the other end of `stream` for a tunnel to `target` (`host:port`). Afterwards
/// the stream is the target's. Not one byte past the answer is read.
pub async fn http_connect<S>(
    stream: &mut S,
    proxy: &ProxyUrl,
    target: &str,
) -> Result<(), ProxyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(authorization);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;

    // Byte by byte: what follows the head belongs to the target. Once a connection.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD_LEN {
            return Err(ProxyError::NotHttp);
        }
        head.push(stream.read_u8().await?);
    }
    match status_of(&head).ok_or(ProxyError::NotHttp)? {
        200..=299 => Ok(()),
        407 => Err(ProxyError::Unauthorized),
        status => Err(ProxyError::Refused {
            target: target.to_owned(),
            status,
        }),
    }
}

/// The status of a response's head.
fn status_of(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    let digits = rest.get(2..5)?;
    if rest.get(1) != Some(&b' ') || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let proxy: ProxyUrl = "http://user:p@ss@proxy.lab:8080/".parse().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.lab", 8080));
        assert_eq!(proxy.authorization.as_deref(), Some("dXNlcjpwQHNz"));
        assert!(!format!("{proxy:?}").contains("dXNl"));
        assert_eq!("http://a".parse::<ProxyUrl>().unwrap().port, DEFAULT_PORT);
        for text in [
            "",
            "a:1",
            "socks5://a:1",
            "http://",
            "http://a:x",
            "http://a\r\nb:1",
        ] {
            assert_eq!(text.parse::<ProxyUrl>(), Err(ProxyParseError), "{text}");
        }
    }

    async fn answered(answer: &'static [u8]) -> (Result<(), ProxyError>, Vec<u8>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(answer).await.unwrap();
        let proxy = "http://u:p@proxy:1".parse().unwrap();
        let result = http_connect(&mut near, &proxy, "sig.lab:443").await;
        let mut asked = vec![0; 1024];
        let len = far.read(&mut asked).await.unwrap();
        asked.truncate(len);
        drop(far);
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        (result, asked, rest)
    }

    #[tokio::test]
    async fn a_tunnel_opens_and_nothing_of_the_target_is_lost() {
        let (result, asked, rest) = answered(b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\nhello").await;
        assert!(result.is_ok());
        let expected = "CONNECT sig.lab:443 HTTP/1.1\r\nHost: sig.lab:443\r\n\
                        Proxy-Authorization: Basic dTpw\r\n\r\n";
        assert_eq!(String::from_utf8(asked).unwrap(), expected);
        assert_eq!(rest, b"hello");
    }

    #[tokio::test]
    async fn refusals_are_told_apart() {
        let result = async |answer| answered(answer).await.0.unwrap_err();
        let refused = result(b"HTTP/1.0 403 Forbidden\r\n\r\n").await;
        assert!(matches!(refused, ProxyError::Refused { status: 403, .. }));
        let wants = result(b"HTTP/1.1 407 x\r\n\r\n").await;
        assert!(matches!(wants, ProxyError::Unauthorized));
        let other = result(b"SSH-2.0-OpenSSH\r\n\r\n").await;
        assert!(matches!(other, ProxyError::NotHttp));
    }
}
