//! Probes: they find out from inside a home what its NAT does, by means of their own. A few lines of
//! STUN by hand instead of the codec that wice uses: an oracle shares no code with what it judges.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use wice_signaling::protocol::{CandidateKind, Filtering, Mapping, NatBehavior};

use super::error::{Doing as _, LabError};
use super::netns::NetNs;

/// STUN's cookie (RFC 8489 §5).
const COOKIE: u32 = 0x2112_a442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// CHANGE-REQUEST flags (RFC 5780 §7.2).
const CHANGE_PORT: u32 = 0x2;
const CHANGE_ADDRESS_AND_PORT: u32 = 0x6;

/// How often a question without an answer is put again: losses of the lab are no silence.
const RETRANSMIT: Duration = Duration::from_millis(100);
/// How long an end waits between its packets while it punches.
const PUNCH_INTERVAL: Duration = Duration::from_millis(10);
/// How often the punching loop looks at its sockets.
const PUNCH_POLL: Duration = Duration::from_micros(500);

/// Pings whose answers are still waited for: ten seconds of them, one every 10 ms.
const PINGS_IN_FLIGHT: usize = 1000;

/// The STUN servers to ask: the first must answer on two addresses and two ports (RFC 5780).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StunServers {
    /// Primary address and port.
    pub primary: SocketAddr,
    /// Other address, primary port.
    pub other_address: SocketAddr,
    /// Other address, other port.
    pub other_port: SocketAddr,
    /// A server of its own.
    pub second: SocketAddr,
}

/// What [`discover`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Mapping and filtering.
    pub behavior: NatBehavior,
    /// As the primary server sees the socket.
    pub mapped: Option<SocketAddr>,
}

/// Maps and filters of the NAT in front of a namespace, by the tests of RFC 5780 §4.3 and §4.4.
/// `patience` is how long silence must last to count: a few round trips.
pub fn discover(
    ns: &NetNs,
    servers: &StunServers,
    patience: Duration,
) -> Result<Discovery, LabError> {
    ns.run(|| discover_here(servers, patience))?
        .doing(|| format!("probing from {}", ns.name()))
}

/// One STUN round trip from a namespace; `None` is silence.
pub fn round_trip(
    ns: &NetNs,
    server: SocketAddr,
    patience: Duration,
) -> Result<Option<Duration>, LabError> {
    let asked = ns.run(|| -> io::Result<Option<Duration>> {
        let socket = UdpSocket::bind(unspecified(server))?;
        let start = Instant::now();
        Ok(binding(&socket, server, patience)?.map(|_| start.elapsed()))
    })?;
    asked.doing(|| format!("asking {server} from {}", ns.name()))
}

/// An answered ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// When the answer came.
    pub at: Instant,
    /// Round trip.
    pub rtt: Duration,
}

/// The first ICMP echo (RFC 792) that is answered, by the other end's kernel, of those sent from a
/// namespace every `interval` for as long as `go_on` says so.
pub fn ping(
    ns: &NetNs,
    to: Ipv4Addr,
    interval: Duration,
    go_on: impl Fn() -> bool + Send,
) -> Result<Option<Pong>, LabError> {
    ns.run(|| ping_here(to, interval, go_on))?
        .doing(|| format!("pinging {to} from {}", ns.name()))
}

/// What a STUN server says about a socket; `None` is silence.
pub fn binding(
    socket: &UdpSocket,
    server: SocketAddr,
    patience: Duration,
) -> io::Result<Option<SocketAddr>> {
    let question = Question::new(server, None);
    Ok(ask(socket, &[question], patience, true)?
        .into_iter()
        .flatten()
        .next())
}

/// Two ends that try to meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// What the first saw of the second when a packet had gone there and back; `None` if none did.
    pub first_sees: Option<(CandidateKind, SocketAddr)>,
    /// What the second saw of the first.
    pub second_sees: Option<(CandidateKind, SocketAddr)>,
    /// Time from the first packet until both had their answer, or until patience ended.
    pub took: Duration,
}

