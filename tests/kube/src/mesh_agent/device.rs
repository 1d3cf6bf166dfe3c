//! The interface and the routes of a node, by `wg` and `ip`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use wice::lab::NetNs;

use super::topology::{Device, Peer, Wanted};
use super::{INTERFACE, PORT};

/// How addresses of Kilo's subnet, 10.4.0.0/16, begin.
const SUBNET: &str = "10.4.";

/// Where the interface is, and what was set there.
pub(super) struct Machine {
    ns: NetNs,
    address: String,
    routes: BTreeMap<String, Option<IpAddr>>,
}

impl Machine {
    pub(super) fn new(ns: NetNs) -> Self {
        Self {
            ns,
            address: String::new(),
            routes: BTreeMap::new(),
        }
    }

    /// The public key of the interface.
    pub(super) fn public_key(&self) -> Result<String> {
        let key = self.wg(&["show", INTERFACE, "public-key"], "")?;
        Ok(key.trim().to_owned())
    }

    /// The interface as it is.
    pub(super) fn read(&self) -> Result<Device> {
        let text = self.wg(&["show", INTERFACE, "dump"], "")?;
        let mut lines = text.lines();
        let key = lines.next().and_then(|line| line.split('\t').next());
        let mut device = Device {
            private_key: key.context("no interface")?.to_owned(),
            ..Device::default()
        };
        for line in lines {
            let fields: Vec<&str> = line.split('\t').collect();
            let [key, _, endpoint, allowed, handshake, _, _, keepalive] = fields[..] else {
                continue;
            };
            if handshake != "0" {
                device.handshakes.insert(key.to_owned());
            }
            let allowed = allowed.split(',').filter(|ip| *ip != "(none)");
            let peer = Peer {
                endpoint: endpoint.parse().ok(),
                allowed: allowed.map(str::to_owned).collect::<BTreeSet<_>>(),
                keepalive: keepalive.parse().unwrap_or(0),
            };
            device.peers.insert(key.to_owned(), peer);
        }
        Ok(device)
    }

    /// Makes it so; true if all peers were replaced, which any difference does.
    pub(super) fn apply(&mut self, device: &Device, wanted: Wanted) -> Result<bool> {
        if self.address != wanted.address {
            self.address(&wanted.address)?;
            self.address = wanted.address;
        }
        let replaced = device.peers != wanted.peers;
        if replaced {
            let text = configuration(&device.private_key, &wanted.peers);
            self.wg(&["setconf", INTERFACE, "/dev/stdin"], &text)?;
        }
        self.route(wanted.routes)?;
        Ok(replaced)
    }

    /// Takes the routes away, as `--clean-up` does.
    pub(super) fn clean_up(&mut self) -> Result<()> {
        self.route(BTreeMap::new())
    }

    /// Gives the interface this address of Kilo's subnet and no other; those of pods stay.
    fn address(&self, wanted: &str) -> Result<()> {
        let show = ["-o", "-4", "address", "show", "dev", INTERFACE];
        let text = crate::output(self.ns.command("ip").args(show))?;
        let there = text
            .split_whitespace()
            .filter(|word| word.starts_with(SUBNET));
        for old in there.filter(|old| *old != wanted) {
            self.ip(&["address", "del", old, "dev", INTERFACE])?;
        }
        self.ip(&["address", "replace", wanted, "dev", INTERFACE])
    }

    fn route(&mut self, wanted: BTreeMap<String, Option<IpAddr>>) -> Result<()> {
        for to in self.routes.keys().filter(|to| !wanted.contains_key(*to)) {
            // An interface that has lost the address has lost its routes with it.
            let _ = self.ip(&["route", "del", to, "dev", INTERFACE]);
        }
        for (to, through) in &wanted {
            if self.routes.get(to) == Some(through) {
                continue;
            }
            let through = through.map(|ip| ip.to_string());
            let mut arguments = vec!["route", "replace", to];
            arguments.extend(through.iter().flat_map(|ip| ["via", ip]));
            arguments.extend(["dev", INTERFACE]);
            arguments.extend(through.iter().map(|_| "onlink"));
            self.ip(&arguments)?;
        }
        self.routes = wanted;
        Ok(())
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        crate::output(self.ns.command("ip").args(arguments)).map(drop)
    }

    fn wg(&self, arguments: &[&str], input: &str) -> Result<String> {
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

fn configuration(private_key: &str, peers: &BTreeMap<String, Peer>) -> String {
    let mut text = format!("[Interface]\nPrivateKey = {private_key}\nListenPort = {PORT}\n");
    for (key, peer) in peers {
        let allowed: Vec<&str> = peer.allowed.iter().map(String::as_str).collect();
        text += &format!(
            "[Peer]\nPublicKey = {key}\nAllowedIPs = {}\nPersistentKeepalive = {}\n",
            allowed.join(", "),
            peer.keepalive
        );
        if let Some(endpoint) = peer.endpoint {
            text += &format!("Endpoint = {endpoint}\n");
        }
    }
    text
}
