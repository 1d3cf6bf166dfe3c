//! A whole check engine: arbitrary datagrams and time steps between checks and answers that are
//! authentic, because only those reach its state.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wice::core::ice::{
    Agent, AgentConfig, Base, BaseId, BaseKind, Credentials, Failure, Nomination, Outgoing,
    PairKey, RemoteCandidate, Reply, Role, Use,
};
use wice::core::stun::{
    Binding, BindingClass, Check, RoleClaim, TransactionId, encode_error, encode_success,
    integrity_key, is_stun,
};
use wice::core::timing::{MAX_OPEN, MAX_PAIRS, RTO_MIN};
use wice_signaling::protocol::{CandidateKind, RelayTransport};

use super::Fed;
use super::script::Script;
use super::world::world;

/// Checks of the agent that answers may come to.
const MAX_SENT: usize = 16;
/// An agent that wants more at one moment than all its pairs can ask for never comes to rest.
const MAX_AT_ONCE: usize = 4 * MAX_PAIRS;

struct Rig {
    agent: Agent,
    now: Instant,
    sent: Vec<Outgoing>,
    next_id: u128,
    fed: Fed,
}

pub(super) fn agent(data: &[u8]) -> Fed {
    let mut script = Script::new(data);
    let mut rig = Rig::new(&mut script);
    while let Some(step) = script.step() {
        rig.step(step % 20, &mut script);
        rig.check_bounds();
    }
    rig.fed
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Time, checks out, answers to them, checks in, in turns; and all steps in order.
    let calm = [
        2, 0, 1, 7, 1, 3, 3, 0, 1, 9, 9, 1, 0, 20, 4, 1, 8, 1, 4, 0, 0, 0, 1,
    ];
    let rising: Vec<u8> = (0..=255).collect();
    let conflicts = [1, 0, 6, 0, 0x01, 0xe7, 2, 1, 3].repeat(40);
    vec![calm.repeat(20), rising.repeat(4), conflicts]
}

fn credentials(name: &str) -> Credentials {
    Credentials {
        ufrag: format!("{name}frag"),
        password: format!("{name}-password-of-22-characters"),
    }
}

fn base(id: u32, script: &mut Script<'_>) -> Base {
    let kind = match id % 3 {
        0 | 1 => BaseKind::Host,
        _ => BaseKind::Relayed(RelayTransport::Udp),
    };
    let reflexive = match script.flag() {
        true => vec![(script.address(), CandidateKind::ServerReflexive)],
        false => Vec::new(),
    };
    Base {
        id: BaseId(id),
        kind,
        address: script.address(),
        preference: 65_535 - id as u16,
        reflexive,
    }
}

