//! What must come of a pair of nodes, and whether two reports say so.

use wice::lab::{Expected, NatKind, PeerStatus, ground_truth};
use wice_signaling::protocol::CandidateKind;

/// What must come of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    expected: Expected,
    transport: Option<&'static str>,
    reason: Option<&'static str>,
}

impl Want {
    /// What the NATs of the two homes allow.
    pub fn of(first: NatKind, second: NatKind) -> Self {
        ground_truth(first, second).into()
    }

    /// Relayed, over one of the named transports: `udp`, `tcp`, `tls`.
    pub fn relayed_by(mut self, transport: &'static str) -> Self {
        self.transport = Some(transport);
        self
    }

    /// With this reason on the first's side.
    pub fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Whether no relay is between.
    pub fn is_direct(&self) -> bool {
        self.expected.direct
    }

    /// What is wrong with what the two sides report, if anything: kind, both ends on both sides,
    /// and that both sides speak of the same pair.
    pub fn objection(
        &self,
        first: Option<&PeerStatus>,
        second: Option<&PeerStatus>,
    ) -> Option<String> {
        let (Some(first), Some(second)) = (first, second) else {
            return Some("one does not know the other".into());
        };
        let kind = if self.expected.direct {
            "direct"
        } else {
            "relayed"
        };
        let have = format!("{} | {}", described(first), described(second));
        if first.path.kind != kind || second.path.kind != kind {
            return Some(format!("{have}, not {kind}"));
        }
        let ends = (ends(first), ends(second));
        let (Some((first_local, first_remote)), Some((second_local, second_remote))) = ends else {
            return Some(format!("{have}: an end of no known kind"));
        };
        if (first_local, first_remote) != (second_remote, second_local) {
            return Some(format!("{have}: not the same pair"));
        }
        if !self.expected.admits(first_remote, second_remote) {
            return Some(format!("{have}, not as {:?}", self.expected));
        }
        let transports = [first, second].map(|peer| peer.path.relay_transport.as_deref());
        if self.transport.is_some() && !transports.contains(&self.transport) {
            return Some(format!("{have}, not over {:?}", self.transport));
        }
        if self.reason.is_some() && first.reason.as_deref() != self.reason {
            return Some(format!("{have}: {:?}, not {:?}", first.reason, self.reason));
        }
        None
    }
}

impl From<Expected> for Want {
    fn from(expected: Expected) -> Self {
        Self {
            expected,
            transport: None,
            reason: None,
        }
    }
}

/// `direct srflx>prflx`, `relayed relay>srflx udp`.
pub(crate) fn described(peer: &PeerStatus) -> String {
    let kind = |end: &Option<wice::lab::EndStatus>| match end {
        Some(end) => end.kind.clone(),
        None => "-".into(),
    };
    let path = &peer.path;
    let ends = format!("{}>{}", kind(&path.local), kind(&path.remote));
    match &path.relay_transport {
        Some(transport) => format!("{} {ends} {transport}", path.kind),
        None => format!("{} {ends}", path.kind),
    }
}

fn ends(peer: &PeerStatus) -> Option<(CandidateKind, CandidateKind)> {
    let kind = |end: &Option<wice::lab::EndStatus>| candidate_kind(&end.as_ref()?.kind);
    Some((kind(&peer.path.local)?, kind(&peer.path.remote)?))
}

fn candidate_kind(name: &str) -> Option<CandidateKind> {
    Some(match name {
        "host" => CandidateKind::Host,
        "srflx" => CandidateKind::ServerReflexive,
        "prflx" => CandidateKind::PeerReflexive,
        "mapped" => CandidateKind::Mapped,
        "relay" => CandidateKind::Relayed,
        _ => return None,
    })
}
