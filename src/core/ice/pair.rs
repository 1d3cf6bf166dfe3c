//! A candidate pair: its state, what was measured on it, and when it wants attention.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::{CandidateKind, RelayTransport};

use super::agent::keepalive_interval;
use super::transaction::Transaction;
use super::{BaseId, BaseKind, RemoteCandidate};
use crate::core::stun::TransactionId;
use crate::core::timing::{
    CONSENT_EXPIRY, FAREWELL_MISSES, IDLE_CHECK, LAST_PROBE_WAIT, MAX_OPEN, PROBE_INTERVAL,
    RELAY_RACE, SILENCE, STALL_MISSES, TRIAL_INTERVAL, UNREACHABLE_EVERY, UNREACHABLE_INTERVAL,
    UNREACHABLE_MISSES, UPGRADE_ANSWERED,
};

/// Who says that a pair, or the peer at its end, is gone. What answers stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// Signaling, which has lost its connection to the peer.
    Lost,
    /// Signaling, which the peer itself has told.
    Left,
    /// A router by ICMP, or this machine's kernel.
    Network,
    /// The peer, which no longer advertises its end.
    Advert,
}

/// Names a pair: local candidates other than bases are their base (RFC 8445 §6.1.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairKey {
    /// What it sends from.
    pub base: BaseId,
    /// What it sends to.
    pub remote: SocketAddr,
}

/// RFC 8445 §6.1.2.6, without Frozen: there is one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairState {
    /// Not checked yet.
    Waiting,
    /// A check is on its way.
    InProgress,
    /// A check was answered: the pair works both ways.
    Succeeded,
    /// It does not work, or no longer; tried again while there is traffic.
    Failed(Failure),
}

/// Why a pair has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No check was answered in time.
    NoAnswer,
    /// The answer came from elsewhere, or to elsewhere (RFC 8445 §7.2.5.2.1).
    Asymmetric,
    /// Refused with this STUN error code.
    Refused(u16),
    /// The network said that the destination cannot be reached.
    Unreachable,
    /// The TURN server refuses this peer address (403).
    RelayForbids,
    /// It worked, then fell silent.
    Silent,
    /// Checks were answered, WireGuard's packets were not.
    DataDead,
    /// It worked and was not needed; nothing kept it alive.
    Unused,
}

/// What the owner uses a valid pair for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Carries the peer's data.
    Selected,
    /// Kept alive to take over at once.
    Standby,
    /// Neither.
    None,
}

/// A candidate pair.
#[derive(Debug)]
pub struct Pair {
    pub(super) key: PairKey,
    pub(super) base_kind: BaseKind,
    pub(super) remote: RemoteCandidate,
    /// Whether the other side's advert has the remote candidate.
    pub(super) advertised: bool,
    /// The advert no longer has it, but the pair works: it goes when it ceases to.
    pub(super) withdrawn: bool,
    pub(super) local_kind: CandidateKind,
    pub(super) local_priority: u32,
    pub(super) mapped: Option<SocketAddr>,
    pub(super) priority: u64,
    pub(super) state: PairState,
    /// Waits for the relay's permission: nothing is sent before it (RFC 8445 §7.2.1).
    pub(super) held: bool,
    pub(super) used: Use,
    pub(super) nominated: Option<u32>,
    /// Controlled: USE-CANDIDATE came before the pair was valid.
    pub(super) nomination_wanted: Option<u32>,
    pub(super) open: Vec<Transaction>,
    /// The other side's latest checks: each triggers once, however often it is repeated.
    pub(super) seen: Vec<TransactionId>,
    pub(super) next_check: Option<Instant>,
    pub(super) quiet_since: Option<Instant>,
    pub(super) unanswered_since: Option<Instant>,
    pub(super) last_probe: Option<Instant>,
    pub(super) last_answer: Option<Instant>,
    /// Answered by the other side's present life.
    pub(super) confirmed: bool,
    pub(super) missed: u8,
    /// It, or the peer, is said to have gone: it is probed without waiting for silence.
    suspected: Option<Instant>,
    /// The network or the peer says so, and when that was shown to be wrong last.
    unreachable: bool,
    disbelieved: Option<Instant>,
    /// Missed probes until it is given up.
    pub(super) patience: u8,
    pub(super) races: u8,
    /// To be tried again once, with or without traffic.
    pub(super) recheck_asked: bool,
    /// Role conflicts that it was answered with in a row.
    pub(super) conflicts: u8,
    history: u8,
    history_len: u8,
    checks_sent: u32,
    checks_answered: u32,
    rtt: Option<Duration>,
}

