//! STUN as ICE and gathering need it (RFC 8489, RFC 8445 §7.1): typed encoding and decoding over
//! the codec crate. It keeps no state and authenticates nothing by itself.

use std::net::SocketAddr;

use stun_types::attribute::{
    Attribute, AttributeFromRaw, AttributeStaticType, AttributeType, ErrorCode, RawAttribute,
    Username, XorMappedAddress,
};
use stun_types::message::{
    BINDING, IntegrityAlgorithm, Message, MessageClass, MessageType, MessageWrite, MessageWriteExt,
    MessageWriteVec, ShortTermCredentials,
};
pub use stun_types::message::{IntegrityKey, TransactionId};

/// Magic cookie, bytes 4..8 of every STUN message (RFC 8489 §5).
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Header length in bytes (RFC 8489 §5).
const HEADER: usize = 20;
/// The longest message that is looked at: what Ethernet carries, and no sender of STUN over UDP is to
/// go past it (RFC 8489 §6.1). A full 64 KiB of empty attributes would cost as much as a thousand checks.
const MAX_MESSAGE: usize = 1500;
/// Buffer for one of our checks: the largest is about 180 bytes.
const CAPACITY: usize = 192;

/// RFC 8445 §16.1.
const PRIORITY: u16 = 0x0024;
const USE_CANDIDATE: u16 = 0x0025;
const ICE_CONTROLLED: u16 = 0x8029;
const ICE_CONTROLLING: u16 = 0x802A;
/// RFC 8656 §18.3. In a Binding indication it is ours alone.
const DATA: u16 = 0x0013;
/// libwebrtc's and pion's renomination counter: 32 bits of which the low 24 count.
const NOMINATION: u16 = 0xC001;

/// Role conflict (RFC 8445 §7.3.1.1).
pub const ROLE_CONFLICT: u16 = 487;
/// Bad request (RFC 8489 §14.8).
pub const BAD_REQUEST: u16 = 400;

/// Whether a datagram is STUN: two zero bits and the cookie (RFC 8489 §5).
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER && datagram[0] & 0xC0 == 0 && datagram[4..8] == COOKIE
}

/// The transaction id of a STUN message of which at least the header is there, as an ICMP error
/// quotes it (RFC 8489 §5).
pub fn quoted_id(datagram: &[u8]) -> Option<TransactionId> {
    let id = datagram.get(8..HEADER).filter(|_| is_stun(datagram))?;
    let id = id.iter().fold(0, |id, byte| id << 8 | u128::from(*byte));
    Some(TransactionId::from(id))
}

/// The key of MESSAGE-INTEGRITY for a short-term password (RFC 8489 §9.1.1).
pub fn integrity_key(password: &str) -> IntegrityKey {
    ShortTermCredentials::new(password.to_owned()).make_key()
}

/// The role that a check claims, with its tie-breaker (RFC 8445 §7.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleClaim {
    /// ICE-CONTROLLING.
    Controlling(u64),
    /// ICE-CONTROLLED.
    Controlled(u64),
}

/// What one of our checks says.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    /// Unique for each check, kept by its retransmissions.
    pub id: TransactionId,
    /// `remote:local`, both ufrags (RFC 8445 §7.2.2).
    pub username: &'a str,
    /// As a peer-reflexive candidate (RFC 8445 §7.1.1).
    pub priority: u32,
    /// Role and tie-breaker.
    pub role: RoleClaim,
    /// USE-CANDIDATE.
    pub use_candidate: bool,
    /// NOMINATION, below 2^24.
    pub nomination: Option<u32>,
}

