//! UDP sockets for the packet loop, from their own crate: the TURN server sends and receives by them too.

pub use wice_udp::*;
