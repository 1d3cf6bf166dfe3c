//! What a lab is asked to be: homes, their NATs, carriers, and the links between them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::mapper::Mapper;

/// How a home meets the internet: mapping × filtering in the terms of RFC 4787 §4.1 and §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatKind {
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering: most home routers.
    PortRestricted,
    /// Address-dependent mapping, address- and port-dependent filtering.
    AddressDependent,
    /// Address- and port-dependent mapping and filtering.
    Symmetric,
    /// A public address, nothing in front of it.
    Public,
    /// A public address behind a stateful firewall.
    Firewalled,
    /// No UDP leaves; what TCP does is [`TcpPolicy`].
    UdpBlocked,
    /// A port-restricted router behind a carrier's NAT.
    Cgnat,
}

impl NatKind {
    /// Every kind, in the order of the command line's help.
    pub const ALL: [Self; 9] = [
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::AddressDependent,
        Self::Symmetric,
        Self::Public,
        Self::Firewalled,
        Self::UdpBlocked,
        Self::Cgnat,
    ];

    /// The kinds of the matrix: the five NATs, public and firewalled.
    pub const MATRIX: [Self; 7] = [
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::AddressDependent,
        Self::Symmetric,
        Self::Public,
        Self::Firewalled,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::AddressDependent => "address-dependent",
            Self::Symmetric => "symmetric",
            Self::Public => "public",
            Self::Firewalled => "firewalled",
            Self::UdpBlocked => "udp-blocked",
            Self::Cgnat => "cgnat",
        }
    }

    /// Whether the home's nodes have public IPv4 addresses of their own.
    pub fn is_public(self) -> bool {
        matches!(self, Self::Public | Self::Firewalled)
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for NatKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                format!("no NAT kind is named {name:?}; the kinds are: {known}")
            })
    }
}

/// What a home of kind [`NatKind::UdpBlocked`] lets out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpPolicy {
    /// TCP to ports 80 and 443: the usual office or hotel.
    #[default]
    Web,
    /// TCP to any port.
    Any,
    /// Nothing but what the home's HTTP CONNECT proxy fetches (needs [`HomeConfig::proxy`]).
    ProxyOnly,
}

/// A home's IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6 {
    /// None.
    #[default]
    None,
    /// Global addresses behind a stateful firewall: what home routers do (RFC 6092).
    Firewalled,
    /// Global addresses, nothing filtered.
    Open,
    /// Global addresses, and the router drops every packet without a word.
    Blackholed,
}

/// Which private subnet a home's LAN has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LanSubnet {
    /// One that no other home has.
    #[default]
    Own,
    /// 192.168.1.0/24, the same as every other home that says so.
    Overlapping,
}

/// A carrier's NAT (full cone, as RFC 6888 REQ-7 recommends, with a block of ports for each
/// subscriber) that homes stand behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierConfig {
    /// Its name; the namespace has it too.
    pub name: String,
    /// Whether subscribers reach each other by their mapped addresses (RFC 4787 §6).
    pub hairpin: bool,
}

/// One home: a router and the nodes on its LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeConfig {
    /// Name of the home and of its first node; the others are `NAME-2`, `NAME-3` and so on.
    pub name: String,
    /// Its NAT.
    pub nat: NatKind,
    /// Nodes on its LAN, 1 to [`MAX_NODES`].
    pub nodes: usize,
    /// Its private subnet.
    pub subnet: LanSubnet,
    /// Whether it has IPv4 at all.
    pub ipv4: bool,
    /// Its IPv6.
    pub ipv6: Ipv6,
    /// TCP of a [`NatKind::UdpBlocked`] home.
    pub tcp: TcpPolicy,
    /// The carrier it stands behind; a [`NatKind::Cgnat`] home that names none gets one of its own.
    pub carrier: Option<String>,
    /// How long the router remembers a silent UDP flow. `None` leaves 120 s (RFC 4787 REQ-5).
    pub udp_timeout: Option<Duration>,
    /// Whether the first node's source ports survive the router where they are free.
    pub preserve_ports: bool,
    /// Whether an HTTP CONNECT proxy stands on the LAN.
    pub proxy: bool,
    /// Whether its router maps ports on request, and how; its address on the internet is then none for
    /// documentation, for which miniupnpd maps nothing.
    pub mapper: Option<Mapper>,
}

impl HomeConfig {
    /// A home with one node, IPv4 only.
    pub fn new(name: impl Into<String>, nat: NatKind) -> Self {
        Self {
            name: name.into(),
            nat,
            nodes: 1,
            subnet: LanSubnet::Own,
            ipv4: true,
            ipv6: Ipv6::None,
            tcp: TcpPolicy::Web,
            carrier: None,
            udp_timeout: None,
            preserve_ports: true,
            proxy: false,
            mapper: None,
        }
    }

    /// Name of the `index`-th node, from 0.
    pub fn node_name(&self, index: usize) -> String {
        if index == 0 {
            self.name.clone()
        } else {
            format!("{}-{}", self.name, index + 1)
        }
    }
}

