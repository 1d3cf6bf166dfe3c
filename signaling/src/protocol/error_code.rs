//! Why the service closes a connection.

/// Why the service refuses a node or a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// A frame that is none, or out of turn.
    BadFrame,
    /// No proof of the WireGuard key.
    WrongProof,
    /// Not a member of the network.
    NotMember,
    /// The invite expired before the node first joined.
    InviteExpired,
    /// The node, or its invite, is revoked.
    Revoked,
    /// The service does not serve this network.
    NetworkNotAllowed,
    /// The same node connected anew.
    Replaced,
    /// The network has as many nodes as the service takes.
    NetworkFull,
    /// It said nothing in time.
    TimedOut,
    /// The service shuts down or has too many connections.
    Busy,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [Self; 10] = [
        Self::BadFrame,
        Self::WrongProof,
        Self::NotMember,
        Self::InviteExpired,
        Self::Revoked,
        Self::NetworkNotAllowed,
        Self::Replaced,
        Self::NetworkFull,
        Self::TimedOut,
        Self::Busy,
    ];

    /// A stable word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadFrame => "bad-frame",
            Self::WrongProof => "wrong-proof",
            Self::NotMember => "not-member",
            Self::InviteExpired => "invite-expired",
            Self::Revoked => "revoked",
            Self::NetworkNotAllowed => "network-not-allowed",
            Self::Replaced => "replaced",
            Self::NetworkFull => "network-full",
            Self::TimedOut => "timed-out",
            Self::Busy => "busy",
        }
    }

    /// What happened and what to do, for people.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::BadFrame => "the service does not understand this node: update wice on both",
            Self::WrongProof => "the node did not prove its WireGuard key: is a proxy in between?",
            Self::NotMember => "the node is no member of this network: join with its token",
            Self::InviteExpired => "the invite has expired: make a new one with `wice invite`",
            Self::Revoked => {
                "the node or its invite was revoked: it comes back with a new key only"
            }
            Self::NetworkNotAllowed => {
                "the service does not serve this network: add its id to the service's list"
            }
            Self::Replaced => {
                "the same node connected again: is its key in use on another machine?"
            }
            Self::NetworkFull => "the service has no room: raise its limits or remove nodes",
            Self::TimedOut => "the node was silent for too long",
            Self::Busy => "the service shuts down or has no room: the node tries again",
        }
    }

    /// Whether the same node may come in later without anyone doing anything.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        match self {
            Self::Replaced | Self::NetworkFull | Self::TimedOut | Self::Busy => true,
            Self::BadFrame
            | Self::WrongProof
            | Self::NotMember
            | Self::InviteExpired
            | Self::Revoked
            | Self::NetworkNotAllowed => false,
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Self::BadFrame => 1,
            Self::WrongProof => 2,
            Self::NotMember => 3,
            Self::InviteExpired => 4,
            Self::Revoked => 5,
            Self::NetworkNotAllowed => 6,
            Self::Replaced => 7,
            Self::NetworkFull => 8,
            Self::TimedOut => 9,
            Self::Busy => 10,
        }
    }
}
