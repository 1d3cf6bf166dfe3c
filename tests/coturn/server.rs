//! A server of its own for each test, coturn or ours, and an HTTP proxy.

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
use wice_turn::io::{Service, Settings};
use wice_turn::server::Transport;

pub(crate) const USER: &str = "alice";
pub(crate) const PASSWORD: &str = "wonderland";
/// The name in the server's certificate.
pub(crate) const NAME: &str = "relay.test";
/// How long coturn may take to listen.
const START: Duration = Duration::from_secs(8);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Coturn,
    Ours,
}

/// How it differs from one with long-term credentials for [`USER`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Wish {
    pub(crate) ipv6: bool,
    pub(crate) secret: Option<&'static str>,
    pub(crate) nonce_seconds: Option<u32>,
    pub(crate) user_quota: Option<u32>,
    pub(crate) deny: Option<&'static str>,
}

enum Process {
    Coturn(Child, Vec<String>),
    Ours(Option<Service>, Box<Settings>),
}

pub(crate) struct Server {
    process: Process,
    folder: PathBuf,
    /// UDP and TCP.
    pub(crate) address: SocketAddr,
    pub(crate) tls_address: SocketAddr,
}

impl Server {
    /// Starts one with a self-signed certificate, on free ports of 127.0.0.1.
    pub(crate) async fn start(kind: Kind, wish: Wish) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wice-coturn-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("made");
        fs::write(folder.join("cert.pem"), made.cert.pem()).expect("written");
        fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        let (address, tls_address) = (free_port(), free_port());
        let process = match kind {
            Kind::Coturn => {
                let arguments = coturn_arguments(&folder, address, tls_address, wish);
                Process::Coturn(spawn(&folder, &arguments), arguments)
            }
            Kind::Ours => {
                let settings = our_settings(&folder, address, tls_address, wish);
                let service = Service::start(&settings).expect("started");
                Process::Ours(Some(service), Box::new(settings))
            }
        };
        let mut server = Self {
            process,
            folder,
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
        match &mut self.process {
            Process::Coturn(child, _) => {
                // It may have ended by itself already.
                let _ = child.kill();
                let _ = child.wait();
            }
            Process::Ours(service, _) => drop(service.take()),
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.stop();
        match &mut self.process {
            Process::Coturn(child, arguments) => *child = spawn(&self.folder, arguments),
            Process::Ours(service, settings) => {
                *service = Some(Service::start(settings).expect("started"));
            }
        }
        self.listening().await;
    }

    async fn listening(&mut self) {
        let start = Instant::now();
        for address in [self.address, self.tls_address] {
            while TcpStream::connect(address).await.is_err() {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                if let Process::Coturn(child, _) = &mut self.process {
                    let ended = child.try_wait().expect("a child");
                    assert!(ended.is_none(), "turnserver ended: {ended:?}\n{log}");
                }
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

fn coturn_arguments(
    folder: &Path,
    address: SocketAddr,
    tls_address: SocketAddr,
    wish: Wish,
) -> Vec<String> {
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
    if wish.ipv6 {
        arguments.push("--relay-ip=::1".to_owned());
    }
    match wish.secret {
        Some(secret) => arguments.extend([
            "--use-auth-secret".to_owned(),
            format!("--static-auth-secret={secret}"),
        ]),
        None => arguments.extend([
            "--lt-cred-mech".to_owned(),
            format!("--user={USER}:{PASSWORD}"),
        ]),
    }
    let seconds = wish.nonce_seconds;
    arguments.extend(seconds.map(|seconds| format!("--stale-nonce={seconds}")));
    arguments.extend(wish.user_quota.map(|quota| format!("--user-quota={quota}")));
    arguments.extend(wish.deny.map(|ip| format!("--denied-peer-ip={ip}")));
    arguments
}

fn our_settings(
    folder: &Path,
    address: SocketAddr,
    tls_address: SocketAddr,
    wish: Wish,
) -> Settings {
    let mut settings = Settings::new();
    let listen = |transport, address| wice_turn::io::Listen { transport, address };
    settings.listen = vec![
        listen(Transport::Udp, address),
        listen(Transport::Tcp, address),
        listen(Transport::Tls, tls_address),
    ];
    settings.relay_ips = vec![[127, 0, 0, 1].into()];
    if wish.ipv6 {
        settings
            .relay_ips
            .push(std::net::Ipv6Addr::LOCALHOST.into());
    }
    settings.realm = "example.org".to_owned();
    match wish.secret {
        Some(secret) => settings.secrets = vec![secret.to_owned()],
        None => settings.users = vec![(USER.to_owned(), PASSWORD.to_owned())],
    }
    settings.allow_peers = ["127.0.0.0/8", "::1"]
        .map(|net| net.parse().expect("valid"))
        .to_vec();
    settings.deny_peers = wish
        .deny
        .into_iter()
        .map(|ip| ip.parse().expect("valid"))
        .collect();
    settings.certificate = Some((folder.join("cert.pem"), folder.join("key.pem")));
    settings.quotas.user = wish.user_quota.unwrap_or(settings.quotas.user);
    if let Some(seconds) = wish.nonce_seconds {
        settings.nonce_lifetime = Duration::from_secs(seconds.into());
    }
    settings
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
