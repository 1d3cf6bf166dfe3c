//! What an agent does with checks and answers (RFC 8445 §7.3 and §7.2.5).

use std::net::SocketAddr;
use std::time::Instant;

use wice_signaling::protocol::CandidateKind;

use super::agent::{Agent, AgentEvent, keepalive_interval};
use super::pair::{Failure, PairKey, PairState};
use super::transaction::{Purpose, Transaction};
use super::{BaseId, RemoteCandidate, Role};
use crate::core::stun::{
    BAD_REQUEST, Binding, BindingClass, CheckFields, ROLE_CONFLICT, RoleClaim, encode_error,
    encode_success,
};

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
        let Some((receiver, sender)) = request.username() else {
            return Reply::Ignore;
        };
        let for_us = receiver == self.local.ufrag;
        let from_peer = self
            .remote
            .as_ref()
            .is_none_or(|(remote, _)| remote.ufrag == sender);
        if !for_us || !from_peer || !request.has_fingerprint() {
            return Reply::Ignore;
        }
        if !request.is_authentic(&self.local_key) {
            return Reply::Ignore;
        }
        let Some(fields) = request.check_fields() else {
            return Reply::Send(encode_error(request.id(), BAD_REQUEST, &self.local_key));
        };
        if self.resolve_role(fields.role) == RoleOutcome::Refuse {
            return Reply::Send(encode_error(request.id(), ROLE_CONFLICT, &self.local_key));
        }
        self.learn(base, from, request, &fields);
        Reply::Send(encode_success(request.id(), from, &self.local_key))
    }

    /// An answer from `from` that arrived at `base`. `true` if it ended a transaction of ours.
    pub fn handle_response(
        &mut self,
        base: BaseId,
        from: SocketAddr,
        response: &Binding<'_>,
        now: Instant,
    ) -> bool {
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

    /// The network says that `remote` cannot be reached from `base` (hard ICMP error): fails a pair
    /// that has not worked yet, never one that has (RFC 8445 §7.2.5.2.2).
    pub fn handle_unreachable(&mut self, base: BaseId, remote: SocketAddr, now: Instant) {
        let key = PairKey { base, remote };
        let checking = |state| matches!(state, PairState::InProgress);
        if self
            .pairs
            .get(&key)
            .is_some_and(|pair| checking(pair.state))
        {
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
            // The same address may be advertised but not paired with this base by policy.
            let candidate = RemoteCandidate {
                address: from,
                kind: CandidateKind::PeerReflexive,
                priority: fields.priority,
                relay_transport: None,
            };
            self.add_pair(base, candidate, false);
        }
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        pair.note_received();
        pair.held = false;
        let repeated = pair.last_trigger == Some(request.id());
        pair.last_trigger = Some(request.id());
        let silent = pair.unanswered_since.is_some();
        let state = pair.state;
        if !repeated {
            match state {
                PairState::Succeeded if !silent => {}
                PairState::InProgress => {
                    pair.cancel_open();
                    self.trigger(key);
                }
                PairState::Succeeded | PairState::Waiting | PairState::Failed(_) => {
                    self.trigger(key);
                }
            }
        }
        if fields.use_candidate && self.role == Role::Controlled {
            self.adopt(key, fields.nomination.unwrap_or(0));
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
        let label = self.local_label(key.base, mapped);
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
        let news = pair.mapped != Some(mapped) && label == Label::PeerReflexive;
        pair.mapped = Some(mapped);
        pair.local_kind = match label {
            Label::Known(kind) => kind,
            Label::PeerReflexive => CandidateKind::PeerReflexive,
        };
        if !was_valid || moved {
            pair.next_check =
                keepalive_interval(pair.used, has_traffic).map(|i| now + i.mul_f64(jitter));
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
                self.trigger(key);
            }
            Some(code) => self.set_failed(key, Failure::Refused(code), now),
            None => self.set_failed(key, Failure::Refused(BAD_REQUEST), now),
        }
    }

    fn local_label(&self, base: BaseId, mapped: SocketAddr) -> Label {
        let Some(base) = self.base(base) else {
            return Label::PeerReflexive;
        };
        if base.address == mapped {
            return Label::Known(base.host_kind());
        }
        match base
            .reflexive
            .iter()
            .find(|(address, _)| *address == mapped)
        {
            Some((_, kind)) => Label::Known(*kind),
            // A relay behind a translator of its own stays a relay.
            None if base.host_kind() == CandidateKind::Relayed => {
                Label::Known(CandidateKind::Relayed)
            }
            None => Label::PeerReflexive,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoleOutcome {
    Agree,
    Refuse,
}

/// How the other side sees a base of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Known(CandidateKind),
    PeerReflexive,
}