/// The most nodes in a home: each after the first has its own block of 2,000 external ports, and
/// the blocks end below the ephemeral ports that the first node keeps.
pub const MAX_NODES: usize = 6;
/// The most nodes in a home with public addresses: what its /29 has beside the router.
pub const MAX_PUBLIC_NODES: usize = 2;
/// The most homes and carriers together: their WAN addresses differ from each other and from the
/// STUN servers in the five bits by which the address-dependent NAT tells destinations apart.
pub const MAX_SITES: usize = 28;

/// Which program the lab's relay and STUN servers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TurnServer {
    /// `wice turn`, of the lab's own binary.
    #[default]
    Wice,
    /// coturn, from the machine.
    Coturn,
}

impl TurnServer {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Wice, Self::Coturn];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wice => "wice",
            Self::Coturn => "coturn",
        }
    }
}

impl FromStr for TurnServer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|server| server.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(" and ");
                format!("no TURN server is named {name:?}; there are {known}")
            })
    }
}

/// A whole lab.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// The homes.
    pub homes: Vec<HomeConfig>,
    /// The carriers that homes name.
    pub carriers: Vec<CarrierConfig>,
    /// Round trip between any two attachments of the internet; each attachment adds a quarter of
    /// it in each direction. Homes behind one carrier, or on one LAN, are nearer.
    pub rtt: Duration,
    /// Packets lost one way between any two attachments, in thousandths.
    pub loss_permille: u16,
    /// Seed of the losses and jitters.
    pub seed: u64,
    /// Whether the relay and the STUN servers are started.
    pub servers: bool,
    /// What they are.
    pub turn_server: TurnServer,
    /// The `wice` that runs as daemon, signaling service and relay. `None` is the running program.
    pub binary: Option<PathBuf>,
    /// Whether the directory of logs and state outlives the lab.
    pub keep: bool,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            homes: Vec::new(),
            carriers: Vec::new(),
            rtt: Duration::ZERO,
            loss_permille: 0,
            seed: 1,
            servers: true,
            turn_server: TurnServer::default(),
            binary: None,
            keep: false,
        }
    }
}

impl LabConfig {
    /// One home a kind, named `home-a`, `home-b` and so on.
    pub fn of_kinds(kinds: impl IntoIterator<Item = NatKind>) -> Self {
        let letters = 'a'..='z';
        let homes = letters
            .zip(kinds)
            .map(|(letter, nat)| HomeConfig::new(format!("home-{letter}"), nat))
            .collect();
        Self {
            homes,
            ..Self::default()
        }
    }

    /// Whether coturn must be on the machine.
    pub(super) fn needs_coturn(&self) -> bool {
        self.servers && self.turn_server == TurnServer::Coturn
    }

    /// Refuses what the lab cannot build, and says what would do.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut names =
            std::collections::BTreeSet::from(["turn", "stun-2", "signal"].map(String::from));
        let own_carriers = self
            .homes
            .iter()
            .filter(|h| h.nat == NatKind::Cgnat && h.carrier.is_none())
            .count();
        if self.homes.len() + self.carriers.len() + own_carriers > MAX_SITES {
            return Err(format!(
                "more than {MAX_SITES} homes and carriers: take fewer"
            ));
        }
        if self.loss_permille > 1000 {
            return Err("loss is above 100 %: give a part of a thousand".into());
        }
        for carrier in &self.carriers {
            if !names.insert(carrier.name.clone()) {
                return Err(format!(
                    "two things are named {}: names must differ",
                    carrier.name
                ));
            }
        }
        for home in &self.homes {
            home.check(self)?;
            for index in 0..home.nodes {
                if !names.insert(home.node_name(index)) {
                    return Err(format!(
                        "two things are named {}: names must differ",
                        home.name
                    ));
                }
            }
        }
        Ok(())
    }
}

impl HomeConfig {
    fn check(&self, lab: &LabConfig) -> Result<(), String> {
        let name = &self.name;
        let most = if self.nat.is_public() {
            MAX_PUBLIC_NODES
        } else {
            MAX_NODES
        };
        if self.nodes == 0 || self.nodes > most {
            return Err(format!("{name} has {} nodes: 1 to {most} fit", self.nodes));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!(
                "{name:?} cannot name a home: use letters, digits, - and _"
            ));
        }
        if !self.ipv4 && self.ipv6 == Ipv6::None {
            return Err(format!("{name} has neither IPv4 nor IPv6: give it one"));
        }
        if self.tcp == TcpPolicy::ProxyOnly && !self.proxy {
            return Err(format!(
                "{name} lets only its proxy out and has none: set `proxy`"
            ));
        }
        if self.proxy && (self.nat.is_public() || !self.ipv4) {
            return Err(format!("{name}: a proxy needs a private IPv4 LAN"));
        }
        let behind = self.carrier.is_some() || self.nat == NatKind::Cgnat;
        if behind && (self.ipv6 != Ipv6::None || !self.ipv4 || self.nat.is_public()) {
            return Err(format!(
                "{name}: behind a carrier there is IPv4 by NAT only"
            ));
        }
        match &self.carrier {
            Some(carrier) if !lab.carriers.iter().any(|c| &c.name == carrier) => Err(format!(
                "{name} is behind {carrier}, which is not among the carriers"
            )),
            Some(_) | None => Ok(()),
        }
    }
}
