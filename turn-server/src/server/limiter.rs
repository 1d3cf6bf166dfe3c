//! How many challenges a source gets: a server that answers everyone is a reflector. A fixed table, so that a source costs no
//! memory; sources that share a bucket share its rate, which costs them a retransmission.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::Instant;

/// Buckets: 32 KiB a thread. Among a hundred sources at once hardly two meet.
const BUCKETS: usize = 4096;
/// Microseconds a second.
const SECOND: u64 = 1_000_000;

/// Challenges of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; 0 is no limit.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// For each bucket the time up to which its answers are paid for, in microseconds since the start.
#[derive(Debug)]
pub(super) struct Limiter {
    start: Instant,
    secret: u64,
    paid_until: Box<[u64]>,
}

impl Limiter {
    /// `secret` keeps others from choosing who shares a bucket.
    pub(super) fn new(start: Instant, secret: u64) -> Self {
        Self {
            start,
            secret,
            paid_until: vec![0; BUCKETS].into_boxed_slice(),
        }
    }

    /// Whether `source` gets another answer.
    pub(super) fn allow(&mut self, rate: Rate, source: IpAddr, now: Instant) -> bool {
        if rate.per_second == 0 {
            return true;
        }
        let now = now.saturating_duration_since(self.start).as_micros() as u64;
        let cost = SECOND / u64::from(rate.per_second);
        let mut hasher = DefaultHasher::new();
        (self.secret, source).hash(&mut hasher);
        let bucket = &mut self.paid_until[hasher.finish() as usize % BUCKETS];
        let next = (*bucket).max(now) + cost;
        let allowed = next - now <= cost * u64::from(rate.burst);
        if allowed {
            *bucket = next;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_then_the_rate_a_source() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start, 7);
        let rate = Rate {
            per_second: 100,
            burst: 200,
        };
        let mut count = |source: [u8; 4], at: u64| {
            (0..1000)
                .filter(|_| limiter.allow(rate, source.into(), start + Duration::from_millis(at)))
                .count()
        };
        assert_eq!(count([8, 8, 8, 8], 0), 200);
        assert_eq!(count([8, 8, 4, 4], 0), 200, "another source has its own");
        assert_eq!(count([8, 8, 8, 8], 500), 50);
        assert_eq!(count([8, 8, 8, 8], 60_000), 200);
        let none = Rate {
            per_second: 0,
            burst: 0,
        };
        assert!((0..5000).all(|_| limiter.allow(none, [8, 8, 8, 8].into(), start)));
    }
}
