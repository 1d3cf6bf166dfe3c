//! The matrix of attached mode: seven kinds of homes with seven, interfaces that know each other by key
//! alone, direct paths through the proxy and from WireGuard's own port. `WICE_TEST_WIREGUARD=kernel`
//! makes them the kernel's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{PATIENCE, RTT, Random, Table, Want, WireGuards, alone, seconds, wait_for};

/// From the first ping to answers both ways: less than the 5 s after which WireGuard repeats a handshake
/// that was lost, so none was.
const CONNECTED: Duration = Duration::from_secs(4);

/// A pair of the mesh, and what must come of it.
type Pair = (String, String, Want);

#[test]
fn direct_paths_by_the_proxy() -> Result<()> {
    fourteen_homes("proxy", |_, slots| {
        (slots == 2).then_some(()).context("not by both slots")
    })
}

#[test]
fn direct_paths_from_wireguards_own_port() -> Result<()> {
    // Of a relayed pair the one whose relay it is has the slot; the other may send to the relay itself.
    fourteen_homes("shared-port", |want, slots| {
        let as_it_must = if want.is_direct() {
            slots == 0
        } else {
            slots >= 1
        };
        as_it_must
            .then_some(())
            .context("not from WireGuard's own ports")
    })
}

/// Two homes of each kind in one network, the interfaces of the first seven with those of the second as
/// peers: the 49 pairs of the matrix. Each is direct if and only if the NATs allow it, with the ends that
/// they allow, as both its nodes say; its first handshake passes at the first try; and its endpoints are as
/// `holds` wants them: of both sides, how many are slots.
fn fourteen_homes(direct: &str, holds: fn(&Want, usize) -> Result<()>) -> Result<()> {
    let _alone = alone();
    let mut random = Random::from_environment();
    let title = format!(
        "14 homes, attached, --direct {direct}, WICE_SEED={}",
        random.seed()
    );
    let mut table = Table::new(title);
    let config = LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds(NatKind::MATRIX.into_iter().chain(NatKind::MATRIX))
    };
    let homes = config.homes.clone();
    let mut order: Vec<&str> = homes.iter().map(|home| home.name.as_str()).collect();
    let mut all = WireGuards::build(config, &order)?;
    let (firsts, others) = homes.split_at(NatKind::MATRIX.len());
    let mut pairs: Vec<Pair> = Vec::new();
    for first in firsts {
        for second in others {
            all.add_peer(&first.name, &second.name, None)?;
            all.add_peer(&second.name, &first.name, None)?;
            let want = Want::of(first.nat, second.nat);
            pairs.push((first.name.clone(), second.name.clone(), want));
        }
    }
    random.shuffle(&mut order);
    for node in order {
        all.attach(node, &["--direct", direct])?;
        std::thread::sleep(random.pause(RTT * 5));
    }
    let start = Instant::now();
    let wanted: Vec<(&str, &str, Want)> = pairs
        .iter()
        .map(|(first, second, want)| (first.as_str(), second.as_str(), want.clone()))
        .collect();
    let settled = all.mesh.settle_within(&wanted, start, 2 * PATIENCE)?;
    for (first, second, _) in &wanted {
        all.wait_endpoint(first, second)?;
        all.wait_endpoint(second, first)?;
    }
    let mut slowest = Duration::ZERO;
    for (first, second, _) in &wanted {
        let took = all.first_pings(first, second, Instant::now())?;
        ensure!(
            took <= CONNECTED,
            "{first} and {second}: first ping after {}\n{}",
            seconds(took),
            all.evidence(first, second)
        );
        slowest = slowest.max(took);
    }
    // WireGuard's traffic has moved none of them.
    all.mesh.settle(&wanted, Instant::now())?;
    for (first, second, want) in &wanted {
        let mut seen = Ok(());
        wait_for(PATIENCE, || {
            let slots = slots(&all, first, second)?;
            seen = holds(want, slots);
            Ok(seen.is_ok().then_some(()))
        })?;
        seen.with_context(|| all.evidence(first, second))?;
    }
    let what = format!("{} pairs", wanted.len());
    let came = format!("as the NATs allow, slowest first ping {}", seconds(slowest));
    table.row(what, came, settled);
    all.mesh.check_quiet(&[])
}

/// How many of the two have each other at a slot.
fn slots(all: &WireGuards, first: &str, second: &str) -> Result<usize> {
    let mut slots = 0;
    for (node, peer) in [(first, second), (second, first)] {
        let shown = all.shown(node, peer, "endpoints")?;
        let shown = shown.with_context(|| format!("{node} has no {peer}"))?;
        let endpoint: SocketAddr = shown.parse()?;
        slots += usize::from(endpoint.ip().is_loopback());
    }
    Ok(slots)
}
