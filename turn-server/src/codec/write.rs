//! Writing responses and indications.

use std::net::{IpAddr, SocketAddr};

use super::integrity::{self, Hash, Key, fingerprint};
use super::{COOKIE, Class, HEADER_LEN, TransactionId, attribute};

/// Room for a usual response: success with two relayed addresses, SHA-256 integrity.
const CAPACITY: usize = 160;

/// A message under construction. Values are padded with zeros to four bytes.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A message without attributes.
    pub fn new(class: Class, method: u16, id: TransactionId) -> Self {
        Self::with_capacity(class, method, id, CAPACITY)
    }

    /// The same, with room for `capacity` bytes in all.
    pub fn with_capacity(class: Class, method: u16, id: TransactionId, capacity: usize) -> Self {
        let class = match class {
            Class::Request => 0x0000,
            Class::Indication => 0x0010,
            Class::Success => 0x0100,
            Class::Error => 0x0110,
        };
        // RFC 8489 §5: the class's two bits stand between the method's.
        let kind = method & 0x000F | (method & 0x0070) << 1 | (method & 0x0F80) << 2 | class;
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(COOKIE.to_be_bytes());
        bytes.extend(id.0);
        Self { bytes }
    }

    /// Appends an attribute. One that would take the message past 64 KiB is left out; nothing that is written here comes near.
    pub fn add(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let padded = value.len().next_multiple_of(4);
        if self.bytes.len() + 4 + padded > usize::from(u16::MAX) {
            debug_assert!(false, "an attribute of {} bytes", value.len());
            return self;
        }
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend((value.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes
            .resize(self.bytes.len() + padded - value.len(), 0);
        self
    }

    /// An address masked by cookie and transaction id (RFC 8489 §14.2).
    pub fn add_xor_address(&mut self, kind: u16, address: SocketAddr) -> &mut Self {
        let (mut value, len) = address_value(address);
        // The mask of the port is the cookie's first half, as it is of the address.
        for (byte, mask) in value[2..4].iter_mut().zip(COOKIE.to_be_bytes()) {
            *byte ^= mask;
        }
        for (byte, mask) in value[4..len].iter_mut().zip(&self.bytes[4..HEADER_LEN]) {
            *byte ^= mask;
        }
        self.add(kind, &value[..len])
    }

    /// An address as it is (RFC 8489 §14.1).
    pub fn add_address(&mut self, kind: u16, address: SocketAddr) -> &mut Self {
        let (value, len) = address_value(address);
        self.add(kind, &value[..len])
    }

    /// ERROR-CODE with its recommended reason (RFC 8489 §14.8).
    pub fn add_error(&mut self, code: u16, reason: &str) -> &mut Self {
        let mut value = vec![0, 0, (code / 100) as u8, (code % 100) as u8];
        value.extend_from_slice(reason.as_bytes());
        self.add(attribute::ERROR_CODE, &value)
    }

    /// The bytes, sealed by an integrity and ended by a FINGERPRINT where asked.
    pub fn finish(mut self, integrity: Option<(&Key, Hash)>, with_fingerprint: bool) -> Vec<u8> {
        if let Some((key, hash)) = integrity {
            integrity::append(key, hash, &mut self.bytes);
        }
        self.set_len(0);
        if with_fingerprint {
            self.set_len(8);
            let value = fingerprint(&self.bytes);
            self.bytes.extend(attribute::FINGERPRINT.to_be_bytes());
            self.bytes.extend([0, 4]);
            self.bytes.extend(value.to_be_bytes());
        }
        self.bytes
    }

    fn set_len(&mut self, more: usize) {
        let len = (self.bytes.len() - HEADER_LEN + more) as u16;
        self.bytes[2..4].copy_from_slice(&len.to_be_bytes());
    }
}

/// One zero byte, family, port, address (RFC 8489 §14.1), and how many bytes that is.
fn address_value(address: SocketAddr) -> ([u8; 20], usize) {
    let mut value = [0; 20];
    value[2..4].copy_from_slice(&address.port().to_be_bytes());
    let len = match address.ip() {
        IpAddr::V4(ip) => {
            value[1] = 1;
            value[4..8].copy_from_slice(&ip.octets());
            8
        }
        IpAddr::V6(ip) => {
            value[1] = 2;
            value[4..].copy_from_slice(&ip.octets());
            20
        }
    };
    (value, len)
}