impl Rig {
    fn new(script: &mut Script<'_>) -> Self {
        let options = script.byte();
        let agent = Agent::new(AgentConfig {
            local: credentials("a"),
            remote: (options & 1 == 0).then(|| credentials("b")),
            role: if options & 2 == 0 {
                Role::Controlling
            } else {
                Role::Controlled
            },
            nomination: if options & 4 == 0 {
                Nomination::Repeated
            } else {
                Nomination::Once
            },
            seed: [options; 32],
        });
        let mut rig = Self {
            agent,
            now: world().start,
            sent: Vec::new(),
            next_id: 1 << 90,
            fed: Fed::default(),
        };
        for id in 0..3 {
            rig.agent.set_base(base(id, script));
        }
        rig
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        match step {
            0 => self.pass(script.time()),
            1 | 2 => self.send(),
            3 => {
                let bytes = script.bytes(255);
                self.receive(bytes, false, script);
            }
            4 | 5 => {
                let bytes = self.check(script);
                self.receive(&bytes, true, script);
            }
            6..=8 => self.answer(step, script),
            9 => {
                let mut bytes = self.check(script);
                let whole = bytes.clone();
                script.damage(&mut bytes);
                self.receive(&bytes, bytes == whole, script);
            }
            10 => {
                let candidates: Vec<RemoteCandidate> =
                    (0..script.below(17)).map(|_| candidate(script)).collect();
                self.agent.set_remote_candidates(&candidates);
            }
            11 => {
                let id = script.byte();
                self.agent.set_base(base(u32::from(id % 4), script));
            }
            12 => self.agent.remove_base(BaseId(u32::from(script.byte() % 4))),
            13 => {
                let used = [Use::Selected, Use::Standby, Use::None][script.below(3)];
                if let Some(key) = self.pair(script) {
                    self.agent.set_use(key, used, self.now);
                }
            }
            14 => self.agent.set_traffic(script.flag(), self.now),
            15 => {
                if let Some(key) = self.pair(script) {
                    match script.below(4) {
                        0 => drop(self.agent.note_sent(key, self.now)),
                        1 => self.agent.note_received(key),
                        2 => self.agent.nominate(key),
                        _ => self.agent.fail(key, Failure::DataDead, self.now),
                    }
                }
            }
            16 => {
                let id = match self.sent.get(script.below(MAX_SENT)) {
                    Some(sent) => Binding::parse(&sent.payload).map(|check| check.id()),
                    None => Some(TransactionId::from(5)),
                };
                if let Some(id) = id {
                    self.agent.handle_unreachable(id, self.now);
                }
            }
            17 => {
                let (base, peer) = (BaseId(2), script.address().ip());
                match script.flag() {
                    true => self.agent.permit(base, peer),
                    false => self.agent.forbid(base, peer, self.now),
                }
            }
            18 => self.agent.recheck(self.now),
            _ => self.agent.set_remote_credentials(credentials("b")),
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        // Every stop on the way, but no more than a script is worth.
        for _ in 0..64 {
            let Some(at) = self.agent.poll_timeout().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            self.agent.handle_timeout(self.now);
            let next = self.agent.poll_timeout();
            assert!(
                next.is_none_or(|next| next > self.now),
                "nothing is left due"
            );
        }
        self.now = end;
        self.agent.handle_timeout(end);
    }

    fn send(&mut self) {
        for _ in 0..MAX_AT_ONCE {
            let Some(outgoing) = self.agent.poll_check(RTO_MIN, self.now) else {
                return;
            };
            let check = Binding::parse(&outgoing.payload).expect("our own check");
            assert_eq!(check.class(), BindingClass::Request);
            if self.sent.len() == MAX_SENT {
                self.sent.remove(0);
            }
            self.sent.push(outgoing);
        }
        panic!("more than {MAX_AT_ONCE} checks at one moment");
    }

    /// A check of the other side, authentic.
    fn check(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        // Now and then the last id again.
        if script.below(4) != 0 {
            self.next_id += 1;
        }
        let tie_breaker = [0, 1, 7, u64::MAX][script.below(4)];
        let check = Check {
            id: TransactionId::from(self.next_id),
            username: "afrag:bfrag",
            priority: script.u32(),
            role: match script.flag() {
                true => RoleClaim::Controlling(tie_breaker),
                false => RoleClaim::Controlled(tie_breaker),
            },
            use_candidate: script.flag(),
            nomination: script.flag().then(|| script.u32() >> 8),
        };
        check.encode(&integrity_key(&credentials("a").password))
    }

    /// An answer to a check that was sent: authentic or not, from there or from elsewhere.
    fn answer(&mut self, step: u8, script: &mut Script<'_>) {
        let choice = script.below(MAX_SENT);
        let Some(sent) = self.sent.get(choice.min(self.sent.len().saturating_sub(1))) else {
            return;
        };
        let Some(id) = Binding::parse(&sent.payload).map(|check| check.id()) else {
            return;
        };
        let (base, remote) = (sent.base, sent.remote);
        let twist = script.byte();
        let forged = twist & 7 == 0;
        let password = match forged {
            true => "not the password of the other".to_owned(),
            false => credentials("b").password,
        };
        let key = integrity_key(&password);
        let bytes = match step {
            6 => encode_error(id, script.u16() % 700, &key),
            _ => encode_success(id, script.address(), &key),
        };
        let from = match twist & 0x80 {
            0 => remote,
            _ => script.address(),
        };
        let Some(response) = Binding::parse(&bytes) else {
            return;
        };
        let taken = self.agent.handle_response(base, from, &response, self.now);
        assert!(!(taken && forged), "a forged answer is taken");
        self.fed.count(taken);
    }

    fn receive(&mut self, bytes: &[u8], authentic: bool, script: &mut Script<'_>) {
        let from = script.address();
        let base = BaseId(u32::from(script.byte() % 4));
        let Some(message) = Binding::parse(bytes).filter(|_| is_stun(bytes)) else {
            self.fed.count(false);
            return;
        };
        match message.class() {
            BindingClass::Request => {
                let pairs = self.agent.pairs().count();
                let reply = self.agent.handle_request(base, from, &message);
                let answered = reply != Reply::Ignore;
                assert!(!answered || authentic, "a forged check is answered");
                assert!(answered || self.agent.pairs().count() == pairs);
                self.fed.count(answered);
            }
            BindingClass::Success | BindingClass::Error | BindingClass::Indication => {
                let taken = self.agent.handle_response(base, from, &message, self.now);
                assert!(!taken, "nobody has asked this");
                self.fed.count(false);
            }
        }
    }

    fn pair(&self, script: &mut Script<'_>) -> Option<PairKey> {
        let keys: Vec<PairKey> = self.agent.pairs().map(|pair| pair.key()).collect();
        keys.get(script.below(keys.len())).copied()
    }

    fn check_bounds(&mut self) {
        assert!(self.agent.pairs().count() <= MAX_PAIRS);
        assert!(self.agent.drain_closed().count() <= MAX_PAIRS * MAX_OPEN);
        let events = std::iter::from_fn(|| self.agent.poll_event()).count();
        assert!(events <= 4 * MAX_PAIRS);
        let nominated = self.agent.nominated();
        assert!(nominated.is_none_or(|key| self.agent.pair(key).is_some_and(|p| p.is_valid())));
    }
}

fn candidate(script: &mut Script<'_>) -> RemoteCandidate {
    let kinds = [
        CandidateKind::Host,
        CandidateKind::ServerReflexive,
        CandidateKind::Mapped,
        CandidateKind::Relayed,
    ];
    let kind = kinds[script.below(4)];
    let address: SocketAddr = script.address();
    RemoteCandidate {
        address,
        kind,
        priority: script.u32(),
        relay_transport: (kind == CandidateKind::Relayed).then_some(RelayTransport::Tls),
    }
}
