//! What an agent sends, one check at a time, whenever its owner's pacing lets it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::CandidateKind;

use super::agent::{Agent, AgentEvent};
use super::pair::{Failure, Pair, PairKey, PairState, Use};
use super::priority::candidate_priority;
use super::transaction::{Purpose, Transaction};
use super::{BaseId, Nomination, Role};
use crate::core::stun::{Check, TransactionId, encode_enclosed};
use crate::core::timing::{IDLE_RC, MAX_PAIRS, RC, RECHECK, RECHECK_RC, RTO_MIN};

/// Probes of the selected path that go unanswered before all others are checked. Under loss that is every 6 s of a one-way
/// flow; with two, relays that died with the path were known half a second too late.
const DOUBT_MISSES: u8 = 1;

/// A check to send.
#[derive(Debug)]
pub struct Outgoing {
    /// What it leaves from.
    pub base: BaseId,
    /// Where it goes.
    pub remote: SocketAddr,
    /// The STUN message.
    pub payload: Vec<u8>,
    /// Its transaction, where this is the first transmission.
    pub opened: Option<TransactionId>,
    /// Whether the pair is known to work: what goes to strangers is budgeted.
    pub to_stranger: bool,
}

/// What a pair wants to have sent.
enum Action {
    Retransmit(usize),
    Start { purpose: Purpose, transmissions: u8 },
    Probe,
}

impl Agent {
    /// When [`Self::poll_check`] has something to send; a time in the past while pairs wait.
    pub fn check_due(&self, now: Instant) -> Option<Instant> {
        self.remote.as_ref()?;
        let waiting = || self.best_waiting().is_some();
        if !self.triggered.is_empty() || self.nominate.is_some() || waiting() {
            return Some(now);
        }
        let rechecked = self.rechecked();
        self.pairs
            .values()
            .filter_map(|pair| self.pair_due(pair, &rechecked))
            .map(|(at, _)| at)
            .min()
    }

    /// Asks to nominate a valid pair; the controlling side's word. Where the mode is
    /// [`Nomination::Once`] a further call does nothing while the nominated pair works.
    pub fn nominate(&mut self, key: PairKey) {
        let nominated =
            |pair: &Pair| pair.is_valid() && (pair.nominated.is_some() || pair.is_nominating());
        let done = self.nomination == Nomination::Once && self.pairs.values().any(nominated);
        let valid = self.pairs.get(&key).is_some_and(Pair::is_valid);
        if self.role == Role::Controlling && valid && !done {
            self.nominate = Some(key);
        }
    }

    /// Whether the nomination of this pair is on its way.
    pub fn is_nominating(&self, key: PairKey) -> bool {
        self.nominate == Some(key) || self.pairs.get(&key).is_some_and(Pair::is_nominating)
    }

    /// Tries the best failed pairs again now, once.
    pub fn recheck(&mut self, now: Instant) {
        for key in self.best_failed() {
            if let Some(pair) = self.pairs.get_mut(&key) {
                pair.next_check = Some(now);
                pair.recheck_asked = true;
            }
        }
    }

    /// The next check, if one is due. `rto` is the first retransmission's delay, at least 500 ms
    /// (RFC 8445 §14.3).
    pub fn poll_check(&mut self, rto: Duration, now: Instant) -> Option<Outgoing> {
        self.remote.as_ref()?;
        let rto = rto.max(RTO_MIN);
        if let Some(key) = self.nominate.take() {
            self.last_nomination += 1;
            for pair in self.pairs.values_mut() {
                pair.settle_nominations();
            }
            let purpose = Purpose::Nominate(self.last_nomination);
            if let Some(check) = self.start(key, purpose, RC, rto, now) {
                return Some(check);
            }
        }
        while let Some(key) = self.triggered.pop_front() {
            if let Some(pair) = self.pairs.get_mut(&key)
                && matches!(pair.state, PairState::Failed(_))
            {
                pair.state = PairState::Waiting;
                pair.next_check = None;
            }
            if let Some(check) = self.start(key, Purpose::Validate, RC, rto, now) {
                return Some(check);
            }
        }
        // An action that sends nothing fails its pair: at most one a pair.
        for _ in 0..MAX_PAIRS {
            let Some((key, action)) = self.next_due(now) else {
                break;
            };
            if let Some(check) = self.act(key, action, rto, now) {
                return Some(check);
            }
        }
        let key = self.best_waiting()?;
        self.start(key, Purpose::Validate, RC, rto, now)
    }

