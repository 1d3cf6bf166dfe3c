//! One peer: what it has published, and the agents that look for paths to it.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::{Advert, PublicKey, Session};
use zeroize::Zeroizing;

use super::excluded::Excluded;
use super::path::PathState;
use super::presence::Presences;
use super::{PathRef, PeerId, RelayId};
use crate::core::ice::{Agent, Pair, PairKey, RemoteCandidate};

/// At most two agents a peer: the present session's and the one before or after it.
pub(super) const MAX_AGENTS: usize = 2;
/// Sessions of the past that are remembered and refused.
const MAX_SUPERSEDED: usize = 8;
/// A stranger who knows both keys can make us derive credentials for sessions that do not exist;
/// once in this time is enough for a peer that has really started afresh.
const CHECK_BORN_EVERY: Duration = Duration::from_millis(100);

/// An agent and the peer's session that it speaks to.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) session: Session,
    pub(super) agent: Agent,
    /// When it began to look for paths.
    pub(super) started: Instant,
    /// Born of a check and not answered yet: it carries nothing.
    pub(super) provisional: bool,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) key: PublicKey,
    /// X25519 of the two WireGuard keys.
    pub(super) shared: Zeroizing<[u8; 32]>,
    pub(super) advert: Option<Advert>,
    /// Newest last.
    pub(super) slots: Vec<Slot>,
    pub(super) path: PathState,
    pub(super) presence: Presences,
    /// Attached mode: it was revoked, and its WireGuard peer is still there. It gets nothing.
    pub(super) revoked: bool,
    /// When something authentic last came from it.
    pub(super) heard: Option<Instant>,
    /// Addresses that relays are to let through for it.
    pub(super) wishes: BTreeSet<(RelayId, IpAddr)>,
    superseded: VecDeque<Session>,
    check_born: Option<Instant>,
}

impl Peer {
    pub(super) fn new(
        id: PeerId,
        key: PublicKey,
        shared: Zeroizing<[u8; 32]>,
        now: Instant,
    ) -> Self {
        Self {
            id,
            key,
            shared,
            advert: None,
            slots: Vec::new(),
            path: PathState::new(now),
            presence: Presences::default(),
            revoked: false,
            heard: None,
            wishes: BTreeSet::new(),
            superseded: VecDeque::new(),
            check_born: None,
        }
    }

    pub(super) fn slot(&self, generation: u32) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.generation == generation)
    }

    pub(super) fn slot_mut(&mut self, generation: u32) -> Option<&mut Slot> {
        self.slots
            .iter_mut()
            .find(|slot| slot.generation == generation)
    }

    pub(super) fn pair(&self, path: PathRef) -> Option<&Pair> {
        self.slot(path.generation)?.agent.pair(path.key)
    }

    /// What carries its packets: the path, and while it is new the one before, unless that is dead.
    pub(super) fn carrying(&self) -> impl Iterator<Item = PathRef> {
        let previous = self.path.previous.map(|(path, _)| path);
        let is_valid = |path: &PathRef| self.pair(*path).is_some_and(Pair::is_valid);
        let selected = self.path.selected.into_iter();
        selected.chain(previous.filter(is_valid))
    }

    /// Whether one of its agents has this pair.
    pub(super) fn has_pair(&self, key: PairKey) -> bool {
        self.slots.iter().any(|slot| slot.agent.pair(key).is_some())
    }

    pub(super) fn is_superseded(&self, session: Session) -> bool {
        self.superseded.contains(&session)
    }

    /// The session's checks are refused from now on.
    pub(super) fn supersede(&mut self, session: Session) {
        if self.is_superseded(session) {
            return;
        }
        if self.superseded.len() == MAX_SUPERSEDED {
            self.superseded.pop_front();
        }
        self.superseded.push_back(session);
    }

    /// Whether a check under an unknown session may be looked at now; counts it if so.
    pub(super) fn may_be_born(&mut self, now: Instant) -> bool {
        let early = |at: Instant| now.duration_since(at) < CHECK_BORN_EVERY;
        if self.check_born.is_some_and(early) {
            return false;
        }
        self.check_born = Some(now);
        true
    }

    /// The candidates of the advert, as agents take them, without those that are excluded.
    pub(super) fn remote_candidates(&self, excluded: &Excluded) -> Vec<RemoteCandidate> {
        let Some(advert) = &self.advert else {
            return Vec::new();
        };
        let of = |c: &wice_signaling::protocol::Candidate| RemoteCandidate {
            address: c.address,
            kind: c.kind,
            priority: c.priority,
            relay_transport: c.relay_transport,
        };
        let candidates = advert.candidates.iter();
        candidates
            .filter(|candidate| !excluded.contains(candidate.address.ip()))
            .map(of)
            .collect()
    }
}
