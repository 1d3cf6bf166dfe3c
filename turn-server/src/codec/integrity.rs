//! MESSAGE-INTEGRITY (RFC 8489 §14.5, §14.6), FINGERPRINT (§14.7), and the keys of long-term credentials (§9.2.2).

use hmac::{Hmac, Mac as _};
use md5::{Digest as _, Md5};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroize;

/// XORed into the CRC (RFC 8489 §14.7).
const FINGERPRINT_MASK: u32 = 0x5354_554E;
/// Header and value of a MESSAGE-INTEGRITY attribute.
const SHA1_ATTRIBUTE_LEN: usize = 4 + 20;
/// Header and value of a MESSAGE-INTEGRITY-SHA256 attribute.
const SHA256_ATTRIBUTE_LEN: usize = 4 + 32;

/// The hash under the HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// MESSAGE-INTEGRITY.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256.
    Sha256,
}

/// The key of an integrity: an HMAC key of 16 or 32 bytes (long-term), or a password (short-term). Cleared when dropped.
#[derive(Clone)]
pub struct Key {
    bytes: [u8; 32],
    len: u8,
}

impl Key {
    /// MD5 of `username:realm:password` (RFC 8489 §9.2.2).
    pub fn md5(username: &str, realm: &str, password: &str) -> Self {
        let mut hash = Md5::new();
        feed(username, realm, password, |bytes| hash.update(bytes));
        Self::new(&hash.finalize())
    }

    /// SHA-256 of the same.
    pub fn sha256(username: &str, realm: &str, password: &str) -> Self {
        let mut hash = Sha256::new();
        feed(username, realm, password, |bytes| hash.update(bytes));
        Self::new(&hash.finalize())
    }

    /// Of at most 32 bytes; what is longer is cut off.
    pub fn new(key: &[u8]) -> Self {
        let len = key.len().min(32);
        let mut bytes = [0; 32];
        bytes[..len].copy_from_slice(&key[..len]);
        Self {
            bytes,
            len: len as u8,
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// FINGERPRINT over a message up to it; its header's length must count it already (RFC 8489 §14.7).
pub fn fingerprint(message: &[u8]) -> u32 {
    crc32(message) ^ FINGERPRINT_MASK
}

/// Whether `value` is the integrity of a message that ends before it.
pub(super) fn verify(key: &Key, hash: Hash, message: &[u8], value: &[u8]) -> bool {
    match hash {
        Hash::Sha1 => mac_sha1(key, message).is_some_and(|mac| mac.verify_slice(value).is_ok()),
        Hash::Sha256 => mac_sha256(key, message).is_some_and(|mac| mac.verify_slice(value).is_ok()),
    }
}

/// Appends the attribute and counts it in the header.
pub(super) fn append(key: &Key, hash: Hash, message: &mut Vec<u8>) {
    match hash {
        Hash::Sha1 => {
            let Some(mac) = mac_sha1(key, message) else {
                return;
            };
            message.extend([0x00, 0x08, 0, 20]);
            message.extend_from_slice(&mac.finalize().into_bytes());
        }
        Hash::Sha256 => {
            let Some(mac) = mac_sha256(key, message) else {
                return;
            };
            message.extend([0x00, 0x1C, 0, 32]);
            message.extend_from_slice(&mac.finalize().into_bytes());
        }
    }
}

fn mac_sha1(key: &Key, message: &[u8]) -> Option<Hmac<Sha1>> {
    let mut mac = <Hmac<Sha1> as hmac::Mac>::new_from_slice(key.as_bytes()).ok()?;
    mac.update(&header(message, SHA1_ATTRIBUTE_LEN)?);
    mac.update(message.get(4..)?);
    Some(mac)
}

fn mac_sha256(key: &Key, message: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(key.as_bytes()).ok()?;
    mac.update(&header(message, SHA256_ATTRIBUTE_LEN)?);
    mac.update(message.get(4..)?);
    Some(mac)
}

/// The first four bytes of the header with the length up to the integrity and with it (RFC 8489 §14.5).
fn header(message: &[u8], attribute: usize) -> Option<[u8; 4]> {
    let len = u16::try_from(message.len().checked_sub(super::HEADER_LEN)? + attribute).ok()?;
    let len = len.to_be_bytes();
    Some([message[0], message[1], len[0], len[1]])
}

fn feed(username: &str, realm: &str, password: &str, mut update: impl FnMut(&[u8])) {
    for part in [username, ":", realm, ":", password] {
        update(part.as_bytes());
    }
}

/// CRC-32 as in ITU V.42: the table of one byte.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut value = n as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                0xEDB8_8320 ^ (value >> 1)
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};

fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        CRC[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ (crc >> 8)
    });
    !crc
}
