//! Adverts can aim at victims: what goes to addresses that have not answered is budgeted, across
//! all agents, sessions and re-publishing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Checks that one address gets at once: a whole lab behind one router is checked without delay.
const BURST: u32 = 256;
/// One more each: four small packets a second hurt nobody.
const REFILL: Duration = Duration::from_millis(250);
/// Addresses that are remembered; past them the one that has waited longest is forgotten.
const MAX_ADDRESSES: usize = 4096;

/// Tokens by destination address.
#[derive(Debug, Default)]
pub(super) struct Budget {
    spent: BTreeMap<IpAddr, Spent>,
}

#[derive(Debug)]
struct Spent {
    tokens: u32,
    refilled: Instant,
}

impl Budget {
    /// Whether one more check may go to this address; counts it if so.
    pub(super) fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        if !self.spent.contains_key(&address) && self.spent.len() >= MAX_ADDRESSES {
            self.forget_one(now);
        }
        let spent = self.spent.entry(address).or_insert(Spent {
            tokens: BURST,
            refilled: now,
        });
        let refills = now.duration_since(spent.refilled).as_millis() / REFILL.as_millis();
        if refills > 0 {
            let refills = u32::try_from(refills).unwrap_or(BURST);
            spent.tokens = spent.tokens.saturating_add(refills).min(BURST);
            spent.refilled = now;
        }
        let granted = spent.tokens > 0;
        spent.tokens = spent.tokens.saturating_sub(1);
        granted
    }

    /// An authentic answer has come from this address: whoever is there wants our checks.
    pub(super) fn note_answer(&mut self, address: IpAddr) {
        self.spent.remove(&address);
    }

    fn forget_one(&mut self, now: Instant) {
        self.spent
            .retain(|_, spent| now.duration_since(spent.refilled) < REFILL * BURST);
        if self.spent.len() >= MAX_ADDRESSES {
            let oldest = self.spent.iter().min_by_key(|(_, spent)| spent.refilled);
            if let Some(address) = oldest.map(|(address, _)| *address) {
                self.spent.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_victim_gets_four_packets_a_second_at_most() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let victim = "198.51.100.9".parse().unwrap();
        let mut sent = 0;
        for tick in 0..60_000 {
            sent += u32::from(budget.take(victim, start + Duration::from_millis(tick)));
        }
        assert!((BURST..=BURST + 60 * 4).contains(&sent), "{sent}");
    }

    #[test]
    fn whoever_answers_is_no_victim() {
        let mut budget = Budget::default();
        let (now, relay) = (Instant::now(), "198.51.100.9".parse().unwrap());
        for _ in 0..10 * BURST {
            assert!(budget.take(relay, now));
            budget.note_answer(relay);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut budget = Budget::default();
        let now = Instant::now();
        for address in 0..20_000u32 {
            assert!(budget.take(IpAddr::V4(address.into()), now));
        }
        assert!(budget.spent.len() <= MAX_ADDRESSES);
    }
}
