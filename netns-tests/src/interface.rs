//! WireGuard as somebody else runs it: interfaces of the kernel's or of wireguard-go, made on nodes of
//! the lab and driven by `wg`. The environment chooses which, so that one test runs with both.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use wice::lab::{Lab, NetNs, Process};
use wice_signaling::protocol::{PrivateKey, PublicKey};

use crate::wait_for;
use crate::wireguard::listens;

/// Chooses the implementation: `userspace`, which is the default here, or `kernel`.
pub const CHOICE: &str = "WICE_TEST_WIREGUARD";
/// Until wireguard-go has made its device and its socket.
const START: Duration = Duration::from_secs(5);

/// Whose WireGuard it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The kernel's; `make uml` has a kernel with it.
    Kernel,
    /// wireguard-go.
    Userspace,
}

impl Implementation {
    /// What the environment says.
    pub fn chosen() -> Result<Self> {
        match std::env::var(CHOICE).as_deref() {
            Ok("kernel") => Ok(Self::Kernel),
            Ok("userspace" | "") | Err(_) => Ok(Self::Userspace),
            Ok(other) => bail!("{CHOICE} is {other:?}: use kernel or userspace"),
        }
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// A WireGuard interface on a node. wireguard-go's ends with this, the kernel's with the lab.
#[derive(Debug)]
pub struct Interface {
    ns: NetNs,
    name: String,
    key: PrivateKey,
    port: u16,
    process: Option<Process>,
}

impl Interface {
    /// Makes it, with a key of its own, this port and these inner addresses, and sets it up.
    pub fn create(
        lab: &Lab,
        node: &str,
        implementation: Implementation,
        name: &str,
        port: u16,
        addresses: &[&str],
    ) -> Result<Self> {
        let ns = lab.node(node)?.ns().clone();
        let mut interface = Self {
            ns,
            name: name.to_owned(),
            key: generated_key()?,
            port,
            process: None,
        };
        match implementation {
            Implementation::Kernel => {
                let made = interface.run("ip", &["link", "add", name, "type", "wireguard"]);
                made.with_context(|| {
                    format!("{CHOICE}=kernel, and this kernel has no WireGuard: run it by make uml")
                })?;
            }
            Implementation::Userspace => interface.start_wireguard_go(lab, node)?,
        }
        let key_file = lab.directory().join(format!("{node}.{name}.key"));
        std::fs::write(&key_file, base64(interface.key.expose_secret()))?;
        let key_file = key_file.to_str().context("a path is no text")?.to_owned();
        interface.wg(&[
            "set",
            name,
            "listen-port",
            &port.to_string(),
            "private-key",
            &key_file,
        ])?;
        for address in addresses {
            interface.run("ip", &["address", "add", address, "dev", name])?;
        }
        interface.run("ip", &["link", "set", name, "up"])?;
        Ok(interface)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace that it is in.
    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// Its UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its key's public half.
    pub fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    /// Adds a peer, or changes one.
    pub fn set_peer(
        &self,
        key: PublicKey,
        endpoint: Option<SocketAddr>,
        allowed_ips: &str,
    ) -> Result<()> {
        let (key, endpoint) = (key.to_string(), endpoint.map(|e| e.to_string()));
        let mut args = vec!["set", &self.name, "peer", &key, "allowed-ips", allowed_ips];
        if let Some(endpoint) = &endpoint {
            args.extend(["endpoint", endpoint]);
        }
        self.wg(&args).map(drop)
    }

    /// Takes a peer out.
    pub fn remove_peer(&self, key: PublicKey) -> Result<()> {
        let key = key.to_string();
        self.wg(&["set", &self.name, "peer", &key, "remove"])
            .map(drop)
    }

    /// What `wg show NAME WHAT` says of a peer; `None` if the interface does not have it.
    pub fn peer(&self, what: &str, key: PublicKey) -> Result<Option<String>> {
        let text = self.wg(&["show", &self.name, what])?;
        let key = key.to_string();
        let mut lines = text.lines().filter_map(|line| line.split_once('\t'));
        Ok(lines
            .find(|(peer, _)| *peer == key)
            .map(|(_, value)| value.to_owned()))
    }

    /// UNIX seconds of the last handshake with a peer; 0 before the first.
    pub fn handshake(&self, key: PublicKey) -> Result<u64> {
        let text = self.peer("latest-handshakes", key)?;
        Ok(text.context("no such peer")?.parse()?)
    }

    /// Whether an inner address answers a ping within a second.
    pub fn reaches(&self, inner: IpAddr) -> Result<bool> {
        let mut command = self.ns.command("ping");
        let output = command
            .args(["-c", "1", "-W", "1", &inner.to_string()])
            .output()?;
        Ok(output.status.success())
    }

    /// Runs `wg`, and returns what it prints.
    pub fn wg(&self, args: &[&str]) -> Result<String> {
        self.run("wg", args)
    }

    /// Runs a program in the interface's namespace, and returns what it prints.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.ns.command(program).args(args).output();
        let output = output.with_context(|| format!("{program} is not installed"))?;
        ensure!(
            output.status.success(),
            "{program} {} on {}: {}",
            args.join(" "),
            self.ns.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn start_wireguard_go(&mut self, lab: &Lab, node: &str) -> Result<()> {
        let name = self.name.clone();
        let started = lab.start(node, &format!("{node}.{name}"), |ns| {
            let mut command = ns.command("wireguard-go");
            command.args(["--foreground", &name]);
            // It warns of kernels that have WireGuard themselves.
            command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
            command
        });
        let mut process = started.context("wireguard-go is not installed")?;
        let ready = wait_for(START, || {
            ensure!(process.status().is_none(), "{}", process.output());
            Ok(listens(process.pid(), &name).then_some(()))
        })?;
        ready.with_context(|| format!("wireguard-go is not ready: {}", process.output()))?;
        self.process = Some(process);
        Ok(())
    }
}

/// A fresh private key, by `wg`.
fn generated_key() -> Result<PrivateKey> {
    let output = Command::new("wg").arg("genkey").output();
    let text = String::from_utf8(output.context("wg is not installed")?.stdout)?;
    text.trim().parse().context("wg genkey printed no key")
}

fn base64(key: &[u8; 32]) -> String {
    PublicKey(*key).to_string()
}
