//! WireGuard interfaces as somebody would make them by hand: with `ip`, `wg`, and the kernel's
//! WireGuard where there is one, else wireguard-go. `WICE_TEST_WIREGUARD` is `kernel` or `userspace`
//! where one of them is wanted; `WICE_TEST_USERSPACE` is another program than wireguard-go that takes the
//! same arguments (gotatun, boringtun-cli).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wice::lab::{LabConfig, Pings, Process};
use wice_signaling::protocol::{PrivateKey, PublicKey};

use crate::{Mesh, wait_for};

/// The interface on every node.
pub const WG: &str = "wg0";
/// WireGuard's usual port.
const PORT: u16 = 51820;
/// wireguard-go has its socket after this.
const READY: Duration = Duration::from_secs(5);

/// A mesh whose nodes have WireGuard interfaces of their own.
#[derive(Debug)]
pub struct WireGuards {
    /// The lab and the daemons.
    pub mesh: Mesh,
    nodes: BTreeMap<String, Interface>,
    generations: u8,
}

#[derive(Debug)]
struct Interface {
    key: PrivateKey,
    number: u8,
    /// wireguard-go's.
    process: Option<Process>,
}

impl WireGuards {
    /// Builds the lab, and an interface with key, address and port on each of these nodes.
    pub fn build(config: LabConfig, nodes: &[&str]) -> Result<Self> {
        let mut all = Self {
            mesh: Mesh::build(config)?,
            nodes: BTreeMap::new(),
            generations: 0,
        };
        for node in nodes {
            all.add_interface(node)?;
        }
        Ok(all)
    }

    /// Peers without endpoints, each with each.
    pub fn join_all(&self) -> Result<()> {
        for node in self.nodes.keys() {
            for peer in self.nodes.keys().filter(|peer| *peer != node) {
                self.add_peer(node, peer, None)?;
            }
        }
        Ok(())
    }

    /// Adds a peer as `wg set` does, with an endpoint or without.
    pub fn add_peer(&self, node: &str, peer: &str, endpoint: Option<SocketAddr>) -> Result<()> {
        let key = self.key(peer)?.to_string();
        let allowed = format!("{}/32", self.address(peer)?);
        let mut arguments = vec!["set", WG, "peer", &key, "allowed-ips", &allowed];
        let endpoint = endpoint.map(|endpoint| endpoint.to_string());
        if let Some(endpoint) = &endpoint {
            arguments.extend(["endpoint", endpoint]);
        }
        self.wg(node, &arguments).map(drop)
    }

    /// Adds so many peers that nobody is.
    pub fn add_strangers(&self, node: &str, count: usize) -> Result<()> {
        let mut text = String::new();
        for number in 0..count {
            let mut secret = [0; 32];
            secret[8..16].copy_from_slice(&(number as u64 + 1).to_be_bytes());
            let key = PrivateKey::from_bytes(secret).public_key();
            let (high, low) = (number / 250, number % 250 + 1);
            text.push_str(&format!(
                "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.67.{high}.{low}/32\n"
            ));
            text.push_str(&format!("Endpoint = 203.0.113.200:{}\n", 10_000 + number));
        }
        self.wg_with(node, &["addconf", WG, "/dev/stdin"], &text)
            .map(drop)
    }

    /// Points a peer elsewhere, as another program would.
    pub fn set_endpoint(&self, node: &str, peer: &str, endpoint: SocketAddr) -> Result<()> {
        let key = self.key(peer)?.to_string();
        let endpoint = endpoint.to_string();
        self.wg(node, &["set", WG, "peer", &key, "endpoint", &endpoint])
            .map(drop)
    }

    /// Starts `wice attach` on a node, with the token, and with paths through the proxy unless `more` says
    /// otherwise.
    pub fn attach(&mut self, node: &str, more: &[&str]) -> Result<()> {
        let token = self.mesh.token().to_owned();
        self.start(node, Some(&token), more)
    }

    /// Starts it without: the node has joined before.
    pub fn attach_again(&mut self, node: &str) -> Result<()> {
        self.start(node, None, &[])
    }

