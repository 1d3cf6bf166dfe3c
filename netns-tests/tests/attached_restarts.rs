//! Daemons that are killed and come back while the signaling service is down: paths from WireGuard's own port
//! lose nothing, and all others are back in time, over IPv4 and IPv6.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use wice::lab::{HomeConfig, Ipv6, LabConfig, NatKind, Pings};
use wice_netns_tests::{PATIENCE, RTT, Table, WireGuards, alone, seconds, wait_for};

const NODES: [&str; 2] = ["home-a", "home-b"];
const BOTH_WAYS: [(&str, &str); 2] = [("home-a", "home-b"), ("home-b", "home-a")];
/// Overlay pings meanwhile: times are right to this.
const PINGS: Duration = Duration::from_millis(20);
/// A restarted daemon's traffic is back after this, signaling or not.
const RESTART: Duration = Duration::from_secs(3);
/// What is kept is written within a second.
const KEPT: Duration = Duration::from_secs(2);
/// Without its daemon for so long.
const AWAY: Duration = Duration::from_secs(2);
/// An answer is there after this, on a busy machine.
const ANSWERED: Duration = Duration::from_secs(1);

/// Homes, and what their paths are.
struct Case {
    name: &'static str,
    home: fn(&str) -> HomeConfig,
    kind: &'static str,
}

fn port_restricted(name: &str) -> HomeConfig {
    HomeConfig::new(name, NatKind::PortRestricted)
}

fn symmetric(name: &str) -> HomeConfig {
    HomeConfig::new(name, NatKind::Symmetric)
}

/// Nothing but IPv6, behind a router that lets in what was asked for.
fn ipv6(name: &str) -> HomeConfig {
    HomeConfig {
        ipv4: false,
        ipv6: Ipv6::Firewalled,
        ..port_restricted(name)
    }
}

const CASES: [Case; 3] = [
    Case {
        name: "port-restricted twice",
        home: port_restricted,
        kind: "direct",
    },
    Case {
        name: "symmetric twice",
        home: symmetric,
        kind: "relayed",
    },
    Case {
        name: "IPv6 alone, firewalled",
        home: ipv6,
        kind: "direct",
    },
];

/// Two nodes with a session, on the path that the case has and with endpoints that fit it.
fn two(case: &Case, direct: &str) -> Result<WireGuards> {
    let config = LabConfig {
        homes: NODES.iter().map(|node| (case.home)(node)).collect(),
        rtt: RTT,
        ..LabConfig::default()
    };
    let mut all = WireGuards::build(config, &NODES)?;
    all.join_all()?;
    for node in NODES {
        all.attach(node, &["--direct", direct])?;
    }
    for (node, peer) in BOTH_WAYS {
        all.wait_endpoint(node, peer)?;
    }
    all.first_pings("home-a", "home-b", Instant::now())?;
    let came = wait_for(2 * PATIENCE, || {
        for (node, peer) in BOTH_WAYS {
            let status = all.mesh.peer(node, peer)?;
            if status.is_none_or(|status| status.path.kind != case.kind) {
                return Ok(None);
            }
            let shown = all.shown(node, peer, "endpoints")?.unwrap_or_default();
            let is_slot = shown.starts_with("127.");
            let right = match (direct, case.kind) {
                ("proxy", _) => is_slot,
                (_, "direct") => !is_slot,
                // Whose relay it is has the slot.
                _ => true,
            };
            if !right {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    ensure!(came.is_some(), "{}", all.evidence("home-a", "home-b"));
    std::thread::sleep(KEPT);
    Ok(all)
}

fn endpoints(all: &WireGuards) -> Result<Vec<Option<String>>> {
    let of = |(node, peer)| all.shown(node, peer, "endpoints");
    BOTH_WAYS.into_iter().map(of).collect()
}

/// Every ping from then on, that could be answered by now, was.
fn all_answered(pings: &Pings, from: Instant) -> Result<usize> {
    std::thread::sleep(ANSWERED);
    let Some(to) = Instant::now().checked_sub(ANSWERED) else {
        bail!("the clock is younger than a ping");
    };
    let (sent, answered) = pings.answered_between(from, to);
    ensure!(sent == answered, "{} of {sent} lost", sent - answered);
    Ok(sent)
}

/// SIGKILL of one daemon, then of both where the path is direct, and restarts, all while the signaling service is down. SIGTERM leaves
/// everything as it is.
fn killed(direct: &str) -> Result<()> {
    let _alone = alone();
    let title = format!("kill -9 and restart, signaling down, --direct {direct}");
    let mut table = Table::new(title);
    for case in &CASES {
        let mut all = two(case, direct)?;
        all.mesh.lab.service("signaling")?.kill9();
        let native = direct != "proxy" && case.kind == "direct";
        // Of relayed ends one: where both have new relayed addresses nobody but signaling can tell them.
        let both = (case.kind == "direct").then_some(&NODES[..]);
        for ended in std::iter::once(&NODES[..1]).chain(both) {
            let pings = all.pings("home-b", "home-a", PINGS)?;
            std::thread::sleep(ANSWERED);
            let (before, killed) = (endpoints(&all)?, Instant::now());
            for node in ended {
                all.mesh.daemon(node)?.kill9();
            }
            std::thread::sleep(AWAY);
            ensure!(endpoints(&all)? == before, "they moved");
            let start = Instant::now();
            for node in ended {
                all.mesh.forget(node);
                all.attach_again_by(node, direct)?;
            }
            let back = pings.back_after(start, 5 * RESTART);
            let back = back.with_context(|| all.evidence("home-a", "home-b"))?;
            let what = format!("{}, {} of 2", case.name, ended.len());
            if native {
                std::thread::sleep(RESTART);
                let sent = all_answered(&pings, killed)
                    .with_context(|| all.evidence("home-a", "home-b"))?;
                ensure!(endpoints(&all)? == before, "they moved");
                table.row(what, format!("0 of {sent} pings lost"), Duration::ZERO);
            } else {
                table.row(what, "back after", back);
                let evidence = || all.evidence("home-a", "home-b");
                ensure!(back <= RESTART, "{}\n{}", seconds(back), evidence());
                std::thread::sleep(RESTART);
            }
        }
        let before = endpoints(&all)?;
        for node in NODES {
            all.mesh.daemon(node)?.stop();
        }
        ensure!(endpoints(&all)? == before, "SIGTERM moved them");
    }
    Ok(())
}

#[test]
fn daemons_are_killed_proxy() -> Result<()> {
    killed("proxy")
}

#[test]
fn daemons_are_killed_shared_port() -> Result<()> {
    killed("shared-port")
}
