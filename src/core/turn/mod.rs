//! The TURN client (RFC 8656 over RFC 8489): one [`Allocation`] is one allocation on one server
//! over one connection (a connected UDP socket, a TCP or a TLS stream). No I/O.
//!
//! The I/O layer opens the connection, calls [`Allocation::handle_connected`], feeds what arrives to
//! [`Allocation::handle_datagram`] or [`Allocation::handle_stream`], sends what
//! [`Allocation::poll_transmit`] gives, and calls [`Allocation::handle_timeout`] whenever
//! [`Allocation::poll_timeout`] is due (which may be at once: requests are batched until then).
//!
//! It never opens a second connection and never changes its username: a lost allocation, a redirect
//! or new credentials are a new [`Allocation`] beside this one, and that is its owner's choice.
//! ICMP errors are not its business: on UDP they are hints that anyone can forge, and the
//! retransmissions decide.

mod allocation;
mod auth;
mod channels;
mod event;
mod message;
mod outbox;
mod permissions;
mod requests;
mod responses;
mod stream;
mod transaction;
pub mod url;

#[cfg(test)]
mod tests;

pub use allocation::{Allocation, AllocationState, Counters, SendError};
pub use channels::MAX_CHANNELS;
pub use event::{AllocationEvent, Failure, Refusal};
pub use message::{CHANNEL_DATA_HEADER, channel_data_header};
pub use outbox::Transmit;
pub use permissions::MAX_PERMISSIONS;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use wice_signaling::protocol::RelayTransport;
use zeroize::Zeroizing;

/// The longest username, in bytes: USERNAME holds less than 509 (RFC 8489 §14.3).
pub const MAX_USERNAME: usize = 508;

/// The longest password that is taken, in bytes. No RFC bounds it; coturn's limit is 256.
pub const MAX_PASSWORD: usize = 512;

/// What an [`Allocation`] is to ask for, and as whom.
#[derive(Clone, Debug)]
pub struct AllocationConfig {
    /// What carries it. The relayed side is always UDP (RFC 8656).
    pub transport: RelayTransport,
    /// Long-term credentials (RFC 8489 §9.2), kept for the allocation's life.
    pub credentials: Credentials,
    /// The family of the relayed address that is asked for.
    pub family: Family,
}

/// An address family (RFC 8656 §18.2 REQUESTED-ADDRESS-FAMILY).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address; an IPv4-mapped IPv6 address is IPv4.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A username and its password, static or time-limited (`expiry:name` with an HMAC as the password,
/// draft-uberti-behave-turn-rest-00). The password is never printed and is wiped when dropped.
#[derive(Clone)]
pub struct Credentials {
    username: String,
    password: Zeroizing<String>,
}

/// Credentials that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The username is empty or longer than [`MAX_USERNAME`].
    #[error(
        "the TURN username has {0} bytes; 1 to {MAX_USERNAME} are allowed: check the relay's configuration"
    )]
    Username(usize),
    /// The password is longer than [`MAX_PASSWORD`].
    #[error(
        "the TURN password has {0} bytes; at most {MAX_PASSWORD} are allowed: check the relay's configuration"
    )]
    Password(usize),
}

impl Credentials {
    /// Takes a username and a password as they stand, in UTF-8.
    pub fn new(username: &str, password: &str) -> Result<Self, CredentialsError> {
        if username.is_empty() || username.len() > MAX_USERNAME {
            return Err(CredentialsError::Username(username.len()));
        }
        if password.len() > MAX_PASSWORD {
            return Err(CredentialsError::Password(password.len()));
        }
        Ok(Self {
            username: username.to_owned(),
            password: Zeroizing::new(password.to_owned()),
        })
    }

    /// The username.
    pub fn username(&self) -> &str {
        &self.username
    }

    fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What a peer sent through the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// The peer's transport address, as the server saw it; never IPv4-mapped.
    pub peer: SocketAddr,
    /// The payload of one UDP datagram.
    pub payload: &'a [u8],
}

/// An address without the IPv4-mapped form of IPv6: the only form in which this module keeps one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
