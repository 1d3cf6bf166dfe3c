//! What an agent does with checks and answers (RFC 8445 §7.3 and §7.2.5).

use std::net::SocketAddr;
use std::time::Instant;

use wice_signaling::protocol::CandidateKind;

use super::agent::{Agent, AgentEvent};
use super::candidates::{Origin, canonical};
use super::pair::{Failure, Pair, PairKey, PairState, Use};
use super::transaction::{Purpose, Transaction};
use super::{BaseId, RemoteCandidate, Role};
use crate::core::policy;
use crate::core::stun::{
    BAD_REQUEST, Binding, BindingClass, CheckFields, ROLE_CONFLICT, RoleClaim, TransactionId,
    encode_error, encode_success,
};
use crate::core::timing::MAX_CONFLICTS;

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is authentic: send these bytes back the way it came, at once.
    Send(Vec<u8>),
    /// It is not for us or not authentic: no reply, nothing changed.
    Ignore,
}

impl Agent {
    /// A check from `from` that arrived at `base`.
    pub fn handle_request(
        &mut self,
        base: BaseId,
        from: SocketAddr,
        request: &Binding<'_>,
    ) -> Reply {
        let from = canonical(from);
        // A check through the overlay would make a path that carries itself.
        if !policy::is_candidate_address(from.ip()) {
            return Reply::Ignore;
        }
        if !self.is_from_other_side(request) {
            return Reply::Ignore;
        }
        let Some(fields) = request.check_fields() else {
            return Reply::Send(encode_error(request.id(), BAD_REQUEST, &self.local_key));
        };
        if self.resolve_role(fields.role) == RoleOutcome::Refuse {
            return Reply::Send(encode_error(request.id(), ROLE_CONFLICT, &self.local_key));
        }
        let speaks_now = self.hear_claim(fields.role);
        self.learn(base, from, request, &fields);
        if speaks_now && fields.use_candidate && self.role == Role::Controlled {
            let key = PairKey { base, remote: from };
            self.adopt(key, fields.nomination.unwrap_or(0));
        }
        Reply::Send(encode_success(request.id(), from, &self.local_key))
    }

    /// Whether a request or an indication is for us, and the other side's. Costs an HMAC where it says so.
    pub fn is_from_other_side(&self, message: &Binding<'_>) -> bool {
        let Some((receiver, sender)) = message.username() else {
            return false;
        };
        let for_us = receiver == self.local.ufrag;
        let from_peer = self
            .remote
            .as_ref()
            .is_none_or(|(remote, _)| remote.ufrag == sender);
        for_us && from_peer && message.has_fingerprint() && message.is_authentic(&self.local_key)
    }

    /// An answer from `from` that arrived at `base`. `true` if it ended a transaction of ours.
    pub fn handle_response(
        &mut self,
        base: BaseId,
        from: SocketAddr,
        response: &Binding<'_>,
        now: Instant,
    ) -> bool {
        match response.class() {
            BindingClass::Success | BindingClass::Error => {}
            BindingClass::Request | BindingClass::Indication => return false,
        }
        let from = canonical(from);
        let id = response.id();
        let found = self.pairs.values().find_map(|pair| {
            let index = pair
                .open
                .iter()
                .position(|transaction| transaction.id == id)?;
            Some((pair.key, index))
        });
        let Some((key, index)) = found else {
            return false;
        };
        let authentic = self
            .remote
            .as_ref()
            .is_some_and(|(_, remote_key)| response.is_authentic(remote_key));
        if !authentic {
            return false;
        }
        let symmetric = PairKey { base, remote: from } == key;
        let Some(pair) = self.pairs.get_mut(&key) else {
            return false;
        };
        if !symmetric && pair.is_valid() {
            // On a pair that works it only counts as unanswered.
            return false;
        }
        let transaction = pair.open.remove(index);
        self.close(id);
        if !symmetric {
            self.set_failed(key, Failure::Asymmetric, now);
            return true;
        }
        match response.class() {
            BindingClass::Success => match response.mapped_address() {
                Some(mapped) => self.succeed(key, &transaction, mapped, now),
                None => self.set_failed(key, Failure::Refused(BAD_REQUEST), now),
            },
            BindingClass::Error => self.refused(key, &transaction, response.error_code(), now),
            BindingClass::Request | BindingClass::Indication => {}
        }
        true
    }

    /// The network says that what it quotes, the check with this id, cannot be delivered (hard ICMP
    /// error): fails a pair that has not worked yet, never one that has (RFC 8445 §7.2.5.2.2). The
    /// id is what a forger who is not on the path does not know.
    pub fn handle_unreachable(&mut self, quoted: TransactionId, now: Instant) {
        let quotes = |pair: &&Pair| pair.open.iter().any(|t| t.id == quoted);
        let Some(pair) = self.pairs.values().find(quotes) else {
            return;
        };
        let key = pair.key;
        if pair.state == PairState::InProgress {
            self.set_failed(key, Failure::Unreachable, now);
        }
    }

