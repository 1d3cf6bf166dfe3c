//! What the service is told, and its bounds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{Networks, TurnSecrets};
use crate::protocol::{NetworkId, RevocationList, ServerAddress};

/// How the service runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens: TCP for nodes and, unless `stun` is off, UDP for STUN on the same port.
    pub listen: SocketAddr,
    /// Holds its certificate, key, secret and the networks' revocations; made with mode 0700.
    pub state_dir: PathBuf,
    /// How nodes reach it.
    pub transport: Transport,
    /// The networks served.
    pub networks: Networks,
    /// Revocations known beside those of the state folder; of one network the newest counts.
    pub revocations: Vec<(NetworkId, RevocationList)>,
    /// STUN and TURN servers that nodes are told of, at most [`crate::protocol::MAX_SERVERS`].
    pub servers: Vec<ServerAddress>,
    /// The secrets shared with the TURN servers.
    pub turn_secrets: TurnSecrets,
    /// Whether it answers STUN itself, and tells nodes so.
    pub stun: bool,
    /// Whether `/metrics` is answered to more than loopback addresses.
    pub metrics_public: bool,
    /// Bounds.
    pub limits: Limits,
}

/// How nodes reach the service.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TLS under a certificate made at the first start and pinned by the token.
    SelfSigned,
    /// TLS under this certificate chain and key, in PEM.
    Certificate {
        /// Chain, leaf first.
        certificate: PathBuf,
        /// Private key.
        key: PathBuf,
    },
    /// No TLS: behind a proxy that has it. All nodes then seem to come from the proxy, so
    /// connections are not counted by source.
    Plain,
}

/// Bounds: each protects memory, file descriptors or CPU from nodes that have proved nothing, or
/// from one network at the cost of others.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in total: each costs a file descriptor and less than 55 KiB with TLS
    /// (measured with the client in the same process).
    pub connections: usize,
    /// Connections from one address (IPv6: one /64, what one subscriber has). A NAT may hide a lab.
    pub connections_per_source: usize,
    /// Connections that one such source may open at once: all that it may have, twice …
    pub connects_burst: u32,
    /// … and one more every so long: each costs a TLS handshake, a millisecond or two of CPU.
    pub connects_interval: Duration,
    /// From accept to a valid Hello: four round trips of TCP, TLS, HTTP and WebSocket fit over any
    /// link that works.
    pub handshake_timeout: Duration,
    /// Networks kept in memory.
    pub networks: usize,
    /// Nodes kept of one network: the mesh that wice is made for has a few hundred.
    pub nodes_per_network: usize,
    /// Bytes of sealed records kept in total.
    pub record_bytes: usize,
    /// Records that a connection may publish at once; a node has two.
    pub publish_burst: u32,
    /// One more every so long: publishing is debounced and backs off at the node.
    pub publish_interval: Duration,
    /// Nodes of which one member may carry records: more than the nodes of a cluster beside Kilo …
    pub carried_keys: usize,
    /// … and the bytes of these records together: 700 B are a node's longest advert without membership, sealed.
    pub carried_bytes: usize,
    /// Frames queued for one connection before it counts as too slow and is closed. Twice the
    /// records of a network of 512.
    pub queue: usize,
    /// A frame not taken in this time closes the connection.
    pub write_timeout: Duration,
    /// The service pings this often: below the 30 s after which the strictest NATs and proxies
    /// forget a connection.
    pub ping_interval: Duration,
    /// Nothing heard for so long closes the connection: two pings unanswered.
    pub idle_timeout: Duration,
    /// The others hear that a node's connection was lost after this: who comes back by then was
    /// never away. A restarted daemon is back in a second, a lost connection is tried again within
    /// two (the nodes' back-off). Who says that it goes is told of at once.
    pub presence_grace: Duration,
    /// Life of TURN credentials; refreshed at half of it.
    pub credential_lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_source: 128,
            connects_burst: 256,
            connects_interval: Duration::from_millis(100),
            handshake_timeout: Duration::from_secs(10),
            networks: 1024,
            nodes_per_network: 2048,
            record_bytes: 64 << 20,
            publish_burst: 16,
            publish_interval: Duration::from_secs(1),
            carried_keys: 1024,
            carried_bytes: 700 << 10,
            queue: 1024,
            write_timeout: Duration::from_secs(20),
            ping_interval: Duration::from_secs(25),
            idle_timeout: Duration::from_secs(60),
            presence_grace: Duration::from_secs(5),
            credential_lifetime: Duration::from_secs(3600),
        }
    }
}

impl Config {
    /// A service under its own certificate that serves any network and knows no TURN server.
    #[must_use]
    pub fn new(listen: SocketAddr, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            state_dir: state_dir.into(),
            transport: Transport::SelfSigned,
            networks: Networks::any(),
            revocations: Vec::new(),
            servers: Vec::new(),
            turn_secrets: TurnSecrets::new(Vec::new()),
            stun: true,
            metrics_public: false,
            limits: Limits::default(),
        }
    }
}
