//! What the tests of this folder share: seeded randomness and ready-made keys.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::PrivateKey;

/// A seeded source: the same seed gives the same test.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.0.fill_bytes(&mut out);
        out
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    pub(crate) fn key(&mut self) -> PrivateKey {
        PrivateKey::from_bytes(self.array())
    }
}

/// Calls `refused` with every truncation of `valid`, with every single-bit flip, and with one
/// byte too many; it must be true each time.
pub(crate) fn assert_all_damage(valid: &[u8], refused: impl Fn(&[u8]) -> bool) {
    for len in 0..valid.len() {
        assert!(refused(&valid[..len]), "cut to {len} bytes");
    }
    let mut damaged = valid.to_vec();
    for bit in 0..valid.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(&damaged), "bit {bit} flipped");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    damaged.push(0);
    assert!(refused(&damaged), "one byte more");
}
