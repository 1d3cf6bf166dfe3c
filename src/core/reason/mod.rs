//! Why a peer's path is what it is: one [`Reason`] a peer, with a stable code and one remedy in words, and for every pair why
//! it does not carry the data. It decides nothing; it reads what the node knows.

mod pair;
mod remedy;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wice_signaling::protocol::{CandidateKind, Filtering, Mapping, NatBehavior};

use crate::core::ice::{Failure, PairState};
use crate::core::node::{NodeSnapshot, PairView, PathView, PeerSnapshot, RelaySnapshot};
use crate::core::timing::{DATA_DEAD, PAC_MIN, RTO_MIN};

pub use pair::why_not;
pub(crate) use remedy::wrong_credentials;
use remedy::{
    advised, blocked, both_dependent, checking, firewalled, no_advert, no_common_family,
    no_network, not_a_peer_there, pair_unreachable, peer_away, relay_unavailable, revoked, said,
    stun_unreachable,
};

/// Direct pairs that the NATs let through answer to the first check or its first retransmission,
/// which comes after one RTO; with half of one for the answer. After this the NATs' own behaviour is
/// the likelier explanation.
const SETTLED: Duration = Duration::from_millis(RTO_MIN.as_millis() as u64 * 3 / 2);

/// The stable name of a case. Codes are never renamed, only added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// WireGuard reaches the peer by itself.
    Native,
    /// Direct to an address of one of its interfaces.
    DirectHost,
    /// Direct to what a STUN server sees of it.
    DirectSrflx,
    /// Direct to an address that its own check showed.
    DirectPrflx,
    /// Direct to a port mapping on its router.
    DirectMapped,
    /// Relayed by policy, as configured.
    RelayOnly,
    /// Both NATs use another port for every destination.
    BothNatsEndpointDependent,
    /// One NAT uses another port for every destination, the other lets in only what it has sent to.
    NatPairUnreachable,
    /// No UDP leaves this node's network.
    UdpBlockedHere,
    /// No UDP leaves the peer's network.
    UdpBlockedThere,
    /// One side has a public address, and a firewall in front of it.
    Firewalled,
    /// No STUN server answers although UDP leaves: the NAT is not known.
    StunUnreachable,
    /// Both are behind one NAT that does not turn traffic around.
    NoHairpin,
    /// One side has only IPv4, the other only IPv6.
    NoCommonFamily,
    /// The NATs would allow a direct path, and nothing answers on any.
    DirectFailedSilent,
    /// Checks are answered, WireGuard is not.
    WireguardUnanswered,
    /// Not finished yet.
    Checking,
    /// The peer has published nothing yet.
    NoAdvert,
    /// The peer is not connected to signaling, and nothing of it answers.
    PeerAway,
    /// There is no relay that could help.
    NoRelay,
    /// No relay that is configured can be used.
    RelayUnavailable,
    /// This node has no network.
    NoNetwork,
    /// The peer is connected to signaling, and neither it nor its relay answers.
    NothingAnswers,
    /// Attached mode: the peer's interface does not have this node as a peer.
    NotAPeerThere,
    /// Attached mode: the peer was put out of the network, and the interface has it still.
    Revoked,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 25] = [
        Self::Native,
        Self::DirectHost,
        Self::DirectSrflx,
        Self::DirectPrflx,
        Self::DirectMapped,
        Self::RelayOnly,
        Self::BothNatsEndpointDependent,
        Self::NatPairUnreachable,
        Self::UdpBlockedHere,
        Self::UdpBlockedThere,
        Self::Firewalled,
        Self::StunUnreachable,
        Self::NoHairpin,
        Self::NoCommonFamily,
        Self::DirectFailedSilent,
        Self::WireguardUnanswered,
        Self::Checking,
        Self::NoAdvert,
        Self::PeerAway,
        Self::NoRelay,
        Self::RelayUnavailable,
        Self::NoNetwork,
        Self::NothingAnswers,
        Self::NotAPeerThere,
        Self::Revoked,
    ];

    /// In kebab-case, as JSON and logs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::DirectHost => "direct-host",
            Self::DirectSrflx => "direct-srflx",
            Self::DirectPrflx => "direct-prflx",
            Self::DirectMapped => "direct-mapped",
            Self::RelayOnly => "relay-only",
            Self::BothNatsEndpointDependent => "both-nats-endpoint-dependent",
            Self::NatPairUnreachable => "nat-pair-unreachable",
            Self::UdpBlockedHere => "udp-blocked-here",
            Self::UdpBlockedThere => "udp-blocked-there",
            Self::Firewalled => "firewalled",
            Self::StunUnreachable => "stun-unreachable",
            Self::NoHairpin => "no-hairpin",
            Self::NoCommonFamily => "no-common-family",
            Self::DirectFailedSilent => "direct-failed-silent",
            Self::WireguardUnanswered => "wireguard-unanswered",
            Self::Checking => "checking",
            Self::NoAdvert => "no-advert",
            Self::PeerAway => "peer-away",
            Self::NoRelay => "no-relay",
            Self::RelayUnavailable => "relay-unavailable",
            Self::NoNetwork => "no-network",
            Self::NothingAnswers => "nothing-answers",
            Self::NotAPeerThere => "not-a-peer-there",
            Self::Revoked => "revoked",
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a path is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// For machines.
    pub code: Code,
    /// What is the case, in a few words.
    pub summary: String,
    /// What to do, in a few words; empty where nothing is to be done.
    pub hint: String,
    /// What to do, in full; empty where nothing is to be done.
    pub remedy: String,
}

