//! The control socket: newline-delimited JSON over a Unix socket, one request a line, and one reply a line (a ping has many, then
//! `done`). It answers questions; what it asks is behind [`Handler`].

mod client;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientError, find_socket, probe, socket};
pub use protocol::{ControlError, ErrorKind, MAX_PINGS, Probe, Reply, Request, Servers, TurnLogin};
pub use server::{BindError, ControlListener, Handler, serve};
