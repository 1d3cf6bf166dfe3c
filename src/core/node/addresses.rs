//! From which addresses peers have spoken: an authentic check came from there, or answered ours.
//! What WireGuard cannot be asked about, the owner of an attached interface asks here.

use std::collections::BTreeMap;

use super::peer::MAX_AGENTS;
use super::{Arrival, Node, PeerId};
use crate::core::ice::PairKey;
use crate::core::timing::MAX_PAIRS;

/// Who has spoken from where.
#[derive(Debug, Default)]
pub(super) struct Addresses(BTreeMap<PairKey, PeerId>);

impl Node {
    /// The peer that has spoken from where this came in, by a pair that is still there. Costs no
    /// cryptography.
    pub fn peer_at(&self, arrival: &Arrival) -> Option<PeerId> {
        let base = self.bases.of_arrival(arrival)?;
        let remote = match arrival {
            Arrival::Host { from, .. } | Arrival::Relay { from, .. } => *from,
        };
        self.peer_of_pair(PairKey { base, remote })
    }

    /// The peer that has spoken by a pair that is still there.
    pub(super) fn peer_of_pair(&self, key: PairKey) -> Option<PeerId> {
        let peer = self.peers.get(self.addresses.0.get(&key)?)?;
        peer.has_pair(key).then_some(peer.id)
    }

    /// An authentic check came from there, or an authentic answer.
    pub(super) fn note_spoken(&mut self, id: PeerId, key: PairKey) {
        if self.addresses.0.insert(key, id) == Some(id) {
            return;
        }
        // Pairs are bounded, so what is beyond them is of pairs that are gone.
        if self.addresses.0.len() > self.peers.len() * MAX_AGENTS * MAX_PAIRS {
            let Self {
                addresses, peers, ..
            } = self;
            addresses
                .0
                .retain(|key, id| peers.get(id).is_some_and(|peer| peer.has_pair(*key)));
        }
    }
}
