//! One thread: its sockets, its clients, its server. Nothing here is shared with another thread but ports, quotas and reservations.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustls::ServerConfig;
use wice_udp::{
    Arrival, ErrorOrigin, Moderation, PathErrorKind, Payloads, ReceiveBuffers, SLOTS, SendFailures,
    UdpError, UdpOptions, UdpSocket,
};

use super::dispatch::{Routed, Sockets};
use super::joined::THROTTLE_STEP;
use super::kept::KeptPorts;
use super::mailbox::{Inbox, Letter, Mailbox};
use super::metrics::{Figures, Published};
use super::notices;
use super::peers::Peers;
use super::standing::StandingQueues;
use super::streams::Streams;
use super::token::Token;
use crate::codec::{CHANNEL_HEADER_LEN, is_channel_data};
use crate::server::{
    ClientAddr, Command, Config, ConnectionId, Forward, Framing, Handover, IcmpError, Now,
    OpenError, Prefix, RelayId, RelayKind, Server, Transport,
};

/// Receive buffer of a relay socket: some 200 full packets with the kernel's bookkeeping, which a thread at its limit of
/// about 1 µs each works off well within 5 ms.
const RELAY_BUFFER_BYTES: i32 = 1 << 20;
/// Events taken at once.
const EVENTS: usize = 128;
/// System calls on one socket before the others have their turn.
const RECEIVES_A_TURN: usize = 4;
/// System calls that throw away what waits at one socket before the others have their turn: all that its buffer holds.
const DISCARDS_A_TURN: usize = 64;
/// ICMP errors read before the others have their turn.
const ERRORS_A_TURN: usize = 16;
/// Bytes read from a connection before the others have their turn.
const STREAM_READ: usize = 64 << 10;
/// How often figures are published at least.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What a thread is told.
pub(super) enum Control {
    /// Another configuration, certificate, and load balancers.
    Reload(Arc<Config>, Option<Arc<ServerConfig>>, Vec<Prefix>),
    /// No new allocations.
    Drain,
    /// The end.
    Stop,
}

pub(super) struct Worker {
    pub(super) server: Server,
    pub(super) epoll: OwnedFd,
    pub(super) inbox: Inbox,
    /// Of all threads.
    pub(super) kept: Arc<KeptPorts>,
    /// Of all threads, by their numbers.
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) sockets: Sockets,
    /// Ports of the UDP listeners, by link.
    pub(super) ports: Vec<u16>,
    /// TCP listeners, and whether they speak TLS.
    pub(super) tcp: Vec<(TcpListener, bool)>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) published: Arc<Published>,
    pub(super) streams: Streams,
    pub(super) buffers: ReceiveBuffers,
    pub(super) failures: SendFailures,
    pub(super) scratch: Box<[u8]>,
    /// Empty between batches: the room for the next one.
    pub(super) batch: Vec<Routed<'static>>,
    pub(super) queues: StandingQueues,
    pub(super) send_failures: u64,
    /// Its number.
    pub(super) thread: usize,
    /// Sources that say by the PROXY protocol whom they pass on.
    pub(super) proxies: Vec<Prefix>,
    /// Connections with peers (RFC 6062).
    pub(super) peers: Peers,
    /// Joined connections that are not read because their user is past its rate.
    pub(super) throttled: Vec<ConnectionId>,
    pub(super) next_sweep: Instant,
    /// Listeners that are not looked at because file descriptors are short, and until when.
    pub(super) resting: Vec<Token>,
    pub(super) rest_until: Instant,
    pub(super) next_warning: Instant,
}

impl Worker {
    /// Memory for one read of a connection.
    pub(super) fn scratch() -> Box<[u8]> {
        vec![0; STREAM_READ].into_boxed_slice()
    }

