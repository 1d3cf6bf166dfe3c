//! Bases and remote candidates in, pairs out (RFC 8445 §6.1.2, RFC 8838 §10 to §12). A difference
//! is applied; what stands already keeps its state.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wice_signaling::protocol::CandidateKind;

use super::agent::{Agent, AgentEvent};
use super::pair::{Failure, Pair, PairKey, PairState};
use super::priority::{candidate_priority, pair_priority};
use super::{Base, BaseId, RemoteCandidate};
use crate::core::policy;
use crate::core::timing::{MAX_LEARNED, MAX_PAIRS};

/// Where a remote candidate was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the other side's advert.
    Advert,
    /// From an authentic check.
    Check,
}

impl Agent {
    /// Adds a base, or changes what is known of it: existing pairs keep their state and are
    /// labelled anew. A base of the same number with another address or kind is another base.
    pub fn set_base(&mut self, base: Base) {
        let base = Base {
            address: canonical(base.address),
            reflexive: base
                .reflexive
                .iter()
                .map(|(address, kind)| (canonical(*address), *kind))
                .collect(),
            ..base
        };
        let id = base.id;
        match self.bases.iter_mut().find(|known| known.id == id) {
            Some(known) if (known.address, known.kind) == (base.address, base.kind) => {
                *known = base;
            }
            Some(_) => {
                self.remove_base(id);
                self.bases.push(base);
            }
            None => self.bases.push(base),
        }
        let ours: Vec<PairKey> = self
            .pairs
            .values()
            .filter(|pair| !pair.is_valid() && pair.advertised && self.is_ours(pair.key.remote))
            .map(|pair| pair.key)
            .collect();
        for key in ours {
            self.remove_pair(key);
        }
        for remote in self.remotes.clone() {
            self.add_pair(id, remote, Origin::Advert);
        }
        let labelled: Vec<PairKey> = self
            .pairs
            .values()
            .filter(|pair| pair.key.base == id)
            .map(|pair| pair.key)
            .collect();
        for key in labelled {
            self.label(key);
        }
    }

    /// The base is gone: its pairs fail now.
    pub fn remove_base(&mut self, id: BaseId) {
        self.bases.retain(|base| base.id != id);
        self.permitted.retain(|(base, _)| *base != id);
        let gone: Vec<PairKey> = self
            .pairs
            .keys()
            .filter(|key| key.base == id)
            .copied()
            .collect();
        for key in gone {
            self.remove_pair(key);
        }
    }

    /// The bases that it knows.
    pub fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// What the other side's advert says now. A difference is applied: what stands already keeps
    /// its state, a peer-reflexive candidate that is now advertised changes its kind in place, a
    /// withdrawn one goes with its pairs, those that work when they cease to.
    pub fn set_remote_candidates(&mut self, candidates: &[RemoteCandidate]) {
        self.remotes.clear();
        for candidate in candidates {
            let candidate = RemoteCandidate {
                address: canonical(candidate.address),
                ..*candidate
            };
            match self
                .remotes
                .iter_mut()
                .find(|known| known.address == candidate.address)
            {
                Some(known) if known.priority < candidate.priority => *known = candidate,
                Some(_) => {}
                None => self.remotes.push(candidate),
            }
        }
        self.remotes
            .sort_by_key(|candidate| std::cmp::Reverse(candidate.priority));
        self.remotes.truncate(MAX_PAIRS);
        let gone: Vec<PairKey> = self
            .pairs
            .values()
            .filter(|pair| pair.advertised && self.remote(pair.key.remote).is_none())
            .map(|pair| pair.key)
            .collect();
        for key in gone {
            match self.pairs.get_mut(&key) {
                Some(pair) if pair.is_valid() => {
                    pair.advertised = false;
                    pair.withdrawn = true;
                }
                Some(_) | None => self.remove_pair(key),
            }
        }
        let bases: Vec<BaseId> = self.bases.iter().map(|base| base.id).collect();
        for candidate in self.remotes.clone() {
            for base in &bases {
                self.add_pair(*base, candidate, Origin::Advert);
            }
        }
    }

    /// The relay behind `base` lets `peer` through: pairs that waited for it may be checked.
    pub fn permit(&mut self, base: BaseId, peer: IpAddr) {
        if self.permitted.len() >= MAX_PAIRS {
            let pairs = &self.pairs;
            let paired = |(base, peer): &(BaseId, IpAddr)| {
                pairs
                    .keys()
                    .any(|key| key.base == *base && key.remote.ip() == *peer)
            };
            self.permitted.retain(paired);
        }
        self.permitted.insert((base, peer));
        for pair in self.pairs.values_mut() {
            if pair.key.base == base && pair.key.remote.ip() == peer {
                pair.held = false;
            }
        }
    }

    /// The relay behind `base` refuses `peer`: its pairs fail, no others.
    pub fn forbid(&mut self, base: BaseId, peer: IpAddr, now: Instant) {
        self.permitted.remove(&(base, peer));
        let of_peer = |key: &&PairKey| key.base == base && key.remote.ip() == peer;
        let keys: Vec<PairKey> = self.pairs.keys().filter(of_peer).copied().collect();
        for key in keys {
            self.set_failed(key, Failure::RelayForbids, now);
        }
    }

