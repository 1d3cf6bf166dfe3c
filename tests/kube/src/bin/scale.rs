//! What a cluster of many Nodes costs one agent, with a real API server on this machine: prints a table for BENCHMARKS.md.
//!
//!     KUBEBUILDER_ASSETS=$(tests/kube/prepare.sh) cargo run -p wice-kube-tests --bin scale -- [NODES]
//!
//! One node is whole: `wice agent` with wireguard-go, in a namespace behind a NAT. Of the others there are the Nodes, with what their
//! agents write, when they write it: thousands of watches would measure the API server of two processors.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::NatKind;
use wice::signaling::kubernetes::state::encode;
use wice_kube_tests::{Annotator, KubeMesh, output};
use wice_signaling::protocol::{
    Advert, Candidate, CandidateKind, NatBehavior, PrivateKey, RelayTransport, Session,
};

/// Nodes where no number is given.
const NODES: usize = 1000;
/// The one that is whole.
const WHOLE: &str = "home-a";
/// What starts is looked at for so long.
const START: Duration = Duration::from_secs(30);
/// What rests is looked at for so long.
const REST: Duration = Duration::from_secs(60);
/// One in so many roams.
const ROAMING: usize = 10;
/// What roams is looked at for so long: the watch brings it within a second or two.
const ROAM: Duration = Duration::from_secs(20);
/// `kg` writes to its own Node so often, and every watcher hears of it.
const LAST_SEEN: Duration = Duration::from_secs(30);
/// Clock ticks a second of /proc/PID/stat; Linux has no other.
const TICKS: f64 = 100.0;

/// A node that is an object alone.
struct Simulated {
    name: String,
    key: PrivateKey,
    number: usize,
}

impl Simulated {
    fn new(number: usize) -> Self {
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&(number as u64).to_be_bytes());
        Self {
            name: format!("node-{number}"),
            key: PrivateKey::from_bytes(secret),
            number,
        }
    }

    /// What its agent would publish: a LAN, a mapped address and a relay.
    fn advert(&self, sequence: u64) -> Result<String> {
        let (high, low) = (self.number / 250, self.number % 250 + 1);
        let candidate = |kind, address: String, priority, relay_transport| -> Result<Candidate> {
            Ok(Candidate {
                kind,
                address: address.parse()?,
                priority,
                relay_transport,
            })
        };
        let mapped = format!(
            "203.0.113.{low}:{}",
            20_000 + sequence as usize * 5_000 + self.number
        );
        let relayed = format!("198.51.100.1:{}", 30_000 + self.number);
        let advert = Advert {
            key: self.key.public_key(),
            session: Session([9; 16]),
            sequence,
            name: self.name.clone(),
            nat: NatBehavior::default(),
            candidates: vec![
                candidate(
                    CandidateKind::Host,
                    format!("192.168.{high}.{low}:51821"),
                    3,
                    None,
                )?,
                candidate(CandidateKind::ServerReflexive, mapped, 2, None)?,
                candidate(
                    CandidateKind::Relayed,
                    relayed,
                    1,
                    Some(RelayTransport::Udp),
                )?,
            ],
            membership: Vec::new(),
        };
        Ok(encode(&advert.encode_signed(&self.key, &[7; 64])?)?)
    }

    fn object(&self) -> Result<serde_json::Value> {
        let (high, low) = (self.number / 250, self.number % 250 + 1);
        let key = self.key.public_key().to_string();
        Ok(serde_json::json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "annotations": {
                "kilo.squat.ai/key": key,
                "kilo.squat.ai/wireguard-ip": format!("10.4.{}.{low}/16", high + 1),
                "kilo.squat.ai/endpoint": format!("192.168.{high}.{low}:51820"),
                "kilo.squat.ai/persistent-keepalive": "25",
                "wice.riasc.eu/advert": self.advert(1)?,
            }},
        }))
    }
}

/// What a process and its connections have used.
struct Used {
    at: Instant,
    cpu: f64,
    bytes: u64,
}

struct Bench {
    mesh: KubeMesh,
    pid: u32,
    api: u32,
}

