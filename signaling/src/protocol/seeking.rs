//! The second record of a node whose WireGuard interface another program owns: whom it looks for in vain,
//! and who looks for it in vain because the interface lacks them.

use super::key::KEY_HASH_LEN;
use super::wire::Reader;
use super::xeddsa::{self, Domain, SIGNATURE_LEN};
use super::{PrivateKey, PublicKey, RecordError};

/// The most nodes in each list: who misses more has one cause for all of them.
pub const MAX_SOUGHT: usize = 16;

/// The longest encoded record: 43 bytes of head and counts, two lists of hashes, the signature.
pub const MAX_SEEKING_LEN: usize = 43 + 2 * MAX_SOUGHT * KEY_HASH_LEN + SIGNATURE_LEN;

/// [`super::Routes`] are version 1 of the same kind of record: nodes that know those alone refuse this one,
/// and services never look into either.
const VERSION: u8 = 2;

/// Which node: [`PublicKey::key_hash`].
pub type KeyHash = [u8; KEY_HASH_LEN];

/// What a node of attached mode says of pairs that do not come about. It is published under the kind of
/// [`super::Routes`], which such a node has no use for, and only where one of the lists has something or
/// had something before.
///
/// Encoded: version 2 (1 byte), key (32), sequence (8, big-endian), count (1) and hashes (6 each), rising, none
/// twice, of the nodes that are sought; the same of the nodes that are lacking; 64 bytes of XEdDSA signature
/// over `wice-seeking-v1\0` and all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeking {
    /// The node's WireGuard public key; signed with its private half.
    pub key: PublicKey,
    /// Rises with every published change, by itself.
    pub sequence: u64,
    /// Peers of its interface that are connected to signaling, and to which it has no path.
    pub seeks: Vec<KeyHash>,
    /// Nodes that seek it and are no peers of its interface.
    pub lacks: Vec<KeyHash>,
}

impl Seeking {
    /// Encodes and signs with `key`, which must be the private half of [`Seeking::key`]; `z` is 64
    /// fresh random bytes.
    pub fn encode_signed(&self, key: &PrivateKey, z: &[u8; 64]) -> Result<Vec<u8>, RecordError> {
        if key.public_key() != self.key {
            return Err(RecordError::BadSignature);
        }
        let mut out = Vec::with_capacity(MAX_SEEKING_LEN);
        out.push(VERSION);
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        for (list, name) in [(&self.seeks, "seeks"), (&self.lacks, "lacks")] {
            let count = u8::try_from(list.len()).unwrap_or(u8::MAX);
            if list.len() > MAX_SOUGHT {
                return Err(RecordError::TooLong);
            }
            if !list.is_sorted_by(|a, b| a < b) {
                return Err(RecordError::NotCanonical(name));
            }
            out.push(count);
            out.extend(list.iter().flatten());
        }
        let signature = xeddsa::sign(key, Domain::Seeking, &out, z);
        out.extend_from_slice(&signature);
        Ok(out)
    }

    /// Decodes `bytes` and verifies the signature by the key within.
    pub fn decode_verified(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_SEEKING_LEN {
            return Err(RecordError::TooLong);
        }
        let Some((body, signature)) = bytes.split_last_chunk::<SIGNATURE_LEN>() else {
            return Err(RecordError::Truncated);
        };
        let mut reader = Reader::new(body);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        let key = PublicKey(reader.array()?);
        let sequence = reader.u64()?;
        let seeks = take_hashes(&mut reader, "seeks")?;
        let lacks = take_hashes(&mut reader, "lacks")?;
        reader.finish()?;
        if !xeddsa::verify(&key, Domain::Seeking, body, signature) {
            return Err(RecordError::BadSignature);
        }
        Ok(Self {
            key,
            sequence,
            seeks,
            lacks,
        })
    }
}

fn take_hashes(reader: &mut Reader<'_>, name: &'static str) -> Result<Vec<KeyHash>, RecordError> {
    let count = usize::from(reader.u8()?);
    if count > MAX_SOUGHT {
        return Err(RecordError::TooLong);
    }
    let hashes: Vec<KeyHash> = (0..count)
        .map(|_| reader.array())
        .collect::<Result<_, _>>()?;
    if !hashes.is_sorted_by(|a, b| a < b) {
        return Err(RecordError::NotCanonical(name));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::super::Routes;
    use super::super::testing::assert_all_damage;
    use super::*;

    fn key() -> PrivateKey {
        PrivateKey::from_bytes([7; 32])
    }

    fn seeking() -> Seeking {
        Seeking {
            key: key().public_key(),
            sequence: 9,
            seeks: vec![[1; 6], [2; 6]],
            lacks: vec![[3; 6]],
        }
    }

    #[test]
    fn it_comes_back_as_it_was_and_no_damage_passes() {
        for (seeks, lacks) in [(0, 0), (2, 1), (MAX_SOUGHT, MAX_SOUGHT)] {
            let list = |count| (0..count).map(|n| [n as u8; 6]).collect();
            let whole = Seeking {
                seeks: list(seeks),
                lacks: list(lacks),
                ..seeking()
            };
            let bytes = whole.encode_signed(&key(), &[5; 64]).unwrap();
            assert!(bytes.len() <= MAX_SEEKING_LEN);
            assert_eq!(Seeking::decode_verified(&bytes), Ok(whole));
        }
        let bytes = seeking().encode_signed(&key(), &[5; 64]).unwrap();
        assert_all_damage(&bytes, |bytes| Seeking::decode_verified(bytes).is_err());
    }

    #[test]
    fn what_is_not_canonical_or_not_ones_own_is_refused() {
        let unsorted = Seeking {
            seeks: vec![[2; 6], [1; 6]],
            ..seeking()
        };
        let twice = Seeking {
            lacks: vec![[1; 6], [1; 6]],
            ..seeking()
        };
        let many = Seeking {
            lacks: vec![[1; 6]; MAX_SOUGHT + 1],
            ..seeking()
        };
        for bad in [unsorted, twice, many] {
            assert!(bad.encode_signed(&key(), &[5; 64]).is_err());
        }
        let other = PrivateKey::from_bytes([8; 32]);
        assert!(seeking().encode_signed(&other, &[5; 64]).is_err());
    }

    /// Both travel as one kind: neither is ever taken for the other.
    #[test]
    fn routes_and_seeking_are_told_apart() {
        let routes = Routes {
            key: key().public_key(),
            sequence: 9,
            overlay_counter: 0,
            prefixes: Vec::new(),
        };
        let routes = routes.encode_signed(&key(), &[5; 64]).unwrap();
        let unknown = Err(RecordError::UnknownVersion(1));
        assert_eq!(Seeking::decode_verified(&routes), unknown);
        let seeking = seeking().encode_signed(&key(), &[5; 64]).unwrap();
        let unknown = Err(RecordError::UnknownVersion(2));
        assert_eq!(Routes::decode_verified(&seeking), unknown);
    }
}
