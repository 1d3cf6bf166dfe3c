//! Why one pair does not carry the data.

use wice_signaling::protocol::{CandidateKind, Mapping};

use super::{Facts, is_dependent, shares_address};
use crate::core::ice::{Failure, PairState, Use};
use crate::core::node::PairView;
use crate::core::policy::is_private;

/// In a few words why `pair` of the peer does not carry its data; `None` if it does.
pub fn why_not(facts: &Facts<'_>, pair: &PairView) -> Option<String> {
    let text = match pair.state {
        PairState::Succeeded => match pair.used {
            Use::Selected => return None,
            Use::Standby => "works; stands by",
            Use::None => "works; a better one is in use",
        },
        PairState::Waiting if pair.held => "waits for the relay to let the peer in",
        PairState::Waiting => "not checked yet",
        PairState::InProgress => "no answer yet",
        PairState::Failed(failure) => return Some(failed(facts, pair, failure)),
    };
    Some(text.to_owned())
}

fn failed(facts: &Facts<'_>, pair: &PairView, failure: Failure) -> String {
    match failure {
        Failure::NoAnswer => no_answer(facts, pair).to_owned(),
        Failure::Asymmetric => "answered from another address than was asked".to_owned(),
        Failure::Refused(code) => format!("refused by the peer with STUN error {code}"),
        Failure::Unreachable => "the network says that there is no way to it".to_owned(),
        Failure::RelayForbids => "the relay forbids this address (403)".to_owned(),
        Failure::Silent => "worked, then fell silent".to_owned(),
        Failure::DataDead => "checks are answered, WireGuard is not".to_owned(),
        Failure::Unused => "worked, was not needed, was let go".to_owned(),
    }
}

fn no_answer(facts: &Facts<'_>, pair: &PairView) -> &'static str {
    let here = facts.node.nat;
    let there = facts.peer.nat.unwrap_or_default();
    if pair.relays > 0 {
        return "no answer through the relay";
    }
    if here.mapping == Mapping::Blocked {
        return "no answer: UDP is blocked here";
    }
    if there.mapping == Mapping::Blocked {
        return "no answer: UDP is blocked there";
    }
    match pair.remote_kind {
        CandidateKind::Host if is_private(pair.remote.ip()) => {
            "no route answers: private network there"
        }
        CandidateKind::Host => "no answer: a firewall there, or no route",
        CandidateKind::ServerReflexive | CandidateKind::PeerReflexive => {
            if shares_address(facts) {
                "no answer: one NAT in front of both does not turn traffic around"
            } else if is_dependent(here) {
                "no answer: its NAT expects another port of ours"
            } else if is_dependent(there) {
                "no answer: its NAT uses another port towards us"
            } else {
                "no answer: filtered on the way"
            }
        }
        CandidateKind::Mapped => "no answer: its router does not forward the mapped port",
        CandidateKind::Relayed => "no answer through its relay",
    }
}
