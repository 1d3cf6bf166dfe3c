//! Gathering from STUN servers (RFC 8445 §5.1.1.2) for the daemon's life, and what the answers say
//! of the NAT (RFC 4787, in the manner of RFC 5780 as far as plain servers allow).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::{Mapping, NatBehavior};

use super::ice::BaseId;
use super::stun::{Binding, BindingClass, TransactionId, encode_binding};
use super::timing::{RTO_MIN, STUN_REFRESH, STUN_TIMEOUT};

/// Servers used at most: two classify the mapping, more add little.
const MAX_SERVERS: usize = 4;
/// A server that does not answer from a base is asked again after a doubling wait up to this.
const SILENT_MAX: Duration = Duration::from_secs(300);
/// Transmissions of one request: at 0, 0.5, 1.5, 3.5 s.
const TRANSMISSIONS: u8 = 4;

/// A request to a STUN server to be sent from a base.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// What it leaves from.
    pub base: BaseId,
    /// The server.
    pub server: SocketAddr,
    /// The Binding request.
    pub payload: Vec<u8>,
}

/// All probes: each base against each server of its family.
#[derive(Debug, Default)]
pub struct Gatherer {
    bases: BTreeMap<BaseId, SocketAddr>,
    servers: Vec<SocketAddr>,
    probes: BTreeMap<(BaseId, SocketAddr), Probe>,
    by_id: BTreeMap<TransactionId, (BaseId, SocketAddr)>,
    /// A server has gone silent since [`Self::take_silenced`] was asked.
    silenced: bool,
}

#[derive(Debug)]
struct Probe {
    state: ProbeState,
    mapped: Option<SocketAddr>,
    rtt: Option<Duration>,
    /// Rounds in a row without an answer.
    silent: u32,
    /// The server's host has said that nothing listens there.
    refused: bool,
}

#[derive(Debug)]
enum ProbeState {
    Idle {
        until: Instant,
    },
    Asking {
        id: TransactionId,
        started: Instant,
        sent: u8,
        next: Instant,
        payload: Vec<u8>,
    },
}

/// What one server said to one base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What was asked from.
    pub base: BaseId,
    /// Who was asked.
    pub server: SocketAddr,
    /// Where it saw the base; `None` while it has not answered.
    pub mapped: Option<SocketAddr>,
    /// Round trip.
    pub rtt: Option<Duration>,
    /// Whether at least one whole round went unanswered.
    pub silent: bool,
    /// Whether the server's host says that nothing listens there.
    pub refused: bool,
}

impl Gatherer {
    /// The bases to gather from, with their own addresses.
    pub fn set_bases(&mut self, bases: BTreeMap<BaseId, SocketAddr>, now: Instant) {
        self.bases = bases;
        self.sync(now);
    }

