//! What Kilo's `kg` does to a node's WireGuard interface and annotations, as far as wice meets it: `kg` itself cannot be had as a
//! dependency (README). It writes by the same rules: whose endpoint wins, when it replaces all peers, what it publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wice::lab::NetNs;

use crate::Cluster;

/// Kilo's interface.
pub const INTERFACE: &str = "kilo0";
/// Kilo's port.
pub(crate) const PORT: u16 = 51820;
/// `--resync-period=10s`.
const RESYNC: Duration = Duration::from_secs(10);
/// `kg` publishes what it has discovered so often.
const CHECK_IN: Duration = Duration::from_secs(30);
/// How often the threads look whether they shall end.
const POLL: Duration = Duration::from_millis(50);

const PREFIX: &str = "kilo.squat.ai";

struct Running {
    replaced: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// One a node; all end when this is dropped.
pub struct MeshAgents {
    running: BTreeMap<String, Running>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl MeshAgents {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            running: BTreeMap::new(),
            errors: Arc::default(),
        }
    }

    /// Starts that of a Node, whose interface is there, and writes the interface for the first time.
    pub fn start(&mut self, cluster: &Arc<Cluster>, ns: &NetNs, node: &str) {
        let (cluster, ns, name) = (Arc::clone(cluster), ns.clone(), node.to_owned());
        let (replaced, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end, errors) = (
            Arc::clone(&replaced),
            Arc::clone(&stop),
            Arc::clone(&self.errors),
        );
        let thread = std::thread::spawn(move || {
            let agent = Agent { cluster, ns, name };
            let (mut resync, mut check_in) = (Instant::now(), Instant::now() + CHECK_IN);
            while !end.load(Ordering::Relaxed) {
                if Instant::now() >= resync {
                    resync = Instant::now() + RESYNC;
                    match agent.resync() {
                        Ok(wrote) => drop(count.fetch_add(usize::from(wrote), Ordering::Relaxed)),
                        Err(error) => note(&errors, &agent.name, &error),
                    }
                }
                if Instant::now() >= check_in {
                    check_in = Instant::now() + CHECK_IN;
                    if let Err(error) = agent.check_in() {
                        note(&errors, &agent.name, &error);
                    }
                }
                std::thread::sleep(POLL);
            }
        });
        self.running.insert(
            node.to_owned(),
            Running {
                replaced,
                stop,
                thread,
            },
        );
    }

    /// Ends that of a Node. As with `kg --clean-up=false`, nothing else changes.
    pub fn stop(&mut self, node: &str) {
        if let Some(running) = self.running.remove(node) {
            running.stop.store(true, Ordering::Relaxed);
            if running.thread.join().is_err() {
                note(&self.errors, node, &anyhow::anyhow!("it panicked"));
            }
        }
    }

    /// How often that of a Node has replaced all peers, which ends their sessions.
    #[must_use]
    pub fn replaced(&self, node: &str) -> usize {
        self.running
            .get(node)
            .map_or(0, |running| running.replaced.load(Ordering::Relaxed))
    }

    /// What went wrong; an API server that is away is no error of theirs.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Default for MeshAgents {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MeshAgents {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.stop.store(true, Ordering::Relaxed);
        }
        for node in self.running.keys().cloned().collect::<Vec<_>>() {
            self.stop(&node);
        }
    }
}

fn note(errors: &Mutex<Vec<String>>, node: &str, error: &anyhow::Error) {
    let text = format!("{error:#}");
    if !text.contains("refused") && !text.contains("EOF") && !text.contains("timeout") {
        errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(format!("{node}: {text}"));
    }
}

struct Agent {
    cluster: Arc<Cluster>,
    ns: NetNs,
    name: String,
}

/// A peer as the interface has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    endpoint: Option<SocketAddr>,
    allowed: BTreeSet<String>,
    keepalive: u16,
}

/// Of a Node, what others need.
struct Remote {
    key: String,
    endpoint: Option<SocketAddr>,
    keepalive: u16,
    internal_ip: Option<IpAddr>,
    allowed: BTreeSet<String>,
    /// Its pods, or of a Peer its first allowed IP.
    network: String,
    /// It is a machine outside of the cluster.
    is_peer: bool,
    discovered: BTreeMap<String, SocketAddr>,
}

