//! Reloads, ends and restarts under traffic.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wice_turn::io::{Service, Settings};
use wice_turn::server::{Transport, mint};

use crate::client::{Client, REALM};
use crate::{World, certify, echo};

/// Where a child serves.
const PORT: &str = "WICE_TURN_TEST_PORT";
/// How many files a child may open.
const FILES: &str = "WICE_TURN_TEST_FILES";
/// What servers of a fleet, and those before and after a restart, share.
const SECRET: &str = "north";

#[test]
fn secrets_users_and_certificates_change_under_traffic_and_nothing_is_lost() {
    let mut world = World::new(|settings| settings.secrets = vec!["0".into()]);
    let stop = AtomicBool::new(false);
    let login = |client: &mut Client, secret: &str| {
        let (name, password) = mint(secret, "carol", u64::from(u32::MAX));
        client.login(&name, &password);
    };
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
            let mut client = world.client(transport);
            login(&mut client, "0");
            let stop = &stop;
            running.push(scope.spawn(move || {
                let relayed = client.allocate(&[]);
                let peer = echo(relayed.ip());
                client.bind(0x4000, peer);
                let mut sent = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    // Every single one comes back, and the allocation is refreshed under the key that it began with.
                    client.send_on(0x4000, &sent.to_be_bytes());
                    assert_eq!(client.payload(), (peer, sent.to_be_bytes().to_vec()));
                    if sent.is_multiple_of(50) {
                        client.refresh(600);
                    }
                    sent += 1;
                }
                sent
            }));
        }
        for n in 1..=20 {
            // The new one first, the old one below it, for as long as nonces and credentials of it are about.
            world.settings.secrets = vec![n.to_string(), (n - 1).to_string()];
            certify(&world.folder);
            world.service.reload(&world.settings).unwrap();
            for transport in [Transport::Udp, Transport::Tls] {
                let mut client = world.client(transport);
                login(&mut client, &n.to_string());
                client.allocate(&[]);
                let mut before = world.client(transport);
                login(&mut before, &(n - 1).to_string());
                before.allocate(&[]);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        for client in running {
            let sent = client.join().unwrap();
            assert!(sent > 100, "{sent} payloads");
        }
    });
}

/// Not a test by itself: the server of the next one, in a process that can be killed.
#[test]
#[ignore = "a child of the next test"]
fn child() {
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let mut settings = Settings::new();
    settings.listen = ["udp", "tcp"]
        .map(|scheme| format!("{scheme}://127.0.0.1:{port}").parse().unwrap())
        .to_vec();
    settings.relay_ips = vec!["127.0.0.1".parse().unwrap()];
    settings.allow_peers = vec!["127.0.0.0/8".parse().unwrap()];
    settings.secrets = vec![SECRET.into()];
    settings.realm = REALM.into();
    settings.threads = 2;
    if let Ok(files) = std::env::var(FILES) {
        let most = files.parse().ok();
        let limit = rustix::process::Rlimit {
            current: most,
            maximum: most,
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    }
    let service = Service::start(&settings).unwrap();
    eprintln!("at {}", service.listeners()[0].address);
    std::thread::sleep(Duration::from_secs(60));
}

struct Server {
    child: Child,
    at: SocketAddr,
}

impl Server {
    fn start(port: u16, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "restart::child", "--ignored", "--nocapture"])
            .env(PORT, port.to_string())
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let at = log
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("at ")?.parse().ok());
        Self {
            child,
            at: at.expect("it says where it serves"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL: nothing is said to anybody.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One that nobody listens at, as far as one can know.
fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

#[test]
fn more_connections_than_open_files_wait_and_cost_nothing() {
    let server = Server::start(free_port(), &[(FILES, "64")]);
    let connect = || std::net::TcpStream::connect(server.at).unwrap();
    let waiting: Vec<_> = (0..150).map(|_| connect()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let ticks = || {
        let path = format!("/proc/{}/stat", server.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        // utime and stime, in hundredths of a second (proc(5)).
        let mut fields = text.rsplit(')').next().unwrap().split_whitespace().skip(11);
        let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
        next() + next()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks() - before;
    assert!(spent < 20, "{spent} hundredths of a second for nothing");
    // UDP goes on meanwhile, and TCP when there is room again.
    Client::connect(Transport::Udp, server.at).binding();
    drop(waiting);
    Client::connect(Transport::Tcp, server.at).binding();
}

#[test]
fn clients_get_through_again_when_a_server_was_killed_and_started_anew() {
    let port = free_port();
    let server = Server::start(port, &[]);
    let at = server.at;
    let (name, password) = mint(SECRET, "carol", u64::from(u32::MAX));
    let mut clients: Vec<(Client, SocketAddr)> = (0..20)
        .map(|n| {
            let transport = [Transport::Udp, Transport::Tcp][n % 2];
            let mut client = Client::connect(transport, at);
            client.login(&name, &password);
            let peer = echo(client.allocate(&[]).ip());
            client.bind(0x4000, peer);
            client.send_on(0x4000, b"before");
            assert_eq!(client.payload().1, b"before");
            (client, peer)
        })
        .collect();
    drop(server);
    let down = Instant::now();
    let server = Server::start(port, &[]);
    assert_eq!(server.at, at);
    let up = down.elapsed();
    for (n, (client, peer)) in clients.iter_mut().enumerate() {
        if n % 2 == 0 {
            // The same socket, and the nonce of before: it is told at once that its allocation is gone.
            assert_eq!(client.try_refresh(600), Err(437));
        } else {
            client.move_away(Transport::Tcp, at);
        }
        client.allocate(&[]);
        client.bind(0x4000, *peer);
        client.send_on(0x4000, b"after");
        assert_eq!(client.payload().1, b"after");
    }
    let through = down.elapsed();
    println!("serving again after {up:?}, 20 clients through after {through:?}");
    assert!(through - up < Duration::from_secs(5), "{through:?}");
}
