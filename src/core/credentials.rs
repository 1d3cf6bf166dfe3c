//! ICE credentials that are derived, never sent: both sides compute them from their WireGuard keys
//! and sessions, and a ufrag names its owner, so that a check describes itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hkdf::Hkdf;
use sha2::Sha256;

use super::ice::Credentials;
use wice_signaling::protocol::{KEY_HASH_LEN, PublicKey, Session};

/// Label of the derivation; a new version gets a new one.
const LABEL: &[u8] = b"wice-ice-v1";
/// Bytes of password: 192 bits, 32 characters (RFC 8445 §5.3 asks for 128 bits).
const PASSWORD: usize = 24;
/// Characters of a key's hash in base64: six bytes need no padding.
const KEY_HASH_CHARS: usize = 8;

/// The short name of a key inside a ufrag ([`PublicKey::key_hash`]). Not a secret; a collision costs
/// a peer its self-described checks, nothing else.
pub type KeyHash = [u8; KEY_HASH_LEN];

/// One end of a pair of nodes.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its WireGuard public key.
    pub key: PublicKey,
    /// Its session.
    pub session: Session,
}

impl End {
    /// `base64(hash of key) ‖ base64(session)`: 30 characters of ice-char (RFC 8445 §5.3).
    pub fn ufrag(&self) -> String {
        let mut ufrag = STANDARD_NO_PAD.encode(self.key.key_hash());
        STANDARD_NO_PAD.encode_string(self.session.0, &mut ufrag);
        ufrag
    }
}

/// Who a ufrag says it belongs to.
pub fn parse_ufrag(ufrag: &str) -> Option<(KeyHash, Session)> {
    let (hash, session) = ufrag.split_at_checked(KEY_HASH_CHARS)?;
    let hash = STANDARD_NO_PAD.decode(hash).ok()?.try_into().ok()?;
    let session = STANDARD_NO_PAD.decode(session).ok()?.try_into().ok()?;
    Some((hash, Session(session)))
}

/// Both ends' credentials for this pair: (`owner`'s, `other`'s).
///
/// `shared` is the X25519 of the two WireGuard keys and must not be zero. HKDF-SHA256 (RFC 5869),
/// salted with both sessions in the order of the keys, expanded once an end by its key.
pub fn derive(shared: &[u8; 32], owner: &End, other: &End) -> (Credentials, Credentials) {
    let (low, high) = if owner.key < other.key {
        (owner, other)
    } else {
        (other, owner)
    };
    let salt = [low.session.0, high.session.0].concat();
    let hkdf = Hkdf::<Sha256>::new(Some(&salt), shared);
    let of = |end: &End| {
        let mut password = [0; PASSWORD];
        // Fails only past 255 hashes of output.
        let expanded = hkdf.expand_multi_info(&[LABEL, &end.key.0], &mut password);
        debug_assert!(expanded.is_ok());
        Credentials {
            ufrag: end.ufrag(),
            password: STANDARD_NO_PAD.encode(password),
        }
    };
    (of(owner), of(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(byte: u8, session: u8) -> End {
        End {
            key: PublicKey([byte; 32]),
            session: Session([session; 16]),
        }
    }

    #[test]
    fn both_sides_derive_the_same() {
        let (a, b) = (end(1, 7), end(2, 9));
        let (a_own, a_other) = derive(&[5; 32], &a, &b);
        let (b_own, b_other) = derive(&[5; 32], &b, &a);
        assert_eq!((&a_own, &a_other), (&b_other, &b_own));
        assert_ne!(a_own.password, b_own.password);
        assert_eq!(a_own.password.len(), 32);
        assert_eq!(a_own.ufrag.len(), 30);
        // A session of either side changes both passwords.
        let (fresh, _) = derive(&[5; 32], &a, &end(2, 8));
        assert_ne!(fresh.password, a_own.password);
    }

    #[test]
    fn a_ufrag_names_its_owner() {
        let a = end(1, 7);
        assert_eq!(parse_ufrag(&a.ufrag()), Some((a.key.key_hash(), a.session)));
        assert_eq!(parse_ufrag("short"), None);
        assert_eq!(parse_ufrag(&format!("{}A", a.ufrag())), None);
        assert_eq!(parse_ufrag("äääääääääää"), None);
    }
}
