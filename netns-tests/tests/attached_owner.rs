//! Interfaces whose owner goes on writing them: endpoints set, files applied, peers replaced and removed, keys
//! rotated, with direct paths through the proxy and from WireGuard's own port.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wice::lab::{LabConfig, NatKind, Pings};
use wice_netns_tests::{RTT, Table, Want, WireGuards, alone, seconds};

/// Overlay pings meanwhile: times are right to this.
const PINGS: Duration = Duration::from_millis(20);
/// What another program's changes may cost, on a machine that is busy too.
const OUTAGE: Duration = Duration::from_secs(2);
/// What the other peers may notice of it.
const UNNOTICED: Duration = Duration::from_secs(1);
/// WireGuard makes no new session by itself before this (paper §6.1, REKEY_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(120);

const NODES: [&str; 3] = ["home-a", "home-b", "home-c"];
const PAIRS: [(&str, &str); 3] = [
    ("home-a", "home-b"),
    ("home-a", "home-c"),
    ("home-b", "home-c"),
];

/// Three nodes behind usual routers, each with a session with each.
fn three(direct: &str) -> Result<WireGuards> {
    let kinds = [NatKind::PortRestricted; NODES.len()];
    let config = LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds(kinds)
    };
    let mut all = WireGuards::build(config, &NODES)?;
    all.join_all()?;
    for node in NODES {
        all.attach(node, &["--direct", direct])?;
    }
    for (first, second) in PAIRS {
        all.wait_endpoint(first, second)?;
        all.wait_endpoint(second, first)?;
        all.first_pings(first, second, Instant::now())?;
    }
    for (first, second) in PAIRS {
        wait_ours(&all, direct, first, second)?;
        wait_ours(&all, direct, second, first)?;
    }
    Ok(all)
}

/// Waits until a peer's endpoint is what its path wants.
fn wait_ours(all: &WireGuards, direct: &str, node: &str, peer: &str) -> Result<()> {
    match direct {
        "proxy" => all.wait_slot(node, peer),
        _ => all.wait_native(node, peer).map(drop),
    }
}

/// Where nobody answers.
fn dead() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 200], 51820))
}

/// Does something again and again, and gives the longest gap in the pings.
fn disturb(
    pings: &[&Pings],
    (times, every): (u32, Duration),
    mut change: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..times {
        change()?;
        std::thread::sleep(every);
    }
    let gaps = pings.iter().map(|pings| pings.longest_gap(start));
    Ok(gaps.max().unwrap_or_default())
}

fn writes(direct: &str) -> Result<()> {
    let _alone = alone();
    let title = format!("another program writes the interface, --direct {direct}: longest gap");
    let mut table = Table::new(title);
    let start = Instant::now();
    let all = three(direct)?;
    let there = all.pings("home-a", "home-b", PINGS)?;
    let others = all.pings("home-a", "home-c", PINGS)?;
    std::thread::sleep(Duration::from_secs(2));
    let handshakes = || -> Result<_> {
        let of = |peer| all.shown("home-a", peer, "latest-handshakes");
        Ok((of("home-b")?, of("home-c")?))
    };
    let mut told = |what: &str, (times, every): (u32, Duration), gap: Duration| -> Result<()> {
        let often = format!("{times} times, every {} s", every.as_secs());
        table.row(what, often, gap);
        let evidence = || all.evidence("home-a", "home-b");
        ensure!(gap <= OUTAGE, "{what}: {}\n{}", seconds(gap), evidence());
        Ok(())
    };

    // At rest: what is still on its way from the other would make WireGuard roam back by itself.
    let (often, before) = ((3, Duration::from_secs(3)), handshakes()?);
    let since = Instant::now();
    drop(there);
    let mut slowest = Duration::ZERO;
    for _ in 0..often.0 {
        std::thread::sleep(RTT * 10);
        let start = Instant::now();
        all.set_endpoint("home-a", "home-b", dead())?;
        let pings = all.pings("home-a", "home-b", PINGS)?;
        let back = pings.back_after(start, often.1);
        slowest = slowest.max(back.unwrap_or(often.1));
    }
    told("wg set endpoint, at rest", often, slowest)?;
    let there = all.pings("home-a", "home-b", PINGS)?;
    let gap = disturb(&[&there], often, || {
        all.set_endpoint("home-a", "home-b", dead())
    })?;
    told("wg set endpoint, under traffic", often, gap)?;
    let often = (2, Duration::from_secs(10));
    let file = [("home-b", Some(dead())), ("home-c", None)];
    let gap = disturb(&[&there], often, || all.apply("home-a", "syncconf", &file))?;
    told("wg syncconf", often, gap)?;
    let noticed = others.longest_gap(since);
    ensure!(noticed <= UNNOTICED, "the other peer: {}", seconds(noticed));
    ensure!(
        handshakes()? == before || start.elapsed() >= SESSION,
        "sessions were touched: {before:?} before, {:?} now",
        handshakes()?
    );

    // This takes the sessions of all peers, whatever wice does; what the others still send has none.
    let back = all.pings("home-b", "home-a", PINGS)?;
    let often = (3, Duration::from_secs(10));
    let file = [("home-b", Some(dead())), ("home-c", Some(dead()))];
    let gap = disturb(&[&there, &back, &others], often, || {
        all.apply("home-a", "setconf", &file)
    })?;
    told("wg setconf", often, gap)?;

    let status = all.mesh.lab.wice("home-a", &["status"])?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    let said = "another program has reset its endpoint";
    ensure!(text.contains(said), "{text}");
    all.mesh.check_quiet(&["event=\"endpoint-reset\""])
}