    /// Registers what is there from the start.
    pub(super) fn register(&self) -> io::Result<()> {
        self.add(&*self.inbox.wake, Token::Wake, EventFlags::IN)?;
        for (index, socket) in self.sockets.listeners.iter().enumerate() {
            self.add(socket, Token::Udp(index as u32), EventFlags::IN)?;
        }
        for (index, (listener, _)) in self.tcp.iter().enumerate() {
            self.add(listener, Token::Tcp(index as u32), EventFlags::IN)?;
        }
        Ok(())
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let mut moderation = Moderation::new(Instant::now());
        loop {
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            let before = Instant::now();
            let timeout = self.timeout(before);
            match epoll::wait(&self.epoll, spare, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(event = "turn-wait-failed", %error);
                    return;
                }
            }
            let now = now();
            let waited = now.instant.saturating_duration_since(before);
            self.queues.begin_turn(waited);
            let mut stopped = false;
            for event in &events {
                // Copied out: the struct is packed.
                let (token, flags) = (Token::from_u64(event.data.u64()), event.flags);
                match token {
                    Some(Token::Wake) => stopped |= !self.handle_inbox(now),
                    Some(Token::Udp(link)) => self.receive_from_clients(link, flags, now),
                    Some(Token::Tcp(index)) => self.accept(index, now.instant),
                    Some(Token::Relay(relay)) => {
                        self.receive_from_peers(RelayId(relay), flags, now)
                    }
                    Some(Token::Stream(link)) => self.read_stream(link, flags, now),
                    Some(Token::TcpRelay(relay)) => self.accept_peers(RelayId(relay), now),
                    Some(Token::Peer(connection)) => {
                        self.serve_peer(ConnectionId(connection), flags, now);
                    }
                    None => {}
                }
            }
            if stopped {
                return;
            }
            self.queues.end_turn(now.instant);
            self.server.handle_timeout(now.instant);
            self.obey(now.instant);
            self.sweep(now.instant);
            self.resume_throttled();
            self.end_rest(now.instant);
            self.flush_streams();
            self.publish();
            if let Some(nap) = moderation.after_turn(now.instant, self.buffers.received()) {
                std::thread::sleep(nap);
            }
        }
    }

    fn timeout(&self, now: Instant) -> rustix::event::Timespec {
        let due = self
            .server
            .poll_timeout()
            .map(|at| at.saturating_duration_since(now));
        let longest = if self.throttled.is_empty() {
            LONGEST_WAIT
        } else {
            THROTTLE_STEP
        };
        let wait = due.map_or(longest, |due| due.min(longest));
        // A timer is never early.
        let wait = wait + Duration::from_micros(1);
        rustix::event::Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        }
    }

    fn handle_inbox(&mut self, now: Now) -> bool {
        // Only wakes; what is to be done is in the inbox.
        let _ = rustix::io::read(&*self.inbox.wake, &mut [0; 8]);
        while let Ok(control) = self.inbox.commands.try_recv() {
            match control {
                Control::Reload(config, tls, proxies) => {
                    self.server.set_config(config);
                    self.tls = tls;
                    self.proxies = proxies;
                }
                Control::Drain => self.server.drain(),
                Control::Stop => return false,
            }
        }
        while let Ok(letter) = self.inbox.letters.try_recv() {
            match letter {
                Letter::Handover(handover, sockets) => {
                    let names = self.server.handle_handover(*handover, now);
                    self.adopt(names, sockets);
                }
                Letter::Stream(stream) => self.take_over(*stream, now),
            }
            self.obey(now.instant);
        }
        true
    }

    fn receive_from_clients(&mut self, link: u32, flags: EventFlags, now: Now) {
        let Some(&port) = self.ports.get(link as usize) else {
            return;
        };
        for _ in 0..RECEIVES_A_TURN {
            let Some(socket) = self.sockets.listeners.get(link as usize) else {
                return;
            };
            if flags.contains(EventFlags::ERR) {
                // A client that is gone: its allocation ends by itself.
                for _ in 0..ERRORS_A_TURN {
                    if socket.next_error().is_none() {
                        break;
                    }
                }
            }
            let filled = socket.receive(&mut self.buffers).unwrap_or(0);
            if filled == 0 {
                return;
            }
            let mut batch = recycle(std::mem::take(&mut self.batch));
            let time = unix();
            for arrival in self.buffers.arrivals() {
                // Requests are answered also when they are late: they would be repeated.
                if is_channel_data(arrival.bytes) && is_let_go(&mut self.queues, &arrival, time) {
                    continue;
                }
                // Without a local address no reply could leave from it.
                let Some(local) = arrival.local else {
                    continue;
                };
                let client = ClientAddr {
                    transport: Transport::Udp,
                    remote: arrival.remote,
                    local: SocketAddr::new(local, port),
                    link,
                };
                route_run(&mut self.server, &client, arrival, now, &mut batch);
            }
            self.sockets
                .dispatch(&mut batch, &mut self.streams, &mut self.failures);
            self.batch = recycle(batch);
            self.obey(now.instant);
            if filled < SLOTS {
                return;
            }
        }
    }

    fn receive_from_peers(&mut self, relay: RelayId, flags: EventFlags, now: Now) {
        if flags.contains(EventFlags::ERR) {
            self.read_errors(relay, now.instant);
        }
        for _ in 0..RECEIVES_A_TURN {
            let Some(socket) = self.sockets.relay(relay) else {
                return;
            };
            let filled = socket.receive(&mut self.buffers).unwrap_or(0);
            if filled == 0 {
                return;
            }
            let mut batch = recycle(std::mem::take(&mut self.batch));
            let (time, mut late) = (unix(), false);
            for arrival in self.buffers.arrivals() {
                if is_let_go(&mut self.queues, &arrival, time) {
                    late = true;
                    continue;
                }
                route_arrival(&mut self.server, relay, arrival, now.instant, &mut batch);
            }
            self.sockets
                .dispatch(&mut batch, &mut self.streams, &mut self.failures);
            self.batch = recycle(batch);
            if late {
                return self.empty(relay);
            }
            if filled < SLOTS {
                return;
            }
        }
    }

    /// Throws away what waits at a relay whose queue begins with what is late: read only to be dropped, it would take the time
    /// that all others are waiting for.
    fn empty(&mut self, relay: RelayId) {
        let Some(socket) = self.sockets.relay(relay) else {
            return;
        };
        for _ in 0..DISCARDS_A_TURN {
            let (runs, datagrams) = socket.discard();
            self.queues.let_go(datagrams);
            if runs < SLOTS {
                return;
            }
        }
    }

    fn read_errors(&mut self, relay: RelayId, now: Instant) {
        for _ in 0..ERRORS_A_TURN {
            let Some(error) = self.sockets.relay(relay).and_then(UdpSocket::next_error) else {
                return;
            };
            let ErrorOrigin::Icmp(_) = error.origin else {
                continue;
            };
            let (kind, code) = error.icmp;
            let data = match error.kind {
                PathErrorKind::TooLarge { mtu } => mtu,
                PathErrorKind::Refused
                | PathErrorKind::HostUnreachable
                | PathErrorKind::NetworkUnreachable
                | PathErrorKind::Other(_) => 0,
            };
            let icmp = IcmpError { kind, code, data };
            self.server.handle_icmp(relay, error.remote, icmp, now);
        }
    }

    /// Carries out what the server says.
    pub(super) fn obey(&mut self, now: Instant) {
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Send { client, message } => match client.transport {
                    Transport::Udp => {
                        self.sockets
                            .send_message(&client, &message, &mut self.failures);
                    }
                    Transport::Tcp | Transport::Tls => {
                        if let Err(reason) = self.streams.send_control(&client, &message) {
                            self.close(&client, &reason);
                        }
                    }
                },
                Command::OpenRelay {
                    relay,
                    kind,
                    local,
                    keeps_next,
                } => {
                    let opened = match kind {
                        RelayKind::Udp => self.open_relay(relay, local, keeps_next, now),
                        RelayKind::Tcp => self.open_tcp_relay(relay, local),
                    };
                    self.server.handle_relay_opened(relay, opened, now);
                }
                Command::ReleasePort { local } => drop(self.kept.take(&local)),
                Command::CloseRelay { relay } => {
                    self.sockets.take_relay(relay);
                    self.sockets.tcp_relays.remove(&relay);
                }
                Command::ConnectPeer {
                    connection,
                    relay,
                    to,
                } => self.connect_peer(connection, relay, to, now),
                Command::Join { connection, client } => self.join(connection, &client),
                Command::ClosePeer { connection } => self.close_peer(connection, now),
                Command::HandOver { shard, handover } => self.hand_over(shard, handover),
            }
        }
        while let Some(notice) = self.server.poll_notice() {
            notices::log(&notice);
        }
        self.send_failures += self.failures.drain().count() as u64;
    }

    fn open_relay(
        &mut self,
        relay: RelayId,
        local: SocketAddr,
        keeps_next: bool,
        now: Instant,
    ) -> Result<(), OpenError> {
        let socket = match self.kept.take(&local) {
            Some(socket) => socket,
            None => bind_relay(local)?,
        };
        if keeps_next {
            let next = SocketAddr::new(local.ip(), local.port() + 1);
            self.kept.keep(next, bind_relay(next)?, now);
        }
        self.add(&socket, Token::Relay(relay.0), EventFlags::IN)
            .map_err(|_| OpenError::Unable)?;
        self.sockets.set_relay(relay, socket);
        Ok(())
    }

    /// To another thread, with the sockets that go along.
    fn hand_over(&mut self, shard: u8, handover: Box<Handover>) {
        let sockets: Vec<UdpSocket> = handover
            .relays()
            .into_iter()
            .filter_map(|relay| self.sockets.take_relay(relay))
            .inspect(|socket| {
                // It was added.
                let _ = epoll::delete(&self.epoll, socket);
            })
            .collect();
        let mailbox = self.mailboxes.get(usize::from(shard));
        let letter = Letter::Handover(handover, sockets);
        let back = match mailbox {
            Some(mailbox) => mailbox.send(letter).err(),
            None => Some(letter),
        };
        if let Some(Letter::Handover(handover, sockets)) = back {
            let names = self.server.handle_undelivered(*handover, mailbox.is_some());
            self.adopt(names, sockets);
        }
    }

    /// Relay sockets of another thread, under the names that they have here.
    fn adopt(&mut self, names: Vec<RelayId>, sockets: Vec<UdpSocket>) {
        for (relay, socket) in names.into_iter().zip(sockets) {
            match self.add(&socket, Token::Relay(relay.0), EventFlags::IN) {
                Ok(()) => self.sockets.set_relay(relay, socket),
                // Its allocation ends by itself.
                Err(error) => tracing::warn!(event = "turn-relay-not-adopted", %error),
            }
        }
    }

    fn publish(&self) {
        self.published.set(Figures {
            counters: *self.server.counters(),
            connections: self.streams.len(),
            peer_connections: self.peers.len(),
            slow_client_drops: self.streams.dropped,
            late_drops: self.queues.dropped,
            send_failures: self.send_failures,
        });
    }

    pub(super) fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token.to_u64()),
            flags,
        )?)
    }
}

