//! ChannelData (RFC 8656 §12.4), and the frames of a stream (§12.5).

use super::{COOKIE, HEADER_LEN};

/// Bytes in front of the payload of ChannelData.
pub const CHANNEL_HEADER_LEN: usize = 4;

/// One ChannelData message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelData<'a> {
    /// The channel's number, as it stands there.
    pub number: u16,
    /// What is to be relayed.
    pub payload: &'a [u8],
}

/// Whether a frame is ChannelData by its first byte (RFC 8656 §12: 64 to 79), those of clients older than RFC 8656 (to 127)
/// included.
pub fn is_channel_data(frame: &[u8]) -> bool {
    frame
        .first()
        .is_some_and(|first| matches!(first, 0x40..=0x7F))
}

impl<'a> ChannelData<'a> {
    /// Parses a frame; bytes after the payload are padding and do not count, missing ones make it `None`.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (head, rest) = frame.split_first_chunk::<CHANNEL_HEADER_LEN>()?;
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        Some(Self {
            number: u16::from_be_bytes([head[0], head[1]]),
            payload: rest.get(..len)?,
        })
    }
}

/// The header of ChannelData in front of `len` bytes of payload; `None` for more than it can say.
pub fn channel_header(number: u16, len: usize) -> Option<[u8; CHANNEL_HEADER_LEN]> {
    let len = u16::try_from(len).ok()?.to_be_bytes();
    let number = number.to_be_bytes();
    Some([number[0], number[1], len[0], len[1]])
}

/// A stream holds what can start neither STUN nor ChannelData: there is no way back into step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is neither STUN nor ChannelData")]
pub struct Desynchronized;

/// The bytes of the frame that a stream starts with, padding included, once enough of it is there to tell.
///
/// # Errors
/// [`Desynchronized`] as soon as the bytes cannot be a frame.
pub fn stream_frame(bytes: &[u8]) -> Result<Option<usize>, Desynchronized> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    if first > 0x7F {
        return Err(Desynchronized);
    }
    let Some(&[_, _, high, low]) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if is_channel_data(bytes) {
        return Ok(Some(CHANNEL_HEADER_LEN + len.next_multiple_of(4)));
    }
    if !len.is_multiple_of(4) {
        return Err(Desynchronized);
    }
    match bytes.get(4..8) {
        None => Ok(None),
        Some(cookie) if cookie == COOKIE.to_be_bytes() => Ok(Some(HEADER_LEN + len)),
        Some(_) => Err(Desynchronized),
    }
}