impl Pair {
    pub(super) fn new(
        key: PairKey,
        base_kind: BaseKind,
        local_priority: u32,
        remote: RemoteCandidate,
        advertised: bool,
    ) -> Self {
        let local_kind = match base_kind {
            BaseKind::Host => CandidateKind::Host,
            BaseKind::Relayed(_) => CandidateKind::Relayed,
        };
        Self {
            key,
            base_kind,
            remote,
            advertised,
            withdrawn: false,
            local_kind,
            local_priority,
            mapped: None,
            priority: 0,
            state: PairState::Waiting,
            held: false,
            used: Use::None,
            nominated: None,
            nomination_wanted: None,
            open: Vec::new(),
            seen: Vec::new(),
            next_check: None,
            quiet_since: None,
            unanswered_since: None,
            last_probe: None,
            last_answer: None,
            confirmed: true,
            missed: 0,
            suspected: None,
            unreachable: false,
            disbelieved: None,
            patience: STALL_MISSES,
            races: 0,
            recheck_asked: false,
            conflicts: 0,
            history: 0,
            history_len: 0,
            checks_sent: 0,
            checks_answered: 0,
            rtt: None,
        }
    }

    /// Its name.
    pub fn key(&self) -> PairKey {
        self.key
    }

    /// Where it stands.
    pub fn state(&self) -> PairState {
        self.state
    }

    /// Whether it may carry data now.
    pub fn is_valid(&self) -> bool {
        self.state == PairState::Succeeded
    }

    /// Whether it has been answered since the other side has restarted, if it has.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// RFC 8445 §6.1.2.3, in our present role.
    pub fn priority(&self) -> u64 {
        self.priority
    }

    /// Whether it waits for the relay's permission.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// What our side of it is known as: the base, or how the other side sees it.
    pub fn local_kind(&self) -> CandidateKind {
        self.local_kind
    }

    /// What it sends from.
    pub fn base_kind(&self) -> BaseKind {
        self.base_kind
    }

    /// At which address the other side sees us on this pair, once it has told.
    pub fn mapped(&self) -> Option<SocketAddr> {
        self.mapped
    }

    /// The other side's candidate.
    pub fn remote(&self) -> &RemoteCandidate {
        &self.remote
    }

    /// The transport of the relay on our side, if one is in the path.
    pub fn relay_transport(&self) -> Option<RelayTransport> {
        match self.base_kind {
            BaseKind::Host => None,
            BaseKind::Relayed(transport) => Some(transport),
        }
    }

    /// How many relays the path goes through: 0, 1 or 2.
    pub fn relays(&self) -> u8 {
        u8::from(self.local_kind == CandidateKind::Relayed)
            + u8::from(self.remote.kind == CandidateKind::Relayed)
    }

    /// Smoothed round trip of its checks.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Checks sent (retransmissions not counted) and answered.
    pub fn checks(&self) -> (u32, u32) {
        (self.checks_sent, self.checks_answered)
    }

    /// The NOMINATION it was last nominated with; 0 where the other stack sends none. Means something
    /// while it works.
    pub fn nominated(&self) -> Option<u32> {
        self.nominated
    }

    /// What it is used for.
    pub fn used(&self) -> Use {
        self.used
    }

    /// The priority of our side, as the other side knows it.
    pub fn local_priority(&self) -> u32 {
        self.local_priority
    }

    /// Answered among the last eight checks that have had their time: (answered, of).
    pub fn recent(&self) -> (u32, u32) {
        (self.history.count_ones(), u32::from(self.history_len))
    }

    /// Whether enough of them was answered to trust it with data.
    pub fn holds(&self) -> bool {
        let (answered, of) = self.recent();
        answered * 8 >= UPGRADE_ANSWERED * of
    }

    /// Whether it may be checked for the first time.
    pub(super) fn is_waiting(&self) -> bool {
        self.state == PairState::Waiting && !self.held
    }

    pub(super) fn note_started(&mut self, now: Instant) {
        self.checks_sent = self.checks_sent.saturating_add(1);
        self.note_sent(now);
        self.unanswered_since.get_or_insert(now);
    }