    /// The servers to ask, best first.
    pub fn set_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        let mut seen = BTreeSet::new();
        let fresh = |server: &&SocketAddr| seen.insert(**server);
        self.servers = servers
            .iter()
            .filter(fresh)
            .take(2 * MAX_SERVERS)
            .copied()
            .collect();
        self.sync(now);
    }

    /// Asks everybody again now: the network has changed.
    pub fn restart(&mut self, now: Instant) {
        self.probes.clear();
        self.by_id.clear();
        self.sync(now);
    }

    /// Asks everybody again now, and believes what is known until they answer.
    pub fn ask_again(&mut self, now: Instant) {
        self.probes.values_mut().for_each(|probe| probe.hurry(now));
    }

    /// Asks those again now that have been silent: something shows that UDP leaves.
    pub fn ask_silent(&mut self, now: Instant) {
        let silent = self.probes.values_mut().filter(|probe| probe.silent > 0);
        silent.for_each(|probe| probe.hurry(now));
    }

    /// When [`Self::poll_request`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.probes.values().map(Probe::due).min()
    }

    /// The next request that is due. `id` is used if it opens a transaction.
    pub fn poll_request(&mut self, id: TransactionId, now: Instant) -> Option<Request> {
        loop {
            let due = self.probes.iter().min_by_key(|(_, probe)| probe.due());
            let (&(base, server), _) = due.filter(|(_, probe)| probe.due() <= now)?;
            let probe = self.probes.get_mut(&(base, server))?;
            match &mut probe.state {
                ProbeState::Idle { .. } => {
                    let payload = encode_binding(id);
                    probe.state = ProbeState::Asking {
                        id,
                        started: now,
                        sent: 1,
                        next: now + RTO_MIN,
                        payload: payload.clone(),
                    };
                    self.by_id.insert(id, (base, server));
                    return Some(Request {
                        base,
                        server,
                        payload,
                    });
                }
                ProbeState::Asking {
                    started,
                    sent,
                    next,
                    payload,
                    ..
                } if *sent < TRANSMISSIONS && now < *started + STUN_TIMEOUT => {
                    *next = now + RTO_MIN * (1 << *sent);
                    *sent += 1;
                    return Some(Request {
                        base,
                        server,
                        payload: payload.clone(),
                    });
                }
                ProbeState::Asking { id, .. } => {
                    let id = *id;
                    probe.silent += 1;
                    self.silenced = true;
                    // An old answer says nothing once the server has gone silent.
                    probe.mapped = None;
                    let wait = STUN_REFRESH * (1 << probe.silent.min(4));
                    probe.state = ProbeState::Idle {
                        until: now + wait.min(SILENT_MAX),
                    };
                    self.by_id.remove(&id);
                }
            }
        }
    }

    /// An answer; `true` if it belongs to a request of ours and so to nobody else.
    pub fn handle_response(
        &mut self,
        from: SocketAddr,
        response: &Binding<'_>,
        now: Instant,
    ) -> bool {
        let Some(&(base, server)) = self.by_id.get(&response.id()) else {
            return false;
        };
        if from != server || response.class() != BindingClass::Success {
            return true;
        }
        let Some(mapped) = response.mapped_address() else {
            return true;
        };
        self.by_id.remove(&response.id());
        if let Some(probe) = self.probes.get_mut(&(base, server)) {
            if let ProbeState::Asking {
                started, sent: 1, ..
            } = &probe.state
            {
                probe.rtt = Some(now.duration_since(*started));
            }
            probe.mapped = Some(mapped);
            probe.silent = 0;
            probe.refused = false;
            probe.state = ProbeState::Idle {
                until: now + STUN_REFRESH,
            };
        }
        true
    }

    /// The server's own host says by ICMP that nothing listens there. Whether that is news.
    pub fn handle_refused(&mut self, server: SocketAddr) -> bool {
        let asking = |probe: &&mut Probe| matches!(probe.state, ProbeState::Asking { .. });
        let mut news = false;
        for (_, probe) in self
            .probes
            .iter_mut()
            .filter(|((_, asked), _)| *asked == server)
        {
            if asking(&probe) {
                news |= !std::mem::replace(&mut probe.refused, true);
            }
        }
        news
    }

    /// Whether a server is reached that does not serve: UDP leaves.
    pub fn is_refused(&self) -> bool {
        self.probes.values().any(|probe| probe.refused)
    }

    /// Whether a server has gone silent since the last call.
    pub fn take_silenced(&mut self) -> bool {
        std::mem::take(&mut self.silenced)
    }

    /// Everything that is known, by base and server.
    pub fn observations(&self) -> impl Iterator<Item = Observation> + '_ {
        self.probes
            .iter()
            .map(|(&(base, server), probe)| Observation {
                base,
                server,
                mapped: probe.mapped,
                rtt: probe.rtt,
                silent: probe.silent > 0,
                refused: probe.refused,
            })
    }

    /// Where a base is seen, without its own address; each once.
    pub fn reflexive(&self, base: BaseId) -> Vec<SocketAddr> {
        let own = self.bases.get(&base);
        let seen: BTreeSet<SocketAddr> = self
            .observations()
            .filter(|seen| seen.base == base)
            .filter_map(|seen| seen.mapped)
            .filter(|mapped| Some(mapped) != own)
            .collect();
        seen.into_iter().collect()
    }

    /// What the answers say of the NAT in front of the base that is answered best. Filtering needs
    /// servers that answer from a second address and stays unknown.
    pub fn nat(&self) -> NatBehavior {
        let mut by_base: BTreeMap<BaseId, Vec<Observation>> = BTreeMap::new();
        for observation in self.observations().filter(|o| o.mapped.is_some()) {
            by_base
                .entry(observation.base)
                .or_default()
                .push(observation);
        }
        let Some((base, seen)) = by_base.into_iter().max_by_key(|(_, seen)| seen.len()) else {
            let all_silent = !self.probes.is_empty() && self.probes.values().all(|p| p.silent > 0);
            let mapping = if all_silent {
                Mapping::Blocked
            } else {
                Mapping::Unknown
            };
            return NatBehavior {
                mapping,
                ..NatBehavior::default()
            };
        };
        let own = self.bases.get(&base).copied();
        NatBehavior {
            mapping: classify(own, &seen),
            ..NatBehavior::default()
        }
    }

    fn sync(&mut self, now: Instant) {
        let wanted: BTreeSet<(BaseId, SocketAddr)> = self
            .bases
            .iter()
            .flat_map(|(base, address)| {
                let of_family = |server: &&SocketAddr| server.is_ipv4() == address.is_ipv4();
                let servers = self.servers.iter().filter(of_family).take(MAX_SERVERS);
                servers.map(|server| (*base, *server))
            })
            .collect();
        self.probes.retain(|key, _| wanted.contains(key));
        let probes = &self.probes;
        self.by_id.retain(|_, key| probes.contains_key(key));
        for key in wanted {
            self.probes.entry(key).or_insert(Probe {
                state: ProbeState::Idle { until: now },
                mapped: None,
                rtt: None,
                silent: 0,
                refused: false,
            });
        }
    }
}

