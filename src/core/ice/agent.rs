//! The agent's state: bases and candidates in, pairs kept, timeouts, events out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::pair::{Failure, Pair, PairKey, PairState, Use};
use super::priority::{candidate_priority, pair_priority};
use super::{Base, BaseId, Credentials, Nomination, RemoteCandidate, Role};
use crate::core::policy;
use crate::core::stun::{IntegrityKey, RoleClaim, TransactionId, integrity_key};
use crate::core::timing::{CONSENT_INTERVAL, IDLE_CHECK, MAX_PAIRS, RECHECK, RECHECK_PAIRS};

/// The most events that wait to be polled; past them the oldest goes, its effect being visible in
/// the pairs all the same.
const MAX_EVENTS: usize = 4 * MAX_PAIRS;

/// How an agent starts.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Our credentials towards this peer.
    pub local: Credentials,
    /// Theirs; without them nothing is sent, but checks are answered.
    pub remote: Option<Credentials>,
    /// Our role at the start.
    pub role: Role,
    /// How often we may nominate.
    pub nomination: Nomination,
    /// Seed of transaction ids and the tie-breaker: 32 bytes of cryptographic quality.
    pub seed: [u8; 32],
}

/// What an agent tells its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// The pair works.
    Validated(PairKey),
    /// The pair is nominated and works: by us, or by the other side.
    Nominated(PairKey),
    /// The pair worked and has ceased to.
    Lost(PairKey),
    /// The other side sees this base at an address that was not known.
    Reflexive {
        /// What was sent from.
        base: BaseId,
        /// Where it was seen.
        mapped: std::net::SocketAddr,
    },
}

/// The checks towards one session of one peer.
#[derive(Debug)]
pub struct Agent {
    pub(super) local: Credentials,
    pub(super) local_key: IntegrityKey,
    pub(super) remote: Option<(Credentials, IntegrityKey)>,
    /// `remote:local`.
    pub(super) username: String,
    pub(super) role: Role,
    pub(super) tie_breaker: u64,
    pub(super) nomination: Nomination,
    pub(super) last_nomination: u32,
    pub(super) nominate: Option<PairKey>,
    bases: Vec<Base>,
    remotes: Vec<RemoteCandidate>,
    pub(super) pairs: BTreeMap<PairKey, Pair>,
    pub(super) triggered: VecDeque<PairKey>,
    permitted: BTreeSet<(BaseId, IpAddr)>,
    /// Whether the owner has traffic for this peer: failed pairs are then tried again.
    pub(super) has_traffic: bool,
    rng: ChaCha12Rng,
    events: VecDeque<AgentEvent>,
    closed: Vec<TransactionId>,
}

impl Agent {
    /// An agent without candidates.
    pub fn new(config: AgentConfig) -> Self {
        let mut rng = ChaCha12Rng::from_seed(config.seed);
        let mut agent = Self {
            local_key: integrity_key(&config.local.password),
            local: config.local,
            remote: None,
            username: String::new(),
            role: config.role,
            tie_breaker: rng.next_u64(),
            nomination: config.nomination,
            last_nomination: 0,
            nominate: None,
            bases: Vec::new(),
            remotes: Vec::new(),
            pairs: BTreeMap::new(),
            triggered: VecDeque::new(),
            permitted: BTreeSet::new(),
            has_traffic: false,
            rng,
            events: VecDeque::new(),
            closed: Vec::new(),
        };
        if let Some(remote) = config.remote {
            agent.set_remote_credentials(remote);
        }
        agent
    }

    /// The other side's credentials, where they come later than the agent.
    pub fn set_remote_credentials(&mut self, remote: Credentials) {
        self.username = format!("{}:{}", remote.ufrag, self.local.ufrag);
        let key = integrity_key(&remote.password);
        self.remote = Some((remote, key));
    }

    /// Our credentials towards this peer.
    pub fn local_credentials(&self) -> &Credentials {
        &self.local
    }

