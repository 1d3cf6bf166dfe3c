//! XEdDSA (Signal, "The XEdDSA and VXEdDSA Signature Schemes", revision 1): Ed25519 signatures
//! made and checked with a WireGuard key pair, so that a node needs no second identity.

use curve25519_dalek::constants::ED25519_BASEPOINT_TABLE;
use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha512};
use subtle::{Choice, ConditionallySelectable as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::{PrivateKey, PublicKey};

/// Length of a signature: the point R and the scalar s, 32 bytes each.
pub const SIGNATURE_LEN: usize = 64;

/// What a signature is for. Its prefix stands in front of the signed message; all end in a zero
/// byte and none has another within, so no two can be confused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// [`super::Advert`].
    Advert,
    /// [`super::Routes`].
    Routes,
    /// [`super::Seeking`].
    Seeking,
    /// The proof in [`super::Hello`].
    Hello,
}

impl Domain {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Advert => b"wice-advert-v1\0",
            Self::Routes => b"wice-routes-v1\0",
            Self::Seeking => b"wice-seeking-v1\0",
            Self::Hello => b"wice-hello-v1\0",
        }
    }
}

/// Signs `message` for `domain`. `z` is 64 fresh random bytes: a repeated one repeats the
/// signature of a repeated message, nothing worse (the nonce depends on key and message too).
#[must_use]
pub fn sign(key: &PrivateKey, domain: Domain, message: &[u8], z: &[u8; 64]) -> [u8; SIGNATURE_LEN] {
    sign_parts(key, &[domain.prefix(), message], z)
}

/// Whether `signature` over `message` for `domain` was made with the private half of `key`.
///
/// Strict: `key` must be a canonical u-coordinate of a point on the curve (below 2^255 − 19, top
/// bit clear), neither it nor R of small order, and s below the group's order.
#[must_use]
pub fn verify(
    key: &PublicKey,
    domain: Domain,
    message: &[u8],
    signature: &[u8; SIGNATURE_LEN],
) -> bool {
    verify_parts(key, &[domain.prefix(), message], signature)
}

fn sign_parts(key: &PrivateKey, message: &[&[u8]], z: &[u8; 64]) -> [u8; SIGNATURE_LEN] {
    // calculate_key_pair: the Edwards point of sign 0, and the scalar that belongs to it.
    let mut k = Scalar::from_bytes_mod_order(*key.expose_secret());
    let mut point = (ED25519_BASEPOINT_TABLE * &k).compress().to_bytes();
    let sign = Choice::from(point[31] >> 7);
    let mut negated = -k;
    let mut a = Scalar::conditional_select(&k, &negated, sign);
    point[31] &= 0x7f;

    // hash_1: SHA-512 behind 2^256 − 1 − 1, little endian.
    let mut first = [0xff; 32];
    first[0] = 0xfe;
    let a_bytes = Zeroizing::new(a.to_bytes());
    let nonce = Sha512::new().chain_update(first).chain_update(*a_bytes);
    let mut r = to_scalar(update(nonce, message).chain_update(z));
    let r_point = (ED25519_BASEPOINT_TABLE * &r).compress().to_bytes();

    let challenge = Sha512::new().chain_update(r_point).chain_update(point);
    let h = to_scalar(update(challenge, message));
    let s = r + h * a;
    for secret in [&mut k, &mut negated, &mut a, &mut r] {
        secret.zeroize();
    }

    let mut signature = [0; SIGNATURE_LEN];
    signature[..32].copy_from_slice(&r_point);
    signature[32..].copy_from_slice(s.as_bytes());
    signature
}

fn verify_parts(key: &PublicKey, message: &[&[u8]], signature: &[u8; SIGNATURE_LEN]) -> bool {
    if !is_canonical(key) {
        return false;
    }
    let Some(point) = MontgomeryPoint(key.0).to_edwards(0) else {
        return false;
    };
    let Ok(verifier) = VerifyingKey::from_bytes(&point.compress().to_bytes()) else {
        return false;
    };
    if verifier.is_weak() {
        return false;
    }
    verifier
        .verify_strict(&message.concat(), &Signature::from_bytes(signature))
        .is_ok()
}

