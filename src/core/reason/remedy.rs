//! The words: what is the case, and what to do about it.

use std::collections::BTreeSet;
use std::time::Duration;

use wice_signaling::protocol::{Mapping, NatBehavior};

use super::{Code, Facts, Reason, days, is_dependent};
use crate::core::node::{NodeSnapshot, RelaySnapshot};
use crate::core::turn;

pub(super) fn blocked(code: Code, port: u16) -> Reason {
    let (side, place) = if code == Code::UdpBlockedHere {
        ("this node's", "here")
    } else {
        ("the peer's", "there")
    };
    advised(
        code,
        &format!("UDP is blocked {place}"),
        &format!("allow UDP out of {side} network"),
        &format!(
            "allow UDP out of {side} network, at least from port {port} and to port 3478; until then TCP or TLS to the relay carries the traffic"
        ),
    )
}

pub(super) fn both_dependent(port: u16) -> Reason {
    advised(
        Code::BothNatsEndpointDependent,
        "both NATs map by endpoint",
        &format!("forward UDP {port} on one side, or enable IPv6"),
        &format!(
            "forward UDP {port} to one of the two nodes, or enable IPv6 on both, or set up port mapping (UPnP, NAT-PMP, PCP) on one router"
        ),
    )
}

pub(super) fn pair_unreachable(here: NatBehavior, port: u16) -> Reason {
    let (mapping, filtering) = if is_dependent(here) {
        ("this NAT", "the other")
    } else {
        ("the other NAT", "this one")
    };
    let (on, to) = if is_dependent(here) {
        ("the peer's side", "the peer")
    } else {
        ("this side", "this node")
    };
    advised(
        Code::NatPairUnreachable,
        &format!(
            "{mapping} maps by endpoint, and {filtering} lets in only ports that it has sent to"
        ),
        &format!("forward UDP {port} on {on}, or enable IPv6"),
        &format!(
            "forward UDP {port} to {to} (its NAT keeps one port, so it is the easier side), or enable IPv6 on both, or set up port mapping (UPnP, NAT-PMP, PCP) on one router"
        ),
    )
}

pub(super) fn firewalled(here: NatBehavior, port: u16) -> Reason {
    let who = if here.mapping == Mapping::None {
        "this node"
    } else {
        "the peer"
    };
    advised(
        Code::Firewalled,
        &format!("{who} has a firewall in front of it, and the other NAT maps by endpoint"),
        &format!("open UDP {port} in the firewall of {who}"),
        &format!(
            "open UDP {port} inbound in the firewall of {who}: it has no NAT, so that is enough"
        ),
    )
}

pub(super) fn stun_unreachable(node: &NodeSnapshot) -> Reason {
    let servers: BTreeSet<&str> = node
        .observations
        .iter()
        .map(|(_, server, _)| server.as_str())
        .collect();
    let refused = node.observations.iter().any(|(_, _, seen)| seen.refused);
    let servers: Vec<&str> = servers.into_iter().collect();
    let servers = servers.join(", ");
    let what = if refused {
        "is not running"
    } else {
        "does not answer"
    };
    advised(
        Code::StunUnreachable,
        &format!("STUN ({servers}) {what}, so this NAT is not known"),
        "see that the STUN server runs",
        &format!(
            "see that the STUN servers run and that their UDP ports are open ({servers}), or name others (stun in wice.toml); UDP itself leaves this network"
        ),
    )
}

pub(super) fn no_common_family() -> Reason {
    advised(
        Code::NoCommonFamily,
        "the two nodes have no IP family in common",
        "enable IPv6 on both, or IPv4 on both",
        "one node has only IPv4 and the other only IPv6: give both the same (IPv6 on both is best); until then a relay with both families carries the traffic",
    )
}

pub(super) fn no_network() -> Reason {
    advised(
        Code::NoNetwork,
        "this node has no network",
        "check its cable, Wi-Fi and addresses (ip address)",
        "this node has no usable address: check its cable, Wi-Fi and addresses (ip address)",
    )
}

pub(super) fn checking(age: Option<Duration>) -> Reason {
    let summary = match age {
        Some(age) => format!("looking for paths since {:.1} s", age.as_secs_f64()),
        None => "looking for paths".to_owned(),
    };
    said(Code::Checking, &summary)
}

pub(super) fn no_advert(last_seen: Option<Duration>) -> Reason {
    let summary = match last_seen {
        Some(seen) if seen > Duration::ZERO => {
            format!("has published nothing; last seen {} ago", days(seen))
        }
        Some(_) | None => "has published nothing yet".to_owned(),
    };
    advised(
        Code::NoAdvert,
        &summary,
        "start wice there",
        "start wice on the peer (wice up, or wice attach for an interface that it has), and see that it reaches the same signaling service (wice status there)",
    )
}

pub(super) fn peer_away(last_seen: Option<Duration>) -> Reason {
    let seen = last_seen.map(days).unwrap_or_default();
    advised(
        Code::PeerAway,
        &format!("last seen {seen} ago"),
        "see whether the peer is on",
        "see whether the peer is on and its daemon runs (wice status there)",
    )
}

