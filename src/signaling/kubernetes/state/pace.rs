//! How long to wait before a watch begins anew.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// When an API server restarts, every watch of the cluster breaks at the same instant and begins with a list (2.25 MB for 1,000
/// Nodes): the first try comes somewhere in this time.
const RELIST_SPREAD: Duration = Duration::from_secs(10);

/// From the second failure on: a wait that doubles from the first to the last, and up to half of it as jitter. So an API that was
/// away is asked again within 30 s, as by Kubernetes' own clients (client-go's reflector).
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(20);

/// Doublings after which [`LAST_RETRY`] is reached.
const MAX_DOUBLINGS: u32 = 4;

/// The waits of one watch.
#[derive(Debug)]
pub struct Pace {
    rng: ChaCha8Rng,
    failures: u32,
}

impl Pace {
    /// Without failures. `seed` is 32 random bytes.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            rng: ChaCha8Rng::from_seed(seed),
            failures: 0,
        }
    }

    /// It has failed: how long to wait.
    pub fn fail(&mut self) -> Duration {
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        let wait = match self.failures {
            0 => RELIST_SPREAD.mul_f64(share),
            failures => {
                let doubled = FIRST_RETRY * 2u32.pow((failures - 1).min(MAX_DOUBLINGS));
                doubled.min(LAST_RETRY).mul_f64(1.0 + share / 2.0)
            }
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// It works. Says whether it did not before.
    pub fn works(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_comes_back_spread_out() {
        let waits = (0..200).map(|seed| Pace::new([seed; 32]).fail());
        let mut waits: Vec<Duration> = waits.collect();
        waits.sort();
        assert!(waits[199] <= RELIST_SPREAD);
        for fifth in 0..5 {
            let from = RELIST_SPREAD / 5 * fifth;
            let within = waits
                .iter()
                .filter(|wait| **wait >= from && **wait < from + RELIST_SPREAD / 5);
            let count = within.count();
            assert!((20..=60).contains(&count), "{count} of 200 from {from:?}");
        }
    }

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew() {
        let mut pace = Pace::new([1; 32]);
        assert!(!pace.works());
        pace.fail();
        let waits: Vec<Duration> = (0..20).map(|_| pace.fail()).collect();
        assert!(waits[0] >= FIRST_RETRY && waits[0] <= FIRST_RETRY * 3 / 2);
        let last = &waits[6..];
        assert!(
            last.iter()
                .all(|wait| *wait >= LAST_RETRY && *wait <= LAST_RETRY * 3 / 2)
        );
        assert!(pace.works());
        assert!(pace.fail() <= RELIST_SPREAD);
    }
}