impl Agent {
    /// `applyTopology`: true if all peers were replaced.
    fn resync(&self) -> Result<bool> {
        let nodes = self.nodes()?;
        let own = nodes.get(&self.name).context("the own Node is not ready")?;
        let (key, device, handshakes) = self.device()?;
        let mut wanted = BTreeMap::new();
        for (name, remote) in nodes.iter().filter(|(name, _)| **name != self.name) {
            let present = device
                .get(&remote.key)
                .and_then(|peer: &Peer| peer.endpoint);
            let known = handshakes.contains(&remote.key);
            // `updateEndpoint`: only of nodes with keepalive may an endpoint differ from the annotation.
            let endpoint = if remote.keepalive == 0 {
                remote.endpoint
            } else if let Some(present) = present.filter(|_| known) {
                Some(present)
            } else {
                let mut others = nodes.iter().filter(|(other, _)| *other != name);
                let discovered =
                    others.find_map(|(_, other)| other.discovered.get(&remote.key).copied());
                discovered.or(remote.endpoint)
            };
            let keepalive = if remote.is_peer {
                remote.keepalive
            } else {
                own.keepalive
            };
            let peer = Peer {
                endpoint,
                allowed: remote.allowed.clone(),
                keepalive,
            };
            wanted.insert(remote.key.clone(), peer);
            self.ip(&["route", "replace", &remote.network, "dev", INTERFACE])?;
            // The trap: what is sent to the private address of the other enters the tunnel.
            let at = endpoint.map(|endpoint| endpoint.ip());
            if let Some(ip) = remote.internal_ip {
                let route = format!("{ip}/32");
                if Some(ip) == at {
                    // WireGuard's own packets would enter it again, without end. There may be none.
                    let _ = self.ip(&["route", "del", &route, "dev", INTERFACE]);
                } else {
                    self.ip(&["route", "replace", &route, "dev", INTERFACE])?;
                }
            }
        }
        if device == wanted {
            return Ok(false);
        }
        let mut text = format!("[Interface]\nPrivateKey = {key}\nListenPort = {PORT}\n");
        for (key, peer) in &wanted {
            let allowed: Vec<&str> = peer.allowed.iter().map(String::as_str).collect();
            text += &format!(
                "[Peer]\nPublicKey = {key}\nAllowedIPs = {}\n",
                allowed.join(", ")
            );
            text += &format!("PersistentKeepalive = {}\n", peer.keepalive);
            if let Some(endpoint) = peer.endpoint {
                text += &format!("Endpoint = {endpoint}\n");
            }
        }
        self.wg_with(&["setconf", INTERFACE, "/dev/stdin"], &text)?;
        Ok(true)
    }

    /// `handleLocal`'s check-in: endpoints that WireGuard has shaken hands with are told to the others.
    fn check_in(&self) -> Result<()> {
        let (_, device, handshakes) = self.device()?;
        let discovered: serde_json::Map<String, Value> = device
            .iter()
            .filter(|(key, _)| handshakes.contains(*key))
            .filter_map(|(key, peer)| {
                let endpoint = peer.endpoint?;
                let value = serde_json::json!({"IP": endpoint.ip().to_string(), "Port": endpoint.port(), "Zone": ""});
                Some((key.clone(), value))
            })
            .collect();
        let text = Value::Object(discovered).to_string();
        self.cluster
            .annotate(&self.name, &format!("{PREFIX}/discovered-endpoints"), &text)
    }

    /// Nodes that are in the mesh.
    fn nodes(&self) -> Result<BTreeMap<String, Remote>> {
        let text = self
            .cluster
            .kubectl(&["get", "nodes", "-o", "json", "--request-timeout=5s"])?;
        let list: Value = serde_json::from_str(&text)?;
        let items = list["items"].as_array().context("no list")?;
        let nodes = items.iter().filter_map(|node| {
            Some((node["metadata"]["name"].as_str()?.to_owned(), remote(node)?))
        });
        Ok(nodes.chain(self.peers()?).collect())
    }

