//! Networks beside the matrix: where UDP is blocked, where addresses are shared, IPv6.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wice::lab::{
    CarrierConfig, HomeConfig, Ipv6, LabConfig, LanSubnet, NatKind, TcpPolicy, TurnServer,
    same_carrier, same_lan,
};
use wice_netns_tests::{Mesh, RTT, Table, Want, alone, seconds};

fn config(homes: Vec<HomeConfig>) -> LabConfig {
    LabConfig {
        homes,
        rtt: RTT,
        ..LabConfig::default()
    }
}

/// An office that drops UDP, and a home: TURN over TCP where all of TCP is let out, over TLS where
/// only the web's ports are, through the proxy where nothing else is; by `wice turn` and by coturn.
#[test]
fn udp_blocked() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("UDP blocked");
    let cases = [
        ("all TCP", TcpPolicy::Any, "tcp"),
        ("web's ports only", TcpPolicy::Web, "tls"),
        ("HTTP CONNECT only", TcpPolicy::ProxyOnly, "tls"),
    ];
    let cases = TurnServer::ALL
        .into_iter()
        .flat_map(|server| cases.map(|case| (server, case)));
    for (turn_server, (network, tcp, transport)) in cases {
        let name = format!("{network}, {}", turn_server.name());
        let mut office = HomeConfig::new("office", NatKind::UdpBlocked);
        office.tcp = tcp;
        office.proxy = tcp == TcpPolicy::ProxyOnly;
        let home = HomeConfig::new("home", NatKind::PortRestricted);
        let mut mesh = Mesh::build(LabConfig {
            turn_server,
            ..config(vec![office.clone(), home])
        })?;
        let proxy = match office.proxy {
            true => format!("http://{}", mesh.lab.proxy("office")?),
            false => String::new(),
        };
        mesh.up("home", &[])?;
        mesh.up("office", &["--proxy", &proxy])?;
        let start = Instant::now();
        let want = Want::of(NatKind::UdpBlocked, NatKind::PortRestricted)
            .relayed_by(transport)
            .because("udp-blocked-here");
        let met = mesh
            .met("office", "home", &want, start)
            .with_context(|| name.clone())?;
        table.row(&*name, met.path, met.first_ping);
        mesh.check_quiet(&[]).context(name)?;
    }
    Ok(())
}

/// Both ends drop UDP: two relays, or one over which both are, and still a path.
#[test]
fn udp_blocked_on_both_sides() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("UDP blocked on both sides");
    let homes = LabConfig::of_kinds([NatKind::UdpBlocked, NatKind::UdpBlocked]).homes;
    let mut mesh = Mesh::build(config(homes))?;
    let want = Want::of(NatKind::UdpBlocked, NatKind::UdpBlocked).relayed_by("tls");
    let met = mesh.meet("home-a", "home-b", &want)?;
    table.row("web's ports only", met.path, met.first_ping);
    mesh.check_quiet(&[])
}

/// Three nodes on one source port behind one NAT: direct to the outside, and to each other by the
/// LAN.
#[test]
fn three_nodes_behind_one_nat() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("three nodes behind one NAT");
    for nat in [NatKind::PortRestricted, NatKind::Symmetric] {
        let mut home = HomeConfig::new("home", nat);
        home.nodes = 3;
        let far = HomeConfig::new("far", NatKind::FullCone);
        let mut mesh = Mesh::build(config(vec![home, far]))?;
        let lan = ["home", "home-2", "home-3"];
        let mut pairs = vec![
            ("home", "home-2", Want::from(same_lan())),
            ("home", "home-3", same_lan().into()),
            ("home-2", "home-3", same_lan().into()),
        ];
        for node in lan {
            pairs.push((node, "far", Want::of(nat, NatKind::FullCone)));
            mesh.up(node, &[])?;
        }
        mesh.up("far", &[])?;
        let settled = mesh.settle(&pairs, Instant::now())?;
        for (first, second, _) in &pairs {
            mesh.ping_both_ways(first, second)?;
        }
        table.row(nat.name(), "host on the LAN, direct outside", settled);
        mesh.check_quiet(&[])?;
    }
    Ok(())
}

/// Two homes with the same private subnet, and the same private addresses in it: nobody takes a
/// neighbour for the far node that has the neighbour's address.
#[test]
fn overlapping_private_addresses() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("overlapping private addresses");
    let mut homes = LabConfig::of_kinds([NatKind::PortRestricted, NatKind::FullCone]).homes;
    for home in &mut homes {
        home.subnet = LanSubnet::Overlapping;
        home.nodes = 2;
    }
    let mut mesh = Mesh::build(config(homes))?;
    let (near, far) = (["home-a", "home-a-2"], ["home-b", "home-b-2"]);
    let mut pairs: Vec<(&str, &str, Want)> = vec![
        (near[0], near[1], same_lan().into()),
        (far[0], far[1], same_lan().into()),
    ];
    for first in near {
        for second in far {
            let want = Want::of(NatKind::PortRestricted, NatKind::FullCone);
            pairs.push((first, second, want));
        }
    }
    for node in near.into_iter().chain(far) {
        mesh.up(node, &[])?;
    }
    let settled = mesh.settle(&pairs, Instant::now())?;
    for (first, second, _) in &pairs {
        mesh.ping_both_ways(first, second)?;
    }
    table.row("two homes of two", "each with the right one", settled);
    mesh.check_quiet(&[])
}