    /// A datagram of the owner's, for the other side's agent: authentic, and in the shape of a check. `None` while the
    /// other side's credentials are not known.
    pub fn enclose(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let id = self.next_id();
        let (_, key) = self.remote.as_ref()?;
        Some(encode_enclosed(id, &self.username, datagram, key))
    }

    /// The best pair that has not been checked: first the best direct, then the best relayed one,
    /// then by priority (RFC 8445 §6.1.4.2 has priority alone).
    fn best_waiting(&self) -> Option<PairKey> {
        let tried = |relayed: bool| {
            let of_class = |pair: &&Pair| (pair.relays() > 0) == relayed;
            self.pairs
                .values()
                .filter(of_class)
                .any(|pair| pair.checks().0 > 0)
        };
        let (direct_tried, relayed_tried) = (tried(false), tried(true));
        let waiting = self.pairs.values().filter(|pair| pair.is_waiting());
        waiting
            .map(|pair| {
                let first_of_class = match pair.relays() {
                    0 if !direct_tried => 2,
                    1 | 2 if !relayed_tried => 1,
                    _ => 0,
                };
                (first_of_class, pair.priority, pair.key)
            })
            .filter(|(first_of_class, _, _)| !self.is_away || *first_of_class > 0)
            .max()
            .map(|(_, _, key)| key)
    }

    fn next_due(&self, now: Instant) -> Option<(PairKey, Action)> {
        let rechecked = self.rechecked();
        let due = self.pairs.values().filter_map(|pair| {
            let (at, action) = self.pair_due(pair, &rechecked)?;
            (at <= now).then_some((at, pair.key, action))
        });
        due.min_by_key(|(at, key, _)| (*at, *key))
            .map(|(_, key, action)| (key, action))
    }

