//! Two agents in virtual time.

use super::*;
use crate::core::stun::{Binding, BindingClass};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn base(id: u32, address: &str) -> Base {
    Base {
        id: BaseId(id),
        kind: BaseKind::Host,
        address: address.parse().unwrap(),
        preference: 65535,
        reflexive: Vec::new(),
    }
}

fn credentials(name: &str) -> Credentials {
    Credentials {
        ufrag: format!("{name}frag"),
        password: format!("{name}-password-of-22-chars"),
    }
}

fn agent(name: &str, other: &str, role: Role) -> Agent {
    Agent::new(AgentConfig {
        local: credentials(name),
        remote: Some(credentials(other)),
        role,
        nomination: Nomination::Repeated,
        seed: [name.as_bytes()[0]; 32],
    })
}

/// Both agents on one network without translation.
struct Net {
    now: Instant,
    agents: [Agent; 2],
    owner: BTreeMap<std::net::SocketAddr, (usize, BaseId)>,
    queue: Vec<(Instant, usize, BaseId, std::net::SocketAddr, Vec<u8>)>,
    events: Vec<(usize, AgentEvent)>,
}

impl Net {
    fn send(&mut self, from: usize, base: BaseId, to: std::net::SocketAddr, bytes: Vec<u8>) {
        let source = self.agents[from]
            .bases()
            .iter()
            .find(|b| b.id == base)
            .unwrap()
            .address;
        if let Some((owner, at)) = self.owner.get(&to) {
            self.queue.push((
                self.now + Duration::from_millis(20),
                *owner,
                *at,
                source,
                bytes,
            ));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            for i in 0..2 {
                self.agents[i].handle_timeout(self.now);
                while self.agents[i]
                    .check_due(self.now)
                    .is_some_and(|at| at <= self.now)
                {
                    let Some(out) = self.agents[i].poll_check(Duration::ZERO, self.now) else {
                        continue;
                    };
                    self.send(i, out.base, out.remote, out.payload);
                }
                while let Some(event) = self.agents[i].poll_event() {
                    self.events.push((i, event));
                }
            }
            self.now += Duration::from_millis(1);
            let (due, rest) = self.queue.drain(..).partition(|(at, ..)| *at <= self.now);
            self.queue = rest;
            for (_, to, at, source, bytes) in due {
                let _: &Vec<u8> = &bytes;
                let message = Binding::parse(&bytes).unwrap();
                match message.class() {
                    BindingClass::Request => {
                        if let Reply::Send(reply) =
                            self.agents[to].handle_request(at, source, &message)
                        {
                            self.send(to, at, source, reply);
                        }
                    }
                    BindingClass::Success | BindingClass::Error => {
                        self.agents[to].handle_response(at, source, &message, self.now);
                    }
                    BindingClass::Indication => {}
                }
            }
        }
    }
}

fn pair_of(a: Role, b: Role) -> Net {
    let mut agents = [agent("a", "b", a), agent("b", "a", b)];
    let mut owner = BTreeMap::new();
    for (i, address) in ["198.51.100.1:1000", "198.51.100.2:2000"]
        .iter()
        .enumerate()
    {
        let base = base(i as u32, address);
        owner.insert(base.address, (i, base.id));
        agents[1 - i].set_remote_candidates(&[RemoteCandidate {
            address: base.address,
            kind: CandidateKind::Host,
            priority: candidate_priority(CandidateKind::Host, 65535),
            relay_transport: None,
        }]);
        agents[i].set_base(base);
    }
    Net {
        now: Instant::now(),
        agents,
        owner,
        queue: Vec::new(),
        events: Vec::new(),
    }
}

#[test]
fn two_agents_validate_and_nominate() {
    let mut net = pair_of(Role::Controlling, Role::Controlled);
    net.run(Duration::from_millis(45));
    let key = net.agents[0].pairs().next().unwrap().key();
    assert!(
        net.agents[0].pair(key).unwrap().is_valid(),
        "one round trip is enough"
    );
    net.agents[0].nominate(key);
    net.run(Duration::from_millis(45));
    assert_eq!(net.agents[0].nominated(), Some(key));
    let theirs = net.agents[1].nominated().unwrap();
    assert_eq!(net.agents[1].pair(theirs).unwrap().nominated(), Some(1));
    assert_eq!(
        net.agents[1].pair(theirs).unwrap().remote().kind,
        CandidateKind::Host
    );
}

#[test]
fn a_role_conflict_settles_from_all_four_starts() {
    for a in [Role::Controlling, Role::Controlled] {
        for b in [Role::Controlling, Role::Controlled] {
            let mut net = pair_of(a, b);
            net.run(Duration::from_millis(200));
            assert_ne!(net.agents[0].role(), net.agents[1].role());
            assert!(
                net.agents
                    .iter()
                    .all(|agent| agent.pairs().all(Pair::is_valid))
            );
        }
    }
}

#[test]
fn a_dead_selected_path_is_lost_within_five_seconds() {
    let mut net = pair_of(Role::Controlling, Role::Controlled);
    net.run(Duration::from_millis(100));
    let key = net.agents[0].pairs().next().unwrap().key();
    let now = net.now;
    net.agents[0].set_traffic(true, now);
    net.agents[0].set_use(key, Use::Selected, now);
    net.run(Duration::from_secs(60));
    assert!(
        net.agents[0].pair(key).unwrap().is_valid(),
        "a path that answers stays"
    );
    net.owner.clear();
    let cut = net.now;
    net.agents[0].note_sent(key, cut);
    while net.agents[0].pair(key).unwrap().is_valid() {
        net.run(Duration::from_millis(10));
        assert!(net.now < cut + Duration::from_secs(5));
    }
    assert!(net.now > cut + Duration::from_secs(4));
    assert_eq!(
        net.agents[0].pair(key).unwrap().state(),
        PairState::Failed(Failure::Silent)
    );
}
