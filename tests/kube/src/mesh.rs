//! A cluster whose nodes are behind NATs: real kube-apiserver, real daemons, wireguard-go, and beside them what stands in for `kg`.

mod outside;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha1::Sha1;
use wice::lab::{Lab, LabConfig, NatKind, PeerStatus, Pings, Process, TURN, TURN_SECRET};
use wice_netns_tests::Want;
use wice_netns_tests::interface::{Implementation, Interface};

use crate::mesh_agent::{INTERFACE, Local, MeshAgents, PORT};
use crate::{Cluster, Place, wait_until, wice_binary};

/// Round trip between any two, as in one country.
const RTT: Duration = Duration::from_millis(20);
/// The machine of the lab where the API server runs, and what `kg` would be given to reach it.
const API_MACHINE: &str = "signal";
/// Until paths are as the NATs allow, after the mesh agent's next look: it reads keepalives every 10 s only.
const SETTLED: Duration = Duration::from_secs(60);
/// Pings of pods.
const PING_EVERY: Duration = Duration::from_millis(100);
/// Credentials of the relay hold so long; coturn takes more than 68 years for the past.
const TURN_FOR: Duration = Duration::from_secs(86_400);

/// It all. What uses the lab goes before it.
pub struct KubeMesh {
    bridge: Option<Process>,
    daemons: BTreeMap<String, Process>,
    /// What stands in for `kg`.
    pub agents: MeshAgents,
    interfaces: BTreeMap<String, Interface>,
    /// The control plane.
    pub cluster: Cluster,
    kinds: BTreeMap<String, (NatKind, u8)>,
    /// The internet.
    pub lab: Lab,
}

impl KubeMesh {
    /// Networks and the API server; Nodes join by [`Self::join`].
    pub fn build(kinds: &[NatKind]) -> Result<Self> {
        let config = LabConfig {
            rtt: RTT,
            binary: Some(wice_binary()?),
            ..LabConfig::of_kinds(kinds.iter().copied())
        };
        let homes: Vec<String> = config.homes.iter().map(|home| home.name.clone()).collect();
        let lab =
            Lab::build(config).context("the lab could not be built, so nothing was tested")?;
        let machine = lab.node(API_MACHINE)?;
        let ns = machine.ns().clone();
        let ip = machine.addresses().iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let place = Place {
            ip: ip.context("no IPv4")?,
            ports: [6443, 2379, 2380],
            command: Box::new(move |program| ns.command(program)),
        };
        let cluster = Cluster::start_at(place)?;
        cluster.install("kilo-kubeadm")?;
        let numbers = 1u8..;
        let kinds = homes
            .into_iter()
            .zip(kinds.iter().copied().zip(numbers))
            .collect();
        Ok(Self {
            bridge: None,
            daemons: BTreeMap::new(),
            agents: MeshAgents::default(),
            interfaces: BTreeMap::new(),
            cluster,
            kinds,
            lab,
        })
    }

    /// Registers a home's node with the annotations that `kg` writes, starts what stands in for it, and `wice agent`.
    pub fn join(&mut self, node: &str) -> Result<()> {
        self.join_alone(node)?;
        self.start_mesh_agent(node)?;
        self.start_wice(node)
    }

    /// The node with its interface, and nothing that runs.
    pub fn join_alone(&mut self, node: &str) -> Result<()> {
        let (_, number) = self.kinds.get(node).context("no such home")?;
        let addresses = [
            format!("10.4.0.{number}/16"),
            format!("10.42.{number}.1/32"),
        ];
        let [address, pod] = addresses.each_ref().map(String::as_str);
        let interface = Interface::create(
            &self.lab,
            node,
            Implementation::Userspace,
            INTERFACE,
            PORT,
            &[address, pod],
        )?;
        self.register(node, &interface.public_key().to_string())?;
        self.interfaces.insert(node.to_owned(), interface);
        Ok(())
    }

