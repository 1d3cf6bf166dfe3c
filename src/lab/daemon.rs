//! wice in the lab: how its daemons and its signaling service are started and asked. All that the
//! lab knows of wice's command line is here.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::config::Ipv6;
use super::error::{Doing as _, LabError};
use super::netns::NetNs;
use super::plan::{SIGNAL, SIGNAL_NAME, STUN_2, STUN_2_NAME, TURN, TURN_NAME};
use super::probe::{self, Pong};
use super::process::Process;
use super::servers::{Ready, STUN_PORT, TURN_SECRET, TURNS_PORT, WEB_TLS_PORT};
use super::world::{Lab, Node};

/// The overlay interface of a lab's node.
pub const INTERFACE: &str = "wice0";
/// Where the signaling service listens: a port that every home lets out.
pub const SIGNAL_PORT: u16 = 443;
/// How often a path's first ping is tried: what is measured is right to this.
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// How often a new node's address is looked for.
const ADDRESS_POLL: Duration = Duration::from_millis(2);
/// How often a new node is asked whether it has settled.
const SETTLE_POLL: Duration = Duration::from_millis(20);
/// Where programs look for a proxy.
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
/// The name of the lab's network.
const NETWORK: &str = "lab";
/// The machine that has the network's admin key.
const ADMIN: &str = "signal";

/// A peer as `wice status --json` has it; what the lab does not show is left out.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct PeerStatus {
    /// The peer's node name.
    pub name: String,
    /// Its key.
    #[serde(default)]
    pub key: String,
    /// Its path.
    pub path: PathStatus,
    /// Round trip of the path in milliseconds.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// Why the path is what it is.
    #[serde(default)]
    pub reason: Option<String>,
    /// How often the path has changed.
    #[serde(default)]
    pub path_changes: u64,
}

/// A path as `wice status --json` has it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct PathStatus {
    /// `native`, `direct`, `relayed` or `none`.
    pub kind: String,
    /// The end here.
    #[serde(default)]
    pub local: Option<EndStatus>,
    /// The end there.
    #[serde(default)]
    pub remote: Option<EndStatus>,
    /// `udp`, `tcp` or `tls`.
    #[serde(default)]
    pub relay_transport: Option<String>,
}

/// An end of a path.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct EndStatus {
    /// `host`, `srflx`, `prflx`, `mapped` or `relay`.
    pub kind: String,
    /// Its transport address.
    #[serde(default)]
    pub address: Option<SocketAddr>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    peers: Vec<PeerStatus>,
    #[serde(default)]
    signaling: SignalingStatus,
    #[serde(default)]
    relays: Vec<RelayStatus>,
}

#[derive(Default, Deserialize)]
struct SignalingStatus {
    connected: bool,
}

#[derive(Deserialize)]
struct RelayStatus {
    relayed: Option<SocketAddr>,
}

impl Lab {
    /// The `wice` that runs here.
    pub fn binary(&self) -> Result<PathBuf, LabError> {
        match &self.config.binary {
            Some(binary) => Ok(binary.clone()),
            None => std::env::current_exe().doing(|| "finding the running program".into()),
        }
    }

    /// The signaling service's URL: by name where a home has IPv6, since it may have nothing else.
    pub fn signal_url(&self) -> String {
        if self.has_ipv6() {
            format!("wss://{SIGNAL_NAME}:{SIGNAL_PORT}")
        } else {
            format!("wss://{SIGNAL}:{SIGNAL_PORT}")
        }
    }

    fn has_ipv6(&self) -> bool {
        self.config.homes.iter().any(|home| home.ipv6 != Ipv6::None)
    }