    /// Our present role; conflicts may have switched it.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Adds a base, or changes what is known of it. Existing pairs keep their state.
    pub fn set_base(&mut self, base: Base) {
        match self.bases.iter_mut().find(|known| known.id == base.id) {
            Some(known) => *known = base,
            None => {
                let id = base.id;
                self.bases.push(base);
                for remote in self.remotes.clone() {
                    self.add_pair(id, remote, true);
                }
            }
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
    /// withdrawn one goes with its pairs except those that work.
    pub fn set_remote_candidates(&mut self, candidates: &[RemoteCandidate]) {
        let withdrawn = |pair: &Pair| {
            pair.advertised && !candidates.iter().any(|c| c.address == pair.key.remote)
        };
        let gone: Vec<PairKey> = self
            .pairs
            .values()
            .filter(|pair| withdrawn(pair))
            .map(|pair| pair.key)
            .collect();
        for key in gone {
            match self.pairs.get_mut(&key) {
                Some(pair) if pair.is_valid() => pair.advertised = false,
                Some(_) | None => self.remove_pair(key),
            }
        }
        self.remotes.clear();
        for candidate in candidates {
            match self
                .remotes
                .iter_mut()
                .find(|known| known.address == candidate.address)
            {
                Some(known) if known.priority < candidate.priority => *known = *candidate,
                Some(_) => {}
                None => self.remotes.push(*candidate),
            }
        }
        let bases: Vec<BaseId> = self.bases.iter().map(|base| base.id).collect();
        for candidate in self.remotes.clone() {
            for base in &bases {
                self.add_pair(*base, candidate, true);
            }
        }
    }

    /// The relay behind `base` lets `peer` through: pairs that waited for it may be checked.
    pub fn permit(&mut self, base: BaseId, peer: IpAddr) {
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

    /// What the owner uses a pair for; decides how it is kept alive.
    pub fn set_use(&mut self, key: PairKey, used: Use, now: Instant) {
        let jitter = self.jitter();
        let has_traffic = self.has_traffic;
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        if pair.used == used {
            return;
        }
        pair.used = used;
        pair.forget_liveness();
        if pair.is_valid() {
            pair.next_check =
                keepalive_interval(used, has_traffic).map(|i| now + i.mul_f64(jitter));
        }
    }

    /// Whether there is traffic for the peer: with it paths are watched closely and failed pairs
    /// tried again.
    pub fn set_traffic(&mut self, has_traffic: bool, now: Instant) {
        if self.has_traffic == has_traffic {
            return;
        }
        self.has_traffic = has_traffic;
        let jitter = self.jitter();
        let recheck = self.best_failed();
        for pair in self.pairs.values_mut() {
            let interval = match pair.state {
                PairState::Succeeded => keepalive_interval(pair.used, has_traffic),
                PairState::Failed(_) if has_traffic && recheck.contains(&pair.key) => Some(RECHECK),
                PairState::Failed(_) | PairState::Waiting | PairState::InProgress => None,
            };
            let due = interval.map(|interval| now + interval.mul_f64(jitter));
            pair.next_check = match (pair.next_check, due) {
                (Some(set), Some(due)) => Some(set.min(due)),
                (_, due) => due,
            };
        }
    }

    /// Data left on this pair.
    pub fn note_sent(&mut self, key: PairKey, now: Instant) {
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.note_sent(now);
        }
    }

    /// Authentic data came in on this pair.
    pub fn note_received(&mut self, key: PairKey) {
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.note_received();
        }
    }

    /// The owner has found that a pair carries nothing although its checks are answered.
    pub fn fail(&mut self, key: PairKey, failure: Failure, now: Instant) {
        self.set_failed(key, failure, now);
    }

    /// All pairs, by base and remote address.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.values()
    }

    /// One pair.
    pub fn pair(&self, key: PairKey) -> Option<&Pair> {
        self.pairs.get(&key)
    }

    /// The pair that nomination has chosen: the greatest value, then the highest priority.
    pub fn nominated(&self) -> Option<PairKey> {
        let nominated = self.pairs.values().filter(|pair| pair.is_valid());
        nominated
            .filter_map(|pair| Some((pair.nominated?, pair.priority, pair.key)))
            .max()
            .map(|(_, _, key)| key)
    }

