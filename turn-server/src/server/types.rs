//! What goes in and out of the server. Addresses are typed by whom they belong to.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::codec::TransactionId;

/// What a client's messages come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A plain stream.
    Tcp,
    /// A stream in TLS.
    Tls,
}

/// A client's 5-tuple (RFC 8656 §2), and the socket or connection of the shell that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientAddr {
    /// What it speaks.
    pub transport: Transport,
    /// Where it is.
    pub remote: SocketAddr,
    /// Which address of ours it speaks to.
    pub local: SocketAddr,
    /// The shell's: listener (UDP) or connection (TCP, TLS).
    pub link: u32,
}

/// A peer as clients name it: for a relayed address of our own, the one that clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddr(pub SocketAddr);

/// A relayed transport address as clients and peers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayAddr(pub SocketAddr);

/// A relay socket of the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId(pub u32);

/// What a relay socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayKind {
    /// Datagrams.
    Udp,
    /// Listens for peers (RFC 6062).
    Tcp,
}

/// CONNECTION-ID (RFC 6062 §6.2.1), the name of a peer's connection; its first eight bits are the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u32);

/// Both clocks, read once for each batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For everything that lasts.
    pub instant: Instant,
    /// Seconds since 1970: for what other machines made (credentials, nonces of a fleet).
    pub unix: u64,
}

/// What the shell is to do, in order.
#[derive(Debug)]
pub enum Command {
    /// A STUN message to a client.
    Send {
        /// To whom.
        client: ClientAddr,
        /// One whole message; its length is a multiple of four.
        message: Vec<u8>,
    },
    /// Bind a UDP socket, or listen on TCP, and say so by [`super::Server::handle_relay_opened`].
    OpenRelay {
        /// Its name from now on.
        relay: RelayId,
        /// Which of both.
        kind: RelayKind,
        /// What to bind; the port is never 0.
        local: SocketAddr,
        /// Whether the next port is bound as well, and kept [`super::RESERVATION_LIFETIME`] long for the thread that opens it: both
        /// or none (RFC 8656 §7.2).
        keeps_next: bool,
    },
    /// Let go of a port that was bound to be kept: nobody will come for it.
    ReleasePort {
        /// Which.
        local: SocketAddr,
    },
    /// Close a relay socket. Its name may be given again.
    CloseRelay {
        /// Which.
        relay: RelayId,
    },
    /// Connect from the address of a relay socket and say so by [`super::Server::handle_peer_connected`].
    ConnectPeer {
        /// Its name from now on.
        connection: ConnectionId,
        /// The relay socket.
        relay: RelayId,
        /// To whom.
        to: SocketAddr,
    },
    /// From the next byte on this connection of a client and the peer's are one.
    Join {
        /// The peer's.
        connection: ConnectionId,
        /// The client's.
        client: ClientAddr,
    },
    /// Close a peer's connection, and the client's that it is joined with, once what waits has left.
    ClosePeer {
        /// Which.
        connection: ConnectionId,
    },
    /// Give this to another thread's server, by [`super::Server::handle_handover`], with the relay sockets that it names, which
    /// have no name here any more; or say that it could not be by [`super::Server::handle_undelivered`].
    HandOver {
        /// The thread.
        shard: u8,
        /// What.
        handover: Box<super::Handover>,
    },
}

/// Why a relay socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Another program has the port: another one is tried.
    PortInUse,
    /// No more file descriptors, no such address: it would fail again.
    Unable,
}

/// Where one payload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// To a peer, by a relay socket.
    Peer {
        /// The socket.
        relay: RelayId,
        /// Where; in our own network terms (a relay address of ours is the one that is bound).
        to: SocketAddr,
        /// The datagram may not be fragmented (RFC 8656 §14).
        dont_fragment: bool,
    },
    /// To a client.
    Client(ToClient),
}

/// How one payload goes to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToClient {
    /// Whose allocation it is.
    pub client: ClientAddr,
    /// What goes in front.
    pub framing: Framing,
}

/// What stands in front of a payload towards a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A ChannelData header with this number.
    Channel(u16),
    /// A Data indication: see [`super::data_indication`].
    Indication {
        /// Its transaction id.
        id: TransactionId,
        /// Who sent the payload.
        peer: PeerAddr,
    },
}

/// An ICMP error that a relay socket was told of (RFC 8656 §11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The next-hop MTU where the error has one, else 0.
    pub data: u32,
}

/// The addresses of a family that are the same to quotas and limits: an IPv4 address, an IPv6 /64 (what one host has).
pub(crate) fn source_of(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            const PREFIX_64: u128 = !0 << 64;
            IpAddr::V6((ip.to_bits() & PREFIX_64).into())
        }
    }
}