/// Punches: both learn their addresses from two STUN servers, learn each other's, and send to all
/// of them, the second `stagger` later; each also answers, and sends, to whatever it hears from.
/// This is what ICE does at most, so that a meeting is possible if and only if this finds it.
pub fn punch(
    first: &NetNs,
    second: &NetNs,
    servers: &StunServers,
    stagger: Duration,
    patience: Duration,
) -> Result<Meeting, LabError> {
    let doing = || format!("punching between {} and {}", first.name(), second.name());
    let mut ends = [
        first.run(|| End::gather(servers, patience))?.doing(doing)?,
        second
            .run(|| End::gather(servers, patience))?
            .doing(doing)?,
    ];
    let [a, b] = &mut ends;
    a.targets = b.candidates();
    b.targets = a.candidates();
    let start = Instant::now();
    (a.starts, a.next_send) = (start, start);
    (b.starts, b.next_send) = (start + stagger, start + stagger);
    while start.elapsed() < patience + stagger && !(a.answered.is_some() && b.answered.is_some()) {
        a.step(Instant::now());
        b.step(Instant::now());
        std::thread::sleep(PUNCH_POLL);
    }
    Ok(Meeting {
        first_sees: a.answered.map(|address| (b.kind_of(address), address)),
        second_sees: b.answered.map(|address| (a.kind_of(address), address)),
        took: start.elapsed(),
    })
}

/// One end of a meeting.
struct End {
    socket: UdpSocket,
    host: SocketAddr,
    reflexive: BTreeSet<SocketAddr>,
    targets: BTreeSet<SocketAddr>,
    starts: Instant,
    next_send: Instant,
    answered: Option<SocketAddr>,
}

/// Packets of a meeting: a call, and the answer to it.
const CALL: &[u8] = b"lab-punch-call";
const ANSWER: &[u8] = b"lab-punch-answer";
/// The most addresses an end sends to; a pair of NATs shows a handful.
const MAX_TARGETS: usize = 16;

impl End {
    fn gather(servers: &StunServers, patience: Duration) -> io::Result<Self> {
        let socket = UdpSocket::bind(unspecified(servers.primary))?;
        let host = own_address(&socket, servers.primary)?;
        let questions = [servers.primary, servers.second].map(|s| Question::new(s, None));
        let answers = ask(&socket, &questions, patience, true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            host,
            reflexive: answers.into_iter().flatten().collect(),
            targets: BTreeSet::new(),
            starts: Instant::now(),
            next_send: Instant::now(),
            answered: None,
        })
    }

    fn candidates(&self) -> BTreeSet<SocketAddr> {
        self.reflexive.iter().copied().chain([self.host]).collect()
    }

    fn kind_of(&self, address: SocketAddr) -> CandidateKind {
        if address == self.host {
            CandidateKind::Host
        } else if self.reflexive.contains(&address) {
            CandidateKind::ServerReflexive
        } else {
            CandidateKind::PeerReflexive
        }
    }

    fn step(&mut self, now: Instant) {
        let mut packet = [0u8; 64];
        // Refusals by routers along the way are errors of single packets.
        while let Ok((length, from)) = self.socket.recv_from(&mut packet) {
            if &packet[..length] == CALL && now >= self.starts {
                let _ = self.socket.send_to(ANSWER, from);
                if self.targets.len() < MAX_TARGETS {
                    self.targets.insert(from);
                }
            } else if &packet[..length] == ANSWER {
                self.answered.get_or_insert(from);
            }
        }
        if now >= self.next_send {
            self.next_send = now + PUNCH_INTERVAL;
            for target in &self.targets {
                let _ = self.socket.send_to(CALL, target);
            }
        }
    }
}

