//! A TURN and STUN server (RFC 8656, RFC 8489).
//!
//! [`server`] decides: packets and timers in, commands and forwards out, without sockets, clock or random numbers of its own.
//! [`io`] carries: a thread a core, each with its own sockets and its own share of the clients. [`codec`] reads and writes messages.

pub mod codec;
pub mod io;
pub mod server;
