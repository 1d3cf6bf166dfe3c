//! Bytes on their way out of a connection. Whoever pushes keeps the bound.

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// How much of it is written.
    written: usize,
}

/// Written bytes in front of others that are kept before they are cut off: cutting costs a copy of what is left.
const MAX_WRITTEN: usize = 64 << 10;

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What goes next.
    pub(super) fn front(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// So much of [`Outbox::front`] is written.
    pub(super) fn pop(&mut self, len: usize) {
        self.written += len;
        if self.is_empty() {
            self.bytes.clear();
            self.written = 0;
        } else if self.written > MAX_WRITTEN {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }
}
