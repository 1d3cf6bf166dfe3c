//! Reading: one pass over the bytes says what counts, then attributes are looked up where they lie.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::integrity::{self, Hash, Key, fingerprint};
use super::{COOKIE, Class, HEADER_LEN, TransactionId, attribute};

/// The most attributes a message may have. A full CreatePermission of a client that batches has fewer; 64 KiB of
/// empty ones would cost thousands of look-ups.
pub const MAX_ATTRIBUTES: usize = 64;
/// Unknown attributes that are told of; a request with more has other problems.
const MAX_UNKNOWN: usize = 8;
/// Types below must be understood (RFC 8489 §14).
const COMPREHENSION_OPTIONAL: u16 = 0x8000;
/// Bytes of a MESSAGE-INTEGRITY value (RFC 8489 §14.5).
const SHA1_LEN: usize = 20;
/// Bytes of a MESSAGE-INTEGRITY-SHA256 value. It may be truncated only where a usage says so; TURN does not (RFC 8489 §14.6).
const SHA256_LEN: usize = 32;

/// These bytes are no STUN message: they get no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed STUN message")]
pub struct Malformed;

/// A well-formed message. What stands after its integrity is not part of it (RFC 8489 §14.5).
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    method: u16,
    class: Class,
    /// Where the attributes that count end.
    end: usize,
    sha1: Option<usize>,
    sha256: Option<usize>,
    fingerprint: bool,
    unknown: [u16; MAX_UNKNOWN],
    unknown_count: usize,
}

impl<'a> Message<'a> {
    /// Parses exactly one message: no byte missing, none left over, a FINGERPRINT (if there is one) last and right.
    ///
    /// # Errors
    /// [`Malformed`] for everything else.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let cookie = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if kind & 0xC000 != 0
            || cookie != COOKIE
            || !len.is_multiple_of(4)
            || HEADER_LEN + len != bytes.len()
        {
            return Err(Malformed);
        }
        let mut message = Self {
            bytes,
            method: kind & 0x000F | (kind & 0x00E0) >> 1 | (kind & 0x3E00) >> 2,
            class: match kind & 0x0110 {
                0x0000 => Class::Request,
                0x0010 => Class::Indication,
                0x0100 => Class::Success,
                _ => Class::Error,
            },
            end: bytes.len(),
            sha1: None,
            sha256: None,
            fingerprint: false,
            unknown: [0; MAX_UNKNOWN],
            unknown_count: 0,
        };
        message.scan()?;
        Ok(message)
    }

    /// All of it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The method's number.
    pub fn method(&self) -> u16 {
        self.method
    }

    /// The class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The transaction's id.
    pub fn id(&self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes[8..HEADER_LEN]);
        TransactionId(id)
    }

    /// Whether it ends in a FINGERPRINT.
    pub fn has_fingerprint(&self) -> bool {
        self.fingerprint
    }

    /// Which MESSAGE-INTEGRITY it has; the stronger where both stand (RFC 8489 §9.2.4).
    pub fn integrity(&self) -> Option<Hash> {
        match (self.sha1, self.sha256) {
            (_, Some(_)) => Some(Hash::Sha256),
            (Some(_), None) => Some(Hash::Sha1),
            (None, None) => None,
        }
    }

    /// Whether [`Message::integrity`] is that of `key`; compared in constant time. Costs one HMAC over the message.
    pub fn is_authentic(&self, key: &Key) -> bool {
        let (hash, at, len) = match (self.sha1, self.sha256) {
            (_, Some(at)) => (Hash::Sha256, at, SHA256_LEN),
            (Some(at), None) => (Hash::Sha1, at, SHA1_LEN),
            (None, None) => return false,
        };
        let value = &self.bytes[at + 4..at + 4 + len];
        integrity::verify(key, hash, &self.bytes[..at], value)
    }

    /// Attributes that must be understood and are not, in order, at most eight.
    pub fn unknown(&self) -> &[u16] {
        &self.unknown[..self.unknown_count]
    }

    /// The attributes that count, in order.
    pub fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut rest = &self.bytes[HEADER_LEN..self.end];
        std::iter::from_fn(move || {
            let (kind, value, next) = split(rest)?;
            rest = next;
            Some((kind, value))
        })
    }

    /// The value of the first attribute of a type; later ones do not count (RFC 8489 §14).
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes()
            .find_map(|(k, value)| (k == kind).then_some(value))
    }

    /// Whether there is an attribute of a type.
    pub fn has(&self, kind: u16) -> bool {
        self.get(kind).is_some()
    }

    /// The value of an attribute of exactly four bytes: absent, or of another length is `None`.
    pub fn word(&self, kind: u16) -> Option<[u8; 4]> {
        self.get(kind)?.try_into().ok()
    }

    /// An address that is masked by cookie and transaction id (RFC 8489 §14.2).
    pub fn xor_address(&self, value: &[u8]) -> Option<SocketAddr> {
        let (head, address) = value.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes([head[2], head[3]]) ^ (COOKIE >> 16) as u16;
        let mask = &self.bytes[4..HEADER_LEN];
        let ip = match head[1] {
            1 => IpAddr::V4(Ipv4Addr::from(unmask::<4>(address, mask)?)),
            2 => IpAddr::V6(Ipv6Addr::from(unmask::<16>(address, mask)?)),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }

    /// One pass: bounds, where the attributes that count end, unknown ones, the fingerprint.
    fn scan(&mut self) -> Result<(), Malformed> {
        let mut at = HEADER_LEN;
        let mut count = 0;
        while at < self.bytes.len() {
            let (kind, value, rest) = split(&self.bytes[at..]).ok_or(Malformed)?;
            count += 1;
            if count > MAX_ATTRIBUTES || self.fingerprint {
                return Err(Malformed);
            }
            let sealed = self.sha1.is_some() || self.sha256.is_some();
            match kind {
                attribute::FINGERPRINT => {
                    let expected = fingerprint(&self.bytes[..at]).to_be_bytes();
                    if value != expected {
                        return Err(Malformed);
                    }
                    self.fingerprint = true;
                    self.end = self.end.min(at);
                }
                attribute::MESSAGE_INTEGRITY if !sealed => {
                    if value.len() != SHA1_LEN {
                        return Err(Malformed);
                    }
                    self.sha1 = Some(at);
                    self.end = at;
                }
                attribute::MESSAGE_INTEGRITY_SHA256 if self.sha256.is_none() => {
                    if value.len() != SHA256_LEN {
                        return Err(Malformed);
                    }
                    self.sha256 = Some(at);
                    self.end = self.end.min(at);
                }
                _ if !sealed
                    && kind < COMPREHENSION_OPTIONAL
                    && !is_known(kind)
                    && self.unknown_count < MAX_UNKNOWN =>
                {
                    self.unknown[self.unknown_count] = kind;
                    self.unknown_count += 1;
                }
                _ => {}
            }
            at = self.bytes.len() - rest.len();
        }
        Ok(())
    }
}