fn bind_relay(local: SocketAddr) -> Result<UdpSocket, OpenError> {
    let options = UdpOptions {
        reuse_port: false,
        fragment: true,
        packet_info: false,
        timestamps: true,
        receive_buffer: RELAY_BUFFER_BYTES,
        send_buffer: RELAY_BUFFER_BYTES,
    };
    UdpSocket::bind_with(local, &options).map_err(|error| match error {
        UdpError::PortInUse(_) => OpenError::PortInUse,
        UdpError::NoSuchAddress(_) | UdpError::NoPermission(_) | UdpError::System { .. } => {
            tracing::warn!(event = "turn-relay-not-opened", %error);
            OpenError::Unable
        }
    })
}

/// Where the frames of a run of one client's go. Those with one header, of one length, have one way, but an indication each its
/// own transaction id.
fn route_run<'p>(
    server: &mut Server,
    client: &ClientAddr,
    run: Arrival<'p>,
    now: Now,
    batch: &mut Vec<Routed<'p>>,
) {
    let mut rest = run.bytes;
    while !rest.is_empty() {
        let all = rest;
        let (frame, after) = all.split_at(run.segment_size.min(all.len()));
        rest = after;
        let Some((forward, payload)) = server.handle_client(client, frame, now) else {
            continue;
        };
        let framing = match forward {
            Forward::Client(to) => Some(to.framing),
            Forward::Peer { .. } => None,
        };
        if !is_channel_data(frame) || matches!(framing, Some(Framing::Indication { .. })) {
            batch.push((forward, Payloads::one(payload)));
            continue;
        }
        let header = &frame[..CHANNEL_HEADER_LEN];
        let alike = |next: &&[u8]| next.len() == frame.len() && next.starts_with(header);
        let more = after.chunks(frame.len()).take_while(alike).count();
        let sent = match more {
            0 => 0,
            packets => server.handle_alike(client, frame, packets, now.instant),
        };
        let (_, first) = all.split_at(CHANNEL_HEADER_LEN);
        let payloads = Payloads::spaced(first, frame.len(), payload.len(), 1 + sent);
        batch.push((forward, payloads));
        (_, rest) = after.split_at(more * frame.len());
    }
}

