//! From what the daemon knows to reports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wice_signaling::protocol::{
    CandidateKind, Filtering, Mapping, NatBehavior, PublicKey, RelayTransport,
};

use super::count;
use super::{
    Counters, End, Nat, Observation, Pair, Path, PathKind, Peer, PortMapping, Relay, SCHEMA,
    Signaling, Status, Stranger, Why,
};
use crate::core::ice::{PairState, Role, Use};
use crate::core::mtu::MIN_INNER;
use crate::core::node::{self, NodeSnapshot, PairView, PeerSnapshot};
use crate::core::policy::is_private;
use crate::core::reason::{Facts, Reason, reason, why_not, wrong_credentials};
use crate::core::turn::Failure;
use crate::wireguard::inprocess::PeerStats;

/// Characters of a key that stand for a name.
const SHORT_KEY: usize = 8;

/// All that reports are made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The WireGuard interface.
    pub interface: &'a str,
    /// Whether wice owns it.
    pub managed: bool,
    /// Our addresses in the overlay.
    pub addresses: &'a [IpAddr],
    /// Our UDP port.
    pub listen_port: u16,
    /// Bytes of the largest packet that goes into the interface; 0 while that is not known.
    pub mtu: u32,
    /// Since the daemon started.
    pub uptime: Duration,
    /// Only relayed pairs may carry data, by policy.
    pub relay_only: bool,
    /// Why the interface cannot be used, where another program owns it.
    pub problem: Option<&'a str>,
    /// The core.
    pub node: &'a NodeSnapshot,
    /// The connection to signaling.
    pub signaling: &'a Signaling,
    /// What the core does not know of the peers; absent ones are as [`PeerInputs::default`].
    pub peers: &'a BTreeMap<PublicKey, PeerInputs>,
    /// Nodes that seek this one and are no peers of its interface.
    pub strangers: &'a [Stranger],
    /// Our routers.
    pub port_mappings: &'a [PortMapping],
}

/// What a path carries in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// Bytes of the largest packet outside, IP header included, as the kernel knows it.
    pub path: u32,
    /// Bytes of the largest packet inside the tunnel.
    pub inner: u32,
    /// Datagrams that did not fit since the start: at least so many were lost.
    pub too_large: u64,
}

/// What the core does not know of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerInputs {
    /// Its addresses in the overlay.
    pub addresses: Vec<IpAddr>,
    /// What WireGuard counts.
    pub stats: PeerStats,
    /// WireGuard's own endpoint, where that is left alone.
    pub native: Option<SocketAddr>,
    /// Something has come by it.
    pub native_works: bool,
    /// How often another program has put something else where our endpoint stood.
    pub endpoint_resets: u64,
    /// What its path carries in one piece, where that is limited.
    pub mtu: Option<PathMtu>,
    /// It says that its interface lacks this node.
    pub lacks_us: bool,
    /// Since its node was last connected to signaling: zero while it is.
    pub last_seen: Option<Duration>,
    /// For how long paths have been looked for: since its agent started.
    pub checking_for: Option<Duration>,
}

