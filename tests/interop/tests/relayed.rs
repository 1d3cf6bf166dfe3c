//! Sessions that only a relay can carry: UDP between the two sides is dropped (`run.sh`), a real TURN
//! server stands between, coturn or `wice turn`. Once the allocation is ours, once the other stack's.

mod harness;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Program, address, icecat_command, last_argument, meet, peers, start, with_role};

/// Ours, as `run.sh` has it: from here no datagram reaches the other side's address.
const OURS: &str = "198.51.100.2";
/// The TURN server's.
const RELAY: &str = "198.51.100.3";
const PORT: u16 = 3478;
const USER: &str = "alice";
const PASSWORD: &str = "wonderland";
/// How long the server may take to listen.
const SERVER_START: Duration = Duration::from_secs(8);

/// Which TURN server.
#[derive(Clone, Copy)]
enum Kind {
    Coturn,
    /// `wice turn`: the program that `WICE` names, or the one that is built in this repository.
    Ours,
}

#[test]
fn through_our_allocation_on_coturn() {
    through_our_relay(Kind::Coturn);
}

#[test]
fn through_our_allocation_on_wice_turn() {
    through_our_relay(Kind::Ours);
}

#[test]
fn through_their_allocation_on_coturn() {
    through_their_relay(Kind::Coturn);
}

#[test]
fn through_their_allocation_on_wice_turn() {
    through_their_relay(Kind::Ours);
}

/// Every stack, in both roles, through our allocation.
fn through_our_relay(kind: Kind) {
    let _server = Server::start(kind);
    for peer in peers() {
        for controlling in [true, false] {
            let mut ours = icecat_command(controlling, OURS);
            ours.args(["--turn", &format!("turn:{RELAY}:{PORT}")])
                .args(["--user", USER, "--password", PASSWORD]);
            let other = start(with_role(&peer, !controlling, &address()));
            let (ours, _other) = meet(&last_argument(&peer), controlling, ours, other);
            assert_eq!(kinds(&ours), ["relay", "host"], "{:?}", ours.seen);
        }
    }
}

/// Every stack with a TURN client, in both roles, through its allocation.
fn through_their_relay(kind: Kind) {
    let _server = Server::start(kind);
    let clients = peers()
        .into_iter()
        .filter(|peer| last_argument(peer) != "is_peer");
    for peer in clients {
        for controlling in [true, false] {
            let mut with_relay = with_role(&peer, !controlling, &address());
            with_relay
                .env("INTEROP_TURN", format!("{RELAY}:{PORT}"))
                .env("INTEROP_TURN_USER", USER)
                .env("INTEROP_TURN_PASSWORD", PASSWORD);
            let ours = icecat_command(controlling, OURS);
            let (ours, _other) = meet(&last_argument(&peer), controlling, ours, start(with_relay));
            assert_eq!(kinds(&ours), ["host", "relay"], "{:?}", ours.seen);
        }
    }
}

/// The kinds of both candidates of the pair that we selected.
fn kinds(ours: &Program) -> [String; 2] {
    let selected = ours.seen.iter().rfind(|line| line.starts_with("selected "));
    let words: Vec<&str> = selected.expect("a selected pair").split(' ').collect();
    [words[3].to_owned(), words[4].to_owned()]
}

struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    fn start(kind: Kind) -> Self {
        let folder = std::env::temp_dir().join(format!("wice-interop-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = match kind {
            Kind::Coturn => coturn(&folder),
            Kind::Ours => ours(),
        };
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("turnserver (Debian package coturn), or wice (cargo build)");
        let server = Self { child, folder };
        let begun = Instant::now();
        while TcpStream::connect((RELAY, PORT)).is_err() {
            assert!(
                begun.elapsed() < SERVER_START,
                "the server does not listen: ./run.sh makes its address"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

fn coturn(folder: &Path) -> Command {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new("turnserver");
    command
        .args([
            "-n",
            "--lt-cred-mech",
            "--realm=example.org",
            "--no-cli",
            "--no-tls",
            "--no-dtls",
        ])
        .arg(format!("--listening-ip={RELAY}"))
        .arg(format!("--relay-ip={RELAY}"))
        .arg(format!("--listening-port={PORT}"))
        .arg(format!("--user={USER}:{PASSWORD}"))
        .arg(format!("--pidfile={}", file("pid")))
        .arg(format!("--userdb={}", file("db")))
        .arg(format!("--log-file={}", file("log")));
    command
}

fn ours() -> Command {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/debug/wice");
    let program = std::env::var("WICE").unwrap_or_else(|_| built.to_owned());
    let mut command = Command::new(program);
    command
        .args(["turn", "--realm", "example.org", "--threads", "2"])
        // The test's network is a documentation range.
        .args(["--allow-peer", "198.51.100.0/24", "--relay-ip", RELAY])
        .args(["--user", &format!("{USER}:{PASSWORD}")])
        .args(["--listen", &format!("udp://{RELAY}:{PORT}")])
        .args(["--listen", &format!("tcp://{RELAY}:{PORT}")]);
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
