//! Consent, probes, idle paths, rechecks: when a pair is dead, and when it is not.

use std::time::Duration;

use super::net::*;
use crate::core::ice::*;
use crate::core::timing::*;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Data that leaves or arrives each 100 ms for a while.
fn with_data(net: &mut Net, time: Duration, sent: bool, received: bool) {
    let end = net.now + time;
    while net.now < end {
        let (key, now) = (net.agents[0].nominated(), net.now);
        if let Some(key) = key {
            if sent {
                net.agents[0].note_sent(key, now);
            }
            if received {
                net.agents[0].note_received(key);
            }
        }
        net.run_ms(100);
    }
}

#[test]
fn a_dead_path_with_traffic_is_lost_within_five_seconds() {
    let mut net = Net::connected();
    net.run(secs(60));
    let key = net.only(0).key();
    assert!(net.only(0).is_valid(), "a path that answers stays");
    net.cut();
    let cut = net.now;
    net.agents[0].note_sent(key, cut);
    let took = net.run_until(secs(6), |net| !net.only(0).is_valid());
    assert!(took > secs(4) && took <= secs(5), "{took:?}");
    assert_eq!(net.only(0).state(), PairState::Failed(Failure::Silent));
    let probes: Vec<u128> = net
        .sent
        .iter()
        .filter(|s| s.0 >= cut && s.1 == 0)
        .map(|s| (s.0 - cut).as_millis())
        .collect();
    assert!(probes.len() >= usize::from(STALL_MISSES));
}

#[test]
fn ten_per_cent_of_loss_kills_no_path_in_five_minutes() {
    for seed in 0..10 {
        let mut net = Net::pair(
            [Role::Controlling, Role::Controlled],
            Nomination::Repeated,
            seed,
        );
        net.host(0, "198.51.100.1:1000", None);
        net.host(1, "198.51.100.2:2000", None);
        net.owners = true;
        net.advertise_all();
        net.traffic(true);
        net.run_ms(300);
        net.loss = 0.1;
        net.events.clear();
        with_data(&mut net, secs(300), true, false);
        let lost = net
            .events
            .iter()
            .filter(|(_, e)| matches!(e, AgentEvent::Lost(_)));
        assert_eq!(lost.count(), 0, "seed {seed}");
    }
}

#[test]
fn an_idle_path_survives_loss_and_is_kept_under_thirty_seconds() {
    for seed in 0..10 {
        let mut net = Net::pair(
            [Role::Controlling, Role::Controlled],
            Nomination::Repeated,
            seed,
        );
        net.host(0, "198.51.100.1:1000", None);
        net.host(1, "198.51.100.2:2000", None);
        net.owners = true;
        net.advertise_all();
        net.run_ms(300);
        net.loss = 0.1;
        net.events.clear();
        net.sent.clear();
        net.run(secs(600));
        let told = net
            .events
            .iter()
            .filter(|(_, e)| !matches!(e, AgentEvent::Doubted));
        assert_eq!(told.count(), 0, "seed {seed}: {:?}", net.events);
        for agent in 0..2 {
            let mine = net.sent.iter().filter(|sent| sent.1 == agent);
            let times: Vec<_> = mine.map(|sent| sent.0).collect();
            let gap = times.windows(2).map(|w| w[1] - w[0]).max().unwrap();
            assert!(gap < secs(25), "{gap:?}");
            assert!(times.len() < 600 / 10, "{} packets", times.len());
        }
    }
}

#[test]
fn consent_checks_of_a_path_with_traffic_are_four_to_six_seconds_apart_with_ids_of_their_own() {
    let mut net = Net::connected();
    net.sent.clear();
    with_data(&mut net, secs(120), true, true);
    let mine: Vec<_> = net.sent.iter().filter(|sent| sent.1 == 0).collect();
    for pair in mine.windows(2) {
        let gap = pair[1].0 - pair[0].0;
        assert!(
            gap >= secs(4) && gap <= Duration::from_millis(6010),
            "{gap:?}"
        );
        assert_ne!(pair[0].3, pair[1].3);
    }
    assert!(mine.len() >= 18);
}

