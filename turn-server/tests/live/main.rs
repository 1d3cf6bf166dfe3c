//! The whole service on loopback: real sockets, threads, connections.

#![allow(clippy::unwrap_used)]

mod client;
mod differential;
mod discovery;
mod http;
mod load;
mod mobility;
mod proxy;
mod restart;
mod tcp;
mod turn_client_proto;
mod uclient;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use client::{Client, PASSWORD, REALM, USER};
use wice_turn::codec::{Message, Writer, attribute, method};
use wice_turn::io::{Listen, Service, Settings};
use wice_turn::server::Transport;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A service of its own for each test, on ports that the kernel chose.
struct World {
    service: Service,
    settings: Settings,
    folder: PathBuf,
}

impl World {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("wice-turn-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut settings = Settings::new();
        settings.listen = ["udp", "tcp", "tls"]
            .iter()
            .flat_map(|scheme| {
                [
                    format!("{scheme}://127.0.0.1:0"),
                    format!("{scheme}://[::1]:0"),
                ]
            })
            .map(|text| text.parse().unwrap())
            .collect();
        settings.relay_ips = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        settings.allow_peers = vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        settings.users = vec![(USER.into(), PASSWORD.into())];
        settings.realm = REALM.into();
        settings.threads = 2;
        settings.certificate = Some((folder.join("cert.pem"), folder.join("key.pem")));
        certify(&folder);
        change(&mut settings);
        let service = Service::start(&settings).unwrap();
        Self {
            service,
            settings,
            folder,
        }
    }

    fn at(&self, transport: Transport, v6: bool) -> SocketAddr {
        let is = |l: &&Listen| l.transport == transport && l.address.is_ipv6() == v6;
        self.service.listeners().iter().find(is).unwrap().address
    }