    /// Next thing to tell.
    pub fn poll_event(&mut self) -> Option<AgentEvent> {
        self.events.pop_front()
    }

    /// Transactions that have ended since the last call: their ids are free of meaning.
    pub fn drain_closed(&mut self) -> impl Iterator<Item = TransactionId> + '_ {
        self.closed.drain(..)
    }

    /// Ends what has run out.
    pub fn handle_timeout(&mut self, now: Instant) {
        let keys: Vec<PairKey> = self.pairs.keys().copied().collect();
        for key in keys {
            let Some(pair) = self.pairs.get_mut(&key) else {
                continue;
            };
            if pair.end_due().is_some_and(|end| end <= now) {
                let mut unanswered = false;
                let closed = &mut self.closed;
                pair.open.retain(|transaction| {
                    let open = now < transaction.end;
                    if !open {
                        closed.push(transaction.id);
                        unanswered |= !transaction.settled && transaction.has_to_succeed();
                    }
                    open
                });
                if unanswered {
                    pair.note_history(false);
                    match pair.state {
                        PairState::InProgress if pair.is_pending() => {}
                        PairState::InProgress => self.set_failed(key, Failure::NoAnswer, now),
                        PairState::Succeeded => self.set_failed(key, Failure::Silent, now),
                        PairState::Waiting | PairState::Failed(_) => {}
                    }
                    continue;
                }
            }
            if pair.consent_end().is_some_and(|end| end <= now) {
                let failure = match pair.used {
                    Use::Selected | Use::Standby => Failure::Silent,
                    Use::None => Failure::Unused,
                };
                self.set_failed(key, failure, now);
            }
        }
    }

    /// When [`Self::handle_timeout`] has something to do. Sending is asked for by
    /// [`Self::check_due`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let dues = |pair: &Pair| [pair.end_due(), pair.consent_end()];
        self.pairs.values().flat_map(dues).flatten().min()
    }

    pub(super) fn close(&mut self, id: TransactionId) {
        self.closed.push(id);
    }

    pub(super) fn event(&mut self, event: AgentEvent) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn next_id(&mut self) -> TransactionId {
        let low = u128::from(self.rng.next_u64());
        TransactionId::from(u128::from(self.rng.next_u32()) << 64 | low)
    }

    pub(super) fn base(&self, id: BaseId) -> Option<&Base> {
        self.bases.iter().find(|base| base.id == id)
    }

    /// 0.8 to 1.2: everything periodic is spread by it.
    pub(super) fn jitter(&mut self) -> f64 {
        0.8 + f64::from(self.rng.next_u32()) / f64::from(u32::MAX) * 0.4
    }

    pub(super) fn role_claim(&self) -> RoleClaim {
        match self.role {
            Role::Controlling => RoleClaim::Controlling(self.tie_breaker),
            Role::Controlled => RoleClaim::Controlled(self.tie_breaker),
        }
    }

    pub(super) fn switch_role(&mut self, role: Role) {
        self.role = role;
        self.nominate = None;
        for pair in self.pairs.values_mut() {
            pair.priority = pair_priority(role, pair.local_priority, pair.remote.priority);
        }
    }

    pub(super) fn new_tie_breaker(&mut self) {
        self.tie_breaker = self.rng.next_u64();
    }

    /// Adds a pair, or changes the remote candidate of the pair that stands already.
    pub(super) fn add_pair(&mut self, base: BaseId, remote: RemoteCandidate, advertised: bool) {
        let key = PairKey {
            base,
            remote: remote.address,
        };
        if let Some(pair) = self.pairs.get_mut(&key) {
            if advertised {
                pair.advertised = true;
                pair.remote = remote;
                pair.priority = pair_priority(self.role, pair.local_priority, remote.priority);
            }
            return;
        }
        let Some(known) = self.base(base) else { return };
        let is_ours = |b: &Base| {
            b.address == remote.address || b.reflexive.iter().any(|(a, _)| *a == remote.address)
        };
        // A check of the other side from behind our own router may show our router's address; an
        // advertised one would send to ourselves.
        if advertised && self.bases.iter().any(is_ours) {
            return;
        }
        if advertised && !policy::pairable(known, &remote) {
            return;
        }
        if known.address.is_ipv4() != remote.address.is_ipv4() {
            return;
        }
        let local_priority = candidate_priority(known.host_kind(), known.preference);
        let mut pair = Pair::new(key, known.kind, local_priority, remote, advertised);
        pair.priority = pair_priority(self.role, local_priority, remote.priority);
        let relayed = pair.relay_transport().is_some();
        pair.held = relayed && advertised && !self.permitted.contains(&(base, remote.address.ip()));
        if self.pairs.len() >= MAX_PAIRS && !self.make_room(pair.priority) {
            return;
        }
        self.pairs.insert(key, pair);
    }

    pub(super) fn trigger(&mut self, key: PairKey) {
        if !self.triggered.contains(&key) {
            self.triggered.push_back(key);
        }
    }

    pub(super) fn set_failed(&mut self, key: PairKey, failure: Failure, now: Instant) {
        let jitter = self.jitter();
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        let was_valid = pair.is_valid();
        let withdrawn =
            was_valid && !pair.advertised && self.remotes.iter().any(|r| r.address == key.remote);
        pair.state = PairState::Failed(failure);
        pair.nominated = None;
        pair.nomination_wanted = None;
        pair.forget_liveness();
        pair.cancel_open();
        pair.races = 0;
        if self.nominate == Some(key) {
            self.nominate = None;
        }
        if was_valid {
            self.event(AgentEvent::Lost(key));
        }
        if withdrawn {
            self.remove_pair(key);
            return;
        }
        if self.has_traffic && self.best_failed().contains(&key) {
            // What worked a moment ago is worth an early try.
            let wait = if was_valid { RECHECK / 10 } else { RECHECK };
            if let Some(pair) = self.pairs.get_mut(&key) {
                pair.next_check = Some(now + wait.mul_f64(jitter));
            }
        }
    }

    /// The failed pairs that are tried again, best first.
    pub(super) fn best_failed(&self) -> Vec<PairKey> {
        let failed = |pair: &&Pair| matches!(pair.state, PairState::Failed(_));
        let mut best: Vec<(u64, PairKey)> = self
            .pairs
            .values()
            .filter(failed)
            .map(|pair| (pair.priority, pair.key))
            .collect();
        best.sort_unstable_by(|a, b| b.cmp(a));
        best.truncate(RECHECK_PAIRS);
        best.into_iter().map(|(_, key)| key).collect()
    }

    fn remove_pair(&mut self, key: PairKey) {
        let Some(pair) = self.pairs.remove(&key) else {
            return;
        };
        self.closed.extend(pair.open.iter().map(|t| t.id));
        self.triggered.retain(|triggered| *triggered != key);
        if self.nominate == Some(key) {
            self.nominate = None;
        }
        if pair.is_valid() {
            self.event(AgentEvent::Lost(key));
        }
    }

    /// Makes room for a pair of this priority: the worst one that does not work goes.
    fn make_room(&mut self, priority: u64) -> bool {
        let expendable = self.pairs.values().filter(|pair| !pair.is_valid());
        let worst = expendable.map(|pair| (pair.priority, pair.key)).min();
        match worst {
            Some((lowest, key)) if lowest < priority => {
                self.remove_pair(key);
                true
            }
            Some(_) | None => false,
        }
    }
}

/// How often a valid pair is checked without cause.
pub(super) fn keepalive_interval(used: Use, has_traffic: bool) -> Option<Duration> {
    match (used, has_traffic) {
        (Use::Selected, true) => Some(CONSENT_INTERVAL),
        (Use::Selected, false) | (Use::Standby, _) => Some(IDLE_CHECK),
        (Use::None, _) => None,
    }
}
