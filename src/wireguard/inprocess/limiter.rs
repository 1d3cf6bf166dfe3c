//! What unauthenticated handshakes may cost. A valid mac1 proves only that the sender knows our
//! public key, which adverts show; an initiation then costs two X25519 operations, some 100 µs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::wireguard::mask::mask_v6;

/// Handshake messages a second before cookies are demanded: 1 % of a core.
pub(super) const HANDSHAKES_PER_SECOND: u64 = 100;
/// Under load, messages a second from one source that has proven its address by a cookie (the
/// kernel's ratelimiter.c has the same).
const PER_SOURCE_PER_SECOND: u32 = 20;
/// Under load, messages at once from one source (the same).
const PER_SOURCE_BURST: u32 = 5;
/// Sources remembered: each must have answered a cookie, so an attacker needs as many addresses;
/// past them none is let in.
const MAX_SOURCES: usize = 4096;
/// A bucket is full again after this, so forgetting it changes nothing.
const REFILL: Duration =
    Duration::from_millis(1000 * PER_SOURCE_BURST as u64 / PER_SOURCE_PER_SECOND as u64);
/// The host part of an IPv6 address is the sender's to choose.
const V6_PREFIX: u8 = 64;

/// Counts handshakes by the second, and by source once there are too many.
#[derive(Debug)]
pub(super) struct Limiter {
    second: Instant,
    count: u64,
    sources: BTreeMap<IpAddr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// When the bucket is full again; each message moves it by one interval.
    full_at: Instant,
}

impl Limiter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            second: now,
            count: 0,
            sources: BTreeMap::new(),
        }
    }

    /// Whether a message whose macs hold may cost its cryptography.
    pub(super) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.count = 0;
            self.sources.retain(|_, bucket| bucket.full_at > now);
        }
        self.count += 1;
        if self.count <= HANDSHAKES_PER_SECOND {
            return true;
        }
        let source = aggregate(source);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            return false;
        }
        let bucket = self
            .sources
            .entry(source)
            .or_insert(Bucket { full_at: now });
        let after = bucket.full_at.max(now) + Duration::from_secs(1) / PER_SOURCE_PER_SECOND;
        if after > now + REFILL {
            return false;
        }
        bucket.full_at = after;
        true
    }
}

fn aggregate(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(mask_v6(v6.to_bits(), V6_PREFIX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_limit_each_source_has_a_bucket() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let a: IpAddr = "192.0.2.1".parse().unwrap();
        let b: IpAddr = "192.0.2.2".parse().unwrap();
        assert!((0..HANDSHAKES_PER_SECOND).all(|_| limiter.allow(a, start)));
        assert_eq!((0..50).filter(|_| limiter.allow(a, start)).count(), 5);
        assert_eq!((0..50).filter(|_| limiter.allow(b, start)).count(), 5);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..50).filter(|_| limiter.allow(a, later)).count(), 2);
        assert!(limiter.allow(a, start + Duration::from_secs(2)));
        assert!(limiter.sources.is_empty());
    }

    #[test]
    fn one_network_of_ipv6_is_one_source_and_sources_are_bounded() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let at = |n: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + n));
        assert!((0..HANDSHAKES_PER_SECOND).all(|_| limiter.allow(at(0), start)));
        assert_eq!((0..50).filter(|n| limiter.allow(at(*n), start)).count(), 5);
        let allowed = (1..=2 * MAX_SOURCES as u128)
            .filter(|n| limiter.allow(at(n << 64), start))
            .count();
        assert_eq!(allowed, MAX_SOURCES - 1);
    }
}