    fn client(&self, transport: Transport) -> Client {
        Client::connect(transport, self.at(transport, false))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn certify(folder: &std::path::Path) {
    let made = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

fn echo(ip: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    address
}

/// Odd sizes show padding.
const SIZES: [usize; 8] = [1, 2, 3, 4, 5, 333, 1199, 1400];

fn echoes(client: &mut Client, mut send: impl FnMut(&mut Client, &[u8]), peer: SocketAddr) {
    for (n, size) in SIZES.into_iter().enumerate() {
        let payload = vec![n as u8 + 1; size];
        send(client, &payload);
        let (from, got) = client.payload();
        assert_eq!((from, got), (peer, payload), "{size} bytes");
    }
}

#[test]
fn a_relay_over_every_transport_and_family() {
    let world = World::new(|_| {});
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        for v6 in [false, true] {
            let mut client = Client::connect(transport, world.at(transport, v6));
            assert_eq!(client.binding(), client.local, "{transport:?}");
            let family = if v6 { 2 } else { 1 };
            let relayed =
                client.allocate(&[(attribute::REQUESTED_ADDRESS_FAMILY, vec![family, 0, 0, 0])]);
            let peer = echo(relayed.ip());
            client.permit(peer);
            echoes(&mut client, |c, payload| c.send_to(peer, payload), peer);
            client.bind(0x4000, peer);
            echoes(&mut client, |c, payload| c.send_on(0x4000, payload), peer);
            client.refresh(0);
        }
    }
    assert_eq!(world.service.allocations(), 0);
}

#[test]
fn runs_pass_whole_and_in_order_both_ways() {
    let world = World::new(|_| {});
    let mut client = world.client(Transport::Udp);
    let relayed = client.allocate(&[]);
    let peer = echo(relayed.ip());
    client.bind(0x4000, peer);
    // 30 in one system call: GSO out of the client, GRO into the server, GSO out of it.
    for round in 0..20u8 {
        let payloads: Vec<Vec<u8>> = (0..30)
            .map(|n| [vec![round, n], vec![7; 1000]].concat())
            .collect();
        client.burst_on(0x4000, &payloads);
        let mut got: Vec<Vec<u8>> = (0..30).map(|_| client.payload().1).collect();
        got.sort();
        assert_eq!(got, payloads, "round {round}");
    }
}

#[test]
fn a_reserved_port_is_bound_before_its_client_comes_for_it() {
    // On an address of its own, where no other test takes ports.
    let world = World::new(|settings| settings.relay_ips[0] = "127.0.0.7".parse().unwrap());
    // Whichever threads the two come to.
    for _ in 0..8 {
        let mut first = world.client(Transport::Udp);
        let pair = |writer: &mut Writer| {
            writer.add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            writer.add(attribute::EVEN_PORT, &[0x80]);
        };
        let answer = first.ask(method::ALLOCATE, pair).unwrap();
        let answer = Message::parse(&answer).unwrap();
        let relayed = answer.get(attribute::XOR_RELAYED_ADDRESS).unwrap();
        let mut next = answer.xor_address(relayed).unwrap();
        next.set_port(next.port() + 1);
        let taken = UdpSocket::bind(next).unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);

        let mut second = world.client(Transport::Udp);
        let token = answer.get(attribute::RESERVATION_TOKEN).unwrap();
        let token = (attribute::RESERVATION_TOKEN, token.to_vec());
        assert_eq!(second.allocate(&[token]), next);
        let peer = echo(next.ip());
        second.permit(peer);
        echoes(&mut second, |c, payload| c.send_to(peer, payload), peer);
        second.refresh(0);
        first.refresh(0);
        UdpSocket::bind(next).unwrap();
    }
}

#[test]
fn many_clients_on_every_thread_and_relay_to_relay_between_them() {
    let world = World::new(|_| {});
    let mut clients: Vec<Client> = (0..40).map(|_| world.client(Transport::Udp)).collect();
    let relayed: Vec<SocketAddr> = clients.iter_mut().map(|c| c.allocate(&[])).collect();
    for pair in 0..20 {
        let (a, b) = (pair * 2, pair * 2 + 1);
        clients[a].permit(relayed[b]);
        clients[b].bind(0x4000, relayed[a]);
        clients[a].send_to(relayed[b], b"from a");
        assert_eq!(clients[b].payload(), (relayed[a], b"from a".to_vec()));
        clients[b].send_on(0x4000, b"from b");
        assert_eq!(clients[a].payload(), (relayed[b], b"from b".to_vec()));
    }
    assert_eq!(world.service.allocations(), 40);
    for client in &mut clients {
        client.refresh(0);
    }
    assert_eq!(world.service.allocations(), 0);
}

#[test]
fn a_connection_that_ends_takes_its_allocation_along() {
    let world = World::new(|_| {});
    for transport in [Transport::Tcp, Transport::Tls] {
        let mut client = world.client(transport);
        client.allocate(&[]);
        assert_eq!(world.service.allocations(), 1);
        drop(client);
        let start = Instant::now();
        while world.service.allocations() > 0 {
            assert!(start.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn streams_out_of_step_and_too_long_are_closed() {
    let world = World::new(|_| {});
    let first_frames: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0x00, 0x01, 0x00, 0x04, 1, 2, 3, 4],
        &[0x40, 0x00, 0xFF, 0xFF],
        &[0xFF; 100],
    ];
    for bytes in first_frames {
        let mut stream = TcpStream::connect(world.at(Transport::Tcp, false)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream.write_all(bytes).unwrap();
        let closed = std::io::Read::read(&mut stream, &mut [0; 16]);
        assert!(matches!(closed, Ok(0) | Err(_)), "{bytes:02x?}");
    }
    // Noise instead of TLS.
    let mut stream = TcpStream::connect(world.at(Transport::Tls, false)).unwrap();
    stream.write_all(b"not a handshake at all").unwrap();
    world.client(Transport::Tls).allocate(&[]);
}

#[test]
fn users_and_certificate_are_reloaded_under_traffic() {
    let mut world = World::new(|_| {});
    let mut client = world.client(Transport::Tls);
    let old = client.certificate();
    let relayed = client.allocate(&[]);
    let peer = echo(relayed.ip());
    client.bind(0x4000, peer);
    certify(&world.folder);
    world.settings.users.push(("bob".into(), "builder".into()));
    world.service.reload(&world.settings).unwrap();
    echoes(&mut client, |c, payload| c.send_on(0x4000, payload), peer);
    let mut bob = world.client(Transport::Tls);
    assert_ne!(bob.certificate(), old, "the new certificate");
    bob.login("bob", "builder");
    bob.allocate(&[]);
    // What is wrong changes nothing.
    std::fs::write(world.folder.join("cert.pem"), "rubbish").unwrap();
    let error = world
        .service
        .reload(&world.settings)
        .unwrap_err()
        .to_string();
    assert!(error.contains("cert.pem"), "{error}");
    client.refresh(600);
    echoes(&mut client, |c, payload| c.send_on(0x4000, payload), peer);
}

#[test]
fn a_certificate_of_its_own_making_stays_over_reloads_and_with_files_over_starts() {
    let mut certificates = Vec::new();
    let mut world = World::new(|settings| {
        settings.certificate = None;
        settings.self_signed = Some(vec!["turn.example".into()]);
    });
    certificates.push(world.client(Transport::Tls).certificate());
    world.service.reload(&world.settings).unwrap();
    certificates.push(world.client(Transport::Tls).certificate());
    // Files that are not there are written once; the key is nobody else's to read.
    let (chain, key) = (world.folder.join("own.pem"), world.folder.join("own.key"));
    world.settings.certificate = Some((chain.clone(), key.clone()));
    world.service.reload(&world.settings).unwrap();
    certificates.push(world.client(Transport::Tls).certificate());
    let mode = std::fs::metadata(&key).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&mode.permissions());
    assert_eq!(mode & 0o777, 0o600);
    let again = World::new(|settings| settings.certificate = Some((chain, key)));
    certificates.push(again.client(Transport::Tls).certificate());
    assert_eq!(certificates[0], certificates[1]);
    assert_ne!(certificates[1], certificates[2]);
    assert_eq!(certificates[2], certificates[3]);
    let named = |name: &str| {
        let found = certificates[0].windows(name.len());
        found.into_iter().any(|window| window == name.as_bytes())
    };
    assert!(named("turn.example"));
}

#[test]
fn a_drain_lets_allocations_end() {
    let world = World::new(|_| {});
    let mut client = world.client(Transport::Udp);
    client.allocate(&[]);
    let start = Instant::now();
    assert_eq!(world.service.drain(Duration::from_millis(300)), 1);
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "it waited for the one"
    );
    let mut late = world.client(Transport::Udp);
    assert_eq!(late.try_allocate(&[]), Err(508));
    client.refresh(0);
    assert_eq!(world.service.drain(Duration::from_secs(60)), 0);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_cannot_be_opened_is_said() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = |change: &dyn Fn(&mut Settings)| {
        let mut settings = Settings::new();
        settings.listen = vec!["udp://127.0.0.1:0".parse().unwrap()];
        settings.relay_ips = vec!["127.0.0.1".parse().unwrap()];
        settings.users = vec![(USER.into(), PASSWORD.into())];
        change(&mut settings);
        match Service::start(&settings) {
            Ok(_) => panic!("started"),
            Err(error) => error.to_string(),
        }
    };
    let udp = format!("udp://{}", taken.local_addr().unwrap());
    assert!(start(&|s| s.listen = vec![udp.parse().unwrap()]).contains("another program"));
    let tcp = format!("tcp://{}", listener.local_addr().unwrap());
    assert!(start(&|s| s.listen = vec![tcp.parse().unwrap()]).contains("ss -ltnp"));
    assert!(
        start(&|s| s.listen = vec!["udp://192.0.2.77:3478".parse().unwrap()])
            .contains("ip address")
    );
    let missing =
        |s: &mut Settings| s.certificate = Some(("/nowhere/c.pem".into(), "/nowhere/k.pem".into()));
    assert!(start(&missing).contains("/nowhere/c.pem"));
    // A second server of ours does not share the port in silence.
    let world = World::new(|_| {});
    let ours = format!("udp://{}", world.at(Transport::Udp, false));
    assert!(start(&|s| s.listen = vec![ours.parse().unwrap()]).contains("another program"));
}
