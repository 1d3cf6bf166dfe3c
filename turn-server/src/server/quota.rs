//! Who has how much, over all threads. Asked when allocations are made and go, never for a packet; bytes a second are counted
//! in one atomic a user.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far ahead of its rate a user may be: the burst that a queue of a tenth of a second would let through.
const BURST: Duration = Duration::from_millis(100);

/// The most of each; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Allocations of a user.
    pub user: u32,
    /// Allocations of a source address (IPv6: of a /64).
    pub source: u32,
    /// Allocations in all.
    pub total: u32,
    /// Bytes of payload a second of a user, both ways together.
    pub user_bytes_per_second: u64,
}

/// Which quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exceeded {
    /// The user's.
    User,
    /// The source's.
    Source,
    /// The server's.
    Total,
}

/// The shared books.
#[derive(Debug)]
pub struct Ledger {
    start: Instant,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    total: u32,
    users: BTreeMap<Box<str>, (u32, Arc<Meter>)>,
    sources: BTreeMap<IpAddr, u32>,
}

/// When a user's bytes so far are paid for, in nanoseconds since the ledger's start.
#[derive(Debug, Default)]
struct Meter(AtomicU64);

/// One allocation in the books; dropping it takes it out.
#[derive(Debug)]
pub struct Grant {
    ledger: Arc<Ledger>,
    user: Box<str>,
    source: IpAddr,
    meter: Arc<Meter>,
}

impl Ledger {
    /// Empty books. `start` is any instant before the first packet.
    pub fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self {
            start,
            books: Mutex::default(),
        })
    }

    /// Enters one allocation.
    ///
    /// # Errors
    /// The quota that is used up; nothing was entered.
    pub fn enter(
        self: &Arc<Self>,
        quotas: &Quotas,
        user: &str,
        source: IpAddr,
    ) -> Result<Grant, Exceeded> {
        let mut books = self.books();
        if full(books.total, quotas.total) {
            return Err(Exceeded::Total);
        }
        if full(books.users.get(user).map_or(0, |user| user.0), quotas.user) {
            return Err(Exceeded::User);
        }
        if full(books.source_has(source), quotas.source) {
            return Err(Exceeded::Source);
        }
        books.total += 1;
        let entry = books.users.entry(user.into()).or_default();
        entry.0 += 1;
        let meter = Arc::clone(&entry.1);
        *books.sources.entry(source).or_default() += 1;
        Ok(Grant {
            ledger: Arc::clone(self),
            user: user.into(),
            source,
            meter,
        })
    }

    /// Allocations and users now.
    pub fn count(&self) -> (u32, usize) {
        let books = self.books();
        (books.total, books.users.len())
    }

    /// A thread that panicked left whole entries behind: each step above is done or not.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grant {
    /// Whether the user is within its rate: for what is counted after it was carried.
    pub fn is_within(&self, rate: u64, now: Instant) -> bool {
        let now = nanos(now.saturating_duration_since(self.ledger.start));
        rate == 0 || self.meter.0.load(Ordering::Relaxed) <= now.saturating_add(nanos(BURST))
    }

    /// Counts bytes that were carried, past the rate or not.
    pub fn charge(&self, bytes: usize, rate: u64, now: Instant) {
        if rate == 0 {
            return;
        }
        let now = nanos(now.saturating_duration_since(self.ledger.start));
        let cost = (bytes as u64).saturating_mul(1_000_000_000) / rate;
        let paid = |until: u64| Some(until.max(now).saturating_add(cost));
        let meter = &self.meter.0;
        let _ = meter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid);
    }

    /// The allocation counts at another source from now on.
    ///
    /// # Errors
    /// [`Exceeded::Source`]: it stays where it is.
    pub fn move_to(&mut self, source: IpAddr, quotas: &Quotas) -> Result<(), Exceeded> {
        if source == self.source {
            return Ok(());
        }
        let mut books = self.ledger.books();
        if full(books.source_has(source), quotas.source) {
            return Err(Exceeded::Source);
        }
        *books.sources.entry(source).or_default() += 1;
        books.leave_source(self.source);
        self.source = source;
        Ok(())
    }

    /// Counts `packets` of `len` bytes each; returns how many of them the user's rate has room for, the others are to be dropped.
    pub fn pay(&self, packets: usize, len: usize, rate: u64, now: Instant) -> usize {
        if rate == 0 {
            return packets;
        }
        let now = nanos(now.saturating_duration_since(self.ledger.start));
        let cost = (len as u64).saturating_mul(1_000_000_000) / rate;
        let latest = now.saturating_add(nanos(BURST));
        let mut paid = 0;
        let pay = |until: u64| {
            let from = until.max(now);
            let room = latest.saturating_sub(from).checked_div(cost);
            paid = room.map_or(packets as u64, |room| room.min(packets as u64));
            (paid > 0).then(|| from.saturating_add(cost * paid))
        };
        // It fails where nothing is paid, and `paid` says so.
        let _ = self
            .meter
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        paid as usize
    }
}

