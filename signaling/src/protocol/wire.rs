//! Reading and writing bounded byte strings: big-endian integers, length-prefixed parts.

/// Why a byte string is not a record, a frame or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It ends before its last field.
    #[error("it ends too early")]
    Truncated,
    /// It goes on after its last field.
    #[error("it has bytes after its end")]
    TrailingBytes,
    /// It is longer than its kind may be.
    #[error("it is longer than allowed")]
    TooLong,
    /// It is of a version that this program does not know.
    #[error("it is of version {0}, which this program does not know: update wice")]
    UnknownVersion(u8),
    /// A frame of a type that this program does not know: of a later version.
    #[error("it is a frame of type {0}, which this program does not know")]
    UnknownFrame(u8),
    /// A field holds a value that its kind does not have.
    #[error("its field `{0}` has no such value")]
    BadValue(&'static str),
    /// A list is not sorted, or has an element twice.
    #[error("its list `{0}` is not sorted, or has an element twice")]
    NotCanonical(&'static str),
    /// The signature does not match the key.
    #[error("its signature does not match its key: it is forged or damaged")]
    BadSignature,
}

/// Takes fields off the front of a byte string. Every failure is [`RecordError::Truncated`].
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(RecordError::Truncated);
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(RecordError::Truncated);
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A byte string after its length in two bytes.
    pub(super) fn long(&mut self, max: usize) -> Result<&'a [u8], RecordError> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(RecordError::TooLong);
        }
        self.bytes(len)
    }

    /// UTF-8 text after its length in one byte, as [`check_text`] wants it.
    pub(super) fn text(&mut self, max: usize, field: &'static str) -> Result<&'a str, RecordError> {
        let len = usize::from(self.u8()?);
        let text =
            std::str::from_utf8(self.bytes(len)?).map_err(|_| RecordError::BadValue(field))?;
        check_text(text, max, field)?;
        Ok(text)
    }

    pub(super) fn finish(self) -> Result<(), RecordError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(RecordError::TrailingBytes)
        }
    }
}

/// Text that people will read on a terminal: no control characters, and none that turn or split
/// the line (Unicode's bidirectional and line separators).
pub(super) fn check_text(text: &str, max: usize, field: &'static str) -> Result<(), RecordError> {
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.len() > max || text.chars().any(hostile) {
        return Err(RecordError::BadValue(field));
    }
    Ok(())
}

/// Appends text after its length in one byte.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(usize::from(u8::MAX))];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

/// Appends a byte string after its length in two bytes.
pub(super) fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}
