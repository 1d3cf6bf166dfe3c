//! Which pairs there are, and what adverts, bases and checks change on them.

use std::time::Duration;

use super::net::*;
use crate::core::ice::*;
use crate::core::timing::MAX_PAIRS;

const HOST: CandidateKind = CandidateKind::Host;
const SRFLX: CandidateKind = CandidateKind::ServerReflexive;

#[test]
fn every_order_of_arrival_gives_the_same_pairs() {
    // Base, reflexive address of the base, advert, and a check of the other side.
    let orders = permutations(4);
    let mut seen: Option<Vec<(PairKey, u64)>> = None;
    for order in orders {
        let roles = [Role::Controlling, Role::Controlled];
        let mut net = Net::pair(roles, Nomination::Repeated, 1);
        net.host(0, "198.51.100.1:1000", None);
        net.host(1, "198.51.100.2:2000", None);
        net.agents[0].remove_base(BaseId(0));
        let base = |reflexive| Base {
            id: BaseId(0),
            kind: BaseKind::Host,
            address: at("198.51.100.1:1000"),
            preference: 65535,
            reflexive,
        };
        for step in order {
            match step {
                0 => net.agents[0].set_base(base(Vec::new())),
                1 => net.agents[0].set_base(base(vec![(at("203.0.113.1:1"), SRFLX)])),
                2 => net.advertise(1),
                _ => net.advertise(0),
            }
            net.run_ms(100);
        }
        net.agents[0].set_base(base(vec![(at("203.0.113.1:1"), SRFLX)]));
        net.advertise_all();
        net.run_ms(3000);
        let pairs: Vec<(PairKey, u64)> = net.agents[0]
            .pairs()
            .map(|pair| {
                assert!(pair.is_valid());
                (pair.key(), pair.priority())
            })
            .collect();
        match &seen {
            None => seen = Some(pairs),
            Some(seen) => assert_eq!(*seen, pairs),
        }
    }
}

#[test]
fn the_same_advert_again_changes_nothing() {
    let mut net = Net::connected();
    let keys = net.agreed();
    net.events.clear();
    let sent = net.sent.len();
    for _ in 0..5 {
        net.advertise_all();
        net.run_ms(50);
    }
    assert_eq!(net.agreed(), keys);
    assert!(net.events.is_empty());
    assert_eq!(net.sent.len(), sent, "no check is made anew");
}

#[test]
fn an_advert_upgrades_a_nominated_reflexive_pair_in_place() {
    let mut net = Net::direct();
    net.owners = true;
    net.traffic(true);
    // Only the controlling side knows the other: the controlled side learns it by the check.
    net.advertise(1);
    net.run_ms(300);
    let keys = net.agreed().unwrap();
    let learned = net.only(1);
    assert_eq!(learned.remote().kind, CandidateKind::PeerReflexive);
    let (answered, nominated) = (learned.checks().1, learned.nominated());
    net.events.clear();
    net.advertise(0);
    let upgraded = net.only(1);
    assert_eq!(upgraded.remote().kind, HOST);
    assert_eq!(upgraded.remote().priority, candidate_priority(HOST, 65535));
    assert_eq!(
        (upgraded.checks().1, upgraded.nominated()),
        (answered, nominated)
    );
    assert_eq!(net.agreed(), Some(keys));
    net.run(Duration::from_secs(40));
    assert!(net.events.is_empty(), "{:?}", net.events);
}