impl Probe {
    /// Has it ask now, unless it is asking.
    fn hurry(&mut self, now: Instant) {
        if let ProbeState::Idle { until } = &mut self.state {
            *until = now.min(*until);
        }
    }

    fn due(&self) -> Instant {
        match &self.state {
            ProbeState::Idle { until } => *until,
            ProbeState::Asking { next, .. } => *next,
        }
    }
}

/// RFC 4787 §4.1, from what several servers saw of one base.
fn classify(own: Option<SocketAddr>, seen: &[Observation]) -> Mapping {
    let mapped: BTreeSet<SocketAddr> = seen.iter().filter_map(|o| o.mapped).collect();
    if mapped.len() == 1 && mapped.first().copied() == own {
        return Mapping::None;
    }
    match (mapped.len(), seen.len()) {
        (_, 0 | 1) => Mapping::Unknown,
        (1, _) => Mapping::EndpointIndependent,
        _ => {
            let same_host_differs = seen.iter().any(|a| {
                seen.iter()
                    .any(|b| a.server.ip() == b.server.ip() && a.mapped != b.mapped)
            });
            let same_host_asked = seen.iter().any(|a| {
                seen.iter()
                    .any(|b| a.server.ip() == b.server.ip() && a.server != b.server)
            });
            match (same_host_asked, same_host_differs) {
                (true, false) => Mapping::AddressDependent,
                (true, true) | (false, _) => Mapping::AddressAndPortDependent,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::stun::{encode_success, integrity_key};

    const BASE: BaseId = BaseId(1);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Asks `servers`, answers by `see`, and returns the gatherer.
    fn gathered(servers: &[&str], see: impl Fn(SocketAddr) -> Option<SocketAddr>) -> Gatherer {
        let mut now = Instant::now();
        let end = now + Duration::from_secs(20);
        let mut gatherer = Gatherer::default();
        gatherer.set_bases(BTreeMap::from([(BASE, address("192.168.1.2:51821"))]), now);
        let servers: Vec<SocketAddr> = servers.iter().map(|s| address(s)).collect();
        gatherer.set_servers(&servers, now);
        let mut id = 0u128;
        while now < end {
            id += 1;
            while let Some(request) = gatherer.poll_request(TransactionId::from(id), now) {
                id += 1;
                if let Some(mapped) = see(request.server) {
                    let asked = Binding::parse(&request.payload).unwrap().id();
                    let answer = encode_success(asked, mapped, &integrity_key("x"));
                    let answer = Binding::parse(&answer).unwrap();
                    assert!(gatherer.handle_response(request.server, &answer, now));
                }
            }
            now += Duration::from_millis(100);
        }
        gatherer
    }

    #[test]
    fn mapping_is_told_from_the_answers() {
        let two = ["198.51.100.1:3478", "198.51.100.2:3478"];
        let same = gathered(&two, |_| Some(address("203.0.113.9:51821")));
        assert_eq!(same.nat().mapping, Mapping::EndpointIndependent);
        assert_eq!(same.reflexive(BASE), [address("203.0.113.9:51821")]);
        let own = gathered(&two, |_| Some(address("192.168.1.2:51821")));
        assert_eq!(own.nat().mapping, Mapping::None);
        assert_eq!(own.reflexive(BASE), []);
        let by_server = |s: SocketAddr| {
            let port = if s.ip().to_string().ends_with('1') {
                1000
            } else {
                2000
            };
            Some(SocketAddr::new(
                address("203.0.113.9:1").ip(),
                port + s.port() % 7,
            ))
        };
        let symmetric = gathered(&two, by_server);
        assert_eq!(symmetric.nat().mapping, Mapping::AddressAndPortDependent);
        assert_eq!(symmetric.reflexive(BASE).len(), 2);
        let three = [
            "198.51.100.1:3478",
            "198.51.100.1:3479",
            "198.51.100.2:3478",
        ];
        let by_host = |s: SocketAddr| {
            let port = if s.ip().to_string().ends_with('1') {
                1000
            } else {
                2000
            };
            Some(SocketAddr::new(address("203.0.113.9:1").ip(), port))
        };
        assert_eq!(
            gathered(&three, by_host).nat().mapping,
            Mapping::AddressDependent
        );
        assert_eq!(
            gathered(&three, by_server).nat().mapping,
            Mapping::AddressAndPortDependent
        );
        assert_eq!(gathered(&two, |_| None).nat().mapping, Mapping::Blocked);
        assert_eq!(gathered(&two[..1], by_host).nat().mapping, Mapping::Unknown);
    }

    #[test]
    fn who_was_silent_is_asked_at_once_when_udp_leaves_again() {
        let servers = ["198.51.100.1:3478", "198.51.100.2:3478"];
        let first = |server: SocketAddr| server == address("198.51.100.1:3478");
        let seen = address("203.0.113.9:51821");
        let mut gatherer = gathered(&servers, |server| first(server).then_some(seen));
        let now = Instant::now() + Duration::from_secs(20);
        let mut ids = (1_000_000u128..).map(TransactionId::from);
        let mut poll = |gatherer: &mut Gatherer| gatherer.poll_request(ids.next().unwrap(), now);
        assert_eq!(poll(&mut gatherer), None, "nobody is due");
        gatherer.ask_silent(now);
        let asked = poll(&mut gatherer).unwrap();
        assert_eq!(asked.server, address(servers[1]));
        assert_eq!(poll(&mut gatherer), None, "who answers is not");
    }

    #[test]
    fn strangers_answers_mean_nothing() {
        let now = Instant::now();
        let mut gatherer = gathered(&["198.51.100.1:3478"], |_| None);
        let forged = encode_success(
            TransactionId::from(1),
            address("6.6.6.6:6"),
            &integrity_key("x"),
        );
        assert!(!gatherer.handle_response(
            address("198.51.100.1:3478"),
            &Binding::parse(&forged).unwrap(),
            now
        ));
        assert_eq!(gatherer.reflexive(BASE), []);
    }
}
