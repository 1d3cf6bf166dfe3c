//! An IP prefix with exactly one meaning: no host bits, no IPv4 inside IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::RecordError;
use super::wire::Reader;

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;

/// An IP prefix without host bits; never IPv4-mapped. Ordered by family, address, length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    len: u8,
}

/// A text is not an IP prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an IP prefix: write it like 10.1.0.0/16 or fd00:1::/48, with no bits set after its length"
)]
pub struct PrefixParseError;

impl IpPrefix {
    /// `None` when `len` is longer than the address, a bit is set after it, or `address` is an
    /// IPv4-mapped IPv6 address.
    #[must_use]
    pub const fn new(address: IpAddr, len: u8) -> Option<Self> {
        let host_bits = match address {
            IpAddr::V4(v4) => {
                if len > 32 {
                    return None;
                }
                v4.to_bits() & !mask4(len) != 0
            }
            IpAddr::V6(v6) => {
                if len > 128 || v6.to_ipv4_mapped().is_some() {
                    return None;
                }
                v6.to_bits() & !mask6(len) != 0
            }
        };
        if host_bits {
            None
        } else {
            Some(Self { address, len })
        }
    }

    /// The prefix of one address (/32 or /128); `None` for an IPv4-mapped one.
    #[must_use]
    pub const fn host(address: IpAddr) -> Option<Self> {
        let len = if address.is_ipv4() { 32 } else { 128 };
        Self::new(address, len)
    }

    /// Its first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Its length in bits.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether `address` lies within.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                other.to_bits() & mask4(self.len) == own.to_bits()
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                other.to_bits() & mask6(self.len) == own.to_bits()
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether every address of `other` lies within.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(if self.address.is_ipv4() {
            FAMILY_V4
        } else {
            FAMILY_V6
        });
        out.push(self.len);
        put_address(out, self.address);
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let family = reader.u8()?;
        let len = reader.u8()?;
        let address = take_address(reader, family)?;
        Self::new(address, len).ok_or(RecordError::BadValue("prefix"))
    }
}

impl FromStr for IpPrefix {
    type Err = PrefixParseError;

    fn from_str(text: &str) -> Result<Self, PrefixParseError> {
        let (address, len) = text.split_once('/').ok_or(PrefixParseError)?;
        let address = address.parse().map_err(|_| PrefixParseError)?;
        if !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PrefixParseError);
        }
        Self::new(address, len.parse().map_err(|_| PrefixParseError)?).ok_or(PrefixParseError)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
}

pub(super) fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() {
        FAMILY_V4
    } else {
        FAMILY_V6
    }
}

pub(super) fn take_address(reader: &mut Reader<'_>, family: u8) -> Result<IpAddr, RecordError> {
    match family {
        FAMILY_V4 => Ok(IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?))),
        FAMILY_V6 => Ok(IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?))),
        _ => Err(RecordError::BadValue("address family")),
    }
}

/// Takes a list of prefixes after its count in one byte: at most `max`, rising, none twice.
pub(super) fn take_list(
    reader: &mut Reader<'_>,
    max: usize,
    field: &'static str,
) -> Result<Vec<IpPrefix>, RecordError> {
    let count = usize::from(reader.u8()?);
    if count > max {
        return Err(RecordError::TooLong);
    }
    let mut prefixes: Vec<IpPrefix> = Vec::with_capacity(count);
    for _ in 0..count {
        let prefix = IpPrefix::take(reader)?;
        if prefixes.last().is_some_and(|last| *last >= prefix) {
            return Err(RecordError::NotCanonical(field));
        }
        prefixes.push(prefix);
    }
    Ok(prefixes)
}

/// Appends a list of prefixes as [`take_list`] wants it; the caller has checked its length.
pub(super) fn put_list(out: &mut Vec<u8>, prefixes: &[IpPrefix]) {
    out.push(prefixes.len() as u8);
    for prefix in prefixes {
        prefix.put(out);
    }
}

const fn mask4(len: u8) -> u32 {
    match u32::MAX.checked_shl(32 - len as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

const fn mask6(len: u8) -> u128 {
    match u128::MAX.checked_shl(128 - len as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_one_prefix() {
        for text in [
            "0.0.0.0/0",
            "10.1.0.0/16",
            "100.91.4.17/32",
            "::/0",
            "fd00:1::/48",
        ] {
            assert_eq!(text.parse::<IpPrefix>().unwrap().to_string(), text);
        }
        for text in [
            "10.1.0.1/16",
            "10.1.0.0/33",
            "10.1.0.0",
            "::/129",
            "::ffff:1.2.3.4/128",
            "1.2.3.4/+32",
            "fd00::1/64",
            "/",
            "",
        ] {
            assert_eq!(text.parse::<IpPrefix>(), Err(PrefixParseError), "{text}");
        }
    }

    #[test]
    fn covers_is_by_family_and_length() {
        let p = |text: &str| text.parse::<IpPrefix>().unwrap();
        assert!(p("10.0.0.0/8").covers(&p("10.1.0.0/16")));
        assert!(p("10.1.0.0/16").covers(&p("10.1.0.0/16")));
        assert!(!p("10.1.0.0/16").covers(&p("10.0.0.0/8")));
        assert!(!p("10.1.0.0/16").covers(&p("10.2.0.0/24")));
        assert!(p("0.0.0.0/0").covers(&p("10.2.0.0/24")));
        assert!(!p("0.0.0.0/0").covers(&p("::/0")));
        assert!(p("::/0").covers(&p("fd00::/8")));
    }
}
