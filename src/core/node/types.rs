//! What goes into a node and what comes out of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wice_signaling::protocol::{PublicKey, RelayTransport, Session};

use crate::core::ice::PairKey;
use crate::core::slots::INITIATION_LEN;

/// A peer, numbered by the node; a number is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// A connection to a TURN server with its allocation; a number is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub u32);

/// Which socket a host address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostSocket {
    /// The node's own, through which it carries data itself.
    Own,
    /// The port that another program's WireGuard has bound, shared for STUN: data on a path from here is
    /// sent and received by WireGuard, and the node does not see it.
    WireGuard,
}

/// An address of one of this node's interfaces, with the socket behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The interface's address and the port of the node's socket of that family.
    pub address: SocketAddr,
    /// The interface's index, by which datagrams leave.
    pub interface: u32,
}

/// A STUN server, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StunServer {
    /// As configured, for people.
    pub name: String,
    /// Where it answers.
    pub address: SocketAddr,
}

/// A TURN server over one transport, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayServer {
    /// Its host, as configured: servers of one name are one relay reached in several ways.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is reached.
    pub transport: RelayTransport,
    /// Long-term username.
    pub username: String,
    /// Long-term password.
    pub password: String,
}

impl RelayServer {
    /// Whether the credentials look like those that a signaling service makes of a secret that it shares with
    /// the server: a UNIX time before a colon (draft-uberti-behave-turn-rest-00 §2.2).
    pub fn is_minted(&self) -> bool {
        let time = self.username.split_once(':').map(|(time, _)| time);
        time.is_some_and(|time| !time.is_empty() && time.bytes().all(|c| c.is_ascii_digit()))
    }
}

/// How a node starts.
#[derive(Debug)]
pub struct NodeConfig {
    /// The WireGuard private key: it signs adverts and derives credentials.
    pub key: wice_signaling::protocol::PrivateKey,
    /// The session kept in the state folder, or a new one.
    pub session: Session,
    /// The first sequence to publish with.
    pub sequence: u64,
    /// The node's name for people.
    pub name: String,
    /// Who may be a peer.
    pub admission: Admission,
    /// In managed mode, our own encoded membership.
    pub membership: Vec<u8>,
    /// 32 bytes of cryptographic quality.
    pub seed: [u8; 32],
}

/// Who may be a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Managed: whoever proves to be a member of this network.
    Members(wice_signaling::protocol::NetworkId),
    /// Attached: the peers that were added, as the WireGuard interface has them.
    Added,
    /// Attached, in this network: the same, and whoever claims to be a member must be one of it. Who claims
    /// nothing was carried there: the interface's owner trusts its key already.
    AddedIn(wice_signaling::protocol::NetworkId),
}

/// Something to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// How it leaves.
    pub via: Via,
    /// A STUN message, or a message of TURN.
    pub payload: Vec<u8>,
}

/// How a message leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// From a socket of the address's family.
    Host {
        /// Which.
        socket: HostSocket,
        /// Source address.
        local: IpAddr,
        /// Interface by which it leaves.
        interface: u32,
        /// Destination.
        remote: SocketAddr,
    },
    /// Over the connection to a TURN server.
    Relay {
        /// Which connection.
        relay: RelayId,
        /// Whether it may be dropped when the connection is congested.
        droppable: bool,
    },
}

/// How data to a peer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// From a socket of the address's family. Data from WireGuard's port is WireGuard's to send, but for
    /// what it still sends elsewhere.
    Host {
        /// Which.
        socket: HostSocket,
        /// Source address.
        local: IpAddr,
        /// Interface by which it leaves.
        interface: u32,
        /// Destination: the peer, or the peer's relayed address.
        remote: SocketAddr,
    },
    /// As ChannelData over the connection to our TURN server.
    Relayed {
        /// Which connection.
        relay: RelayId,
        /// The channel's number, 0x4000 to 0x4FFF.
        channel: u16,
    },
}

/// Where a datagram came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// At a socket of the address's family.
    Host {
        /// Which.
        socket: HostSocket,
        /// The address that it was sent to.
        local: IpAddr,
        /// The interface that it came in by.
        interface: u32,
        /// Its source.
        from: SocketAddr,
    },
    /// Through an allocation.
    Relay {
        /// Which.
        relay: RelayId,
        /// The peer, as the server saw it.
        from: SocketAddr,
    },
}

/// What a datagram turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// STUN: the node has dealt with it.
    Consumed,
    /// Not STUN: WireGuard may look at it.
    Data,
}

/// What kind of WireGuard packet went or came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireGuardPacket {
    /// Type 1.
    HandshakeInitiation,
    /// Type 2.
    HandshakeResponse,
    /// Type 4 without payload.
    Keepalive,
    /// Type 4 with payload.
    Data,
}

/// What a node tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Open a connection to this TURN server, from a fresh port.
    OpenRelay {
        /// Its number from now on.
        relay: RelayId,
        /// Where and how.
        server: RelayServer,
    },
    /// The connection is no longer needed.
    CloseRelay(RelayId),
    /// Publish this signed advert and remember its sequence.
    Publish {
        /// The encoded record.
        advert: Vec<u8>,
        /// Its sequence.
        sequence: u64,
    },
    /// There is a peer.
    PeerAdded {
        /// Its number.
        peer: PeerId,
        /// Its name.
        key: PublicKey,
    },
    /// The peer is gone: revoked or removed.
    PeerRemoved {
        /// Its number.
        peer: PeerId,
        /// Its name.
        key: PublicKey,
    },
    /// Data to this peer travels by these routes from now on: none, one, or two during a switch
    /// (the first is the new one).
    Bind {
        /// The peer.
        peer: PeerId,
        /// At most two.
        routes: Vec<Route>,
        /// The first path after none: start a WireGuard handshake now.
        handshake: bool,
    },
    /// The path has changed; for logs and for those who watch.
    PathChanged {
        /// The peer.
        peer: PeerId,
        /// When.
        at: Instant,
    },
    /// The peer's wice has brought an initiation of its WireGuard's, which is ours to hand on or to drop.
    Initiation {
        /// The peer.
        peer: PeerId,
        /// How it came: the answer goes back there.
        arrival: Arrival,
        /// The message.
        initiation: Box<[u8; INITIATION_LEN]>,
    },
}

/// A path of a peer: an agent's generation and a pair of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathRef {
    /// Which of the peer's agents.
    pub generation: u32,
    /// Which pair.
    pub key: PairKey,
}
