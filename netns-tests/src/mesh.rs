//! A lab with a network in it, and the daemons of its nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use wice::lab::{Lab, LabConfig, PeerStatus, Pings, Process};

use crate::want::{Want, described};
use crate::{PATIENCE, lab, wait_for};

/// How often a new path is pinged: times are right to this.
const FIRST_PING: Duration = Duration::from_millis(10);
/// A pair that must be relayed must still be so after this: a direct path, where there is one,
/// follows within a second.
const STAYS: Duration = Duration::from_secs(1);
/// Overlay pings of a path that stands: some round trips, and a handshake that has to be repeated
/// (WireGuard §6.4: after 5 s).
const PING_PATIENCE: Duration = Duration::from_secs(7);
/// Lines of a daemon's log that a failure quotes.
const LAST_LINES: usize = 40;

/// A lab with a network in it, and daemons. Dropping it ends all of it.
#[derive(Debug)]
pub struct Mesh {
    daemons: BTreeMap<String, Process>,
    /// The lab.
    pub lab: Lab,
    token: String,
    /// Networks made after the first.
    renewals: u32,
}

/// What came of a pair.
#[derive(Clone, Debug)]
pub struct Pinged {
    /// The path, as the first says it.
    pub path: String,
    /// From the second's start until its ping was answered, or the first's, whichever was later.
    pub first_ping: Duration,
    /// Until the path was as it must be, by both reports.
    pub settled: Duration,
}

impl Mesh {
    /// Builds the lab, starts the signaling service and makes the network.
    pub fn build(config: LabConfig) -> Result<Self> {
        let mut lab = lab(config)?;
        lab.start_signal()?;
        let token = lab.network_token()?;
        Ok(Self {
            daemons: BTreeMap::new(),
            lab,
            token,
            renewals: 0,
        })
    }

    /// Ends all daemons and makes everything as it was at first: no state, no flows in the routers,
    /// and a network that nobody has joined. The signaling service must be up.
    pub fn start_over(&mut self) -> Result<()> {
        for daemon in self.daemons.values_mut() {
            daemon.signal(libc::SIGINT); // all at once, before each is waited for; interfaces go, too
        }
        for mut daemon in std::mem::take(&mut self.daemons).into_values() {
            daemon.stop();
        }
        for home in self.lab.config().homes.clone() {
            self.lab.reboot_nat(&home.name)?;
            for index in 0..home.nodes {
                let node = self.lab.node(&home.node_name(index))?;
                for folder in [node.state_dir(), node.run_dir()] {
                    std::fs::remove_dir_all(&folder)?;
                    std::fs::create_dir(&folder)?;
                }
            }
        }
        self.renewals += 1;
        self.token = self.lab.new_network(&format!("lab-{}", self.renewals))?;
        Ok(())
    }

    /// Starts a node's daemon with the token.
    pub fn up(&mut self, node: &str, more: &[&str]) -> Result<()> {
        let token = self.token.clone();
        let daemon = self.lab.start_daemon(node, Some(&token), more)?;
        self.daemons.insert(node.into(), daemon);
        Ok(())
    }

    /// Starts it without: the node has joined before.
    pub fn up_again(&mut self, node: &str) -> Result<()> {
        let daemon = self.lab.start_daemon(node, None, &[])?;
        self.daemons.insert(node.into(), daemon);
        Ok(())
    }

    /// Takes a daemon that was started otherwise.
    pub fn take(&mut self, node: &str, daemon: Process) {
        self.daemons.insert(node.into(), daemon);
    }

    /// The token that nodes join with.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A node's daemon.
    pub fn daemon(&mut self, node: &str) -> Result<&mut Process> {
        let daemon = self.daemons.get_mut(node);
        daemon.with_context(|| format!("no daemon was started on {node}"))
    }

    /// What a node says of a peer.
    pub fn peer(&self, node: &str, peer: &str) -> Result<Option<PeerStatus>> {
        let peers = self.lab.peers(node)?;
        Ok(peers.into_iter().find(|status| status.name == peer))
    }

    /// A node's overlay address, once it has one.
    pub fn address(&self, node: &str) -> Result<IpAddr> {
        let address = wait_for(PATIENCE, || Ok(self.lab.overlay_address(node)?))?;
        let address = address.with_context(|| format!("{node} has no overlay address"))?;
        Ok(address.into())
    }

    /// Pings a node's overlay address from another until the result is dropped.
    pub fn pings(&self, from: &str, to: &str, interval: Duration) -> Result<Pings> {
        self.pings_to(from, self.address(to)?, interval)
    }

    /// The same to any address.
    pub fn pings_to(&self, from: &str, to: IpAddr, interval: Duration) -> Result<Pings> {
        Ok(Pings::start(self.lab.node(from)?.ns(), to, interval)?)
    }

    /// Starts two daemons, the second at once after the first, and waits for what must come.
    pub fn meet(&mut self, first: &str, second: &str, want: &Want) -> Result<Pinged> {
        self.up(first, &[])?;
        self.up(second, &[])?;
        self.met(first, second, want, Instant::now())
    }

    /// Waits until two nodes, the later of which was started at `start`, ping each other on the
    /// path that they must have.
    pub fn met(
        &mut self,
        first: &str,
        second: &str,
        want: &Want,
        start: Instant,
    ) -> Result<Pinged> {
        let there = self.pings(first, second, FIRST_PING)?;
        let back = self.pings(second, first, FIRST_PING)?;
        let answers = [&there, &back].map(|pings| pings.back_after(start, PATIENCE));
        let [Some(there), Some(back)] = answers else {
            bail!(
                "{first} and {second}: pings answered {answers:?}\n{}",
                self.evidence(first, second)
            );
        };
        let settled = self.settle(&[(first, second, want.clone())], start)?;
        let path = self.peer(first, second)?;
        Ok(Pinged {
            path: path.as_ref().map(described).unwrap_or_default(),
            first_ping: there.max(back),
            settled,
        })
    }

