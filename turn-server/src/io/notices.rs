//! What the operator reads of refused requests: one line, with the reason and what to do about it.

use crate::codec::method;
use crate::server::{ErrorCode, Exceeded, Notice, Refusal};

/// Writes one line. What a client does wrong is information; what the operator can set right is a warning.
pub(super) fn log(notice: &Notice) {
    let client = notice.client.remote;
    let transport = notice.client.transport;
    let (request, user) = (method_name(notice.method), notice.user.as_deref());
    let user = user.unwrap_or_default();
    let code = notice.refusal.code().code();
    let (reason, remedy) = words(notice.refusal);
    let repeated = notice.repeated;
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(event = "turn-refused", %client, ?transport, request, user, code, %reason, remedy, repeated)
        };
    }
    if is_warning(notice.refusal) {
        line!(warn);
    } else {
        line!(info);
    }
}

/// The reason, and what to do.
fn words(refusal: Refusal) -> (String, &'static str) {
    let (reason, remedy) = match refusal {
        Refusal::UnknownUser => (
            "no such user",
            "add it with --user, or have its credentials minted under a secret of --secret-file",
        ),
        Refusal::Expired => (
            "the time of these credentials is over",
            "the client needs new ones from the signaling service; if they are new, compare both clocks",
        ),
        Refusal::WrongPassword => (
            "wrong password",
            "compare the client's password with --user; after a change send SIGHUP",
        ),
        Refusal::WrongSecret => (
            "minted under another secret",
            "the secret file here and that of the signaling service differ; after a change send SIGHUP",
        ),
        Refusal::WrongRealm => (
            "another realm",
            "the client is to take the realm that it is challenged with; see --realm",
        ),
        Refusal::PeerDenied(peer) => {
            return (
                format!("the peer {peer} is not allowed"),
                "if it is meant to be reached, open its range with --allow-peer",
            );
        }
        Refusal::ChannelNumber(number) => {
            return (
                format!("channel number {number:#06x} is not in 0x4000 to 0x4FFF"),
                "a client of before RFC 8656: start the server with --old-clients (turnutils_uclient: or give it -s)",
            );
        }
        Refusal::Quota(Exceeded::User) => (
            "the user has all the allocations that it may have",
            "see --user-quota; a client that never ends its allocations fills it",
        ),
        Refusal::Quota(Exceeded::Source) => (
            "the source address has all the allocations that it may have",
            "see --source-quota; many clients behind one NAT share it",
        ),
        Refusal::Quota(Exceeded::Total) => (
            "the server has all the allocations that it may have",
            "see --total-quota and the limit of open files (LimitNOFILE=), or add a server",
        ),
        Refusal::Draining => ("the server is ending", "clients go on at another server"),
        Refusal::NoPort => ("no relay port is free", "widen --ports"),
        Refusal::NoSocket => (
            "a relay socket could not be opened",
            "see turn-relay-not-opened before this line",
        ),
        Refusal::PeersFull => (
            "the allocation has all the permissions or channels that it may have",
            "the client speaks with too many peers through one allocation",
        ),
        Refusal::Rationed => (
            "too many unauthenticated requests of this source: no answer",
            "an attack, or many clients behind one NAT: see --challenge-rate",
        ),
        Refusal::Plain(code) => plain(code),
    };
    (reason.to_owned(), remedy)
}

fn plain(code: ErrorCode) -> (&'static str, &'static str) {
    match code {
        ErrorCode::BadRequest => (
            "attributes are missing or contradict each other",
            "a fault of the client: its name and version, and a capture, say more",
        ),
        ErrorCode::UnknownAttribute => (
            "an attribute that this server does not know and may not skip",
            "switch off what the client asks for beyond RFC 8656",
        ),
        ErrorCode::UnsupportedTransport => (
            "relayed addresses of this transport are not offered",
            "TCP needs --tcp-relay, and a client on TCP or TLS; else have the client ask for UDP",
        ),
        ErrorCode::WrongCredentials => (
            "the allocation is another user's",
            "two clients share one 5-tuple, or one changed its user",
        ),
        ErrorCode::Unauthorized
        | ErrorCode::Forbidden
        | ErrorCode::AllocationMismatch
        | ErrorCode::StaleNonce
        | ErrorCode::AddressFamilyNotSupported
        | ErrorCode::PeerAddressFamilyMismatch
        | ErrorCode::ConnectionAlreadyExists
        | ErrorCode::ConnectionFailed
        | ErrorCode::AllocationQuotaReached
        | ErrorCode::InsufficientCapacity => (code.reason(), ""),
    }
}

fn is_warning(refusal: Refusal) -> bool {
    match refusal {
        Refusal::Plain(_)
        | Refusal::ChannelNumber(_)
        | Refusal::PeerDenied(_)
        | Refusal::Draining => false,
        Refusal::UnknownUser
        | Refusal::Expired
        | Refusal::WrongPassword
        | Refusal::WrongSecret
        | Refusal::WrongRealm
        | Refusal::Quota(_)
        | Refusal::NoPort
        | Refusal::NoSocket
        | Refusal::PeersFull
        | Refusal::Rationed => true,
    }
}

fn method_name(number: u16) -> &'static str {
    match number {
        method::BINDING => "Binding",
        method::ALLOCATE => "Allocate",
        method::REFRESH => "Refresh",
        method::CREATE_PERMISSION => "CreatePermission",
        method::CHANNEL_BIND => "ChannelBind",
        method::CONNECT => "Connect",
        method::CONNECTION_BIND => "ConnectionBind",
        _ => "other",
    }
}
