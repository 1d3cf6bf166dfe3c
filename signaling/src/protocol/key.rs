//! A node's name and its secret: the WireGuard key pair.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// Bytes of [`PublicKey::key_hash`]: 48 bits name a node among the few thousand of a mesh, and
/// leave room in an ICE ufrag.
pub const KEY_HASH_LEN: usize = 6;

const KEY_HASH_LABEL: &[u8] = b"wice-key-hash-v1\0";

/// A WireGuard public key: the u-coordinate of a Curve25519 point, 32 bytes, little endian
/// (RFC 7748 §5). Ordered bytewise; the greater key of a pair controls its ICE agent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A text is not a WireGuard key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: one is 44 characters of base64, as `wg show` prints it")]
pub struct KeyParseError;

impl PublicKey {
    /// The first 6 bytes of SHA-256 over an own label and the key: a short name for the key where
    /// 32 bytes do not fit. Not a proof of anything.
    #[must_use]
    pub fn key_hash(&self) -> [u8; KEY_HASH_LEN] {
        let digest = Sha256::new()
            .chain_update(KEY_HASH_LABEL)
            .chain_update(self.0)
            .finalize();
        let mut hash = [0; KEY_HASH_LEN];
        hash.copy_from_slice(&digest[..KEY_HASH_LEN]);
        hash
    }
}

impl FromStr for PublicKey {
    type Err = KeyParseError;

    /// Base64 with padding, strictly: one text a key.
    fn from_str(text: &str) -> Result<Self, KeyParseError> {
        decode_key(text).map(|bytes| Self(*bytes))
    }
}

impl fmt::Display for PublicKey {
    /// Base64 with padding, as `wg show` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A WireGuard private key, clamped (RFC 7748 §5), wiped when dropped, never printed.
#[derive(Clone, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// Clamps `bytes` and takes them as the key; the caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0b1111_1000;
        bytes[31] = bytes[31] & 0b0111_1111 | 0b0100_0000;
        let key = Self(bytes);
        bytes.zeroize();
        key
    }

    /// The secret itself: for WireGuard and for the key file, nothing else.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key's public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// X25519 with `peer` (RFC 7748 §6.1). `None` when the result does not depend on this key
    /// (a point of small order): such a peer is refused.
    #[must_use]
    pub fn diffie_hellman(&self, peer: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(peer.0));
        shared
            .was_contributory()
            .then(|| Zeroizing::new(shared.to_bytes()))
    }
}

impl FromStr for PrivateKey {
    type Err = KeyParseError;

    /// Base64 with padding, as `wg genkey` prints it.
    fn from_str(text: &str) -> Result<Self, KeyParseError> {
        decode_key(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

fn decode_key(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyParseError> {
    let mut bytes = Zeroizing::new([0; 32]);
    // `decode_slice` wants room for the padding's share too.
    let mut buffer = Zeroizing::new([0; 33]);
    if text.len() != 44 || STANDARD.decode_slice(text, &mut *buffer) != Ok(32) {
        return Err(KeyParseError);
    }
    bytes.copy_from_slice(&buffer[..32]);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `wg genkey` and `wg pubkey`.
    const SECRET: &str = "2Kj8IswUIB+E9aiWGCn79RJs7eT1HIXazO7+eBaoeGI=";
    const PUBLIC: &str = "nw7e1rc1tZePrdaJUXkOr1WWQpnJFwnDF2iE8E2vHkc=";
    const SECRET_2: &str = "AKBTBxlCh6RUoDdDVU2FK6kioC19+qUh7VNatArkKmo=";

    #[test]
    fn agrees_with_wg() {
        let secret: PrivateKey = SECRET.parse().unwrap();
        assert_eq!(secret.public_key().to_string(), PUBLIC);
        assert_eq!(PUBLIC.parse(), Ok(secret.public_key()));
    }

    #[test]
    fn both_sides_agree_on_a_secret() {
        let (a, b): (PrivateKey, PrivateKey) = (SECRET.parse().unwrap(), SECRET_2.parse().unwrap());
        let ab = a.diffie_hellman(&b.public_key()).unwrap();
        assert_eq!(ab, b.diffie_hellman(&a.public_key()).unwrap());
    }

    #[test]
    fn points_of_small_order_are_refused() {
        let secret: PrivateKey = SECRET.parse().unwrap();
        let mut p = [0xff; 32];
        p[0] = 0xed;
        p[31] = 0x7f;
        let mut one = [0; 32];
        one[0] = 1;
        for weak in [[0; 32], one, p] {
            assert_eq!(secret.diffie_hellman(&PublicKey(weak)), None);
        }
    }

    #[test]
    fn one_text_a_key() {
        for text in [
            "",
            "nw7e1rc1tZePrdaJUXkOr1WWQpnJFwnDF2iE8E2vHkc",
            "nw7e1rc1tZePrdaJUXkOr1WWQpnJFwnDF2iE8E2vHkd=",
            "nw7e1rc1tZePrdaJUXkOr1WWQpnJFwnDF2iE8E2vHk==",
            " nw7e1rc1tZePrdaJUXkOr1WWQpnJFwnDF2iE8E2vHkc=",
            "nw7e1rc1tZePrdaJUXkOr1WWQpnJFwnDF2iE8E2vHkcA",
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyParseError), "{text}");
        }
    }

    #[test]
    fn secrets_are_clamped_and_never_printed() {
        let secret = PrivateKey::from_bytes([0xff; 32]);
        assert_eq!(
            (secret.expose_secret()[0], secret.expose_secret()[31]),
            (0xf8, 0x7f)
        );
        assert_eq!(format!("{secret:?}"), "PrivateKey(..)");
    }
}
