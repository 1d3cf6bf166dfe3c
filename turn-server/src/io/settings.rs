//! What the operator says, checked and turned into a server's configuration.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use wice_udp::UdpError;

use super::addresses;
use crate::server::{
    Config, Credentials, DEFAULT_CHALLENGES, DEFAULT_PORTS, DEFAULT_QUOTAS, MAX_PEERS, MAX_SHARDS,
    NONCE_LIFETIME, NonceKey, PeerPolicy, Ports, Prefix, Quotas, Rate, RelayConfig, Transport,
    nonce_key,
};

/// Port of `turn:` (RFC 8656 §4).
pub const DEFAULT_PORT: u16 = 3478;
/// Port of `turns:`.
pub const TLS_PORT: u16 = 5349;
/// REALM unless told otherwise.
pub const DEFAULT_REALM: &str = "wice";
/// Characters of REALM that clients take (RFC 8489 §14.9: fewer than 128).
const MAX_REALM: usize = 127;
/// The fewest relay ports: an EVEN-PORT pair.
const MIN_PORTS: usize = 2;

/// Everything about a service. [`Settings::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients are served.
    pub listen: Vec<Listen>,
    /// Relayed addresses, at most one a family; without, the addresses of the default routes.
    pub relay_ips: Vec<IpAddr>,
    /// What clients are told instead of them, behind a 1:1 NAT.
    pub external_ips: Vec<External>,
    /// Relay ports.
    pub ports: RangeInclusive<u16>,
    /// REALM.
    pub realm: String,
    /// Names and passwords.
    pub users: Vec<(String, String)>,
    /// Secrets of time-limited credentials; the first also makes the nonces of a fleet.
    pub secrets: Vec<String>,
    /// Peers that are allowed although they are special.
    pub allow_peers: Vec<Prefix>,
    /// Peers that are denied.
    pub deny_peers: Vec<Prefix>,
    /// Threads.
    pub threads: usize,
    /// PEM files of chain and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// A certificate of its own making, for these names and its addresses: where the files of [`Settings::certificate`] do not
    /// exist it is written to them, without such files it lives as long as the service.
    pub self_signed: Option<Vec<String>>,
    /// Where metrics and health are served.
    pub metrics: Option<SocketAddr>,
    /// Quotas.
    pub quotas: Quotas,
    /// Challenges a source.
    pub challenges: Rate,
    /// How long a nonce is good for.
    pub nonce_lifetime: Duration,
    /// TCP allocations (RFC 6062) are offered.
    pub tcp_relay: bool,
    /// Load balancers: TCP and TLS connections from here begin with a PROXY protocol header (version 2), those from elsewhere
    /// do not.
    pub proxy_protocol_from: Vec<Prefix>,
    /// Clients older than RFC 8656 are understood.
    pub old_clients: bool,
}

/// A listener: `udp://ADDR:PORT`, `tcp://…`, `tls://…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// What is spoken.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

/// `PUBLIC` or `PUBLIC/PRIVATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct External {
    /// What the world sees.
    pub public: IpAddr,
    /// Which relay address it stands for; without, the one of its family.
    pub private: Option<IpAddr>,
}

/// A text that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no {1}\n  write it like {2}")]
pub struct TextError(String, &'static str, &'static str);

