//! Sessions that were seen to begin: whose they are, for as long as they can carry data.

use std::time::{Duration, Instant};

/// WireGuard's REJECT_AFTER_TIME and REKEY_TIMEOUT (paper §6.1): a session carries data for 180 s
/// from its response on, which comes within 5 s of the initiation or not at all.
pub(super) const INDEX_LIFE: Duration = Duration::from_secs(185);
/// The most sessions of one peer and side. An unanswered initiation is repeated every 5 s for 90 s
/// (REKEY_TIMEOUT, REKEY_ATTEMPT_TIME), each under an index of its own: 18, beside the three
/// sessions that WireGuard keeps, and a few of a peer that starts handshakes meanwhile.
pub(super) const MAX_INDICES: usize = 24;

/// The latest sessions of one peer, oldest first.
#[derive(Debug, Default)]
pub(super) struct Indices(Vec<(u32, Instant)>);

impl Indices {
    /// Learns one. Returns what had to go for it.
    pub(super) fn learn(&mut self, index: u32, now: Instant) -> Option<u32> {
        self.0.retain(|(known, _)| *known != index);
        let evicted = (self.0.len() >= MAX_INDICES).then(|| self.0.remove(0).0);
        self.0.push((index, now + INDEX_LIFE));
        evicted
    }

    pub(super) fn forget(&mut self, index: u32) {
        self.0.retain(|(known, _)| *known != index);
    }

    /// Until when it is believed to be in use, if it is now.
    pub(super) fn has(&self, index: u32, now: Instant) -> bool {
        self.0
            .iter()
            .any(|(known, until)| *known == index && now < *until)
    }

    pub(super) fn any(&self, now: Instant) -> bool {
        self.0.last().is_some_and(|(_, until)| now < *until)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(index, _)| *index)
    }
}
