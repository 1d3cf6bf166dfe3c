//! Reading and writing the messages of RFC 8656 on the codec crates.

use std::net::SocketAddr;

use stun_types::attribute::{
    AlternateServer, AttributeStaticType, AttributeWrite, ErrorCode, XorMappedAddress,
};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageHeader, MessageType, MessageWriteVec, Method,
    TransactionId,
};
use stun_types::prelude::MessageWriteExt;
use turn_types::attribute::{Data, Lifetime, XorPeerAddress, XorRelayedAddress};
use turn_types::message::SEND;

use super::canonical;

/// Bytes in front of the payload of a ChannelData message (RFC 8656 §12.4).
pub const CHANNEL_DATA_HEADER: usize = 4;

/// The most bytes of a STUN response that are looked at: an error with the largest REASON, REALM and
/// NONCE (763 bytes each, RFC 8489 §14) fits twice. Also keeps the codec's 16-bit arithmetic far from
/// its end.
pub(super) const MAX_RESPONSE: usize = 4096;

/// The UDP payload that a Data indication can carry in the 65,535 bytes of STUN's length field, less
/// XOR-PEER-ADDRESS (24) and DATA's header (4), rounded down.
pub(super) const MAX_PAYLOAD: usize = 65_500;

/// The header of a ChannelData message with `length` bytes of payload (RFC 8656 §12.4). Over TCP and
/// TLS the payload is followed by padding to a multiple of four (§12.5), which `length` does not count.
pub fn channel_data_header(number: u16, length: u16) -> [u8; CHANNEL_DATA_HEADER] {
    let ([a, b], [c, d]) = (number.to_be_bytes(), length.to_be_bytes());
    [a, b, c, d]
}

/// A ChannelData message, padded for streams. The payload is at most [`MAX_PAYLOAD`] bytes.
pub(super) fn channel_data(number: u16, payload: &[u8], stream: bool) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let payload = &payload[..usize::from(length)];
    let mut frame = Vec::with_capacity(CHANNEL_DATA_HEADER + payload.len() + 3);
    frame.extend_from_slice(&channel_data_header(number, length));
    frame.extend_from_slice(payload);
    if stream {
        frame.resize(frame.len().next_multiple_of(4), 0);
    }
    frame
}

/// Splits a whole ChannelData frame (padding allowed) into number and payload.
pub(super) fn parse_channel_data(frame: &[u8]) -> Option<(u16, &[u8])> {
    let (&[a, b, c, d], rest) = frame.split_first_chunk::<CHANNEL_DATA_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([c, d]));
    Some((u16::from_be_bytes([a, b]), rest.get(..length)?))
}

/// Parses a STUN message that fills `frame` exactly; anything else is nothing of ours.
pub(super) fn parse(frame: &[u8]) -> Option<Message<'_>> {
    let header = MessageHeader::from_bytes(frame).ok()?;
    if usize::from(header.data_length()) + MessageHeader::LENGTH != frame.len() {
        return None;
    }
    Message::from_bytes(frame).ok()
}

/// The peer and the payload of a Data indication (RFC 8656 §11.4); `None` without either.
pub(super) fn parse_data_indication<'a>(
    message: &Message<'_>,
    frame: &'a [u8],
) -> Option<(SocketAddr, &'a [u8])> {
    let peer = message.attribute::<XorPeerAddress>().ok()?;
    let (offset, data) = message.raw_attribute_and_offset(Data::TYPE)?;
    let start = offset + 4;
    let payload = frame.get(start..start + data.value.len())?;
    Some((canonical(peer.addr(message.transaction_id())), payload))
}

/// The code of an error response, whatever its reason phrase holds; 0 if there is none.
pub(super) fn error_code(message: &Message<'_>) -> u16 {
    let Some(raw) = message.raw_attribute(ErrorCode::TYPE) else {
        return 0;
    };
    let Some(&[_, _, class, number]) = raw.value.first_chunk::<4>() else {
        return 0;
    };
    u16::from(class & 0x7) * 100 + u16::from(number)
}

/// The server that a 300 names.
pub(super) fn alternate_server(message: &Message<'_>) -> Option<SocketAddr> {
    let attribute = message.attribute::<AlternateServer>().ok()?;
    Some(canonical(attribute.server()))
}

/// What a success response to Allocate holds.
pub(super) struct Allocated {
    pub(super) relayed: SocketAddr,
    pub(super) mapped: Option<SocketAddr>,
    /// Seconds.
    pub(super) lifetime: u32,
}

/// Reads a success response to Allocate (RFC 8656 §7.3); `None` if it lacks what it must hold or
/// names an address that nothing can be sent to.
pub(super) fn parse_allocated(message: &Message<'_>) -> Option<Allocated> {
    let id = message.transaction_id();
    let relayed = canonical(message.attribute::<XorRelayedAddress>().ok()?.addr(id));
    if relayed.port() == 0 || relayed.ip().is_unspecified() || relayed.ip().is_multicast() {
        return None;
    }
    let mapped = mapped_address(message);
    Some(Allocated {
        relayed,
        mapped,
        lifetime: lifetime(message).filter(|&lifetime| lifetime > 0)?,
    })
}

/// Where the server sees this client (RFC 8489 §14.2).
pub(super) fn mapped_address(message: &Message<'_>) -> Option<SocketAddr> {
    let mapped = message.attribute::<XorMappedAddress>().ok()?;
    Some(canonical(mapped.addr(message.transaction_id())))
}

/// The LIFETIME of a response, in seconds.
pub(super) fn lifetime(message: &Message<'_>) -> Option<u32> {
    Some(message.attribute::<Lifetime>().ok()?.seconds())
}

/// A request under construction.
pub(super) fn request(method: Method, id: TransactionId) -> MessageWriteVec {
    let kind = MessageType::from_class_method(MessageClass::Request, method);
    Message::builder(kind, id, MessageWriteVec::new())
}

/// Appends an attribute. It always fits: the writer grows, and sizes are checked where values enter.
pub(super) fn add(writer: &mut MessageWriteVec, attribute: &dyn AttributeWrite) {
    let added = writer.add_attribute(attribute);
    debug_assert!(added.is_ok(), "{added:?}");
}

/// A Send indication (RFC 8656 §11.1) with at most [`MAX_PAYLOAD`] bytes.
pub(super) fn send_indication(id: TransactionId, peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let kind = MessageType::from_class_method(MessageClass::Indication, SEND);
    let mut writer = Message::builder(kind, id, MessageWriteVec::with_capacity(payload.len() + 52));
    add(&mut writer, &XorPeerAddress::new(peer, id));
    add(&mut writer, &Data::new(payload));
    stun_types::prelude::MessageWrite::finish(writer)
}

/// A Binding request without attributes: the keepalive, answered without authentication.
pub(super) fn binding_request(id: TransactionId) -> MessageWriteVec {
    request(BINDING, id)
}