    /// RFC 8445 §7.3.1.1.
    fn resolve_role(&mut self, claim: RoleClaim) -> RoleOutcome {
        match (self.role, claim) {
            (Role::Controlling, RoleClaim::Controlled(_))
            | (Role::Controlled, RoleClaim::Controlling(_)) => RoleOutcome::Agree,
            (Role::Controlling, RoleClaim::Controlling(theirs)) => {
                if self.tie_breaker >= theirs {
                    return RoleOutcome::Refuse;
                }
                self.switch_role(Role::Controlled);
                RoleOutcome::Agree
            }
            (Role::Controlled, RoleClaim::Controlled(theirs)) => {
                if self.tie_breaker < theirs {
                    return RoleOutcome::Refuse;
                }
                self.switch_role(Role::Controlling);
                RoleOutcome::Agree
            }
        }
    }

    /// RFC 8445 §7.3.1.3 to §7.3.1.5.
    fn learn(
        &mut self,
        base: BaseId,
        from: SocketAddr,
        request: &Binding<'_>,
        fields: &CheckFields,
    ) {
        let key = PairKey { base, remote: from };
        if !self.pairs.contains_key(&key) {
            // An advertised address that policy does not pair with this base is no stranger.
            let candidate = self.remote(from).unwrap_or(RemoteCandidate {
                address: from,
                kind: CandidateKind::PeerReflexive,
                priority: fields.priority,
                relay_transport: None,
            });
            self.add_pair(base, candidate, Origin::Check);
        }
        let has_valid = self.pairs.values().any(Pair::is_valid);
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        pair.note_received();
        pair.held = false;
        if pair.note_seen(request.id()) {
            match pair.state {
                PairState::Succeeded if !pair.is_stalled() => {}
                // The other side keeps standing by what this side has no need of.
                PairState::Failed(Failure::Unused) if has_valid && !fields.use_candidate => {}
                PairState::InProgress => {
                    pair.cancel_open();
                    self.trigger(key);
                }
                PairState::Succeeded | PairState::Waiting | PairState::Failed(_) => {
                    self.trigger(key);
                }
            }
        }
    }

    /// The controlling side wants this pair: the greatest NOMINATION wins, an older one is answered
    /// and otherwise ignored.
    fn adopt(&mut self, key: PairKey, value: u32) {
        if value < self.last_nomination {
            return;
        }
        self.last_nomination = value;
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        if pair.is_valid() {
            let news = pair.nominated != Some(value);
            pair.nominated = Some(value);
            if news {
                self.event(AgentEvent::Nominated(key));
            }
        } else {
            pair.nomination_wanted = Some(value);
        }
    }

    fn succeed(
        &mut self,
        key: PairKey,
        transaction: &Transaction,
        mapped: SocketAddr,
        now: Instant,
    ) {
        let (has_traffic, jitter) = (self.has_traffic, self.jitter());
        let role = self.role;
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        let was_valid = pair.is_valid();
        let rtt = transaction
            .measures_rtt()
            .then(|| now.duration_since(transaction.started));
        pair.state = PairState::Succeeded;
        pair.note_answered(rtt, now);
        pair.settle_open();
        let moved = pair.mapped.is_some_and(|before| before != mapped);
        // Behind a rebound translator our pair is the same, but the other side has a new one, which
        // nobody has nominated.
        let nominate_anew = moved && role == Role::Controlling && pair.nominated.is_some();
        let seen_anew = pair.mapped != Some(mapped);
        pair.mapped = Some(mapped);
        // Whatever was answered renews consent.
        if !was_valid || moved || pair.used == Use::Selected {
            pair.next_check = pair
                .keepalive_interval(has_traffic)
                .map(|i| now + i.mul_f64(jitter));
        }
        let nominated = match (role, transaction.purpose) {
            (Role::Controlling, Purpose::Nominate(value)) => Some(value),
            (Role::Controlled, _) => pair.nomination_wanted.take(),
            (Role::Controlling, _) => None,
        };
        let newly = nominated.is_some() && pair.nominated != nominated;
        if newly {
            pair.nominated = nominated;
        }
        let newly = newly || !was_valid && pair.nominated.is_some();
        if nominate_anew {
            self.nominate = Some(key);
        }
        self.label(key);
        let reflexive = |pair: &Pair| pair.local_kind == CandidateKind::PeerReflexive;
        let news = seen_anew && self.pairs.get(&key).is_some_and(reflexive);
        if !was_valid {
            self.event(AgentEvent::Validated(key));
        }
        if newly {
            self.event(AgentEvent::Nominated(key));
        }
        if news {
            self.event(AgentEvent::Reflexive {
                base: key.base,
                mapped,
            });
        }
    }

    fn refused(
        &mut self,
        key: PairKey,
        transaction: &Transaction,
        code: Option<u16>,
        now: Instant,
    ) {
        match code {
            Some(ROLE_CONFLICT) => {
                // A 487 to a check of a role that we have left already changes nothing (§7.2.5.1).
                if transaction.role == self.role {
                    self.switch_role(self.role.opposite());
                    self.new_tie_breaker();
                }
                let Some(pair) = self.pairs.get_mut(&key) else {
                    return;
                };
                pair.conflicts += 1;
                if pair.conflicts < MAX_CONFLICTS {
                    self.trigger(key);
                } else {
                    self.set_failed(key, Failure::Refused(ROLE_CONFLICT), now);
                }
            }
            Some(code) => self.set_failed(key, Failure::Refused(code), now),
            None => self.set_failed(key, Failure::Refused(BAD_REQUEST), now),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoleOutcome {
    Agree,
    Refuse,
}
