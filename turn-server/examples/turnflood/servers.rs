//! What is flooded: `wice turn` with one thread, and a bare forwarder that no relay can be cheaper than.

use std::collections::HashMap;
use std::net::SocketAddr;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use wice_turn::codec::{CHANNEL_HEADER_LEN, channel_header};
use wice_turn::io::{Service, Settings};
use wice_turn::server::{DEFAULT_QUOTAS, Quotas, Rate};
use wice_udp::{
    Arrival, Coalescer, Destination, Payloads, ReceiveBuffers, SLOTS, SendFailures, UdpOptions,
    UdpSocket,
};

use super::{CHANNEL, set};

/// The listener among what epoll tells of; all else are numbers of clients.
const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 128;
/// Of one socket before the others have their turn, as in the server.
const RECEIVES_A_TURN: usize = 4;

pub(crate) fn serve(port: u16) {
    let settings = Settings {
        listen: vec![format!("udp://127.0.0.1:{port}").parse().expect("a port")],
        relay_ips: vec![[127, 0, 0, 1].into()],
        allow_peers: vec!["127.0.0.0/8".parse().expect("a prefix")],
        users: vec![("alice".into(), "wonderland".into())],
        realm: "example.org".into(),
        threads: 1,
        quotas: Quotas {
            user: 0,
            source: 0,
            ..DEFAULT_QUOTAS
        },
        challenges: Rate {
            per_second: 0,
            burst: 0,
        },
        ..Settings::new()
    };
    let _service = Service::start(&settings).expect("started");
    loop {
        std::thread::park();
    }
}

/// A client says hello by its peer's port, two bytes, and is told the port of its own socket in the same way. From then on what
/// it sends goes to the peer without its header, and what comes to its socket goes to it with one: the same system calls as a
/// relay's, and nothing else. For `lone` packets without GRO, which joins none of them and costs.
pub(crate) fn forward(port: u16, lone: bool) {
    let mut bare = Bare::new(port, lone);
    let (mut buffers, mut failures) = (ReceiveBuffers::new(), SendFailures::new());
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        let spare = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&bare.epoll, spare, None).expect("waited");
        for event in &events {
            match event.data.u64() {
                LISTENER => bare.take_clients(&mut buffers, &failures),
                client => bare.take_peers(client as usize, &mut buffers, &failures),
            }
            failures.drain().for_each(drop);
        }
    }
}

struct Bare {
    epoll: std::os::fd::OwnedFd,
    listener: UdpSocket,
    clients: Vec<Relayed>,
    by_address: HashMap<SocketAddr, usize>,
    lone: bool,
}

struct Relayed {
    socket: UdpSocket,
    client: Destination,
    peer: Destination,
}

impl Bare {
    fn new(port: u16, lone: bool) -> Self {
        let bare = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).expect("epoll"),
            listener: socket(port, lone),
            clients: Vec::new(),
            by_address: HashMap::new(),
            lone,
        };
        bare.watch(&bare.listener, LISTENER);
        bare
    }

    fn watch(&self, socket: &UdpSocket, token: u64) {
        let data = EventData::new_u64(token);
        epoll::add(&self.epoll, socket, data, EventFlags::IN).expect("watched");
    }

    fn greet(&mut self, hello: &Arrival<'_>, failures: &SendFailures) {
        let Some(port) = hello.bytes.first_chunk::<2>() else {
            return;
        };
        let socket = socket(0, self.lone);
        let own = socket.local_addr().expect("an address").port();
        let own = own.to_be_bytes();
        let client = to(hello.remote);
        let peer = to(SocketAddr::from((
            [127, 0, 0, 1],
            u16::from_be_bytes(*port),
        )));
        self.watch(&socket, self.clients.len() as u64);
        self.by_address.insert(hello.remote, self.clients.len());
        self.clients.push(Relayed {
            socket,
            client,
            peer,
        });
        Coalescer::new(&self.listener, failures).push(client, None, &own);
    }

    fn take_clients(&mut self, buffers: &mut ReceiveBuffers, failures: &SendFailures) {
        for _ in 0..RECEIVES_A_TURN {
            let filled = self.listener.receive(buffers).expect("received");
            for arrival in buffers.arrivals() {
                if !self.by_address.contains_key(&arrival.remote) {
                    self.greet(&arrival, failures);
                }
            }
            let mut open: Option<(usize, Coalescer<'_, '_>)> = None;
            for arrival in buffers.arrivals() {
                let Some(client) = self.by_address.get(&arrival.remote).copied() else {
                    continue;
                };
                if open.as_ref().is_some_and(|(other, _)| *other != client) {
                    open = None;
                }
                let Some((_, first)) = arrival.bytes.split_at_checked(CHANNEL_HEADER_LEN) else {
                    continue;
                };
                let relayed = &self.clients[client];
                let (_, out) =
                    open.get_or_insert_with(|| (client, Coalescer::new(&relayed.socket, failures)));
                let size = arrival.segment_size;
                let payloads = Payloads::spaced(first, size, size - CHANNEL_HEADER_LEN, usize::MAX);
                out.push_all(relayed.peer, None, payloads);
            }
            drop(open);
            if filled < SLOTS {
                return;
            }
        }
    }

    fn take_peers(&mut self, client: usize, buffers: &mut ReceiveBuffers, failures: &SendFailures) {
        let relayed = &self.clients[client];
        for _ in 0..RECEIVES_A_TURN {
            let filled = relayed.socket.receive(buffers).expect("received");
            let mut out = Coalescer::new(&self.listener, failures);
            for arrival in buffers.arrivals() {
                let header = |len| channel_header(CHANNEL, len).expect("a header");
                out.push_framed_segments(
                    relayed.client,
                    header,
                    arrival.bytes,
                    arrival.segment_size,
                );
            }
            drop(out);
            if filled < SLOTS {
                return;
            }
        }
    }
}

fn socket(port: u16, lone: bool) -> UdpSocket {
    let options = UdpOptions {
        packet_info: false,
        ..UdpOptions::default()
    };
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let socket = UdpSocket::bind_with(at, &options).expect("a socket");
    if lone {
        set(&socket, libc::SOL_UDP, libc::UDP_GRO, 0);
    }
    socket
}

fn to(remote: SocketAddr) -> Destination {
    Destination {
        remote,
        source: None,
    }
}
