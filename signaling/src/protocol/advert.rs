//! The advert: the one signed record that a node publishes of itself.

use super::candidate::check_candidates;
use super::wire::{Reader, check_text, put_long, put_text};
use super::xeddsa::{self, Domain, SIGNATURE_LEN};
use super::{Candidate, NatBehavior, PrivateKey, PublicKey, RecordError};

/// The longest name of a node: a DNS label's 63 bytes (RFC 1035 §2.3.4).
pub const MAX_NAME_LEN: usize = 63;

/// The longest encoded advert without membership: what Kubernetes watchers pay for.
pub const MAX_ADVERT_LEN_BARE: usize = 1024;

/// The longest encoded advert with membership.
pub const MAX_ADVERT_LEN: usize = 2048;

/// The longest encoded membership proof in an advert; [`super::MAX_MEMBERSHIP_LEN`] is below it.
const MAX_MEMBERSHIP_FIELD: usize = MAX_ADVERT_LEN - MAX_ADVERT_LEN_BARE;

const VERSION: u8 = 1;

/// 16 random bytes. A new one means "my check agents start afresh"; it survives a restart of the
/// daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub [u8; 16]);

/// Who a node is and how it may be reached.
///
/// Encoded (integers big-endian), every valid byte string having exactly one meaning:
///
/// | bytes | field |
/// |---|---|
/// | 1 | version, 1 |
/// | 32 | key |
/// | 16 | session |
/// | 8 | sequence |
/// | 1 + n | name, UTF-8 after its length |
/// | 1 | NAT: mapping in the high nibble (0 unknown, 1 none, 2 endpoint-independent, 3 address-dependent, 4 address- and port-dependent, 5 blocked), filtering in the low (0 unknown, 1 endpoint-independent, 2 address-dependent, 3 address- and port-dependent) |
/// | 1 | count of candidates, at most 16 |
/// | each 13 or 25 | kind (1 host, 3 server-reflexive, 4 mapped, 5 relayed), relay transport (0 none, 1 UDP, 2 TCP, 3 TLS), family (4, 6), address (4 or 16), port (2), priority (4) |
/// | 2 + n | membership after its length |
/// | 64 | XEdDSA signature over `wice-advert-v1\0` and all bytes before it |
///
/// Candidates stand by falling priority, then kind, transport, address; no address twice.
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
    /// At most [`super::MAX_CANDIDATES`], by falling priority, as
    /// [`super::normalize_candidates`] makes them.
    pub candidates: Vec<Candidate>,
    /// In managed mode, the encoded membership proof; empty otherwise.
    pub membership: Vec<u8>,
}

impl Advert {
    /// Encodes and signs with `key`, which must be the private half of [`Advert::key`]; `z` is 64
    /// fresh random bytes. Fails on what [`Advert::decode_verified`] would refuse.
    pub fn encode_signed(&self, key: &PrivateKey, z: &[u8; 64]) -> Result<Vec<u8>, RecordError> {
        if key.public_key() != self.key {
            return Err(RecordError::BadSignature);
        }
        let mut out = self.body()?;
        let signature = xeddsa::sign(key, Domain::Advert, &out, z);
        out.extend_from_slice(&signature);
        Ok(out)
    }

    /// Decodes `bytes` and verifies the signature by the key within. Whose key that is, whether
    /// it is a member, and whether the sequence is newer are the caller's to check.
    ///
    /// The signature is verified last, so malformed bytes cost no cryptography.
    pub fn decode_verified(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_ADVERT_LEN {
            return Err(RecordError::TooLong);
        }
        let Some((body, signature)) = bytes.split_last_chunk::<SIGNATURE_LEN>() else {
            return Err(RecordError::Truncated);
        };
        let advert = Self::take(body)?;
        if !xeddsa::verify(&advert.key, Domain::Advert, body, signature) {
            return Err(RecordError::BadSignature);
        }
        Ok(advert)
    }

    /// Whether a node may have this name.
    #[must_use]
    pub fn takes_name(name: &str) -> bool {
        check_text(name, MAX_NAME_LEN, "name").is_ok()
    }

    /// All but the signature.
    pub(super) fn body(&self) -> Result<Vec<u8>, RecordError> {
        check_text(&self.name, MAX_NAME_LEN, "name")?;
        check_candidates(&self.candidates)?;
        if self.membership.len() > MAX_MEMBERSHIP_FIELD {
            return Err(RecordError::TooLong);
        }
        let mut out = Vec::with_capacity(MAX_ADVERT_LEN_BARE);
        out.push(VERSION);
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.session.0);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        put_text(&mut out, &self.name);
        out.push(self.nat.to_byte());
        out.push(self.candidates.len() as u8);
        for candidate in &self.candidates {
            candidate.put(&mut out);
        }
        put_long(&mut out, &self.membership);
        Ok(out)
    }

    /// What [`Advert::body`] made.
    pub(super) fn take(body: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        let key = PublicKey(reader.array()?);
        let session = Session(reader.array()?);
        let sequence = reader.u64()?;
        let name = reader.text(MAX_NAME_LEN, "name")?.to_owned();
        let nat = NatBehavior::from_byte(reader.u8()?)?;
        let count = usize::from(reader.u8()?);
        let candidates = (0..count.min(super::MAX_CANDIDATES + 1))
            .map(|_| Candidate::take(&mut reader))
            .collect::<Result<Vec<_>, _>>()?;
        check_candidates(&candidates)?;
        let membership = reader.long(MAX_MEMBERSHIP_FIELD)?.to_vec();
        reader.finish()?;
        Ok(Self {
            key,
            session,
            sequence,
            name,
            nat,
            candidates,
            membership,
        })
    }
}
