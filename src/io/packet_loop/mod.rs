//! The packet loop: one thread that owns the sockets, the TUN device, the core and the in-process
//! WireGuard. Everything else talks to it through its [`Inbox`] and hears of it by [`Notice`]s.

mod commands;
mod egress;
mod inbox;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use tokio::sync::mpsc;
use wice_signaling::protocol::Presence;

use crate::core::node::{
    Arrival, Event, HostAddress, Inbound, Node, PeerId, RelayId, RelayServer, StunServer, Via,
    WireGuardPacket,
};
use crate::core::overlay::Overlay;
use crate::io::relay::{Endpoint, RelayConnection, RelayEvent};
use crate::io::udp::{Destination, ReceiveBuffers, SLOTS, SendFailures, Source, UdpSocket};
use crate::wireguard::inprocess::{self, MessageKind, TunRead, Tunnels, Verdict};
use crate::wireguard::tun::Tun;
use egress::{RelayLink, Ways};
use inbox::Outlet;

pub use inbox::{Inbox, InboxError};

/// Events of one wake-up; more wait for the next.
const MAX_EVENTS: usize = 64;
/// Receive calls to one socket before the others have their turn.
const MAX_RECEIVES: usize = 4;
/// Waiting never lasts longer, so that a clock that was set does not matter.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Relay events on their way from the runtime: at most 64 KiB each.
const RELAY_EVENTS: usize = 64;

const TOKEN_INBOX: u64 = 0;
const TOKEN_TUN: u64 = 1;
const TOKEN_V4: u64 = 2;
const TOKEN_V6: u64 = 3;
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
    Presence(wice_signaling::protocol::PublicKey, Presence),
    /// Signaling is out of reach.
    SignalingLost,
    /// A verified list of revocations.
    Revocations(wice_signaling::protocol::RevocationList),
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
    /// WireGuard.
    pub tunnels: &'a Tunnels,
    /// Inner addresses.
    pub overlay: &'a Overlay,
    /// When.
    pub now: Instant,
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
        key: wice_signaling::protocol::PublicKey,
        /// Beyond the overlay's own ranges.
        prefixes: Vec<wice_signaling::protocol::IpPrefix>,
    },
    /// A peer's path has changed.
    Path(Box<crate::core::node::PeerSnapshot>),
    /// The TUN device is gone; the loop has ended.
    DeviceLost(io::Error),
}

/// What the loop starts with.
pub struct Parts {
    /// The core.
    pub node: Node,
    /// Inner addresses.
    pub overlay: Overlay,
    /// WireGuard.
    pub tunnels: Tunnels,
    /// Its device.
    pub tun: Tun,
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

/// The loop's state.
struct PacketLoop {
    node: Node,
    overlay: Overlay,
    tunnels: Tunnels,
    tun: Tun,
    ways: Ways,
    numbers: BTreeMap<PeerId, inprocess::PeerId>,
    endpoint: Endpoints,
    notices: mpsc::Sender<Notice>,
    runtime: tokio::runtime::Handle,
    relay_events: mpsc::Sender<(u64, RelayEvent)>,
    epoll: rustix::fd::OwnedFd,
    outlet: Outlet,
    received: Vec<(PeerId, Arrival, WireGuardPacket)>,
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
    let packet_loop = PacketLoop {
        node: parts.node,
        overlay: parts.overlay,
        tunnels: parts.tunnels,
        tun: parts.tun,
        ways: Ways {
            v4: parts.v4,
            v6: parts.v6,
            relays: BTreeMap::new(),
            routes: BTreeMap::new(),
            arrival: None,
            sent: Vec::new(),
            relay_replies: Vec::new(),
            failures: SendFailures::new(),
            unrouted: 0,
        },
        numbers: BTreeMap::new(),
        endpoint: parts.endpoint,
        notices: parts.notices,
        runtime: parts.runtime,
        relay_events,
        epoll,
        outlet,
        received: Vec::new(),
        notices_dropped: 0,
        stopped: false,
    };
    packet_loop.watch(packet_loop.outlet.waker(), TOKEN_INBOX)?;
    packet_loop.watch(packet_loop.tun.as_fd(), TOKEN_TUN)?;
    for (socket, token) in [
        (&packet_loop.ways.v4, TOKEN_V4),
        (&packet_loop.ways.v6, TOKEN_V6),
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

impl PacketLoop {
    fn run(mut self) {
        let mut buffers = ReceiveBuffers::new();
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let mut tun_waits = false;
        while !self.stopped {
            self.settle(Instant::now());
            events.clear();
            let wait = if tun_waits {
                Duration::ZERO
            } else {
                self.wait(Instant::now())
            };
            let timeout = rustix::event::Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            let waited = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            );
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(event = "loop-failed", %error, "cannot wait for packets");
                return;
            }
            let now = Instant::now();
            let ready: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
            for token in ready {
                match token {
                    TOKEN_INBOX => self.take_commands(now),
                    TOKEN_TUN => tun_waits = true,
                    TOKEN_V4 | TOKEN_V6 => self.receive(token, &mut buffers, now),
                    relay => self.receive_relay(relay, &mut buffers, now),
                }
            }
            if tun_waits {
                tun_waits = self.take_device();
            }
        }
    }

