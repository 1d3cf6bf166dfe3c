//! Sockets, relay connections and the packet loop.

pub mod dial;
pub mod echo;
pub mod http_proxy;
pub mod packet_loop;
pub mod relay;
pub mod roots;
pub mod slots;
pub mod udp;
pub(crate) mod verify;
