//! Payloads of one length at equal distances, as they lie in a run of frames that the kernel has joined.

/// Payloads of a run: all of one length, each as far from the next as the frames that they are in are long. Nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Payloads<'p> {
    /// From the first one on.
    bytes: &'p [u8],
    stride: usize,
    len: usize,
    count: usize,
}

impl<'p> Payloads<'p> {
    /// This one alone.
    pub fn one(payload: &'p [u8]) -> Self {
        Self {
            bytes: payload,
            stride: 0,
            len: payload.len(),
            count: 1,
        }
    }

    /// Up to `count` payloads of `len` bytes, the first at the start of `bytes` and `stride` bytes between one's start and the
    /// next one's; as many as are whole.
    pub fn spaced(bytes: &'p [u8], stride: usize, len: usize, count: usize) -> Self {
        let after_first = bytes.len().checked_sub(len);
        let whole = after_first.map_or(0, |rest| 1 + rest.checked_div(stride).unwrap_or(0));
        Self {
            bytes,
            stride,
            len,
            count: count.min(whole),
        }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of each.
    pub fn each(&self) -> usize {
        self.len
    }

    /// Where the first one lies in memory.
    pub fn start(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &'p [u8]> + use<'p> {
        let Self {
            bytes, stride, len, ..
        } = *self;
        (0..self.count).map(move |n| &bytes[n * stride..][..len])
    }

    /// Those behind the first `taken`.
    pub(super) fn after(self, taken: usize) -> Self {
        Self {
            bytes: self.bytes.get(taken * self.stride..).unwrap_or_default(),
            count: self.count.saturating_sub(taken),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<'p>(payloads: &Payloads<'p>) -> Vec<&'p [u8]> {
        payloads.iter().collect()
    }

    #[test]
    fn those_that_are_whole_come_one_by_one() {
        let bytes = b"ab--cd--ef--g";
        let payloads = Payloads::spaced(bytes, 4, 2, usize::MAX);
        assert_eq!(all(&payloads), [b"ab", b"cd", b"ef"]);
        assert_eq!(all(&Payloads::spaced(bytes, 4, 2, 2)), [b"ab", b"cd"]);
        assert_eq!(all(&payloads.after(2)), [b"ef"]);
        assert_eq!(payloads.after(3).count(), 0);
        assert_eq!(payloads.after(9).count(), 0);
        assert_eq!(Payloads::spaced(b"a", 4, 2, 9).count(), 0);
        assert_eq!(all(&Payloads::spaced(b"abc", 0, 2, 9)), [b"ab"]);
        assert_eq!(all(&Payloads::one(b"")), [b""]);
        assert_eq!(all(&Payloads::one(b"ab")), [b"ab"]);
    }
}