    /// Everything that follows from what has happened: timers, transmits, events, notes.
    fn settle(&mut self, now: Instant) {
        self.tunnels.flush(&mut self.tun);
        self.node.handle_timeout(now);
        self.tunnels.handle_timeout(now, &mut self.ways);
        // What is sent can cause events and the other way round; both end by themselves.
        loop {
            self.tell_core(now);
            self.transmit();
            let Some(event) = self.node.poll_event() else {
                break;
            };
            self.handle_event(event, now);
        }
    }

    fn wait(&self, now: Instant) -> Duration {
        let core = self.node.poll_timeout().map(|(at, _)| at);
        let next = [core, self.tunnels.poll_timeout()]
            .into_iter()
            .flatten()
            .min();
        next.map_or(MAX_WAIT, |at| at.saturating_duration_since(now))
            .min(MAX_WAIT)
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.node.poll_transmit() {
            match transmit.via {
                Via::Host {
                    local,
                    interface,
                    remote,
                } => {
                    let source = Some(Source {
                        ip: local,
                        ifindex: interface,
                    });
                    self.ways
                        .send_host(Destination { remote, source }, &transmit.payload);
                }
                Via::Relay { relay, droppable } => {
                    self.ways.send_relay(relay, transmit.payload, droppable);
                }
            }
        }
        // Each failure is one lost packet; the sockets count them.
        for failure in self.ways.failures.drain() {
            tracing::trace!(?failure, "not sent");
        }
    }

    /// What WireGuard has sent and received, for the choice of paths.
    fn tell_core(&mut self, now: Instant) {
        for (peer, packet) in self.ways.sent.drain(..) {
            self.node.note_sent(peer, packet, now);
        }
        for (peer, arrival, packet) in self.received.drain(..) {
            self.node.note_received(peer, arrival, packet, now);
        }
        for (relay, to, packet) in self.ways.relay_replies.drain(..) {
            self.node.reply_relayed(relay, to, &packet, now);
        }
    }

    fn receive(&mut self, token: u64, buffers: &mut ReceiveBuffers, now: Instant) {
        for _ in 0..MAX_RECEIVES {
            let socket = if token == TOKEN_V4 {
                &self.ways.v4
            } else {
                &self.ways.v6
            };
            let Some(socket) = socket else { return };
            while let Some(error) = socket.next_error() {
                tracing::trace!(?error, "path error");
                if error.is_refusal() {
                    self.node.handle_refused(error.remote, now);
                }
            }
            let slots = socket.receive(buffers).unwrap_or(0);
            for run in buffers.arrivals() {
                let Some(local) = run.local else { continue };
                let arrival = Arrival::Host {
                    local,
                    interface: run.ifindex,
                    from: run.remote,
                };
                for datagram in run.datagrams() {
                    self.dispatch(arrival, datagram.payload, now);
                }
            }
            self.tunnels.flush(&mut self.tun);
            if slots < SLOTS {
                return;
            }
        }
    }

    fn receive_relay(&mut self, token: u64, buffers: &mut ReceiveBuffers, now: Instant) {
        let Some(number) = token.checked_sub(TOKEN_RELAYS) else {
            return;
        };
        let relay = RelayId(u32::try_from(number).unwrap_or(u32::MAX));
        for _ in 0..MAX_RECEIVES {
            let Some(RelayLink::Udp(socket)) = self.ways.relays.get(&relay) else {
                return;
            };
            while let Some(error) = socket.next_error() {
                tracing::trace!(?error, "relay path error");
            }
            let slots = socket.receive(buffers).unwrap_or(0);
            for datagram in buffers.datagrams() {
                let data = self
                    .node
                    .handle_relay_datagram(relay, datagram.payload, now);
                if let Some((from, payload)) = data {
                    self.wireguard(Arrival::Relay { relay, from }, payload, now);
                }
            }
            self.tunnels.flush(&mut self.tun);
            if slots < SLOTS {
                return;
            }
        }
    }

    fn dispatch(&mut self, arrival: Arrival, datagram: &[u8], now: Instant) {
        match self.node.handle_datagram(arrival, datagram, now) {
            Inbound::Consumed => {}
            Inbound::Data => self.wireguard(arrival, datagram, now),
        }
    }

    fn wireguard(&mut self, arrival: Arrival, datagram: &[u8], now: Instant) {
        let source = match arrival {
            Arrival::Host { from, .. } | Arrival::Relay { from, .. } => from.ip(),
        };
        self.ways.arrival = Some(arrival);
        let verdict =
            self.tunnels
                .handle_datagram(source, datagram, now, &mut self.tun, &mut self.ways);
        self.ways.arrival = None;
        let Verdict::Authenticated { peer, kind } = verdict else {
            return;
        };
        let Some((id, _)) = self.ways.routes.get(&peer) else {
            return;
        };
        let packet = match kind {
            MessageKind::Initiation => WireGuardPacket::HandshakeInitiation,
            MessageKind::Response => WireGuardPacket::HandshakeResponse,
            MessageKind::Keepalive => WireGuardPacket::Keepalive,
            MessageKind::Data => WireGuardPacket::Data,
        };
        let note = (*id, arrival, packet);
        if self.received.last() != Some(&note) {
            self.received.push(note);
        }
    }

    /// Reads the device; whether more waits.
    fn take_device(&mut self) -> bool {
        match self.tunnels.handle_device(&mut self.tun, &mut self.ways) {
            TunRead::Drained => false,
            TunRead::More => true,
            TunRead::Failed(error) => {
                self.stopped = true;
                self.notify(Notice::DeviceLost(error));
                false
            }
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    fn notify(&mut self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.notices_dropped += 1;
        }
    }
}
