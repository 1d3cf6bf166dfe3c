//! A host: its interfaces, its node with all that a daemon keeps around it, and what a daemon would
//! never let it do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wice::core::binding::Heard;
use wice::core::node::{
    Admission, HostAddress, HostSocket, Node, NodeConfig, PeerId, PeerSnapshot, RelayId,
    RelayServer, SharedPorts, StunServer, WireGuardPacket,
};
use wice::core::stun::{Binding, BindingClass, is_stun};
use wice::core::timing::TA_NODE;
use wice_signaling::protocol::{PrivateKey, PublicKey, Session};

use crate::network::{HostId, RealmId};
use crate::turn_server::Client;
use crate::wireguard::Tunnel;

/// Every node's port: three behind one NAT collide.
pub(crate) const PORT: u16 = 51_821;
/// WireGuard's own, of hosts that share it.
const WIREGUARD_PORT: u16 = 51_820;

/// Which port is behind a socket.
pub(crate) fn port_of(socket: HostSocket) -> u16 {
    match socket {
        HostSocket::Own => PORT,
        HostSocket::WireGuard => WIREGUARD_PORT,
    }
}

/// More calls of `handle_timeout` than this in one millisecond are a busy loop.
const MAX_WAKES: u32 = 50;

pub(crate) struct Interface {
    pub(crate) realm: RealmId,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) index: u32,
}

/// What WireGuard has counted of a peer at its own port since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) sent: Option<WireGuardPacket>,
    pub(crate) received: Option<WireGuardPacket>,
    pub(crate) heard: Heard,
}

/// Several packets are told from none, and not from each other.
pub(crate) fn count(counter: &mut Option<WireGuardPacket>, packet: WireGuardPacket) {
    *counter = Some(counter.map_or(packet, |_| WireGuardPacket::Data));
}

/// The connection to a TURN server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) realm: RealmId,
}

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) key: PrivateKey,
    pub(crate) public: PublicKey,
    pub(crate) session: Session,
    pub(crate) sequence: u64,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) node: Option<Node>,
    /// WireGuard's port is shared with the node.
    pub(crate) shares: bool,
    /// What passes there, which the node hears of at looks.
    pub(crate) counters: BTreeMap<HostId, Counters>,
    pub(crate) looked: Option<Instant>,
    /// The last advert of each peer, as the state folder has it.
    pub(crate) stored: BTreeMap<HostId, Vec<u8>>,
    pub(crate) peers: BTreeMap<PeerId, HostId>,
    numbers: BTreeMap<HostId, PeerId>,
    pub(crate) tunnels: BTreeMap<HostId, Tunnel>,
    pub(crate) relays: BTreeMap<RelayId, Connection>,
    pub(crate) next_port: u16,
    pub(crate) traffic: Option<Duration>,
    pub(crate) wake: Option<Instant>,
    /// Where it may send checks: servers, advertised addresses, sources of authentic checks.
    pub(crate) known: BTreeSet<SocketAddr>,
    pub(crate) paths_changed: BTreeMap<HostId, Vec<Instant>>,
    /// The most looks at agents in one call.
    pub(crate) most_touched: u64,
    last_request: Option<Instant>,
    pub(crate) requests: u64,
    /// Calls of `handle_timeout`, by what they were for.
    pub(crate) timeouts: BTreeMap<&'static str, u64>,
    wakes: (Instant, u32),
}

impl Host {
    pub(crate) fn new(id: HostId, secret: [u8; 32], session: [u8; 16], now: Instant) -> Self {
        let key = PrivateKey::from_bytes(secret);
        Self {
            id,
            public: key.public_key(),
            key,
            session: Session(session),
            sequence: 0,
            interfaces: Vec::new(),
            node: None,
            shares: false,
            counters: BTreeMap::new(),
            looked: None,
            stored: BTreeMap::new(),
            peers: BTreeMap::new(),
            numbers: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            relays: BTreeMap::new(),
            next_port: 40_000,
            traffic: None,
            wake: None,
            known: BTreeSet::new(),
            paths_changed: BTreeMap::new(),
            last_request: None,
            most_touched: 0,
            requests: 0,
            timeouts: BTreeMap::new(),
            wakes: (now, 0),
        }
    }

