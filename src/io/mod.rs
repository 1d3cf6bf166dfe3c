//! Sockets, relay connections and the packet loop.