    /// Peers, each by a name that no Node has.
    fn peers(&self) -> Result<Vec<(String, Remote)>> {
        let text = self.cluster.kubectl(&[
            "get",
            "peers.kilo.squat.ai",
            "-o",
            "json",
            "--request-timeout=5s",
        ])?;
        let list: Value = serde_json::from_str(&text)?;
        let items = list["items"].as_array().context("no list")?;
        let of = |peer: &Value| {
            let (name, spec) = (peer["metadata"]["name"].as_str()?, &peer["spec"]);
            let allowed = spec["allowedIPs"].as_array()?.iter();
            let allowed: BTreeSet<String> = allowed
                .filter_map(|ip| Some(ip.as_str()?.to_owned()))
                .collect();
            let remote = Remote {
                key: spec["publicKey"].as_str()?.to_owned(),
                endpoint: None,
                keepalive: u16::try_from(spec["persistentKeepalive"].as_u64()?).ok()?,
                internal_ip: None,
                network: allowed.first()?.clone(),
                allowed,
                is_peer: true,
                discovered: BTreeMap::new(),
            };
            Some((format!("peer/{name}"), remote))
        };
        Ok(items.iter().filter_map(of).collect())
    }

    /// Private key, peers, and who has shaken hands.
    fn device(&self) -> Result<(String, BTreeMap<String, Peer>, BTreeSet<String>)> {
        let text = self.wg_with(&["show", INTERFACE, "dump"], "")?;
        let mut lines = text.lines();
        let key = lines
            .next()
            .and_then(|line| line.split('\t').next())
            .context("no interface")?;
        let mut peers = BTreeMap::new();
        let mut handshakes = BTreeSet::new();
        for line in lines {
            let fields: Vec<&str> = line.split('\t').collect();
            let [key, _, endpoint, allowed, handshake, _, _, keepalive] = fields[..] else {
                continue;
            };
            if handshake != "0" {
                handshakes.insert(key.to_owned());
            }
            let peer = Peer {
                endpoint: endpoint.parse().ok(),
                allowed: allowed.split(',').map(str::to_owned).collect(),
                keepalive: keepalive.parse().unwrap_or(0),
            };
            peers.insert(key.to_owned(), peer);
        }
        Ok((key.to_owned(), peers, handshakes))
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        crate::output(self.ns.command("ip").args(arguments)).map(drop)
    }

    fn wg_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.ns.command("wg");
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("wg is not installed")?;
        child
            .stdin
            .take()
            .context("no input")?
            .write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "wg {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// `None` where a Node is not ready to be a peer.
fn remote(node: &Value) -> Option<Remote> {
    let annotations = &node["metadata"]["annotations"];
    let annotation = |name: &str| annotations[format!("{PREFIX}/{name}")].as_str();
    let key = annotation("key")?.to_owned();
    let wireguard_ip = annotation("wireguard-ip")?.split('/').next()?.to_owned();
    let pod_cidr = node["spec"]["podCIDR"].as_str()?.to_owned();
    let internal_ip =
        annotation("internal-ip").and_then(|text| text.split('/').next()?.parse().ok());
    let mut allowed = BTreeSet::from([format!("{wireguard_ip}/32"), pod_cidr.clone()]);
    allowed.extend(internal_ip.map(|ip: IpAddr| format!("{ip}/32")));
    let discovered = annotation("discovered-endpoints")
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let discovered = discovered
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let discovered = discovered.filter_map(|(key, at)| {
        let ip = at["IP"].as_str()?.parse().ok()?;
        Some((
            key.clone(),
            SocketAddr::new(ip, u16::try_from(at["Port"].as_u64()?).ok()?),
        ))
    });
    Some(Remote {
        endpoint: Some(annotation("endpoint")?.parse().ok()?),
        keepalive: annotation("persistent-keepalive")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        internal_ip,
        allowed,
        network: pod_cidr,
        is_peer: false,
        discovered: discovered.collect(),
        key,
    })
}