impl Inputs<'_> {
    /// The report of the whole node.
    pub fn status(&self) -> Status {
        let node = self.node;
        let mut peers: Vec<Peer> = node.peers.iter().map(|peer| self.peer(peer)).collect();
        peers.sort_by(|a, b| (&a.name, &a.key).cmp(&(&b.name, &b.key)));
        Status {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interface: self.interface.to_owned(),
            mode: if self.managed { "managed" } else { "attached" }.to_owned(),
            name: node.name.clone(),
            key: node.key.to_string(),
            addresses: self.addresses.to_vec(),
            listen_port: self.listen_port,
            mtu: self.mtu,
            mtu_warning: self.mtu_warning(&peers),
            uptime_s: self.uptime.as_secs(),
            nat: self.nat(),
            signaling: self.signaling.clone(),
            port_mappings: self.port_mappings.to_vec(),
            problem: self.problem.map(str::to_owned),
            relays: node.relays.iter().map(relay).collect(),
            candidates: node
                .candidates
                .iter()
                .map(|(kind, address)| end(*kind, *address))
                .collect(),
            observations: self.observations(),
            peers,
            strangers: self.strangers.to_vec(),
            counters: counters(&node.counters),
        }
    }

    /// Why a peer's path is what it is. `wanted` is its name, key, start of a key, or overlay address.
    pub fn why(&self, wanted: &str) -> Result<Why, String> {
        let peer = self.find(wanted)?;
        let reason = self.reason(peer);
        let extra = self.extra(peer);
        let facts = self.facts(peer, &extra);
        Ok(Why {
            schema: SCHEMA,
            peer: self.peer(peer),
            mtu: extra.mtu.map(|path| self.mtu_text(path)),
            remedy: reason.remedy,
            here: self.nat(),
            observations: self.observations(),
            there: peer.nat.map(|there| nat(there, has_ipv6_pair(peer))),
            role: peer.role.map(|role| {
                match role {
                    Role::Controlling => "controlling",
                    Role::Controlled => "controlled",
                }
                .to_owned()
            }),
            pairs: peer.pairs.iter().map(|view| pair(&facts, view)).collect(),
        })
    }

    /// The peer that `wanted` names, as [`Status::find`] has it.
    pub fn find(&self, wanted: &str) -> Result<&PeerSnapshot, String> {
        let status = self.status();
        let key = &status.find(wanted)?.key;
        self.node
            .peers
            .iter()
            .find(|peer| peer.key.to_string() == *key)
            .ok_or_else(|| format!("no peer is called {wanted}"))
    }

    /// One peer's report.
    pub fn peer(&self, peer: &PeerSnapshot) -> Peer {
        let extra = self.extra(peer);
        let reason = self.reason(peer);
        let path = path_of(peer, extra.native, extra.native_works);
        let rtt_ms = peer
            .path
            .as_ref()
            .filter(|_| extra.native.is_none())
            .and_then(|path| path.pair.rtt)
            .map(milliseconds);
        Peer {
            name: name_of(peer),
            key: peer.key.to_string(),
            addresses: extra.addresses.clone(),
            path,
            rtt_ms,
            reason: reason.code.as_str().to_owned(),
            summary: reason.summary,
            hint: reason.hint,
            handshake_age_s: extra.stats.last_handshake.map(|age| age.as_secs()),
            rx_bytes: extra.stats.rx_bytes,
            tx_bytes: extra.stats.tx_bytes,
            last_seen_s: extra.last_seen.map(|age| age.as_secs()),
            path_changes: peer.changes,
            endpoint_resets: extra.endpoint_resets,
            mtu: extra.mtu.map(|path| path.inner),
            too_large: extra.mtu.map_or(0, |path| path.too_large),
        }
    }

    /// Why this peer's path is what it is.
    pub fn reason(&self, peer: &PeerSnapshot) -> Reason {
        reason(&self.facts(peer, &self.extra(peer)))
    }

    fn extra(&self, peer: &PeerSnapshot) -> PeerInputs {
        self.peers.get(&peer.key).cloned().unwrap_or_default()
    }

    fn facts<'b>(&'b self, peer: &'b PeerSnapshot, extra: &PeerInputs) -> Facts<'b> {
        Facts {
            node: self.node,
            peer,
            port: self.listen_port,
            relay_only: self.relay_only,
            native: extra.native.map(|_| extra.native_works),
            checking_for: extra.checking_for,
            last_seen: extra.last_seen,
            handshake_age: extra.stats.last_handshake,
            attached: (!self.managed).then_some(self.interface),
            lacks_us: extra.lacks_us,
            port_mapping: self
                .port_mappings
                .first()
                .map(|router| router.summary.as_str()),
        }
    }

    /// The interface takes in larger packets than a path carries.
    fn mtu_warning(&self, peers: &[Peer]) -> Option<String> {
        let tight = peers
            .iter()
            .filter(|peer| peer.mtu.is_some_and(|mtu| mtu < self.mtu));
        let tight: Vec<&Peer> = tight.collect();
        let least = tight.iter().min_by_key(|peer| peer.mtu)?;
        let carried = least.mtu?;
        let others = match tight.len() {
            1 => String::new(),
            several => format!(
                " ({} of others too little, too)",
                count(several - 1, "path")
            ),
        };
        Some(format!(
            "{} has {}, the path to {} carries {carried}{others}: {}",
            self.interface,
            self.mtu,
            least.name,
            lower_mtu(self.interface, self.managed, carried)
        ))
    }

    fn mtu_text(&self, path: PathMtu) -> String {
        let PathMtu {
            path: outside,
            inner,
            too_large,
        } = path;
        let lost = match too_large {
            0 => String::new(),
            some => format!(
                "; {} did not fit since the start",
                count(usize::try_from(some).unwrap_or(usize::MAX), "packet")
            ),
        };
        let (interface, mtu) = (self.interface, self.mtu);
        let advice = match inner < mtu {
            true => format!(": {}", lower_mtu(interface, self.managed, inner)),
            false => String::new(),
        };
        format!(
            "its path carries {inner} bytes ({outside} with all headers), {interface} takes in up to {mtu}{advice}{lost}"
        )
    }

    fn nat(&self) -> Nat {
        let global = |(_, address): &(CandidateKind, SocketAddr)| {
            address.is_ipv6() && !is_private(address.ip())
        };
        nat(self.node.nat, self.node.candidates.iter().any(global))
    }

    fn observations(&self) -> Vec<Observation> {
        let of = |(base, server, seen): &(SocketAddr, String, crate::core::gather::Observation)| {
            Observation {
                base: *base,
                server: server.clone(),
                mapped: seen.mapped,
                rtt_ms: seen.rtt.map(milliseconds),
                silent: seen.silent,
            }
        };
        self.node.observations.iter().map(of).collect()
    }
}