    /// Whether a check of the other side is new, not a repetition.
    pub(super) fn note_seen(&mut self, id: TransactionId) -> bool {
        if self.seen.contains(&id) {
            return false;
        }
        if self.seen.len() == MAX_OPEN {
            self.seen.remove(0);
        }
        self.seen.push(id);
        true
    }

    /// Whether a path that carried data is being probed.
    pub(super) fn is_stalled(&self) -> bool {
        self.last_probe.is_some()
    }

    /// Data left at `at`, or not before. Whether silence begins with it, or earlier than was known.
    pub(super) fn note_sent(&mut self, at: Instant) -> bool {
        let at = self.last_answer.map_or(at, |answered| at.max(answered));
        let begins = self.quiet_since.is_none_or(|since| at < since);
        if begins {
            self.quiet_since = Some(at);
        }
        begins
    }

    pub(super) fn note_received(&mut self) {
        self.quiet_since = None;
    }

    /// It is said to be dead.
    pub(super) fn suspect(&mut self, witness: Witness, now: Instant) {
        match witness {
            Witness::Lost => {}
            Witness::Left => self.patience = self.patience.min(FAREWELL_MISSES),
            Witness::Network | Witness::Advert => {
                let lately = |at: Instant| now < at + UNREACHABLE_EVERY;
                if self.disbelieved.is_some_and(lately) {
                    return;
                }
                self.patience = UNREACHABLE_MISSES;
                self.unreachable = true;
            }
        }
        self.suspected.get_or_insert(now);
    }

    fn trust(&mut self) {
        self.suspected = None;
        self.unreachable = false;
        self.patience = STALL_MISSES;
    }

    pub(super) fn note_answered(&mut self, rtt: Option<Duration>, now: Instant) {
        self.checks_answered = self.checks_answered.saturating_add(1);
        self.note_history(true);
        self.last_answer = Some(now);
        self.confirmed = true;
        self.conflicts = 0;
        if !self.is_older_than_word(rtt, now) {
            self.unanswered_since = None;
            self.quiet_since = None;
            self.last_probe = None;
            self.missed = 0;
            if self.unreachable {
                self.disbelieved = Some(now);
            }
            self.trust();
        }
        if let Some(sample) = rtt {
            // RFC 6298 §2: alpha = 1/8.
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        }
    }

    /// Whether an answer is to a check that went out before it was said that the pair leads nowhere: of that it says
    /// nothing.
    fn is_older_than_word(&self, rtt: Option<Duration>, now: Instant) -> bool {
        let asked = rtt.and_then(|rtt| now.checked_sub(rtt));
        let word = self.suspected.filter(|_| self.unreachable);
        word.is_some_and(|word| asked.is_some_and(|asked| asked < word))
    }

    pub(super) fn forget_nomination(&mut self) {
        self.nominated = None;
        self.nomination_wanted = None;
    }

    pub(super) fn note_history(&mut self, answered: bool) {
        self.history = self.history << 1 | u8::from(answered);
        self.history_len = (self.history_len + 1).min(8);
    }

    pub(super) fn forget_liveness(&mut self) {
        self.quiet_since = None;
        self.unanswered_since = None;
        self.last_probe = None;
        self.missed = 0;
        self.trust();
        self.next_check = None;
    }