fn tcp_hint(address: SocketAddr, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrNotAvailable {
        "no interface of this machine has this address: ip address".to_owned()
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "choose a port above 1023, or give CAP_NET_BIND_SERVICE".to_owned()
    } else {
        let port = address.port();
        format!("see what uses it: ss -ltnp 'sport = :{port}', or choose another port")
    }
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that contradict each other or are missing.
    #[error("{0}")]
    Settings(String),
    /// A UDP socket.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// A TCP socket.
    #[error(
        "cannot listen on TCP {address}: {error}\n  {}", tcp_hint(*address, error)
    )]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Certificate or key.
    #[error("cannot use the certificate {path}: {why}\n  give a PEM chain with --cert and its PEM key with --key", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system refused something else.
    #[error("cannot {step}: {error}")]
    System {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

impl Settings {
    /// Listens on UDP and TCP 3478 of all addresses (of IPv6 where this machine has it), with one thread a core and nobody
    /// to serve.
    pub fn new() -> Self {
        let any = [
            Some(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            addresses::has_ipv6().then_some(Ipv6Addr::UNSPECIFIED.into()),
        ];
        let listen = any.into_iter().flatten().flat_map(|ip| {
            [Transport::Udp, Transport::Tcp].map(|transport| Listen {
                transport,
                address: SocketAddr::new(ip, DEFAULT_PORT),
            })
        });
        Self {
            listen: listen.collect(),
            relay_ips: Vec::new(),
            external_ips: Vec::new(),
            ports: DEFAULT_PORTS,
            realm: DEFAULT_REALM.to_owned(),
            users: Vec::new(),
            secrets: Vec::new(),
            allow_peers: Vec::new(),
            deny_peers: Vec::new(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            certificate: None,
            self_signed: None,
            metrics: None,
            quotas: DEFAULT_QUOTAS,
            challenges: DEFAULT_CHALLENGES,
            nonce_lifetime: NONCE_LIFETIME,
            tcp_relay: false,
            proxy_protocol_from: Vec::new(),
            old_clients: false,
        }
    }

    /// Contradictions, in words.
    pub(super) fn check(&self) -> Result<(), StartError> {
        let fail = |text: String| Err(StartError::Settings(text));
        if self.listen.is_empty() {
            return fail("nothing to listen on\n  give --listen udp://0.0.0.0:3478".into());
        }
        // TCP and TLS share their ports.
        let is_udp = |listen: &Listen| listen.transport == Transport::Udp;
        let mut ports: Vec<(SocketAddr, bool)> = Vec::new();
        for listen in &self.listen {
            let port = (listen.address, is_udp(listen));
            if listen.address.port() != 0 && ports.contains(&port) {
                return fail(format!(
                    "--listen: {} is there twice\n  give each address and port once",
                    listen.address
                ));
            }
            ports.push(port);
        }
        if self.users.is_empty() && self.secrets.is_empty() {
            return fail(
                "nobody could use this server: no user and no secret\n  give --user NAME:PASSWORD, or --secret-file FILE".into(),
            );
        }
        if self.realm.is_empty() || self.realm.len() > MAX_REALM {
            return fail(format!("the realm must have 1 to {MAX_REALM} bytes"));
        }
        if self.ports.clone().count() < MIN_PORTS || *self.ports.start() == 0 {
            return fail(format!(
                "the port range {}-{} is too small\n  an allocation needs a port of its own: give --ports 49152-65535",
                self.ports.start(),
                self.ports.end()
            ));
        }
        if self.threads == 0 || self.threads > usize::from(MAX_SHARDS) {
            return fail(format!("--threads must be 1 to {MAX_SHARDS}"));
        }
        let tls = self.listen.iter().any(|l| l.transport == Transport::Tls);
        if tls && self.certificate.is_none() && self.self_signed.is_none() {
            return fail(
                "tls:// needs a certificate\n  give --cert and --key, or --self-signed".into(),
            );
        }
        Ok(())
    }

    /// The server's configuration. `ports` keeps what is taken over reloads; `fallback` makes nonces where there is no secret.
    pub(super) fn config(
        &self,
        ports: &RelayPorts,
        fallback: NonceKey,
    ) -> Result<Config, StartError> {
        let (relay_v4, relay_v6) = self.relays(ports)?;
        let mut own = addresses::interfaces().map_err(|error| StartError::System {
            step: "list this machine's addresses",
            error,
        })?;
        let relays = || relay_v4.iter().chain(&relay_v6);
        own.extend(relays().flat_map(|relay| [relay.local, relay.external]));
        own.extend(self.external_ips.iter().map(|external| external.public));
        own.extend(self.listen.iter().map(|listen| listen.address.ip()));
        let users = self.users.iter().map(|(n, p)| (n.as_str(), p.as_str()));
        let secrets = self.secrets.iter().map(String::as_str);
        let mut nonce_keys: Vec<_> = secrets.clone().map(|s| nonce_key(s.as_bytes())).collect();
        if nonce_keys.is_empty() {
            nonce_keys.push(fallback);
        }
        Ok(Config {
            realm: self.realm.clone(),
            credentials: Credentials::new(&self.realm, users, secrets),
            nonce_keys,
            nonce_lifetime: self.nonce_lifetime,
            policy: PeerPolicy {
                allow: self.allow_peers.clone(),
                deny: self.deny_peers.clone(),
                own,
                relay: relays().map(|relay| relay.external).collect(),
            },
            relay_v4,
            relay_v6,
            quotas: self.quotas,
            challenges: self.challenges,
            tcp_relay: self.tcp_relay,
            max_permissions: MAX_PEERS,
            max_channels: MAX_PEERS,
            old_clients: self.old_clients,
        })
    }

    fn relays(
        &self,
        ports: &RelayPorts,
    ) -> Result<(Option<RelayConfig>, Option<RelayConfig>), StartError> {
        let fail = |text: String| Err(StartError::Settings(text));
        let (mut v4, mut v6) = (None, None);
        let chosen = if self.relay_ips.is_empty() {
            addresses::of_default_routes()
        } else {
            self.relay_ips.clone()
        };
        for local in chosen {
            if local.is_unspecified() || local.is_multicast() {
                return fail(format!(
                    "--relay-ip cannot be {local}\n  it is an address of this machine that peers can reach: ip address"
                ));
            }
            let external = self
                .external_ips
                .iter()
                .find(|external| match external.private {
                    Some(private) => private == local,
                    None => external.public.is_ipv4() == local.is_ipv4(),
                });
            let (slot, ports) = if local.is_ipv4() {
                (&mut v4, &ports.v4)
            } else {
                (&mut v6, &ports.v6)
            };
            let relay = RelayConfig {
                local,
                external: external.map_or(local, |external| external.public),
                ports: Arc::clone(ports),
            };
            if slot.replace(relay).is_some() {
                return fail(format!("--relay-ip {local}: one address a family"));
            }
        }
        for external in &self.external_ips {
            let used = [&v4, &v6].into_iter().flatten();
            if !used.clone().any(|relay| relay.external == external.public) {
                return fail(format!(
                    "--external-ip {}: no relay address that it stands for\n  give --relay-ip PRIVATE, and --external-ip PUBLIC/PRIVATE",
                    external.public
                ));
            }
        }
        if v4.is_none() && v6.is_none() {
            return fail("this machine has no address to relay from\n  give --relay-ip".into());
        }
        Ok((v4, v6))
    }
}

/// Addresses that clients know a server by.
pub(super) fn addresses_of(settings: &Settings, config: &Config) -> Vec<IpAddr> {
    let relays = config.relay_v4.iter().chain(&config.relay_v6);
    let listen = settings.listen.iter().map(|listen| listen.address.ip());
    let mut all: Vec<IpAddr> = relays
        .map(|relay| relay.external)
        .chain(listen.filter(|ip| !ip.is_unspecified()))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

/// Ports of both families.
#[derive(Clone, Debug)]
pub(super) struct RelayPorts {
    pub(super) v4: Arc<Ports>,
    pub(super) v6: Arc<Ports>,
}

impl RelayPorts {
    pub(super) fn new(range: &RangeInclusive<u16>) -> Self {
        Self {
            v4: Arc::new(Ports::new(range.clone())),
            v6: Arc::new(Ports::new(range.clone())),
        }
    }
}

impl FromStr for Listen {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let error = || {
            TextError(
                text.to_owned(),
                "listener",
                "udp://0.0.0.0:3478, tcp://[::]:3478 or tls://0.0.0.0:443",
            )
        };
        let (scheme, address) = text.split_once("://").ok_or_else(error)?;
        let (transport, port) = match scheme {
            "udp" => (Transport::Udp, DEFAULT_PORT),
            "tcp" => (Transport::Tcp, DEFAULT_PORT),
            "tls" => (Transport::Tls, TLS_PORT),
            _ => return Err(error()),
        };
        let ip = || address.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let address = address
            .parse()
            .ok()
            .or_else(|| Some(SocketAddr::new(ip()?, port)))
            .ok_or_else(error)?;
        Ok(Self { transport, address })
    }
}

impl FromStr for External {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let error = || {
            TextError(
                text.to_owned(),
                "external address",
                "203.0.113.5 or 203.0.113.5/10.0.0.5",
            )
        };
        let (public, private) = match text.split_once('/') {
            Some((public, private)) => (public, Some(private)),
            None => (text, None),
        };
        let parse = |text: &str| text.parse::<IpAddr>().map_err(|_| error());
        let external = Self {
            public: parse(public)?,
            private: private.map(parse).transpose()?,
        };
        let mixed = |private: IpAddr| private.is_ipv4() != external.public.is_ipv4();
        if external.private.is_some_and(mixed) {
            return Err(error());
        }
        Ok(external)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_and_external_addresses_are_read() {
        let listen = |text: &str| {
            text.parse::<Listen>()
                .map(|l| (l.transport, l.address.to_string()))
        };
        assert_eq!(
            listen("udp://0.0.0.0:3479").unwrap(),
            (Transport::Udp, "0.0.0.0:3479".into())
        );
        assert_eq!(
            listen("tcp://[::1]").unwrap(),
            (Transport::Tcp, "[::1]:3478".into())
        );
        assert_eq!(
            listen("tls://192.0.2.1").unwrap(),
            (Transport::Tls, "192.0.2.1:5349".into())
        );
        for text in [
            "0.0.0.0:3478",
            "dtls://0.0.0.0",
            "udp://example.org",
            "udp://",
            "",
        ] {
            assert!(listen(text).is_err(), "{text}");
        }
        assert!("203.0.113.5/10.0.0.5".parse::<External>().is_ok());
        for text in ["203.0.113.5/::1", "/10.0.0.1", "x"] {
            assert!(text.parse::<External>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_work_is_said_before_anything_is_opened() {
        let good = Settings {
            users: vec![("alice".into(), "secret".into())],
            relay_ips: vec!["127.0.0.1".parse().unwrap()],
            ..Settings::new()
        };
        assert!(good.check().is_ok());
        let bad = |change: fn(&mut Settings)| {
            let mut settings = good.clone();
            change(&mut settings);
            let ports = RelayPorts::new(&settings.ports);
            let checked = settings
                .check()
                .and_then(|()| settings.config(&ports, [0; 32]).map(drop));
            checked.unwrap_err().to_string()
        };
        assert!(bad(|s| s.users.clear()).contains("--user"));
        assert!(bad(|s| s.ports = 5000..=5000).contains("too small"));
        assert!(bad(|s| s.listen.clear()).contains("--listen"));
        assert!(bad(|s| s.listen.extend(s.listen.clone())).contains("twice"));
        assert!(bad(|s| s.threads = 0).contains("--threads"));
        assert!(bad(|s| s.listen.push("tls://127.0.0.1".parse().unwrap())).contains("--cert"));
        assert!(bad(|s| s.relay_ips = vec!["0.0.0.0".parse().unwrap()]).contains("--relay-ip"));
        assert!(
            bad(|s| s.external_ips = vec!["2001:db8::1".parse().unwrap()])
                .contains("--external-ip")
        );
    }
}