#[test]
fn only_answers_renew_consent() {
    let mut net = Net::connected();
    let answered = net.only(0).last_answer.unwrap();
    // The other side still sends data and checks; it answers nothing of ours.
    net.block("198.51.100.1:1000", "198.51.100.2:2000");
    with_data(&mut net, secs(4), true, true);
    assert_eq!(net.only(0).last_answer, Some(answered));
    // Whatever comes in, thirty seconds after the last answer nothing is sent any more.
    let key = net.only(0).key();
    let start = net.now;
    while net.only(0).is_valid() {
        net.agents[0].note_received(key);
        net.agents[0].pairs.get_mut(&key).unwrap().missed = 0;
        net.run_ms(50);
        assert!(net.now - start < CONSENT_EXPIRY);
    }
    assert!(net.now - answered >= CONSENT_EXPIRY);
    assert!(net.has(0, AgentEvent::Lost(key)));
}

#[test]
fn one_lost_consent_check_ends_nothing_and_consent_counts_from_the_last_answer() {
    let mut net = Net::connected();
    let key = net.only(0).key();
    for _ in 0..10 {
        let before = net.only(0).last_answer.unwrap();
        net.loss = 1.0;
        net.run_ms(600);
        net.loss = 0.0;
        net.run(secs(7));
        assert!(net.only(0).last_answer.unwrap() > before);
    }
    assert!(!net.has(0, AgentEvent::Lost(key)));
}

#[test]
fn a_path_that_wakes_is_checked_at_once_and_the_timer_moves() {
    let mut net = Net::connected();
    net.traffic(false);
    net.run(secs(30));
    let now = net.now;
    assert!(
        net.agents[0].check_due(now).unwrap() > now + secs(1),
        "idle"
    );
    net.agents[0].set_traffic(true, now);
    assert_eq!(net.agents[0].check_due(now), Some(now));
    let consent = net.only(0).last_answer.unwrap() + CONSENT_EXPIRY;
    assert!(net.agents[0].poll_timeout().unwrap() <= consent);
}

#[test]
fn a_path_that_died_while_idle_is_not_used_again_without_a_check() {
    let mut net = Net::connected();
    net.traffic(false);
    let key = net.only(0).key();
    net.agents[0].set_use(key, Use::Standby, net.now);
    net.owners = false;
    net.run(secs(10));
    net.cut();
    // It is still valid when its consent has run out, and fails the moment data wants it.
    net.run_until(secs(60), |net| {
        net.now - net.only(0).last_answer.unwrap() > CONSENT_EXPIRY
    });
    let now = net.now;
    if net.only(0).is_valid() {
        net.agents[0].set_use(key, Use::Selected, now);
        net.agents[0].set_traffic(true, now);
        net.agents[0].handle_timeout(now);
    }
    assert!(!net.only(0).is_valid());
}

#[test]
fn what_nothing_keeps_alive_lapses() {
    let mut net = Net::direct();
    net.advertise_all();
    net.run(CONSENT_EXPIRY - secs(1));
    assert!(net.only(0).is_valid());
    net.run(secs(2));
    assert_eq!(net.only(0).state(), PairState::Failed(Failure::Unused));
}