    /// Makes a Node as `kg` has told it once.
    fn register(&self, node: &str, key: &str) -> Result<()> {
        let (_, number) = self.kinds.get(node).context("no such home")?;
        let local = self.local(node)?;
        let endpoint = local.endpoint.to_string();
        let internal = local.internal_ip.map(|ip| format!("{ip}/24"));
        let wireguard_ip = format!("10.4.0.{number}/16");
        let mut annotations = vec![
            ("kilo.squat.ai/key", key),
            ("kilo.squat.ai/endpoint", &endpoint),
            ("kilo.squat.ai/wireguard-ip", &wireguard_ip),
        ];
        annotations.extend(
            internal
                .iter()
                .map(|ip| ("kilo.squat.ai/internal-ip", ip.as_str())),
        );
        self.cluster
            .node(node, &format!("10.42.{number}.0/24"), &annotations)
    }

    /// What `kg` finds out about a node. Public ones have no internal address: `force-internal-ip` is "-".
    fn local(&self, node: &str) -> Result<Local> {
        let (kind, _) = self.kinds.get(node).context("no such home")?;
        let addresses = self.lab.node(node)?.addresses();
        let ip = addresses.iter().find(|ip| ip.is_ipv4());
        let ip = *ip.context("no IPv4")?;
        Ok(Local {
            endpoint: (ip, PORT).into(),
            internal_ip: Some(ip).filter(|_| !kind.is_public()),
        })
    }

    /// Starts what stands in for `kg`.
    pub fn start_mesh_agent(&mut self, node: &str) -> Result<()> {
        let local = self.local(node)?;
        let (api, ns) = (self.lab.node(API_MACHINE)?.ns(), self.lab.node(node)?.ns());
        self.agents.start(&self.cluster, api, ns, node, local)
    }

    /// Starts `wice agent` on a node.
    pub fn start_wice(&mut self, node: &str) -> Result<()> {
        self.start_wice_with(node, "")
    }

    /// The same with more lines of configuration.
    pub fn start_wice_with(&mut self, node: &str, lines: &str) -> Result<()> {
        let daemon = self.agent(node, lines)?;
        self.daemons.insert(node.to_owned(), daemon);
        Ok(())
    }

    /// `wice agent` as its pod runs it: with a token bound to the Node, and no kubeconfig.
    pub fn agent(&self, node: &str, lines: &str) -> Result<Process> {
        let token = self.cluster.token(node)?;
        let token = self.cluster.file(&format!("token-{node}"), &token)?;
        let until = SystemTime::now().duration_since(UNIX_EPOCH)? + TURN_FOR;
        let username = format!("{}:{node}", until.as_secs());
        let mut mac = Hmac::<Sha1>::new_from_slice(TURN_SECRET.as_bytes())?;
        mac.update(username.as_bytes());
        let password = STANDARD.encode(mac.finalize().into_bytes());
        let password = self.cluster.file(&format!("turn-{node}"), &password)?;
        let stun = self.lab.stun_servers();
        let config = format!(
            "{lines}stun = [\"stun:{}\", \"stun:{}\"]\n[[turn]]\nurl = \"turn:{TURN}:3478\"\nusername = \"{username}\"\npassword_file = \"{}\"\n",
            stun.primary,
            stun.second,
            password.display()
        );
        let config = self.cluster.file(&format!("wice-{node}.toml"), &config)?;
        let machine = self.lab.node(node)?;
        let (binary, url, ca) = (wice_binary()?, self.cluster.url(), self.cluster.ca_file());
        let daemon = self.lab.start(node, node, |ns| {
            let mut command = ns.command(binary);
            command.args(["agent", "--node-name", node, "--api-server", &url]);
            command
                .arg("--api-ca-file")
                .arg(ca)
                .arg("--api-token-file")
                .arg(token);
            command.arg("--config").arg(config);
            command.arg("--state-dir").arg(machine.state_dir());
            command.arg("--run-dir").arg(machine.run_dir());
            for proxy in [
                "HTTPS_PROXY",
                "https_proxy",
                "HTTP_PROXY",
                "http_proxy",
                "ALL_PROXY",
            ] {
                command.env_remove(proxy);
            }
            command
        })?;
        Ok(daemon)
    }

    /// The process of a daemon.
    #[must_use]
    pub fn pid(&self, node: &str) -> Option<u32> {
        self.daemons.get(node).map(Process::pid)
    }

