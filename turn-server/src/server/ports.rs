//! The relay ports of one address, shared by all threads: who has which. Taken and given back with single atomic steps, so that
//! no port is had twice and none is lost.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, Ordering};

/// The dynamic ports (RFC 6335 §6), which RFC 8656 §7.2 recommends.
pub const DEFAULT_PORTS: RangeInclusive<u16> = 49_152..=65_535;
/// Threads that ports can name.
pub const MAX_SHARDS: u8 = 250;

const FREE: u8 = 0;
/// Held for a RESERVATION-TOKEN: taken, and nobody's yet.
const RESERVED: u8 = u8::MAX;

/// Ports of one relay address.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    owners: Box<[AtomicU8]>,
}

impl Ports {
    /// All free. An empty range has none.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self {
            first: *range.start(),
            owners: range.map(|_| AtomicU8::new(FREE)).collect(),
        }
    }

    /// Takes a free port for a thread, the first one from `start` on, around the range.
    pub fn take(&self, start: u16, shard: u8) -> Option<u16> {
        self.around(start)
            .find(|&port| self.swap(port, FREE, shard + 1))
    }

    /// Takes a free even port.
    pub fn take_even(&self, start: u16, shard: u8) -> Option<u16> {
        self.around(start)
            .find(|&port| port.is_multiple_of(2) && self.swap(port, FREE, shard + 1))
    }

    /// Takes a free even port and reserves the next (RFC 8656 §7.2, EVEN-PORT with the R bit).
    pub fn take_pair(&self, start: u16, shard: u8) -> Option<u16> {
        self.around(start).find(|&port| {
            if !port.is_multiple_of(2) || port == u16::MAX || !self.swap(port, FREE, shard + 1) {
                return false;
            }
            let both = self.swap(port + 1, FREE, RESERVED);
            if !both {
                self.release(port);
            }
            both
        })
    }

    /// A reserved port becomes a relayed address.
    pub fn claim(&self, port: u16, shard: u8) {
        self.swap(port, RESERVED, shard + 1);
    }

    /// Gives a port back.
    pub fn release(&self, port: u16) {
        if let Some(owner) = self.owner_cell(port) {
            owner.store(FREE, Ordering::Release);
        }
    }

    /// Whether a port is a relayed address now, of whichever thread.
    pub fn is_relayed(&self, port: u16) -> bool {
        self.owner_cell(port)
            .is_some_and(|owner| !matches!(owner.load(Ordering::Acquire), FREE | RESERVED))
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        let taken = |owner: &&AtomicU8| owner.load(Ordering::Relaxed) != FREE;
        self.owners.iter().filter(taken).count()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    fn around(&self, start: u16) -> impl Iterator<Item = u16> + use<> {
        let (first, len) = (usize::from(self.first), self.owners.len());
        let start = usize::from(start);
        // Within the range by the remainder, so within 16 bits.
        (0..len).map(move |n| (first + (start + n) % len) as u16)
    }

    fn swap(&self, port: u16, from: u8, to: u8) -> bool {
        self.owner_cell(port).is_some_and(|owner| {
            owner
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    }

    fn owner_cell(&self, port: u16) -> Option<&AtomicU8> {
        self.owners.get(usize::from(port.checked_sub(self.first)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_taken_once_and_none_is_lost() {
        let ports = Ports::new(5000..=5009);
        let mut taken: Vec<u16> = (0..10).map(|n| ports.take(n * 7, 0).unwrap()).collect();
        assert_eq!(ports.take(3, 0), None);
        taken.sort_unstable();
        assert_eq!(taken, (5000..=5009).collect::<Vec<_>>());
        for port in taken {
            ports.release(port);
        }
        assert_eq!(ports.taken(), 0);
        for _ in 0..5 {
            let even = ports.take_pair(9, 1).unwrap();
            assert!(
                even.is_multiple_of(2) && ports.is_relayed(even) && !ports.is_relayed(even + 1)
            );
        }
        assert_eq!(ports.take_pair(0, 1), None);
        assert_eq!(ports.taken(), 10);
    }

    #[test]
    fn a_pair_that_is_half_free_takes_nothing() {
        let ports = Ports::new(5001..=5003);
        let odd = ports.take(2, 0).unwrap();
        assert_eq!(odd, 5003);
        assert_eq!(ports.take_pair(0, 0), None);
        assert_eq!(ports.taken(), 1);
        assert_eq!(ports.take_even(0, 0), Some(5002));
        assert_eq!(Ports::new(65_535..=65_535).take_pair(0, 0), None);
        assert_eq!(Ports::new(RangeInclusive::new(2, 1)).take(0, 0), None);
    }
}
