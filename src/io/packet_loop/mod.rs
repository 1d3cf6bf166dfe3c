//! The packet loop: one thread that owns the sockets, the core and the data plane: in managed mode the
//! in-process WireGuard with its TUN device, in attached mode the slots. Everything else talks to it
//! through its [`Inbox`] and hears of it by [`Notice`]s.

mod attached;
mod commands;
mod inbox;
mod links;
mod managed;
mod notes;
mod oversize;
mod run;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::epoll;
use tokio::sync::mpsc;
use wice_signaling::protocol::{IpPrefix, Presence, PublicKey, RevocationList};

use crate::core::node::{HostAddress, Node, RelayServer, StunServer, WireGuardPacket};
use crate::core::overlay::Overlay;
use crate::io::relay::{Endpoint, RelayEvent};
use crate::io::shared_port::SharedPort;
use crate::io::slots::SlotSocket;
use crate::io::udp::UdpSocket;
use crate::wireguard::inprocess::Tunnels;
use crate::wireguard::tun::Tun;
use attached::Attached;
use inbox::Outlet;
use links::Links;
use managed::Managed;
use notes::Notes;

pub use attached::AttachedView;
pub use inbox::{Inbox, InboxError};
pub use oversize::Oversize;

/// Relay events on their way from the runtime: at most 64 KiB each.
const RELAY_EVENTS: usize = 64;

const TOKEN_INBOX: u64 = 0;
const TOKEN_TUN: u64 = 1;
const TOKEN_V4: u64 = 2;
const TOKEN_V6: u64 = 3;
const TOKEN_SLOTS: u64 = 4;
const TOKEN_WIREGUARD_V4: u64 = 5;
const TOKEN_WIREGUARD_V6: u64 = 6;
/// Relay connections count from here.
const TOKEN_RELAYS: u64 = 16;

/// How a relay over TCP or TLS is connected to; `None` where that is not possible.
pub type Endpoints = Box<dyn Fn(&RelayServer) -> Option<Endpoint> + Send>;