    /// The peer addresses that the relay behind `base` has to let through.
    pub fn wanted_permissions(&self, base: BaseId) -> impl Iterator<Item = IpAddr> + '_ {
        self.pairs
            .keys()
            .filter(move |key| key.base == base)
            .map(|key| key.remote.ip())
    }

    /// Adds a pair, or changes the remote candidate of the pair that stands already.
    pub(super) fn add_pair(&mut self, base: BaseId, remote: RemoteCandidate, origin: Origin) {
        let key = PairKey {
            base,
            remote: remote.address,
        };
        if let Some(pair) = self.pairs.get_mut(&key) {
            if origin == Origin::Advert {
                pair.advertised = true;
                pair.withdrawn = false;
                pair.remote = remote;
                pair.priority = pair_priority(self.role, pair.local_priority, remote.priority);
            }
            return;
        }
        let Some(known) = self.base(base) else { return };
        if known.address.is_ipv4() != remote.address.is_ipv4() {
            return;
        }
        // A check of the other side from behind our own router may show our router's address; an
        // advertised one would send to ourselves.
        let refused = match origin {
            Origin::Advert => self.is_ours(remote.address) || !policy::pairable(known, &remote),
            Origin::Check => false,
        };
        if refused {
            return;
        }
        let local_priority = candidate_priority(known.host_kind(), known.preference);
        let advertised = self.remote(remote.address).is_some();
        let learned = |pair: &&Pair| pair.key.base == base && !pair.advertised && !pair.is_valid();
        if !advertised && self.pairs.values().filter(learned).count() >= MAX_LEARNED {
            return;
        }
        let mut pair = Pair::new(key, known.kind, local_priority, remote, advertised);
        pair.priority = pair_priority(self.role, local_priority, remote.priority);
        let permitted = || self.permitted.contains(&(base, remote.address.ip()));
        pair.held = origin == Origin::Advert && pair.relay_transport().is_some() && !permitted();
        if self.pairs.len() >= MAX_PAIRS && !self.make_room(pair.priority) {
            return;
        }
        self.pairs.insert(key, pair);
    }

    /// The advertised candidate with this address.
    pub(super) fn remote(&self, address: SocketAddr) -> Option<RemoteCandidate> {
        let mut remotes = self.remotes.iter();
        remotes.find(|known| known.address == address).copied()
    }

    /// Names our side of a pair by the address that the other side sees (RFC 8445 §7.2.5.3.1), with
    /// the priority that such a candidate has: both sides then rank the pair alike.
    pub(super) fn label(&mut self, key: PairKey) {
        let Some(base) = self.base(key.base) else {
            return;
        };
        let Some(mapped) = self.pairs.get(&key).and_then(|pair| pair.mapped) else {
            return;
        };
        let mut reflexive = base.reflexive.iter();
        let known = reflexive.find(|(address, _)| *address == mapped);
        // A relay behind a translator of its own stays a relay.
        let kind = match (base.host_kind(), known) {
            (kind, _) if base.address == mapped => kind,
            (CandidateKind::Relayed, _) => CandidateKind::Relayed,
            (_, Some((_, kind))) => *kind,
            (_, None) => CandidateKind::PeerReflexive,
        };
        let local_priority = candidate_priority(kind, base.preference);
        let role = self.role;
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.local_kind = kind;
            pair.local_priority = local_priority;
            pair.priority = pair_priority(role, local_priority, pair.remote.priority);
        }
    }

    pub(super) fn remove_pair(&mut self, key: PairKey) {
        let Some(pair) = self.pairs.remove(&key) else {
            return;
        };
        for transaction in &pair.open {
            self.close(transaction.id);
        }
        self.triggered.retain(|triggered| *triggered != key);
        if self.nominate == Some(key) {
            self.nominate = None;
        }
        if pair.is_valid() {
            self.event(AgentEvent::Lost(key));
        }
        self.nominate_what_is_left();
    }

    fn is_ours(&self, address: SocketAddr) -> bool {
        let seen_at = |base: &Base| {
            base.address == address || base.reflexive.iter().any(|(a, _)| *a == address)
        };
        self.bases.iter().any(seen_at)
    }

    /// Makes room for a pair of this priority. What was learned and has failed goes first, or a
    /// peer that keeps moving would fill the list for good; then what has failed; then the worst
    /// that does not work, if it is worse.
    fn make_room(&mut self, priority: u64) -> bool {
        let rank = |pair: &Pair| match pair.state {
            PairState::Failed(_) => u8::from(pair.advertised),
            PairState::Waiting | PairState::InProgress => 2,
            PairState::Succeeded => 3,
        };
        let worst = self
            .pairs
            .values()
            .map(|pair| (rank(pair), pair.priority, pair.key))
            .min();
        match worst {
            Some((0, _, key)) => {
                self.remove_pair(key);
                true
            }
            Some((1 | 2, lowest, key)) if lowest < priority => {
                self.remove_pair(key);
                true
            }
            Some(_) | None => false,
        }
    }
}

/// The one form of an address: an IPv4-mapped IPv6 address unmapped, no flow label, no scope
/// (link-local addresses are no candidates).
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
