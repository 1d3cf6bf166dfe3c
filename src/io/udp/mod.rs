//! UDP sockets for the packet loop: many datagrams a system call, in (recvmmsg, UDP_GRO) and out
//! (UDP_SEGMENT by gather iovec), with the local address and interface of every one.
//!
//! Nothing here blocks, allocates on the data path, or ends because of one datagram.

mod address;
mod errors;
mod options;
mod receive;
mod send;
mod socket;
#[cfg(test)]
mod tests;

pub(in crate::io) use address::RawAddress;
pub use errors::{ErrorOrigin, PathError, PathErrorKind};
pub(in crate::io) use errors::{ErrorRead, read_error};
pub(in crate::io) use options::{set, set_addresses_and_errors, size_receive_buffer};
pub use receive::{Arrival, Datagram, ReceiveBuffers, SLOTS};
pub use send::{
    CHANNEL_HEADER_LEN, Coalescer, Destination, MAX_GSO_BYTES, MAX_SEGMENTS, SendFailure,
    SendFailureKind, SendFailures, Source,
};
pub(in crate::io) use send::{Control, iovec};
pub use socket::{Counters, Family, UdpError, UdpSocket};
