//! The agent's state: bases and candidates in, pairs kept, timeouts, events out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::pair::{Failure, Pair, PairKey, PairState, Use, Witness};
use super::priority::pair_priority;
use super::restart::OtherSide;
use super::{Base, BaseId, Credentials, Nomination, RemoteCandidate, Role};
use crate::core::stun::{IntegrityKey, RoleClaim, TransactionId, integrity_key};
use crate::core::timing::{
    CONSENT_INTERVAL, IDLE_CHECK, MAX_OPEN, MAX_PAIRS, RECHECK, RECHECK_PAIRS, RECHECK_SOON,
};

/// The most events that wait to be polled; past them the oldest goes, its effect being visible in
/// the pairs all the same.
const MAX_EVENTS: usize = 4 * MAX_PAIRS;
/// The most ended transactions that wait to be drained: all that can be open at once.
const MAX_CLOSED: usize = MAX_OPEN * MAX_PAIRS;

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
    /// The selected pair has not answered a probe.
    Doubted,
    /// The other side's process has started anew under the same session.
    Restarted,
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
    pub(super) bases: Vec<Base>,
    pub(super) remotes: Vec<RemoteCandidate>,
    pub(super) pairs: BTreeMap<PairKey, Pair>,
    pub(super) triggered: VecDeque<PairKey>,
    pub(super) permitted: BTreeSet<(BaseId, IpAddr)>,
    pub(super) other_side: OtherSide,
    /// Whether the owner has traffic for this peer: failed pairs are then tried again.
    pub(super) has_traffic: bool,
    /// The owner has heard that the peer is away.
    pub(super) is_away: bool,
    rng: ChaCha12Rng,
    events: VecDeque<AgentEvent>,
    closed: VecDeque<TransactionId>,
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
            other_side: OtherSide::default(),
            has_traffic: false,
            is_away: false,
            rng,
            events: VecDeque::new(),
            closed: VecDeque::new(),
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
        if pair.is_valid() {
            pair.forget_liveness();
            pair.next_check = pair
                .keepalive_interval(has_traffic)
                .map(|i| now + i.mul_f64(jitter));
        }
    }

    /// Whether there is traffic for the peer: with it paths are watched closely and failed pairs
    /// tried again. A path that was idle is checked at once.
    pub fn set_traffic(&mut self, has_traffic: bool, now: Instant) {
        if self.has_traffic == has_traffic {
            return;
        }
        self.has_traffic = has_traffic;
        let jitter = self.jitter();
        for pair in self.pairs.values_mut().filter(|pair| pair.is_valid()) {
            let due = match (pair.used, has_traffic) {
                (Use::Selected, true) => Some(now),
                (Use::Selected | Use::Standby | Use::None, _) => {
                    let interval = pair.keepalive_interval(has_traffic);
                    interval.map(|i| now + i.mul_f64(jitter))
                }
            };
            pair.next_check = match (pair.next_check, due) {
                (Some(set), Some(due)) => Some(set.min(due)),
                (_, due) => due,
            };
        }
    }

    /// Whether the peer is said to be away: then only the best direct and the best relayed pair are
    /// checked for the first time, and failed ones by [`Self::recheck`] alone.
    pub fn set_away(&mut self, is_away: bool) {
        self.is_away = is_away;
    }

    /// The selected pair is said to be dead: it is probed now, as if it had been silent. If `towards` is
    /// given, only if it leads there.
    pub fn suspect(&mut self, witness: Witness, towards: Option<SocketAddr>, now: Instant) {
        for pair in self.pairs.values_mut() {
            let is_there = towards.is_none_or(|remote| pair.key.remote == remote);
            if pair.used == Use::Selected && pair.is_valid() && is_there {
                pair.suspect(witness, now);
            }
        }
    }

    /// A selected pair whose other end the peer no longer advertises is probed now: it may work, but the peer does
    /// not think so.
    pub fn suspect_withdrawn(&mut self, now: Instant) {
        for pair in self.pairs.values_mut() {
            if pair.used == Use::Selected && pair.is_valid() && pair.withdrawn {
                pair.suspect(Witness::Advert, now);
            }
        }
    }

    /// The selected pair is checked now rather than when its consent is due.
    pub fn check_selected(&mut self, now: Instant) {
        let selected = |pair: &&mut Pair| pair.used == Use::Selected && pair.is_valid();
        for pair in self.pairs.values_mut().filter(selected) {
            pair.next_check = Some(now);
        }
    }

    /// Data left on this pair. Where silence begins with it, when the first probe is due if nothing comes.
    pub fn note_sent(&mut self, key: PairKey, now: Instant) -> Option<Instant> {
        let pair = self.pairs.get_mut(&key)?;
        let begins = pair.note_sent(now);
        pair.probe_due().filter(|_| begins)
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
                let ended = pair.end_transactions(now);
                let unanswered = ended.iter().any(|(_, had_to_succeed)| *had_to_succeed);
                for (id, _) in ended {
                    self.close(id);
                }
                let Some(pair) = self.pairs.get_mut(&key) else {
                    continue;
                };
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
            let Some(pair) = self.pairs.get(&key) else {
                continue;
            };
            if pair
                .consent_end(self.has_traffic)
                .is_some_and(|end| end <= now)
            {
                let failure = match pair.used {
                    Use::Selected | Use::Standby => Failure::Silent,
                    Use::None => Failure::Unused,
                };
                self.set_failed(key, failure, now);
            }
        }
        let forgotten = |pair: &&Pair| self.forget_due(pair).is_some_and(|at| at <= now);
        let forgotten: Vec<PairKey> = self
            .pairs
            .values()
            .filter(forgotten)
            .map(Pair::key)
            .collect();
        for key in forgotten {
            self.remove_pair(key);
        }
    }

    /// When [`Self::handle_timeout`] has something to do. Sending is asked for by
    /// [`Self::check_due`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let dues = |pair: &Pair| {
            [
                pair.end_due(),
                pair.consent_end(self.has_traffic),
                self.forget_due(pair),
            ]
        };
        self.pairs.values().flat_map(dues).flatten().min()
    }

    pub(super) fn close(&mut self, id: TransactionId) {
        if self.closed.len() == MAX_CLOSED {
            self.closed.pop_front();
        }
        self.closed.push_back(id);
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

    /// Nominations of the old role rank below every one of the new: each side counts its own.
    pub(super) fn switch_role(&mut self, role: Role) {
        self.role = role;
        self.nominate = None;
        self.last_nomination = 0;
        for pair in self.pairs.values_mut() {
            pair.nominated = pair.nominated.map(|_| 0);
            pair.nomination_wanted = None;
            pair.priority = pair_priority(role, pair.local_priority, pair.remote.priority);
        }
    }

    pub(super) fn new_tie_breaker(&mut self) {
        self.tie_breaker = self.rng.next_u64();
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
        // What worked a moment ago is worth an early try.
        let wait = if was_valid && failure != Failure::Unused {
            RECHECK_SOON
        } else {
            RECHECK
        };
        pair.fail(failure);
        pair.next_check = Some(now + wait.mul_f64(jitter));
        let withdrawn = pair.withdrawn;
        if self.nominate == Some(key) {
            self.nominate = None;
        }
        if was_valid {
            self.event(AgentEvent::Lost(key));
        }
        if withdrawn {
            self.remove_pair(key);
        }
        self.nominate_what_is_left();
    }

    /// The pair of the latest nomination is gone, an earlier one is nominated again with a new
    /// value: the other side may have adopted the latest, and would ignore the earlier.
    pub(super) fn nominate_what_is_left(&mut self) {
        let ours = self.role == Role::Controlling && self.nomination == Nomination::Repeated;
        if !ours || self.nominate.is_some() {
            return;
        }
        let Some(left) = self.nominated().and_then(|key| self.pairs.get(&key)) else {
            return;
        };
        let nominating = |pair: &Pair| pair.is_valid() && pair.is_nominating();
        if left.nominated < Some(self.last_nomination) && !self.pairs.values().any(nominating) {
            self.nominate = Some(left.key);
        }
    }

    /// When a failed pair is forgotten: one that no advert names, but for the last that worked.
    fn forget_due(&self, pair: &Pair) -> Option<Instant> {
        let failed = matches!(pair.state, PairState::Failed(_)) && !pair.advertised;
        let kept = || self.last_learned() == Some(pair.key) || self.triggered.contains(&pair.key);
        pair.next_check.filter(|_| failed && !kept())
    }

    /// The failed pair that worked last among those that no advert names.
    fn last_learned(&self) -> Option<PairKey> {
        let learned = |pair: &&Pair| matches!(pair.state, PairState::Failed(_)) && !pair.advertised;
        let failed = self.pairs.values().filter(learned);
        failed
            .filter_map(|pair| Some((pair.last_answer?, pair.key)))
            .max()
            .map(|(_, key)| key)
    }

    /// The failed pairs that are tried again now and then: none without traffic.
    pub(super) fn rechecked(&self) -> Vec<PairKey> {
        if self.has_traffic && !self.is_away {
            self.best_failed()
        } else {
            Vec::new()
        }
    }

    /// The failed pairs that are worth another try: what has worked last among the addresses that no
    /// advert names, the relayed one that has worked last or is the best (there may be more direct
    /// ones than are tried, none of which can work), then the best advertised ones.
    pub(super) fn best_failed(&self) -> Vec<PairKey> {
        let last_learned = self.last_learned();
        let mut failed: Vec<&Pair> = self
            .pairs
            .values()
            .filter(|pair| matches!(pair.state, PairState::Failed(_)))
            .filter(|pair| pair.advertised || last_learned == Some(pair.key))
            .collect();
        let relayed = failed
            .iter()
            .filter(|pair| pair.advertised && pair.relays() > 0);
        let relayed = relayed.max_by_key(|pair| (pair.last_answer, pair.priority, pair.key));
        let relayed = relayed.map(|pair| pair.key);
        failed.sort_unstable_by_key(|pair| {
            let first = !pair.advertised || relayed == Some(pair.key);
            std::cmp::Reverse((first, pair.priority, pair.key))
        });
        failed.truncate(RECHECK_PAIRS);
        failed.into_iter().map(|pair| pair.key).collect()
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
