//! Frames of a TCP or TLS stream: STUN messages and padded ChannelData (RFC 8656 §12.5).

use std::borrow::Cow;

use stun_types::message::MessageHeader;

use super::message::CHANNEL_DATA_HEADER;

/// The magic cookie (RFC 8489 §5) at bytes 4 to 7 of every STUN message.
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// The stream holds what can start neither STUN nor ChannelData. There is no way back into step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Desynchronized;

/// Holds the start of one frame whose rest has not arrived: at most one frame of 64 KiB, because
/// whole frames are taken straight out of what was read.
#[derive(Default)]
pub(super) struct StreamBuffer {
    partial: Vec<u8>,
}

impl StreamBuffer {
    /// Takes the next whole frame off `input`, or keeps what there is of it and returns `None`.
    /// Only a frame that was split between reads is owned. `known`: whether a channel number was ever
    /// asked for; ChannelData on another shows a stream out of step (`HT` of `HTTP` is a number too).
    pub(super) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        known: impl Fn(u16) -> bool,
    ) -> Result<Option<Cow<'a, [u8]>>, Desynchronized> {
        if self.partial.is_empty() {
            return match frame_length(input, &known)? {
                Some(length) if length <= input.len() => {
                    let (frame, rest) = input.split_at(length);
                    *input = rest;
                    Ok(Some(Cow::Borrowed(frame)))
                }
                Some(_) | None => {
                    self.partial.extend_from_slice(input);
                    *input = &[];
                    Ok(None)
                }
            };
        }
        loop {
            // A header byte at a time at most eight times, then the whole rest at once.
            let missing = match frame_length(&self.partial, &known)? {
                Some(length) if length <= self.partial.len() => {
                    return Ok(Some(Cow::Owned(std::mem::take(&mut self.partial))));
                }
                Some(length) => length - self.partial.len(),
                None => 1,
            };
            if input.is_empty() {
                return Ok(None);
            }
            let (taken, rest) = input.split_at(missing.min(input.len()));
            self.partial.extend_from_slice(taken);
            *input = rest;
        }
    }

    pub(super) fn clear(&mut self) {
        self.partial = Vec::new();
    }
}

/// The length of the frame that `bytes` starts, padding included, once enough of it is there to tell.
fn frame_length(
    bytes: &[u8],
    known: impl Fn(u16) -> bool,
) -> Result<Option<usize>, Desynchronized> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let stun = first & 0xc0 == 0;
    // RFC 8656 §12: channel numbers are 0x4000 to 0x4FFF; the rest is reserved.
    if !stun && first & 0xf0 != 0x40 {
        return Err(Desynchronized);
    }
    let Some(&[a, b, c, d]) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([c, d]));
    if !stun {
        if !known(u16::from_be_bytes([a, b])) {
            return Err(Desynchronized);
        }
        return Ok(Some(CHANNEL_DATA_HEADER + length.next_multiple_of(4)));
    }
    if length % 4 != 0 {
        return Err(Desynchronized);
    }
    match bytes.get(4..8) {
        None => Ok(None),
        Some(cookie) if cookie == COOKIE => Ok(Some(MessageHeader::LENGTH + length)),
        Some(_) => Err(Desynchronized),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::turn::message::{binding_request, channel_data};
    use stun_types::prelude::MessageWrite;

    fn frames(buffer: &mut StreamBuffer, mut input: &[u8]) -> Result<Vec<Vec<u8>>, Desynchronized> {
        let mut out = Vec::new();
        while let Some(frame) = buffer.next(&mut input, |number| number != 0x4854)? {
            out.push(frame.into_owned());
        }
        Ok(out)
    }

    #[test]
    fn every_cut_gives_the_same_frames() {
        let stun = binding_request(5.into()).finish();
        let whole = [
            channel_data(0x4000, &[1; 5], true),
            stun,
            channel_data(0x4fff, &[], true),
            channel_data(0x4001, &[2; 8], true),
        ];
        let bytes = whole.concat();
        for size in 1..=bytes.len() {
            let mut buffer = StreamBuffer::default();
            let mut out = Vec::new();
            for part in bytes.chunks(size) {
                out.extend(frames(&mut buffer, part).expect("in step"));
            }
            assert_eq!(out, whole, "reads of {size} bytes");
            assert!(buffer.partial.is_empty());
        }
    }

    #[test]
    fn what_is_neither_stun_nor_channel_data_is_noticed() {
        let http = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        for bytes in [
            &http[..],
            &[0x50, 0, 0, 0],
            &[0x00, 0x01, 0, 3],
            &[0x00, 0x01, 0, 4, 0, 0, 0, 0],
        ] {
            assert_eq!(
                frames(&mut StreamBuffer::default(), bytes),
                Err(Desynchronized)
            );
        }
    }

    #[test]
    fn a_partial_frame_is_bounded() {
        let mut buffer = StreamBuffer::default();
        assert!(frames(&mut buffer, &[0x40, 0, 0xff, 0xff]).is_ok_and(|frames| frames.is_empty()));
        for _ in 0..1000 {
            assert!(frames(&mut buffer, &[0x40; 60]).is_ok());
            assert!(buffer.partial.len() <= 4 + 65_536);
        }
    }
}
