//! The advert: the one signed record that a node publishes of itself.

use super::{Candidate, NatBehavior, PublicKey};

/// 16 random bytes. A new one means "my check agents start afresh"; it survives a restart of the
/// daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub [u8; 16]);

/// Who a node is and how it may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// The node's WireGuard public key; the advert is signed with its private half.
    pub key: PublicKey,
    /// The node's present session.
    pub session: Session,
    /// Rises with every published change; a lower one replaces nothing.
    pub sequence: u64,
    /// The node's name, for people: at most 63 bytes of UTF-8 without control characters.
    pub name: String,
    /// What the node knows of its NAT.
    pub nat: NatBehavior,
    /// At most [`super::MAX_CANDIDATES`], by falling priority.
    pub candidates: Vec<Candidate>,
    /// In managed mode, the encoded membership proof; empty otherwise.
    pub membership: Vec<u8>,
}
