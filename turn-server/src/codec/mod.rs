//! Messages of STUN (RFC 8489) and TURN (RFC 8656) as a server reads and writes them: borrowed, bounded, strict. It keeps no
//! state, and decides nothing beyond what is well-formed.

mod frame;
mod integrity;
mod message;
#[cfg(test)]
mod tests;
mod write;

pub use frame::{
    CHANNEL_HEADER_LEN, ChannelData, Desynchronized, channel_header, is_channel_data, stream_frame,
};
pub use integrity::{Hash, Key, fingerprint};
pub use message::{MAX_ATTRIBUTES, Malformed, Message};
pub use write::Writer;

/// Bytes 4..8 of every message (RFC 8489 §5).
pub const COOKIE: u32 = 0x2112_A442;
/// Bytes of the header (RFC 8489 §5).
pub const HEADER_LEN: usize = 20;

/// The 96 bits that pair a response with its request (RFC 8489 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionId(pub [u8; 12]);

/// RFC 8489 §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Wants a response.
    Request,
    /// Gets none.
    Indication,
    /// It was done.
    Success,
    /// It was not.
    Error,
}

/// Method numbers (RFC 8489 §18.2, RFC 8656 §17).
pub mod method {
    /// Where am I seen?
    pub const BINDING: u16 = 0x001;
    /// A relayed address, please.
    pub const ALLOCATE: u16 = 0x003;
    /// Longer, or no longer.
    pub const REFRESH: u16 = 0x004;
    /// Payload to a peer.
    pub const SEND: u16 = 0x006;
    /// Payload from a peer.
    pub const DATA: u16 = 0x007;
    /// These peers may send.
    pub const CREATE_PERMISSION: u16 = 0x008;
    /// A number for a peer.
    pub const CHANNEL_BIND: u16 = 0x009;
    /// A connection to a peer (RFC 6062 §6.1).
    pub const CONNECT: u16 = 0x00A;
    /// This connection is for that one.
    pub const CONNECTION_BIND: u16 = 0x00B;
    /// A peer has connected.
    pub const CONNECTION_ATTEMPT: u16 = 0x00C;
}

/// Attribute types (RFC 8489 §18.3, RFC 8656 §18).
pub mod attribute {
    /// MAPPED-ADDRESS.
    pub const MAPPED_ADDRESS: u16 = 0x0001;
    /// CHANGE-REQUEST (RFC 5780 §7.2).
    pub const CHANGE_REQUEST: u16 = 0x0003;
    /// USERNAME.
    pub const USERNAME: u16 = 0x0006;
    /// MESSAGE-INTEGRITY.
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    /// ERROR-CODE.
    pub const ERROR_CODE: u16 = 0x0009;
    /// UNKNOWN-ATTRIBUTES.
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
    /// CHANNEL-NUMBER.
    pub const CHANNEL_NUMBER: u16 = 0x000C;
    /// LIFETIME.
    pub const LIFETIME: u16 = 0x000D;
    /// XOR-PEER-ADDRESS.
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    /// DATA.
    pub const DATA: u16 = 0x0013;
    /// REALM.
    pub const REALM: u16 = 0x0014;
    /// NONCE.
    pub const NONCE: u16 = 0x0015;
    /// XOR-RELAYED-ADDRESS.
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    /// REQUESTED-ADDRESS-FAMILY.
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    /// EVEN-PORT.
    pub const EVEN_PORT: u16 = 0x0018;
    /// REQUESTED-TRANSPORT.
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    /// DONT-FRAGMENT.
    pub const DONT_FRAGMENT: u16 = 0x001A;
    /// MESSAGE-INTEGRITY-SHA256.
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
    /// PASSWORD-ALGORITHM.
    pub const PASSWORD_ALGORITHM: u16 = 0x001D;
    /// USERHASH.
    pub const USERHASH: u16 = 0x001E;
    /// XOR-MAPPED-ADDRESS.
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// RESERVATION-TOKEN.
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    /// RESPONSE-PORT (RFC 5780 §7.5).
    pub const RESPONSE_PORT: u16 = 0x0027;
    /// CONNECTION-ID (RFC 6062 §6.2).
    pub const CONNECTION_ID: u16 = 0x002A;
    /// ADDITIONAL-ADDRESS-FAMILY.
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    /// ADDRESS-ERROR-CODE.
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    /// PASSWORD-ALGORITHMS.
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    /// ICMP.
    pub const ICMP: u16 = 0x8004;
    /// FINGERPRINT.
    pub const FINGERPRINT: u16 = 0x8028;
    /// MOBILITY-TICKET (RFC 8016 §4).
    pub const MOBILITY_TICKET: u16 = 0x8030;
    /// RESPONSE-ORIGIN (RFC 5780 §7.3).
    pub const RESPONSE_ORIGIN: u16 = 0x802B;
    /// OTHER-ADDRESS (RFC 5780 §7.4).
    pub const OTHER_ADDRESS: u16 = 0x802C;
}
