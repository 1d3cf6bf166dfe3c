//! URLs of relays and STUN servers: `stun:` (RFC 7064), `turn:` and `turns:` (RFC 7065).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use wice_signaling::protocol::RelayTransport;

/// The default port of `stun:` and `turn:` (RFC 7064 §3.2, RFC 7065 §3.2).
pub const DEFAULT_PORT: u16 = 3478;
/// The default port of `turns:` (RFC 7065 §3.2).
pub const DEFAULT_TLS_PORT: u16 = 5349;
/// The longest URL that is taken, in bytes: a name has at most 253.
const MAX_URL: usize = 300;
/// The longest DNS name (RFC 1035 §2.3.4), without its final dot.
const MAX_NAME: usize = 253;

/// A server as a configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelayUrl {
    /// What it is used for.
    pub service: Service,
    /// Name or address.
    pub host: Host,
    /// Port, never 0.
    pub port: u16,
}

/// What a URL asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// STUN over UDP.
    Stun,
    /// TURN over one transport, or, with `None`, over UDP and TCP alike (RFC 7065 §3.1).
    Turn(Option<RelayTransport>),
}

/// A DNS name or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A name, in lower case.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// A URL that cannot be used, and how it should look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Longer than any host needs.
    #[error("the URL has {0} bytes, which is more than {MAX_URL}")]
    TooLong(usize),
    /// No scheme or another one.
    #[error(
        "`{0}` does not start with stun:, turn: or turns: (for example turn:relay.example.org:3478)"
    )]
    Scheme(String),
    /// `stuns:` is well-formed, but nothing here uses it.
    #[error("stuns: is not supported: UDP is what is to be probed; write stun: instead")]
    Stuns,
    /// `scheme://host`.
    #[error("`{0}` has slashes; these URLs have none: write scheme:host:port")]
    Slashes(String),
    /// `user@host`.
    #[error("`{0}` contains @; user and password do not belong in the URL but beside it")]
    Credentials(String),
    /// No host.
    #[error("`{0}` names no host")]
    NoHost(String),
    /// Not a DNS name, an IPv4 address or an IPv6 address in brackets.
    #[error("`{0}` is neither a DNS name nor an address (IPv6 addresses stand in brackets)")]
    Host(String),
    /// Not 1 to 65535.
    #[error("`{0}` is no port; it must be 1 to 65535")]
    Port(String),
    /// A query other than `transport=`, or one on a `stun:` URL.
    #[error("`?{0}` is not understood; only ?transport=udp or ?transport=tcp, on turn: and turns:")]
    Query(String),
    /// `turns:` with UDP is DTLS.
    #[error("turns: over UDP is DTLS, which is not supported; drop ?transport=udp to use TLS")]
    Dtls,
}

impl FromStr for RelayUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        if url.len() > MAX_URL {
            return Err(UrlError::TooLong(url.len()));
        }
        let (scheme, rest) = url
            .split_once(':')
            .ok_or_else(|| UrlError::Scheme(url.to_owned()))?;
        let scheme = scheme.to_ascii_lowercase();
        if rest.starts_with("//") {
            return Err(UrlError::Slashes(url.to_owned()));
        }
        if rest.contains('@') {
            return Err(UrlError::Credentials(url.to_owned()));
        }
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        let (service, default_port) = match scheme.as_str() {
            "stun" => match query {
                None => (Service::Stun, DEFAULT_PORT),
                Some(query) => return Err(UrlError::Query(query.to_owned())),
            },
            "stuns" => return Err(UrlError::Stuns),
            "turn" => (Service::Turn(transport(query)?), DEFAULT_PORT),
            "turns" => match transport(query)? {
                None | Some(RelayTransport::Tcp | RelayTransport::Tls) => {
                    (Service::Turn(Some(RelayTransport::Tls)), DEFAULT_TLS_PORT)
                }
                Some(RelayTransport::Udp) => return Err(UrlError::Dtls),
            },
            _ => return Err(UrlError::Scheme(url.to_owned())),
        };
        let (host, port) = split_port(authority)?;
        if host.is_empty() {
            return Err(UrlError::NoHost(url.to_owned()));
        }
        Ok(Self {
            service,
            host: parse_host(host)?,
            port: port.map_or(Ok(default_port), parse_port)?,
        })
    }
}

impl fmt::Display for RelayUrl {
    /// The URL again, with its port and the transport where it was chosen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, query) = match self.service {
            Service::Stun => ("stun", ""),
            Service::Turn(None) => ("turn", ""),
            Service::Turn(Some(RelayTransport::Udp)) => ("turn", "?transport=udp"),
            Service::Turn(Some(RelayTransport::Tcp)) => ("turn", "?transport=tcp"),
            Service::Turn(Some(RelayTransport::Tls)) => ("turns", ""),
        };
        write!(f, "{scheme}:{}:{}{query}", self.host, self.port)
    }
}

impl fmt::Display for Host {
    /// As it stands in a URL: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl FromStr for Host {
    type Err = UrlError;

    fn from_str(host: &str) -> Result<Self, UrlError> {
        parse_host(host)
    }
}

fn transport(query: Option<&str>) -> Result<Option<RelayTransport>, UrlError> {
    let Some(query) = query else {
        return Ok(None);
    };
    match query.to_ascii_lowercase().as_str() {
        "transport=udp" => Ok(Some(RelayTransport::Udp)),
        "transport=tcp" => Ok(Some(RelayTransport::Tcp)),
        _ => Err(UrlError::Query(query.to_owned())),
    }
}

