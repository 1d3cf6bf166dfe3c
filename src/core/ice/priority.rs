//! Priorities of candidates and pairs (RFC 8445 §5.1.2 and §6.1.2.3).

use wice_signaling::protocol::CandidateKind;

use super::Role;

/// Type preferences of RFC 8445 §5.1.2.2. A port mapping is a server-reflexive candidate that lets
/// everybody in: between those and peer-reflexive ones.
fn type_preference(kind: CandidateKind) -> u32 {
    match kind {
        CandidateKind::Host => 126,
        CandidateKind::PeerReflexive => 110,
        CandidateKind::Mapped => 105,
        CandidateKind::ServerReflexive => 100,
        CandidateKind::Relayed => 0,
    }
}

/// What an own socket of a node that forwards for WireGuard gives away of its local preference, which
/// leaves the bit of this value clear, as relayed candidates do: a path from WireGuard's own port needs no hop through a program.
/// Preferences of every family fill 14 bits, this is their highest.
pub const OWN_SOCKET: u16 = 1 << 13;

/// Whether a candidate of this priority is at a node's own socket.
pub fn is_own_socket(priority: u32) -> bool {
    (priority >> 8) & u32::from(OWN_SOCKET) == 0
}

/// RFC 8445 §5.1.2.1 for component 1.
pub fn candidate_priority(kind: CandidateKind, local_preference: u16) -> u32 {
    type_preference(kind) << 24 | u32::from(local_preference) << 8 | 255
}

/// RFC 8445 §6.1.2.3; equal on both sides.
pub fn pair_priority(role: Role, local: u32, remote: u32) -> u64 {
    let (g, d) = match role {
        Role::Controlling => (u64::from(local), u64::from(remote)),
        Role::Controlled => (u64::from(remote), u64::from(local)),
    };
    (g.min(d) << 32) + 2 * g.max(d) + u64::from(g > d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_priority_is_equal_on_both_sides() {
        let host = candidate_priority(CandidateKind::Host, 65535);
        let relay = candidate_priority(CandidateKind::Relayed, 10);
        assert_eq!(host, 0x7EFF_FFFF);
        assert_eq!(
            pair_priority(Role::Controlling, host, relay),
            pair_priority(Role::Controlled, relay, host)
        );
        assert_ne!(
            pair_priority(Role::Controlling, host, relay),
            pair_priority(Role::Controlled, host, relay)
        );
    }
}