impl Bench {
    fn used(&self, pid: u32) -> Result<Used> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .context("stat")?
            .split_whitespace()
            .collect();
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|text| text.parse::<f64>().ok())
                .context("stat")
        };
        Ok(Used {
            at: Instant::now(),
            cpu: (ticks(11)? + ticks(12)?) / TICKS,
            bytes: self.received()?,
        })
    }

    /// Bytes that came from the API server, by its connections that there are.
    fn received(&self) -> Result<u64> {
        let ns = self.mesh.lab.node(WHOLE)?.ns();
        let text = output(ns.command("ss").args(["-tinH", "dport", "=", ":6443"]))?;
        let counts = text
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("bytes_received:"));
        Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
    }

    fn rss(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    fn row(&self, what: &str, writes: &str, before: (Used, Used)) -> Result<()> {
        let (agent, api) = (self.used(self.pid)?, self.used(self.api)?);
        let seconds = (agent.at - before.0.at).as_secs_f64();
        println!(
            "| {what} | {writes} | {:.0} kB | {:.2} s ({:.1} %) | {:.1} MiB | {:.1} % |",
            agent.bytes.saturating_sub(before.0.bytes) as f64 / 1e3,
            agent.cpu - before.0.cpu,
            (agent.cpu - before.0.cpu) / seconds * 100.0,
            self.rss()?,
            (api.cpu - before.1.cpu) / seconds * 100.0,
        );
        Ok(())
    }

    fn now(&self) -> Result<(Used, Used)> {
        Ok((self.used(self.pid)?, self.used(self.api)?))
    }
}

fn main() -> Result<()> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(NODES), |text| text.parse())?;
    let nodes: Vec<Simulated> = (0..count).map(Simulated::new).collect();
    let mut mesh = KubeMesh::build(&[NatKind::PortRestricted])?;
    let items: Vec<serde_json::Value> =
        nodes.iter().map(Simulated::object).collect::<Result<_>>()?;
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
    let path = mesh.cluster.file("nodes.json", &list.to_string())?;
    mesh.cluster
        .kubectl(&["create", "-f", &path.to_string_lossy()])?;
    mesh.join_alone(WHOLE)?;
    let mut peers = String::new();
    for node in &nodes {
        let (high, low) = (node.number / 250, node.number % 250 + 1);
        peers += &format!(
            "[Peer]\nPublicKey = {}\nAllowedIPs = 10.4.{}.{low}/32\n",
            node.key.public_key(),
            high + 1
        );
    }
    let peers = mesh.cluster.file("peers.conf", &peers)?;
    mesh.interface(WHOLE)?.wg(&[
        "addconf",
        wice_kube_tests::INTERFACE,
        &peers.to_string_lossy(),
    ])?;

    mesh.start_wice(WHOLE)?;
    let pid = mesh.pid(WHOLE).context("no daemon")?;
    let api = mesh.cluster.processes().last().context("no API server")?;
    let annotator = Annotator::new(&mesh.cluster, mesh.lab.node("signal")?.ns())?;
    let bench = Bench { mesh, pid, api };
    println!(
        "| 1 agent among {count} Nodes | writes | from the API | CPU of the agent | its RSS | CPU of the API server |"
    );
    println!("|---|---|---|---|---|---|");
    let zero = Used {
        at: Instant::now(),
        cpu: 0.0,
        bytes: 0,
    };
    let before = (zero, bench.used(api)?);
    std::thread::sleep(START);
    let known = bench.mesh.lab.peers(WHOLE)?.len();
    ensure!(
        known == count,
        "the agent knows {known} of {count} peers\n{}",
        bench.mesh.evidence(&[WHOLE])
    );
    bench.row(&format!("start, {} s", START.as_secs()), "2", before)?;

    let before = bench.now()?;
    std::thread::sleep(REST);
    bench.row(&format!("rest, {} s", REST.as_secs()), "0", before)?;

    // As `kg` does on every Node: the wire carries it, the agent has nothing to do about it.
    let before = bench.now()?;
    let each = LAST_SEEN / u32::try_from(count)?;
    let began = Instant::now();
    for (number, node) in nodes.iter().enumerate() {
        let due = began + each * u32::try_from(number)?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        annotator.set(&node.name, "kilo.squat.ai/last-seen", &number.to_string())?;
    }
    bench.row(
        &format!(
            "kg's last-seen of all, {:.0} s",
            began.elapsed().as_secs_f64()
        ),
        "0",
        before,
    )?;

    let before = bench.now()?;
    let mut writes = 0;
    for node in nodes.iter().step_by(ROAMING) {
        annotator.set(&node.name, "wice.riasc.eu/advert", &node.advert(2)?)?;
        writes += 1;
    }
    std::thread::sleep(ROAM);
    bench.row(
        &format!("{writes} roam at once, {} s", ROAM.as_secs()),
        "0",
        before,
    )?;
    Ok(())
}