/// What carries a peer's packets; `native` is WireGuard's own endpoint, where that is left alone, and
/// `works` says whether something has come by it.
pub fn path_of(peer: &PeerSnapshot, native: Option<SocketAddr>, works: bool) -> Path {
    if let Some(address) = native {
        return Path {
            kind: PathKind::Native,
            remote: Some(end(CandidateKind::Host, address)),
            up: works,
            ..no_path()
        };
    }
    let Some(path) = &peer.path else {
        return no_path();
    };
    Path {
        kind: if path.pair.relays == 0 {
            PathKind::Direct
        } else {
            PathKind::Relayed
        },
        local: Some(local_end(&path.pair)),
        remote: Some(end(path.pair.remote_kind, path.pair.remote)),
        relay_transport: path
            .pair
            .relay_transport
            .map(|transport| transport_name(transport).to_owned()),
        relay: path.relay.clone(),
        up: path.up,
        age_s: Some(path.age.as_secs()),
    }
}

/// What to do where a path carries no more than `carried` bytes.
pub(crate) fn lower_mtu(interface: &str, managed: bool, carried: u32) -> String {
    let below = carried < MIN_INNER;
    match managed {
        true if below => format!(
            "that is less than IPv6 in the overlay takes ({MIN_INNER}): have what is on the way carry more"
        ),
        true => format!("wice up --mtu {carried} (or mtu in wice.toml)"),
        false if below => {
            format!("ip link set {interface} mtu {carried} (it has no IPv6 below {MIN_INNER})")
        }
        false => format!("ip link set {interface} mtu {carried}"),
    }
}

/// A peer's name, or the start of its key before it has published one.
pub(crate) fn name_of(peer: &PeerSnapshot) -> String {
    match &peer.name {
        Some(name) if !name.is_empty() => name.clone(),
        Some(_) | None => short_key(&peer.key),
    }
}

/// What stands for a name.
pub(crate) fn short_key(key: &PublicKey) -> String {
    format!("{}…", &key.to_string()[..SHORT_KEY])
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are what clocks here can tell.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

pub(crate) fn nat(nat: NatBehavior, ipv6: bool) -> Nat {
    Nat {
        mapping: mapping_name(nat.mapping).to_owned(),
        filtering: filtering_name(nat.filtering).to_owned(),
        ipv6,
    }
}

pub(super) fn mapping_name(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::Unknown => "unknown",
        Mapping::None => "none",
        Mapping::EndpointIndependent => "endpoint-independent",
        Mapping::AddressDependent => "address-dependent",
        Mapping::AddressAndPortDependent => "address-and-port-dependent",
        Mapping::Blocked => "blocked",
    }
}

