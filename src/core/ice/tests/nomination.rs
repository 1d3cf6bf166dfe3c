//! Who carries data: nominations, lost, late, repeated, of other stacks.

use std::time::Duration;

use super::net::*;
use crate::core::ice::*;
use crate::core::stun::{Check, RoleClaim, TransactionId, integrity_key};

/// Two bases on the controlling side, one on the other: two pairs, both valid.
fn two_pairs(nomination: Nomination) -> (Net, [PairKey; 2]) {
    let mut net = Net::pair([Role::Controlling, Role::Controlled], nomination, 4);
    net.host(0, "198.51.100.1:1000", None);
    net.host(0, "198.51.100.3:1000", None);
    net.host(1, "198.51.100.2:2000", None);
    let mut candidates = net.candidates(0);
    candidates[1].priority -= 1000;
    net.tell(1, &candidates);
    net.advertise(1);
    net.run_ms(300);
    let keys: Vec<PairKey> = net.agents[0].pairs().map(Pair::key).collect();
    assert!(
        net.agents
            .iter()
            .all(|agent| agent.pairs().all(Pair::is_valid))
    );
    (net, [keys[0], keys[1]])
}

#[test]
fn the_newest_nomination_wins_whatever_the_priorities() {
    let (mut net, [high, low]) = two_pairs(Nomination::Repeated);
    for key in [high, low, high, low] {
        net.agents[0].nominate(key);
        net.run_ms(100);
        assert_eq!(net.agreed().map(|keys| keys[0]), Some(key));
    }
}

#[test]
fn an_older_nomination_is_answered_and_ignored() {
    let (mut net, [high, low]) = two_pairs(Nomination::Repeated);
    net.agents[0].nominate(high);
    net.run_ms(100);
    let old = net.sent.iter().rposition(|sent| sent.1 == 0).unwrap();
    let old = net.sent[old].3.clone();
    net.agents[0].nominate(low);
    net.run_ms(100);
    let before = net.agreed();
    net.send(0, high.base, high.remote, old);
    net.run_ms(100);
    assert_eq!(net.agreed(), before);
}

#[test]
fn success_is_adoption() {
    // Whatever state the pair is in when USE-CANDIDATE comes: once both are at rest, they agree.
    for lost_until in [0, 30, 100, 600, 2000] {
        let mut net = Net::direct();
        net.owners = true;
        net.advertise_all();
        net.block("198.51.100.2:2000", "198.51.100.1:1000");
        net.run_ms(lost_until);
        net.routes.clear();
        net.run(Duration::from_secs(10));
        assert!(net.agreed().is_some(), "lost for {lost_until} ms");
    }
}

#[test]
fn a_lost_nomination_goes_on_although_other_checks_are_answered() {
    let mut net = Net::direct();
    net.advertise_all();
    net.traffic(true);
    net.run_ms(100);
    let key = net.only(0).key();
    net.loss = 1.0;
    net.agents[0].nominate(key);
    net.run_ms(10);
    net.loss = 0.0;
    // A consent check that is answered at once.
    let now = net.now;
    net.agents[0].set_use(key, Use::Selected, now);
    net.agents[0].pairs.get_mut(&key).unwrap().next_check = Some(now);
    net.run_ms(1000);
    assert!(net.agreed().is_some());
}

#[test]
fn a_nomination_that_comes_before_the_pair_is_valid_takes_effect_with_it() {
    let mut net = Net::direct();
    net.tell(
        1,
        &[candidate(CandidateKind::Host, at("198.51.100.1:1000"))],
    );
    net.block("198.51.100.1:1000", "198.51.100.2:2000");
    let check = use_candidate(&net, 0, 1, None, 7);
    net.send(0, BaseId(0), at("198.51.100.2:2000"), check);
    net.routes.clear();
    let check = use_candidate(&net, 0, 1, None, 8);
    net.send(0, BaseId(0), at("198.51.100.2:2000"), check);
    net.run_ms(22);
    assert!(!net.only(1).is_valid());
    assert_eq!(net.agents[1].nominated(), None);
    net.run_ms(45);
    assert_eq!(net.agents[1].nominated(), Some(net.only(1).key()));
    assert!(net.has(1, AgentEvent::Nominated(net.only(1).key())));
}

#[test]
fn of_several_without_a_value_the_highest_priority_wins() {
    let (mut net, keys) = two_pairs(Nomination::Once);
    for (order, id) in [([0, 1], 10), ([1, 0], 20)] {
        for (index, id) in order.into_iter().zip(id..) {
            let check = use_candidate(&net, 0, 1, None, id);
            net.send(0, keys[index].base, keys[index].remote, check);
            net.run_ms(50);
        }
        let chosen = net.agents[1].nominated().unwrap();
        assert_eq!(chosen.remote, at("198.51.100.1:1000"));
    }
}

#[test]
fn towards_others_there_is_one_nomination_while_it_works() {
    let (mut net, [high, low]) = two_pairs(Nomination::Once);
    net.agents[0].nominate(low);
    net.run_ms(100);
    net.agents[0].nominate(high);
    net.run_ms(100);
    assert_eq!(net.agents[0].nominated(), Some(low));
    assert_eq!(net.agreed().map(|keys| keys[0]), Some(low));
    net.agents[0].remove_base(low.base);
    net.agents[0].nominate(high);
    net.run_ms(100);
    assert_eq!(
        net.agents[0].nominated(),
        Some(high),
        "after its death another"
    );
}

