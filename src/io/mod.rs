//! Sockets, relay connections, port mapping and the packet loop.

pub(crate) mod certificates;
pub mod dial;
pub mod echo;
pub mod http_proxy;
pub mod packet_loop;
pub mod portmap;
pub mod relay;
pub mod roots;
pub mod shared_port;
pub mod slots;
pub mod udp;
pub(crate) mod verify;