fn ping_here(
    to: Ipv4Addr,
    interval: Duration,
    go_on: impl Fn() -> bool,
) -> io::Result<Option<Pong>> {
    let socket = UdpSocket::from(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(rustix::net::ipproto::ICMP),
    )?);
    // Answers are told apart by their sequence numbers; older ones than these count no more.
    let mut sent = [Instant::now(); PINGS_IN_FLIGHT];
    let mut sequence: u16 = 0;
    let mut packet = [0u8; 64];
    while go_on() {
        let next_send = Instant::now() + interval;
        sequence = sequence.wrapping_add(1);
        sent[usize::from(sequence) % PINGS_IN_FLIGHT] = Instant::now();
        // The kernel writes identifier and checksum of such a socket.
        let mut echo = [8u8, 0, 0, 0, 0, 0, 0, 0];
        echo[6..].copy_from_slice(&sequence.to_be_bytes());
        // Without a route yet, sending fails: that is silence too.
        let _ = socket.send_to(&echo, SocketAddr::new(to.into(), 0));
        loop {
            let wait = next_send.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(wait))?;
            let Ok((8.., _)) = socket.recv_from(&mut packet) else {
                continue;
            };
            let answered = u16::from_be_bytes([packet[6], packet[7]]);
            if usize::from(sequence.wrapping_sub(answered)) < PINGS_IN_FLIGHT {
                let at = Instant::now();
                let rtt = at - sent[usize::from(answered) % PINGS_IN_FLIGHT];
                return Ok(Some(Pong { at, rtt }));
            }
        }
    }
    Ok(None)
}

fn discover_here(servers: &StunServers, patience: Duration) -> io::Result<Discovery> {
    let socket = UdpSocket::bind(unspecified(servers.primary))?;
    let own = own_address(&socket, servers.primary)?;
    let questions = [servers.primary, servers.other_address, servers.other_port]
        .map(|s| Question::new(s, None));
    let answers = ask(&socket, &questions, patience, true)?;
    let (first, second, third) = match answers[..] {
        [Some(first), Some(second), Some(third)] => (first, second, third),
        _ => {
            let mapping = if answers.iter().all(Option::is_none) {
                Mapping::Blocked
            } else {
                Mapping::Unknown
            };
            let behavior = NatBehavior {
                mapping,
                filtering: Filtering::Unknown,
            };
            return Ok(Discovery {
                behavior,
                mapped: answers.into_iter().flatten().next(),
            });
        }
    };
    let mapping = if first == second && first == own {
        Mapping::None
    } else if first == second {
        Mapping::EndpointIndependent
    } else if second == third {
        Mapping::AddressDependent
    } else {
        Mapping::AddressAndPortDependent
    };
    let behavior = NatBehavior {
        mapping,
        filtering: filtering(servers, patience)?,
    };
    Ok(Discovery {
        behavior,
        mapped: Some(first),
    })
}

/// A fresh socket: the one that asked for the mapping has let the other address in already.
fn filtering(servers: &StunServers, patience: Duration) -> io::Result<Filtering> {
    let socket = UdpSocket::bind(unspecified(servers.primary))?;
    if binding(&socket, servers.primary, patience)?.is_none() {
        return Ok(Filtering::Unknown);
    }
    let questions = [CHANGE_ADDRESS_AND_PORT, CHANGE_PORT]
        .map(|change| Question::new(servers.primary, Some(change)));
    let answers = ask(&socket, &questions, patience, false)?;
    Ok(match answers[..] {
        [Some(_), _] => Filtering::EndpointIndependent,
        [None, Some(_)] => Filtering::AddressDependent,
        _ => Filtering::AddressAndPortDependent,
    })
}

/// A binding request on its way.
struct Question {
    to: SocketAddr,
    transaction: [u8; 12],
    change: Option<u32>,
}

