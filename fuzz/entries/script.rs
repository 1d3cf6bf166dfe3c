//! Arbitrary bytes as the steps of a test: numbers and choices taken off the front.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Bytes that have not been read yet.
pub(super) struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// `None` at the end.
    pub(super) fn step(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// The next byte; 0 past the end, as all that follows.
    pub(super) fn byte(&mut self) -> u8 {
        self.step().unwrap_or(0)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// At most `limit` bytes, after their number in one.
    pub(super) fn bytes(&mut self, limit: usize) -> &'a [u8] {
        let len = usize::from(self.byte()).min(limit).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    /// From 0 to over an hour, mostly short.
    pub(super) fn time(&mut self) -> Duration {
        let count = u64::from(self.byte());
        let unit = [0, 1, 5, 20, 100, 1000, 20_000][self.below(7)];
        Duration::from_millis(count * unit)
    }

    /// Some that may be candidates, some that may not; few, so that they meet again.
    pub(super) fn address(&mut self) -> SocketAddr {
        let host = self.byte();
        let ip: IpAddr = match self.below(8) {
            0 | 1 => Ipv4Addr::new(203, 0, 113, host % 4).into(),
            2 => Ipv4Addr::new(192, 168, 1, host).into(),
            3 => Ipv4Addr::new(198, 51, 100, host).into(),
            4 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host % 4)).into(),
            5 => Ipv4Addr::new(127, 0, 0, host).into(),
            6 => Ipv4Addr::new(100, 91, 0, host).into(),
            _ => Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc000, u16::from(host)).into(),
        };
        SocketAddr::new(ip, 1 + self.u16() % 8)
    }

    /// Changes a few bits and bytes of a message, or its length.
    pub(super) fn damage(&mut self, message: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = usize::from(self.u16()) % message.len().max(1);
            match self.below(5) {
                0 | 1 => {
                    if let Some(byte) = message.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                2 => {
                    if let Some(byte) = message.get_mut(at) {
                        *byte = self.byte();
                    }
                }
                3 => message.truncate(at),
                _ => message.extend_from_slice(self.bytes(32)),
            }
        }
    }
}
