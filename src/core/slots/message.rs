//! WireGuard's messages as far as they can be read without keys (WireGuard paper §5.4): which of
//! the four, and the indices that it names.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use subtle::ConstantTimeEq as _;
use wice_signaling::protocol::PublicKey;

use crate::core::node::WireGuardPacket;

/// Length of an initiation (§5.4.2).
pub const INITIATION_LEN: usize = 148;
/// Length of a response (§5.4.3).
const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply (§5.4.7).
const COOKIE_LEN: usize = 64;
/// Length of a transport message without payload (§5.4.6): header and tag.
const EMPTY_LEN: usize = 32;
/// In a transport message the type word and the receiver's index are its first bytes (§5.4.6).
const NAMES_LEN: usize = 8;
/// Behind the type word stands the sender's index, or the receiver's where there is no sender's.
const FIRST_INDEX: usize = 4;
/// In a response the receiver's follows.
const SECOND_INDEX: usize = 8;
/// mac1 and mac2 end both handshake messages (§5.4.4).
const MACS_LEN: usize = 32;
const MAC1_LEN: usize = 16;
const LABEL_MAC1: &[u8] = b"mac1----";

/// One message; an index is a session's number at the side that has drawn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Type 1.
    Initiation {
        /// Who sends it will be known by this.
        sender: u32,
    },
    /// Type 2.
    Response {
        /// Who sends it will be known by this.
        sender: u32,
        /// Whose initiation it answers.
        receiver: u32,
    },
    /// Type 3.
    Cookie {
        /// Whose handshake message it answers.
        receiver: u32,
    },
    /// Type 4.
    Data {
        /// Whose session it is of.
        receiver: u32,
        /// Whether it has no payload: a keepalive.
        empty: bool,
    },
}

impl Message {
    /// `None` for what WireGuard would drop by its type and length alone.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first_chunk::<4>()?;
        let first = index(rest, 0)?;
        match (kind, datagram.len()) {
            ([1, 0, 0, 0], INITIATION_LEN) => Some(Self::Initiation { sender: first }),
            ([2, 0, 0, 0], RESPONSE_LEN) => Some(Self::Response {
                sender: first,
                receiver: index(rest, SECOND_INDEX - FIRST_INDEX)?,
            }),
            ([3, 0, 0, 0], COOKIE_LEN) => Some(Self::Cookie { receiver: first }),
            ([4, 0, 0, 0], EMPTY_LEN..) => Some(Self::Data {
                receiver: first,
                empty: datagram.len() == EMPTY_LEN,
            }),
            (_, _) => None,
        }
    }

    /// The session that it names at its recipient.
    pub fn receiver(&self) -> Option<u32> {
        match self {
            Self::Initiation { .. } => None,
            Self::Response { receiver, .. }
            | Self::Cookie { receiver }
            | Self::Data { receiver, .. } => Some(*receiver),
        }
    }

    /// What the choice of paths wants to know of it; a cookie tells it nothing.
    pub fn packet(&self) -> Option<WireGuardPacket> {
        match self {
            Self::Initiation { .. } => Some(WireGuardPacket::HandshakeInitiation),
            Self::Response { .. } => Some(WireGuardPacket::HandshakeResponse),
            Self::Cookie { .. } => None,
            Self::Data { empty: true, .. } => Some(WireGuardPacket::Keepalive),
            Self::Data { empty: false, .. } => Some(WireGuardPacket::Data),
        }
    }
}

/// Whom handshake messages are for: the key of their mac1 (§5.4.4).
#[derive(Clone, Debug)]
pub(super) struct Mac1Key([u8; 32]);

impl Mac1Key {
    pub(super) fn of(recipient: &PublicKey) -> Self {
        let hash = Blake2s256::new().chain(LABEL_MAC1).chain(recipient.0);
        Self(hash.finalize().into())
    }

    /// Whether an initiation or response carries this mac1.
    pub(super) fn fits(&self, message: &[u8]) -> bool {
        let Some((covered, macs)) =
            message.split_at_checked(message.len().saturating_sub(MACS_LEN))
        else {
            return false;
        };
        let Ok(mut mac) = Blake2sMac::<U16>::new_from_slice(&self.0) else {
            return false;
        };
        mac.update(covered);
        let wanted = mac.finalize_fixed();
        macs.get(..MAC1_LEN)
            .is_some_and(|mac1| bool::from(wanted.ct_eq(mac1)))
    }
}

/// Whether an initiation is for this key, by its mac1. Costs two hashes.
pub fn is_for(initiation: &[u8; INITIATION_LEN], recipient: &PublicKey) -> bool {
    Mac1Key::of(recipient).fits(initiation)
}

/// Datagrams of one arrival that go the same way: data of one session, or one message alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// The first of them; `None` if it is no message of WireGuard's.
    pub message: Option<Message>,
    /// Back to back.
    pub bytes: &'a [u8],
}

/// Cuts `run`, datagrams of `segment_size` bytes of which the last may be shorter, into spans: the
/// kernel joins by size, not by what is inside.
pub fn spans(run: &[u8], segment_size: usize) -> impl Iterator<Item = Span<'_>> {
    let size = segment_size.max(1);
    let mut rest = run;
    std::iter::from_fn(move || {
        let head = rest
            .get(..size.min(rest.len()))
            .filter(|head| !head.is_empty())?;
        let message = Message::parse(head);
        let mut end = head.len();
        if let Some(Message::Data { .. }) = message {
            // Type and receiver's index alike, and long enough: no need to look closer.
            let names = |datagram: &[u8]| datagram.first_chunk::<NAMES_LEN>().copied();
            for next in rest.get(end..).unwrap_or_default().chunks(size) {
                if next.len() < EMPTY_LEN || names(next) != names(head) {
                    break;
                }
                end += next.len();
            }
        }
        let (bytes, after) = rest.split_at(end);
        rest = after;
        Some(Span { message, bytes })
    })
}

fn index(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}
