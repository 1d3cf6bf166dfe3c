//! Floods a TURN server on this machine and says what a delivered packet cost it: `turnflood SERVER PID SECONDS CLIENTS
//! up|down|relay|allocate|bare [gso]`. The server must know alice:wonderland in realm example.org and allow peers in 127.0.0.0/8;
//! `turnflood serve PORT` is one, with one thread. `turnflood forward PORT [lone]` is no TURN server but what one is measured against
//! (mode `bare`): it takes the header off and passes payloads on to the port above its own. `benches/turn` has them take turns.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use wice_turn::codec::{
    Class, Hash, Key, Message, TransactionId, Writer, attribute, channel_header, method,
};
use wice_turn::io::{Service, Settings};
use wice_turn::server::{DEFAULT_QUOTAS, Quotas, Rate};
use wice_udp::{Coalescer, Destination, ReceiveBuffers, SendFailures, UdpOptions};

/// Bytes of a payload: a WireGuard packet of 1,140 bytes inside.
const PAYLOAD: usize = 1200;
/// Packets in a run.
const RUN: usize = 40;
const CHANNEL: u16 = 0x4000;
/// Clients that allocate at once: one alone would be charged for waking the server, again and again.
const AT_ONCE: usize = 64;

struct Client {
    socket: UdpSocket,
    nonce: Vec<u8>,
    next: u32,
}

impl Client {
    fn open(server: SocketAddr) -> Self {
        // Not the relay's address: clients would take its relay ports.
        let socket = UdpSocket::bind("127.0.0.2:0").expect("a socket");
        socket.connect(server).expect("connected");
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("set");
        Self {
            socket,
            nonce: Vec::new(),
            next: 0,
        }
    }

    fn request(&mut self, method: u16, add: impl Fn(&mut Writer)) {
        self.next += 1;
        let mut id = [1; 12];
        id[..4].copy_from_slice(&self.next.to_be_bytes());
        let mut writer = Writer::new(Class::Request, method, TransactionId(id));
        add(&mut writer);
        let key = Key::md5("alice", "example.org", "wonderland");
        let mut seal = None;
        if !self.nonce.is_empty() {
            writer.add(attribute::USERNAME, b"alice");
            writer.add(attribute::REALM, b"example.org");
            writer.add(attribute::NONCE, &self.nonce);
            seal = Some((&key, Hash::Sha1));
        }
        self.socket.send(&writer.finish(seal, false)).expect("sent");
    }

    /// `None` for the challenge.
    fn answer(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 1500];
        let len = self.socket.recv(&mut buffer).expect("an answer");
        let message = Message::parse(&buffer[..len]).expect("STUN");
        match (
            message.get(attribute::ERROR_CODE),
            message.get(attribute::NONCE),
        ) {
            (None, _) => Some(buffer[..len].to_vec()),
            (Some(_), Some(nonce)) if self.nonce.is_empty() => {
                self.nonce = nonce.to_vec();
                None
            }
            (Some(code), _) => panic!("refused: {code:?}"),
        }
    }

    fn ask(&mut self, method: u16, add: impl Fn(&mut Writer)) -> Vec<u8> {
        loop {
            self.request(method, &add);
            if let Some(answer) = self.answer() {
                return answer;
            }
        }
    }

    fn request_allocation(&mut self) {
        self.request(method::ALLOCATE, |writer| {
            writer.add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
    }

    fn allocate(server: SocketAddr) -> (Self, SocketAddr) {
        let mut client = Self::open(server);
        client.request_allocation();
        assert!(client.answer().is_none(), "a challenge");
        client.request_allocation();
        let answer = client.answer().expect("an allocation");
        let message = Message::parse(&answer).expect("STUN");
        let value = message
            .get(attribute::XOR_RELAYED_ADDRESS)
            .expect("a relayed address");
        let relayed = message.xor_address(value).expect("an address");
        (client, relayed)
    }

    fn bind(&mut self, peer: SocketAddr) {
        self.ask(method::CHANNEL_BIND, |writer| {
            writer.add(attribute::CHANNEL_NUMBER, &[0x40, 0, 0, 0]);
            writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer);
        });
    }
}

fn set(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) {
    // SAFETY: the option's value is an int that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// User and system time of a process, in microseconds.
fn cpu(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .map(|n: usize| fields[n].parse::<u64>().expect("a number"))
        .iter()
        .sum();
    ticks * 10_000
}

/// What allocations cost, each with its challenge, [`AT_ONCE`] clients at a time: all ask before any reads.
fn allocate(server: SocketAddr, pid: &str, clients: usize) {
    let (cpu_before, rss_before, start) = (cpu(pid), rss(pid), Instant::now());
    let mut made: Vec<Client> = Vec::with_capacity(clients);
    while made.len() < clients {
        let first = made.len();
        let more = AT_ONCE.min(clients - first);
        made.extend((0..more).map(|_| Client::open(server)));
        for answered in [false, true] {
            made[first..]
                .iter_mut()
                .for_each(Client::request_allocation);
            for client in &mut made[first..] {
                assert_eq!(client.answer().is_some(), answered, "a challenge first");
            }
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let (used, grown) = (cpu(pid) - cpu_before, rss(pid) - rss_before);
    println!(
        "{} allocations: {:.1} µs CPU each, {:.0} a second, {} bytes of RSS each; idle RSS {} kB",
        made.len(),
        used as f64 / clients as f64,
        clients as f64 / elapsed,
        grown * 1024 / clients as u64,
        rss_before,
    );
}

/// Resident kilobytes of a process.
fn rss(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.expect("VmRSS").trim().trim_end_matches(" kB");
    number.parse().expect("a number")
}

/// Counts what arrives.
fn sink(socket: UdpSocket, count: Arc<AtomicU64>, stop: Arc<AtomicBool>, unit: usize) {
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20);
    set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("set");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            if let Ok(len) = socket.recv(&mut buffer) {
                count.fetch_add((len / unit) as u64, Ordering::Relaxed);
            }
        }
    });
}