    /// The same, with direct paths bound as `--direct` says.
    pub fn attach_again_by(&mut self, node: &str, direct: &str) -> Result<()> {
        self.start(node, None, &["--direct", direct])
    }

    /// Starts it with the token and no capabilities but these, like `+net_admin,+net_raw`.
    pub fn attach_with_capabilities(&mut self, node: &str, capabilities: &str) -> Result<()> {
        let capabilities = format!("-all,{capabilities}");
        let binary = self.mesh.lab.binary()?;
        let machine = self.mesh.lab.node(node)?;
        let authority = self.mesh.lab.authority();
        let daemon = self.mesh.lab.start(node, node, |ns| {
            let mut command = ns.command("setpriv");
            command.args(["--bounding-set", &capabilities]);
            command.args(["--inh-caps", &capabilities, "--no-new-privs"]);
            command.arg(binary).args(["attach", WG, self.mesh.token()]);
            command.args(["--name", node]);
            command.arg("--state-dir").arg(machine.state_dir());
            command.arg("--run-dir").arg(machine.run_dir());
            command.env("WICE_CA_FILE", authority);
            command
        })?;
        self.mesh.take(node, daemon);
        Ok(())
    }

    fn start(&mut self, node: &str, token: Option<&str>, more: &[&str]) -> Result<()> {
        let direct = ["--direct", "proxy"];
        let direct = direct.iter().filter(|_| !more.contains(&"--direct"));
        let more: Vec<&str> = more.iter().chain(direct).copied().collect();
        let daemon = self.mesh.lab.start_attached(node, WG, token, &more)?;
        self.mesh.take(node, daemon);
        Ok(())
    }

    /// Waits until a peer's endpoint is its slot.
    pub fn wait_slot(&self, node: &str, peer: &str) -> Result<()> {
        let slot = wait_for(crate::PATIENCE, || {
            let shown = self.shown(node, peer, "endpoints")?;
            Ok(shown.filter(|shown| shown.starts_with("127.")))
        })?;
        ensure!(slot.is_some(), "{}", self.evidence(node, peer));
        Ok(())
    }

    /// Waits until a peer has an endpoint: a packet for one without costs 5 s.
    pub fn wait_endpoint(&self, node: &str, peer: &str) -> Result<()> {
        let shown = wait_for(crate::PATIENCE, || {
            let shown = self.shown(node, peer, "endpoints")?;
            Ok(shown.filter(|shown| shown != "(none)"))
        })?;
        shown.map(drop).with_context(|| self.evidence(node, peer))
    }

    /// Waits until a peer's endpoint is its own address, and gives that.
    pub fn wait_native(&self, node: &str, peer: &str) -> Result<SocketAddr> {
        let native = wait_for(crate::PATIENCE, || {
            let shown = self.shown(node, peer, "endpoints")?;
            let address = shown.and_then(|shown| shown.parse::<SocketAddr>().ok());
            Ok(address.filter(|address| !address.ip().is_loopback()))
        })?;
        native.with_context(|| self.evidence(node, peer))
    }

    /// Pings a node's inner address from another until the result is dropped.
    pub fn pings(&self, from: &str, to: &str, interval: Duration) -> Result<Pings> {
        self.mesh.pings_to(from, self.address(to)?, interval)
    }

    /// Waits until both ping each other, and gives how long after `start` that was.
    pub fn first_pings(&self, first: &str, second: &str, start: Instant) -> Result<Duration> {
        self.first_pings_apart(first, second, Duration::ZERO, start)
    }

    /// The same with the second to begin after the first by so much.
    pub fn first_pings_apart(
        &self,
        first: &str,
        second: &str,
        apart: Duration,
        start: Instant,
    ) -> Result<Duration> {
        const EVERY: Duration = Duration::from_millis(10);
        let there = self.pings(first, second, EVERY)?;
        std::thread::sleep(apart);
        let back = self.pings(second, first, EVERY)?;
        let answers = [&there, &back].map(|pings| pings.back_after(start, crate::PATIENCE));
        let [Some(there), Some(back)] = answers else {
            bail!(
                "{first} and {second}: {answers:?}\n{}",
                self.evidence(first, second)
            );
        };
        Ok(there.max(back))
    }

