//! One router: what it answers to, then (in `hold.rs`) a mapping on it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::epoch::Epoch;
use super::hold::Hold;
use super::http::Response;
use super::upnp::{self, Place, Service};
use super::{
    Config, LOOK, NATPMP_RTO, Outcome, PCP_RTO, PREFER, Protocol, Purpose, REST, REST_OFFLINE,
    ROUND, Refusal, Report, SEARCH_RTO, Transmit, WATCH, natpmp, pcp,
};
use crate::core::policy::is_private;

/// The most that waits to be sent: three protocols once each, and a farewell.
const MAX_TRANSMITS: usize = 8;

/// Asks one router, and keeps one mapping on it.
#[derive(Debug)]
pub struct Client {
    pub(super) config: Config,
    pub(super) phase: Phase,
    pub(super) outcome: Outcome,
    pub(super) epoch: Epoch,
    pub(super) upnp: Upnp,
    pub(super) external: Option<IpAddr>,
    probes: BTreeMap<Protocol, Probe>,
    refused_for: Duration,
    rng: ChaCha20Rng,
    transmits: VecDeque<Transmit>,
    next_exchange: u32,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Which protocols are there.
    Probing { started: Instant },
    /// One was chosen.
    Holding(Hold),
    /// Nothing to be had; asked again later.
    Resting { since: Instant, until: Instant },
    /// Nothing more is sent.
    Stopped,
}

#[derive(Debug)]
struct Probe {
    state: ProbeState,
    retry: Retry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeState {
    Asking,
    Answers,
    Refuses(Refusal),
    Silent,
}

/// When something is sent again: doubling waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    pub(super) due: Instant,
    wait: Duration,
}

impl Retry {
    /// If it is due: counts the sending, and says so.
    pub(super) fn fire(&mut self, now: Instant) -> bool {
        let due = now >= self.due;
        if due {
            self.due = now + self.wait;
            self.wait *= 2;
        }
        due
    }
}

/// The gateway's UPnP.
#[derive(Debug, Default)]
pub(super) struct Upnp {
    pub(super) service: Option<Service>,
    /// The exchange that is under way.
    pub(super) exchange: Option<(u32, Step)>,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Describe(Place),
    External,
    Add { port: u16 },
    Check,
    Delete,
}