    /// Ends a daemon at once.
    pub fn kill_wice(&mut self, node: &str) {
        if let Some(mut daemon) = self.daemons.remove(node) {
            daemon.kill9();
        }
    }

    /// Gives a node another key and starts its `kg` again, as one that lost its own does.
    pub fn rotate(&mut self, node: &str) -> Result<()> {
        let interface = self.interfaces.get(node).context("no such node")?;
        let key = self.cluster.file("rotated", &interface.wg(&["genkey"])?)?;
        interface.wg(&["set", INTERFACE, "private-key", &key.to_string_lossy()])?;
        self.agents.kill(node);
        self.start_mesh_agent(node)
    }

    /// The interface of a node.
    pub fn interface(&self, node: &str) -> Result<&Interface> {
        self.interfaces.get(node).context("no such node")
    }

    /// Pings a pod's address on one node from another until the result is dropped.
    pub fn pings(&self, from: &str, to: &str) -> Result<Pings> {
        let (_, number) = self.kinds.get(to).context("no such home")?;
        let pod = IpAddr::from([10, 42, *number, 1]);
        Ok(Pings::start(self.lab.node(from)?.ns(), pod, PING_EVERY)?)
    }

    /// Waits until a pair's path is as the NATs allow: by kind and candidates, on both sides.
    pub fn wait_paths(&self, first: &str, second: &str) -> Result<Duration> {
        let kind = |node: &str| {
            self.kinds
                .get(node)
                .map(|(kind, _)| *kind)
                .context("no such home")
        };
        let want = Want::of(kind(first)?, kind(second)?);
        let mut objection = None;
        let waited = wait_until("the path", SETTLED, || {
            objection = match (self.peer(first, second), self.peer(second, first)) {
                (Ok(there), Ok(back)) => want.objection(there.as_ref(), back.as_ref()),
                (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
            };
            objection.is_none()
        });
        waited.with_context(|| {
            format!(
                "{first} and {second}: {objection:?}\n{}",
                self.evidence(&[first, second])
            )
        })
    }

    /// What a daemon says of a peer, which it names by its Node.
    pub fn peer(&self, node: &str, peer: &str) -> Result<Option<PeerStatus>> {
        Ok(self
            .lab
            .peers(node)?
            .into_iter()
            .find(|status| status.name == peer))
    }

    /// Whether a pod answers, in both directions.
    pub fn wait_pods(&self, first: &str, second: &str) -> Result<Duration> {
        let (there, back) = (self.pings(first, second)?, self.pings(second, first)?);
        let now = std::time::Instant::now();
        let both = [&there, &back].map(|pings| pings.back_after(now, SETTLED));
        let [Some(there), Some(back)] = both else {
            anyhow::bail!(
                "{first} and {second}: {both:?}\n{}",
                self.evidence(&[first, second])
            );
        };
        Ok(there.max(back))
    }

    /// What the daemons log, and what WireGuard says.
    #[must_use]
    pub fn evidence(&self, nodes: &[&str]) -> String {
        let mut text = String::new();
        for node in nodes {
            if let Some(daemon) = self.daemons.get(*node) {
                text += &format!("--- {node}: wice\n{}", daemon.output());
            }
            for peer in nodes.iter().filter(|peer| *peer != node) {
                if let Ok(why) = self.lab.wice(node, &["why", peer]) {
                    text += &format!(
                        "--- {node}: wice why {peer}\n{}",
                        String::from_utf8_lossy(&why.stdout)
                    );
                }
            }
            if let Some(interface) = self.interfaces.get(*node) {
                let shown = interface
                    .wg(&["show", interface.name()])
                    .unwrap_or_else(|error| error.to_string());
                text += &format!("--- {node}: wg show\n{shown}");
            }
        }
        text += &format!("--- mesh agents: {:?}\n", self.agents.errors());
        text
    }

    /// Fails with what the stand-ins could not do.
    pub fn check_mesh_agents(&self) -> Result<()> {
        let errors = self.agents.errors();
        ensure!(errors.is_empty(), "{errors:#?}");
        Ok(())
    }
}
