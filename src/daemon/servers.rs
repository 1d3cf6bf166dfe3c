//! STUN and TURN servers: from the settings, from signaling, from the state folder; resolved.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wice_signaling::protocol::{
    RelayTransport, ServerAddress, ServerKind, Servers as Told, SignalUrl,
};

use super::state::ServerState;
use super::{Settings, StaticRelay};
use crate::core::node::{RelayServer, StunServer};
use crate::core::turn::url::Host;
use crate::io::dial::Fwmark;
use crate::io::http_proxy::ProxyUrl;
use crate::io::packet_loop::Endpoints;
use crate::io::relay::{Endpoint, Tls, Trust};

/// A name is given up after this, until it is asked for again.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Names that have no address are asked for again: at boot the resolver may come after us.
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
/// Addresses of one name that are used: one a family.
const PER_FAMILY: usize = 1;

/// Servers, resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) stun: Vec<StunServer>,
    pub(super) relays: Vec<RelayServer>,
}

/// All servers that the node knows of.
pub(super) struct Servers {
    stun: Vec<ServerAddress>,
    turn: Vec<StaticRelay>,
    proxy: Option<ProxyUrl>,
    tls: Option<Tls>,
    fwmark: Fwmark,
    signal: Option<ServerAddress>,
    told: Vec<ServerAddress>,
    credentials: Option<(String, String)>,
    updates: mpsc::Sender<Update>,
    receiver: mpsc::Receiver<Update>,
    resolving: Option<JoinHandle<()>>,
}

impl Servers {
    pub(super) fn new(settings: &Settings, fwmark: Fwmark) -> anyhow::Result<Self> {
        let (updates, receiver) = mpsc::channel(1);
        let trust = match &settings.ca_file {
            Some(path) => Trust::CaFile(path.clone()),
            None => Trust::System,
        };
        let tls = match Tls::new(&trust, None) {
            Ok(tls) => Some(tls),
            Err(error) if settings.ca_file.is_none() => {
                tracing::warn!(event = "no-tls", %error, "relays over TLS cannot be used");
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            stun: settings.stun.clone(),
            turn: settings.turn.clone(),
            proxy: settings.proxy.as_deref().map(str::parse).transpose()?,
            tls,
            fwmark,
            signal: None,
            told: Vec::new(),
            credentials: None,
            updates,
            receiver,
            resolving: None,
        })
    }

    /// How a relay over TCP or TLS is connected to.
    pub(super) fn endpoints(&self) -> Endpoints {
        let (proxy, tls, fwmark) = (self.proxy.clone(), self.tls.clone(), self.fwmark.clone());
        Box::new(move |server| {
            let host = match server.name.parse() {
                Ok(ip) => Host::Address(ip),
                // Without a proxy the name is resolved already; with one it is the proxy's to do.
                Err(_) => Host::Name(server.name.clone()),
            };
            let tls = match server.transport {
                RelayTransport::Udp | RelayTransport::Tcp => None,
                RelayTransport::Tls => Some(tls.clone()?),
            };
            Some(Endpoint {
                host,
                port: server.address.port(),
                tls,
                proxy: proxy.clone(),
                mark: fwmark.clone(),
            })
        })
    }

    /// What was known before the start. The signaling service answers STUN itself, unless it was
    /// told not to: gathering need not wait for the connection.
    pub(super) fn restore(&mut self, known: Option<ServerState>, url: Option<&SignalUrl>) {
        self.signal = url.map(|url| ServerAddress {
            kind: ServerKind::Stun,
            host: url.host.clone(),
            port: url.port,
        });
        if let Some(known) = known {
            self.told = known
                .addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect();
            self.credentials = known.credentials;
        }
        self.resolve();
    }

    /// Signaling has told servers: first without credentials, later with.
    pub(super) fn told(&mut self, told: Told) {
        let credentials = told.credentials.map(|c| (c.username, c.password));
        if told.addresses == self.told && (credentials.is_none() || credentials == self.credentials)
        {
            return;
        }
        self.told = told.addresses;
        self.credentials = credentials.or_else(|| self.credentials.take());
        self.resolve();
    }

