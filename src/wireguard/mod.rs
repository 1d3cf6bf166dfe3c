//! WireGuard backends: in-process (boringtun on a TUN device), kernel, userspace by its UAPI.

pub mod gateways;
pub mod inprocess;
mod mask;
pub mod netlink;
pub mod tun;

pub use wice_signaling::protocol::IpPrefix;
