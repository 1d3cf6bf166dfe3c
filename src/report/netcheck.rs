//! What `wice netcheck` finds out about the network that the node is in.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Health, Nat, PortMapping};

/// The report: `wice netcheck --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Netcheck {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Whether UDP gets out and back.
    pub udp: Udp,
    /// The NAT, over IPv4 where there is IPv4.
    pub nat: Nat,
    /// What each STUN server sees.
    pub mappings: Vec<MappingObservation>,
    /// Whether the NAT turns traffic around that is sent to its own mapping; `None` where there is no NAT or no answer.
    pub hairpin: Option<bool>,
    /// Over IPv4.
    pub ipv4: NetcheckFamily,
    /// Over IPv6.
    pub ipv6: NetcheckFamily,
    /// Each relay.
    pub relays: Vec<RelayCheck>,
    /// What the routers offer that port mappings could be made on.
    pub port_mappings: Vec<PortMapping>,
    /// What could not be tried, and why.
    pub notes: Vec<String>,
}

/// Whether UDP gets out and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Udp {
    /// A STUN server or a relay answered over UDP.
    Open,
    /// None did.
    Blocked,
    /// There was none to ask.
    Unknown,
}

/// What a STUN server sees of this node's socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MappingObservation {
    /// The server, as configured.
    pub server: String,
    /// Its address.
    pub address: SocketAddr,
    /// What it sees; `None` where it does not answer.
    pub mapped: Option<SocketAddr>,
    /// Round trip.
    pub rtt_ms: Option<f64>,
}

/// An IP family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetcheckFamily {
    /// Addresses of interfaces that could be candidates.
    pub addresses: Vec<IpAddr>,
    /// Whether a STUN server answered; `None` where none was asked.
    pub works: Option<bool>,
}

/// A relay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RelayCheck {
    /// Its host.
    pub name: String,
    /// Each way to reach it.
    pub transports: Vec<TransportCheck>,
}

/// A way to reach a relay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransportCheck {
    /// `udp`, `tcp` or `tls`.
    pub transport: String,
    /// Port.
    pub port: u16,
    /// Round trip of a request.
    pub rtt_ms: Option<f64>,
    /// Whether the credentials gave an allocation; `None` where there were none to try.
    pub allocates: Option<bool>,
    /// Why it does not work.
    pub failure: Option<String>,
}

impl Netcheck {
    /// Well with UDP and every relay that is known; broken if nothing answers, also because there was nobody to ask.
    pub fn health(&self) -> Health {
        let works = |check: &TransportCheck| check.failure.is_none() && check.rtt_ms.is_some();
        let relay = |relay: &RelayCheck| relay.transports.iter().any(works);
        match self.udp {
            Udp::Open if self.relays.iter().all(relay) => Health::Well,
            Udp::Open => Health::Degraded,
            Udp::Unknown | Udp::Blocked if self.relays.iter().any(relay) => Health::Degraded,
            Udp::Unknown | Udp::Blocked => Health::Broken,
        }
    }
}