    /// Makes the node as a daemon does at its start.
    pub(crate) fn boot(
        &mut self,
        others: &[(HostId, PublicKey)],
        servers: &(Vec<StunServer>, Vec<RelayServer>),
        seed: [u8; 32],
        now: Instant,
    ) {
        let config = NodeConfig {
            key: self.key.clone(),
            session: self.session,
            sequence: self.sequence,
            name: format!("host-{}", self.id),
            admission: Admission::Added,
            membership: Vec::new(),
            seed,
        };
        let mut node = Node::new(config, now);
        self.known
            .extend(servers.0.iter().map(|server| server.address));
        self.peers.clear();
        self.numbers.clear();
        self.tunnels.clear();
        for (host, key) in others {
            let peer = node.add_peer(*key, now).unwrap();
            self.peers.insert(peer, *host);
            self.numbers.insert(*host, peer);
            let mut tunnel =
                Tunnel::starting_from(u32::from_be_bytes([seed[0], seed[1], seed[2], 0]));
            tunnel.set_traffic(self.traffic, now);
            self.tunnels.insert(*host, tunnel);
        }
        for record in self.stored.values() {
            node.handle_advert(record, now).unwrap();
        }
        if self.shares {
            let port = Some(WIREGUARD_PORT);
            node.handle_shared_ports(SharedPorts { v4: port, v6: port }, now);
        }
        node.handle_addresses(&self.addresses(), now);
        node.handle_stun_servers(&servers.0, now);
        node.handle_relay_servers(&servers.1, now);
        self.node = Some(node);
    }

    pub(crate) fn addresses(&self) -> Vec<HostAddress> {
        let of = |interface: &Interface| {
            let index = interface.index;
            interface
                .addresses
                .iter()
                .map(move |ip| HostAddress {
                    address: SocketAddr::new(*ip, PORT),
                    interface: index,
                })
                .collect::<Vec<_>>()
        };
        self.interfaces.iter().flat_map(of).collect()
    }

    pub(crate) fn socket_at(&self, port: u16) -> Option<HostSocket> {
        match port {
            PORT => Some(HostSocket::Own),
            WIREGUARD_PORT if self.shares => Some(HostSocket::WireGuard),
            _ => None,
        }
    }

    pub(crate) fn owns(&self, ip: IpAddr) -> bool {
        self.interfaces.iter().any(|i| i.addresses.contains(&ip))
    }

    pub(crate) fn realm_of(&self, index: u32) -> Option<RealmId> {
        let interface = self.interfaces.iter().find(|i| i.index == index)?;
        Some(interface.realm)
    }

    /// The realm and address from which connections to a server leave.
    pub(crate) fn way_to(&self, server: IpAddr) -> Option<(RealmId, IpAddr)> {
        self.interfaces.iter().find_map(|interface| {
            let of_family = |ip: &&IpAddr| ip.is_ipv4() == server.is_ipv4();
            let ip = interface.addresses.iter().find(of_family)?;
            Some((interface.realm, *ip))
        })
    }

    pub(crate) fn peer_id(&self, host: HostId) -> Option<PeerId> {
        self.numbers.get(&host).copied()
    }

    pub(crate) fn view(&self, of: HostId, now: Instant) -> Option<PeerSnapshot> {
        self.node.as_ref()?.peer_snapshot(self.peer_id(of)?, now)
    }

    /// When the host has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        let node = self.node.as_ref()?;
        let tunnels = self.tunnels.values().filter_map(Tunnel::poll_timeout);
        let node = node.poll_timeout().map(|(at, _)| at);
        tunnels.chain(node).min()
    }

    /// Panics when the host is woken again and again without time passing.
    pub(crate) fn count_wake(&mut self, now: Instant) {
        if now < self.wakes.0 + Duration::from_millis(1) {
            self.wakes.1 += 1;
            let why = self.node.as_ref().and_then(Node::poll_timeout);
            assert!(
                self.wakes.1 <= MAX_WAKES,
                "busy loop of host {}: {why:?}",
                self.id
            );
        } else {
            self.wakes = (now, 0);
        }
    }

    /// Judges what the node sends: pacing of transactions, and where they go.
    pub(crate) fn audit(&mut self, to: Option<SocketAddr>, payload: &[u8], now: Instant) {
        if !is_stun(payload) {
            return;
        }
        let Some(binding) = Binding::parse(payload) else {
            panic!("host {} sends malformed STUN", self.id);
        };
        assert!(
            to.is_none_or(|to| self.known.contains(&to)),
            "host {} sends to {to:?}, of which it was told by nobody",
            self.id
        );
        if binding.class() == BindingClass::Request {
            self.requests += 1;
            let gap = self.last_request.map(|at| now - at);
            assert!(
                gap.is_none_or(|gap| gap >= TA_NODE),
                "host {} sends two requests within {gap:?}",
                self.id
            );
            self.last_request = Some(now);
        }
    }

    /// A check of a node that knows our credentials has come from `from`.
    pub(crate) fn learn(&mut self, from: SocketAddr, payload: &[u8]) {
        if !is_stun(payload) {
            return;
        }
        let Some(binding) = Binding::parse(payload) else {
            return;
        };
        let own = wice::core::credentials::End {
            key: self.public,
            session: self.session,
        };
        let to_us = binding
            .username()
            .is_some_and(|(receiver, _)| receiver == own.ufrag());
        if binding.class() == BindingClass::Request && to_us {
            self.known.insert(from);
        }
    }
}
