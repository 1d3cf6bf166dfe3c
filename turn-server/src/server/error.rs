//! The error codes that are sent (RFC 8489 §14.8, RFC 8656 §19, RFC 6062 §6.3).

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// 400.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 420.
    UnknownAttribute,
    /// 437.
    AllocationMismatch,
    /// 438.
    StaleNonce,
    /// 440.
    AddressFamilyNotSupported,
    /// 441.
    WrongCredentials,
    /// 442.
    UnsupportedTransport,
    /// 443.
    PeerAddressFamilyMismatch,
    /// 446.
    ConnectionAlreadyExists,
    /// 447.
    ConnectionFailed,
    /// 486.
    AllocationQuotaReached,
    /// 508.
    InsufficientCapacity,
}

impl ErrorCode {
    /// All of them, in order.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::UnknownAttribute,
        Self::AllocationMismatch,
        Self::StaleNonce,
        Self::AddressFamilyNotSupported,
        Self::WrongCredentials,
        Self::UnsupportedTransport,
        Self::PeerAddressFamilyMismatch,
        Self::ConnectionAlreadyExists,
        Self::ConnectionFailed,
        Self::AllocationQuotaReached,
        Self::InsufficientCapacity,
    ];

    /// Its number.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::UnknownAttribute => 420,
            Self::AllocationMismatch => 437,
            Self::StaleNonce => 438,
            Self::AddressFamilyNotSupported => 440,
            Self::WrongCredentials => 441,
            Self::UnsupportedTransport => 442,
            Self::PeerAddressFamilyMismatch => 443,
            Self::ConnectionAlreadyExists => 446,
            Self::ConnectionFailed => 447,
            Self::AllocationQuotaReached => 486,
            Self::InsufficientCapacity => 508,
        }
    }

    /// Its reason phrase.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadRequest => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::UnknownAttribute => "Unknown Attribute",
            Self::AllocationMismatch => "Allocation Mismatch",
            Self::StaleNonce => "Stale Nonce",
            Self::AddressFamilyNotSupported => "Address Family not Supported",
            Self::WrongCredentials => "Wrong Credentials",
            Self::UnsupportedTransport => "Unsupported Transport Protocol",
            Self::PeerAddressFamilyMismatch => "Peer Address Family Mismatch",
            Self::ConnectionAlreadyExists => "Connection Already Exists",
            Self::ConnectionFailed => "Connection Timeout or Failure",
            Self::AllocationQuotaReached => "Allocation Quota Reached",
            Self::InsufficientCapacity => "Insufficient Capacity",
        }
    }

    /// Whether it carries REALM and NONCE.
    pub(super) fn is_challenge(self) -> bool {
        matches!(self, Self::Unauthorized | Self::StaleNonce)
    }
}