/// Another program sets endpoints, applies its file, and replaces all peers every 10 s.
#[test]
fn another_program_writes_the_interface_proxy() -> Result<()> {
    writes("proxy")
}

#[test]
fn another_program_writes_the_interface_shared_port() -> Result<()> {
    writes("shared-port")
}

/// A peer that is removed stays removed, and one that is added is found; a key that changes is another
/// peer; the others notice nothing.
fn comes_and_goes(direct: &str) -> Result<()> {
    const STAYS: Duration = Duration::from_secs(8);
    let _alone = alone();
    let title = format!("peers removed, added, with new keys, --direct {direct}");
    let mut table = Table::new(title);
    let begun = Instant::now();
    let mut all = three(direct)?;
    let others = all.pings("home-a", "home-c", PINGS)?;
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    let handshake = all.shown("home-a", "home-c", "latest-handshakes")?;

    let key = all.key("home-b")?.to_string();
    all.wg("home-a", &["set", "wg0", "peer", &key, "remove"])?;
    std::thread::sleep(STAYS);
    let peers = all.wg("home-a", &["show", "wg0", "peers"])?;
    ensure!(!peers.contains(&key), "it is back:\n{peers}");
    ensure!(all.mesh.peer("home-a", "home-b")?.is_none(), "still known");

    let added = Instant::now();
    all.add_peer("home-a", "home-b", None)?;
    all.wait_endpoint("home-a", "home-b")?;
    let first = all.first_pings("home-a", "home-b", added)?;
    table.row("added again", "pings both ways", first);
    ensure!(first <= OUTAGE, "{}", all.evidence("home-a", "home-b"));

    let before = all.rotate("home-b")?.to_string();
    for node in ["home-a", "home-c"] {
        all.wg(node, &["set", "wg0", "peer", &before, "remove"])?;
        all.add_peer(node, "home-b", None)?;
    }
    let rotated = Instant::now();
    all.wait_endpoint("home-a", "home-b")?;
    let first = all.first_pings("home-a", "home-b", rotated)?;
    table.row("a new key, known to all", "pings both ways", first);
    ensure!(first <= OUTAGE, "{}", all.evidence("home-a", "home-b"));
    let want = Want::of(NatKind::PortRestricted, NatKind::PortRestricted);
    all.mesh.settle(&[("home-a", "home-b", want)], rotated)?;
    let noticed = others.longest_gap(start);
    ensure!(noticed <= UNNOTICED, "the other peer: {}", seconds(noticed));
    ensure!(
        all.shown("home-a", "home-c", "latest-handshakes")? == handshake
            || begun.elapsed() >= SESSION,
        "the other peer's session was touched"
    );
    all.mesh
        // For seconds one side has the other as a peer, alone.
        .check_quiet(&[
            "event=\"key-changed\"",
            "event=\"interface-lost\"",
            "event=\"not-a-peer-there\"",
            "event=\"not-a-peer-here\"",
        ])
}

#[test]
fn peers_come_and_go_and_change_their_keys_proxy() -> Result<()> {
    comes_and_goes("proxy")
}

#[test]
fn peers_come_and_go_and_change_their_keys_shared_port() -> Result<()> {
    comes_and_goes("shared-port")
}
