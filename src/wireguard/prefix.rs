//! IP prefixes, as allowed IPs and routes have them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IP network: an address whose bits past `len` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    len: u8,
}

impl IpPrefix {
    /// The network of `address` with `len` leading bits; bits past them are cleared, as `wg` does.
    /// `None` if `len` is over 32 (IPv4) or 128 (IPv6).
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if len <= 32 => {
                IpAddr::V4(Ipv4Addr::from_bits(mask_v4(v4.to_bits(), len)))
            }
            IpAddr::V6(v6) if len <= 128 => {
                IpAddr::V6(Ipv6Addr::from_bits(mask_v6(v6.to_bits(), len)))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, len })
    }

    /// The prefix that holds this address alone.
    pub fn host(address: IpAddr) -> Self {
        let len = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Self { address, len }
    }

    /// The network address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Leading bits that count.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a prefix length, not a container's"
    )]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        Self::new(address, self.len) == Some(self)
    }
}

pub(super) fn mask_v4(bits: u32, len: u8) -> u32 {
    bits & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

pub(super) fn mask_v6(bits: u128, len: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Not an IP prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an IP prefix\n  write it as 10.0.0.0/8 or fd00::/8; a lone address stands for itself"
)]
pub struct ParsePrefixError(String);

impl FromStr for IpPrefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.split_once('/') {
            Some((address, len)) => address
                .parse()
                .ok()
                .zip(len.parse().ok())
                .and_then(|(a, l)| Self::new(a, l)),
            None => text.parse().ok().map(Self::host),
        };
        parsed.ok_or_else(|| ParsePrefixError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_parse_mask_and_contain() {
        let p: IpPrefix = "10.1.2.3/8".parse().unwrap();
        assert_eq!(p.to_string(), "10.0.0.0/8");
        assert!(p.contains("10.255.0.1".parse().unwrap()));
        assert!(!p.contains("11.0.0.1".parse().unwrap()));
        assert!(!p.contains("::1".parse().unwrap()));
        let all: IpPrefix = "::/0".parse().unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        assert_eq!("fd00::1".parse::<IpPrefix>().unwrap().len(), 128);
        assert!(
            "0.0.0.0/0"
                .parse::<IpPrefix>()
                .unwrap()
                .contains("1.2.3.4".parse().unwrap())
        );
        for bad in ["10.0.0.0/33", "::/129", "10.0.0/8", "x", "10.0.0.0/-1", ""] {
            assert!(bad.parse::<IpPrefix>().is_err(), "{bad}");
        }
    }
}
