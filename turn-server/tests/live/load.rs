//! Many clients, many allocations, a flood beside quiet clients, and the soak.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wice_turn::io::Settings;
use wice_turn::server::{Rate, Transport};

use crate::client::Client;
use crate::{World, certify, echo};

/// How long another client's packets may take there and back, at the median, while one client floods.
const FLOOD_MEDIAN: Duration = Duration::from_millis(5);
/// Threads that drive clients.
const DRIVERS: usize = 8;

/// All clients of these tests are one source and one user.
fn unlimited(settings: &mut Settings) {
    settings.quotas.user = 0;
    settings.quotas.source = 0;
    settings.challenges = Rate {
        per_second: 0,
        burst: 0,
    };
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_thousand_clients_at_once() {
    const CLIENTS: usize = 1000;
    let world = World::new(unlimited);
    std::thread::scope(|scope| {
        for _ in 0..DRIVERS {
            scope.spawn(|| {
                // One for all would lose some: its receive buffer is the kernel's usual one.
                let peer = echo("127.0.0.1".parse().unwrap());
                let mut clients: Vec<Client> = (0..CLIENTS / DRIVERS)
                    .map(|n| {
                        let transport = [Transport::Udp, Transport::Udp, Transport::Tcp][n % 3];
                        let mut client = world.client(transport);
                        client.allocate(&[]);
                        client.bind(0x4000, peer);
                        client
                    })
                    .collect();
                for round in 0..5u8 {
                    // All send before any reads.
                    for client in &mut clients {
                        client.send_on(0x4000, &[round; 100]);
                    }
                    for client in &mut clients {
                        assert_eq!(client.payload(), (peer, vec![round; 100]));
                    }
                }
                for client in &mut clients {
                    client.refresh(0);
                }
            });
        }
    });
    assert_eq!(world.service.allocations(), 0);
}

#[test]
fn ten_thousand_allocations_and_a_client_among_them() {
    const ALLOCATIONS: usize = 10_000;
    let world = World::new(|settings| {
        unlimited(settings);
        // Of both families an allocation counts as two open files. Other tests need ports, too.
        settings.relay_ips = vec!["127.0.0.9".parse().unwrap()];
    });
    let before = resident();
    std::thread::scope(|scope| {
        for driver in 0..DRIVERS {
            let at = world.at(Transport::Udp, false);
            scope.spawn(move || {
                for n in 0..ALLOCATIONS / DRIVERS {
                    // The socket closes, the allocation stays until its time is over.
                    let local = ([127, 0, 1, driver as u8], 20_000 + n as u16);
                    Client::connect_from(local.into(), at).allocate(&[]);
                }
            });
        }
    });
    assert_eq!(world.service.allocations() as usize, ALLOCATIONS);
    let bytes = resident().saturating_sub(before) / ALLOCATIONS;
    println!("{bytes} bytes of memory an allocation, with whatever other tests took meanwhile");
    let mut client = world.client(Transport::Udp);
    let peer = echo(client.allocate(&[]).ip());
    client.bind(0x4000, peer);
    let median = median((0..200).map(|n| round_trip(&mut client, n)).collect());
    assert!(median < FLOOD_MEDIAN, "{median:?}");
}

#[test]
fn one_clients_flood_does_not_hold_up_anothers_packets() {
    // One thread serves both. On a busy machine a round may be another program's: one of three must hold.
    let medians: Vec<Duration> = (0..3).map(|_| flooded()).collect();
    assert!(medians.iter().any(|m| *m < FLOOD_MEDIAN), "{medians:?}");
}

/// The median there and back of a quiet client beside one that sends as fast as it can.
fn flooded() -> Duration {
    let world = World::new(|settings| settings.threads = 1);
    let mut flooder = world.client(Transport::Udp);
    let mut quiet = world.client(Transport::Udp);
    flooder.allocate(&[]);
    let peer = echo(quiet.allocate(&[]).ip());
    quiet.bind(0x4000, peer);
    // Nobody reads there.
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    flooder.bind(0x4001, sink.local_addr().unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let payloads = vec![vec![7; 1200]; 40];
            while !stop.load(Ordering::Relaxed) {
                flooder.burst_on(0x4001, &payloads);
            }
        });
        let times = (0..200).map(|n| {
            std::thread::sleep(Duration::from_millis(1));
            round_trip(&mut quiet, n)
        });
        let median = median(times.collect());
        stop.store(true, Ordering::Relaxed);
        median
    })
}

/// One payload there and back; a lost one counts as long as its client waits.
fn round_trip(client: &mut Client, n: u32) -> Duration {
    let start = Instant::now();
    loop {
        client.send_on(0x4000, &n.to_be_bytes());
        if let Some((_, payload)) = client.payload_within(Duration::from_millis(200))
            && payload == n.to_be_bytes()
        {
            return start.elapsed();
        }
    }
}

