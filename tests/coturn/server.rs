//! A coturn of its own for each test, and an HTTP proxy.

use std::fs;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use wice::core::turn::Credentials;

pub(crate) const USER: &str = "alice";
pub(crate) const PASSWORD: &str = "wonderland";
/// The name in the server's certificate.
pub(crate) const NAME: &str = "relay.test";
/// How long coturn may take to listen.
const START: Duration = Duration::from_secs(8);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Server {
    child: Child,
    folder: PathBuf,
    arguments: Vec<String>,
    /// UDP and TCP.
    pub(crate) address: SocketAddr,
    pub(crate) tls_address: SocketAddr,
}

impl Server {
    /// Starts coturn with long-term credentials for [`USER`] (unless `extra` asks for a secret) and a
    /// self-signed certificate, on free ports of 127.0.0.1.
    pub(crate) async fn start(extra: &[&str]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wice-coturn-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("made");
        fs::write(folder.join("cert.pem"), made.cert.pem()).expect("written");
        fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        let (address, tls_address) = (free_port(), free_port());
        let file = |name: &str| folder.join(name).display().to_string();
        let mut arguments = vec![
            "-n".to_owned(),
            "--listening-ip=127.0.0.1".to_owned(),
            "--relay-ip=127.0.0.1".to_owned(),
            format!("--listening-port={}", address.port()),
            format!("--tls-listening-port={}", tls_address.port()),
            "--realm=example.org".to_owned(),
            format!("--cert={}", file("cert.pem")),
            format!("--pkey={}", file("key.pem")),
            format!("--pidfile={}", file("pid")),
            format!("--userdb={}", file("db")),
            "--log-file=stdout".to_owned(),
            "--allow-loopback-peers".to_owned(),
            "--no-cli".to_owned(),
            "--no-dtls".to_owned(),
            "--no-rfc5780".to_owned(),
            "--relay-threads=1".to_owned(),
        ];
        if !extra.contains(&"--use-auth-secret") {
            arguments.push("--lt-cred-mech".to_owned());
            arguments.push(format!("--user={USER}:{PASSWORD}"));
        }
        arguments.extend(extra.iter().map(|&argument| argument.to_owned()));
        let child = spawn(&folder, &arguments);
        let mut server = Self {
            child,
            folder,
            arguments,
            address,
            tls_address,
        };
        server.listening().await;
        server
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    pub(crate) fn stop(&mut self) {
        // It may have ended by itself already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) async fn restart(&mut self) {
        self.stop();
        self.child = spawn(&self.folder, &self.arguments);
        self.listening().await;
    }

    async fn listening(&mut self) {
        let start = Instant::now();
        for address in [self.address, self.tls_address] {
            while TcpStream::connect(address).await.is_err() {
                let ended = self.child.try_wait().expect("a child");
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                assert!(ended.is_none(), "turnserver ended: {ended:?}\n{log}");
                assert!(start.elapsed() < START, "turnserver does not listen\n{log}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(folder: &Path, arguments: &[String]) -> Child {
    let log = fs::File::create(folder.join("log")).expect("a log");
    Command::new("turnserver")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot start turnserver ({error}): install it with `apt install coturn`")
        })
}

/// A port of 127.0.0.1 that is free for UDP and TCP now.
fn free_port() -> SocketAddr {
    for _ in 0..100 {
        let tcp = StdListener::bind("127.0.0.1:0").expect("a port");
        let address = tcp.local_addr().expect("an address");
        if StdUdp::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port is free for both UDP and TCP");
}

/// A user of draft-uberti-behave-turn-rest whose time ends in `seconds`.
pub(crate) fn time_limited(secret: &str, seconds: i64) -> Credentials {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let username = format!("{}:{USER}", now.saturating_add_signed(seconds));
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("any length");
    mac.update(username.as_bytes());
    let digest = mac.finalize().into_bytes();
    let password = base64::engine::general_purpose::STANDARD.encode(digest);
    Credentials::new(&username, &password).expect("valid")
}

/// A proxy that knows CONNECT to addresses and nothing else.
pub(crate) async fn http_proxy() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(proxy(client));
        }
    });
    address
}

async fn proxy(mut client: TcpStream) {
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else {
            return;
        };
        header.push(byte);
        if header.len() >= 16 && !header.starts_with(b"CONNECT ") {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            return;
        }
    }
    let header = String::from_utf8(header).expect("text");
    let target = header.split(' ').nth(1).expect("a target");
    let mut server = TcpStream::connect(target).await.expect("the target");
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    client.write_all(established).await.expect("written");
    let _ = copy_bidirectional(&mut client, &mut server).await;
}
