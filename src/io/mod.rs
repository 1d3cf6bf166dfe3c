//! Sockets, relay connections and the packet loop.

pub mod relay;
