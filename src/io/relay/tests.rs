//! Connections against small servers on loopback.

use std::time::Instant;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::io::dial::Fwmark;
use crate::io::roots::RootsError;

/// Longer than anything on loopback takes.
const PATIENCE: Duration = Duration::from_secs(5);

type Events = mpsc::Receiver<(u64, RelayEvent)>;

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        host: Host::Address(address.ip()),
        port: address.port(),
        tls: None,
        proxy: None,
        mark: Fwmark::default(),
    }
}

fn open(endpoint: Endpoint) -> (RelayConnection, Events) {
    let (sender, events) = mpsc::channel(64);
    (RelayConnection::open(7, endpoint, sender), events)
}

async fn next(events: &mut Events) -> RelayEvent {
    let event = timeout(PATIENCE, events.recv()).await;
    let (id, event) = event.expect("in time").expect("an event");
    assert_eq!(id, 7);
    event
}

async fn connected(events: &mut Events) -> SocketAddr {
    match next(events).await {
        RelayEvent::Connected { remote, .. } => remote,
        other @ (RelayEvent::Data(_) | RelayEvent::Closed(_)) => {
            panic!("not connected but {other:?}")
        }
    }
}

async fn closed(events: &mut Events) -> CloseReason {
    loop {
        if let RelayEvent::Closed(reason) = next(events).await {
            return reason;
        }
    }
}

async fn data(events: &mut Events, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        match next(events).await {
            RelayEvent::Data(bytes) => all.extend_from_slice(&bytes),
            other @ (RelayEvent::Connected { .. } | RelayEvent::Closed(_)) => {
                panic!("no data but {other:?}")
            }
        }
    }
    all
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

async fn echo<S: AsyncRead + AsyncWrite>(stream: S) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

async fn echo_server() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        echo(stream).await;
    });
    address
}

struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: PrivateKeyDer<'static>,
}

fn identity(name: &str) -> Identity {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("made");
    let key = made.signing_key.serialize_pem();
    Identity {
        certificate: made.cert.der().clone(),
        pem: made.cert.pem(),
        key: PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
    }
}

async fn tls_echo_server(identity: &Identity) -> SocketAddr {
    let (listener, address) = listener().await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        if let Ok(stream) = acceptor.accept(stream).await {
            echo(stream).await;
        }
    });
    address
}

/// A proxy that answers one CONNECT with `answer` and, if it is a 200, connects to `target`.
async fn proxy_server(
    answer: &'static str,
    target: SocketAddr,
) -> (SocketAddr, Arc<std::sync::Mutex<String>>) {
    let (listener, address) = listener().await;
    let seen = Arc::new(std::sync::Mutex::new(String::new()));
    let request = Arc::clone(&seen);
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        let mut header = Vec::new();
        while !header.ends_with(b"\r\n\r\n") {
            header.push(client.read_u8().await.expect("a byte"));
        }
        *request.lock().expect("whole") = String::from_utf8(header).expect("text");
        client.write_all(answer.as_bytes()).await.expect("written");
        if answer.contains(" 200 ") {
            let mut server = TcpStream::connect(target).await.expect("the target");
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    });
    (address, seen)
}

#[tokio::test]
async fn frames_go_out_and_bytes_come_back() {
    let address = echo_server().await;
    let (connection, mut events) = open(endpoint(address));
    assert_eq!(connected(&mut events).await, address);
    assert!(connection.send(vec![1; 100], false));
    assert!(connection.send(vec![2; 100], true));
    let back = data(&mut events, 200).await;
    assert_eq!(back, [[1; 100], [2; 100]].concat());
    connection.close();
    assert!(matches!(closed(&mut events).await, CloseReason::Asked));
    assert_eq!(connection.counters().frames, 2);
    assert!(!connection.send(vec![3], false));
}

#[tokio::test]
async fn requests_queued_before_a_close_still_go_out() {
    let (listener, address) = listener().await;
    let (connection, mut events) = open(endpoint(address));
    connected(&mut events).await;
    connection.send(vec![9; 20], false);
    connection.close();
    let (mut stream, _) = listener.accept().await.expect("a client");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.expect("read");
    assert_eq!(all, [9; 20]);
    assert!(matches!(closed(&mut events).await, CloseReason::Asked));
}

