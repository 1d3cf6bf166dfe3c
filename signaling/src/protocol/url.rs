//! Where servers are: the signaling service's URL, STUN and TURN servers.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::RelayTransport;

/// The longest URL, in bytes; a host name has at most 253 (RFC 1035 §2.3.4).
pub(super) const MAX_URL_LEN: usize = 300;

/// The longest host name, in bytes.
const MAX_HOST_LEN: usize = 253;

const DEFAULT_PORT: u16 = 80;
const DEFAULT_TLS_PORT: u16 = 443;
/// RFC 8656 §5 and RFC 7064.
const STUN_PORT: u16 = 3478;
const TURNS_PORT: u16 = 5349;

/// A signaling service's URL: `wss://host[:port][/path]`, or `ws://` without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalUrl {
    /// TLS (`wss`) or not (`ws`).
    pub tls: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Begins with a slash.
    pub path: String,
}

/// A text is not the URL of a signaling service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the URL of a signaling service: write it like wss://signal.example:8443")]
pub struct UrlError;

impl SignalUrl {
    /// Host and port as an HTTP request's `Host` has them.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", bracketed(&self.host), self.port)
    }
}

impl FromStr for SignalUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > MAX_URL_LEN {
            return Err(UrlError);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError)?;
        let tls = match scheme {
            "wss" => true,
            "ws" => false,
            _ => return Err(UrlError),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let default = if tls { DEFAULT_TLS_PORT } else { DEFAULT_PORT };
        let (host, port) = host_and_port(authority, default).ok_or(UrlError)?;
        // What may stand in a request line unquoted (RFC 3986 §3.3), so that no header is smuggled.
        if !path
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/-._~%".contains(&b))
        {
            return Err(UrlError);
        }
        Ok(Self {
            tls,
            host,
            port,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for SignalUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let default = if self.tls {
            DEFAULT_TLS_PORT
        } else {
            DEFAULT_PORT
        };
        write!(f, "{scheme}://{}", bracketed(&self.host))?;
        if self.port != default {
            write!(f, ":{}", self.port)?;
        }
        if self.path != "/" {
            f.write_str(&self.path)
        } else {
            Ok(())
        }
    }
}

/// What a server does, and over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerKind {
    /// STUN over UDP.
    Stun,
    /// TURN.
    Turn(RelayTransport),
}

/// A STUN or TURN server, without credentials. Its text is the URI of RFC 7064 or RFC 7065:
/// `stun:host:port`, `turn:host:port?transport=udp`, `turn:…?transport=tcp`,
/// `turns:…?transport=tcp`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerAddress {
    /// What it does.
    pub kind: ServerKind,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// A text is not the URI of a STUN or TURN server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a STUN or TURN server: write it like stun:host:3478, turn:host:3478?transport=udp or turns:host:443?transport=tcp"
)]
pub struct ServerAddressError;

impl ServerAddress {
    /// A STUN server at the host of `authority` (`host` or `host:port`) and at `port`.
    #[must_use]
    pub fn stun_at(authority: &str, port: u16) -> Option<Self> {
        let (host, _) = host_and_port(authority, port)?;
        Some(Self {
            kind: ServerKind::Stun,
            host,
            port,
        })
    }
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, ServerAddressError> {
        if text.len() > MAX_URL_LEN {
            return Err(ServerAddressError);
        }
        let (scheme, rest) = text.split_once(':').ok_or(ServerAddressError)?;
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        let (kind, port) = match (scheme, query) {
            ("stun", None) => (ServerKind::Stun, STUN_PORT),
            ("turn", None | Some("transport=udp")) => {
                (ServerKind::Turn(RelayTransport::Udp), STUN_PORT)
            }
            ("turn", Some("transport=tcp")) => (ServerKind::Turn(RelayTransport::Tcp), STUN_PORT),
            ("turns", None | Some("transport=tcp")) => {
                (ServerKind::Turn(RelayTransport::Tls), TURNS_PORT)
            }
            _ => return Err(ServerAddressError),
        };
        let (host, port) = host_and_port(authority, port).ok_or(ServerAddressError)?;
        Ok(Self { kind, host, port })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, query) = match self.kind {
            ServerKind::Stun => ("stun", ""),
            ServerKind::Turn(RelayTransport::Udp) => ("turn", "?transport=udp"),
            ServerKind::Turn(RelayTransport::Tcp) => ("turn", "?transport=tcp"),
            ServerKind::Turn(RelayTransport::Tls) => ("turns", "?transport=tcp"),
        };
        write!(f, "{scheme}:{}:{}{query}", bracketed(&self.host), self.port)
    }
}

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port`; the host comes without brackets.
#[must_use]
pub fn host_and_port(authority: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        (
            host,
            if port.is_empty() {
                None
            } else {
                Some(port.strip_prefix(':')?)
            },
        )
    } else {
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
        if host.is_empty() || host.len() > MAX_HOST_LEN || !host.bytes().all(plain) {
            return None;
        }
        (host, port)
    };
    let port = match port {
        Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
        Some(_) => return None,
        None => default,
    };
    (port != 0).then(|| (host.to_owned(), port))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_urls() {
        for text in [
            "wss://signal.example",
            "wss://signal.example:8443",
            "ws://10.0.0.1:8080/wice",
            "wss://[2001:db8::1]:8443",
        ] {
            assert_eq!(text.parse::<SignalUrl>().unwrap().to_string(), text);
        }
        assert_eq!(
            "wss://a:443/".parse::<SignalUrl>().unwrap().to_string(),
            "wss://a"
        );
        for text in [
            "",
            "signal.example",
            "https://a",
            "wss://",
            "wss://a:0",
            "wss://a:65536",
            "wss://a:+1",
            "wss://user@a",
            "wss://a/\r\nX: y",
            "wss://a/?q",
            "wss://[::1",
            "wss://[a]",
            "wss://a b",
        ] {
            assert_eq!(text.parse::<SignalUrl>(), Err(UrlError), "{text}");
        }
    }

    #[test]
    fn server_addresses() {
        for text in [
            "stun:a.example:3478",
            "turn:a.example:3478?transport=udp",
            "turn:10.0.0.1:3478?transport=tcp",
            "turns:[2001:db8::1]:443?transport=tcp",
        ] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
        assert_eq!("turns:a".parse::<ServerAddress>().unwrap().port, TURNS_PORT);
        for text in [
            "",
            "stun:",
            "stun:a?transport=tcp",
            "turns:a?transport=udp",
            "http:a",
            "turn:a:0",
        ] {
            assert_eq!(
                text.parse::<ServerAddress>(),
                Err(ServerAddressError),
                "{text}"
            );
        }
    }
}