/// Splits `host[:port]`, where an IPv6 address stands in brackets.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), UrlError> {
    if authority.starts_with('[') {
        let end = authority
            .find(']')
            .ok_or_else(|| UrlError::Host(authority.to_owned()))?;
        let (host, rest) = authority.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(UrlError::Host(authority.to_owned())),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(UrlError::Host(authority.to_owned())),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

fn parse_port(port: &str) -> Result<u16, UrlError> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number) if digits && number != 0 => Ok(number),
        Ok(_) | Err(_) => Err(UrlError::Port(port.to_owned())),
    }
}

fn parse_host(host: &str) -> Result<Host, UrlError> {
    let wrong = || UrlError::Host(host.to_owned());
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        let address: Ipv6Addr = inner.parse().map_err(|_| wrong())?;
        return Ok(Host::Address(IpAddr::V6(address).to_canonical()));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Address(IpAddr::V4(address)));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let labels_hold = name.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    // A last label of digits is a mistyped IPv4 address, never a name (RFC 3696 §2).
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > MAX_NAME || !labels_hold || numeric {
        return Err(wrong());
    }
    Ok(Host::Name(name.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    fn parse(url: &str) -> RelayUrl {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn urls_of_the_rfcs() {
        for (url, printed) in [
            ("stun:example.org", "stun:example.org:3478"),
            ("turn:example.org", "turn:example.org:3478"),
            ("turns:example.org", "turns:example.org:5349"),
            ("turn:example.org:8000", "turn:example.org:8000"),
            (
                "TURN:Example.ORG.:80?transport=UDP",
                "turn:example.org:80?transport=udp",
            ),
            (
                "turn:192.0.2.1?transport=tcp",
                "turn:192.0.2.1:3478?transport=tcp",
            ),
            ("turns:[2001:db8::1]:443", "turns:[2001:db8::1]:443"),
            ("turns:example.org?transport=tcp", "turns:example.org:5349"),
            ("stun:[::ffff:192.0.2.1]", "stun:192.0.2.1:3478"),
        ] {
            assert_eq!(parse(url).to_string(), printed);
            assert_eq!(parse(printed), parse(url));
        }
    }

    #[test]
    fn mutated_urls_never_panic_and_what_parses_prints_the_same() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let seeds = [
            "turn:relay.example.org:3478?transport=udp",
            "turns:[2001:db8::1]:443",
            "stun:192.0.2.1",
        ];
        let alphabet = b"turns:[]?.@/-_%0123456789abcdef\xc3\xa9\0 ";
        let mut parsed = 0;
        for round in 0..200_000 {
            let mut url = seeds[round % seeds.len()].as_bytes().to_vec();
            for _ in 0..=rng.next_u32() % 3 {
                let at = rng.next_u32() as usize % url.len();
                let byte = alphabet[rng.next_u32() as usize % alphabet.len()];
                match rng.next_u32() % 3 {
                    0 => url[at] = byte,
                    1 => url.insert(at, byte),
                    _ => url.truncate(at.max(1)),
                }
            }
            let text = String::from_utf8_lossy(&url);
            if let Ok(url) = text.parse::<RelayUrl>() {
                assert_eq!(parse(&url.to_string()), url);
                parsed += 1;
            }
        }
        assert!(parsed > 10_000, "{parsed}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let fails = |url: &str| url.parse::<RelayUrl>().expect_err(url);
        assert!(matches!(fails("turn://example.org"), UrlError::Slashes(_)));
        assert!(matches!(fails("example.org:3478"), UrlError::Scheme(_)));
        assert!(matches!(fails("example.org"), UrlError::Scheme(_)));
        assert!(matches!(fails(""), UrlError::Scheme(_)));
        assert!(matches!(fails("http:example.org"), UrlError::Scheme(_)));
        assert!(matches!(fails("stuns:example.org"), UrlError::Stuns));
        assert!(matches!(
            fails("turn:user:pass@example.org"),
            UrlError::Credentials(_)
        ));
        assert!(matches!(fails("turn:"), UrlError::NoHost(_)));
        assert!(matches!(fails("turn::3478"), UrlError::NoHost(_)));
        assert!(matches!(fails("turn:2001:db8::1"), UrlError::Host(_)));
        assert!(matches!(fails("turn:[2001:db8::1"), UrlError::Host(_)));
        assert!(matches!(fails("turn:[2001:db8::1]x"), UrlError::Host(_)));
        assert!(matches!(fails("turn:192.0.2.300"), UrlError::Host(_)));
        assert!(matches!(fails("turn:exa mple.org"), UrlError::Host(_)));
        assert!(matches!(fails("turn:a..b"), UrlError::Host(_)));
        assert!(matches!(fails("turn:example.org:0"), UrlError::Port(_)));
        assert!(matches!(fails("turn:example.org:+80"), UrlError::Port(_)));
        assert!(matches!(fails("turn:example.org:"), UrlError::Port(_)));
        assert!(matches!(fails("turn:example.org:65536"), UrlError::Port(_)));
        assert!(matches!(
            fails("turn:example.org?transport=sctp"),
            UrlError::Query(_)
        ));
        assert!(matches!(
            fails("stun:example.org?transport=udp"),
            UrlError::Query(_)
        ));
        assert!(matches!(
            fails("turns:example.org?transport=udp"),
            UrlError::Dtls
        ));
        assert!(matches!(
            fails(&format!("turn:{}", "a".repeat(400))),
            UrlError::TooLong(_)
        ));
    }
}
