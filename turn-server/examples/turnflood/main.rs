//! Floods a TURN server on this machine and says what a delivered packet cost it: `turnflood SERVER PID SECONDS CLIENTS
//! up|down|relay|overload-up|overload-down|allocate [gso] [bare]`. The server must know alice:wonderland in realm example.org and
//! allow peers in 127.0.0.0/8; `turnflood serve PORT` is one, with one thread. `turnflood forward PORT [lone]` is no TURN server but
//! what one is measured against (`bare`): it takes headers off and puts them on. Overload is what one processor can send, and
//! what counts is how long ago the packets that arrive were sent. `benches/turn` has them take turns.

mod client;
mod servers;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::Client;
use wice_turn::codec::{CHANNEL_HEADER_LEN, channel_header};

/// Bytes of a payload: a WireGuard packet of 1,140 bytes inside.
const PAYLOAD: usize = 1200;
/// Packets in a run.
const RUN: usize = 40;
const CHANNEL: u16 = 0x4000;
/// Clients that allocate at once: one alone would be charged for waking the server, again and again.
const AT_ONCE: usize = 64;
/// Between two runs of each client, below what a thread carries, so that what is lost is not paid for.
const PAUSE: Duration = Duration::from_micros(500);
/// An overload has lasted so long before what arrives is looked at: the server must see it first.
const ONSET: Duration = Duration::from_millis(500);
/// Sinks run before all else that is not real time: what they tell is the server's queues, not who of them has its turn.
const SINK_PRIORITY: i32 = 1;
/// What is on its way when the last has been sent.
const REST: Duration = Duration::from_millis(300);
const USAGE: &str = "usage: turnflood SERVER PID SECONDS CLIENTS up|down|relay|overload-up|overload-down|allocate [gso] [bare]
       turnflood serve PORT
       turnflood forward PORT [lone]";

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

/// What came to a sink.
#[derive(Default)]
struct Arrived {
    packets: u64,
    /// Of the first packet of each read: how long ago it was sent.
    delays: Vec<Duration>,
}

/// Takes what arrives, packets of `unit` bytes with the time of sending at `stamp`.
fn sink(
    socket: UdpSocket,
    stop: &Arc<AtomicBool>,
    (unit, stamp): (usize, usize),
    start: Instant,
) -> JoinHandle<Arrived> {
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20);
    set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("set");
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let priority = libc::sched_param {
            sched_priority: SINK_PRIORITY,
        };
        // SAFETY: the parameter lives for the call. Without the right to it delays are longer.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
        let mut arrived = Arrived::default();
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            let Ok(len) = socket.recv(&mut buffer) else {
                continue;
            };
            arrived.packets += (len / unit) as u64;
            if let Some(sent) = buffer[..len].get(stamp..).and_then(<[u8]>::first_chunk) {
                let sent = Duration::from_nanos(u64::from_ne_bytes(*sent));
                if sent >= ONSET {
                    arrived.delays.push(start.elapsed().saturating_sub(sent));
                }
            }
        }
        arrived
    })
}

/// One source of packets.
struct Source {
    socket: UdpSocket,
    /// `None` where the socket is connected.
    to: Option<SocketAddr>,
    /// A run of them.
    run: Vec<u8>,
    unit: usize,
    /// Where in each its time stands.
    stamp: usize,
    gso: bool,
}

impl Source {
    /// Sends a run; returns how many packets left.
    fn send(&mut self, start: Instant) -> u64 {
        let now = start.elapsed().as_nanos() as u64;
        for unit in self.run.chunks_mut(self.unit) {
            unit[self.stamp..][..8].copy_from_slice(&now.to_ne_bytes());
        }
        let size = if self.gso { self.run.len() } else { self.unit };
        let sends = self.run.chunks(size).filter(|bytes| {
            let sent = match self.to {
                Some(to) => self.socket.send_to(bytes, to),
                None => self.socket.send(bytes),
            };
            sent.is_ok()
        });
        (sends.count() * size / self.unit) as u64
    }
}

struct Flood {
    server: SocketAddr,
    gso: bool,
    bare: bool,
    stop: Arc<AtomicBool>,
    start: Instant,
    sources: Vec<Source>,
    sinks: Vec<JoinHandle<Arrived>>,
}

impl Flood {
    /// A client with a channel to `peer`, or what the bare forwarder has instead; and its relayed address.
    fn client(&self, peer: SocketAddr) -> (UdpSocket, SocketAddr) {
        if self.bare {
            let socket = Client::open(self.server).socket;
            socket.send(&peer.port().to_be_bytes()).expect("sent");
            let mut port = [0; 2];
            assert_eq!(socket.recv(&mut port).expect("an answer"), 2);
            let relayed = SocketAddr::new(self.server.ip(), u16::from_be_bytes(port));
            return (socket, relayed);
        }
        let (mut client, relayed) = Client::allocate(self.server);
        client.bind(peer);
        (client.socket, relayed)
    }