    /// What daemons and WireGuard say.
    pub fn evidence(&self, first: &str, second: &str) -> String {
        let mut text = self.mesh.evidence(first, second);
        for node in [first, second] {
            let shown = self
                .wg(node, &["show", WG])
                .unwrap_or_else(|e| e.to_string());
            text.push_str(&format!("--- {node}: wg show\n{shown}"));
        }
        text
    }

    /// A column of `wg show INTERFACE COLUMN` for a peer: `endpoints`, `latest-handshakes`.
    pub fn shown(&self, node: &str, peer: &str, column: &str) -> Result<Option<String>> {
        let key = self.key(peer)?.to_string();
        let text = self.wg(node, &["show", WG, column])?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key.as_str()));
        Ok(line.map(|rest| rest.trim().to_owned()))
    }

    /// Replaces the interface's configuration as a file would (`wg setconf` or `wg syncconf`), with
    /// these peers and endpoints.
    pub fn apply(&self, node: &str, how: &str, peers: &[(&str, Option<SocketAddr>)]) -> Result<()> {
        let key = STANDARD.encode(self.interface(node)?.key.expose_secret());
        let mut text = format!("[Interface]\nPrivateKey = {key}\nListenPort = {PORT}\n");
        for (peer, endpoint) in peers {
            let (key, address) = (self.key(peer)?, self.address(peer)?);
            text.push_str(&format!(
                "[Peer]\nPublicKey = {key}\nAllowedIPs = {address}/32\n"
            ));
            if let Some(endpoint) = endpoint {
                text.push_str(&format!("Endpoint = {endpoint}\n"));
            }
        }
        self.wg_with(node, &[how, WG, "/dev/stdin"], &text)
            .map(drop)
    }

    /// Gives a node a new key, on its own interface and nowhere else.
    pub fn rotate(&mut self, node: &str) -> Result<PublicKey> {
        self.generations += 1;
        let key = PrivateKey::from_bytes([200 + self.generations; 32]);
        let before = self.key(node)?;
        self.set_key(node, &key)?;
        let interface = self.nodes.get_mut(node).context("no such interface")?;
        interface.key = key;
        Ok(before)
    }

    /// A node's public key.
    pub fn key(&self, node: &str) -> Result<PublicKey> {
        Ok(self.interface(node)?.key.public_key())
    }

    /// A node's inner address.
    pub fn address(&self, node: &str) -> Result<IpAddr> {
        Ok(Ipv4Addr::new(10, 66, 0, self.interface(node)?.number).into())
    }

    /// Runs `wg` on a node, and gives what it prints.
    pub fn wg(&self, node: &str, arguments: &[&str]) -> Result<String> {
        self.wg_with(node, arguments, "")
    }

    /// Runs `ip` on a node.
    pub fn ip(&self, node: &str, arguments: &str) -> Result<()> {
        let mut command = self.mesh.lab.command(node, "ip")?;
        let output = command.args(arguments.split_whitespace()).output()?;
        ensure!(
            output.status.success(),
            "{node}: ip {arguments}: {output:?}"
        );
        Ok(())
    }

    /// Takes the interface away: the link, or wireguard-go.
    pub fn remove_interface(&mut self, node: &str) -> Result<()> {
        let interface = self.nodes.get_mut(node).context("no such interface")?;
        match interface.process.take() {
            Some(mut process) => {
                process.stop();
                Ok(())
            }
            None => self.ip(node, &format!("link delete {WG}")),
        }
    }

    /// Moves a userspace interface to another node's namespace while `look` looks, and makes it anew
    /// afterwards. `None` for the kernel's: nothing of it stays behind.
    pub fn while_elsewhere<T>(
        &mut self,
        node: &str,
        other: &str,
        look: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.interface(node)?.process.is_none() {
            return Ok(None);
        }
        let there = self.mesh.lab.node(other)?.ns().path();
        let there = there.display().to_string();
        self.ip(node, &format!("link set {WG} netns {there}"))?;
        let seen = look(self);
        self.remove_interface(node)?;
        self.add_interface(node)?;
        seen.map(Some)
    }

    /// Makes the interface, with the node's key if it had one before.
    pub fn add_interface(&mut self, node: &str) -> Result<()> {
        let process = match wanted_kind()?.as_str() {
            "kernel" => {
                self.ip(node, &format!("link add {WG} type wireguard"))?;
                None
            }
            _ => Some(self.start_userspace(node)?),
        };
        let count = u8::try_from(self.nodes.len())?;
        let interface = self.nodes.entry(node.into()).or_insert_with(|| Interface {
            key: PrivateKey::from_bytes([100 + count; 32]),
            number: count + 1,
            process: None,
        });
        interface.process = process;
        // Both at once: gotatun 0.10.2 that gets another key or port while it runs may take the end of its own tasks for
        // an error of its device, and ends ("channel closed").
        let (key, port) = (
            STANDARD.encode(interface.key.expose_secret()),
            PORT.to_string(),
        );
        let both = ["set", WG, "listen-port", &port, "private-key", "/dev/stdin"];
        self.wg_with(node, &both, &key)?;
        self.ip(
            node,
            &format!("address add {}/24 dev {WG}", self.address(node)?),
        )?;
        self.ip(node, &format!("link set {WG} mtu 1280 up"))
    }

    fn start_userspace(&self, node: &str) -> Result<Process> {
        let name = format!("{node}-wireguard-go");
        let mut process = self.mesh.lab.start(node, &name, |ns| {
            let program = std::env::var_os("WICE_TEST_USERSPACE");
            let mut command = ns.command(program.unwrap_or_else(|| "wireguard-go".into()));
            // It warns of being used where the kernel could do it.
            command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
            // gotatun and boringtun-cli become another user where there is a login.
            command.env("WG_SUDO", "true");
            command.args(["-f", WG]);
            command
        })?;
        let ready = wait_for(READY, || Ok(listens(process.pid(), WG).then_some(())))?;
        if ready.is_none() {
            let status = process.status();
            bail!(process.failed(format!("has no interface ({status:?})")));
        }
        Ok(process)
    }

    fn set_key(&self, node: &str, key: &PrivateKey) -> Result<()> {
        let text = STANDARD.encode(key.expose_secret());
        self.wg_with(node, &["set", WG, "private-key", "/dev/stdin"], &text)
            .map(drop)
    }

    fn interface(&self, node: &str) -> Result<&Interface> {
        self.nodes
            .get(node)
            .with_context(|| format!("{node} has no interface"))
    }

    fn wg_with(&self, node: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .mesh
            .lab
            .command(node, "wg")?
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // What does not read it ends without.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{node}: wg {arguments:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The kernel's WireGuard where there is one, unless it is said otherwise.
fn wanted_kind() -> Result<String> {
    match std::env::var("WICE_TEST_WIREGUARD") {
        Ok(kind) if ["kernel", "userspace"].contains(&kind.as_str()) => Ok(kind),
        Ok(kind) => bail!("WICE_TEST_WIREGUARD is {kind:?}: give kernel or userspace"),
        Err(_) => {
            let in_kernel = std::path::Path::new("/sys/module/wireguard").exists();
            Ok(if in_kernel { "kernel" } else { "userspace" }.into())
        }
    }
}

/// Whether a userspace WireGuard listens at its socket (proc(5), `/proc/net/unix`: path, and
/// `__SO_ACCEPTCON` among the flags) and has its device. Not asked by `wg`: it takes a socket that does not
/// listen yet for a dead one, and removes it.
pub(crate) fn listens(pid: u32, interface: &str) -> bool {
    const LISTENING: &str = " 00010000 ";
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}"));
    let (sockets, devices) = (
        read("unix").unwrap_or_default(),
        read("dev").unwrap_or_default(),
    );
    // boringtun-cli names its folder with two slashes.
    let path = format!("/{interface}.sock");
    let is_socket = |line: &str| line.ends_with(&path) && line.contains(LISTENING);
    let is_device = |line: &str| line.trim_start().starts_with(&format!("{interface}:"));
    sockets.lines().any(is_socket) && devices.lines().any(is_device)
}
