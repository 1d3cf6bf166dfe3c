//! What people and machines are told: serde structs with a schema version, made from the node's snapshot, and their text. Both
//! the daemon (which makes them) and the command line (which gets them over the control socket) use them.

mod build;
mod find;
mod hosts;
mod netcheck;
mod nodes;
mod ping;
mod port_mapping;
mod render;
mod render_netcheck;
mod style;
#[cfg(test)]
mod tests;
mod turn_check;
mod units;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use build::{Inputs, PathMtu, PeerInputs, path_of};
pub(crate) use build::{
    lower_mtu, milliseconds, name_of, nat as nat_of, short_key, transport_name,
};
pub use hosts::DOMAIN;
pub use netcheck::{MappingObservation, Netcheck, NetcheckFamily, RelayCheck, TransportCheck, Udp};
pub use nodes::{NetworkNode, NetworkNodes};
pub use ping::PingEvent;
pub use port_mapping::PortMapping;
pub use style::Style;
pub use turn_check::{TurnCheck, TurnWay};
pub use units::{bytes, count, duration, rtt};

/// Version of every JSON document. It rises when a field changes its meaning or goes; new fields may come without.
pub const SCHEMA: u32 = 1;

/// The report of the whole node: `wice status --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The daemon's version.
    pub version: String,
    /// The WireGuard interface.
    pub interface: String,
    /// `managed` or `attached`.
    pub mode: String,
    /// The node's name.
    pub name: String,
    /// Its WireGuard public key, in base64.
    pub key: String,
    /// Its addresses in the overlay.
    pub addresses: Vec<IpAddr>,
    /// Its UDP port.
    pub listen_port: u16,
    /// Bytes of the largest packet that goes into the interface; 0 while that is not known.
    #[serde(default)]
    pub mtu: u32,
    /// A path carries less than that, and what to do.
    #[serde(default)]
    pub mtu_warning: Option<String>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// What STUN says of its NAT.
    pub nat: Nat,
    /// The signaling connection.
    pub signaling: Signaling,
    /// Our routers, where ports are mapped on them; empty without a NAT and where it is off.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Why the interface cannot be used, where another program owns it.
    #[serde(default)]
    pub problem: Option<String>,
    /// Every configured relay and transport.
    pub relays: Vec<Relay>,
    /// Its own candidates; none but relayed ones where it has no network.
    pub candidates: Vec<End>,
    /// What each STUN server sees.
    pub observations: Vec<Observation>,
    /// The peers, by name, then key.
    pub peers: Vec<Peer>,
    /// Attached mode: nodes that have this one as a WireGuard peer and look for it, and are no peers of its interface.
    #[serde(default)]
    pub strangers: Vec<Stranger>,
    /// What was counted since the start.
    pub counters: Counters,
}

/// A node that seeks this one, whose interface lacks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// Its name, or the start of its key.
    pub name: String,
    /// Its WireGuard public key, in base64.
    pub key: String,
}

/// What is known of a NAT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// RFC 4787 §4.1: `unknown`, `none`, `endpoint-independent`, `address-dependent`, `address-and-port-dependent`; `blocked`
    /// where no STUN server answers.
    pub mapping: String,
    /// RFC 4787 §5: `unknown`, `endpoint-independent`, `address-dependent`, `address-and-port-dependent`.
    pub filtering: String,
    /// A global IPv6 address is among the candidates.
    pub ipv6: bool,
}

/// The connection to signaling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signaling {
    /// The service's URL.
    pub url: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Seconds since it was connected, or lost.
    pub since_s: u64,
    /// Why it is not connected, or where it is, why what this node says is not published; in one line.
    pub error: Option<String>,
    /// What to do about it.
    #[serde(default)]
    pub hint: Option<String>,
    /// The service refuses this node until somebody acts: its stable code, like `revoked`.
    #[serde(default)]
    pub refused: Option<String>,
}

/// A relay over one transport.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    /// Its host.
    pub name: String,
    /// `udp`, `tcp` or `tls`.
    pub transport: String,
    /// Our allocation's address.
    pub relayed: Option<SocketAddr>,
    /// Round trip to it.
    pub rtt_ms: Option<f64>,
    /// Why the last attempt failed.
    pub failure: Option<String>,
    /// What its operator is to do about that.
    #[serde(default)]
    pub hint: Option<String>,
}

/// What one STUN server saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// What was asked from.
    pub base: SocketAddr,
    /// The server, as configured.
    pub server: String,
    /// Where it saw the base.
    pub mapped: Option<SocketAddr>,
    /// Round trip.
    pub rtt_ms: Option<f64>,
    /// At least one round went unanswered.
    pub silent: bool,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name, or the start of its key before it has published one.
    pub name: String,
    /// Its WireGuard public key, in base64.
    pub key: String,
    /// Its addresses in the overlay.
    pub addresses: Vec<IpAddr>,
    /// What carries its packets.
    pub path: Path,
    /// Round trip on the path.
    pub rtt_ms: Option<f64>,
    /// Stable code: see `wice why --help`.
    pub reason: String,
    /// The reason in words.
    pub summary: String,
    /// What to do, in a few words; empty where nothing is to be done.
    pub hint: String,
    /// Seconds since the last WireGuard handshake.
    pub handshake_age_s: Option<u64>,
    /// Bytes received from it, as WireGuard counts.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Seconds since its node was last connected to signaling; 0 while it is.
    pub last_seen_s: Option<u64>,
    /// How often its path has changed.
    pub path_changes: u64,
    /// How often another program has reset its endpoint on the interface.
    #[serde(default)]
    pub endpoint_resets: u64,
    /// Bytes of the largest packet inside the tunnel that its path carries in one piece; `None` without a path, and where a
    /// stream carries any size.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Packets that were too large for its path since the start.
    #[serde(default)]
    pub too_large: u64,
}

