//! Another client's reading of the RFCs (turn-client-proto): both families, SHA-256 and USERHASH, channels, TCP allocations.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use turn_client_proto::api::{
    Transmit, TurnClientApi, TurnConfig, TurnEvent, TurnPeerData, TurnPollRet, TurnRecvRet,
};
use turn_client_proto::prelude::DelayedTransmitBuild as _;
use turn_client_proto::stun::auth::Feature;
use turn_client_proto::stun::types::TransportType;
use turn_client_proto::stun::types::message::IntegrityAlgorithm;
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::types::{AddressFamily, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;
use wice_turn::server::Transport;

use crate::client::{PASSWORD, USER};
use crate::{SIZES, World, echo};

/// Longer than anything on loopback takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one read waits before timers are looked at.
const LOOK: Duration = Duration::from_millis(20);

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Socket {
    fn open(transport: Transport, server: SocketAddr) -> (Self, SocketAddr) {
        if transport == Transport::Udp {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(LOOK)).unwrap();
            let local = socket.local_addr().unwrap();
            (Self::Udp(socket), local)
        } else {
            let stream = TcpStream::connect(server).unwrap();
            stream.set_read_timeout(Some(LOOK)).unwrap();
            let local = stream.local_addr().unwrap();
            (Self::Tcp(stream), local)
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Udp(socket) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            Self::Tcp(stream) => stream.write_all(bytes).unwrap(),
        }
    }

    /// `None` where nothing has come for a look.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65536];
        let len = match self {
            Self::Udp(socket) => socket.recv(&mut buffer).ok()?,
            Self::Tcp(stream) => stream.read(&mut buffer).ok()?,
        };
        buffer.truncate(len);
        Some(buffer)
    }
}

/// The client with what carries it: the connection to the server, and those of TCP allocations.
struct Driver<C> {
    client: C,
    sockets: Vec<(SocketAddr, Socket)>,
    server: SocketAddr,
    start: Instant,
    events: VecDeque<TurnEvent>,
    payloads: VecDeque<(SocketAddr, Vec<u8>)>,
}

impl<C: TurnClientApi> Driver<C> {
    fn new(
        transport: Transport,
        server: SocketAddr,
        client: impl FnOnce(SocketAddr, SocketAddr) -> C,
    ) -> Self {
        let (socket, local) = Socket::open(transport, server);
        Self {
            client: client(local, server),
            sockets: vec![(local, socket)],
            server,
            start: Instant::now(),
            events: VecDeque::new(),
            payloads: VecDeque::new(),
        }
    }

    fn now(&self) -> turn_client_proto::stun::Instant {
        turn_client_proto::stun::Instant::from_std(self.start)
    }

    fn send(&mut self, from: SocketAddr, bytes: &[u8]) {
        let found = self.sockets.iter_mut().find(|(local, _)| *local == from);
        found.expect("a socket of ours").1.send(bytes);
    }

    /// One turn: timers, what is to be sent, what has come.
    fn turn(&mut self) {
        let now = self.now();
        if let TurnPollRet::AllocateTcpSocket {
            id,
            socket,
            peer_addr,
        } = self.client.poll(now)
        {
            let (data, local) = Socket::open(Transport::Tcp, socket.to);
            self.sockets.push((local, data));
            self.client
                .allocated_tcp_socket(id, socket, peer_addr, Some(local), now)
                .unwrap();
        }
        while let Some(transmit) = self.client.poll_transmit(now) {
            let bytes: &[u8] = &transmit.data;
            let bytes = bytes.to_vec();
            self.send(transmit.from, &bytes);
        }
        for n in 0..self.sockets.len() {
            let (local, socket) = &mut self.sockets[n];
            let local = *local;
            let Some(bytes) = socket.receive() else {
                continue;
            };
            let transmit = Transmit::new(bytes, self.client.transport(), self.server, local);
            if let TurnRecvRet::PeerData(data) = self.client.recv(transmit, now) {
                self.payloads.push_back((data.peer, data.data().to_vec()));
            }
            while let Some(data) = self.client.poll_recv(now) {
                let data: TurnPeerData<Vec<u8>> = data;
                self.payloads.push_back((data.peer, data.data().to_vec()));
            }
        }
        while let Some(event) = self.client.poll_event() {
            self.events.push_back(event);
        }
    }