/// What a reason is made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// This node.
    pub node: &'a NodeSnapshot,
    /// The peer.
    pub peer: &'a PeerSnapshot,
    /// This node's UDP port: what remedies tell people to forward.
    pub port: u16,
    /// Only relayed pairs may carry data, by this node's policy.
    pub relay_only: bool,
    /// WireGuard's own endpoint is left alone, and whether something has come by it.
    pub native: Option<bool>,
    /// For how long paths to the peer have been looked for; `None` if not known.
    pub checking_for: Option<Duration>,
    /// Since its node was last connected to signaling: zero while it is, `None` if not known.
    pub last_seen: Option<Duration>,
    /// Since WireGuard's last handshake with it; `None` if there was none.
    pub handshake_age: Option<Duration>,
    /// The interface's name, where another program owns it.
    pub attached: Option<&'a str>,
    /// The peer says that its interface lacks this node.
    pub lacks_us: bool,
    /// What this node's router says to port mapping, in words; `None` if there is no such router.
    pub port_mapping: Option<&'a str>,
}

/// Whether two NATs let a direct path come about. By RFC 4787: a check from x reaches y if y maps endpoint-independently, and y
/// filters by address at most or x maps endpoint-independently. Either direction is enough: the answer goes back the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A direct path is possible.
    Possible,
    /// It is not, and why.
    Impossible(Code),
    /// Too little is known.
    Unknown,
}

/// What the two NATs allow. Unknown filtering counts as port-restricted, which is what most home routers do.
pub fn verdict(here: NatBehavior, there: NatBehavior) -> Verdict {
    let unknown = |nat: NatBehavior| nat.mapping == Mapping::Unknown;
    match (here.mapping, there.mapping) {
        (Mapping::Blocked, _) => return Verdict::Impossible(Code::UdpBlockedHere),
        (_, Mapping::Blocked) => return Verdict::Impossible(Code::UdpBlockedThere),
        _ if unknown(here) || unknown(there) => return Verdict::Unknown,
        _ => {}
    }
    if reaches(here, there) || reaches(there, here) {
        return Verdict::Possible;
    }
    let public = |nat: NatBehavior| nat.mapping == Mapping::None;
    Verdict::Impossible(if is_dependent(here) && is_dependent(there) {
        Code::BothNatsEndpointDependent
    } else if public(here) || public(there) {
        Code::Firewalled
    } else {
        Code::NatPairUnreachable
    })
}

/// The one reason for the state of a peer's path.
pub fn reason(facts: &Facts<'_>) -> Reason {
    if facts.peer.revoked {
        return revoked(facts);
    }
    match facts.native {
        Some(true) => return said(Code::Native, "WireGuard's own endpoint works"),
        // A path would show that it has us by now.
        Some(false) | None if facts.lacks_us && facts.peer.path.is_none() => {
            return not_a_peer_there(facts);
        }
        Some(false) => {
            let summary = "WireGuard's own endpoint, which nothing has been sent to yet";
            return said(Code::Native, summary);
        }
        None => {}
    }
    // What a relay holds for this node outlives its network, and so does a path through it that nothing has used since.
    if facts.node.has_no_network() {
        return no_network();
    }
    match &facts.peer.path {
        Some(path) if path.pair.relays == 0 => why_direct(facts, path),
        Some(_) => why_not_direct(facts),
        None => why_none(facts),
    }
}

/// Whether a mapping differs by destination.
pub(crate) fn is_dependent(nat: NatBehavior) -> bool {
    matches!(
        nat.mapping,
        Mapping::AddressDependent | Mapping::AddressAndPortDependent
    )
}