    /// Starts the signaling service, which also hands out the relay's credentials.
    pub fn start_signal(&mut self) -> Result<(), LabError> {
        let (listen, turn, stun_2) = if self.has_ipv6() {
            let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), SIGNAL_PORT);
            (any, TURN_NAME.to_string(), STUN_2_NAME.to_string())
        } else {
            let listen = SocketAddr::new(SIGNAL.into(), SIGNAL_PORT);
            (listen, TURN.to_string(), STUN_2.to_string())
        };
        let (binary, state) = (self.binary()?, self.node(ADMIN)?.state_dir());
        let mut relays = vec![
            format!("turn:{turn}:{STUN_PORT}?transport=udp"),
            format!("turn:{turn}:{STUN_PORT}?transport=tcp"),
        ];
        relays.extend([TURNS_PORT, WEB_TLS_PORT].map(|port| format!("turns:{turn}:{port}")));
        relays.push(format!("stun:{stun_2}:{STUN_PORT}"));
        self.start_service(ADMIN, "signaling", &[Ready::Tcp(listen)], |ns| {
            let mut command = ns.command(binary);
            command
                .arg("signal")
                .args(["--listen", &listen.to_string()]);
            command.arg("--state-dir").arg(state);
            command.args(["--turn-secret", TURN_SECRET]);
            for relay in relays {
                command.args(["--turn", &relay]);
            }
            command
        })
    }

    /// Makes the lab's network and gives an invitation to it.
    pub fn network_token(&self) -> Result<String, LabError> {
        self.new_network(NETWORK)
    }

    /// Makes a network, beside those that are there, and gives an invitation to it.
    pub fn new_network(&self, name: &str) -> Result<String, LabError> {
        let url = self.signal_url();
        self.admin(&["network", "new", name, "--signal", &url])?;
        let printed = self.admin(&["invite", "--network", name])?;
        let token = printed.split_whitespace().last().map(str::to_string);
        token.ok_or_else(|| LabError::Tool {
            program: "wice invite".into(),
            namespace: ADMIN.into(),
            stderr: "it printed no token".into(),
        })
    }

    /// Starts a node's daemon; `token` is `None` for a node that has joined before. `more` is
    /// added to the command line.
    pub fn start_daemon(
        &self,
        node: &str,
        token: Option<&str>,
        more: &[&str],
    ) -> Result<Process, LabError> {
        let more: Vec<&str> = ["--interface", INTERFACE]
            .iter()
            .chain(more)
            .copied()
            .collect();
        self.start_wice(node, &["up"], token, &more)
    }

    /// Starts a node's daemon on an interface that is there already.
    pub fn start_attached(
        &self,
        node: &str,
        interface: &str,
        token: Option<&str>,
        more: &[&str],
    ) -> Result<Process, LabError> {
        self.start_wice(node, &["attach", interface], token, more)
    }

    fn start_wice(
        &self,
        node: &str,
        subcommand: &[&str],
        token: Option<&str>,
        more: &[&str],
    ) -> Result<Process, LabError> {
        let binary = self.binary()?;
        let machine = self.node(node)?;
        let authority = self.authority();
        self.start(node, node, |ns| {
            let mut command = ns.command(binary);
            command.args(subcommand).args(token);
            command.arg("--state-dir").arg(machine.state_dir());
            command.arg("--run-dir").arg(machine.run_dir());
            command.args(["--name", node]);
            command.env("WICE_CA_FILE", authority).args(more);
            // The machine's own proxy is not in the lab.
            for variable in PROXY_VARIABLES {
                command.env_remove(variable);
            }
            command
        })
    }

    /// The peers that a node's daemon reports; none while it does not answer.
    pub fn peers(&self, node: &str) -> Result<Vec<PeerStatus>, LabError> {
        let status = self.status(node)?;
        Ok(status.map(|status| status.peers).unwrap_or_default())
    }

    /// Waits until a node is in and has a relay, or for `patience`; tells which.
    pub fn wait_settled(&self, node: &str, patience: Duration) -> Result<bool, LabError> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let status = self.status(node)?;
            if status.is_some_and(|status| {
                status.signaling.connected && status.relays.iter().any(|r| r.relayed.is_some())
            }) {
                return Ok(true);
            }
            if super::tools::interrupted() {
                return Err(LabError::Interrupted);
            }
            std::thread::sleep(SETTLE_POLL);
        }
        Ok(false)
    }

    fn status(&self, node: &str) -> Result<Option<Status>, LabError> {
        let output = self.wice(node, &["status", "--json"])?;
        Ok(serde_json::from_slice(&output.stdout).ok())
    }

    /// Runs a command of wice on a machine, for the daemon and the state that are there.
    pub fn wice(&self, machine: &str, arguments: &[&str]) -> Result<Output, LabError> {
        let node = self.node(machine)?;
        let mut command = node.ns().command(self.binary()?);
        command
            .args(arguments)
            .env("WICE_RUN_DIR", node.run_dir())
            .env("WICE_STATE_DIR", node.state_dir());
        command
            .output()
            .doing(|| format!("running wice {} on {machine}", arguments.join(" ")))
    }

    /// The overlay address of a node: what its kernel has on the overlay interface.
    pub fn overlay_address(&self, node: &str) -> Result<Option<Ipv4Addr>, LabError> {
        self.node(node)?
            .ns()
            .run(|| interface_address(INTERFACE))?
            .doing(|| node.to_string())
    }

    /// Pings one node's overlay address from another, every 10 ms from when the address is there,
    /// for as long as `go_on` says so, and gives the first answer.
    pub fn first_overlay_ping(
        &self,
        from: &str,
        to: &str,
        go_on: impl Fn() -> bool + Send,
    ) -> Result<Option<Pong>, LabError> {
        let from = self.node(from)?.ns();
        while go_on() {
            if let Some(address) = self.overlay_address(to)? {
                return probe::ping(from, address, PING_INTERVAL, go_on);
            }
            std::thread::sleep(ADDRESS_POLL);
        }
        Ok(None)
    }

    /// A shell on a machine, in which `wice status` asks that machine's daemon.
    pub fn shell(&self, machine: &str) -> Result<Command, LabError> {
        let ns = self.namespace(machine)?;
        let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        let mut command = ns.command(shell);
        if let Ok(node) = self.node(machine) {
            command
                .env("WICE_RUN_DIR", node.run_dir())
                .env("WICE_STATE_DIR", node.state_dir())
                .env("WICE_CA_FILE", self.authority());
        }
        let folder = self
            .binary()?
            .parent()
            .map(PathBuf::from)
            .unwrap_or_default();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(folder).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        Ok(command)
    }

    /// What `wice` prints for the admin of the networks.
    pub fn admin(&self, arguments: &[&str]) -> Result<String, LabError> {
        let machine: &Node = self.node(ADMIN)?;
        let ns: &NetNs = machine.ns();
        let mut command = ns.command(self.binary()?);
        command
            .args(arguments)
            .arg("--state-dir")
            .arg(machine.state_dir())
            .env("WICE_CA_FILE", self.authority());
        let program = format!("wice {}", arguments.join(" "));
        let output = command.output().doing(|| format!("running {program}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Err(LabError::Tool {
            program,
            namespace: ADMIN.into(),
            stderr,
        })
    }
}

