//! How often something may happen.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket, kept as the time at which it would be full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    full_at: Instant,
    burst: u32,
    interval: Duration,
}

impl Bucket {
    /// A full one: `burst` at once, then one in each `interval`.
    pub(super) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            full_at: now,
            burst: burst.max(1),
            interval,
        }
    }

    /// When a token is there.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        let ready = self.full_at + self.interval;
        ready.checked_sub(self.interval * self.burst).unwrap_or(now)
    }

    pub(super) fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.interval;
    }

    /// Whether it is as good as new.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}
