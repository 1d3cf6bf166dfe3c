//! The packet loop: one thread that owns the sockets, the core, in managed mode the overlay, and the data
//! plane: the in-process WireGuard with its TUN device, or the slots of a WireGuard interface, wice's own or
//! another program's. Everything else talks to it through its [`Inbox`] and hears of it by [`Notice`]s.

mod by_slots;
mod commands;
mod in_process;
mod inbox;
mod inward;
mod links;
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
use crate::core::overlay::{Overlay, Owned};
use crate::core::slots::INITIATION_LEN;
use crate::io::dial::Fwmark;
use crate::io::relay::{Endpoint, RelayEvent};
use crate::io::shared_port::SharedPort;
use crate::io::slots::SlotSocket;
use crate::io::udp::UdpSocket;
use crate::wireguard::inprocess::Tunnels;
use crate::wireguard::tun::Tun;
use by_slots::BySlots;
use in_process::InProcess;
use inbox::Outlet;
use links::Links;
use notes::Notes;

pub use by_slots::SlotsView;
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
    /// With slots: the port that WireGuard has bound; `None` while it has none, and at the start.
    /// Nothing is forwarded without it: only what has that port at 127.0.0.1 may send through a slot.
    /// With it what shares that port, at most one a family.
    WireGuardPort(Option<u16>, Vec<SharedPort>),
    /// With slots: what WireGuard has counted of a peer since the last look.
    Counted {
        /// The peer.
        key: PublicKey,
        /// Where its packets go.
        endpoint: SocketAddr,
        /// What it was sent, if anything.
        sent: Option<WireGuardPacket>,
        /// What has come from it, if anything.
        received: Option<WireGuardPacket>,
        /// If nothing has, since when that may be.
        quiet_since: Instant,
    },
    /// The mark of all sockets has changed: those that are there take the new one.
    FwmarkChanged,
    /// Routes or firewall of this machine have changed: what leaves from WireGuard's own port may not get out any
    /// more, and WireGuard alone would hear of it.
    LocalChange,
    /// Attached mode: a handshake that WireGuard began at an endpoint which is dead, for the path.
    Initiation(PublicKey, Box<[u8; INITIATION_LEN]>),
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
    /// Inner addresses; none in attached mode.
    pub overlay: Option<&'a Overlay>,
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
    InProcess(&'a Tunnels),
    /// The slots of an interface.
    BySlots(SlotsView<'a>),
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
    /// Managed mode: a peer owns these inner addresses and routes now; `None`: it is gone.
    Owned {
        /// The peer.
        key: PublicKey,
        /// All of it.
        owned: Option<Owned>,
    },
    /// A peer's path has changed.
    Path(Box<crate::core::node::PeerSnapshot>),
    /// The TUN device is gone; the loop has ended.
    DeviceLost(io::Error),
    /// With slots: nobody listens at WireGuard's port any more, so nothing is forwarded until
    /// [`Command::WireGuardPort`] comes again, the same port or another.
    PortClosed(u16),
}

/// What the loop starts with.
pub struct Parts {
    /// The core.
    pub node: Node,
    /// Inner addresses, in managed mode: without it no peer owns any here.
    pub overlay: Option<Overlay>,
    /// What carries the data.
    pub plane: PlaneParts,
    /// The shared socket for IPv4.
    pub v4: Option<UdpSocket>,
    /// The shared socket for IPv6.
    pub v6: Option<UdpSocket>,
    /// Where to connect for a relay over TCP or TLS.
    pub endpoint: Endpoints,
    /// What every socket is marked with.
    pub fwmark: Fwmark,
    /// Who is told.
    pub notices: mpsc::Sender<Notice>,
    /// The runtime that serves relay connections over TCP and TLS.
    pub runtime: tokio::runtime::Handle,
}

/// What carries the data.
pub enum PlaneParts {
    /// In-process WireGuard.
    InProcess {
        /// WireGuard.
        tunnels: Box<Tunnels>,
        /// Its device.
        tun: Tun,
    },
    /// The WireGuard of an interface, by the slots where it finds its peers.
    BySlots(SlotSocket),
}

/// What carries the data.
enum Plane {
    InProcess(Box<InProcess>),
    BySlots(Box<BySlots>),
}

/// The loop's state.
struct PacketLoop {
    node: Node,
    overlay: Option<Overlay>,
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
        PlaneParts::InProcess { tunnels, tun } => {
            Plane::InProcess(Box::new(InProcess::new(*tunnels, tun)))
        }
        PlaneParts::BySlots(slots) => {
            let own = parts.node.public_key();
            Plane::BySlots(Box::new(BySlots::new(slots, own)))
        }
    };
    let packet_loop = PacketLoop {
        node: parts.node,
        overlay: parts.overlay,
        plane,
        links: Links {
            fwmark: parts.fwmark,
            ..Links::new(parts.v4, parts.v6)
        },
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
    packet_loop.links.mark_new();
    packet_loop.watch(packet_loop.outlet.waker(), TOKEN_INBOX)?;
    match &packet_loop.plane {
        Plane::InProcess(in_process) => packet_loop.watch(in_process.tun.as_fd(), TOKEN_TUN)?,
        Plane::BySlots(by_slots) => packet_loop.watch(by_slots.socket.as_fd(), TOKEN_SLOTS)?,
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