/// The first IPv4 address of an interface of this namespace (netdevice(7), SIOCGIFADDR).
fn interface_address(name: &str) -> io::Result<Option<Ipv4Addr>> {
    use std::os::fd::AsRawFd as _;
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(name.bytes())
    {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFADDR reads and writes one `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFADDR as _, &mut request) } < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // Not there, or without an address, yet.
            Some(libc::ENODEV | libc::EADDRNOTAVAIL) => Ok(None),
            Some(_) | None => Err(error),
        };
    }
    // SAFETY: on success the kernel wrote a `sockaddr_in` into the union.
    let data = unsafe { request.ifr_ifru.ifru_addr.sa_data };
    let octet = |index: usize| data[index] as u8; // sin_port is the first two bytes
    Ok(Some(Ipv4Addr::new(octet(2), octet(3), octet(4), octet(5))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_its_address_and_a_missing_interface_none() {
        assert_eq!(interface_address("lo").unwrap(), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(interface_address("no-such-if").unwrap(), None);
    }

    #[test]
    fn a_status_is_read_with_and_without_what_is_optional() {
        let text = r#"{"schema":1,"peers":[{"name":"home-b","key":"k","path":{"kind":"relayed",
            "local":{"kind":"relay"},"remote":{"kind":"prflx"},"relay_transport":"udp"},
            "rtt_ms":82.0,"reason":"nat-pair-unreachable"},
            {"name":"home-c","path":{"kind":"none","local":null,"remote":null}}]}"#;
        let peers = serde_json::from_str::<Status>(text).unwrap().peers;
        assert_eq!(peers[0].path.relay_transport.as_deref(), Some("udp"));
        assert_eq!(
            peers[1].path,
            PathStatus {
                kind: "none".into(),
                local: None,
                remote: None,
                relay_transport: None
            }
        );
    }
}