/// Whether the u-coordinate is below 2^255 − 19. RFC 7748 lets X25519 reduce what is not, which
/// would give one node several names.
fn is_canonical(key: &PublicKey) -> bool {
    let u = &key.0;
    // p = ed ff .. ff 7f, little endian.
    u[31] < 0x7f || (u[31] == 0x7f && (u[1..31].iter().any(|&b| b != 0xff) || u[0] < 0xed))
}

fn update(hash: Sha512, parts: &[&[u8]]) -> Sha512 {
    parts
        .iter()
        .fold(hash, |hash, part| hash.chain_update(part))
}

fn to_scalar(hash: Sha512) -> Scalar {
    Scalar::from_bytes_mod_order_wide(&hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use xeddsa::{Sign as _, Verify as _};

    use super::*;
    use crate::protocol::testing::Random;

    const ALL: [Domain; 4] = [
        Domain::Advert,
        Domain::Routes,
        Domain::Seeking,
        Domain::Hello,
    ];

    /// Trevor Perrin's `xeddsa_fast_test`.
    #[test]
    fn published_vector() {
        let mut secret = [0; 32];
        secret[8] = 189;
        let key = PrivateKey::from_bytes(secret);
        let expected = "11c7f3e6c4df9e8a5150e1db3b30f92de3a3b3aa438656545fa7390f4bcc7bb2\
                        6c431d9e90643e4f0eaa0e9c557766fa69ada576d63dcaf2ac326c11d0b97702";
        let signature = sign_parts(&key, &[&[0; 200]], &[0; 64]);
        assert_eq!(hex::encode(signature), expected);
        assert!(verify_parts(
            &key.public_key(),
            &[&[0; 150], &[0; 50]],
            &signature
        ));
    }

    #[test]
    fn agrees_with_another_implementation() {
        let mut random = Random::new(1);
        for n in 0..50u64 {
            let secret: [u8; 32] = random.array();
            let key = PrivateKey::from_bytes(secret);
            let message = random.bytes(n as usize * 7);

            let ours = sign_parts(&key, &[&message], &random.array());
            let theirs = xeddsa::xed25519::PublicKey(key.public_key().0);
            theirs.verify(&message, &ours).unwrap();

            let signer = xeddsa::xed25519::PrivateKey::from(key.expose_secret());
            let signature: [u8; 64] = signer.sign(&message, rand::rngs::StdRng::seed_from_u64(n));
            assert!(verify_parts(&key.public_key(), &[&message], &signature));
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let mut random = Random::new(2);
        let key = PrivateKey::from_bytes(random.array());
        let (public, message) = (key.public_key(), *b"message");
        let signature = sign(&key, Domain::Advert, &message, &random.array());
        assert!(verify(&public, Domain::Advert, &message, &signature));
        for bit in 0..512 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !verify(&public, Domain::Advert, &message, &flipped),
                "bit {bit}"
            );
        }
        for bit in 0..256 {
            let mut flipped = public;
            flipped.0[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !verify(&flipped, Domain::Advert, &message, &signature),
                "key bit {bit}"
            );
        }
    }

    #[test]
    fn a_signature_holds_in_its_domain_only() {
        let mut random = Random::new(3);
        let key = PrivateKey::from_bytes(random.array());
        for made in ALL {
            let signature = sign(&key, made, b"m", &random.array());
            for read in ALL {
                assert_eq!(
                    verify(&key.public_key(), read, b"m", &signature),
                    made == read
                );
            }
        }
    }

    #[test]
    fn keys_that_are_not_canonical_or_weak_are_refused() {
        let mut p = [0xff; 32];
        (p[0], p[31]) = (0xed, 0x7f);
        let mut below = p;
        below[0] = 0xec;
        assert!(is_canonical(&PublicKey(below)));
        for u in [p, [0xff; 32], {
            let mut u = [0; 32];
            u[31] = 0x80;
            u
        }] {
            assert!(!is_canonical(&PublicKey(u)), "{u:02x?}");
        }
        // u = 0 is the point of order 2 and u = 1 one of order 4 (on Edwards: y = −1, y = 0). With
        // R = A-free forgeries in reach, (R, s) = (B·0, 0) would verify for some messages.
        let mut identity = [0; 64];
        identity[0] = 1;
        for weak in [[0; 32], {
            let mut u = [0; 32];
            u[0] = 1;
            u
        }] {
            for n in 0..64u8 {
                assert!(!verify(&PublicKey(weak), Domain::Advert, &[n], &identity));
            }
        }
    }
}
