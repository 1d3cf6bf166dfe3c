//! Role conflicts (RFC 8445 §7.3.1.1, §7.2.5.1).

use super::net::*;
use crate::core::ice::*;
use crate::core::stun::{
    Binding, Check, ROLE_CONFLICT, RoleClaim, TransactionId, encode_error, integrity_key,
};
use crate::core::timing::MAX_CONFLICTS;

fn with_roles(a: Role, b: Role, seed: u64) -> Net {
    let mut net = Net::pair([a, b], Nomination::Repeated, seed);
    net.host(0, "198.51.100.1:1000", None);
    net.host(1, "198.51.100.2:2000", None);
    net.owners = true;
    net.advertise_all();
    net
}

#[test]
fn all_four_starts_settle_in_two_round_trips_and_stay() {
    for a in [Role::Controlling, Role::Controlled] {
        for b in [Role::Controlling, Role::Controlled] {
            for seed in 0..8 {
                let mut net = with_roles(a, b, seed);
                net.run_ms(2 * 40 + 15);
                let roles = [net.agents[0].role(), net.agents[1].role()];
                assert_ne!(roles[0], roles[1]);
                net.run_ms(200);
                assert!(net.agreed().is_some(), "from {a:?} {b:?}");
                net.run_ms(60_000);
                assert_eq!(roles, [net.agents[0].role(), net.agents[1].role()]);
            }
        }
    }
}

#[test]
fn equal_tie_breakers_settle_too() {
    for role in [Role::Controlling, Role::Controlled] {
        let mut net = with_roles(role, role, 5);
        net.agents[0].tie_breaker = 77;
        net.agents[1].tie_breaker = 77;
        net.run_ms(500);
        assert_ne!(net.agents[0].role(), net.agents[1].role());
        assert!(net.agreed().is_some());
    }
}

#[test]
fn a_late_487_of_a_role_that_was_left_changes_nothing() {
    let mut net = with_roles(Role::Controlling, Role::Controlling, 1);
    net.agents[0].tie_breaker = 1;
    net.agents[1].tie_breaker = 2;
    // The other's check arrives first, then its 487 to ours.
    net.run_ms(25);
    assert_eq!(net.agents[0].role(), Role::Controlled);
    net.run_ms(60);
    assert_eq!(net.agents[0].role(), Role::Controlled);
    assert_eq!(net.agents[0].tie_breaker, 1);
}

#[test]
fn a_peer_that_refuses_every_role_fails_its_pair() {
    let mut net = Net::direct();
    let stranger = at("198.51.100.9:9");
    net.tell(0, &[candidate(CandidateKind::Host, stranger)]);
    let key = integrity_key(&credentials("b").password);
    let mut answered = 0;
    while answered < usize::from(MAX_CONFLICTS) {
        net.run_ms(10);
        assert!(net.sent.len() > answered, "checked again after {answered}");
        let fresh: Vec<Vec<u8>> = net.sent[answered..].iter().map(|s| s.3.clone()).collect();
        for bytes in fresh {
            let request = Binding::parse(&bytes).unwrap();
            let refusal = encode_error(request.id(), ROLE_CONFLICT, &key);
            let refusal = Binding::parse(&refusal).unwrap();
            let now = net.now;
            net.agents[0].handle_response(BaseId(0), stranger, &refusal, now);
            answered += 1;
        }
    }
    let refused = PairState::Failed(Failure::Refused(ROLE_CONFLICT));
    assert_eq!(net.only(0).state(), refused);
}

#[test]
fn a_role_switch_counts_nominations_from_the_start() {
    let mut net = Net::connected();
    let key = net.only(0).key();
    for _ in 0..4 {
        net.agents[0].nominate(key);
        net.run_ms(100);
    }
    assert!(net.agents[0].last_nomination > 3);
    // A controlling peer with a greater tie-breaker takes over; its first value must count.
    let claim = check(&net, RoleClaim::Controlling(u64::MAX), Some(1), 1);
    net.send(1, BaseId(1), at("198.51.100.1:1000"), claim);
    net.run_ms(30);
    assert_eq!(net.agents[0].role(), Role::Controlled);
    assert_eq!(net.only(0).nominated(), Some(1));
}

#[test]
fn roles_switch_only_by_authentic_checks() {
    let mut net = with_roles(Role::Controlling, Role::Controlled, 1);
    let forged = Check {
        id: TransactionId::from(9),
        username: "afrag:bfrag",
        priority: 1,
        role: RoleClaim::Controlling(u64::MAX),
        use_candidate: false,
        nomination: None,
    };
    let forged = forged.encode(&integrity_key("not the password at all"));
    net.send(1, BaseId(1), at("198.51.100.1:1000"), forged);
    net.run_ms(100);
    assert_eq!(net.agents[0].role(), Role::Controlling);
}

/// A check from agent 1 to agent 0 as the network would see it.
fn check(net: &Net, role: RoleClaim, nomination: Option<u32>, id: u128) -> Vec<u8> {
    let credentials = net.agents[0].local_credentials();
    Check {
        id: TransactionId::from(id),
        username: "afrag:bfrag",
        priority: candidate_priority(CandidateKind::PeerReflexive, 65535),
        role,
        use_candidate: nomination.is_some(),
        nomination,
    }
    .encode(&integrity_key(&credentials.password))
}
