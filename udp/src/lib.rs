//! UDP sockets for packet loops: many datagrams a system call, in (recvmmsg, UDP_GRO) and out
//! (UDP_SEGMENT by gather iovec), with the local address and interface of every one.
//!
//! Nothing here blocks, allocates on the data path, or ends because of one datagram.

mod address;
mod errors;
mod moderation;
mod options;
mod payloads;
mod receive;
mod send;
mod socket;
#[cfg(test)]
mod tests;

pub use errors::{ErrorOrigin, PathError, PathErrorKind};
pub use moderation::Moderation;
pub use payloads::Payloads;
pub use receive::{Arrival, Datagram, ReceiveBuffers, SLOTS};
pub use send::{
    CHANNEL_HEADER_LEN, Coalescer, Destination, MAX_GSO_BYTES, MAX_SEGMENTS, SendFailure,
    SendFailureKind, SendFailures, Source,
};
pub use socket::{Counters, Family, UdpError, UdpOptions, UdpSocket};

/// What other sockets that carry UDP are made of: the shared port's raw ones.
pub mod raw {
    pub use super::address::RawAddress;
    pub use super::errors::{ErrorRead, read_error};
    pub use super::options::set;
    pub use super::receive::Slot;
    pub use super::send::Control;
}
