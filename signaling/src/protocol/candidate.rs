//! Candidates as an advert carries them, and what a node says of its NAT.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::RecordError;
use super::prefix::{family_of, put_address, take_address};
use super::wire::Reader;

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

impl Candidate {
    /// Whether an advert may carry it: an address that some other node could be reached at, so
    /// not unspecified or "this network", loopback, link-local, multicast, broadcast, IPv4-mapped,
    /// scoped or labelled; a port; not peer-reflexive; a transport if and only if relayed.
    #[must_use]
    pub fn is_advertisable(&self) -> bool {
        let relayed = self.kind == CandidateKind::Relayed;
        self.kind != CandidateKind::PeerReflexive
            && self.relay_transport.is_some() == relayed
            && self.address.port() != 0
            && match self.address {
                SocketAddr::V4(v4) => is_unicast4(*v4.ip()),
                SocketAddr::V6(v6) => {
                    v6.flowinfo() == 0 && v6.scope_id() == 0 && is_unicast6(*v6.ip())
                }
            }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(kind_code(self.kind));
        out.push(self.relay_transport.map_or(0, transport_code));
        out.push(family_of(self.address.ip()));
        put_address(out, self.address.ip());
        out.extend_from_slice(&self.address.port().to_be_bytes());
        out.extend_from_slice(&self.priority.to_be_bytes());
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let kind = kind_of(reader.u8()?)?;
        let relay_transport = transport_of(reader.u8()?)?;
        let family = reader.u8()?;
        let ip = take_address(reader, family)?;
        let address = SocketAddr::new(ip, reader.u16()?);
        let priority = reader.u32()?;
        let candidate = Self {
            kind,
            address,
            priority,
            relay_transport,
        };
        if !candidate.is_advertisable() {
            return Err(RecordError::BadValue("candidate"));
        }
        Ok(candidate)
    }

    /// The order in an advert: falling priority, then what makes any two differ.
    fn rank(&self) -> impl Ord + use<> {
        (
            Reverse(self.priority),
            kind_code(self.kind),
            self.relay_transport,
            self.address,
        )
    }
}

/// Makes any candidates ready for an advert: drops what [`Candidate::is_advertisable`] refuses,
/// sorts by falling priority, keeps of each transport address the one of highest priority, and
/// of all at most [`MAX_CANDIDATES`].
#[must_use]
pub fn normalize_candidates(candidates: &[Candidate]) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = candidates
        .iter()
        .copied()
        .filter(Candidate::is_advertisable)
        .collect();
    kept.sort_by_key(Candidate::rank);
    let mut seen = BTreeSet::new();
    kept.retain(|candidate| seen.insert(candidate.address));
    kept.truncate(MAX_CANDIDATES);
    kept
}

/// Whether `candidates` are as [`normalize_candidates`] leaves them.
pub(super) fn check_candidates(candidates: &[Candidate]) -> Result<(), RecordError> {
    if candidates.len() > MAX_CANDIDATES {
        return Err(RecordError::TooLong);
    }
    if !candidates.iter().all(Candidate::is_advertisable) {
        return Err(RecordError::BadValue("candidate"));
    }
    let addresses: BTreeSet<SocketAddr> = candidates.iter().map(|c| c.address).collect();
    if addresses.len() != candidates.len() || !candidates.is_sorted_by_key(Candidate::rank) {
        return Err(RecordError::NotCanonical("candidates"));
    }
    Ok(())
}

impl NatBehavior {
    /// One byte: mapping in the high nibble, filtering in the low.
    pub(super) fn to_byte(self) -> u8 {
        let mapping = match self.mapping {
            Mapping::Unknown => 0,
            Mapping::None => 1,
            Mapping::EndpointIndependent => 2,
            Mapping::AddressDependent => 3,
            Mapping::AddressAndPortDependent => 4,
            Mapping::Blocked => 5,
        };
        let filtering = match self.filtering {
            Filtering::Unknown => 0,
            Filtering::EndpointIndependent => 1,
            Filtering::AddressDependent => 2,
            Filtering::AddressAndPortDependent => 3,
        };
        mapping << 4 | filtering
    }

    pub(super) fn from_byte(byte: u8) -> Result<Self, RecordError> {
        let mapping = match byte >> 4 {
            0 => Mapping::Unknown,
            1 => Mapping::None,
            2 => Mapping::EndpointIndependent,
            3 => Mapping::AddressDependent,
            4 => Mapping::AddressAndPortDependent,
            5 => Mapping::Blocked,
            _ => return Err(RecordError::BadValue("nat mapping")),
        };
        let filtering = match byte & 0xf {
            0 => Filtering::Unknown,
            1 => Filtering::EndpointIndependent,
            2 => Filtering::AddressDependent,
            3 => Filtering::AddressAndPortDependent,
            _ => return Err(RecordError::BadValue("nat filtering")),
        };
        Ok(Self { mapping, filtering })
    }
}

fn kind_code(kind: CandidateKind) -> u8 {
    match kind {
        CandidateKind::Host => 1,
        CandidateKind::PeerReflexive => 2,
        CandidateKind::ServerReflexive => 3,
        CandidateKind::Mapped => 4,
        CandidateKind::Relayed => 5,
    }
}

fn kind_of(code: u8) -> Result<CandidateKind, RecordError> {
    Ok(match code {
        1 => CandidateKind::Host,
        3 => CandidateKind::ServerReflexive,
        4 => CandidateKind::Mapped,
        5 => CandidateKind::Relayed,
        _ => return Err(RecordError::BadValue("candidate kind")),
    })
}

fn transport_code(transport: RelayTransport) -> u8 {
    match transport {
        RelayTransport::Udp => 1,
        RelayTransport::Tcp => 2,
        RelayTransport::Tls => 3,
    }
}

fn transport_of(code: u8) -> Result<Option<RelayTransport>, RecordError> {
    Ok(match code {
        0 => None,
        1 => Some(RelayTransport::Udp),
        2 => Some(RelayTransport::Tcp),
        3 => Some(RelayTransport::Tls),
        _ => return Err(RecordError::BadValue("relay transport")),
    })
}

fn is_unicast4(ip: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is "this network" (RFC 1122 §3.2.1.3): no node is at it.
    ip.octets()[0] != 0
        && !ip.is_loopback()
        && !ip.is_link_local()
        && !ip.is_multicast()
        && !ip.is_broadcast()
}

fn is_unicast6(ip: Ipv6Addr) -> bool {
    !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !ip.is_unicast_link_local()
        && ip.to_ipv4_mapped().is_none()
}