/// Two homes behind one carrier: direct if and only if its NAT turns traffic around.
#[test]
fn one_carrier() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("one carrier");
    for hairpin in [false, true] {
        let mut homes = LabConfig::of_kinds([NatKind::Cgnat, NatKind::Cgnat]).homes;
        for home in &mut homes {
            home.carrier = Some("isp".into());
        }
        let name = "isp".into();
        let mut mesh = Mesh::build(LabConfig {
            carriers: vec![CarrierConfig { name, hairpin }],
            ..config(homes)
        })?;
        let want = Want::from(same_carrier(hairpin));
        let want = if hairpin {
            want
        } else {
            want.because("no-hairpin")
        };
        let met = mesh
            .meet("home-a", "home-b", &want)
            .with_context(|| format!("hairpin {hairpin}"))?;
        table.row(format!("hairpin {hairpin}"), met.path, met.first_ping);
        mesh.check_quiet(&[])?;
    }
    Ok(())
}

/// IPv6 alone, both families, one family each, and IPv6 that leads nowhere.
#[test]
fn ipv6() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("IPv6");
    let home = |name: &str, nat: NatKind, ipv4: bool, ipv6: Ipv6| HomeConfig {
        ipv4,
        ipv6,
        ..HomeConfig::new(name, nat)
    };
    let (nat, symmetric) = (NatKind::PortRestricted, NatKind::Symmetric);
    let direct_v6 = || Want::from(same_lan()); // host to host
    let relayed = Want::of(nat, NatKind::UdpBlocked).because("no-common-family");
    let cases = [
        (
            "IPv6 only",
            home("home-a", nat, false, Ipv6::Firewalled),
            home("home-b", nat, false, Ipv6::Firewalled),
            direct_v6(),
        ),
        (
            "dual stack, symmetric",
            home("home-a", symmetric, true, Ipv6::Firewalled),
            home("home-b", symmetric, true, Ipv6::Firewalled),
            direct_v6(),
        ),
        (
            "IPv6 leads nowhere",
            home("home-a", nat, true, Ipv6::Blackholed),
            home("home-b", nat, true, Ipv6::Firewalled),
            Want::of(nat, nat),
        ),
        (
            "IPv4 only with IPv6 only",
            home("home-a", nat, true, Ipv6::None),
            home("home-b", nat, false, Ipv6::Open),
            relayed,
        ),
    ];
    for (name, first, second, want) in cases {
        let mut mesh = Mesh::build(config(vec![first, second]))?;
        let met = mesh.meet("home-a", "home-b", &want).context(name)?;
        table.row(name, met.path, met.first_ping);
        mesh.check_quiet(&[]).context(name)?;
    }
    Ok(())
}

/// A router that keeps no source port is as good as one that does.
#[test]
fn ports_are_not_preserved() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("ports not preserved");
    let mut homes = LabConfig::of_kinds([NatKind::PortRestricted; 2]).homes;
    for home in &mut homes {
        home.preserve_ports = false;
    }
    let mut mesh = Mesh::build(config(homes))?;
    let want = Want::of(NatKind::PortRestricted, NatKind::PortRestricted);
    let met = mesh.meet("home-a", "home-b", &want)?;
    table.row("port-restricted twice", met.path, met.first_ping);
    mesh.check_quiet(&[])
}

/// Routers that forget a silent flow after 30 s: a pair that nobody uses for 100 s is there at
/// once, on the same path.
#[test]
fn an_idle_pair_outlasts_short_timeouts() -> Result<()> {
    const IDLE: Duration = Duration::from_secs(100);
    const AT_ONCE: Duration = Duration::from_secs(1);
    let mut table = Table::new("idle behind timeouts of 30 s");
    let mut homes = LabConfig::of_kinds([NatKind::PortRestricted; 2]).homes;
    for home in &mut homes {
        home.udp_timeout = Some(Duration::from_secs(30));
    }
    let mut mesh = Mesh::build(config(homes))?;
    let want = Want::of(NatKind::PortRestricted, NatKind::PortRestricted);
    mesh.meet("home-a", "home-b", &want)?;
    let changes = |mesh: &Mesh| -> Result<u64> {
        let peer = mesh.peer("home-a", "home-b")?;
        Ok(peer.context("no such peer")?.path_changes)
    };
    let before = changes(&mesh)?;
    std::thread::sleep(IDLE);
    let took = mesh.ping_both_ways("home-a", "home-b")?;
    anyhow::ensure!(took < AT_ONCE, "the first ping took {}", seconds(took));
    anyhow::ensure!(changes(&mesh)? == before, "the path has changed");
    mesh.settle(&[("home-a", "home-b", want)], Instant::now())?;
    table.row("after 100 s of silence", "the same path", took);
    mesh.check_quiet(&[])
}