fn reaches(from: NatBehavior, to: NatBehavior) -> bool {
    let independent =
        |nat: NatBehavior| matches!(nat.mapping, Mapping::EndpointIndependent | Mapping::None);
    let lets_in = match to.filtering {
        Filtering::EndpointIndependent | Filtering::AddressDependent => true,
        Filtering::AddressAndPortDependent | Filtering::Unknown => false,
    };
    independent(to) && (lets_in || independent(from))
}

fn why_direct(facts: &Facts<'_>, path: &PathView) -> Reason {
    if !path.up && facts.handshake_age.is_none() && path.age >= DATA_DEAD {
        return advised(
            Code::WireguardUnanswered,
            "checks are answered, WireGuard's handshakes are not",
            "see that its daemon runs and has this node as a peer",
            "see that WireGuard runs on the peer and has this node's key; if it does, something on the way passes STUN and drops WireGuard",
        );
    }
    match path.pair.remote_kind {
        CandidateKind::Host => said(Code::DirectHost, "an address of its own answers"),
        CandidateKind::ServerReflexive => said(
            Code::DirectSrflx,
            "its address as STUN servers see it answers",
        ),
        CandidateKind::PeerReflexive => said(
            Code::DirectPrflx,
            "the address that its own checks come from answers",
        ),
        CandidateKind::Mapped => said(Code::DirectMapped, "the port that its router maps answers"),
        // A relayed candidate counts as a relay in the path, so this does not come here.
        CandidateKind::Relayed => said(Code::Checking, "relayed by the other side"),
    }
}

/// A relay carries the data: why nothing better does.
fn why_not_direct(facts: &Facts<'_>) -> Reason {
    if facts.relay_only {
        return advised(
            Code::RelayOnly,
            "relayed by policy",
            "set policy = \"auto\" to allow direct paths",
            "set policy = \"auto\" in the configuration to allow direct paths",
        );
    }
    let dead =
        |pair: &PairView| pair.relays == 0 && pair.state == PairState::Failed(Failure::DataDead);
    if facts.peer.pairs.iter().any(dead) {
        return advised(
            Code::WireguardUnanswered,
            "a direct path answers checks, but not WireGuard",
            "allow UDP other than STUN between the two",
            "something between the two passes STUN and drops WireGuard's packets: allow all UDP between them, or use another UDP port",
        );
    }
    no_direct_path(facts)
}

/// Why no direct pair works, as far as NATs and addresses tell.
fn no_direct_path(facts: &Facts<'_>) -> Reason {
    let port = facts.port;
    let here = facts.node.nat;
    let there = facts.peer.nat.unwrap_or_default();
    let direct: Vec<&PairView> = facts
        .peer
        .pairs
        .iter()
        .filter(|pair| pair.relays == 0)
        .collect();
    let open = direct
        .iter()
        .any(|pair| matches!(pair.state, PairState::Waiting | PairState::InProgress));
    let age = facts
        .checking_for
        .or_else(|| facts.peer.path.as_ref().map(|path| path.age));
    let patient_for = |limit: Duration| open && age.is_none_or(|age| age < limit);
    let verdict = verdict(here, there);
    match verdict {
        Verdict::Impossible(code @ (Code::UdpBlockedHere | Code::UdpBlockedThere)) => {
            return blocked(code, port);
        }
        Verdict::Impossible(Code::BothNatsEndpointDependent) => {
            return with_port_mapping(both_dependent(port), facts);
        }
        Verdict::Impossible(_) if patient_for(SETTLED) => return checking(age),
        Verdict::Impossible(Code::Firewalled) => return firewalled(here, port),
        Verdict::Impossible(_) => return with_port_mapping(pair_unreachable(here, port), facts),
        Verdict::Possible | Verdict::Unknown => {}
    }
    if direct.is_empty() && facts.peer.name.is_none() {
        return checking(age);
    }
    if have_no_common_family(facts) {
        return no_common_family();
    }
    if shares_address(facts) && !patient_for(SETTLED) {
        return advised(
            Code::NoHairpin,
            "both are behind one NAT that does not turn traffic around",
            "enable hairpin (NAT loopback) on the router, or put both in one network",
            "enable hairpin (NAT loopback) on the router that both share, or put both into one network that routes between them; behind a carrier's NAT only IPv6 helps",
        );
    }
    if here.mapping == Mapping::Unknown && no_stun_answers(facts.node) && !patient_for(SETTLED) {
        return stun_unreachable(facts.node);
    }
    if patient_for(PAC_MIN) {
        return checking(age);
    }
    let summary = match verdict {
        Verdict::Unknown => {
            "no direct pair answers, and the NATs are not known well enough to say why"
        }
        Verdict::Possible | Verdict::Impossible(_) => {
            "no direct pair answers, though the NATs would allow it"
        }
    };
    advised(
        Code::DirectFailedSilent,
        summary,
        &format!("allow UDP {port} in and out in the firewalls of both sides"),
        &format!(
            "a firewall on one side drops UDP: allow UDP {port} in and out on both nodes and their routers (two STUN servers tell more about the NATs)"
        ),
    )
}