    /// It does not work, or no longer. Its nomination waits with it: the other side may not have
    /// noticed, and would not nominate it again.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.state = PairState::Failed(failure);
        self.nomination_wanted = None;
        self.forget_liveness();
        self.cancel_open();
        self.races = 0;
        self.conflicts = 0;
    }

    /// Takes out what has run out: ids, and whether an answer was owed.
    pub(super) fn end_transactions(&mut self, now: Instant) -> Vec<(TransactionId, bool)> {
        let ended = self
            .open
            .extract_if(.., |transaction| transaction.end <= now);
        let ended = ended
            .map(|t| (t.id, !t.settled && t.has_to_succeed()))
            .collect();
        // Most pairs are never checked again.
        if self.open.is_empty() {
            self.open = Vec::new();
        }
        ended
    }

    /// Adds an open transaction. Where there are too many the oldest that is not sent again goes:
    /// its id.
    pub(super) fn open(&mut self, transaction: Transaction) -> Option<TransactionId> {
        let dropped = (self.open.len() >= MAX_OPEN).then(|| {
            let silent = self.open.iter().position(|t| t.next.is_none());
            self.open.remove(silent.unwrap_or(0)).id
        });
        self.open.push(transaction);
        dropped
    }

    /// Stops every retransmission; answers still count.
    pub(super) fn cancel_open(&mut self) {
        for transaction in &mut self.open {
            transaction.cancel();
        }
    }

    /// As [`Self::cancel_open`], after an answer: the others' silence proves nothing any more. A
    /// nomination goes on: the answer to another check does not say that it has arrived.
    pub(super) fn settle_open(&mut self) {
        for transaction in self.open.iter_mut().filter(|t| !t.nominates()) {
            transaction.settle();
        }
    }

    /// Whether a nomination of it is on its way.
    pub(super) fn is_nominating(&self) -> bool {
        self.open.iter().any(|t| t.nominates() && !t.settled)
    }

    /// Ends nominations that a later one replaces.
    pub(super) fn settle_nominations(&mut self) {
        for transaction in self.open.iter_mut().filter(|t| t.nominates()) {
            transaction.settle();
        }
    }

    /// Distance of probes: longer than a round trip, or a slow path would look dead.
    pub(super) fn probe_interval(&self) -> Duration {
        let least = if self.unreachable {
            UNREACHABLE_INTERVAL
        } else {
            PROBE_INTERVAL
        };
        self.rtt
            .map_or(PROBE_INTERVAL, |rtt| least.max(rtt * 3 / 2))
    }

    /// When the next probe is due, for a selected pair that was sent on and is silent.
    pub(super) fn probe_due(&self) -> Option<Instant> {
        if self.used != Use::Selected || !self.is_valid() {
            return None;
        }
        let silence = SILENCE.max(self.probe_interval());
        let silent_since = [self.quiet_since, self.unanswered_since];
        let silent = silent_since.into_iter().flatten().min();
        let suspect = [silent.map(|at| at + silence), self.suspected];
        let suspect = suspect.into_iter().flatten().min()?;
        Some(match self.last_probe {
            Some(last) if self.missed + 1 >= self.patience => {
                let trip = self.rtt.map_or(PROBE_INTERVAL, |rtt| rtt * 3 / 2);
                suspect.max(last + trip.max(LAST_PROBE_WAIT))
            }
            Some(last) => suspect.max(last + self.probe_interval()),
            None => suspect,
        })
    }

    /// How often it is checked without cause, as what it is used for has it.
    pub(super) fn keepalive_interval(&self, has_traffic: bool) -> Option<Duration> {
        if self.is_on_trial(has_traffic) {
            return Some(TRIAL_INTERVAL);
        }
        keepalive_interval(self.used, has_traffic)
    }

    /// Whether it could take over, but for what it has lost.
    pub(super) fn is_on_trial(&self, has_traffic: bool) -> bool {
        has_traffic && self.used == Use::Standby && self.is_valid() && !self.holds()
    }

    /// Whether nothing of late has been answered.
    pub(super) fn is_silent(&self) -> bool {
        self.history_len == 8 && self.history == 0
    }

    /// When the other side's consent lapses: on what carries data, and on what nothing keeps alive.
    /// What is kept for later sends nothing that needs consent (RFC 7675 §5.1); its keepalives tell
    /// whether it works.
    pub(super) fn consent_end(&self, has_traffic: bool) -> Option<Instant> {
        if !self.is_valid() || keepalive_interval(self.used, has_traffic) == Some(IDLE_CHECK) {
            return None;
        }
        self.last_answer.map(|at| at + CONSENT_EXPIRY)
    }

    /// When the check that may have overtaken a permission is repeated.
    pub(super) fn race_due(&self) -> Option<Instant> {
        if self.state != PairState::InProgress || self.relays() == 0 {
            return None;
        }
        let first = self.open.first()?;
        RELAY_RACE
            .get(usize::from(self.races))
            .map(|delay| first.started + *delay)
    }

    /// The earliest retransmission: (when, which of the open transactions).
    pub(super) fn retransmit_due(&self) -> Option<(Instant, usize)> {
        let due = |(index, t): (usize, &Transaction)| Some((t.next?, index));
        self.open.iter().enumerate().filter_map(due).min()
    }

    /// The earliest time at which a transaction ends.
    pub(super) fn end_due(&self) -> Option<Instant> {
        self.open.iter().map(|t| t.end).min()
    }

    /// Whether a check that has to succeed is still answerable.
    pub(super) fn is_pending(&self) -> bool {
        self.open.iter().any(Transaction::has_to_succeed)
    }
}