/// Everything at once for a long time: `make soak-turn`. Clients come and go in every way, move, relay over TCP, are refused
/// and vanish, while secrets and certificates change. In the end nothing is left, and memory has not grown.
#[test]
#[ignore = "minutes: make soak-turn"]
fn soak() {
    const SECONDS: &str = "SOAK_SECONDS";
    /// Room for caches that fill late and for the noise of an allocator.
    const GROWTH: usize = 24 << 20;
    /// Lives in which one datagram may be lost.
    const LIVES_A_LOSS: u64 = 50_000;
    let seconds = std::env::var(SECONDS).map_or(1800, |text| text.parse().unwrap());
    let mut world = World::new(|settings| {
        unlimited(settings);
        settings.tcp_relay = true;
    });
    let peer = echo("127.0.0.1".parse().unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp_peer = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut out = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut out);
            });
        }
    });
    let stop = AtomicBool::new(false);
    let (done, resent) = (AtomicU64::new(0), AtomicU64::new(0));
    let places: Vec<SocketAddr> = [Transport::Udp, Transport::Tcp, Transport::Tls]
        .map(|transport| world.at(transport, false))
        .to_vec();
    let mut after_warm_up = 0;
    std::thread::scope(|scope| {
        for driver in 0..DRIVERS {
            let (stop, done, resent, places) = (&stop, &done, &resent, &places);
            scope.spawn(move || {
                let mut n = driver;
                while !stop.load(Ordering::Relaxed) {
                    resent.fetch_add(live_a_life(n, places, peer, tcp_peer), Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                    n += DRIVERS;
                }
            });
        }
        let start = Instant::now();
        let warm_up = Duration::from_secs(seconds / 4);
        while start.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_secs(1));
            certify(&world.folder);
            world.settings.users.retain(|(name, _)| name != "guest");
            world.settings.users.push(("guest".into(), "x".into()));
            world.service.reload(&world.settings).unwrap();
            if after_warm_up == 0 && start.elapsed() >= warm_up {
                after_warm_up = resident();
            }
            if start.elapsed().as_secs().is_multiple_of(15) {
                println!(
                    "{:5} s: {} lives, {} allocations, {} MB",
                    start.elapsed().as_secs(),
                    done.load(Ordering::Relaxed),
                    world.service.allocations(),
                    resident() >> 20
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let grown = resident().saturating_sub(after_warm_up);
    let (done, resent) = (done.into_inner(), resent.into_inner());
    println!("{done} lives, {resent} datagrams sent again, {grown} bytes grown");
    // UDP may lose some where the machine is busy; each life sends some twenty.
    assert!(resent <= 1 + done / LIVES_A_LOSS, "{resent} datagrams lost");
    assert!(
        grown < GROWTH,
        "{grown} bytes more than after a quarter of the time"
    );
    // Those of vanished clients are there until their time is over; a drain that does not wait says how many.
    let vanished = world.service.drain(Duration::ZERO);
    println!("{vanished} allocations of clients that vanished");
}

/// What one client does, chosen by a number; returns how many datagrams it sent again.
fn live_a_life(n: usize, places: &[SocketAddr], peer: SocketAddr, tcp_peer: SocketAddr) -> u64 {
    let transports = [Transport::Udp, Transport::Tcp, Transport::Tls];
    let connect = |n: usize| Client::connect(transports[n % 3], places[n % 3]);
    let mut client = connect(n);
    client.resent = Some(0);
    match n % 11 {
        // Refused: a wrong password, a denied peer.
        0 => {
            client.login("alice", "wrong");
            assert_eq!(client.try_allocate(&[]), Err(401));
        }
        // Over TCP.
        1 | 2 => {
            let mut control = connect(1 + n % 2);
            control.allocate_tcp(&[]).unwrap();
            let connection = control.connect_to(tcp_peer).unwrap();
            let mut data = connect(1 + n % 2);
            data.bind_connection(connection).unwrap();
            data.raw_write(b"over TCP");
            let mut got = Vec::new();
            while got.len() < 8 {
                got.extend(data.raw_read());
            }
            assert_eq!(got, b"over TCP");
            if n.is_multiple_of(2) {
                control.refresh(0);
            }
        }
        // Moves twice.
        3..=5 => {
            let (_, mut ticket) = client.allocate_movable();
            client.bind(0x4000, peer);
            for step in 1..3 {
                client.move_away(transports[(n + step) % 3], places[(n + step) % 3]);
                ticket = client.show(&ticket).unwrap();
                client.send_on(0x4000, b"moved");
                assert_eq!(client.payload().1, b"moved");
            }
            client.refresh(0);
        }
        // Stays a while, and ends as it should.
        _ => {
            client.allocate(&[]);
            client.bind(0x4000, peer);
            for round in 0..20 {
                client.send_on(0x4000, &[round; 500]);
                assert_eq!(client.payload().1, [round; 500]);
            }
            client.refresh(0);
        }
    }
    client.resent.unwrap_or(0)
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
