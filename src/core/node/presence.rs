//! What signaling says of a peer's connection to it. It informs reasons, and where checks go that
//! nothing else asks for; a path that works stays, and what the peer itself sends weighs more.

use std::time::{Duration, Instant};

use wice_signaling::protocol::{Presence, PublicKey};

use super::{Node, PeerId};
use crate::core::ice::Witness;
use crate::core::timing::RECENTLY_HEARD;

/// Whether a peer is connected to signaling, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presences {
    /// Signaling has not told, or is itself out of reach.
    #[default]
    Unknown,
    /// It is.
    Connected,
    /// It is not.
    Away {
        /// When signaling told so.
        told: Instant,
        /// How long it had been away by then.
        ago: Duration,
    },
}

impl Node {
    /// Signaling says whether a node is connected to it. Of a node that is no peer it means nothing.
    pub fn handle_presence(&mut self, key: &PublicKey, presence: Presence, now: Instant) {
        self.now = now;
        let Some(id) = self.by_key.get(key).copied() else {
            return;
        };
        match presence {
            Presence::Connected => self.peer_came(id),
            Presence::Lost { last_seen_s } => self.peer_went(id, last_seen_s, false),
            Presence::Left { last_seen_s } => self.peer_went(id, last_seen_s, true),
        }
        self.pump();
    }

    /// Signaling is out of reach: whom it called connected may have gone since.
    pub fn handle_signaling_lost(&mut self, now: Instant) {
        self.now = now;
        for peer in self.peers.values_mut() {
            if peer.presence == Presences::Connected {
                peer.presence = Presences::Unknown;
            }
        }
    }

    fn peer_came(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut peer.presence, Presences::Connected);
        if !matches!(before, Presences::Away { .. }) {
            return;
        }
        peer.path.end_loneliness();
        for slot in &mut peer.slots {
            slot.agent.set_away(false);
            slot.agent.recheck(now);
        }
        self.touch_peer(id);
    }

    fn peer_went(&mut self, id: PeerId, last_seen_s: u32, left: bool) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.presence = Presences::Away {
            told: now,
            ago: Duration::from_secs(last_seen_s.into()),
        };
        let witness = if left { Witness::Left } else { Witness::Lost };
        for slot in &mut peer.slots {
            slot.agent.set_away(true);
            slot.agent.suspect(witness, None, now);
        }
        self.touch_peer(id);
    }
}

impl super::Peer {
    /// Something authentic has come from the peer: whatever signaling says, it is there.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.heard = Some(now);
        for slot in &mut self.slots {
            slot.agent.set_away(false);
        }
    }

    /// Whether signaling says that it is away, and the peer itself does not say otherwise.
    pub(super) fn is_away(&self, now: Instant) -> bool {
        let lately = |at: Instant| now < at + RECENTLY_HEARD;
        matches!(self.presence, Presences::Away { .. }) && !self.heard.is_some_and(lately)
    }

    /// Since it was last known to be there: zero while signaling says that it is connected, `None`
    /// where that is not known.
    pub(super) fn last_seen(&self, now: Instant) -> Option<Duration> {
        match self.presence {
            Presences::Unknown => None,
            Presences::Connected => Some(Duration::ZERO),
            Presences::Away { told, ago } => {
                let told = now.saturating_duration_since(told) + ago;
                let heard = self.heard.map(|at| now.saturating_duration_since(at));
                // Zero would say that it is there.
                let seen = heard.map_or(told, |heard| heard.min(told));
                Some(seen.max(Duration::from_millis(1)))
            }
        }
    }
}