impl Check<'_> {
    /// The bytes of the check: MESSAGE-INTEGRITY by `key`, FINGERPRINT last.
    pub fn encode(&self, key: &IntegrityKey) -> Vec<u8> {
        let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
        let mut message = Message::builder(kind, self.id, MessageWriteVec::with_capacity(CAPACITY));
        // A username of ours is at most 513 bytes, which is what the codec checks.
        if let Ok(username) = Username::new(self.username) {
            add(&mut message, &username);
        }
        add(
            &mut message,
            &RawAttribute::new(PRIORITY.into(), &self.priority.to_be_bytes()),
        );
        let (role, tie_breaker) = match self.role {
            RoleClaim::Controlling(tie_breaker) => (ICE_CONTROLLING, tie_breaker),
            RoleClaim::Controlled(tie_breaker) => (ICE_CONTROLLED, tie_breaker),
        };
        add(
            &mut message,
            &RawAttribute::new(role.into(), &tie_breaker.to_be_bytes()),
        );
        if self.use_candidate {
            add(&mut message, &RawAttribute::new(USE_CANDIDATE.into(), &[]));
        }
        if let Some(value) = self.nomination {
            let value = (value & 0x00FF_FFFF).to_be_bytes();
            add(&mut message, &RawAttribute::new(NOMINATION.into(), &value));
        }
        seal(message, Some(key))
    }
}

/// A plain Binding request, as gathering sends it to STUN servers.
pub fn encode_binding(id: TransactionId) -> Vec<u8> {
    let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
    seal(
        Message::builder(kind, id, MessageWriteVec::with_capacity(HEADER + 8)),
        None,
    )
}

/// A success response that tells `mapped` (RFC 8445 §7.3.1.2).
pub fn encode_success(id: TransactionId, mapped: SocketAddr, key: &IntegrityKey) -> Vec<u8> {
    let kind = MessageType::from_class_method(MessageClass::Success, BINDING);
    let mut message = Message::builder(kind, id, MessageWriteVec::with_capacity(CAPACITY));
    add(&mut message, &XorMappedAddress::new(mapped, id));
    seal(message, Some(key))
}

/// An error response.
pub fn encode_error(id: TransactionId, code: u16, key: &IntegrityKey) -> Vec<u8> {
    let kind = MessageType::from_class_method(MessageClass::Error, BINDING);
    let mut message = Message::builder(kind, id, MessageWriteVec::with_capacity(CAPACITY));
    if let Ok(code) = ErrorCode::builder(code).build() {
        add(&mut message, &code);
    }
    seal(message, Some(key))
}

/// An indication that encloses a datagram: whoever reads no STUN passes it over.
pub fn encode_enclosed(
    id: TransactionId,
    username: &str,
    datagram: &[u8],
    key: &IntegrityKey,
) -> Vec<u8> {
    let kind = MessageType::from_class_method(MessageClass::Indication, BINDING);
    let capacity = CAPACITY + datagram.len();
    let mut message = Message::builder(kind, id, MessageWriteVec::with_capacity(capacity));
    if let Ok(username) = Username::new(username) {
        add(&mut message, &username);
    }
    add(&mut message, &RawAttribute::new(DATA.into(), datagram));
    seal(message, Some(key))
}

fn add(message: &mut MessageWriteVec, attribute: &dyn stun_types::attribute::AttributeWrite) {
    // Fails only past 64 KiB or after MESSAGE-INTEGRITY; neither happens here.
    let added = message.add_attribute(attribute);
    debug_assert!(added.is_ok());
}

fn seal(mut message: MessageWriteVec, key: Option<&IntegrityKey>) -> Vec<u8> {
    if let Some(key) = key {
        let added = message.add_message_integrity_with_key(key, IntegrityAlgorithm::Sha1);
        debug_assert!(added.is_ok());
    }
    let added = message.add_fingerprint();
    debug_assert!(added.is_ok());
    message.finish()
}

/// An inbound Binding message, parsed but not authenticated.
#[derive(Debug)]
pub struct Binding<'a> {
    message: Message<'a>,
}

/// What kind of Binding message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingClass {
    /// A check, or a request to us as if we were a STUN server.
    Request,
    /// The answer to a request of ours.
    Success,
    /// The refusal of a request of ours.
    Error,
    /// A keepalive without effect (RFC 8445 §11), or one that encloses a datagram.
    Indication,
}

/// What an authentic check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckFields {
    /// PRIORITY.
    pub priority: u32,
    /// Role and tie-breaker.
    pub role: RoleClaim,
    /// USE-CANDIDATE.
    pub use_candidate: bool,
    /// NOMINATION, 24 bits.
    pub nomination: Option<u32>,
}