impl Client {
    /// Starts asking.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut client = Self {
            rng: ChaCha20Rng::from_seed(config.seed),
            config,
            phase: Phase::Stopped,
            outcome: Outcome::Looking,
            epoch: Epoch::default(),
            upnp: Upnp::default(),
            external: None,
            probes: BTreeMap::new(),
            refused_for: Duration::ZERO,
            transmits: VecDeque::new(),
            next_exchange: 0,
        };
        client.probe(now);
        client.handle_timeout(now);
        client
    }

    /// What is known now.
    pub fn report(&self) -> Report {
        let answers = |probe: &Probe| match probe.state {
            ProbeState::Answers | ProbeState::Refuses(_) => true,
            ProbeState::Asking | ProbeState::Silent => false,
        };
        Report {
            local: self.config.local,
            gateway: self.config.gateway,
            protocols: (self.probes.iter())
                .filter(|(_, probe)| answers(probe))
                .map(|(protocol, _)| *protocol)
                .collect(),
            external: self.external,
            outcome: self.outcome,
        }
    }

    /// The next thing to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Probing { started } => {
                let asking = |probe: &&Probe| probe.state == ProbeState::Asking;
                let retries = self.probes.values().filter(asking).map(|p| p.retry.due);
                let choice = self.config.purpose == Purpose::Map && self.best().is_some();
                let choice = choice.then(|| *started + PREFER);
                retries.chain(choice).chain([*started + self.round()]).min()
            }
            Phase::Holding(hold) => Some(hold.poll_timeout()),
            Phase::Resting { until, .. } => Some(*until),
            Phase::Stopped => None,
        }
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.phase {
            Phase::Probing { started } => {
                let over = now >= *started + self.round();
                for protocol in Protocol::ALL {
                    let Some(probe) = self.probes.get_mut(&protocol) else {
                        continue;
                    };
                    if probe.state != ProbeState::Asking {
                        continue;
                    }
                    if over {
                        probe.state = ProbeState::Silent;
                    } else if probe.retry.fire(now) {
                        self.ask(protocol);
                    }
                }
                self.settle(now);
            }
            Phase::Holding(_) => self.hold_timeout(now),
            Phase::Resting { until, .. } if now >= *until => {
                self.probe(now);
                self.handle_timeout(now);
            }
            Phase::Resting { .. } | Phase::Stopped => {}
        }
    }

    /// A datagram from the gateway's [`super::SERVER_PORT`]; false for one that means nothing.
    pub fn handle_server(&mut self, message: &[u8], now: Instant) -> bool {
        let known = if message.first() == Some(&0) {
            let reply = natpmp::parse(message);
            reply.map(|reply| self.handle_natpmp(reply, now))
        } else {
            pcp::parse(message).map(|reply| self.handle_pcp(reply, now))
        };
        known.is_some()
    }

    /// Nothing listens at the gateway's [`super::SERVER_PORT`].
    pub fn handle_unreachable(&mut self, now: Instant) {
        for protocol in [Protocol::Pcp, Protocol::NatPmp] {
            self.answered(protocol, ProbeState::Silent, now);
        }
    }

    /// A datagram to [`super::ANNOUNCEMENT_PORT`]: a router that says that it has restarted. It is
    /// not believed, but asked for the mapping again, which changes nothing if it still has it; after
    /// a random while, so that not the whole LAN asks at once.
    pub fn handle_announcement(&mut self, from: IpAddr, message: &[u8], now: Instant) {
        /// RFC 6887 §14.1.3.
        const SPREAD: Duration = Duration::from_secs(5);
        let announces = matches!(pcp::parse(message), Some(pcp::Reply::Announce { .. }))
            || matches!(natpmp::parse(message), Some(natpmp::Reply::External { .. }));
        if from != self.config.gateway || !announces {
            return;
        }
        let at = now + SPREAD.mul_f64(self.fraction());
        match &mut self.phase {
            Phase::Holding(hold) => hold.renew_by(at),
            Phase::Resting { since, until } if now >= *since + WATCH => *until = at.min(*until),
            Phase::Probing { .. } | Phase::Resting { .. } | Phase::Stopped => {}
        }
    }

    /// An answer to a search; only the gateway's counts.
    pub fn handle_search_reply(&mut self, from: SocketAddr, message: &[u8]) {
        let probing = || {
            let probe = self.probes.get(&Protocol::Upnp);
            probe.is_some_and(|probe| probe.state == ProbeState::Asking)
        };
        let wanted = match &self.phase {
            Phase::Probing { .. } => probing(),
            Phase::Holding(hold) => hold.searches(),
            Phase::Resting { .. } | Phase::Stopped => false,
        };
        let free = self.upnp.service.is_none() && self.upnp.exchange.is_none();
        if from.ip() != self.config.gateway || !wanted || !free {
            return;
        }
        if let Some(place) = upnp::parse_search_reply(message, self.config.gateway) {
            let request = upnp::describe(&place);
            self.exchange(place.address, request, Step::Describe(place));
        }
    }

    /// What came of an exchange; `None` if no response did.
    pub fn handle_response(&mut self, id: u32, response: Option<&Response>, now: Instant) {
        let Some((_, step)) = self.upnp.exchange.take_if(|(known, _)| *known == id) else {
            return;
        };
        let Some(response) = response else {
            // It may be elsewhere after a restart: searched for again at the next retry.
            self.upnp.service = None;
            return;
        };
        match (&self.phase, step) {
            (Phase::Stopped | Phase::Resting { .. }, _) => {}
            (_, Step::Describe(place)) => {
                self.upnp.service = (response.status == 200)
                    .then(|| upnp::parse_description(&response.body, &place))
                    .flatten();
                self.ask_external();
            }
            (Phase::Probing { .. }, Step::External) => {
                let state = match upnp::parse_external_address(response) {
                    Ok(address) => {
                        self.external = Some(address.into());
                        ProbeState::Answers
                    }
                    Err(refusal) => ProbeState::Refuses(refusal),
                };
                self.answered(Protocol::Upnp, state, now);
            }
            (Phase::Holding(_), step) => self.hold_response(step, response, now),
            (Phase::Probing { .. }, Step::Add { .. } | Step::Check | Step::Delete) => {}
        }
    }

    /// Ends it: what was mapped is deleted, if the one message that this takes arrives.
    pub fn stop(&mut self) {
        self.transmits.clear();
        self.release();
        self.phase = Phase::Stopped;
        self.outcome = Outcome::Nothing;
    }

    /// Asks from the start which protocols there are.
    pub(super) fn probe(&mut self, now: Instant) {
        self.phase = Phase::Probing { started: now };
        self.upnp = Upnp::default();
        self.external = None;
        self.refused_for = Duration::ZERO;
        let v4 = self.config.local.is_ipv4();
        for protocol in Protocol::ALL {
            let state = match protocol {
                Protocol::NatPmp | Protocol::Upnp if !v4 => ProbeState::Silent,
                Protocol::Pcp | Protocol::NatPmp | Protocol::Upnp => ProbeState::Asking,
            };
            let mut retry = self.retry(protocol, now);
            retry.due = now;
            self.probes.insert(protocol, Probe { state, retry });
        }
    }

    /// The chosen protocol does not map; another one may.
    pub(super) fn refused(
        &mut self,
        protocol: Protocol,
        refusal: Refusal,
        lasts: Duration,
        now: Instant,
    ) {
        if let Some(probe) = self.probes.get_mut(&protocol) {
            probe.state = ProbeState::Refuses(refusal);
        }
        self.refused_for = self.refused_for.max(lasts);
        // Those that have not answered yet are asked for another round.
        self.phase = Phase::Probing { started: now };
        self.settle(now);
    }

    /// Nothing to be had for now.
    pub(super) fn rest(&mut self, outcome: Outcome, now: Instant) {
        let offline = matches!(
            outcome,
            Outcome::Refused {
                refusal: Refusal::NetworkFailure,
                ..
            }
        );
        let wait = if offline { REST_OFFLINE } else { REST };
        self.outcome = outcome;
        self.phase = Phase::Resting {
            since: now,
            until: now + wait.max(self.refused_for),
        };
    }

    /// The first wait of a protocol, from `now`.
    pub(super) fn retry(&mut self, protocol: Protocol, now: Instant) -> Retry {
        let wait = match protocol {
            // RFC 6887 §8.1.1: 1 + RAND, which is -0.1 to 0.1.
            Protocol::Pcp => PCP_RTO.mul_f64(0.9 + 0.2 * self.fraction()),
            Protocol::NatPmp => NATPMP_RTO,
            Protocol::Upnp => SEARCH_RTO,
        };
        Retry { due: now, wait }
    }

    fn round(&self) -> Duration {
        match self.config.purpose {
            Purpose::Map => ROUND,
            Purpose::Look => LOOK,
        }
    }

    /// 0 to 1.
    fn fraction(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / f64::from(u32::MAX)
    }

    /// A port that is not reserved.
    pub(super) fn any_port(&mut self) -> u16 {
        /// Below are those of well-known and many registered services.
        const FIRST: u32 = 20_000;
        let port = FIRST + self.rng.next_u32() % (u32::from(u16::MAX) - FIRST);
        u16::try_from(port).unwrap_or(u16::MAX)
    }

    pub(super) fn transmit(&mut self, transmit: Transmit) {
        if self.transmits.len() < MAX_TRANSMITS {
            self.transmits.push_back(transmit);
        }
    }

    pub(super) fn exchange(&mut self, address: SocketAddr, request: Vec<u8>, step: Step) {
        let id = self.next_exchange;
        self.next_exchange = id.wrapping_add(1);
        self.upnp.exchange = Some((id, step));
        self.transmit(Transmit::Exchange {
            id,
            address,
            request,
        });
    }

    /// By UPnP, if the service is known.
    pub(super) fn ask_external(&mut self) {
        if let Some(service) = &self.upnp.service {
            let (address, request) = (service.address(), service.external_address());
            self.exchange(address, request, Step::External);
        }
    }

    fn ask(&mut self, protocol: Protocol) {
        let local = self.config.local.ip();
        match protocol {
            Protocol::Pcp => self.transmit(Transmit::Server(pcp::announce(local))),
            Protocol::NatPmp => self.transmit(Transmit::Server(natpmp::external_address())),
            Protocol::Upnp if self.upnp.exchange.is_some() => {}
            Protocol::Upnp => self.transmit(Transmit::Search(upnp::search())),
        }
    }

    fn handle_natpmp(&mut self, reply: natpmp::Reply, now: Instant) {
        match (&self.phase, reply) {
            (Phase::Probing { .. }, natpmp::Reply::External { result, .. }) => {
                let state = match result {
                    Ok(address) => {
                        self.external = Some(address.into());
                        ProbeState::Answers
                    }
                    Err(refusal) => ProbeState::Refuses(refusal),
                };
                self.answered(Protocol::NatPmp, state, now);
            }
            // What a server of this protocol says to PCP (RFC 6887 §9).
            (Phase::Probing { .. }, natpmp::Reply::Unsupported) => {
                self.answered(Protocol::Pcp, ProbeState::Silent, now);
            }
            (Phase::Holding(_), reply) => self.hold_natpmp(reply, now),
            (Phase::Probing { .. }, natpmp::Reply::Map { .. })
            | (Phase::Resting { .. } | Phase::Stopped, _) => {}
        }
    }

    fn handle_pcp(&mut self, reply: pcp::Reply, now: Instant) {
        match (&self.phase, reply) {
            (Phase::Probing { .. }, pcp::Reply::OtherVersion) => {
                self.answered(Protocol::Pcp, ProbeState::Silent, now);
            }
            (Phase::Probing { .. }, pcp::Reply::Announce { error, .. }) => {
                let state = match error {
                    // A server that does not know ANNOUNCE is one still.
                    None | Some(Refusal::Unsupported) => ProbeState::Answers,
                    Some(refusal) => ProbeState::Refuses(refusal),
                };
                self.answered(Protocol::Pcp, state, now);
            }
            (Phase::Holding(_), reply) => self.hold_pcp(reply, now),
            (Phase::Probing { .. }, pcp::Reply::Map { .. })
            | (Phase::Resting { .. } | Phase::Stopped, _) => {}
        }
    }

    fn answered(&mut self, protocol: Protocol, state: ProbeState, now: Instant) {
        if !matches!(self.phase, Phase::Probing { .. }) {
            return;
        }
        if let Some(probe) = self.probes.get_mut(&protocol)
            && probe.state == ProbeState::Asking
        {
            probe.state = state;
        }
        self.settle(now);
    }

    /// The preferred protocol among those that answer, and whether a preferred one still may.
    fn best(&self) -> Option<(Protocol, bool)> {
        let mut open = false;
        for (protocol, probe) in &self.probes {
            match probe.state {
                ProbeState::Asking => open = true,
                ProbeState::Answers => return Some((*protocol, open)),
                ProbeState::Refuses(_) | ProbeState::Silent => {}
            }
        }
        None
    }

    /// Goes on from probing once it is clear what to go on with.
    fn settle(&mut self, now: Instant) {
        let Phase::Probing { started } = self.phase else {
            return;
        };
        let asking = self.probes.values().any(|p| p.state == ProbeState::Asking);
        let hidden = self.external.is_some_and(is_private);
        match (self.config.purpose, self.best()) {
            (Purpose::Look, _) if asking => {}
            (_, Some(_)) if hidden => self.rest(Outcome::TwoLayers, now),
            (Purpose::Look, Some(_)) => self.rest(Outcome::Offered, now),
            (Purpose::Map, Some((protocol, open))) => {
                if !open || now >= started + PREFER {
                    self.hold(protocol, now);
                }
            }
            (_, None) if asking => {}
            (_, None) => {
                let refused = self.probes.iter().find_map(|(protocol, probe)| {
                    let ProbeState::Refuses(refusal) = probe.state else {
                        return None;
                    };
                    Some(Outcome::Refused {
                        protocol: *protocol,
                        refusal,
                    })
                });
                self.rest(refused.unwrap_or(Outcome::Nothing), now);
            }
        }
    }
}