    fn source(&mut self, socket: UdpSocket, to: Option<SocketAddr>, framed: bool) {
        let header = channel_header(CHANNEL, PAYLOAD).expect("a header");
        let stamp = if framed { CHANNEL_HEADER_LEN } else { 0 };
        let unit = [&header[..stamp], &[7; PAYLOAD]].concat();
        if self.gso {
            set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, unit.len() as i32);
        }
        self.sources.push(Source {
            socket,
            to,
            run: unit.repeat(RUN),
            unit: unit.len(),
            stamp,
            gso: self.gso,
        });
    }

    fn sink(&mut self, socket: UdpSocket, framed: bool) {
        let stamp = if framed { CHANNEL_HEADER_LEN } else { 0 };
        let unit = (stamp + PAYLOAD, stamp);
        self.sinks.push(sink(socket, &self.stop, unit, self.start));
    }

    fn set_up(&mut self, mode: &str, clients: usize) {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let at = peer.local_addr().expect("an address");
        match mode {
            "up" | "overload-up" => {
                for _ in 0..clients {
                    let (client, _) = self.client(at);
                    self.source(client, None, true);
                }
                self.sink(peer, false);
            }
            "down" | "overload-down" => {
                for _ in 0..clients {
                    let (client, relayed) = self.client(at);
                    self.sink(client, true);
                    let peer = peer.try_clone().expect("a socket");
                    self.source(peer, Some(relayed), false);
                }
            }
            "relay" => {
                for _ in 0..clients {
                    let ((mut a, at_a), (mut b, at_b)) =
                        (Client::allocate(self.server), Client::allocate(self.server));
                    a.bind(at_b);
                    b.bind(at_a);
                    self.source(a.socket, None, true);
                    self.sink(b.socket, true);
                }
            }
            _ => panic!("{USAGE}"),
        }
    }

    /// Sends for so long, and returns how many packets left.
    fn run(&mut self, lasting: Duration, pause: Option<Duration>) -> u64 {
        let (begin, mut sent) = (Instant::now(), 0);
        while begin.elapsed() < lasting {
            for source in &mut self.sources {
                sent += source.send(self.start);
            }
            if let Some(pause) = pause {
                std::thread::sleep(pause);
            }
        }
        sent
    }

    fn end(self) -> Arrived {
        std::thread::sleep(REST);
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Arrived::default();
        for sink in self.sinks {
            let arrived = sink.join().expect("a sink");
            all.packets += arrived.packets;
            all.delays.extend(arrived.delays);
        }
        all.delays.sort_unstable();
        all
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let (server, pid, seconds, clients, mode, rest) = match words[..] {
        ["serve", port] => return servers::serve(port.parse().expect("a port")),
        ["forward", port] => return servers::forward(port.parse().expect("a port"), false),
        ["forward", port, "lone"] => return servers::forward(port.parse().expect("a port"), true),
        [server, pid, seconds, clients, mode, ref rest @ ..] => {
            (server, pid, seconds, clients, mode, rest)
        }
        _ => panic!("{USAGE}"),
    };
    let server: SocketAddr = server.parse().expect("an address");
    let lasting = Duration::from_secs(seconds.parse().expect("seconds"));
    let clients: usize = clients.parse().expect("clients");
    if mode == "allocate" {
        return allocate(server, pid, clients);
    }
    let mut flood = Flood {
        server,
        gso: rest.contains(&"gso"),
        bare: rest.contains(&"bare"),
        stop: Arc::new(AtomicBool::new(false)),
        start: Instant::now(),
        sources: Vec::new(),
        sinks: Vec::new(),
    };
    flood.set_up(mode, clients);
    let overload = mode.starts_with("overload");
    let before = cpu(pid);
    let sent = flood.run(lasting, (!overload).then_some(PAUSE));
    let arrived = flood.end();
    let (used, got) = (cpu(pid) - before, arrived.packets);
    if overload {
        let at = |part: f64| {
            let index = (arrived.delays.len() as f64 * part) as usize;
            arrived
                .delays
                .get(index)
                .map_or(0.0, |delay| delay.as_secs_f64() * 1e3)
        };
        let (median, p99) = (at(0.5), at(0.99));
        println!(
            "{mode} {clients} clients: {median:.2} ms old at the median, {p99:.2} ms at p99, {got} of {sent} delivered"
        );
        return;
    }
    println!(
        "{mode} {clients} clients {}: {:.2} µs a delivered packet, {got} of {sent} delivered, {:.0} packets/s",
        rest.join(" "),
        used as f64 / got.max(1) as f64,
        got as f64 / lasting.as_secs_f64()
    );
}
