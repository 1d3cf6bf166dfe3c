//! Ways to the service: pins, authorities, proxies, and when they break.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use wice::signaling::{Event, Signaling, WebSocketBackend};
use wice_signaling::protocol::ServerPin;
use wice_signaling::server::Transport;

use super::lab::{self, Lab};

async fn reason(node: &mut Signaling) -> String {
    match lab::until(node, |event| matches!(event, Event::Disconnected { .. })).await {
        Event::Disconnected { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused() {
    let lab = Lab::new("pin");
    let server = lab.serve().await;
    let mut config = lab.client_config(&server, &lab.key(1));
    config.pin = Some(ServerPin([0x9f; 32]));
    let mut node = Signaling::start(WebSocketBackend::new(config));
    let reason = reason(&mut node).await;
    let sent = server.pin.unwrap().short();
    let expected = format!(
        "signaling server has another certificate than this token expects\n  token pins \
         sha256:9f9f…, server sent {sent}: TLS is being intercepted"
    );
    assert!(reason.starts_with(&expected), "{reason}");
    server.stop().await;
}

#[tokio::test]
async fn the_certificate_survives_a_restart_and_only_its_owner_reads_the_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new("keep");
    let first = lab.serve().await;
    let pin = first.pin;
    first.stop().await;
    let second = lab.serve().await;
    assert_eq!(second.pin, pin);
    let mode = |name: &str| {
        std::fs::metadata(lab.state_dir().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("tls-key.der"), mode("service-secret"), mode("")),
        (0o600, 0o600, 0o700)
    );
    second.stop().await;
}

#[tokio::test]
async fn a_given_certificate_is_trusted_through_a_ca_file_only() {
    let lab = Lab::new("ca");
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::create_dir_all(lab.state_dir()).unwrap();
    let (certificate, key) = (lab.state_dir().join("c.pem"), lab.state_dir().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut config = lab.config();
    config.transport = Transport::Certificate {
        certificate: certificate.clone(),
        key,
    };
    let server = lab.serve_with(config).await;
    assert_eq!(server.pin, None);

    let mut trusting = lab.client_config(&server, &lab.key(1));
    trusting.ca_file = Some(certificate);
    let mut node = Signaling::start(WebSocketBackend::new(trusting));
    lab::until_connected(&mut node).await;

    let mut other = lab.connect(&server, &lab.key(2));
    let reason = reason(&mut other).await;
    assert!(reason.contains("TLS") || reason.contains("CA"), "{reason}");
    server.stop().await;
}

#[tokio::test]
async fn without_tls_behind_a_proxy() {
    let lab = Lab::new("plain");
    let mut config = lab.config();
    config.transport = Transport::Plain;
    let server = lab.serve_with(config).await;
    let mut node = lab.connect(&server, &lab.key(1));
    lab::until_connected(&mut node).await;
    server.stop().await;
}

/// Carries bytes between a client and `target`; stops carrying while `cut`. With `connect` it is
/// an HTTP proxy.
async fn middlebox(target: SocketAddr, connect: bool, cut: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let cut = cut.clone();
            tokio::spawn(async move {
                if connect {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(near.read_u8().await.unwrap());
                    }
                    assert!(head.starts_with(format!("CONNECT {target} HTTP/1.1\r\n").as_bytes()));
                    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                }
                let Ok(far) = TcpStream::connect(target).await else {
                    return;
                };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let up = tokio::spawn(carry(near_read, far_write, cut.clone()));
                carry(far_read, near_write, cut).await;
                let _ = up.await;
            });
        }
    });
    address
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    cut: Arc<AtomicBool>,
) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if cut.load(Ordering::Relaxed) {
            // As a NAT that forgot the connection: silence, no reset.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn through_an_http_proxy_and_a_socket_hook() {
    let lab = Lab::new("proxy");
    let server = lab.serve().await;
    let target = SocketAddr::from(([127, 0, 0, 1], server.address.port()));
    let proxy = middlebox(target, true, Arc::default()).await;
    let hooked = Arc::new(AtomicUsize::new(0));
    let mut config = lab.client_config(&server, &lab.key(1));
    config.proxy = Some(format!("http://{proxy}").parse().unwrap());
    let count = hooked.clone();
    config.socket_hook = Some(Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }));
    let mut node = Signaling::start(WebSocketBackend::new(config));
    lab::until_connected(&mut node).await;
    assert_eq!(hooked.load(Ordering::Relaxed), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_dead_connection_is_noticed_when_the_network_changes() {
    let lab = Lab::new("dead");
    let server = lab.serve().await;
    let cut = Arc::new(AtomicBool::new(false));
    let target = SocketAddr::from(([127, 0, 0, 1], server.address.port()));
    let middle = middlebox(target, false, cut.clone()).await;
    let mut config = lab.client_config(&server, &lab.key(1));
    config.url = format!("wss://{middle}").parse().unwrap();
    let mut node = Signaling::start(WebSocketBackend::new(config));
    lab::until_connected(&mut node).await;

    // A living connection survives the question.
    node.network_changed();
    tokio::time::sleep(Duration::from_secs(4)).await;
    cut.store(true, Ordering::Relaxed);
    let start = Instant::now();
    node.network_changed();
    assert!(reason(&mut node).await.contains("silent"));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    cut.store(false, Ordering::Relaxed);
    lab::until_connected(&mut node).await;
    println!("dead connection replaced after {:?}", start.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn a_service_that_is_down_is_waited_for() {
    let lab = Lab::new("down");
    let server = lab.serve().await;
    let (address, config) = (server.address, lab.client_config(&server, &lab.key(1)));
    server.stop().await;
    let mut node = Signaling::start(WebSocketBackend::new(config));
    let reason = reason(&mut node).await;
    assert!(reason.contains("cannot reach 127.0.0.1"), "{reason}");
    let server = lab.serve_at(address).await;
    lab::until_connected(&mut node).await;
    server.stop().await;
}

/// As [`carry`], each byte `delay` later.
async fn carry_late(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(1024);
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if sender
            .send((Instant::now() + delay, buffer[..len].to_vec()))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// TLS, upgrade, then Hello and records together: three round trips after TCP's own. Servers are
/// known after two.
#[tokio::test]
async fn joining_takes_three_round_trips_after_tcp() {
    const DELAY: Duration = Duration::from_millis(100);
    let round_trips = |since: Instant| since.elapsed().as_secs_f64() / (2.0 * DELAY.as_secs_f64());
    let lab = Lab::new("trips");
    let server = lab.serve().await;
    let mut other = lab.connect(&server, &lab.key(2));
    other.publish(wice_signaling::protocol::RecordKind::Advert, vec![2]);
    lab::until_connected(&mut other).await;
    lab::until_records(&server, 1).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let middle = listener.local_addr().unwrap();
    let target = ("127.0.0.1", server.address.port());
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(target).await.unwrap();
        for stream in [&near, &far] {
            stream.set_nodelay(true).unwrap();
        }
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::spawn(carry_late(near_read, far_write, DELAY));
        carry_late(far_read, near_write, DELAY).await;
    });
    let mut config = lab.client_config(&server, &lab.key(1));
    config.url = format!("wss://{middle}").parse().unwrap();
    let start = Instant::now();
    let mut node = Signaling::start(WebSocketBackend::new(config));
    node.publish(wice_signaling::protocol::RecordKind::Advert, vec![1]);
    lab::next_servers(&mut node).await;
    let servers = round_trips(start);
    lab::next_record(&mut other).await;
    let published = round_trips(start);
    lab::next_record(&mut node).await;
    let received = round_trips(start);
    println!(
        "round trips to servers {servers:.2}, published {published:.2}, received {received:.2}"
    );
    assert!(servers < 2.9 && published < 3.4 && received < 3.9);
    server.stop().await;
}
