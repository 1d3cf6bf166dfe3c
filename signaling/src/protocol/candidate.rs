//! Candidates as an advert carries them, and what a node says of its NAT.

use std::net::SocketAddr;

/// The most candidates an advert may carry: 16 fit in 1 KiB; past them the lowest priority is dropped.
pub const MAX_CANDIDATES: usize = 16;

/// How a candidate was learned (RFC 8445 §5.1.1), plus `Mapped` for port mappings
/// (PCP, NAT-PMP, UPnP). `PeerReflexive` never stands in an advert: it is re-advertised as
/// `ServerReflexive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of the node's own interface.
    Host,
    /// What a peer's check came from, learned by the check itself.
    PeerReflexive,
    /// What a STUN server saw.
    ServerReflexive,
    /// A port mapping on the router.
    Mapped,
    /// An allocation on a TURN server.
    Relayed,
}

/// What carries an allocation between the node and its TURN server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelayTransport {
    /// UDP (RFC 8656 §2.1).
    Udp,
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
}

/// One candidate of an advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// How it was learned.
    pub kind: CandidateKind,
    /// Transport address; never an IPv4-mapped IPv6 address, port never 0.
    pub address: SocketAddr,
    /// RFC 8445 §5.1.2.
    pub priority: u32,
    /// `Some` if and only if `kind` is `Relayed`.
    pub relay_transport: Option<RelayTransport>,
}

/// Mapping behaviour of the NAT in front of a node (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Not known (yet).
    #[default]
    Unknown,
    /// No translation: the mapped address is the node's own.
    None,
    /// Endpoint-independent.
    EndpointIndependent,
    /// Address-dependent.
    AddressDependent,
    /// Address- and port-dependent ("symmetric").
    AddressAndPortDependent,
    /// No answer over UDP at all.
    Blocked,
}

/// Filtering behaviour of the NAT in front of a node (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Not known: only a server with two addresses can tell (RFC 5780).
    #[default]
    Unknown,
    /// Endpoint-independent.
    EndpointIndependent,
    /// Address-dependent.
    AddressDependent,
    /// Address- and port-dependent.
    AddressAndPortDependent,
}

/// What a node knows of its own NAT, so that the other side can say why a path is relayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatBehavior {
    /// Mapping.
    pub mapping: Mapping,
    /// Filtering.
    pub filtering: Filtering,
}