    /// Waits until all pairs are as they must be and stay so, and gives the time from `start` until
    /// they were.
    pub fn settle(&mut self, pairs: &[(&str, &str, Want)], start: Instant) -> Result<Duration> {
        self.settle_within(pairs, start, PATIENCE)
    }

    /// The same, with another patience.
    pub fn settle_within(
        &mut self,
        pairs: &[(&str, &str, Want)],
        start: Instant,
        patience: Duration,
    ) -> Result<Duration> {
        let mut since: Option<Instant> = None;
        let mut wrong = Vec::new();
        let came = wait_for(patience.saturating_sub(start.elapsed()) + STAYS, || {
            self.check_alive()?;
            wrong = self.objections(pairs)?;
            if !wrong.is_empty() {
                since = None;
                return Ok(None);
            }
            let since = *since.get_or_insert_with(Instant::now);
            let all_direct = pairs.iter().all(|(_, _, want)| want.is_direct());
            Ok((all_direct || since.elapsed() >= STAYS).then_some(since))
        })?;
        match came {
            Some(since) => Ok(since.saturating_duration_since(start)),
            None => {
                let texts: Vec<&str> = wrong.iter().map(|(_, _, text)| text.as_str()).collect();
                let evidence = wrong.first().map(|(a, b, _)| self.evidence(a, b));
                bail!(
                    "{} of {} pairs wrong after {patience:?}:\n{}\n{}",
                    wrong.len(),
                    pairs.len(),
                    texts.join("\n"),
                    evidence.unwrap_or_default()
                );
            }
        }
    }

    /// One overlay ping each way, on paths that stand.
    pub fn ping_both_ways(&self, first: &str, second: &str) -> Result<Duration> {
        let mut slowest = Duration::ZERO;
        for (from, to) in [(first, second), (second, first)] {
            let start = Instant::now();
            let pings = self.pings(from, to, FIRST_PING)?;
            let back = pings.back_after(start, PING_PATIENCE);
            let back = back.with_context(|| {
                let evidence = self.evidence(first, second);
                format!("no ping from {from} to {to} was answered\n{evidence}")
            })?;
            slowest = slowest.max(back);
        }
        Ok(slowest)
    }

    /// Every daemon that was started, and not ended by the test, still runs.
    pub fn check_alive(&mut self) -> Result<()> {
        for daemon in self.daemons.values_mut() {
            if let Some(status) = daemon.status() {
                bail!(daemon.failed(format!("ended ({status})")));
            }
        }
        Ok(())
    }

    /// Forgets a daemon that the test has ended.
    pub fn forget(&mut self, node: &str) {
        self.daemons.remove(node);
    }

    /// No daemon, nor the signaling service, has logged a warning or an error, but for lines with
    /// one of these words.
    pub fn check_quiet(&self, but: &[&str]) -> Result<()> {
        let mut loud = Vec::new();
        let logs = self.lab.directory().join("logs");
        let names: BTreeSet<&str> = self.daemons.keys().map(String::as_str).collect();
        for name in names.into_iter().chain(["signaling"]) {
            let text = std::fs::read_to_string(logs.join(format!("{name}.log")))?;
            let lines = text.lines().filter(|line| {
                let is_loud = line.contains(" WARN ") || line.contains(" ERROR ");
                // Values stand between quotes only where they need to.
                let plain = line.replace('"', "");
                let is_known = but.iter().any(|b| plain.contains(&b.replace('"', "")));
                (is_loud || line.contains("panicked")) && !is_known
            });
            loud.extend(lines.map(|line| format!("{name}: {line}")));
        }
        ensure!(loud.is_empty(), "not a clean run:\n{}", loud.join("\n"));
        Ok(())
    }

    /// What both say of each other, and what they logged last.
    pub fn evidence(&self, first: &str, second: &str) -> String {
        let mut text = String::new();
        for (node, peer) in [(first, second), (second, first)] {
            for asked in [vec!["status"], vec!["why", peer]] {
                let said = self.lab.wice(node, &asked).map(|output| {
                    let said = [output.stdout, output.stderr].concat();
                    String::from_utf8_lossy(&said).into_owned()
                });
                text.push_str(&format!("--- {node}: wice {}\n", asked.join(" ")));
                text.push_str(&said.unwrap_or_else(|error| error.to_string()));
            }
            if let Some(daemon) = self.daemons.get(node) {
                let output = daemon.output();
                let lines: Vec<&str> = output.lines().collect();
                let tail = &lines[lines.len().saturating_sub(LAST_LINES)..];
                text.push_str(&format!("--- {node}: log\n{}\n", tail.join("\n")));
            }
        }
        text
    }

    fn objections(&self, pairs: &[(&str, &str, Want)]) -> Result<Vec<(String, String, String)>> {
        let nodes: BTreeSet<&str> = pairs.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
        let mut reports = BTreeMap::new();
        for node in nodes {
            reports.insert(node, self.lab.peers(node)?);
        }
        let says = |node: &str, peer: &str| {
            let peers = reports.get(node)?;
            peers.iter().find(|status| status.name == peer)
        };
        let mut wrong = Vec::new();
        for (first, second, want) in pairs {
            if let Some(objection) = want.objection(says(first, second), says(second, first)) {
                let text = format!("{first} {second}: {objection}");
                wrong.push(((*first).to_string(), (*second).to_string(), text));
            }
        }
        Ok(wrong)
    }
}
