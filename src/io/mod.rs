//! Sockets, relay connections and the packet loop.

pub mod echo;
pub mod packet_loop;
pub mod relay;
pub mod slots;
pub mod udp;
pub(crate) mod verify;
