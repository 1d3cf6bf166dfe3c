//! HTTP proxies, for networks that let nothing else out: the CONNECT method (RFC 9110 §9.3.6) with
//! Basic credentials (RFC 7617).

use std::fmt;
use std::io;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use crate::core::turn::url::Host;

/// The default port of `http:` URLs (RFC 9110 §4.2.1).
const DEFAULT_PORT: u16 = 80;
/// The most bytes of a proxy's answer: servers commonly allow 8 KiB of header.
const MAX_ANSWER: usize = 8 * 1024;
/// The longest proxy URL.
const MAX_URL: usize = 1024;

/// An HTTP proxy: `http://[user:password@]host[:port]`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    /// The proxy.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// `user:password`, decoded.
    credentials: Option<Zeroizing<String>>,
}

/// A proxy URL that cannot be used. None of them prints a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyUrlError {
    /// Another scheme.
    #[error(
        "write the proxy like http://proxy.example:3128 (TLS to the proxy and SOCKS are not supported)"
    )]
    Scheme,
    /// Host or port.
    #[error("the proxy URL has no usable host and port; write http://[user:password@]host[:port]")]
    Host,
    /// A percent sign without two hexadecimal digits, or a control character.
    #[error("user or password of the proxy URL is not percent-encoded correctly")]
    Credentials,
}

/// Why the proxy did not let us through.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// 407 without credentials in the URL.
    #[error(
        "the proxy wants user and password (407): put them into its URL, http://user:password@host"
    )]
    CredentialsNeeded,
    /// 407 with credentials.
    #[error("the proxy refused user or password (407), or wants a scheme other than Basic")]
    CredentialsRefused,
    /// 403 or 405: by policy.
    #[error("the proxy forbids connections to {target} ({status}); many allow port 443 only")]
    Forbidden {
        /// Where to, `host:port`.
        target: String,
        /// HTTP status.
        status: u16,
    },
    /// 502, 503 or 504.
    #[error("the proxy cannot reach {target} ({status})")]
    Unreachable {
        /// Where to, `host:port`.
        target: String,
        /// HTTP status.
        status: u16,
    },
    /// Any other status.
    #[error("the proxy answered CONNECT with status {0}")]
    Status(u16),
    /// Not HTTP, too long, or followed by bytes before we sent any.
    #[error("the proxy's answer is not HTTP; is this the proxy's address?")]
    Malformed,
    /// It closed the connection instead of answering, or reading or writing failed.
    #[error("the connection to the proxy broke: {0}")]
    Io(io::Error),
}

impl FromStr for ProxyUrl {
    type Err = ProxyUrlError;

    fn from_str(url: &str) -> Result<Self, ProxyUrlError> {
        let prefix = "http://";
        let scheme = url.get(..prefix.len());
        if url.len() > MAX_URL || !scheme.is_some_and(|s| s.eq_ignore_ascii_case(prefix)) {
            return Err(ProxyUrlError::Scheme);
        }
        let rest = &url[prefix.len()..];
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((credentials, address)) => (Some(decode(credentials)?), address),
            None => (None, authority),
        };
        // The part after the last colon is the port, unless it belongs to a bracketed address.
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
            Some(_) | None => (address, Some(DEFAULT_PORT)),
        };
        Ok(Self {
            host: host.parse().map_err(|_| ProxyUrlError::Host)?,
            port: port.filter(|&port| port != 0).ok_or(ProxyUrlError::Host)?,
            credentials,
        })
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.credentials.is_some() {
            "…@"
        } else {
            ""
        };
        write!(f, "http://{user}{}:{}", self.host, self.port)
    }
}

/// Asks the proxy on `stream` for a connection to `host:port`; then `stream` is that connection.
pub async fn http_connect<S>(
    stream: &mut S,
    proxy: &ProxyUrl,
    host: &Host,
    port: u16,
) -> Result<(), ProxyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let target = format!("{host}:{port}");
    let mut request = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
    if let Some(credentials) = &proxy.credentials {
        let encoded = Zeroizing::new(STANDARD.encode(credentials.as_bytes()));
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(&encoded);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(ProxyError::Io)?;
    match read_status(stream).await? {
        200..=299 => Ok(()),
        407 if proxy.credentials.is_none() => Err(ProxyError::CredentialsNeeded),
        407 => Err(ProxyError::CredentialsRefused),
        status @ (403 | 405) => Err(ProxyError::Forbidden { target, status }),
        status @ 502..=504 => Err(ProxyError::Unreachable { target, status }),
        status => Err(ProxyError::Status(status)),
    }
}

