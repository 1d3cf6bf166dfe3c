//! Thousands of short lives of two agents on random networks, each from its number alone.

use std::net::SocketAddr;
use std::time::Duration;

use super::net::*;
use crate::core::ice::*;

/// Runs: about three seconds of real time.
const RUNS: u64 = 2000;
/// Loss, reordering, duplication and changes last this long …
const STORM: Duration = Duration::from_secs(12);
/// … and then the network is quiet for long enough that every check that was lost is made again.
const CALM: Duration = Duration::from_secs(50);

#[test]
fn agents_that_can_meet_agree_on_one_pair_in_the_end() {
    let mut met = 0;
    for seed in 0..RUNS {
        met += u64::from(life(seed));
    }
    assert!(met > RUNS / 2 && met < RUNS, "both cases occur: {met} met");
}

/// One run; whether the agents met.
fn life(seed: u64) -> bool {
    let mut net = Net::new(seed);
    let roles = [Role::Controlling, Role::Controlled];
    let roles = [roles[net.below(2)], roles[net.below(2)]];
    net.add_agent(("a", "b"), 1, roles[0], Nomination::Repeated);
    net.add_agent(("b", "a"), 0, roles[1], Nomination::Repeated);
    net.owners = true;
    let bases = plug_in(&mut net);
    weather(&mut net);
    let mut told = [false; 2];
    let end = net.now + STORM;
    while net.now < end {
        let step = Duration::from_millis(net.below(2000) as u64);
        net.run(step);
        change(&mut net, &bases, &mut told);
    }
    net.advertise_all();
    net.traffic(true);
    (net.loss, net.duplicates) = (0.0, 0.0);
    net.run(CALM);
    let valid = |agent: &Agent| agent.pairs().any(Pair::is_valid);
    let works = net.agents.iter().any(valid) || has_relays(&net);
    if works {
        assert!(net.agreed().is_some(), "seed {seed}: {}", report(&net));
    }
    works
}

/// Up to three bases a side: public, behind a translator, relayed.
fn plug_in(net: &mut Net) -> Vec<(usize, BaseId, Option<usize>)> {
    let mut bases = Vec::new();
    for agent in 0..2 {
        let mapping = Depends::ALL[net.below(3)];
        let filtering = Depends::ALL[net.below(3)];
        let nat = net.nat(&format!("203.0.113.{}", agent + 1), mapping, filtering);
        for i in 0..1 + net.below(3) {
            let (base, nat) = match net.below(4) {
                0 => {
                    let address = format!("198.51.100.{}:{}", agent + 1, 1000 + i);
                    (net.host(agent, &address, None), None)
                }
                1 | 2 => {
                    let address = format!("10.{agent}.0.{}:1000", i + 1);
                    (net.host(agent, &address, Some(nat)), Some(nat))
                }
                _ => {
                    let address = format!("192.0.2.{}:{}", 50 + agent, 5000 + i);
                    (net.relay(agent, &address), None)
                }
            };
            bases.push((agent, base, nat));
        }
    }
    bases
}

fn weather(net: &mut Net) {
    net.loss = net.random() * 0.35;
    net.duplicates = net.random() * 0.2;
    net.delay = Duration::from_millis(1 + net.below(150) as u64);
    net.jitter = net.delay.mul_f64(net.random() * 2.0);
    let public = |net: &Net, agent: usize| -> Vec<SocketAddr> {
        let bases = net.agents[agent].bases().iter();
        bases
            .filter(|b| b.kind == BaseKind::Host)
            .map(|b| b.address)
            .collect()
    };
    for (from, to) in [(0, 1), (1, 0)] {
        for source in public(net, from) {
            for target in public(net, to) {
                if net.random() < 0.3 {
                    net.routes.insert((source, target), Route::Blocked);
                }
            }
        }
    }
}

fn change(net: &mut Net, bases: &[(usize, BaseId, Option<usize>)], told: &mut [bool; 2]) {
    let agent = net.below(2);
    let now = net.now;
    match net.below(8) {
        0 | 1 => {
            net.advertise(agent);
            told[agent] = true;
        }
        2 if told[agent] => net.tell(agent, &[]),
        3 => {
            let has_traffic = net.random() < 0.7;
            net.agents[agent].set_traffic(has_traffic, now);
        }
        4 => {
            let (_, _, nat) = bases[net.below(bases.len())];
            if let Some(nat) = nat {
                net.rebind(nat);
            }
        }
        5 => {
            let (owner, base, nat) = bases[net.below(bases.len())];
            let known = net.agents[owner].bases().iter().find(|b| b.id == base);
            if known.is_some_and(|b| b.kind == BaseKind::Host) && nat.is_none() {
                let port = 2000 + net.below(50_000);
                net.move_port(base, &format!("198.51.100.{}:{port}", owner + 1));
            }
        }
        6 => {
            let key = net.agents[agent].nominated();
            if let Some(key) = key {
                net.agents[agent].fail(key, Failure::DataDead, now);
            }
        }
        7 => {
            let key = net.agents[agent].nominated();
            if let Some(key) = key {
                net.agents[agent].note_sent(key, now);
            }
        }
        _ => {}
    }
}

fn has_relays(net: &Net) -> bool {
    let relayed = |agent: &Agent| agent.bases().iter().any(|b| b.kind != BaseKind::Host);
    net.agents.iter().all(relayed)
}

fn report(net: &Net) -> String {
    let mut lines = Vec::new();
    for (i, agent) in net.agents.iter().enumerate() {
        lines.push(format!(
            "agent {i} {:?} {:?}",
            agent.role(),
            agent.nominated()
        ));
        for pair in agent.pairs() {
            lines.push(format!(
                "  {:?} {:?} {:?} seen {:?} nominated {:?}",
                pair.key(),
                pair.state(),
                pair.remote().kind,
                pair.mapped(),
                pair.nominated()
            ));
        }
    }
    lines.join("\n")
}