    fn pair_due(&self, pair: &Pair, rechecked: &[PairKey]) -> Option<(Instant, Action)> {
        let retransmit = pair
            .retransmit_due()
            .map(|(at, index)| (at, Action::Retransmit(index)));
        let race = pair.race_due().map(|at| {
            (
                at,
                Action::Start {
                    purpose: Purpose::Validate,
                    transmissions: 1,
                },
            )
        });
        let probe = pair.probe_due().map(|at| (at, Action::Probe));
        let is_periodic = match pair.state {
            PairState::Failed(_) => pair.recheck_asked || rechecked.contains(&pair.key),
            PairState::Waiting | PairState::InProgress | PairState::Succeeded => true,
        };
        let periodic = pair
            .next_check
            .filter(|_| is_periodic)
            .map(|at| (at, self.periodic(pair)));
        [retransmit, race, probe, periodic]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    fn periodic(&self, pair: &Pair) -> Action {
        match (pair.state, pair.used) {
            (PairState::Failed(_), _) => Action::Start {
                purpose: Purpose::Validate,
                transmissions: RECHECK_RC,
            },
            (_, Use::Selected) if self.has_traffic => Action::Start {
                purpose: Purpose::Consent,
                transmissions: 1,
            },
            (_, Use::Standby) if pair.is_on_trial(self.has_traffic) => Action::Start {
                purpose: Purpose::Consent,
                transmissions: 1,
            },
            (_, Use::Selected | Use::Standby | Use::None) => Action::Start {
                purpose: Purpose::Keepalive,
                transmissions: IDLE_RC,
            },
        }
    }

    fn act(
        &mut self,
        key: PairKey,
        action: Action,
        rto: Duration,
        now: Instant,
    ) -> Option<Outgoing> {
        match action {
            Action::Retransmit(index) => {
                let pair = self.pairs.get_mut(&key)?;
                let to_stranger = !pair.is_valid();
                let payload = pair.open.get_mut(index)?.retransmit(now);
                pair.note_sent(now);
                let PairKey { base, remote } = key;
                Some(Outgoing {
                    base,
                    remote,
                    payload,
                    opened: None,
                    to_stranger,
                })
            }
            Action::Start {
                purpose,
                transmissions,
            } => {
                let jitter = self.jitter();
                let has_traffic = self.has_traffic;
                let pair = self.pairs.get_mut(&key)?;
                if pair.is_on_trial(has_traffic) {
                    if pair.unanswered_since.is_some() {
                        pair.note_history(false);
                    }
                    if pair.is_silent() {
                        self.set_failed(key, Failure::Silent, now);
                        return None;
                    }
                }
                let pair = self.pairs.get_mut(&key)?;
                pair.next_check = match pair.state {
                    PairState::Failed(_) => {
                        pair.recheck_asked = false;
                        Some(now + RECHECK.mul_f64(jitter))
                    }
                    PairState::Succeeded => pair
                        .keepalive_interval(has_traffic)
                        .map(|i| now + i.mul_f64(jitter)),
                    PairState::InProgress => {
                        pair.races += 1;
                        None
                    }
                    PairState::Waiting => None,
                };
                self.start(key, purpose, transmissions, rto, now)
            }
            Action::Probe => {
                let pair = self.pairs.get_mut(&key)?;
                if pair.last_probe.is_some() {
                    pair.missed += 1;
                    pair.note_history(false);
                }
                if pair.missed >= pair.patience {
                    self.set_failed(key, Failure::Silent, now);
                    self.fail_doubted(now);
                    return None;
                }
                pair.last_probe = Some(now);
                if pair.missed == DOUBT_MISSES {
                    // Whatever has taken this path may have taken others: which of them are alive is
                    // to be known when it is given up.
                    self.doubt_all_but(Some(key));
                    self.event(AgentEvent::Doubted);
                }
                self.start(key, Purpose::Probe, 1, rto, now)
            }
        }
    }

    fn start(
        &mut self,
        key: PairKey,
        purpose: Purpose,
        transmissions: u8,
        rto: Duration,
        now: Instant,
    ) -> Option<Outgoing> {
        let id = self.next_id();
        let preference = self.base(key.base)?.preference;
        let priority = candidate_priority(CandidateKind::PeerReflexive, preference);
        let (use_candidate, nomination) = match (purpose, self.nomination) {
            (Purpose::Nominate(value), Nomination::Repeated) => (true, Some(value)),
            (Purpose::Nominate(_), Nomination::Once) => (true, None),
            // Every check of the nominated pair repeats its nomination: whatever the other side has
            // forgotten, or sees from a new address, is settled within one check.
            (_, Nomination::Repeated)
                if self.role == Role::Controlling && self.nominated() == Some(key) =>
            {
                (true, self.pairs.get(&key)?.nominated)
            }
            (Purpose::Validate | Purpose::Keepalive | Purpose::Consent | Purpose::Probe, _) => {
                (false, None)
            }
        };
        let role = self.role;
        let check = Check {
            id,
            username: &self.username,
            priority,
            role: self.role_claim(),
            use_candidate,
            nomination,
        };
        let payload = check.encode(&self.remote.as_ref()?.1);
        let kept = if transmissions > 1 {
            payload.clone()
        } else {
            Vec::new()
        };
        let schedule = (transmissions, rto);
        let transaction = Transaction::new(id, purpose, role, schedule, kept, now);
        let pair = self.pairs.get_mut(&key)?;
        let to_stranger = !pair.is_valid();
        if pair.state == PairState::Waiting {
            pair.state = PairState::InProgress;
        }
        let dropped = pair.open(transaction);
        pair.note_started(now);
        if let Some(dropped) = dropped {
            self.close(dropped);
        }
        let PairKey { base, remote } = key;
        Some(Outgoing {
            base,
            remote,
            payload,
            opened: Some(id),
            to_stranger,
        })
    }
}