fn serve(port: &str) {
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

/// The least that a relay of ChannelData does, with the same system calls; for `lone` packets without GRO, which joins none of
/// them and costs.
fn forward(port: &str, lone: bool) {
    let port: u16 = port.parse().expect("a port");
    let options = UdpOptions {
        packet_info: false,
        ..UdpOptions::default()
    };
    let socket = wice_udp::UdpSocket::bind_with(SocketAddr::from(([127, 0, 0, 1], port)), &options)
        .expect("a socket");
    if lone {
        set(&socket, libc::SOL_UDP, libc::UDP_GRO, 0);
    }
    let (mut buffers, mut failures) = (ReceiveBuffers::new(), SendFailures::new());
    let to = Destination {
        remote: SocketAddr::from(([127, 0, 0, 1], port + 1)),
        source: None,
    };
    loop {
        let mut waits = [rustix::event::PollFd::new(&socket, PollFlags::IN)];
        rustix::event::poll(&mut waits, None).expect("waited");
        while socket.receive(&mut buffers).expect("received") > 0 {
            let mut out = Coalescer::new(&socket, &failures);
            for datagram in buffers.datagrams() {
                out.push(to, None, datagram.payload.get(4..).unwrap_or_default());
            }
            drop(out);
            failures.drain().for_each(drop);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, port, rest @ ..] = &arguments[..]
        && word == "forward"
    {
        return forward(port, rest.first().is_some_and(|word| word == "lone"));
    }
    if let [_, word, port] = &arguments[..]
        && word == "serve"
    {
        return serve(port);
    }
    let [_, server, pid, seconds, clients, mode, rest @ ..] = &arguments[..] else {
        panic!("usage: turnflood SERVER PID SECONDS CLIENTS up|down|relay|allocate|bare [gso]");
    };
    let server: SocketAddr = server.parse().expect("an address");
    let (seconds, clients): (u64, usize) = (
        seconds.parse().expect("seconds"),
        clients.parse().expect("clients"),
    );
    if mode == "allocate" {
        return allocate(server, pid, clients);
    }
    let gso = rest.first().is_some_and(|word| word == "gso");
    let (count, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let peer = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let at = peer.local_addr().expect("an address");
    let framed = channel_header(CHANNEL, PAYLOAD).expect("a header").to_vec();
    let framed = [framed, vec![7; PAYLOAD]].concat();
    let mut senders: Vec<(UdpSocket, SocketAddr, Vec<u8>)> = Vec::new();
    match mode.as_str() {
        "bare" => {
            for _ in 0..clients {
                let socket = UdpSocket::bind("127.0.0.2:0").expect("a socket");
                socket.connect(server).expect("connected");
                senders.push((socket, server, framed.clone()));
            }
            let above = (server.ip(), server.port() + 1);
            let peer = UdpSocket::bind(above).expect("the port above");
            sink(peer, Arc::clone(&count), Arc::clone(&stop), PAYLOAD);
        }
        "up" => {
            for _ in 0..clients {
                let (mut client, _) = Client::allocate(server);
                client.bind(at);
                senders.push((client.socket, server, framed.clone()));
            }
            sink(peer, Arc::clone(&count), Arc::clone(&stop), PAYLOAD);
        }
        "down" => {
            for _ in 0..clients {
                let (mut client, relayed) = Client::allocate(server);
                client.bind(at);
                sink(
                    client.socket,
                    Arc::clone(&count),
                    Arc::clone(&stop),
                    framed.len(),
                );
                senders.push((
                    peer.try_clone().expect("a socket"),
                    relayed,
                    vec![7; PAYLOAD],
                ));
            }
        }
        _ => {
            for _ in 0..clients {
                let ((mut a, at_a), (mut b, at_b)) =
                    (Client::allocate(server), Client::allocate(server));
                a.bind(at_b);
                b.bind(at_a);
                senders.push((a.socket, server, framed.clone()));
                sink(
                    b.socket,
                    Arc::clone(&count),
                    Arc::clone(&stop),
                    framed.len(),
                );
            }
        }
    }
    let start = Instant::now();
    let (before, mut sent) = (cpu(pid), 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        for (socket, to, unit) in &senders {
            let connected = socket.peer_addr().is_ok();
            let send = |bytes: &[u8]| {
                if connected {
                    socket.send(bytes).is_ok()
                } else {
                    socket.send_to(bytes, to).is_ok()
                }
            };
            if gso {
                set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, unit.len() as i32);
                sent += RUN as u64 * u64::from(send(&unit.repeat(RUN)));
                set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0);
            } else {
                for _ in 0..RUN {
                    sent += u64::from(send(unit));
                }
            }
        }
        // Below what a thread carries, so that what is lost is not paid for.
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_millis(300));
    let (used, got) = (cpu(pid) - before, count.load(Ordering::Relaxed));
    stop.store(true, Ordering::Relaxed);
    println!(
        "{mode} {clients} clients {}: {:.2} µs a delivered packet, {got} of {sent} delivered, {:.0} packets/s",
        if gso { "gso" } else { "plain" },
        used as f64 / got.max(1) as f64,
        got as f64 / start.elapsed().as_secs_f64()
    );
}
