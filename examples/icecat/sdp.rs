//! Candidates as lines of text (RFC 8839 §5.1).

use std::net::{IpAddr, SocketAddr};

use wice::core::ice::{Base, RemoteCandidate, candidate_priority};
use wice_signaling::protocol::{CandidateKind, RelayTransport};

/// `BODY` of `candidate:BODY` for one candidate of a base.
pub(crate) fn format(base: &Base, address: SocketAddr, kind: CandidateKind) -> String {
    let name = name(kind);
    let priority = candidate_priority(kind, base.preference);
    // One foundation for what has the same kind, base and server (RFC 8445 §5.1.1.3).
    let foundation = format!("{}{name}", base.id.0);
    let (ip, port) = (address.ip(), address.port());
    let related = match kind {
        CandidateKind::Host => String::new(),
        CandidateKind::PeerReflexive
        | CandidateKind::ServerReflexive
        | CandidateKind::Mapped
        | CandidateKind::Relayed => {
            format!(" raddr {} rport {}", base.address.ip(), base.address.port())
        }
    };
    format!("{foundation} 1 udp {priority} {ip} {port} typ {name}{related}")
}

/// The candidate of a line, with or without `a=` and `candidate:`. `None` for what we cannot use:
/// TCP, names instead of addresses, other components.
pub(crate) fn parse(line: &str) -> Option<RemoteCandidate> {
    let line = line.strip_prefix("a=").unwrap_or(line);
    let body = line.strip_prefix("candidate:").unwrap_or(line);
    let mut words = body.split_whitespace().skip(1);
    let component = words.next()?;
    let transport = words.next()?;
    let priority = words.next()?.parse().ok()?;
    let ip: IpAddr = words.next()?.parse().ok()?;
    let port = words.next()?.parse().ok()?;
    let kind = (words.next()? == "typ").then(|| words.next())??;
    if component != "1" || !transport.eq_ignore_ascii_case("udp") {
        return None;
    }
    let kind = match kind {
        "host" => CandidateKind::Host,
        "srflx" => CandidateKind::ServerReflexive,
        "prflx" => CandidateKind::PeerReflexive,
        "relay" => CandidateKind::Relayed,
        _ => return None,
    };
    Some(RemoteCandidate {
        address: SocketAddr::new(ip, port),
        kind,
        priority,
        relay_transport: (kind == CandidateKind::Relayed).then_some(RelayTransport::Udp),
    })
}

pub(crate) fn name(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::PeerReflexive => "prflx",
        CandidateKind::ServerReflexive | CandidateKind::Mapped => "srflx",
        CandidateKind::Relayed => "relay",
    }
}
