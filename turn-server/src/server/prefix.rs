//! An IP prefix as operators write it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An IP prefix; bits after its length do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// A text is no IP prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no IP prefix\n  write it like 10.0.0.0/8, 2001:db8::/32, or one address")]
pub struct PrefixError(String);

impl Prefix {
    /// `None` when `len` is longer than the address.
    pub const fn new(address: IpAddr, len: u8) -> Option<Self> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        if len > max {
            None
        } else {
            Some(Self { address, len })
        }
    }

    /// Whether `address` lies within. Families never mix.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(own.to_bits().into(), other.to_bits().into(), self.len, 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                same(own.to_bits(), other.to_bits(), self.len, 128)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn same(a: u128, b: u128, len: u8, bits: u8) -> bool {
    (a ^ b).checked_shr(u32::from(bits - len)).unwrap_or(0) == 0
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let error = || PrefixError(text.to_owned());
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let full = if address.is_ipv4() { 32 } else { 128 };
        let len = match len {
            Some(len) if len.bytes().all(|b| b.is_ascii_digit()) => {
                len.parse().map_err(|_| error())?
            }
            Some(_) => return Err(error()),
            None => full,
        };
        Self::new(address, len).ok_or_else(error)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}