/// Where the payloads of a run of one peer's go: those of one length have one way, but an indication each its own transaction id.
fn route_arrival<'p>(
    server: &mut Server,
    relay: RelayId,
    arrival: Arrival<'p>,
    now: Instant,
    batch: &mut Vec<Routed<'p>>,
) {
    let mut rest = arrival.bytes;
    while !rest.is_empty() {
        let all = rest;
        let (payload, after) = all.split_at(arrival.segment_size.min(all.len()));
        rest = after;
        let one = (1, payload.len());
        let Some((to, _)) = server.handle_peer(relay, arrival.remote, one, now) else {
            continue;
        };
        let more = match to.framing {
            Framing::Channel(_) => after.len() / payload.len(),
            Framing::Indication { .. } => 0,
        };
        let sent = match more {
            0 => None,
            packets => server.handle_peer(relay, arrival.remote, (packets, payload.len()), now),
        };
        let count = 1 + sent.map_or(0, |(_, sent)| sent);
        let payloads = Payloads::spaced(all, payload.len(), payload.len(), count);
        batch.push((Forward::Client(to), payloads));
        (_, rest) = after.split_at(more * payload.len());
    }
}

/// Whether a run is dropped because it has waited for too long in a queue that stands.
fn is_let_go(queues: &mut StandingQueues, run: &Arrival<'_>, now: Duration) -> bool {
    let age = run.at.map(|at| now.saturating_sub(at));
    queues.lets_go(age, run.bytes.len().div_ceil(run.segment_size))
}

/// An empty batch in the room of another one: collecting in place keeps it.
pub(super) fn recycle<'p>(mut batch: Vec<Routed<'_>>) -> Vec<Routed<'p>> {
    batch.clear();
    batch.into_iter().map_while(|_| None).collect()
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix: unix().as_secs(),
    }
}

fn unix() -> Duration {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_batch_is_empty_and_keeps_its_room() {
        let payload = [0; 4];
        let forward = Forward::Peer {
            relay: RelayId(0),
            to: SocketAddr::from(([8, 8, 8, 8], 1)),
            dont_fragment: false,
        };
        let batch: Vec<Routed<'_>> = vec![(forward, Payloads::one(&payload)); 100];
        let (room, place) = (batch.capacity(), batch.as_ptr().addr());
        let next: Vec<Routed<'static>> = recycle(batch);
        assert!(next.is_empty());
        assert_eq!((next.capacity(), next.as_ptr().addr()), (room, place));
    }
}
