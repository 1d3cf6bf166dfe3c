//! What an allocation tells its owner: events, and why things failed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What happened to an allocation, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocationEvent {
    /// The server gave a relayed address; it is refreshed from now on.
    Allocated {
        /// The address at which peers reach this node.
        relayed: SocketAddr,
        /// What the server saw this node as (server-reflexive on UDP), if it said so.
        mapped: Option<SocketAddr>,
    },
    /// The peer's address may now send and be sent to. Told once, not at each refresh.
    PermissionInstalled(IpAddr),
    /// The peer's address may not (any longer) be sent to.
    PermissionRefused {
        /// The peer.
        peer: IpAddr,
        /// Why.
        refusal: Refusal,
    },
    /// ChannelData under this number now reaches the peer. Told once, not at each refresh.
    ChannelBound {
        /// The peer.
        peer: SocketAddr,
        /// The channel number, 0x4000 to 0x4FFF (RFC 8656 §12).
        number: u16,
    },
    /// There is no channel to the peer (any longer); Send indications still work.
    ChannelRefused {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// There never was an allocation, and this one will not become one.
    Failed {
        /// Why.
        failure: Failure,
        /// When a new attempt makes sense: see [`Failure::retry_after`].
        retry_after: Duration,
    },
    /// There was an allocation, and there is none any more.
    Lost {
        /// Why.
        failure: Failure,
        /// When a new attempt makes sense: see [`Failure::retry_after`].
        retry_after: Duration,
    },
    /// [`super::Allocation::close`] is done: the connection can go.
    Closed,
}

/// Why one peer is refused. It concerns this peer alone, never the allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The relayed address has another family than the peer; nothing was sent (RFC 8656 §9.1).
    #[error("the relayed address is of the other IP family; allocate one of the peer's family")]
    Family,
    /// More peers than are kept at once; forget some.
    #[error("too many peers on one allocation")]
    Limit,
    /// Nothing came back within a whole transaction. It is asked again by itself.
    #[error("the relay did not answer; it is asked again")]
    NoAnswer,
    /// 403 (RFC 8656 §9.2): the server's policy denies this peer. Not asked again until forgotten.
    #[error("the relay's policy forbids this peer (403); its operator can allow it")]
    Forbidden,
    /// 508 or another 5xx: asked again by itself a minute later (RFC 8656 §9.2, §12.2).
    #[error("the relay has no capacity for this peer now ({0}); it is asked again")]
    Temporary(u16),
    /// Any other error code. Not asked again until forgotten.
    #[error("the relay refused this peer with error {0}")]
    Code(u16),
}