/// What carries a peer's packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// `native`, `direct`, `relayed` or `none`.
    pub kind: PathKind,
    /// Our end.
    pub local: Option<End>,
    /// The other end.
    pub remote: Option<End>,
    /// `udp`, `tcp` or `tls`, where a relay is in the path.
    pub relay_transport: Option<String>,
    /// Its host, where it is one of ours.
    pub relay: Option<String>,
    /// WireGuard has answered on it.
    pub up: bool,
    /// Seconds since it was chosen.
    pub age_s: Option<u64>,
}

/// What kind of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// WireGuard's own endpoint.
    Native,
    /// No relay in it.
    Direct,
    /// At least one relay in it.
    Relayed,
    /// There is none.
    None,
}

impl PathKind {
    /// As JSON and tables have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::None => "none",
        }
    }
}

/// A candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// `host`, `srflx`, `prflx`, `mapped` or `relay`.
    pub kind: String,
    /// Transport address.
    pub address: SocketAddr,
}

/// Why a peer's path is what it is: `wice why --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The peer, as in the status.
    pub peer: Peer,
    /// What to do, in full; empty where nothing is to be done.
    pub remedy: String,
    /// How large packets its path carries, in words.
    #[serde(default)]
    pub mtu: Option<String>,
    /// Our NAT.
    pub here: Nat,
    /// What each STUN server sees of us.
    pub observations: Vec<Observation>,
    /// The peer's NAT as its advert says; `None` without an advert.
    pub there: Option<Nat>,
    /// `controlling` or `controlled`; `None` before there is an agent.
    pub role: Option<String>,
    /// Every pair, the selected one first, then by falling priority.
    pub pairs: Vec<Pair>,
}

/// A candidate pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Our end: how it is known, and what it sends from.
    pub local: End,
    /// Where the other side sees us.
    pub mapped: Option<SocketAddr>,
    /// The other end.
    pub remote: End,
    /// `udp`, `tcp` or `tls`, where a relay is in it.
    pub relay_transport: Option<String>,
    /// `in use`, `standby`, `works`, `held`, `waiting`, `checking` or `failed`.
    pub state: String,
    /// Checks sent.
    pub checks_sent: u32,
    /// Checks answered.
    pub checks_answered: u32,
    /// Round trip.
    pub rtt_ms: Option<f64>,
    /// Why it does not carry the data; `None` if it does.
    pub why_not: Option<String>,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Checks sent, retransmissions included.
    pub checks_sent: u64,
    /// Checks answered.
    pub checks_answered: u64,
    /// Messages dropped because a queue was full.
    pub transmits_dropped: u64,
    /// Checks not sent because their destination has not answered often enough.
    pub over_budget: u64,
    /// STUN that could not be parsed.
    pub malformed: u64,
    /// STUN at an address that is no base.
    pub no_base: u64,
    /// STUN from somebody unknown.
    pub strangers: u64,
    /// STUN whose integrity does not hold.
    pub unauthentic: u64,
    /// Checks under a session that was replaced.
    pub superseded: u64,
    /// Adverts taken.
    pub adverts_accepted: u64,
    /// Adverts refused.
    pub adverts_refused: u64,
    /// Paths whose checks were answered and WireGuard's packets were not.
    pub data_dead: u64,
}

/// How well a node or a peer does: the exit code of what reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// As well as the networks allow.
    Well,
    /// It works, but something is missing.
    Degraded,
    /// It does not work.
    Broken,
}

impl Health {
    /// 0, 1 or 2.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Well => 0,
            Self::Degraded => 1,
            Self::Broken => 2,
        }
    }
}

impl Peer {
    /// A peer that is switched off is nobody's fault: without a path and not connected to signaling.
    pub fn is_away(&self) -> bool {
        self.path.kind == PathKind::None
            && matches!(self.reason.as_str(), "peer-away" | "no-advert")
    }

    /// Well with any path that has carried WireGuard, degraded while one is looked for, broken without.
    pub fn health(&self) -> Health {
        match (self.path.kind, self.reason.as_str()) {
            (_, "checking") if self.path.kind == PathKind::None => Health::Degraded,
            (_, "revoked") => Health::Degraded,
            (PathKind::None, _) | (_, "no-network") => Health::Broken,
            (_, "wireguard-unanswered") => Health::Degraded,
            (PathKind::Native | PathKind::Direct | PathKind::Relayed, _) => Health::Well,
        }
    }
}

impl Status {
    /// Whether the node has no address to send from: what a relay holds for it outlives that for some minutes.
    pub fn has_no_network(&self) -> bool {
        self.candidates.iter().all(|end| end.kind == "relay")
    }

    /// Broken without a network, when this node was revoked (its peers have dropped it), and where nothing works: no peer has a
    /// path, and there is a peer that is on, or signaling that would tell is not connected. Well while signaling is connected and every peer that is on has a path (a relayed one is a
    /// path). Degraded between.
    pub fn health(&self) -> Health {
        let present: Vec<Health> = self
            .peers
            .iter()
            .filter(|peer| !peer.is_away())
            .map(Peer::health)
            .collect();
        let expected = !present.is_empty() || !self.signaling.connected;
        let nothing_works = present.iter().all(|health| *health == Health::Broken);
        let is_out = self.signaling.refused.as_deref() == Some("revoked");
        if self.problem.is_some() || self.has_no_network() || is_out || (expected && nothing_works)
        {
            return Health::Broken;
        }
        if self.signaling.connected && present.iter().all(|health| *health == Health::Well) {
            Health::Well
        } else {
            Health::Degraded
        }
    }
}