/// The first attribute of `bytes` and what follows it; `None` if it does not fit, padding included.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let (padded, next) = rest.split_at_checked(len.next_multiple_of(4))?;
    Some((u16::from_be_bytes([head[0], head[1]]), &padded[..len], next))
}

fn unmask<const N: usize>(address: &[u8], mask: &[u8]) -> Option<[u8; N]> {
    let mut out: [u8; N] = address.try_into().ok()?;
    for (byte, mask) in out.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    Some(out)
}

/// Attributes below 0x8000 that RFC 8489, RFC 8656 and RFC 6062 define. Those of ICE are refused, and those of RFC 5780 where the server
/// does not find that it has it (§7).
fn is_known(kind: u16) -> bool {
    use attribute as a;
    matches!(
        kind,
        a::MAPPED_ADDRESS
            | a::USERNAME
            | a::MESSAGE_INTEGRITY
            | a::ERROR_CODE
            | a::UNKNOWN_ATTRIBUTES
            | a::CHANNEL_NUMBER
            | a::LIFETIME
            | a::XOR_PEER_ADDRESS
            | a::DATA
            | a::REALM
            | a::NONCE
            | a::XOR_RELAYED_ADDRESS
            | a::REQUESTED_ADDRESS_FAMILY
            | a::EVEN_PORT
            | a::REQUESTED_TRANSPORT
            | a::DONT_FRAGMENT
            | a::MESSAGE_INTEGRITY_SHA256
            | a::PASSWORD_ALGORITHM
            | a::USERHASH
            | a::XOR_MAPPED_ADDRESS
            | a::RESERVATION_TOKEN
            | a::CONNECTION_ID
    )
}
