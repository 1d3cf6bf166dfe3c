//! Timing of the ordinary case.

use std::time::Duration;

use super::net::*;
use crate::core::ice::*;
use crate::core::timing::{PAC_MIN, RC, RTO_MIN};

#[test]
fn one_round_trip_validates_and_one_more_nominates() {
    let mut net = Net::direct();
    net.advertise_all();
    net.run_ms(45);
    let key = net.only(0).key();
    assert!(net.only(0).is_valid());
    net.agents[0].nominate(key);
    net.run_ms(45);
    assert_eq!(net.agreed().map(|keys| keys[0]), Some(key));
    assert_eq!(net.only(1).nominated(), Some(1));
    assert_eq!(net.only(1).remote().kind, CandidateKind::Host);
}

#[test]
fn a_check_is_repeated_with_the_same_bytes_on_the_schedule_of_the_rfc() {
    let mut net = Net::direct();
    net.tell(0, &[candidate(CandidateKind::Host, at("198.51.100.9:9"))]);
    net.run(PAC_MIN - Duration::from_millis(1));
    assert_eq!(net.only(0).state(), PairState::InProgress);
    let first = net.sent[0].0;
    let offsets: Vec<u128> = net.sent.iter().map(|s| (s.0 - first).as_millis()).collect();
    assert_eq!(offsets, [0, 500, 1500, 3500, 7500, 15500, 31500]);
    assert_eq!(offsets.len(), usize::from(RC));
    assert!(net.sent.iter().all(|sent| sent.3 == net.sent[0].3));
    net.run(RTO_MIN);
    assert_eq!(net.only(0).state(), PairState::Failed(Failure::NoAnswer));
    assert!(
        net.open_ids.is_empty(),
        "every id that was opened is closed"
    );
}

#[test]
fn a_round_trip_of_three_seconds_connects() {
    let mut net = Net::direct();
    net.owners = true;
    net.delay = Duration::from_millis(1500);
    net.advertise_all();
    net.traffic(true);
    net.run(Duration::from_secs(20));
    assert!(net.agreed().is_some());
    net.events.clear();
    net.run(Duration::from_secs(120));
    assert!(net.events.is_empty(), "and stays: {:?}", net.events);
}

#[test]
fn no_base_and_no_candidate_are_no_failure() {
    let roles = [Role::Controlling, Role::Controlled];
    let mut net = Net::pair(roles, Nomination::Repeated, 1);
    net.traffic(true);
    net.tell(
        0,
        &[candidate(CandidateKind::Host, at("198.51.100.2:2000"))],
    );
    net.run(Duration::from_secs(60));
    assert!(net.events.is_empty() && net.sent.is_empty());
    net.host(0, "198.51.100.1:1000", None);
    net.host(1, "198.51.100.2:2000", None);
    net.run_ms(200);
    assert!(net.only(0).is_valid() && net.only(1).is_valid());
}

#[test]
fn all_failed_is_not_final() {
    let mut net = Net::direct();
    net.owners = true;
    net.traffic(true);
    net.loss = 1.0;
    net.advertise_all();
    net.run(Duration::from_secs(300));
    assert!(matches!(net.only(0).state(), PairState::Failed(_)));
    net.loss = 0.0;
    let took = net.run_until(Duration::from_secs(25), |net| net.agreed().is_some());
    assert!(took > Duration::ZERO);
}