/// What is to be done where a relay refuses the credentials: in a few words, and in full. `minted` ones come from
/// the signaling service, others from this node's configuration.
pub(crate) fn wrong_credentials(minted: bool) -> (&'static str, &'static str) {
    match minted {
        true => (
            "give wice turn (--secret-file) and wice signal (--turn-secret-file) the same secret",
            "give the relay and the signaling service the same secret (wice turn --secret-file, or coturn's static-auth-secret; wice signal --turn-secret-file) and send both a SIGHUP; if it is the same, set their clocks; this node tries again by itself",
        ),
        false => (
            "check the relay's username and password in wice.toml (turn)",
            "check username and password of the relay in wice.toml (turn) against the relay's own; this node tries again by itself",
        ),
    }
}

pub(super) fn relay_unavailable(relays: &[RelaySnapshot]) -> Reason {
    // What a relay answers says more than silence, which is all that blocked UDP shows of it.
    let failed = relays
        .iter()
        .filter_map(|relay| Some((relay, relay.failure?)))
        .min_by_key(|(_, failure)| *failure == turn::Failure::NoAnswer);
    let Some((relay, failure)) = failed else {
        return advised(
            Code::RelayUnavailable,
            "the relay has not answered yet",
            "see wice netcheck",
            "see whether the relay can be reached at all: wice netcheck",
        );
    };
    let name = &relay.name;
    let (cause, remedy) = match failure {
        turn::Failure::WrongCredentials => {
            ("refuses our credentials", wrong_credentials(relay.minted).1)
        }
        turn::Failure::Quota => (
            "has no quota left for this user",
            "raise the relay's quota for a user (user-quota in coturn), or wait until old allocations expire",
        ),
        turn::Failure::Capacity => (
            "is full",
            "give the relay more ports (min-port, max-port in coturn), or add another one",
        ),
        turn::Failure::NoAnswer | turn::Failure::ConnectionClosed | turn::Failure::Expired => (
            "cannot be reached",
            "see that the relay runs and that UDP 3478 or TCP 443 to it is open (wice netcheck)",
        ),
        turn::Failure::Certificate => (
            "shows a certificate that is not trusted",
            "give the nodes its authority by --ca-file, or name the relay as its certificate does (wice netcheck tells what is wrong with it)",
        ),
        turn::Failure::Forbidden => (
            "forbids us to allocate",
            "ask the relay's operator to allow this user",
        ),
        turn::Failure::BadChallenge
        | turn::Failure::StaleNonce
        | turn::Failure::Unauthenticated { .. }
        | turn::Failure::Mismatch
        | turn::Failure::WrongUser
        | turn::Failure::Family(_)
        | turn::Failure::Transport
        | turn::Failure::Alternate(_)
        | turn::Failure::ServerError(_)
        | turn::Failure::Rejected(_)
        | turn::Failure::BadAnswer
        | turn::Failure::Desynchronized => ("does not work", ""),
    };
    let refused = failure == turn::Failure::WrongCredentials;
    let hint = refused.then(|| wrong_credentials(relay.minted).0);
    let remedy = if remedy.is_empty() {
        failure.to_string()
    } else {
        remedy.to_owned()
    };
    advised(
        Code::RelayUnavailable,
        &format!("no direct path, and relay {name} {cause}"),
        hint.unwrap_or(&remedy),
        &remedy,
    )
}

pub(super) fn not_a_peer_there(facts: &Facts<'_>) -> Reason {
    let there = facts.peer.name.as_deref().unwrap_or("the peer");
    let (own, key) = (facts.node.key, facts.peer.key);
    let here = facts.attached.unwrap_or("INTERFACE");
    advised(
        Code::NotAPeerThere,
        "its WireGuard interface does not have this node as a peer",
        &format!("on {there}: wg set INTERFACE peer {own} allowed-ips ADDRESS-OF-THIS-NODE"),
        &format!(
            "on {there}: wg set INTERFACE peer {own} allowed-ips ADDRESS-OF-THIS-NODE, and the same in the file that the interface is made from; or, if the two should not meet, here: wg set {here} peer {key} remove"
        ),
    )
}

pub(super) fn revoked(facts: &Facts<'_>) -> Reason {
    let here = facts.attached.unwrap_or("INTERFACE");
    let key = facts.peer.key;
    advised(
        Code::Revoked,
        "was revoked, and is still a peer of the interface",
        &format!("wg set {here} peer {key} remove"),
        &format!(
            "wice does nothing for it any more, but what WireGuard reaches by itself stays: wg set {here} peer {key} remove, and take it out of the file that the interface is made from; to come back it needs a new key and an invite"
        ),
    )
}

pub(super) fn said(code: Code, summary: &str) -> Reason {
    advised(code, summary, "", "")
}

pub(super) fn advised(code: Code, summary: &str, hint: &str, remedy: &str) -> Reason {
    Reason {
        code,
        summary: summary.to_owned(),
        hint: hint.to_owned(),
        remedy: remedy.to_owned(),
    }
}
