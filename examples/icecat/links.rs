//! What the bases are: UDP sockets, and allocations on a TURN server over UDP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use wice::core::ice::{Agent, Base, BaseId, BaseKind};
use wice::core::stun::{Binding, TransactionId, encode_binding};
use wice::core::turn::{Allocation, AllocationEvent};
use wice_signaling::protocol::{CandidateKind, RelayTransport};

/// Datagrams that wait to be handled; past them sockets wait.
const QUEUE: usize = 256;
/// No UDP payload is longer.
const MAX_DATAGRAM: usize = 65_535;
/// A STUN server is asked this often, this far apart, before it is given up.
const STUN_TRIES: u32 = 4;
const STUN_WAIT: Duration = Duration::from_millis(500);

/// A datagram as it came: (link, source, bytes).
pub(crate) type Arrival = (usize, SocketAddr, Vec<u8>);

struct Link {
    socket: Arc<UdpSocket>,
    base: BaseId,
    relay: Option<Relay>,
}

struct Relay {
    server: SocketAddr,
    allocation: Allocation,
}

/// All bases.
pub(crate) struct Links {
    links: Vec<Link>,
    sender: mpsc::Sender<Arrival>,
}

impl Links {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Arrival>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let links = Vec::new();
        (Self { links, sender }, receiver)
    }

    /// A host base, with what the STUN server says of it.
    pub(crate) async fn add_host(
        &mut self,
        address: SocketAddr,
        stun: Option<SocketAddr>,
        preference: u16,
    ) -> io::Result<Base> {
        let socket = UdpSocket::bind(address).await?;
        let address = socket.local_addr()?;
        let mut reflexive = Vec::new();
        if let Some(server) = stun.filter(|server| server.is_ipv4() == address.is_ipv4())
            && let Some(mapped) = ask(&socket, server).await?
            && mapped != address
        {
            reflexive.push((mapped, CandidateKind::ServerReflexive));
        }
        let id = self.add(socket, None);
        Ok(Base {
            id,
            kind: BaseKind::Host,
            address,
            preference,
            reflexive,
        })
    }

    /// An allocation on a TURN server over UDP; `None` if it fails, with the reason on standard
    /// error.
    pub(crate) async fn add_relay(
        &mut self,
        bind: IpAddr,
        server: SocketAddr,
        mut allocation: Allocation,
        preference: u16,
    ) -> io::Result<Option<Base>> {
        let socket = UdpSocket::bind((bind, 0)).await?;
        allocation.handle_connected(Instant::now());
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            while let Some(transmit) = allocation.poll_transmit() {
                socket.send_to(&transmit.data, server).await?;
            }
            while let Some(event) = allocation.poll_event() {
                match event {
                    AllocationEvent::Allocated { relayed, .. } => {
                        let id = self.add(socket, Some(Relay { server, allocation }));
                        return Ok(Some(Base {
                            id,
                            kind: BaseKind::Relayed(RelayTransport::Udp),
                            address: relayed,
                            preference,
                            reflexive: Vec::new(),
                        }));
                    }
                    AllocationEvent::Failed { failure, .. } => {
                        eprintln!("no allocation on {server}: {failure:?}");
                        return Ok(None);
                    }
                    AllocationEvent::PermissionInstalled(_)
                    | AllocationEvent::PermissionRefused { .. }
                    | AllocationEvent::ChannelBound { .. }
                    | AllocationEvent::ChannelRefused { .. }
                    | AllocationEvent::Lost { .. }
                    | AllocationEvent::Closed => {}
                }
            }
            let due = allocation
                .poll_timeout()
                .map(tokio::time::Instant::from_std);
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    let (length, from) = received?;
                    if from == server {
                        allocation.handle_datagram(&buffer[..length], Instant::now());
                    }
                }
                () = wait(due) => allocation.handle_timeout(Instant::now()),
            }
        }
    }

    fn add(&mut self, socket: UdpSocket, relay: Option<Relay>) -> BaseId {
        let index = self.links.len();
        let base = BaseId(u32::try_from(index).unwrap_or(u32::MAX));
        let socket = Arc::new(socket);
        let (reader, sender) = (socket.clone(), self.sender.clone());
        tokio::spawn(async move {
            let mut buffer = vec![0; MAX_DATAGRAM];
            loop {
                // An error is one datagram's (ICMP), not the socket's.
                let Ok((length, from)) = reader.recv_from(&mut buffer).await else {
                    continue;
                };
                if sender
                    .send((index, from, buffer[..length].to_vec()))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        self.links.push(Link {
            socket,
            base,
            relay,
        });
        base
    }

    /// Who sent what, at which base; `None` for what the TURN server meant for the allocation.
    pub(crate) fn unwrap(
        &mut self,
        (link, from, bytes): Arrival,
        now: Instant,
    ) -> Option<(BaseId, SocketAddr, Vec<u8>)> {
        let link = self.links.get_mut(link)?;
        let Some(relay) = &mut link.relay else {
            return Some((link.base, from, bytes));
        };
        if from != relay.server {
            return None;
        }
        let received = relay.allocation.handle_datagram(&bytes, now)?;
        Some((link.base, received.peer, received.payload.to_vec()))
    }

    /// Sends one datagram; an error is one lost packet.
    pub(crate) async fn send(&mut self, base: BaseId, to: SocketAddr, bytes: &[u8], now: Instant) {
        let Some(link) = self.links.iter_mut().find(|link| link.base == base) else {
            return;
        };
        match &mut link.relay {
            None => drop(link.socket.send_to(bytes, to).await),
            Some(relay) => drop(relay.allocation.send(to, bytes, now)),
        }
    }

    /// Lets allocations do what is due, and tells the agent which peers they let through.
    pub(crate) async fn drive(&mut self, agent: &mut Agent, now: Instant) {
        for link in &mut self.links {
            let Some(Relay { server, allocation }) = &mut link.relay else {
                continue;
            };
            let wanted: Vec<IpAddr> = agent.wanted_permissions(link.base).collect();
            for peer in wanted {
                allocation.permit(peer, now);
            }
            if allocation.poll_timeout().is_some_and(|at| at <= now) {
                allocation.handle_timeout(now);
            }
            while let Some(event) = allocation.poll_event() {
                match event {
                    AllocationEvent::PermissionInstalled(peer) => agent.permit(link.base, peer),
                    AllocationEvent::PermissionRefused { peer, .. } => {
                        agent.forbid(link.base, peer, now);
                    }
                    AllocationEvent::Lost { .. } | AllocationEvent::Failed { .. } => {
                        agent.remove_base(link.base);
                    }
                    AllocationEvent::Allocated { .. }
                    | AllocationEvent::ChannelBound { .. }
                    | AllocationEvent::ChannelRefused { .. }
                    | AllocationEvent::Closed => {}
                }
            }
            while let Some(transmit) = allocation.poll_transmit() {
                drop(link.socket.send_to(&transmit.data, *server).await);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let relays = self.links.iter().filter_map(|link| link.relay.as_ref());
        relays
            .filter_map(|relay| relay.allocation.poll_timeout())
            .min()
    }
}

/// Ends at the instant; never, if there is none.
pub(crate) async fn wait(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn ask(socket: &UdpSocket, server: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let id = TransactionId::generate();
    let mut buffer = vec![0; MAX_DATAGRAM];
    for _ in 0..STUN_TRIES {
        socket.send_to(&encode_binding(id), server).await?;
        let answer = tokio::time::timeout(STUN_WAIT, socket.recv_from(&mut buffer)).await;
        let Ok(Ok((length, from))) = answer else {
            continue;
        };
        let parsed = Binding::parse(&buffer[..length]).filter(|b| from == server && b.id() == id);
        if let Some(mapped) = parsed.and_then(|binding| binding.mapped_address()) {
            return Ok(Some(mapped));
        }
    }
    eprintln!("no answer from STUN server {server}");
    Ok(None)
}