    fn event(&mut self) -> TurnEvent {
        let start = Instant::now();
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            assert!(start.elapsed() < PATIENCE, "no event");
            self.turn();
        }
    }

    fn allocated(&mut self) -> SocketAddr {
        let event = self.event();
        let TurnEvent::AllocationCreated(_, relayed) = event else {
            panic!("{event:?}");
        };
        relayed
    }

    fn permit(&mut self, transport: TransportType, peer: SocketAddr) {
        let now = self.now();
        self.client
            .create_permission(transport, peer.ip(), now)
            .unwrap();
        let event = self.event();
        assert!(
            matches!(event, TurnEvent::PermissionCreated(_, ip) if ip == peer.ip()),
            "{event:?}"
        );
    }

    fn send_to(&mut self, transport: TransportType, peer: SocketAddr, payload: &[u8]) {
        let now = self.now();
        let sent = self.client.send_to(transport, peer, payload, now).unwrap();
        if let Some(built) = sent {
            let from = built.from;
            let bytes = built.data.build();
            self.send(from, &bytes);
        }
    }

    fn payload(&mut self) -> (SocketAddr, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(payload) = self.payloads.pop_front() {
                return payload;
            }
            assert!(start.elapsed() < PATIENCE, "no payload");
            self.turn();
        }
    }

    fn echoes(&mut self, peer: SocketAddr, fits: impl Fn(&usize) -> bool) {
        for (n, size) in SIZES.into_iter().filter(fits).enumerate() {
            let payload = vec![n as u8 + 1; size];
            self.send_to(TransportType::Udp, peer, &payload);
            assert_eq!(self.payload(), (peer, payload), "{size} bytes");
        }
    }

    /// Refresh with lifetime 0, and the server's answer.
    fn delete(&mut self, world: &World) {
        let now = self.now();
        self.client.delete(now).unwrap();
        let start = Instant::now();
        while world.service.allocations() > 0 {
            assert!(start.elapsed() < PATIENCE, "the allocation stays");
            self.turn();
        }
    }
}

fn config() -> TurnConfig {
    TurnConfig::new(TurnCredentials::new(USER, PASSWORD))
}

/// An allocation of each of `families`, Send and Data, then a channel, over whatever carries the client.
fn relays<C: TurnClientApi>(mut driver: Driver<C>, families: usize, world: &World) {
    let relayed: Vec<SocketAddr> = (0..families).map(|_| driver.allocated()).collect();
    let peers: Vec<SocketAddr> = relayed.iter().map(|address| echo(address.ip())).collect();
    for peer in &peers {
        driver.permit(TransportType::Udp, *peer);
        driver.echoes(*peer, |_| true);
    }
    // One alone: this client counts channels by family, while the two share their numbers (RFC 8656 §12).
    let now = driver.now();
    driver
        .client
        .bind_channel(TransportType::Udp, peers[0], now)
        .unwrap();
    let event = driver.event();
    assert!(
        matches!(event, TurnEvent::ChannelCreated(_, bound) if bound == peers[0]),
        "{event:?}"
    );
    // Over TCP it does not pad ChannelData to four bytes, as RFC 8656 §12.5 has it.
    let padded = driver.client.transport() == TransportType::Udp;
    driver.echoes(peers[0], |size| padded || size.is_multiple_of(4));
    driver.delete(world);
}

#[test]
fn either_family_and_both_in_one_allocation_over_udp_and_tcp() {
    let world = World::new(|_| {});
    let (v4, mut v6, mut both) = (config(), config(), config());
    v6.set_address_family(AddressFamily::IPV6);
    both.add_address_family(AddressFamily::IPV6);
    for (config, families) in [(v4, 1), (v6, 1), (both, 2)] {
        let server = world.at(Transport::Udp, false);
        let driver = Driver::new(Transport::Udp, server, |local, server| {
            TurnClientUdp::allocate(local, server, config.clone())
        });
        relays(driver, families, &world);
        let server = world.at(Transport::Tcp, false);
        let driver = Driver::new(Transport::Tcp, server, |local, server| {
            TurnClientTcp::allocate(local, server, config)
        });
        relays(driver, families, &world);
    }
}

#[test]
fn sha256_and_userhash_as_another_stack_has_them() {
    let world = World::new(|_| {});
    for anonymous in [Feature::Disabled, Feature::Required] {
        let mut config = config();
        config.set_supported_integrity(IntegrityAlgorithm::Sha256);
        config.set_anonymous_username(anonymous);
        let server = world.at(Transport::Udp, false);
        let mut driver = Driver::new(Transport::Udp, server, |local, server| {
            TurnClientUdp::allocate(local, server, config)
        });
        let peer = echo(driver.allocated().ip());
        driver.permit(TransportType::Udp, peer);
        driver.echoes(peer, |_| true);
        driver.delete(&world);
    }
}

#[test]
fn a_tcp_allocation_joined_by_another_stack() {
    let world = World::new(|settings| settings.tcp_relay = true);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = listener.local_addr().unwrap();
    let mut config = config();
    config.set_allocation_transport(TransportType::Tcp);
    let server = world.at(Transport::Tcp, false);
    let mut driver = Driver::new(Transport::Tcp, server, |local, server| {
        TurnClientTcp::allocate(local, server, config)
    });
    driver.allocated();
    driver.permit(TransportType::Tcp, peer);
    let now = driver.now();
    driver.client.tcp_connect(peer, now).unwrap();
    let event = driver.event();
    assert!(
        matches!(event, TurnEvent::TcpConnected(to) if to == peer),
        "{event:?}"
    );
    let (mut stream, _) = listener.accept().unwrap();
    driver.send_to(TransportType::Tcp, peer, b"to the peer");
    let mut got = [0; 11];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"to the peer");
    stream.write_all(b"and back").unwrap();
    assert_eq!(driver.payload(), (peer, b"and back".to_vec()));
}
