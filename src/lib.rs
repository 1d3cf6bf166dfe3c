//! wice: a working path between every two nodes of a WireGuard mesh.
//!
//! The flow is one way: sockets, timers, netlink and signaling feed [`core`], which does no I/O
//! and answers with transmits, bindings, adverts and events.

pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
pub mod io;
pub mod lab;
pub mod report;
pub mod signaling;
pub mod wireguard;
