//! Nonces that need no memory (RFC 8489 §9.2): security features, the time, and a MAC over both and the source's address. Servers
//! that share a key take each other's.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// How such a nonce begins (RFC 8489 §9.2).
const COOKIE: &[u8; 9] = b"obMatJos2";
/// Security features: the first of 24 bits, PASSWORD-ALGORITHMS are sent (RFC 8489 §18.1).
const PASSWORD_ALGORITHMS: u8 = 0x80;
/// The second: USERHASH may stand for USERNAME.
const USERNAME_ANONYMITY: u8 = 0x40;
/// Base64 of 24 bits.
const FEATURES_LEN: usize = 4;
/// Seconds since 1970, 32 bits unsigned.
const TIME_LEN: usize = 4;
/// Of the MAC: 2^64 guesses against a nonce that is good for an hour, each answered.
const MAC_LEN: usize = 8;
/// Cookie, features, and base64 of time and MAC.
pub(super) const NONCE_LEN: usize = COOKIE.len() + FEATURES_LEN + 16;
/// How far the clocks of a fleet may be apart.
const CLOCK_SKEW: u64 = 60;

/// A key of a fleet, or of one process.
pub type NonceKey = [u8; 32];

/// The key that servers with the same secret share.
pub fn nonce_key(secret: &[u8]) -> NonceKey {
    mac(secret, &[b"wice-turn nonce v1"])
}

/// A nonce for `source`, made at `unix` (seconds).
pub(super) fn mint(key: &NonceKey, source: IpAddr, unix: u64, anonymity: bool) -> [u8; NONCE_LEN] {
    let features = [
        PASSWORD_ALGORITHMS | if anonymity { USERNAME_ANONYMITY } else { 0 },
        0,
        0,
    ];
    let time = (unix as u32).to_be_bytes();
    let mut tail = [0; TIME_LEN + MAC_LEN];
    tail[..TIME_LEN].copy_from_slice(&time);
    tail[TIME_LEN..].copy_from_slice(&seal(key, source, features, time));
    let mut nonce = [0; NONCE_LEN];
    nonce[..COOKIE.len()].copy_from_slice(COOKIE);
    // Both fit by the derivation of NONCE_LEN: 3 bytes are 4 characters, 12 are 16.
    let rest = &mut nonce[COOKIE.len()..];
    let written = STANDARD.encode_slice(features, rest);
    debug_assert_eq!(written, Ok(FEATURES_LEN));
    let written = STANDARD.encode_slice(tail, &mut rest[FEATURES_LEN..]);
    debug_assert_eq!(written, Ok(NONCE_LEN - COOKIE.len() - FEATURES_LEN));
    nonce
}

/// Whether a nonce is one of ours for `source`, and not too old.
pub(super) fn is_fresh(
    keys: &[NonceKey],
    nonce: &[u8],
    source: IpAddr,
    unix: u64,
    lifetime: Duration,
) -> bool {
    let Some(rest) = nonce.strip_prefix(COOKIE) else {
        return false;
    };
    if nonce.len() != NONCE_LEN {
        return false;
    }
    let (mut features, mut tail) = ([0; 3], [0; TIME_LEN + MAC_LEN]);
    let (head, end) = rest.split_at(FEATURES_LEN);
    // A slice that is too small would be an error, not a panic.
    if STANDARD.decode_slice_unchecked(head, &mut features) != Ok(3)
        || STANDARD.decode_slice_unchecked(end, &mut tail) != Ok(TIME_LEN + MAC_LEN)
    {
        return false;
    }
    let mut time = [0; TIME_LEN];
    time.copy_from_slice(&tail[..TIME_LEN]);
    let made = u64::from(u32::from_be_bytes(time));
    if made > unix + CLOCK_SKEW || made + lifetime.as_secs() < unix {
        return false;
    }
    keys.iter().any(|key| {
        let expected = seal(key, source, features, time);
        bool::from(subtle::ConstantTimeEq::ct_eq(
            &expected[..],
            &tail[TIME_LEN..],
        ))
    })
}

fn seal(key: &NonceKey, source: IpAddr, features: [u8; 3], time: [u8; TIME_LEN]) -> [u8; MAC_LEN] {
    let source = match source {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mac = mac(key, &[&features, &time, &source.octets()]);
    let mut short = [0; MAC_LEN];
    short.copy_from_slice(&mac[..MAC_LEN]);
    short
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    // HMAC takes keys of every length.
    if let Ok(mut mac) = <Hmac<Sha256> as hmac::Mac>::new_from_slice(key) {
        for part in parts {
            mac.update(part);
        }
        out.copy_from_slice(&mac.finalize().into_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(600);
    const NOW: u64 = 1_800_000_000;

    fn fresh(keys: &[NonceKey], nonce: &[u8], source: [u8; 4], unix: u64) -> bool {
        is_fresh(keys, nonce, source.into(), unix, LIFETIME)
    }

    #[test]
    fn a_nonce_is_good_for_its_source_and_time_under_every_key_of_the_fleet() {
        let [old, new] = [nonce_key(b"old"), nonce_key(b"new")];
        let source = [8, 8, 8, 8];
        let nonce = mint(&old, source.into(), NOW, false);
        assert!(nonce.starts_with(b"obMatJos2gAAA"));
        assert!(mint(&old, source.into(), NOW, true).starts_with(b"obMatJos2wAAA"));
        assert!(fresh(&[new, old], &nonce, source, NOW));
        assert!(fresh(&[old], &nonce, source, NOW + 600));
        assert!(fresh(&[old], &nonce, source, NOW - CLOCK_SKEW));
        assert!(!fresh(&[old], &nonce, source, NOW + 601));
        assert!(!fresh(&[old], &nonce, source, NOW - CLOCK_SKEW - 1));
        assert!(!fresh(&[new], &nonce, source, NOW));
        assert!(!fresh(&[old], &nonce, [8, 8, 8, 9], NOW));
    }

    #[test]
    fn no_changed_byte_stays_fresh() {
        let key = nonce_key(b"key");
        let nonce = mint(&key, [8, 8, 8, 8].into(), NOW, false);
        for at in 0..nonce.len() {
            for bit in 0..8 {
                let mut changed = nonce;
                changed[at] ^= 1 << bit;
                assert!(!fresh(&[key], &changed, [8, 8, 8, 8], NOW), "byte {at}");
            }
            assert!(!fresh(&[key], &nonce[..at], [8, 8, 8, 8], NOW));
        }
        assert!(!fresh(
            &[key],
            &[&nonce[..], b"A"].concat(),
            [8, 8, 8, 8],
            NOW
        ));
    }
}