async fn read_status<S: AsyncRead + Unpin>(stream: &mut S) -> Result<u16, ProxyError> {
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    let end = loop {
        if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if answer.len() >= MAX_ANSWER {
            return Err(ProxyError::Malformed);
        }
        let mut rest = (&mut *stream).take((MAX_ANSWER - answer.len()) as u64);
        let read = rest.read_buf(&mut answer).await;
        if read.map_err(ProxyError::Io)? == 0 {
            return Err(ProxyError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    let status = parse_status(&answer).ok_or(ProxyError::Malformed)?;
    // In TURN, in TLS and in HTTP the client speaks first: what follows is nobody's that we know. An error's
    // body may follow.
    if (200..300).contains(&status) && end != answer.len() {
        return Err(ProxyError::Malformed);
    }
    Ok(status)
}

/// The status of `HTTP/1.x SSS …` (RFC 9112 §4).
fn parse_status(answer: &[u8]) -> Option<u16> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let (&[minor, space, a, b, c], tail) = rest.split_first_chunk::<5>()?;
    let follows = matches!(tail.first(), Some(b' ' | b'\r'));
    if !minor.is_ascii_digit() || space != b' ' || !follows {
        return None;
    }
    let status = [a, b, c];
    std::str::from_utf8(&status)
        .ok()
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?
        .parse()
        .ok()
}

/// Percent-decodes `user:password` (RFC 3986 §2.1).
fn decode(text: &str) -> Result<Zeroizing<String>, ProxyUrlError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or(ProxyUrlError::Credentials)?;
        let mut byte = [0];
        hex::decode_to_slice(digits, &mut byte).map_err(|_| ProxyUrlError::Credentials)?;
        bytes.push(byte[0]);
        rest = tail;
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| ProxyUrlError::Credentials)?;
    if text.chars().any(char::is_control) {
        return Err(ProxyUrlError::Credentials);
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<ProxyUrl, ProxyUrlError> {
        url.parse()
    }

    #[test]
    fn proxy_urls() {
        let full = parse("http://me:p%40ss%3A@proxy.example:3128/").expect("valid");
        assert_eq!(
            full.credentials.as_ref().expect("there").as_str(),
            "me:p@ss:"
        );
        assert_eq!(format!("{full:?}"), "http://…@proxy.example:3128");
        let plain = parse("http://[2001:db8::1]").expect("valid");
        assert_eq!(
            (plain.host.to_string().as_str(), plain.port),
            ("[2001:db8::1]", 80)
        );
        assert_eq!(parse("http://[::1]:8080").expect("valid").port, 8080);
        for (url, error) in [
            ("https://proxy.example", ProxyUrlError::Scheme),
            ("socks5://proxy.example", ProxyUrlError::Scheme),
            ("http://", ProxyUrlError::Host),
            ("http://proxy.example:0", ProxyUrlError::Host),
            ("http://proxy.example:x", ProxyUrlError::Host),
            ("http://a%0d%0ab@proxy.example", ProxyUrlError::Credentials),
            ("http://a%2@proxy.example", ProxyUrlError::Credentials),
        ] {
            assert_eq!(parse(url).expect_err(url), error);
        }
    }

    #[tokio::test]
    async fn the_target_and_the_credentials_are_asked_for() {
        let (mut near, mut far) = tokio::io::duplex(1 << 12);
        far.write_all(b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n")
            .await
            .expect("room");
        let proxy = parse("http://u:p@proxy:1").expect("valid");
        let target = "sig.lab".parse().expect("a host");
        let opened = http_connect(&mut near, &proxy, &target, 443).await;
        assert!(opened.is_ok());
        let mut asked = vec![0; 1024];
        let length = far.read(&mut asked).await.expect("a request");
        let expected = "CONNECT sig.lab:443 HTTP/1.1\r\nHost: sig.lab:443\r\n\
                        Proxy-Authorization: Basic dTpw\r\n\r\n";
        assert_eq!(asked.get(..length), Some(expected.as_bytes()));
    }

    #[test]
    fn status_lines() {
        assert_eq!(parse_status(b"HTTP/1.1 200 OK\r\n\r\n"), Some(200));
        assert_eq!(parse_status(b"HTTP/1.0 407\r\n\r\n"), Some(407));
        for bad in [
            "HTTP/2 200",
            "HTTP/1.1 20",
            "HTTP/1.1 2000 ",
            "HTTP/1.1 +20 ",
            "",
        ] {
            assert_eq!(parse_status(bad.as_bytes()), None, "{bad}");
        }
    }
}
