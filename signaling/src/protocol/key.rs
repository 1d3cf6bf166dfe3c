//! A node's name: its WireGuard public key.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A WireGuard public key: the u-coordinate of a Curve25519 point, 32 bytes, little endian
/// (RFC 7748 §5). Ordered bytewise; the greater key of a pair controls its ICE agent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

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
