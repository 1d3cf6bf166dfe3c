//! wireguard-go between two machines: straight over the link, through slots and proxies, and through bare forwarders.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use wice::core::slots::{SLOT_PORT, slot_of};
use wice_signaling::protocol::PrivateKey;

use super::forward::Forwarder;
use super::load::IDLE;
use super::namespace::{Namespace, two_namespaces};
use super::node::{AttachedNode, Config, Error};
use super::wireguard_go::{LISTEN_PORT, WireGuardGo};

const PATIENCE: Duration = Duration::from_secs(20);
/// Inner addresses of the two machines.
const INNER: [&str; 2] = ["10.8.0.1", "10.8.0.2"];
const PINGS: u32 = 100;
/// Tries of a first ping until the handshake is through.
const TRIES: u32 = 50;

/// Where bare forwarders listen: for WireGuard at a loopback address, as a slot is, and for each other.
const BARE_NEAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 9, 9, 9)), 7000);
const BARE_FAR: u16 = 7001;

/// What is between WireGuard and the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Through {
    Nothing,
    Proxies,
    BareForwarders,
}

/// Two machines with a tunnel.
pub(crate) struct Tunnel {
    pub(crate) through: Through,
    namespaces: [Namespace; 2],
    wireguard: [WireGuardGo; 2],
    nodes: Vec<AttachedNode>,
    forwarders: Vec<Forwarder>,
}

/// What one run has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    /// Mbit/s of TCP, one stream.
    pub(crate) rate: f64,
    /// CPU seconds a GB, of both ends.
    pub(crate) wireguard: f64,
    pub(crate) between: f64,
    /// Median round trip, in ms.
    pub(crate) rtt: f64,
}

impl Tunnel {
    pub(crate) fn new(runtime: &tokio::runtime::Runtime, through: Through) -> Result<Self, Error> {
        let namespaces = two_namespaces().ok_or("needs root")?;
        let secrets = [[11u8; 32], [12; 32]];
        let keys = secrets.map(|secret| PrivateKey::from_bytes(secret).public_key());
        let wireguard = [0, 1].map(|i| WireGuardGo::start(&namespaces[i], secrets[i], INNER[i]));
        let (mut nodes, mut forwarders) = (Vec::new(), Vec::new());
        match through {
            Through::Nothing => {}
            Through::Proxies => nodes = proxies(runtime, &namespaces, secrets)?,
            Through::BareForwarders => forwarders = bare_forwarders(&namespaces)?,
        }
        for (i, ours) in wireguard.iter().enumerate() {
            let other = 1 - i;
            let endpoint = match through {
                Through::Nothing => at_link(other, LISTEN_PORT),
                Through::Proxies => SocketAddr::from((slot_of(&keys[other]), SLOT_PORT)),
                Through::BareForwarders => BARE_NEAR,
            };
            ours.peer(keys[other], Some(endpoint), INNER[other]);
        }
        let this = Self {
            through,
            namespaces,
            wireguard,
            nodes,
            forwarders,
        };
        for _ in 0..TRIES {
            if this.command(0, "ping", &["-c1", "-W1", INNER[1]]).is_ok() {
                return Ok(this);
            }
        }
        Err("no ping comes through the tunnel".into())
    }

    pub(crate) fn run(&self, seconds: u32) -> Result<Run, Error> {
        let count = PINGS.to_string();
        let pings = self.command(0, "ping", &["-c", &count, "-i", "0.01", INNER[1]])?;
        let mut times: Vec<f64> = pings
            .lines()
            .filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok())
            .collect();
        let rtt = median(&mut times);

        let server = self.namespaces[1].spawn(|| {
            Command::new("iperf3")
                .args(["-s", "-1", "-B", INNER[1]])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
        });
        std::thread::sleep(Duration::from_millis(500));
        let (wireguard, between) = self.cpu()?;
        let seconds = seconds.to_string();
        let client = self.command(0, "iperf3", &["-c", INNER[1], "-t", &seconds, "-J"])?;
        let (wireguard_after, between_after) = self.cpu()?;
        server.join().map_err(|_| "iperf3")??;
        let report: serde_json::Value = serde_json::from_str(&client)?;
        let received = &report["end"]["sum_received"];
        let gigabytes = received["bytes"].as_f64().ok_or("iperf3 tells no bytes")? / 1e9;
        let rate = received["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6;
        Ok(Run {
            rate,
            wireguard: (wireguard_after - wireguard).as_secs_f64() / gigabytes,
            between: (between_after - between).as_secs_f64() / gigabytes,
            rtt,
        })
    }

    fn cpu(&self) -> Result<(Duration, Duration), Error> {
        let wireguard = self.wireguard.iter().map(WireGuardGo::cpu).sum();
        // Forwarders tell when nothing has come for a while.
        std::thread::sleep(2 * IDLE);
        let mut between: Duration = self.forwarders.iter().map(Forwarder::cpu).sum();
        for node in &self.nodes {
            between += node.cpu()?;
        }
        Ok((wireguard, between))
    }

    fn command(
        &self,
        at: usize,
        program: &'static str,
        arguments: &[&str],
    ) -> Result<String, Error> {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let ran = self.namespaces[at].spawn(move || Command::new(program).args(arguments).output());
        let output = ran.join().map_err(|_| program)??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{program}: {said}").into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A machine's address on the link.
fn at_link(machine: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + machine as u8], port))
}

/// A node at each machine, with a path to the other.
fn proxies(
    runtime: &tokio::runtime::Runtime,
    namespaces: &[Namespace; 2],
    secrets: [[u8; 32]; 2],
) -> Result<Vec<AttachedNode>, Error> {
    let mut nodes = Vec::new();
    for i in 0..2 {
        let config = Config {
            secret: secrets[i],
            addresses: vec![(
                [192, 0, 2, 1 + i as u8].into(),
                ["veth-a", "veth-b"][i].to_owned(),
            )],
            slot_port: SLOT_PORT,
            relay: None,
        };
        let handle = runtime.handle().clone();
        let started = namespaces[i].spawn(move || AttachedNode::start(&config, handle));
        let node = started.join().map_err(|_| "a node did not start")??;
        node.wireguard_port(Some(LISTEN_PORT))?;
        nodes.push(node);
    }
    if let [a, b] = nodes.as_mut_slice() {
        a.meet(&[b])?;
        b.meet(&[a])?;
        a.wait_path(b.key, false, PATIENCE)?;
        b.wait_path(a.key, false, PATIENCE)?;
    }
    Ok(nodes)
}

/// One at each machine, both ways.
fn bare_forwarders(namespaces: &[Namespace; 2]) -> Result<Vec<Forwarder>, Error> {
    let mut forwarders = Vec::new();
    for (i, namespace) in namespaces.iter().enumerate() {
        let wireguard = SocketAddr::from((Ipv4Addr::LOCALHOST, LISTEN_PORT));
        let far = (at_link(i, BARE_FAR), at_link(1 - i, BARE_FAR));
        let started = namespace.spawn(move || Forwarder::both_ways([(BARE_NEAR, wireguard), far]));
        forwarders.extend(started.join().map_err(|_| "a forwarder did not start")??);
    }
    Ok(forwarders)
}

/// The middle one, of an even number the greater of the two.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
