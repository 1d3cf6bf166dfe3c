//! WireGuard backends: in-process (boringtun on a TUN device), kernel, userspace by its UAPI.

pub mod backend;
pub mod gateways;
pub mod inprocess;
pub mod kernel;
pub mod link;
mod mask;
pub mod netlink;
pub mod tun;
pub mod uapi;
mod underlay;
mod watch;

pub use wice_signaling::protocol::IpPrefix;
