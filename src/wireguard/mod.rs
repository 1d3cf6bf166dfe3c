//! WireGuard backends: in-process (boringtun on a TUN device), kernel, userspace by its UAPI.

pub mod inprocess;
pub mod netlink;
mod prefix;
pub mod tun;

pub use prefix::{IpPrefix, ParsePrefixError};