pub(super) fn filtering_name(filtering: Filtering) -> &'static str {
    match filtering {
        Filtering::Unknown => "unknown",
        Filtering::EndpointIndependent => "endpoint-independent",
        Filtering::AddressDependent => "address-dependent",
        Filtering::AddressAndPortDependent => "address-and-port-dependent",
    }
}

pub(crate) fn transport_name(transport: RelayTransport) -> &'static str {
    match transport {
        RelayTransport::Udp => "udp",
        RelayTransport::Tcp => "tcp",
        RelayTransport::Tls => "tls",
    }
}

fn kind_name(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::PeerReflexive => "prflx",
        CandidateKind::ServerReflexive => "srflx",
        CandidateKind::Mapped => "mapped",
        CandidateKind::Relayed => "relay",
    }
}

fn no_path() -> Path {
    Path {
        kind: PathKind::None,
        local: None,
        remote: None,
        relay_transport: None,
        relay: None,
        up: false,
        age_s: None,
    }
}

fn end(kind: CandidateKind, address: SocketAddr) -> End {
    End {
        kind: kind_name(kind).to_owned(),
        address,
    }
}

/// A reflexive candidate's address is the one at which we are seen.
fn local_end(pair: &PairView) -> End {
    let address = match pair.local_kind {
        CandidateKind::Host | CandidateKind::Relayed => pair.local,
        CandidateKind::PeerReflexive | CandidateKind::ServerReflexive | CandidateKind::Mapped => {
            pair.mapped.unwrap_or(pair.local)
        }
    };
    end(pair.local_kind, address)
}

fn pair(facts: &Facts<'_>, view: &PairView) -> Pair {
    let state = match (view.state, view.used) {
        (PairState::Succeeded, Use::Selected) => "in use",
        (PairState::Succeeded, Use::Standby) => "standby",
        (PairState::Succeeded, Use::None) => "works",
        (PairState::Waiting, _) if view.held => "held",
        (PairState::Waiting, _) => "waiting",
        (PairState::InProgress, _) => "checking",
        (PairState::Failed(_), _) => "failed",
    };
    Pair {
        local: local_end(view),
        mapped: view.mapped,
        remote: end(view.remote_kind, view.remote),
        relay_transport: view
            .relay_transport
            .map(|transport| transport_name(transport).to_owned()),
        state: state.to_owned(),
        checks_sent: view.checks.0,
        checks_answered: view.checks.1,
        rtt_ms: view.rtt.map(milliseconds),
        why_not: why_not(facts, view),
    }
}

fn relay(relay: &node::RelaySnapshot) -> Relay {
    Relay {
        name: relay.name.clone(),
        transport: transport_name(relay.transport).to_owned(),
        relayed: relay.relayed,
        rtt_ms: relay.rtt.map(milliseconds),
        failure: relay.failure.map(|failure| failure.to_string()),
        hint: (relay.failure == Some(Failure::WrongCredentials))
            .then(|| wrong_credentials(relay.minted).0.to_owned()),
    }
}

fn has_ipv6_pair(peer: &PeerSnapshot) -> bool {
    peer.pairs.iter().any(|pair| {
        pair.remote.is_ipv6()
            && pair.remote_kind != CandidateKind::Relayed
            && !is_private(pair.remote.ip())
    })
}

fn counters(from: &node::Counters) -> Counters {
    Counters {
        checks_sent: from.checks_sent,
        checks_answered: from.checks_answered,
        transmits_dropped: from.transmits_dropped,
        over_budget: from.over_budget,
        malformed: from.malformed,
        no_base: from.no_base,
        strangers: from.strangers,
        unauthentic: from.unauthentic,
        superseded: from.superseded,
        adverts_accepted: from.adverts_accepted,
        adverts_refused: from.adverts_refused,
        data_dead: from.data_dead,
    }
}
