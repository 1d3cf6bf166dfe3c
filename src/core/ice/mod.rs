//! The check engine: RFC 8445 for one component, with trickle (RFC 8838), consent (RFC 7675) and
//! renomination. An [`Agent`] validates the pairs towards one peer; it opens no socket, keeps no
//! clock, and paces nothing: whoever owns it decides when it may send, and which pair carries data.

mod agent;
mod candidates;
mod inbound;
mod outbound;
mod pair;
mod priority;
mod restart;
#[cfg(test)]
mod tests;
mod transaction;

use std::net::SocketAddr;

use wice_signaling::protocol::{CandidateKind, RelayTransport};

pub use agent::{Agent, AgentConfig, AgentEvent};
pub use inbound::Reply;
pub use outbound::Outgoing;
pub use pair::{Failure, Pair, PairKey, PairState, Use, Witness};
pub use priority::{OWN_SOCKET, candidate_priority, is_own_socket, pair_priority};

/// What a local candidate sends from: a socket with its address and interface, or an allocation.
/// Numbered by the node, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseId(pub u32);

/// What stands behind a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseKind {
    /// An address of an interface of this node.
    Host,
    /// An allocation, reached over this transport.
    Relayed(RelayTransport),
}

/// A base as an agent sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its number.
    pub id: BaseId,
    /// What stands behind it.
    pub kind: BaseKind,
    /// The interface's address and the socket's port, or the relayed address.
    pub address: SocketAddr,
    /// Local preference, unique among the bases of its kind (RFC 8445 §5.1.2.1).
    pub preference: u16,
    /// Addresses at which it is known to be seen: reflexive and mapped.
    pub reflexive: Vec<(SocketAddr, CandidateKind)>,
}

impl Base {
    /// The kind of the candidate that is the base itself.
    pub fn host_kind(&self) -> CandidateKind {
        match self.kind {
            BaseKind::Host => CandidateKind::Host,
            BaseKind::Relayed(_) => CandidateKind::Relayed,
        }
    }
}

/// A candidate of the other side, from its advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteCandidate {
    /// Where to send.
    pub address: SocketAddr,
    /// How the other side learned it.
    pub kind: CandidateKind,
    /// RFC 8445 §5.1.2.
    pub priority: u32,
    /// For relayed candidates.
    pub relay_transport: Option<RelayTransport>,
}

/// A username fragment and password (RFC 8445 §5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// 4 to 256 characters of ice-char.
    pub ufrag: String,
    /// 22 to 256 characters of ice-char.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("ufrag", &self.ufrag)
            .finish_non_exhaustive()
    }
}

/// Who decides which pair is used (RFC 8445 §6.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nominates.
    Controlling,
    /// Follows.
    Controlled,
}

impl Role {
    /// The other side's role.
    pub fn opposite(self) -> Self {
        match self {
            Self::Controlling => Self::Controlled,
            Self::Controlled => Self::Controlling,
        }
    }
}

/// How often the controlling side may nominate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nomination {
    /// Between wice nodes: again whenever a better pair holds, with a rising NOMINATION attribute.
    Repeated,
    /// Towards other stacks: once, as RFC 8445 §8.1.1 has it.
    Once,
}
