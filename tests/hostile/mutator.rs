//! Inputs made of seeds by small changes, the same in every run. What got past the parser is kept
//! and changed further.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// Inputs that are kept beside the seeds.
const MAX_KEPT: usize = 64;
/// Changes of one input: mostly one, or little would stay valid.
const MAX_CHANGES: usize = 5;
/// Numbers at which lengths and counts go wrong.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x40, 16, 32];

pub(crate) struct Mutator {
    rng: ChaCha8Rng,
    seeds: Vec<Vec<u8>>,
    kept: Vec<Vec<u8>>,
    max_len: usize,
    next: usize,
}

impl Mutator {
    pub(crate) fn new(name: &str, seeds: Vec<Vec<u8>>, max_len: usize) -> Self {
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            seeds,
            kept: Vec::new(),
            max_len,
            next: 0,
        }
    }

    /// Each seed as it is first, then changed ones.
    pub(crate) fn input(&mut self) -> Vec<u8> {
        if let Some(seed) = self.seeds.get(self.next) {
            self.next += 1;
            return seed.clone();
        }
        if self.below(64) == 0 {
            let mut noise = vec![0; self.below(self.max_len)];
            self.rng.fill_bytes(&mut noise);
            return noise;
        }
        let mut input = self.pick();
        let changes = 1 + self.below(MAX_CHANGES).min(self.below(MAX_CHANGES));
        for _ in 0..changes {
            self.change(&mut input);
        }
        input.truncate(self.max_len);
        input
    }

    /// This one got deep.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.kept.len() < MAX_KEPT {
            self.kept.push(input);
        } else {
            let at = self.below(MAX_KEPT);
            self.kept[at] = input;
        }
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            input.push(self.rng.next_u32() as u8);
            return;
        }
        let at = self.below(input.len());
        let end = at + 1 + self.below((input.len() - at).min(32));
        match self.below(11) {
            0 | 1 => input[at] ^= 1 << self.below(8),
            2 => input[at] = self.rng.next_u32() as u8,
            3 => input[at] = EDGES[self.below(EDGES.len())],
            4 => input[at] = input[at].wrapping_add(self.below(9) as u8).wrapping_sub(4),
            5 => input.truncate(at),
            6 => drop(input.drain(at..end.min(input.len()))),
            7 => {
                let copy = input[at..end.min(input.len())].to_vec();
                let to = self.below(input.len());
                input.splice(to..to, copy);
            }
            8 => {
                let mut noise = vec![0; 1 + self.below(8)];
                self.rng.fill_bytes(&mut noise);
                input.splice(at..at, noise);
            }
            9 => {
                // The head of this, the tail of another.
                let other = self.pick();
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            // STUN, or whatever has its length there, made whole again.
            _ => {
                if let Some(len) = input.len().checked_sub(20)
                    && input.len() < usize::from(u16::MAX)
                {
                    input[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                }
            }
        }
    }

    fn pick(&mut self) -> Vec<u8> {
        let at = self.below(self.seeds.len() + self.kept.len());
        match at.checked_sub(self.seeds.len()) {
            None => self.seeds[at].clone(),
            Some(at) => self.kept[at].clone(),
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.rng.next_u32() as usize % limit.max(1)
    }
}
