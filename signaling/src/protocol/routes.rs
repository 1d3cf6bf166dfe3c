//! The second record of a node: what it asks for beyond being reached.

use super::prefix::{put_list, take_list};
use super::wire::Reader;
use super::xeddsa::{self, Domain, SIGNATURE_LEN};
use super::{IpPrefix, PrivateKey, PublicKey, RecordError};

/// The most prefixes a node may announce.
pub const MAX_ROUTES: usize = 32;

/// The longest encoded routes record: 43 bytes of head, 32 IPv6 prefixes of 18, the signature.
pub const MAX_ROUTES_LEN: usize = 43 + MAX_ROUTES * 18 + SIGNATURE_LEN;

const VERSION: u8 = 1;

/// The overlay address and the routes that a node claims. Whether it may is another question:
/// [`super::overlay_ipv4`] for the address, [`super::Membership::may_route`] for the routes.
///
/// Encoded: version 1 (1 byte), key (32), sequence (8, big-endian), overlay counter (1), count
/// (1), prefixes (each family 4 or 6, length, address of 4 or 16 bytes), rising, none twice;
/// 64 bytes of XEdDSA signature over `wice-routes-v1\0` and all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// The node's WireGuard public key; signed with its private half.
    pub key: PublicKey,
    /// Rises with every published change, by itself (the advert counts its own).
    pub sequence: u64,
    /// Which of its possible overlay IPv4 addresses the node uses.
    pub overlay_counter: u8,
    /// At most [`MAX_ROUTES`], rising, none twice.
    pub prefixes: Vec<IpPrefix>,
}

impl Routes {
    /// Encodes and signs with `key`, which must be the private half of [`Routes::key`]; `z` is 64
    /// fresh random bytes.
    pub fn encode_signed(&self, key: &PrivateKey, z: &[u8; 64]) -> Result<Vec<u8>, RecordError> {
        if key.public_key() != self.key {
            return Err(RecordError::BadSignature);
        }
        if self.prefixes.len() > MAX_ROUTES {
            return Err(RecordError::TooLong);
        }
        if !self.prefixes.is_sorted_by(|a, b| a < b) {
            return Err(RecordError::NotCanonical("routes"));
        }
        let mut out = Vec::with_capacity(MAX_ROUTES_LEN);
        out.push(VERSION);
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.push(self.overlay_counter);
        put_list(&mut out, &self.prefixes);
        let signature = xeddsa::sign(key, Domain::Routes, &out, z);
        out.extend_from_slice(&signature);
        Ok(out)
    }

    /// Decodes `bytes` and verifies the signature by the key within.
    pub fn decode_verified(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_ROUTES_LEN {
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
        let overlay_counter = reader.u8()?;
        let prefixes = take_list(&mut reader, MAX_ROUTES, "routes")?;
        reader.finish()?;
        if !xeddsa::verify(&key, Domain::Routes, body, signature) {
            return Err(RecordError::BadSignature);
        }
        Ok(Self {
            key,
            sequence,
            overlay_counter,
            prefixes,
        })
    }
}
