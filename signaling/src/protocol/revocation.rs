//! Who is no longer a member.

use std::collections::BTreeSet;

use super::network::ED25519_SIGNATURE_LEN;
use super::wire::Reader;
use super::{AdminKey, InviteId, Membership, NetworkId, PublicKey, RecordError};

/// The most entries of a list, nodes and invites together: 32 KiB, one frame. A network that
/// needs more makes a new admin key.
pub const MAX_REVOCATIONS: usize = 1024;

/// The longest encoded list: 13 bytes of head, the entries, the signature.
pub const MAX_REVOCATION_LEN: usize = 13 + MAX_REVOCATIONS * 32 + ED25519_SIGNATURE_LEN;

const VERSION: u8 = 1;
const PREFIX: &[u8] = b"wice-revocations-v1\0";

/// The nodes and invites that a network's admin key has put out. A revoked invite puts out every
/// node that joined by it.
///
/// Encoded: version 1 (1 byte), sequence (8, big-endian), count of nodes (2), their keys (32
/// each, rising), count of invites (2), their ids (32 each, rising), 64 bytes of Ed25519
/// signature of the admin key over `wice-revocations-v1\0` and all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationList {
    sequence: u64,
    nodes: BTreeSet<PublicKey>,
    invites: BTreeSet<InviteId>,
    encoded: Vec<u8>,
}

impl RevocationList {
    /// Signs a list. `sequence` is one more than the last list's: a lower one replaces nothing.
    pub fn sign(
        admin: &AdminKey,
        sequence: u64,
        nodes: BTreeSet<PublicKey>,
        invites: BTreeSet<InviteId>,
    ) -> Result<Self, RecordError> {
        if nodes.len() + invites.len() > MAX_REVOCATIONS {
            return Err(RecordError::TooLong);
        }
        let mut encoded = vec![VERSION];
        encoded.extend_from_slice(&sequence.to_be_bytes());
        encoded.extend_from_slice(&(nodes.len() as u16).to_be_bytes());
        encoded.extend(nodes.iter().flat_map(|key| key.0));
        encoded.extend_from_slice(&(invites.len() as u16).to_be_bytes());
        encoded.extend(invites.iter().flat_map(|id| id.0));
        let signature = admin.sign(&[PREFIX, &encoded]);
        encoded.extend_from_slice(&signature);
        Ok(Self {
            sequence,
            nodes,
            invites,
            encoded,
        })
    }

    /// Decodes `bytes` and verifies that `network`'s admin key signed them.
    pub fn decode_verified(bytes: &[u8], network: &NetworkId) -> Result<Self, RecordError> {
        if bytes.len() > MAX_REVOCATION_LEN {
            return Err(RecordError::TooLong);
        }
        let Some((body, signature)) = bytes.split_last_chunk::<ED25519_SIGNATURE_LEN>() else {
            return Err(RecordError::Truncated);
        };
        let mut reader = Reader::new(body);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        let sequence = reader.u64()?;
        let nodes = take_rising(&mut reader, "revoked nodes")?;
        let invites = take_rising(&mut reader, "revoked invites")?;
        reader.finish()?;
        if nodes.len() + invites.len() > MAX_REVOCATIONS {
            return Err(RecordError::TooLong);
        }
        if !network.verify(&[PREFIX, body], signature) {
            return Err(RecordError::BadSignature);
        }
        Ok(Self {
            sequence,
            nodes: nodes.into_iter().map(PublicKey).collect(),
            invites: invites.into_iter().map(InviteId).collect(),
            encoded: bytes.to_vec(),
        })
    }

    /// The signed bytes, as [`RevocationList::decode_verified`] takes them.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// The list's sequence number.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The revoked nodes.
    #[must_use]
    pub fn nodes(&self) -> &BTreeSet<PublicKey> {
        &self.nodes
    }

    /// The revoked invites.
    #[must_use]
    pub fn invites(&self) -> &BTreeSet<InviteId> {
        &self.invites
    }

    /// Whether the node of `key`, a member by `membership`, is out.
    #[must_use]
    pub fn refuses(&self, key: &PublicKey, membership: &Membership) -> bool {
        self.refuses_by(key, &membership.invite().id)
    }

    /// Whether the node of `key`, a member by the invite of `id`, is out.
    #[must_use]
    pub fn refuses_by(&self, key: &PublicKey, id: &InviteId) -> bool {
        self.nodes.contains(key) || self.invites.contains(id)
    }
}

fn take_rising(reader: &mut Reader<'_>, field: &'static str) -> Result<Vec<[u8; 32]>, RecordError> {
    let count = usize::from(reader.u16()?);
    if count > MAX_REVOCATIONS {
        return Err(RecordError::TooLong);
    }
    let (entries, _) = reader.bytes(count * 32)?.as_chunks::<32>();
    if !entries.is_sorted_by(|a, b| a < b) {
        return Err(RecordError::NotCanonical(field));
    }
    Ok(entries.to_vec())
}
