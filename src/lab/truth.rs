//! The ground truth: which pairs of homes can meet, and what each sees of the other.
//!
//! A hole can be punched towards a node exactly when its mapping does not depend on who is asked
//! (else nobody can know its port beforehand), and its filter lets the other's packets in: because
//! the filter looks at addresses at most, or because the other's port is known beforehand too
//! (RFC 4787 §4.1, §5). One way is enough: the answer goes back where the packet came from.

use wice_signaling::protocol::{CandidateKind, Filtering, Mapping, NatBehavior};

use super::config::NatKind;

/// What must come of two nodes in different homes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Whether they meet without a relay.
    pub direct: bool,
    /// Kind of the second's candidate as the first has it, if no relay is between.
    pub second_seen: CandidateKind,
    /// Kind of the first's candidate as the second has it, if no relay is between.
    pub first_seen: CandidateKind,
    /// Kind of the second's candidate if the first's relay is between.
    pub second_by_relay: CandidateKind,
    /// Kind of the first's candidate if the second's relay is between.
    pub first_by_relay: CandidateKind,
}

impl Expected {
    /// Whether the remote kinds that the two report, at convergence, are as the NATs allow. A
    /// relayed path has one relay in it at least.
    pub fn admits(&self, first_sees: CandidateKind, second_sees: CandidateKind) -> bool {
        if self.direct {
            return (first_sees, second_sees) == (self.second_seen, self.first_seen);
        }
        let relayed = |kind| kind == CandidateKind::Relayed;
        let first_natural = relayed(first_sees) || first_sees == self.second_by_relay;
        let second_natural = relayed(second_sees) || second_sees == self.first_by_relay;
        first_natural && second_natural && (relayed(first_sees) || relayed(second_sees))
    }
}

/// How a home of this kind maps and filters UDP, as a STUN client on it finds out (RFC 5780 §4).
pub fn behavior(kind: NatKind) -> NatBehavior {
    let (mapping, filtering) = match kind {
        NatKind::FullCone => (Mapping::EndpointIndependent, Filtering::EndpointIndependent),
        NatKind::AddressRestricted => (Mapping::EndpointIndependent, Filtering::AddressDependent),
        NatKind::PortRestricted | NatKind::Cgnat => (
            Mapping::EndpointIndependent,
            Filtering::AddressAndPortDependent,
        ),
        NatKind::AddressDependent => (
            Mapping::AddressDependent,
            Filtering::AddressAndPortDependent,
        ),
        NatKind::Symmetric => (
            Mapping::AddressAndPortDependent,
            Filtering::AddressAndPortDependent,
        ),
        NatKind::Public => (Mapping::None, Filtering::EndpointIndependent),
        NatKind::Firewalled => (Mapping::None, Filtering::AddressAndPortDependent),
        NatKind::UdpBlocked => (Mapping::Blocked, Filtering::Unknown),
    };
    NatBehavior { mapping, filtering }
}

/// What must come of a node in a home of kind `first` and one in another home of kind `second`,
/// each `cgnat` home behind a carrier of its own.
pub fn ground_truth(first: NatKind, second: NatKind) -> Expected {
    let (a, b) = (behavior(first), behavior(second));
    Expected {
        direct: reaches(a, b) || reaches(b, a),
        second_seen: seen_as(b.mapping),
        first_seen: seen_as(a.mapping),
        second_by_relay: seen_by_relay(b.mapping),
        first_by_relay: seen_by_relay(a.mapping),
    }
}

/// What must come of two nodes on one LAN: each other's own addresses, whatever the router does.
pub fn same_lan() -> Expected {
    Expected {
        direct: true,
        second_seen: CandidateKind::Host,
        first_seen: CandidateKind::Host,
        second_by_relay: CandidateKind::Host,
        first_by_relay: CandidateKind::Host,
    }
}

/// What must come of two `cgnat` homes behind one carrier: the carrier's hairpin decides.
pub fn same_carrier(hairpin: bool) -> Expected {
    Expected {
        direct: hairpin,
        ..ground_truth(NatKind::Cgnat, NatKind::Cgnat)
    }
}