impl Question {
    fn new(to: SocketAddr, change: Option<u32>) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let mut transaction = [0u8; 12];
        transaction[..8].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        transaction[8..].copy_from_slice(&std::process::id().to_be_bytes());
        Self {
            to,
            transaction,
            change,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let length: u16 = if self.change.is_some() { 8 } else { 0 };
        let mut message = Vec::with_capacity(28);
        message.extend_from_slice(&BINDING_REQUEST.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(&COOKIE.to_be_bytes());
        message.extend_from_slice(&self.transaction);
        if let Some(change) = self.change {
            message.extend_from_slice(&CHANGE_REQUEST.to_be_bytes());
            message.extend_from_slice(&4u16.to_be_bytes());
            message.extend_from_slice(&change.to_be_bytes());
        }
        message
    }
}

/// Puts all questions at once and gives the answers in their order. With `until_all` it returns as
/// soon as all are answered; either way it waits no longer than `patience`.
fn ask(
    socket: &UdpSocket,
    questions: &[Question],
    patience: Duration,
    until_all: bool,
) -> io::Result<Vec<Option<SocketAddr>>> {
    let mut answers = vec![None; questions.len()];
    let start = Instant::now();
    let mut next_send = start;
    let mut packet = [0u8; 1500];
    while start.elapsed() < patience && !answers.iter().all(Option::is_some) {
        if Instant::now() >= next_send {
            next_send += RETRANSMIT;
            for (question, _) in questions.iter().zip(&answers).filter(|(_, a)| a.is_none()) {
                // A router's refusal is silence; so is a network that is not there.
                let _ = socket.send_to(&question.encode(), question.to);
            }
        }
        let rest = patience.saturating_sub(start.elapsed());
        let wait = next_send
            .saturating_duration_since(Instant::now())
            .min(rest);
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let Ok((length, _)) = socket.recv_from(&mut packet) else {
            continue;
        };
        let Some((transaction, mapped)) = parse_success(&packet[..length]) else {
            continue;
        };
        for (question, answer) in questions.iter().zip(&mut answers) {
            if question.transaction == transaction {
                *answer = Some(mapped);
            }
        }
        // The first question of a filtering test answers the second too.
        if !until_all && answers.first().is_some_and(Option::is_some) {
            break;
        }
    }
    Ok(answers)
}

/// Transaction and XOR-MAPPED-ADDRESS of a success response (RFC 8489 §5, §14.2).
fn parse_success(packet: &[u8]) -> Option<([u8; 12], SocketAddr)> {
    if packet.get(..2)? != BINDING_SUCCESS.to_be_bytes() {
        return None;
    }
    if packet.get(4..8)? != COOKIE.to_be_bytes() {
        return None;
    }
    let transaction: [u8; 12] = packet.get(8..20)?.try_into().ok()?;
    let mut rest = packet.get(20..)?;
    loop {
        let kind = u16::from_be_bytes(rest.get(..2)?.try_into().ok()?);
        let length = usize::from(u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?));
        let value = rest.get(4..4 + length)?;
        if kind == XOR_MAPPED_ADDRESS {
            return Some((transaction, parse_xor_address(value, &transaction)?));
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
}

fn parse_xor_address(value: &[u8], transaction: &[u8; 12]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(value.get(2..4)?.try_into().ok()?) ^ (COOKIE >> 16) as u16;
    let ip = match value.get(1)? {
        1 => {
            let bits = u32::from_be_bytes(value.get(4..8)?.try_into().ok()?);
            IpAddr::V4(Ipv4Addr::from_bits(bits ^ COOKIE))
        }
        2 => {
            let mut mask = [0u8; 16];
            mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
            mask[4..].copy_from_slice(transaction);
            let bits = u128::from_be_bytes(value.get(4..20)?.try_into().ok()?);
            IpAddr::V6(Ipv6Addr::from_bits(bits ^ u128::from_be_bytes(mask)))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The address that packets of the socket to there leave with; unspecified where no route leads.
fn own_address(socket: &UdpSocket, to: SocketAddr) -> io::Result<SocketAddr> {
    let port = socket.local_addr()?.port();
    let probe = UdpSocket::bind(unspecified(to))?;
    let ip = match probe.connect(to) {
        Ok(()) => probe.local_addr()?.ip(),
        Err(_) => unspecified(to).ip(),
    };
    Ok(SocketAddr::new(ip, port))
}

fn unspecified(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}