    /// The next update; cancel-safe.
    pub(super) async fn next(&mut self) -> Update {
        match self.receiver.recv().await {
            Some(update) => update,
            // Never: the sender is ours.
            None => std::future::pending().await,
        }
    }

    fn resolve(&mut self) {
        let stun_at = |address: &ServerAddress| match address.kind {
            ServerKind::Stun | ServerKind::Turn(RelayTransport::Udp) => true,
            ServerKind::Turn(RelayTransport::Tcp | RelayTransport::Tls) => false,
        };
        let all = self.stun.iter().chain(&self.told);
        let mut stun: Vec<ServerAddress> = all.filter(|a| stun_at(a)).cloned().collect();
        // TURN servers answer STUN as well (RFC 8656 §2).
        stun.extend(
            self.turn
                .iter()
                .map(|relay| relay.address.clone())
                .filter(|a| stun_at(a)),
        );
        stun.extend(self.signal.clone());
        let mut relays = self.turn.clone();
        if let Some((username, password)) = &self.credentials {
            relays.extend(self.told.iter().map(|address| StaticRelay {
                address: address.clone(),
                username: username.clone(),
                password: password.clone(),
            }));
        }
        if let Some(before) = self.resolving.take() {
            before.abort();
        }
        let by_proxy = self.proxy.is_some();
        let updates = self.updates.clone();
        self.resolving = Some(tokio::spawn(async move {
            let wanted = stun.len() + relays.len();
            let mut told = None;
            loop {
                let (update, found) = resolve_all(stun.clone(), relays.clone(), by_proxy).await;
                if told.as_ref() != Some(&update) {
                    told = Some(update.clone());
                    // Fails only when the daemon ends.
                    let _ = updates.send(update).await;
                }
                if found == wanted {
                    return;
                }
                tokio::time::sleep(RESOLVE_AGAIN).await;
            }
        }));
    }
}

/// What has an address, and how many of the servers that is.
async fn resolve_all(
    stun: Vec<ServerAddress>,
    relays: Vec<StaticRelay>,
    by_proxy: bool,
) -> (Update, usize) {
    let mut update = Update::default();
    let mut found = 0;
    let stun = stun.into_iter().map(|server| async move {
        let addresses = lookup(&server.host, server.port).await;
        (server, addresses)
    });
    for (server, addresses) in futures_util::future::join_all(stun).await {
        found += usize::from(!addresses.is_empty());
        for address in addresses {
            let known = update
                .stun
                .iter()
                .any(|known: &StunServer| known.address == address);
            if !known {
                update.stun.push(StunServer {
                    name: server.host.clone(),
                    address,
                });
            }
        }
    }
    let relays = relays.into_iter().map(|relay| async move {
        let addresses = lookup(&relay.address.host, relay.address.port).await;
        (relay, addresses)
    });
    for (relay, mut addresses) in futures_util::future::join_all(relays).await {
        let ServerKind::Turn(transport) = relay.address.kind else {
            found += 1;
            continue;
        };
        if addresses.is_empty() && by_proxy && transport != RelayTransport::Udp {
            // The proxy resolves; the family of the relayed address is IPv4's.
            addresses.push(SocketAddr::from(([0, 0, 0, 0], relay.address.port)));
        }
        found += usize::from(!addresses.is_empty());
        for address in addresses {
            update.relays.push(RelayServer {
                name: relay.address.host.clone(),
                address,
                transport,
                username: relay.username.clone(),
                password: relay.password.clone(),
            });
        }
    }
    (update, found)
}

/// The first address of each family.
async fn lookup(host: &str, port: u16) -> Vec<SocketAddr> {
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let found: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            tracing::debug!(event = "unresolved", host, %error);
            Vec::new()
        }
        Err(_) => Vec::new(),
    };
    let family = |v4: bool| {
        let of_family = found.iter().filter(move |address| address.is_ipv4() == v4);
        of_family.take(PER_FAMILY).copied()
    };
    family(false).chain(family(true)).collect()
}