#[test]
fn both_sides_give_a_pair_the_same_priority() {
    for behind in [false, true] {
        let roles = [Role::Controlling, Role::Controlled];
        let mut net = Net::pair(roles, Nomination::Repeated, 3);
        let home = net.nat("203.0.113.1", Depends::Endpoint, Depends::AddressAndPort);
        net.host(0, "10.0.0.2:1000", behind.then_some(home));
        net.host(1, "198.51.100.2:2000", None);
        // First learned by the check alone, then advertised.
        net.advertise(1);
        net.run_ms(300);
        if !behind {
            net.advertise(0);
            net.run_ms(300);
        }
        for late in [false, true] {
            if late {
                net.advertise(0);
                net.run_ms(300);
            }
            let ours = net.find(0, "198.51.100.2:2000").unwrap();
            let theirs = net.agents[1].pairs().find(|p| p.is_valid()).unwrap();
            let advertised = theirs.remote().kind != CandidateKind::PeerReflexive;
            assert_eq!(advertised, late || !behind);
            if advertised {
                assert_eq!(ours.priority(), theirs.priority());
            }
        }
    }
}

#[test]
fn one_remote_address_is_one_candidate_of_the_best_priority() {
    let mut net = Net::direct();
    let address = at("198.51.100.2:2000");
    net.tell(0, &[candidate(SRFLX, address), candidate(HOST, address)]);
    assert_eq!(net.only(0).remote().kind, HOST);
    net.tell(0, &[candidate(HOST, address), candidate(SRFLX, address)]);
    assert_eq!(net.only(0).remote().kind, HOST);
    let mapped = at("[::ffff:198.51.100.2]:2000");
    net.tell(0, &[candidate(HOST, mapped)]);
    assert_eq!(net.only(0).key().remote, address);
}

#[test]
fn our_own_addresses_and_other_families_make_no_pair() {
    let mut net = Net::direct();
    net.tell(
        0,
        &[
            candidate(HOST, at("198.51.100.1:1000")),
            candidate(HOST, at("[2001:db8::1]:1000")),
            candidate(HOST, at("127.0.0.1:1000")),
            candidate(HOST, at("198.51.100.2:2000")),
        ],
    );
    assert_eq!(net.only(0).key().remote, at("198.51.100.2:2000"));
    // What turns out to be ours later goes.
    net.tell(0, &[candidate(SRFLX, at("203.0.113.1:7"))]);
    assert!(net.find(0, "203.0.113.1:7").is_some());
    let base = Base {
        reflexive: vec![(at("203.0.113.1:7"), SRFLX)],
        ..net.agents[0].bases()[0].clone()
    };
    net.agents[0].set_base(base);
    assert_eq!(net.agents[0].pairs().count(), 0);
}

#[test]
fn a_withdrawn_candidate_is_gone_or_goes_when_it_ceases_to_work() {
    let mut net = Net::connected();
    let key = net.only(0).key();
    net.tell(0, &[candidate(HOST, at("198.51.100.9:9"))]);
    assert!(net.agents[0].pair(key).unwrap().is_valid(), "it works");
    net.tell(0, &[]);
    assert_eq!(net.only(0).key(), key, "what did not work is gone at once");
    // Re-added while it works: as if nothing had happened.
    let events = net.events.len();
    net.advertise(1);
    net.run(Duration::from_secs(20));
    assert_eq!(net.events.len(), events);
    net.tell(0, &[]);
    net.cut();
    net.run(Duration::from_secs(20));
    assert_eq!(net.agents[0].pairs().count(), 0, "gone with its path");
    net.advertise(1);
    assert_eq!(net.only(0).state(), PairState::Waiting, "wholly anew");
    assert_eq!(
        (net.only(0).checks(), net.only(0).nominated()),
        ((0, 0), None)
    );
}

#[test]
fn a_pair_is_its_base_whatever_reflexive_addresses_come_and_go() {
    let roles = [Role::Controlling, Role::Controlled];
    let mut net = Net::pair(roles, Nomination::Repeated, 1);
    let home = net.nat("203.0.113.1", Depends::Endpoint, Depends::Endpoint);
    net.host(0, "10.0.0.2:1000", Some(home));
    net.host(1, "198.51.100.2:2000", None);
    net.owners = true;
    net.traffic(true);
    net.advertise_all();
    net.run_ms(500);
    assert_eq!(net.only(0).local_kind(), SRFLX);
    net.events.clear();
    let bare = Base {
        reflexive: Vec::new(),
        ..net.agents[0].bases()[0].clone()
    };
    net.agents[0].set_base(bare);
    net.tell(1, &[candidate(HOST, at("10.0.0.2:1000"))]);
    net.run(Duration::from_secs(60));
    assert!(net.agreed().is_some());
    assert!(
        !net.events
            .iter()
            .any(|(_, e)| matches!(e, AgentEvent::Lost(_)))
    );
    assert_eq!(net.only(0).local_kind(), CandidateKind::PeerReflexive);
}