#[tokio::test]
async fn a_relay_that_goes_is_reported() {
    let (listener, address) = listener().await;
    let (_connection, mut events) = open(endpoint(address));
    drop(listener.accept().await.expect("a client"));
    connected(&mut events).await;
    assert!(matches!(closed(&mut events).await, CloseReason::ByRelay));
}

#[tokio::test]
async fn what_prevents_a_connection_has_a_name() {
    let (listener, address) = listener().await;
    drop(listener);
    let (_connection, mut events) = open(endpoint(address));
    let reason = closed(&mut events).await;
    assert!(
        matches!(reason, CloseReason::Dial(DialError::Connect { .. })),
        "{reason}"
    );
    let mut no_such_name = endpoint(address);
    no_such_name.host = "relay.invalid".parse().expect("a name");
    let (_connection, mut events) = open(no_such_name);
    let reason = closed(&mut events).await;
    assert!(
        matches!(reason, CloseReason::Dial(DialError::Resolve { .. })),
        "{reason}"
    );
}

#[tokio::test]
async fn a_relay_that_takes_nothing_gets_whole_fresh_frames_only() {
    const FRAME: usize = 1400;
    let (listener, address) = listener().await;
    let (connection, mut events) = open(endpoint(address));
    connected(&mut events).await;
    let (mut stream, _) = listener.accept().await.expect("a client");
    // More than the socket buffers hold, so that some of it must wait in the queue.
    let mut sent = 0_u32;
    while connection.counters().full == 0 {
        let mut frame = vec![0; FRAME];
        frame[..4].copy_from_slice(&sent.to_be_bytes());
        connection.send(frame, true);
        sent += 1;
        if sent.is_multiple_of(500) {
            tokio::task::yield_now().await;
        }
    }
    connection.send(vec![0xff; FRAME], false);
    sleep(MAX_AGE * 2).await;
    let mut frames = Vec::new();
    let start = Instant::now();
    loop {
        let mut frame = vec![0; FRAME];
        stream.read_exact(&mut frame).await.expect("a whole frame");
        assert!(start.elapsed() < PATIENCE);
        if frame[0] == 0xff {
            break;
        }
        frames.push(u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]));
    }
    let counters = connection.counters();
    assert!(frames.is_sorted_by(|a, b| a < b), "in order, none twice");
    assert!(counters.stale > 500, "{counters:?}");
    assert_eq!(
        counters.stale + counters.full + frames.len() as u64,
        u64::from(sent)
    );
    connection.close();
    closed(&mut events).await;
}