/// Whether packets of `from` to the address that a STUN server saw of `to` get in, once both send.
fn reaches(from: NatBehavior, to: NatBehavior) -> bool {
    if from.mapping == Mapping::Blocked || to.mapping == Mapping::Blocked {
        return false;
    }
    let admits = match to.filtering {
        Filtering::EndpointIndependent | Filtering::AddressDependent => true,
        Filtering::AddressAndPortDependent | Filtering::Unknown => is_foreseeable(from.mapping),
    };
    is_foreseeable(to.mapping) && admits
}

/// Whether the port that a stranger sees is the one that a STUN server saw.
fn is_foreseeable(mapping: Mapping) -> bool {
    match mapping {
        Mapping::None | Mapping::EndpointIndependent => true,
        Mapping::Unknown
        | Mapping::AddressDependent
        | Mapping::AddressAndPortDependent
        | Mapping::Blocked => false,
    }
}

/// The kind under which the other end files this one (RFC 8445 §7.3.1.3: unforeseen is prflx).
fn seen_as(mapping: Mapping) -> CandidateKind {
    match mapping {
        Mapping::None => CandidateKind::Host,
        Mapping::EndpointIndependent => CandidateKind::ServerReflexive,
        Mapping::AddressDependent | Mapping::AddressAndPortDependent => {
            CandidateKind::PeerReflexive
        }
        Mapping::Unknown | Mapping::Blocked => CandidateKind::Relayed,
    }
}

/// The same where the stranger is the lab's relay, whose address is a STUN server's too: a NAT that
/// maps by address shows it the port that the STUN server saw.
fn seen_by_relay(mapping: Mapping) -> CandidateKind {
    match mapping {
        Mapping::AddressDependent => CandidateKind::ServerReflexive,
        Mapping::None
        | Mapping::EndpointIndependent
        | Mapping::AddressAndPortDependent
        | Mapping::Unknown
        | Mapping::Blocked => seen_as(mapping),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as it is printed in textbooks, against the rule.
    #[test]
    fn the_rule_gives_the_table() {
        use NatKind::{AddressDependent, AddressRestricted, FullCone, PortRestricted, Symmetric};
        let kinds = [
            FullCone,
            AddressRestricted,
            PortRestricted,
            AddressDependent,
            Symmetric,
        ];
        let table = ["ddddd", "ddddd", "dddrr", "ddrrr", "ddrrr"];
        for (first, row) in kinds.into_iter().zip(table) {
            for (second, cell) in kinds.into_iter().zip(row.chars()) {
                assert_eq!(
                    ground_truth(first, second).direct,
                    cell == 'd',
                    "{first} {second}"
                );
            }
        }
    }

    #[test]
    fn public_meets_all_and_a_firewall_is_a_port_restricted_nat() {
        for kind in NatKind::MATRIX {
            assert!(ground_truth(NatKind::Public, kind).direct, "{kind}");
            assert_eq!(
                ground_truth(NatKind::Firewalled, kind).direct,
                ground_truth(NatKind::PortRestricted, kind).direct,
                "{kind}"
            );
            assert!(!ground_truth(NatKind::UdpBlocked, kind).direct, "{kind}");
        }
    }

    #[test]
    fn a_relayed_path_has_a_relay_in_it() {
        use CandidateKind::{PeerReflexive, Relayed, ServerReflexive};
        let pair = ground_truth(NatKind::PortRestricted, NatKind::Symmetric);
        assert!(pair.admits(Relayed, ServerReflexive));
        assert!(pair.admits(PeerReflexive, Relayed));
        assert!(pair.admits(Relayed, Relayed));
        assert!(!pair.admits(PeerReflexive, ServerReflexive));
        assert!(!pair.admits(Relayed, PeerReflexive));
        let pair = ground_truth(NatKind::Symmetric, NatKind::AddressDependent);
        assert!(pair.admits(ServerReflexive, Relayed));
        assert!(!pair.admits(PeerReflexive, Relayed));
    }
}