/// What the rest of the daemon asks of the loop.
pub enum Command {
    /// The addresses of this node's interfaces as they are now.
    Addresses {
        /// The preferred first.
        addresses: Vec<HostAddress>,
        /// Whether what STUN servers said may be out of date.
        changed: bool,
    },
    /// Addresses that are nobody's candidates, all that there are; ours count from the next `Addresses`.
    Excluded(Vec<IpPrefix>),
    /// STUN servers, best first.
    StunServers(Vec<StunServer>),
    /// Ports on routers that lead to our host addresses, all that there are.
    PortMappings(BTreeMap<SocketAddr, SocketAddr>),
    /// TURN servers with credentials that hold.
    RelayServers(Vec<RelayServer>),
    /// A peer's signed advert.
    Advert(Vec<u8>),
    /// A peer's signed routes.
    Routes(Vec<u8>),
    /// A node has come to signaling, or gone from it.
    Presence(PublicKey, Presence),
    /// Signaling is out of reach.
    SignalingLost,
    /// A verified list of revocations.
    Revocations(RevocationList),
    /// Attached mode: this key is on the interface, so it may be a peer. Twice is no harm.
    AddPeer(PublicKey),
    /// Attached mode: it no longer is.
    RemovePeer(PublicKey),
    /// Attached mode: the port that WireGuard has bound; `None` while it has none, and at the start.
    /// Nothing is forwarded without it: only what has that port at 127.0.0.1 may send through a slot.
    /// With it what shares that port, at most one a family.
    WireGuardPort(Option<u16>, Vec<SharedPort>),
    /// Attached mode: what WireGuard has counted of a peer since the last look.
    Counted {
        /// The peer.
        key: PublicKey,
        /// Where its packets go.
        endpoint: SocketAddr,
        /// What it was sent, if anything.
        sent: Option<WireGuardPacket>,
        /// What has come from it, if anything.
        received: Option<WireGuardPacket>,
    },
    /// A relay connection of the runtime's has something to tell.
    Relay(u64, RelayEvent),
    /// Looks at the state; for diagnosis.
    Inspect(Box<dyn FnOnce(&View<'_>) + Send>),
    /// End.
    Stop,
}

/// What an inspection sees.
pub struct View<'a> {
    /// The core.
    pub node: &'a Node,
    /// What carries the data.
    pub plane: PlaneView<'a>,
    /// What was too large for its path.
    pub oversize: &'a Oversize,
    /// When.
    pub now: Instant,
}

/// What carries the data, for an inspection.
pub enum PlaneView<'a> {
    /// In-process WireGuard.
    Managed {
        /// WireGuard.
        tunnels: &'a Tunnels,
        /// Inner addresses.
        overlay: &'a Overlay,
    },
    /// Slots.
    Attached(AttachedView<'a>),
}

/// What the loop tells the rest of the daemon.
#[derive(Debug)]
pub enum Notice {
    /// Our advert is to be published.
    Publish {
        /// The signed record.
        advert: Vec<u8>,
        /// Its sequence.
        sequence: u64,
    },
    /// A peer's advert was taken: worth keeping.
    Accepted(Vec<u8>),
    /// A peer's routes were taken: worth keeping.
    AcceptedRoutes(Vec<u8>),
    /// A peer owns these inner prefixes now; none: it is gone.
    Owned {
        /// The peer.
        key: PublicKey,
        /// Beyond the overlay's own ranges.
        prefixes: Vec<wice_signaling::protocol::IpPrefix>,
    },
    /// A peer's path has changed.
    Path(Box<crate::core::node::PeerSnapshot>),
    /// The TUN device is gone; the loop has ended.
    DeviceLost(io::Error),
    /// Attached mode: nobody listens at WireGuard's port any more, so nothing is forwarded until
    /// [`Command::WireGuardPort`] comes again, the same port or another.
    PortClosed(u16),
}

/// What the loop starts with.
pub struct Parts {
    /// The core.
    pub node: Node,
    /// What carries the data.
    pub plane: PlaneParts,
    /// The shared socket for IPv4.
    pub v4: Option<UdpSocket>,
    /// The shared socket for IPv6.
    pub v6: Option<UdpSocket>,
    /// Where to connect for a relay over TCP or TLS.
    pub endpoint: Endpoints,
    /// Who is told.
    pub notices: mpsc::Sender<Notice>,
    /// The runtime that serves relay connections over TCP and TLS.
    pub runtime: tokio::runtime::Handle,
}

/// What carries the data.
pub enum PlaneParts {
    /// In-process WireGuard.
    Managed {
        /// Inner addresses.
        overlay: Overlay,
        /// WireGuard.
        tunnels: Box<Tunnels>,
        /// Its device.
        tun: Tun,
    },
    /// Another program's WireGuard, by slots.
    Attached {
        /// Where it finds its peers.
        slots: SlotSocket,
    },
}

/// What carries the data.
enum Plane {
    Managed(Box<Managed>),
    Attached(Box<Attached>),
}

/// The loop's state.
struct PacketLoop {
    node: Node,
    plane: Plane,
    links: Links,
    notes: Notes,
    endpoint: Endpoints,
    notices: mpsc::Sender<Notice>,
    runtime: tokio::runtime::Handle,
    relay_events: mpsc::Sender<(u64, RelayEvent)>,
    epoll: rustix::fd::OwnedFd,
    outlet: Outlet,
    notices_dropped: u64,
    stopped: bool,
}

/// Starts the loop on a thread of its own.
pub fn spawn(parts: Parts) -> io::Result<(Inbox, std::thread::JoinHandle<()>)> {
    let (inbox, outlet) = Inbox::new()?;
    let (relay_events, mut events) = mpsc::channel(RELAY_EVENTS);
    let forward = inbox.clone();
    parts.runtime.spawn(async move {
        while let Some((id, event)) = events.recv().await {
            if forward.send(Command::Relay(id, event)) == Err(InboxError::Ended) {
                return;
            }
        }
    });
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let plane = match parts.plane {
        PlaneParts::Managed {
            overlay,
            tunnels,
            tun,
        } => Plane::Managed(Box::new(Managed::new(overlay, *tunnels, tun))),
        PlaneParts::Attached { slots } => {
            let own = parts.node.public_key();
            Plane::Attached(Box::new(Attached::new(slots, own)))
        }
    };
    let packet_loop = PacketLoop {
        node: parts.node,
        plane,
        links: Links::new(parts.v4, parts.v6),
        notes: Notes::default(),
        endpoint: parts.endpoint,
        notices: parts.notices,
        runtime: parts.runtime,
        relay_events,
        epoll,
        outlet,
        notices_dropped: 0,
        stopped: false,
    };
    packet_loop.watch(packet_loop.outlet.waker(), TOKEN_INBOX)?;
    match &packet_loop.plane {
        Plane::Managed(managed) => packet_loop.watch(managed.tun.as_fd(), TOKEN_TUN)?,
        Plane::Attached(attached) => packet_loop.watch(attached.socket.as_fd(), TOKEN_SLOTS)?,
    }
    for (socket, token) in [
        (&packet_loop.links.v4, TOKEN_V4),
        (&packet_loop.links.v6, TOKEN_V6),
    ] {
        if let Some(socket) = socket {
            packet_loop.watch(socket.as_fd(), token)?;
        }
    }
    let thread = std::thread::Builder::new()
        .name("wice-packets".to_owned())
        .spawn(move || packet_loop.run())?;
    Ok((inbox, thread))
}
