//! Initiations of our WireGuard that have left and have no answer yet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::INITIATION_LEN;
use crate::core::node::PeerId;

/// After this an initiation is taken for lost and sent once more: longer than any round trip on which people use a mesh, while
/// WireGuard itself waits for 5 s (paper §6.1, REKEY_TIMEOUT). What has come twice its recipient drops by the timestamp (§5.1).
pub(super) const LOST: Duration = Duration::from_secs(1);

/// The latest of each peer.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    kept: BTreeMap<PeerId, (Instant, Box<[u8; INITIATION_LEN]>)>,
    due: BTreeSet<(Instant, PeerId)>,
}

impl Unanswered {
    pub(super) fn note(&mut self, peer: PeerId, initiation: &[u8], now: Instant) {
        self.forget(peer);
        if let Ok(initiation) = <[u8; INITIATION_LEN]>::try_from(initiation) {
            let at = now + LOST;
            self.kept.insert(peer, (at, Box::new(initiation)));
            self.due.insert((at, peer));
        }
    }

    pub(super) fn forget(&mut self, peer: PeerId) {
        if let Some((at, _)) = self.kept.remove(&peer) {
            self.due.remove(&(at, peer));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// One that is lost. Once.
    pub(super) fn take(&mut self, now: Instant) -> Option<(PeerId, Box<[u8; INITIATION_LEN]>)> {
        let (_, peer) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.pop_first();
        self.kept.remove(&peer).map(|(_, kept)| (peer, kept))
    }
}
