//! A machine outside of the cluster that is a Kilo Peer there, and the bridge between.

use anyhow::{Context as _, Result};
use wice::lab::Process;
use wice_netns_tests::Want;
use wice_netns_tests::interface::{Implementation, Interface};

use super::{API_MACHINE, KubeMesh, SETTLED};
use crate::mesh_agent::PORT;
use crate::{output, wait_until, wice_binary};

/// What somebody who is not Kilo calls an interface.
pub(super) const OUTSIDE_INTERFACE: &str = "wg0";

impl KubeMesh {
    /// Registers a home's machine as the Peer `peer`, gives it an interface with these Nodes as peers, without endpoints, and starts
    /// `wice attach`. Its address is 10.5.0.NUMBER.
    pub fn join_outside(
        &mut self,
        home: &str,
        peer: &str,
        nodes: &[&str],
        token: &str,
    ) -> Result<()> {
        let (_, number) = self.kinds.get(home).context("no such home")?;
        let address = format!("10.5.0.{number}/32");
        let (kind, name) = (Implementation::Userspace, OUTSIDE_INTERFACE);
        let interface = Interface::create(&self.lab, home, kind, name, PORT, &[&address])?;
        let object = serde_json::json!({
            "apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer", "metadata": {"name": peer},
            "spec": {"publicKey": interface.public_key().to_string(), "allowedIPs": [address],
                "persistentKeepalive": 25},
        });
        self.cluster.apply(&object.to_string())?;
        for node in nodes {
            let (_, number) = self.kinds.get(*node).context("no such home")?;
            let key = self.interface(node)?.public_key();
            let pods = format!("10.42.{number}.0/24");
            let allowed = format!("{pods},10.4.0.{number}/32");
            interface.set_peer(key, None, &allowed)?;
            let key = key.to_string();
            interface.wg(&["set", name, "peer", &key, "persistent-keepalive", "25"])?;
            for to in allowed.split(',') {
                let mut route = interface.ns().command("ip");
                output(route.args(["route", "replace", to, "dev", name]))?;
            }
        }
        let daemon = self.lab.start_attached(home, name, Some(token), &[])?;
        self.daemons.insert(home.to_owned(), daemon);
        self.interfaces.insert(home.to_owned(), interface);
        Ok(())
    }

    /// Starts `wice bridge` as its pod does: with the token of its ServiceAccount.
    pub fn start_bridge(&mut self, token: &str) -> Result<()> {
        let account = self.cluster.account_token("wice-bridge")?;
        let account = self.cluster.file("token-bridge", &account)?;
        let state = self.cluster.file("bridge.toml", "")?;
        let (binary, url, ca) = (wice_binary()?, self.cluster.url(), self.cluster.ca_file());
        let authority = self.lab.authority();
        let bridge = self.lab.start(API_MACHINE, "bridge", |ns| {
            let mut command = ns.command(binary);
            command.args(["bridge", token, "--api-server", &url]);
            command.arg("--api-ca-file").arg(ca);
            command.arg("--api-token-file").arg(account);
            command
                .arg("--state-dir")
                .arg(state.with_extension("state"));
            command
                .arg("--config")
                .arg(state)
                .env("WICE_CA_FILE", authority);
            for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
                command.env_remove(proxy);
            }
            command
        })?;
        self.bridge = Some(bridge);
        Ok(())
    }

    /// What the bridge has logged.
    #[must_use]
    pub fn bridge_log(&self) -> String {
        self.bridge
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// Ends the bridge at once.
    pub fn kill_bridge(&mut self) {
        if let Some(mut bridge) = self.bridge.take() {
            bridge.kill9();
        }
    }

    /// Waits until the path between a Node and a machine outside is as the NATs allow, as both say: the Node calls the machine by its
    /// Peer object, the machine calls the Node by its name.
    pub fn wait_outside(&self, node: &str, home: &str, peer: &str) -> Result<()> {
        let kind = |name: &str| self.kinds.get(name).map(|(kind, _)| *kind);
        let kinds = kind(node).zip(kind(home)).context("no such home")?;
        let want = Want::of(kinds.0, kinds.1);
        let mut objection = None;
        let waited = wait_until("the path", SETTLED, || {
            objection = match (self.peer(node, peer), self.peer(home, node)) {
                (Ok(there), Ok(back)) => want.objection(there.as_ref(), back.as_ref()),
                (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
            };
            objection.is_none()
        });
        waited.map(drop).with_context(|| {
            let evidence = self.evidence(&[node, home]);
            let bridge = self.bridge_log();
            format!("{node} and {home}: {objection:?}\n{evidence}\n--- bridge\n{bridge}")
        })
    }
}