/// Of the addresses that both have themselves, relays' apart.
fn have_no_common_family(facts: &Facts<'_>) -> bool {
    let has = |candidates: &[(CandidateKind, SocketAddr)], ipv4: bool| {
        candidates
            .iter()
            .any(|(kind, address)| *kind != CandidateKind::Relayed && address.is_ipv4() == ipv4)
    };
    let (here, there) = (&facts.node.candidates, &facts.peer.advertised);
    let one_alone =
        |ipv4: bool| has(here, ipv4) && !has(here, !ipv4) && has(there, !ipv4) && !has(there, ipv4);
    one_alone(true) || one_alone(false)
}

/// Whoever is told to set up port mapping is told what became of it here.
fn with_port_mapping(mut reason: Reason, facts: &Facts<'_>) -> Reason {
    if let Some(said) = facts.port_mapping {
        reason
            .remedy
            .push_str(&format!("; port mapping here: {said}"));
    }
    reason
}

/// Nothing carries the data.
fn why_none(facts: &Facts<'_>) -> Reason {
    let age = facts.checking_for;
    if facts.peer.nat.is_none() && facts.peer.pairs.is_empty() {
        return no_advert(facts.last_seen);
    }
    let open = |pair: &PairView| {
        matches!(pair.state, PairState::Waiting | PairState::InProgress) && !pair.held
    };
    let away = facts.last_seen.is_some_and(|seen| seen > Duration::ZERO);
    if away {
        return peer_away(facts.last_seen);
    }
    let usable = |relay: &RelaySnapshot| relay.relayed.is_some();
    let relays = &facts.node.relays;
    // Where the NATs let no direct path come about, or it has had its time, nothing else can help.
    let could_be_direct = |pair: &PairView| open(pair) && pair.relays == 0;
    let possible = !matches!(
        verdict(facts.node.nat, facts.peer.nat.unwrap_or_default()),
        Verdict::Impossible(_)
    );
    let waits = possible
        && facts.peer.pairs.iter().any(could_be_direct)
        && age.is_none_or(|age| age < SETTLED);
    // Other ways to the same server may still be tried: their time is over once one has failed.
    let failed = relays.iter().any(|relay| relay.failure.is_some());
    if failed && !relays.iter().any(usable) && !waits {
        return relay_unavailable(relays);
    }
    if facts.peer.pairs.iter().any(open) && age.is_none_or(|age| age < PAC_MIN) {
        return checking(age);
    }
    let through_theirs = |pair: &PairView| pair.remote_kind == CandidateKind::Relayed;
    if facts.node.relays.iter().any(usable) || facts.peer.pairs.iter().any(through_theirs) {
        return advised(
            Code::NothingAnswers,
            "its node is known, but neither it nor its relay answers",
            "see on the peer whether wice runs (wice status)",
            "see on the peer whether wice runs and has the same network (wice status); if it does, compare wice why on both sides",
        );
    }
    if facts.node.relays.is_empty() {
        let direct = no_direct_path(facts);
        return advised(
            Code::NoRelay,
            &format!("{}, and there is no relay", direct.summary),
            "configure a TURN server",
            &format!(
                "configure a TURN server (turn in wice.toml, or --turn of wice signal); or {}",
                direct.remedy
            ),
        );
    }
    relay_unavailable(&facts.node.relays)
}

/// Whether there are STUN servers, and none has answered in a whole round or is there at all.
fn no_stun_answers(node: &NodeSnapshot) -> bool {
    let mut seen = node.observations.iter().map(|(_, _, seen)| seen).peekable();
    seen.peek().is_some() && seen.all(|seen| seen.silent || seen.refused)
}

/// Whether both sides are seen at one public address.
fn shares_address(facts: &Facts<'_>) -> bool {
    let own = |address: IpAddr| {
        facts
            .node
            .candidates
            .iter()
            .any(|(kind, seen)| *kind == CandidateKind::ServerReflexive && seen.ip() == address)
    };
    facts.peer.pairs.iter().any(|pair| {
        pair.remote_kind == CandidateKind::ServerReflexive && own(SocketAddr::ip(&pair.remote))
    })
}

/// A rough time for a sentence: `41 s`, `12 min`, `5 h`, `3 d`.
pub fn days(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
