//! Interfaces that are there already: paths through NATs for them, whichever WireGuard they are.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{RTT, Table, Want, WireGuards, alone, seconds, wait_for};

/// From the second daemon's start to pings both ways, on a busy machine.
const CONNECTED: Duration = Duration::from_secs(8);

fn config(kinds: &[NatKind]) -> LabConfig {
    LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds(kinds.iter().copied())
    }
}

/// Two and three nodes whose interfaces know each other by key alone: each pair gets the path that
/// the NATs allow, with the ends that they allow.
#[test]
fn peers_without_endpoints_get_the_paths_that_the_nats_allow() -> Result<()> {
    use NatKind::{PortRestricted, Public, Symmetric, UdpBlocked};
    let _alone = alone();
    let mut table = Table::new("attached, no endpoints configured");
    let meshes: [&[NatKind]; 5] = [
        &[PortRestricted, PortRestricted],
        &[Public, Symmetric],
        &[Symmetric, Symmetric],
        &[UdpBlocked, PortRestricted],
        &[PortRestricted, Symmetric, Public],
    ];
    for kinds in meshes {
        let names = ["home-a", "home-b", "home-c"];
        let nodes = &names[..kinds.len()];
        let mut all = WireGuards::build(config(kinds), nodes)?;
        all.join_all()?;
        for node in nodes {
            all.attach(node, &[])?;
        }
        let start = Instant::now();
        let mut pairs = Vec::new();
        for (first, kind) in nodes.iter().zip(kinds) {
            let later = nodes
                .iter()
                .zip(kinds)
                .skip_while(|(node, _)| *node != first);
            for (second, other) in later.skip(1) {
                pairs.push((*first, *second, Want::of(*kind, *other)));
            }
        }
        let mut slowest = Duration::ZERO;
        for (first, second, _) in &pairs {
            slowest = slowest.max(all.first_pings(first, second, start)?);
        }
        let settled = all.mesh.settle(&pairs, start)?;
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let came = format!("as the NATs allow after {}", seconds(settled));
        table.row(kinds.join(" "), came, slowest);
        all.mesh.check_quiet(&[])?;
        let blocked = kinds.contains(&"udp-blocked");
        ensure!(
            blocked || slowest <= CONNECTED,
            "first pings after {}",
            seconds(slowest)
        );
    }
    Ok(())
}

/// An endpoint that works is nobody's business; one that does not is replaced.
#[test]
fn native_endpoints_are_left_while_they_work() -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(20);
    let _alone = alone();
    let mut table = Table::new("endpoints configured by hand");
    let mut all = WireGuards::build(config(&[NatKind::Public; 2]), &["home-a", "home-b"])?;
    let native = |all: &WireGuards, node: &str| -> Result<std::net::SocketAddr> {
        Ok((all.mesh.lab.node(node)?.addresses()[0], 51820).into())
    };
    for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
        all.add_peer(node, peer, Some(native(&all, peer)?))?;
        all.attach(node, &[])?;
    }
    let first = all.first_pings("home-a", "home-b", Instant::now())?;
    let pings = all.pings("home-a", "home-b", Duration::from_millis(100))?;
    let start = Instant::now();
    std::thread::sleep(WATCHED);
    for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
        let shown = all.shown(node, peer, "endpoints")?;
        let expected = native(&all, peer)?.to_string();
        ensure!(shown.as_ref() == Some(&expected), "{node}: {shown:?}");
        let status = all.mesh.peer(node, peer)?;
        let kind = status.as_ref().map(|peer| peer.path.kind.clone());
        ensure!(kind.as_deref() == Some("native"), "{node}: {status:?}");
    }
    ensure!(pings.longest_gap(start) < Duration::from_secs(1), "a gap");
    table.row("public public", "native, left alone", first);
    all.mesh.check_quiet(&[])?;
    drop(pings);

    let nat = NatKind::PortRestricted;
    let mut all = WireGuards::build(config(&[nat, nat]), &["home-a", "home-b"])?;
    // Where each would be if its router let anybody in.
    for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
        let dead = std::net::SocketAddr::from(([203, 0, 113, 200], 51820));
        all.add_peer(node, peer, Some(dead))?;
        all.attach(node, &[])?;
    }
    let start = Instant::now();
    let first = all.first_pings("home-a", "home-b", start)?;
    all.mesh
        .settle(&[("home-a", "home-b", Want::of(nat, nat))], start)?;
    table.row("port-restricted twice, dead endpoints", "direct", first);
    let put_right = wait_for(Duration::from_secs(5), || {
        let shown = all.shown("home-a", "home-b", "endpoints")?;
        Ok(shown.filter(|shown| shown.starts_with("127.")))
    })?;
    ensure!(put_right.is_some(), "{}", all.evidence("home-a", "home-b"));
    all.mesh.check_quiet(&[])
}