#[test]
fn inbound_never_selects_for_the_controlling_side() {
    let (mut net, [high, low]) = two_pairs(Nomination::Repeated);
    net.agents[0].nominate(high);
    net.run_ms(100);
    // An authentic check of the controlled side, on the other pair, even with USE-CANDIDATE.
    let check = Check {
        id: TransactionId::from(99),
        username: "afrag:bfrag",
        priority: 1,
        role: RoleClaim::Controlled(1),
        use_candidate: true,
        nomination: Some(1000),
    };
    let password = &net.agents[0].local_credentials().password;
    let bytes = check.encode(&integrity_key(password));
    let from = net.agents[1].bases()[0].id;
    net.send(1, from, at("198.51.100.3:1000"), bytes);
    net.run_ms(100);
    assert_eq!(net.agents[0].nominated(), Some(high));
    assert_ne!(high, low);
}

#[test]
fn a_nomination_follows_its_check_although_the_mapped_address_is_new() {
    let roles = [Role::Controlling, Role::Controlled];
    let mut net = Net::pair(roles, Nomination::Repeated, 2);
    let home = net.nat(
        "203.0.113.1",
        Depends::AddressAndPort,
        Depends::AddressAndPort,
    );
    net.host(0, "10.0.0.2:1000", Some(home));
    net.host(1, "198.51.100.2:2000", None);
    net.advertise_all();
    net.run_ms(100);
    let key = net.only(0).key();
    assert_eq!(net.only(0).local_kind(), CandidateKind::PeerReflexive);
    net.agents[0].nominate(key);
    net.run_ms(100);
    assert_eq!(net.agreed().map(|keys| keys[0]), Some(key));
    let mapped = net.only(0).mapped().unwrap();
    let seen = AgentEvent::Reflexive {
        base: key.base,
        mapped,
    };
    assert!(net.has(0, seen), "it can be advertised now");
}

#[test]
fn a_nomination_waits_with_a_pair_that_fails_on_one_side_only() {
    let mut net = Net::connected();
    let key = net.only(1).key();
    let now = net.now;
    net.agents[1].fail(key, Failure::DataDead, now);
    assert_eq!(net.agents[1].nominated(), None);
    // Its recheck comes before the other side's next check, which would nominate it again.
    let sent = net.sent.iter().filter(|sent| sent.1 == 0).count();
    net.run_until(Duration::from_secs(3), |net| net.only(1).is_valid());
    assert_eq!(net.sent.iter().filter(|sent| sent.1 == 0).count(), sent);
    assert_eq!(net.agents[1].nominated(), Some(key));
}

#[test]
fn a_nomination_is_repeated_by_every_check_of_its_pair() {
    let mut net = Net::connected();
    let key = net.only(1).key();
    let pair = net.agents[1].pairs.get_mut(&key).unwrap();
    pair.nominated = None;
    net.run_until(Duration::from_secs(7), |net| {
        net.agents[1].nominated() == Some(key)
    });
}

#[test]
fn a_controlling_side_that_restarts_in_its_session_is_followed_from_its_first_nomination() {
    let (mut net, [high, low]) = two_pairs(Nomination::Repeated);
    for key in [high, low, high] {
        net.agents[0].nominate(key);
        net.run_ms(100);
    }
    let late = net.sent.iter().rposition(|s| s.1 == 0).unwrap();
    let late = net.sent[late].3.clone();
    // The restart: a new tie-breaker, and no memory of earlier values.
    net.agents[0].tie_breaker ^= 1;
    net.agents[0].last_nomination = 0;
    for pair in net.agents[0].pairs.values_mut() {
        pair.nominated = None;
    }
    net.agents[0].nominate(low);
    net.run_ms(100);
    assert_eq!(net.agreed().map(|keys| keys[0]), Some(low));
    net.send(0, high.base, high.remote, late);
    net.run_ms(100);
    assert_eq!(net.agreed().map(|keys| keys[0]), Some(low));
}

#[test]
fn other_pairs_stay_after_the_nomination() {
    let (mut net, [high, _]) = two_pairs(Nomination::Repeated);
    net.owners = true;
    net.traffic(true);
    net.agents[0].nominate(high);
    net.run(Duration::from_secs(120));
    assert!(net.agents[0].pairs().all(Pair::is_valid));
    assert_eq!(net.agents[0].pairs().count(), 2);
}

/// A check with USE-CANDIDATE from one agent to the other.
fn use_candidate(net: &Net, from: usize, to: usize, nomination: Option<u32>, id: u128) -> Vec<u8> {
    let (ours, theirs) = (
        net.agents[from].local_credentials(),
        net.agents[to].local_credentials(),
    );
    Check {
        id: TransactionId::from(id),
        username: &format!("{}:{}", theirs.ufrag, ours.ufrag),
        priority: candidate_priority(CandidateKind::PeerReflexive, 65535),
        role: RoleClaim::Controlling(net.agents[from].tie_breaker),
        use_candidate: true,
        nomination,
    }
    .encode(&integrity_key(&theirs.password))
}
