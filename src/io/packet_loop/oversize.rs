//! Datagrams that were too large for their path: counted by where they were going, so that none vanishes
//! in silence.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Destinations that are kept; past them one is forgotten for each that is new.
const MAX_DESTINATIONS: usize = 256;

/// All that was refused since the start, by this machine or by a router that has told of it.
#[derive(Debug, Default)]
pub struct Oversize(BTreeMap<SocketAddr, u64>);

impl Oversize {
    /// One datagram did not fit.
    pub(super) fn note(&mut self, remote: SocketAddr) {
        if self.0.len() >= MAX_DESTINATIONS && !self.0.contains_key(&remote) {
            self.0.pop_first();
        }
        *self.0.entry(remote).or_default() += 1;
    }

    /// How many were towards this destination: at least so many were lost.
    pub fn towards(&self, remote: SocketAddr) -> u64 {
        self.0.get(&remote).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_destination_is_counted_by_itself_and_their_number_is_bounded() {
        let mut oversize = Oversize::default();
        let to = |n: u16| SocketAddr::from(([192, 0, 2, 1], n));
        oversize.note(to(1));
        oversize.note(to(1));
        oversize.note(to(2));
        assert_eq!(oversize.towards(to(1)), 2);
        assert_eq!(oversize.towards(to(2)), 1);
        assert_eq!(oversize.towards(to(3)), 0);
        for n in 0..2000 {
            oversize.note(to(n));
        }
        assert_eq!(oversize.0.len(), MAX_DESTINATIONS);
    }
}