impl<'a> Binding<'a> {
    /// Parses a datagram for which [`is_stun`] holds; `None` for what is malformed, longer than any
    /// Binding message, or another one.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        if datagram.len() > MAX_MESSAGE {
            return None;
        }
        // The codec reads attributes past the header's length; we do not.
        let length = datagram.get(2..4)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if HEADER + length != datagram.len() {
            return None;
        }
        let message = Message::from_bytes(datagram).ok()?;
        message.has_method(BINDING).then_some(Self { message })
    }

    /// Request, success, error or indication.
    pub fn class(&self) -> BindingClass {
        match self.message.class() {
            MessageClass::Request => BindingClass::Request,
            MessageClass::Success => BindingClass::Success,
            MessageClass::Error => BindingClass::Error,
            MessageClass::Indication => BindingClass::Indication,
        }
    }

    /// The transaction's id.
    pub fn id(&self) -> TransactionId {
        self.message.transaction_id()
    }

    /// Whether it ends in a FINGERPRINT (whose value the parser has checked).
    pub fn has_fingerprint(&self) -> bool {
        self.message
            .has_attribute(stun_types::attribute::Fingerprint::TYPE)
    }

    /// USERNAME split at the colon: (the receiver's ufrag, the sender's ufrag).
    pub fn username(&self) -> Option<(String, String)> {
        let username = self.attribute::<Username>()?;
        let (receiver, sender) = username.username().split_once(':')?;
        Some((receiver.to_owned(), sender.to_owned()))
    }

    /// Whether MESSAGE-INTEGRITY holds under `key`. Costs one HMAC.
    pub fn is_authentic(&self, key: &IntegrityKey) -> bool {
        self.message.validate_integrity_with_key(key).is_ok()
    }

    /// The fields of a check; `None` when PRIORITY or a single role attribute is missing
    /// (RFC 8445 §7.3: answered with 400).
    pub fn check_fields(&self) -> Option<CheckFields> {
        let controlling = self.integer::<8>(ICE_CONTROLLING).map(u64::from_be_bytes);
        let controlled = self.integer::<8>(ICE_CONTROLLED).map(u64::from_be_bytes);
        let role = match (controlling, controlled) {
            (Some(tie_breaker), None) => RoleClaim::Controlling(tie_breaker),
            (None, Some(tie_breaker)) => RoleClaim::Controlled(tie_breaker),
            (Some(_), Some(_)) | (None, None) => return None,
        };
        Some(CheckFields {
            priority: u32::from_be_bytes(self.integer::<4>(PRIORITY)?),
            role,
            use_candidate: self
                .message
                .has_attribute(AttributeType::new(USE_CANDIDATE)),
            nomination: self
                .integer::<4>(NOMINATION)
                .map(|value| u32::from_be_bytes(value) & 0x00FF_FFFF),
        })
    }

    /// XOR-MAPPED-ADDRESS, an IPv4-mapped IPv6 address unmapped.
    pub fn mapped_address(&self) -> Option<SocketAddr> {
        let mapped = self.attribute::<XorMappedAddress>()?;
        let address = mapped.addr(self.id());
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// ERROR-CODE.
    pub fn error_code(&self) -> Option<u16> {
        Some(self.attribute::<ErrorCode>()?.code())
    }

    /// The datagram of `N` bytes that an indication encloses.
    pub fn enclosed<const N: usize>(&self) -> Option<[u8; N]> {
        self.integer(DATA)
    }

    fn attribute<'s, A: AttributeFromRaw<'s> + AttributeStaticType>(&'s self) -> Option<A> {
        self.message.attribute::<A>().ok()
    }

    fn integer<const N: usize>(&self, attribute: u16) -> Option<[u8; N]> {
        let raw = self.message.raw_attribute(AttributeType::new(attribute))?;
        (usize::from(raw.length()) == N).then(|| raw.value.as_ref().try_into().ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Check<'static> {
        Check {
            id: TransactionId::from(0x0102_0304_0506_0708_090A_0B0C),
            username: "theirs:ours",
            priority: 0x6EFF_FFFF,
            role: RoleClaim::Controlling(7),
            use_candidate: true,
            nomination: Some(3),
        }
    }

    #[test]
    fn a_check_comes_back_as_it_was_sent() {
        let key = integrity_key("password-of-the-other-side");
        let bytes = check().encode(&key);
        assert!(is_stun(&bytes) && bytes.len() <= CAPACITY);
        assert_eq!(quoted_id(&bytes[..HEADER]), Some(check().id));
        let parsed = Binding::parse(&bytes).unwrap();
        assert_eq!(parsed.class(), BindingClass::Request);
        assert_eq!(parsed.username(), Some(("theirs".into(), "ours".into())));
        assert!(parsed.has_fingerprint());
        assert!(parsed.is_authentic(&key));
        assert!(!parsed.is_authentic(&integrity_key("another password")));
        let fields = parsed.check_fields().unwrap();
        assert_eq!(fields.priority, 0x6EFF_FFFF);
        assert_eq!(fields.role, RoleClaim::Controlling(7));
        assert!(fields.use_candidate);
        assert_eq!(fields.nomination, Some(3));
    }

    #[test]
    fn no_flipped_bit_stays_authentic() {
        let key = integrity_key("secret");
        let bytes = check().encode(&key);
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let authentic = is_stun(&broken)
                && Binding::parse(&broken)
                    .is_some_and(|m| m.has_fingerprint() && m.is_authentic(&key));
            assert!(!authentic, "bit {bit}");
        }
    }

    #[test]
    fn a_response_tells_the_mapped_address() {
        let key = integrity_key("secret");
        for address in ["198.51.100.7:51821", "[2001:db8::7]:4000"] {
            let address: SocketAddr = address.parse().unwrap();
            let bytes = encode_success(check().id, address, &key);
            let parsed = Binding::parse(&bytes).unwrap();
            assert_eq!(parsed.class(), BindingClass::Success);
            assert!(parsed.is_authentic(&key));
            assert_eq!(parsed.mapped_address(), Some(address));
        }
        let bytes = encode_error(check().id, ROLE_CONFLICT, &key);
        let parsed = Binding::parse(&bytes).unwrap();
        assert_eq!(parsed.error_code(), Some(ROLE_CONFLICT));
    }

    #[test]
    fn what_is_enclosed_comes_out_as_it_went_in() {
        let key = integrity_key("secret");
        let bytes = encode_enclosed(check().id, "theirs:ours", &[7; 148], &key);
        assert!(is_stun(&bytes));
        let parsed = Binding::parse(&bytes).unwrap();
        assert_eq!(parsed.class(), BindingClass::Indication);
        assert_eq!(parsed.username(), Some(("theirs".into(), "ours".into())));
        assert!(parsed.has_fingerprint() && parsed.is_authentic(&key));
        assert_eq!(parsed.enclosed(), Some([7; 148]));
        assert_eq!(parsed.enclosed::<147>(), None);
        let plain = encode_success(check().id, "198.51.100.7:1".parse().unwrap(), &key);
        assert_eq!(Binding::parse(&plain).unwrap().enclosed::<148>(), None);
    }

    #[test]
    fn no_more_is_read_than_a_binding_message_has() {
        let filled = |len: usize| {
            let mut bytes = encode_binding(check().id);
            bytes.truncate(HEADER);
            bytes.extend([0x80, 0x99, 0, 0].repeat((len - HEADER) / 4));
            let length = u16::try_from(bytes.len() - HEADER).unwrap();
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes
        };
        assert!(Binding::parse(&filled(MAX_MESSAGE)).is_some());
        assert!(Binding::parse(&filled(MAX_MESSAGE + 4)).is_none());
    }

    #[test]
    fn both_roles_or_none_are_refused() {
        let key = integrity_key("secret");
        let bytes = encode_binding(check().id);
        assert!(Binding::parse(&bytes).unwrap().check_fields().is_none());
        assert!(!Binding::parse(&bytes).unwrap().is_authentic(&key));
    }
}