#[test]
fn two_bases_seen_at_one_reflexive_address_both_pair() {
    let roles = [Role::Controlling, Role::Controlled];
    let mut net = Net::pair(roles, Nomination::Repeated, 1);
    net.host(0, "10.0.0.2:1000", None);
    net.host(0, "10.0.1.2:1000", None);
    for base in net.agents[0].bases().to_vec() {
        let reflexive = vec![(at("203.0.113.1:40001"), SRFLX)];
        net.agents[0].set_base(Base { reflexive, ..base });
    }
    net.tell(0, &[candidate(HOST, at("198.51.100.2:2000"))]);
    let bases: Vec<BaseId> = net.agents[0].pairs().map(|p| p.key().base).collect();
    assert_eq!(bases, [BaseId(0), BaseId(1)]);
}

#[test]
fn a_dead_base_fails_its_pairs_now_and_a_number_with_a_new_address_is_a_new_base() {
    let mut net = Net::connected();
    let key = net.only(0).key();
    net.agents[0].remove_base(key.base);
    assert_eq!(net.agents[0].pairs().count(), 0);
    net.run_ms(1);
    assert!(net.has(0, AgentEvent::Lost(key)));
    let mut net = Net::connected();
    let moved = Base {
        address: at("198.51.100.7:1000"),
        ..net.agents[0].bases()[0].clone()
    };
    net.agents[0].set_base(moved);
    assert_eq!(net.only(0).state(), PairState::Waiting);
}

#[test]
fn at_most_the_cap_of_pairs_and_the_best_ones() {
    let mut net = Net::direct();
    let many: Vec<RemoteCandidate> = (0..3 * MAX_PAIRS as u16)
        .map(|i| RemoteCandidate {
            priority: candidate_priority(HOST, i),
            ..candidate(HOST, at(&format!("198.51.100.9:{}", 1000 + i)))
        })
        .collect();
    net.tell(0, &many);
    assert_eq!(net.agents[0].pairs().count(), MAX_PAIRS);
    let lowest = net.agents[0].pairs().map(|p| p.remote().priority).min();
    assert_eq!(lowest, Some(candidate_priority(HOST, 2 * MAX_PAIRS as u16)));
}

#[test]
fn a_peer_that_moves_for_ever_is_always_followed() {
    let mut net = Net::connected();
    for port in 0..2 * MAX_PAIRS {
        net.move_port(BaseId(0), &format!("203.0.113.5:{}", 3000 + port));
        let rebound = format!("203.0.113.5:{}", 3000 + port);
        let key = net.agents[0].nominated();
        if let Some(key) = key {
            let now = net.now;
            net.agents[0].note_sent(key, now);
        }
        net.run(Duration::from_secs(8));
        let moved = net.find(1, &rebound);
        assert!(moved.is_some_and(Pair::is_valid), "move {port}");
    }
}

#[test]
fn a_withdrawn_and_forgotten_pair_closes_its_ids() {
    let mut net = Net::direct();
    net.tell(0, &[candidate(HOST, at("198.51.100.9:9"))]);
    net.run_ms(100);
    assert_eq!(net.open_ids.len(), 1);
    net.tell(0, &[]);
    net.run_ms(1);
    assert!(net.open_ids.is_empty());
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(n - 1);
    let insert = |p: Vec<usize>| {
        (0..n).map(move |i| {
            let mut longer = p.clone();
            longer.insert(i, n - 1);
            longer
        })
    };
    shorter.into_iter().flat_map(insert).collect()
}
