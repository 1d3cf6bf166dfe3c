//! wireguard-go in a network namespace, configured by `wg`.

#![allow(dead_code, reason = "not every user needs all of it")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are not tests to clippy"
)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wice_signaling::protocol::PublicKey;

use crate::namespace::Namespace;

pub(crate) const LISTEN_PORT: u16 = 51820;
/// Longer than it takes to open its socket, also on a busy machine.
const START: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running interface; it goes when this is dropped.
pub(crate) struct WireGuardGo {
    pub(crate) name: String,
    pub(crate) child: Child,
    namespace: Namespace,
}

impl WireGuardGo {
    /// Starts it with an inner address, listening at [`LISTEN_PORT`]. `WIREGUARD_GO` names another
    /// than the one in the PATH.
    pub(crate) fn start(namespace: &Namespace, secret: [u8; 32], address: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wg{number}-{}", std::process::id());
        let program = std::env::var("WIREGUARD_GO").unwrap_or_else(|_| "wireguard-go".to_owned());
        let interface = name.clone();
        let child = namespace.spawn(move || {
            Command::new(program)
                .args(["--foreground", &interface])
                .env("WG_PROCESS_FOREGROUND", "1")
                .env("LOG_LEVEL", "error")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("wireguard-go: install the package of that name")
        });
        let this = Self {
            name,
            child: child.join().unwrap(),
            namespace: namespace.clone(),
        };
        let socket = format!("/var/run/wireguard/{}.sock", this.name);
        let start = Instant::now();
        while !std::path::Path::new(&socket).exists() {
            assert!(start.elapsed() < START, "wireguard-go does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        let key = STANDARD.encode(secret);
        this.set(
            &format!("private-key /dev/stdin listen-port {LISTEN_PORT}"),
            Some(&key),
        );
        namespace.ip(&format!("address add {address}/32 dev {}", this.name));
        namespace.ip(&format!("link set {} mtu 1420 up", this.name));
        this
    }

    /// Adds a peer, and the route to its inner address.
    pub(crate) fn peer(&self, key: PublicKey, endpoint: Option<SocketAddr>, inner: &str) {
        let endpoint = endpoint.map_or(String::new(), |at| format!(" endpoint {at}"));
        self.set(
            &format!("peer {key} allowed-ips {inner}/32{endpoint}"),
            None,
        );
        let route = format!("route replace {inner}/32 dev {}", self.name);
        self.namespace.ip(&route);
    }

    pub(crate) fn set(&self, arguments: &str, input: Option<&str>) {
        let arguments: Vec<String> = ["set", &self.name]
            .into_iter()
            .chain(arguments.split(' '))
            .map(str::to_owned)
            .collect();
        let mut child = Command::new("wg")
            .args(&arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("wg: install wireguard-tools");
        if let Some(input) = input {
            let stdin = child.stdin.as_mut().unwrap();
            stdin.write_all(input.as_bytes()).unwrap();
        }
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "wg {arguments:?}");
    }

    /// What `wg show NAME WHAT` prints.
    pub(crate) fn show(&self, what: &str) -> String {
        let output = Command::new("wg")
            .args(["show", &self.name, what])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// User and kernel time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let after_name = stat.rsplit(") ").next().unwrap();
        let ticks: u64 = after_name
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        // USER_HZ is 100 on every Linux that matters.
        Duration::from_millis(ticks * 10)
    }

    pub(crate) fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for WireGuardGo {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
    }
}