impl Books {
    fn source_has(&self, source: IpAddr) -> u32 {
        self.sources.get(&source).copied().unwrap_or(0)
    }

    fn leave_source(&mut self, source: IpAddr) {
        if let Some(count) = self.sources.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut books = self.ledger.books();
        books.total = books.total.saturating_sub(1);
        if let Some(entry) = books.users.get_mut(&self.user) {
            entry.0 = entry.0.saturating_sub(1);
            if entry.0 == 0 {
                books.users.remove(&self.user);
            }
        }
        books.leave_source(self.source);
    }
}

/// 0 is no limit.
fn full(count: u32, limit: u32) -> bool {
    limit != 0 && count >= limit
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTAS: Quotas = Quotas {
        user: 2,
        source: 3,
        total: 4,
        user_bytes_per_second: 0,
    };

    #[test]
    fn each_quota_holds_and_comes_back() {
        let ledger = Ledger::new(Instant::now());
        let [a, b] = [1, 2].map(|n| IpAddr::from([8, 8, 8, n]));
        let mut grants = vec![
            ledger.enter(&QUOTAS, "alice", a).unwrap(),
            ledger.enter(&QUOTAS, "alice", a).unwrap(),
        ];
        assert_eq!(
            ledger.enter(&QUOTAS, "alice", b).unwrap_err(),
            Exceeded::User
        );
        grants.push(ledger.enter(&QUOTAS, "bob", a).unwrap());
        assert_eq!(
            ledger.enter(&QUOTAS, "bob", a).unwrap_err(),
            Exceeded::Source
        );
        grants.push(ledger.enter(&QUOTAS, "bob", b).unwrap());
        assert_eq!(
            ledger.enter(&QUOTAS, "carol", b).unwrap_err(),
            Exceeded::Total
        );
        grants.clear();
        assert_eq!(ledger.count(), (0, 0));
        assert!(ledger.books().sources.is_empty());
    }

    #[test]
    fn a_user_has_its_rate_and_a_burst_over_all_its_allocations() {
        let start = Instant::now();
        let ledger = Ledger::new(start);
        let source = IpAddr::from([8, 8, 8, 8]);
        let one = ledger.enter(&QUOTAS, "alice", source).unwrap();
        let two = ledger.enter(&QUOTAS, "alice", source).unwrap();
        let rate = 1_000_000;
        let sent = |from: Duration| -> usize {
            (0..1000)
                .filter(|n| {
                    let grant = if n % 2 == 0 { &one } else { &two };
                    grant.pay(1, 1000, rate, start + from) == 1
                })
                .count()
        };
        assert_eq!(sent(Duration::ZERO), 100, "the burst");
        assert_eq!(
            sent(Duration::from_millis(50)),
            50,
            "what the time since then pays"
        );
        assert_eq!(sent(Duration::from_secs(60)), 100, "no more is saved up");
        let other = ledger.enter(&QUOTAS, "bob", source).unwrap();
        let later = start + Duration::from_secs(60);
        assert_eq!(other.pay(1, 1000, rate, later), 1);
    }
}
