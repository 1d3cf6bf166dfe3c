//! What nodes say to each other and to the signaling service. Sans-IO: time and randomness are
//! passed in.

mod advert;
mod candidate;
mod carry;
mod error_code;
mod frame;
#[cfg(test)]
mod frame_tests;
mod key;
mod network;
#[cfg(test)]
mod network_tests;
mod overlay;
mod prefix;
mod presence;
mod receipt;
#[cfg(test)]
mod record_tests;
mod revocation;
mod routes;
mod seal;
mod seeking;
#[cfg(test)]
pub(crate) mod testing;
mod token;
mod url;
mod wire;
pub mod xeddsa;

pub use advert::{Advert, MAX_ADVERT_LEN, MAX_ADVERT_LEN_BARE, MAX_NAME_LEN, Session};
pub use candidate::{
    Candidate, CandidateKind, Filtering, MAX_CANDIDATES, Mapping, NatBehavior, RelayTransport,
    normalize_candidates,
};
pub use carry::CarryRefusal;
pub use error_code::ErrorCode;
pub use frame::{
    ACCEPTS_CARRY, ACCEPTS_HEADER, ACCEPTS_PRESENCE, CHALLENGE_HEADER, CHALLENGE_LEN, ClientFrame,
    Hello, MAX_FRAME_LEN, MAX_HELLO_LEN, MAX_SERVERS, SERVERS_HEADER, SUBPROTOCOL, ServerFrame,
    Servers, TurnCredentials, servers_from_header, servers_to_header,
};
pub use key::{KEY_HASH_LEN, KeyParseError, PrivateKey, PublicKey};
pub use network::{
    AdminKey, Invite, InviteCertificate, InviteId, MAX_INVITE_PREFIXES, MAX_LABEL_LEN,
    MAX_MEMBERSHIP_LEN, Membership, NetworkId,
};
pub use overlay::{OVERLAY_IPV4, OVERLAY_IPV6, may_claim_overlay, overlay_ipv4, overlay_ipv6};
pub use prefix::{IpPrefix, PrefixParseError};
pub use presence::{MAX_PRESENCES, Presence};
pub use receipt::{JoinReceipt, ServiceSecret};
pub use revocation::{MAX_REVOCATION_LEN, MAX_REVOCATIONS, RevocationList};
pub use routes::{MAX_ROUTES, MAX_ROUTES_LEN, Routes};
pub use seal::{MAX_SEALED_LEN, NetworkKey, OpenError, RecordKind, SEAL_NONCE_LEN};
pub use seeking::{KeyHash, MAX_SEEKING_LEN, MAX_SOUGHT, Seeking};
pub use token::{ServerPin, Token, TokenError};
pub use url::{ServerAddress, ServerAddressError, ServerKind, SignalUrl, UrlError, host_and_port};
pub use wire::RecordError;