#[test]
fn the_best_failed_pairs_are_tried_again_while_there_is_traffic_and_only_they() {
    let mut net = Net::direct();
    let remotes: Vec<RemoteCandidate> = (0..10u16)
        .map(|i| RemoteCandidate {
            priority: candidate_priority(CandidateKind::Host, i),
            ..candidate(
                CandidateKind::Host,
                at(&format!("198.51.100.9:{}", 100 + i)),
            )
        })
        .collect();
    net.tell(0, &remotes);
    net.run(PAC_MIN + secs(2));
    assert!(
        net.agents[0]
            .pairs()
            .all(|p| matches!(p.state(), PairState::Failed(_)))
    );
    net.sent.clear();
    net.run(secs(120));
    assert!(net.sent.is_empty(), "nothing without traffic");
    net.traffic(true);
    net.run(secs(5));
    let tried = |net: &Net| {
        let ports: std::collections::BTreeSet<u16> =
            net.sent.iter().map(|sent| sent.2.remote.port()).collect();
        ports.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(
        tried(&net),
        [106, 107, 108, 109],
        "what waited long is tried at once"
    );
    // The best two go: the next best move up, none is forgotten.
    net.tell(0, &remotes[..8]);
    net.sent.clear();
    net.run(RECHECK.mul_f64(1.2) + secs(1));
    assert_eq!(tried(&net), [104, 105, 106, 107]);
    net.traffic(false);
    net.run(secs(20));
    net.sent.clear();
    net.run(secs(120));
    assert!(net.sent.is_empty());
}

#[test]
fn a_failed_pair_keeps_being_tried_although_its_use_changes() {
    let mut net = Net::connected();
    let key = net.only(0).key();
    net.loss = 1.0;
    net.run(secs(10));
    assert!(!net.only(0).is_valid());
    net.agents[0].set_use(key, Use::None, net.now);
    net.loss = 0.0;
    net.run_until(secs(25), |net| net.only(0).is_valid());
}

#[test]
fn forgotten_addresses_do_not_starve_advertised_ones_of_rechecks() {
    let mut net = Net::connected();
    let bad = candidate(CandidateKind::ServerReflexive, at("203.0.113.7:7"));
    let mut candidates = net.candidates(0);
    candidates.push(bad);
    net.tell(1, &candidates);
    for port in 3000..3008 {
        net.move_port(BaseId(0), &format!("203.0.113.5:{port}"));
        net.run(secs(9));
    }
    net.run(secs(30));
    net.sent.clear();
    net.run(secs(60));
    assert!(net.sent.iter().any(|sent| sent.2.remote == bad.address));
}

#[test]
fn a_slow_path_is_not_taken_for_a_dead_one() {
    let mut net = Net::connected();
    net.delay = Duration::from_millis(900);
    net.events.clear();
    with_data(&mut net, secs(120), true, false);
    assert!(
        !net.events
            .iter()
            .any(|(_, e)| matches!(e, AgentEvent::Lost(_)))
    );
    assert!(net.only(0).rtt().unwrap() > secs(1));
}

#[test]
fn ids_are_bounded_and_all_closed_in_the_end() {
    let mut net = Net::connected();
    net.loss = 1.0;
    with_data(&mut net, secs(60), true, false);
    for agent in 0..2 {
        assert!(net.only(agent).open.len() <= MAX_OPEN);
    }
    net.traffic(false);
    net.owners = false;
    for agent in 0..2 {
        let key = net.only(agent).key();
        net.agents[agent].set_use(key, Use::None, net.now);
    }
    net.run(PAC_MIN * 2);
    assert!(net.open_ids.is_empty(), "{} open", net.open_ids.len());
}

/// ICMP can be forged: what it says is asked, once in a while, and what does not answer is dead at once.
#[test]
fn a_path_that_the_network_calls_dead_has_a_second_to_answer() {
    let mut net = Net::connected();
    net.run(secs(10));
    let checks = |net: &Net, since| net.sent.iter().filter(|s| s.0 >= since && s.1 == 0).count();
    let lies = net.now;
    for _ in 0..40 {
        net.agents[0].suspect(Witness::Network, None, net.now);
        net.run_ms(100);
    }
    assert!(net.only(0).is_valid(), "it answers");
    let asked = checks(&net, lies);
    assert!((1..=3).contains(&asked), "{asked} checks in 4 s");
    net.run(secs(10));
    net.cut();
    let another = Some("203.0.113.99:9".parse().unwrap());
    net.agents[0].suspect(Witness::Network, another, net.now);
    net.run(secs(1));
    assert!(net.only(0).is_valid(), "it was not named");
    let remote = net.only(0).key().remote;
    net.agents[0].suspect(Witness::Network, Some(remote), net.now);
    let took = net.run_until(secs(3), |net| !net.only(0).is_valid());
    assert!(took < secs(1), "{took:?}");
}

/// What was asked before says nothing of a word that has come since, though its answer comes after.
#[test]
fn an_answer_to_a_check_of_before_does_not_belie_the_network() {
    let mut net = Net::connected();
    net.run(secs(10));
    let rtt = net.only(0).rtt().unwrap();
    let answered = net.only(0).checks().1;
    net.agents[0].check_selected(net.now);
    net.run(rtt * 3 / 4);
    net.cut();
    net.agents[0].suspect(Witness::Network, None, net.now);
    net.run(rtt / 2);
    assert!(net.only(0).checks().1 > answered, "it was on its way");
    let took = net.run_until(secs(3), |net| !net.only(0).is_valid());
    assert!(took < secs(1), "{took:?}");
}