/// Why an allocation failed or was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer within the allocate timeout, or to a whole transaction.
    #[error(
        "the relay did not answer; the network may block this transport: try another or check the relay"
    )]
    NoAnswer,
    /// The stream was closed under the allocation.
    #[error("the connection to the relay was closed")]
    ConnectionClosed,
    /// No connection was made: the certificate that the server shows is not trusted.
    #[error(
        "the relay's certificate is not trusted: give its authority by --ca-file, or use the name that it is for (wice netcheck tells which)"
    )]
    Certificate,
    /// 401 to a request that carried our credentials.
    #[error(
        "the relay refused the credentials (401): check username and password, or whether they have expired"
    )]
    WrongCredentials,
    /// A 401 or 438 without REALM or NONCE, without a password algorithm that we know, or stripped
    /// of those that its nonce promises (a bid-down attack, RFC 8489 §9.2.5).
    #[error("the relay's authentication challenge cannot be answered")]
    BadChallenge,
    /// 438 again and again.
    #[error("the relay keeps calling its own fresh nonces stale (438)")]
    StaleNonce,
    /// Answers came, but none that our key could verify.
    #[error(
        "the relay's answers fail the integrity check{}; something on the way may forge them",
        code_text(*.code)
    )]
    Unauthenticated {
        /// The error code of the last one, if it was an error.
        code: Option<u16>,
    },
    /// 437 (RFC 8656 §7.4): on Allocate the server still has an allocation on this 5-tuple, so a
    /// fresh port is needed; later: the server has none any more.
    #[error("the relay's allocation and this connection do not match (437): open a new connection")]
    Mismatch,
    /// 441 (RFC 8656 §5): the allocation on this 5-tuple belongs to another user.
    #[error(
        "the allocation on this connection belongs to another user (441): open a new connection"
    )]
    WrongUser,
    /// 486.
    #[error(
        "the relay's quota for this user is used up (486): free allocations or raise the quota"
    )]
    Quota,
    /// 508.
    #[error("the relay has no capacity left (508)")]
    Capacity,
    /// 403.
    #[error("the relay forbids this user to allocate (403): ask its operator")]
    Forbidden,
    /// 440 or 443: no relayed address of the family that was asked for.
    #[error("the relay has no address of the requested IP family ({0})")]
    Family(u16),
    /// 442: the relay does not do UDP towards peers.
    #[error("the relay does not relay UDP (442)")]
    Transport,
    /// 300 (RFC 8489 §10): the server names another one. Never followed by itself.
    #[error("the relay sends us to another server (300){}", server_text(*.0))]
    Alternate(Option<SocketAddr>),
    /// 500 to 599 except 508, still there after four retries.
    #[error("the relay has an internal error ({0})")]
    ServerError(u16),
    /// Any other error code.
    #[error("the relay refused the request with error {0}")]
    Rejected(u16),
    /// An authenticated answer without what it must hold, or with an unusable address.
    #[error("the relay's answer makes no sense; is it a TURN server, is its external address set?")]
    BadAnswer,
    /// The stream holds something that is neither STUN nor ChannelData.
    #[error("the relay's stream is out of step or is not TURN at all: check address and port")]
    Desynchronized,
    /// The lifetime ran out without a refresh that succeeded.
    #[error("the allocation expired: the relay answered no refresh in its lifetime")]
    Expired,
}

/// RFC 8656 §7.4: after 486 or 508 a client waits at least one minute.
const CAPACITY_WAIT: Duration = Duration::from_secs(60);
/// After silence or misbehaviour: the whole attempt took up to 40 s already.
const MISBEHAVIOUR_WAIT: Duration = Duration::from_secs(30);
/// After a refusal that an operator ends by putting the secret right, who then looks whether it helped.
const CREDENTIALS_WAIT: Duration = Duration::from_secs(5);
/// After a lost connection: enough for a restarting server, short against WireGuard's 5 s handshake
/// retry.
const RECONNECT_WAIT: Duration = Duration::from_secs(1);

impl Failure {
    /// How long to wait at least before a new allocation on the same server, always over a new
    /// connection from a fresh port; zero is at once. There is no failure that nobody can end at the server alone, so
    /// each is tried again. The owner adds backoff for repeated failures.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Mismatch | Self::WrongUser | Self::Expired => Duration::ZERO,
            Self::ConnectionClosed | Self::Desynchronized => RECONNECT_WAIT,
            Self::WrongCredentials | Self::Certificate => CREDENTIALS_WAIT,
            Self::NoAnswer
            | Self::Unauthenticated { .. }
            | Self::StaleNonce
            | Self::ServerError(_)
            | Self::BadChallenge
            | Self::BadAnswer => MISBEHAVIOUR_WAIT,
            Self::Quota
            | Self::Capacity
            | Self::Alternate(_)
            | Self::Forbidden
            | Self::Family(_)
            | Self::Transport
            | Self::Rejected(_) => CAPACITY_WAIT,
        }
    }
}

fn code_text(code: Option<u16>) -> String {
    code.map(|code| format!(" (last error {code})"))
        .unwrap_or_default()
}

fn server_text(server: Option<SocketAddr>) -> String {
    server
        .map(|server| format!(": {server}"))
        .unwrap_or_default()
}