#[tokio::test]
async fn a_stuck_relay_does_not_hold_up_a_close() {
    let (listener, address) = listener().await;
    let (connection, mut events) = open(endpoint(address));
    connected(&mut events).await;
    let _stream = listener.accept().await.expect("a client");
    while connection.counters().full == 0 {
        connection.send(vec![0; 64 * 1024], true);
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    connection.close();
    assert!(matches!(closed(&mut events).await, CloseReason::Asked));
    assert!(start.elapsed() < CLOSE_TIMEOUT * 2);
}

#[tokio::test]
async fn tls_with_a_ca_file_or_a_pin() {
    let identity = identity("relay.test");
    let path = std::env::temp_dir().join(format!("wice-relay-ca-{}.pem", std::process::id()));
    std::fs::write(&path, &identity.pem).expect("written");
    let digest: [u8; 32] = Sha256::digest(&identity.certificate).into();
    let name = Some("relay.test".to_owned());
    for tls in [
        Tls::new(&Trust::CaFile(path.clone()), name.clone()),
        Tls::new(&Trust::Pin(digest), None),
    ] {
        let mut endpoint = endpoint(tls_echo_server(&identity).await);
        endpoint.tls = Some(tls.expect("set up"));
        let (connection, mut events) = open(endpoint);
        connected(&mut events).await;
        connection.send(vec![5; 1000], false);
        assert_eq!(data(&mut events, 1000).await, [5; 1000]);
    }
    for tls in [
        Tls::new(&Trust::CaFile(path.clone()), Some("other.test".to_owned())),
        Tls::new(&Trust::Pin([0; 32]), None),
        Tls::new(&Trust::System, name),
    ] {
        let mut endpoint = endpoint(tls_echo_server(&identity).await);
        endpoint.tls = Some(tls.expect("set up"));
        let (_connection, mut events) = open(endpoint);
        let reason = closed(&mut events).await;
        assert!(matches!(reason, CloseReason::Certificate(_)), "{reason}");
    }
    std::fs::remove_file(&path).expect("removed");
    let missing = Tls::new(&Trust::CaFile(path), None);
    assert!(matches!(
        missing,
        Err(TrustError::Roots(RootsError::File { .. }))
    ));
}

#[tokio::test]
async fn tls_with_something_else_is_named() {
    let mut endpoint = endpoint(echo_server().await);
    endpoint.tls = Some(Tls::new(&Trust::Pin([0; 32]), None).expect("set up"));
    let (_connection, mut events) = open(endpoint);
    let reason = closed(&mut events).await;
    assert!(matches!(reason, CloseReason::Tls(_)), "{reason}");
}

#[tokio::test]
async fn a_proxy_lets_through() {
    let target = echo_server().await;
    let answer = "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
    let (address, request) = proxy_server(answer, target).await;
    let mut endpoint = endpoint(target);
    endpoint.host = "relay.test".parse().expect("a name");
    let url = format!("http://me:secret@{address}");
    endpoint.proxy = Some(url.parse().expect("a URL"));
    let (connection, mut events) = open(endpoint);
    assert_eq!(connected(&mut events).await, address);
    connection.send(vec![1; 10], false);
    assert_eq!(data(&mut events, 10).await, [1; 10]);
    let port = target.port();
    let expected = format!(
        "CONNECT relay.test:{port} HTTP/1.1\r\nHost: relay.test:{port}\r\n\
         Proxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n"
    );
    assert_eq!(*request.lock().expect("whole"), expected);
}

#[tokio::test]
async fn what_a_proxy_refuses_has_a_name() {
    async fn refused(answer: &'static str, user: &str) -> ProxyError {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let (address, _) = proxy_server(answer, nowhere).await;
        let mut endpoint = endpoint(nowhere);
        let url = format!("http://{user}{address}");
        endpoint.proxy = Some(url.parse().expect("a URL"));
        let (_connection, mut events) = open(endpoint);
        let reason = closed(&mut events).await;
        let CloseReason::Proxy(error) = reason else {
            panic!("not the proxy but {reason}");
        };
        error
    }
    let denied = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno";
    let error = refused(denied, "").await;
    assert!(matches!(error, ProxyError::CredentialsNeeded), "{error}");
    let error = refused(denied, "me:secret@").await;
    assert!(matches!(error, ProxyError::CredentialsRefused), "{error}");
    let error = refused("HTTP/1.1 403 Forbidden\r\n\r\n", "").await;
    assert!(
        matches!(error, ProxyError::Forbidden { status: 403, .. }),
        "{error}"
    );
    let error = refused("HTTP/1.1 502 Bad Gateway\r\n\r\n", "").await;
    assert!(
        matches!(error, ProxyError::Unreachable { status: 502, .. }),
        "{error}"
    );
    let error = refused("HTTP/1.1 500 Oops\r\n\r\n", "").await;
    assert!(matches!(error, ProxyError::Status(500)), "{error}");
    let error = refused("SSH-2.0-OpenSSH_9\r\n\r\n", "").await;
    assert!(matches!(error, ProxyError::Malformed), "{error}");
    let error = refused("HTTP/1.1 204 x\r\n\r\nsurplus", "").await;
    assert!(matches!(error, ProxyError::Malformed), "{error}");
    let error = refused("HTTP/1.1 200", "").await;
    assert!(matches!(error, ProxyError::Io(_)), "{error}");
}
