//! Two symmetric homes, which could never meet directly, and a router that maps a port on request:
//! miniupnpd in the router's namespace, over the kernel's own NAT.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{Expected, HomeConfig, Ipv6, LabConfig, Mapper, NatKind, ground_truth};
use wice_netns_tests::{Mesh, PATIENCE, RTT, Table, Want, alone, seconds, wait_for};
use wice_signaling::protocol::CandidateKind;

const NONE: Mapper = Mapper {
    pcp: false,
    natpmp: false,
    upnp: false,
    grants: true,
};
const PCP: Mapper = Mapper { pcp: true, ..NONE };
const NATPMP: Mapper = Mapper {
    natpmp: true,
    ..NONE
};
const UPNP: Mapper = Mapper { upnp: true, ..NONE };

/// `home-a` has the router, `home-b` none that maps.
fn mesh(mapper: Mapper) -> Result<Mesh> {
    let mut config = LabConfig::of_kinds([NatKind::Symmetric; 2]);
    config.rtt = RTT;
    config.homes[0].mapper = Some(mapper);
    Mesh::build(config)
}

/// `home-b` reaches `home-a` at the port that its router maps, and is seen as its checks show it.
fn by_the_mapping() -> Want {
    Want::from(Expected {
        direct: true,
        second_seen: CandidateKind::PeerReflexive,
        first_seen: CandidateKind::Mapped,
        ..ground_truth(NatKind::Symmetric, NatKind::Symmetric)
    })
}

fn relayed() -> Want {
    Want::of(NatKind::Symmetric, NatKind::Symmetric).because("both-nats-endpoint-dependent")
}

fn said(mesh: &Mesh, node: &str, arguments: &[&str]) -> Result<String> {
    let output = mesh.lab.wice(node, arguments)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Mappings that the router has, as its rules show them.
fn rules(mesh: &Mesh) -> Result<String> {
    let chain = ["list", "chain", "inet", "filter", "prerouting_miniupnpd"];
    let output = mesh
        .lab
        .command("home-a.router", "nft")?
        .args(chain)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_mapped_port_makes_two_symmetric_homes_direct() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("symmetric homes, one router maps a port");
    let cases = [
        ("PCP", PCP),
        ("NAT-PMP", NATPMP),
        ("UPnP", UPNP),
        ("all three", Mapper::ALL),
    ];
    for (name, mapper) in cases {
        let mut mesh = mesh(mapper)?;
        let met = mesh.meet("home-a", "home-b", &by_the_mapping());
        let met = met.with_context(|| format!("{name}\n{}", rules(&mesh).unwrap_or_default()))?;
        let protocol = if name == "all three" { "PCP" } else { name };
        let status = said(&mesh, "home-a", &["status"])?;
        let expected = format!("203.0.114.4:51821 by {protocol} on router 192.168.10.1\n");
        ensure!(status.contains(&expected), "{status}");
        let netcheck = said(&mesh, "home-a", &["netcheck"])?;
        ensure!(netcheck.contains(protocol), "{netcheck}");
        let why = said(&mesh, "home-b", &["why", "home-a"])?;
        ensure!(why.contains("direct-mapped"), "{why}");
        table.row(name, met.path, met.settled);

        // Killed, it leaves its mapping; started again, it is known to the router as the same.
        mesh.daemon("home-a")?.kill9();
        mesh.up_again("home-a")?;
        mesh.settle(&[("home-a", "home-b", by_the_mapping())], Instant::now())
            .with_context(|| format!("{name}, started again"))?;
        let again = wait_for(PATIENCE, || {
            Ok(said(&mesh, "home-a", &["status"])?
                .contains(&expected)
                .then_some(()))
        })?;
        ensure!(again.is_some(), "{}", mesh.evidence("home-a", "home-b"));
        mesh.check_quiet(&["event=\"signaling-lost\""])?;

        mesh.daemon("home-a")?.stop();
        mesh.forget("home-a");
        let gone = wait_for(PATIENCE, || {
            Ok((!rules(&mesh)?.contains("51821")).then_some(()))
        })?;
        ensure!(
            gone.is_some(),
            "{name}: left on the router:\n{}",
            rules(&mesh)?
        );
    }
    Ok(())
}

/// The router says that it has restarted: the mapping is there again, and then the path.
#[test]
fn a_router_that_reboots_maps_again() -> Result<()> {
    /// miniupnpd needs some seconds to its announcement, which is answered within five.
    const MAPPED: Duration = Duration::from_secs(15);
    /// Failed pairs are tried again every 20 s.
    const DIRECT: Duration = Duration::from_secs(60);
    let _alone = alone();
    let mut table = Table::new("the router that maps reboots");
    for (name, mapper) in [("PCP", PCP), ("NAT-PMP", NATPMP)] {
        let mut mesh = mesh(mapper)?;
        mesh.meet("home-a", "home-b", &by_the_mapping())
            .context(name)?;
        mesh.lab.reboot_mapper("home-a")?;
        let start = Instant::now();
        let mapped = wait_for(MAPPED, || {
            Ok(rules(&mesh)?.contains("51821").then(|| start.elapsed()))
        })?;
        let mapped = mapped.with_context(|| mesh.evidence("home-a", "home-b"))?;
        let settled =
            mesh.settle_within(&[("home-a", "home-b", by_the_mapping())], start, DIRECT)?;
        let text = format!("mapped again after {}", seconds(mapped));
        table.row(name, text, settled);
        mesh.check_quiet(&["event=\"signaling-lost\""])?;
    }
    Ok(())
}

/// Relayed, with the router's refusal in the remedy.
#[test]
fn a_router_that_refuses() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("the router refuses");
    // By PCP and NAT-PMP miniupnpd tries all 65,535 ports against its rules before it refuses.
    let mut mesh = mesh(Mapper {
        grants: false,
        ..UPNP
    })?;
    let met = mesh.meet("home-a", "home-b", &relayed())?;
    let told = wait_for(Duration::from_secs(15), || {
        let why = said(&mesh, "home-a", &["why", "home-b"])?;
        let refused = "port mapping here: refused by UPnP on router 192.168.10.1";
        Ok(why.contains(refused).then_some(()))
    })?;
    ensure!(told.is_some(), "{}", mesh.evidence("home-a", "home-b"));
    table.row("UPnP", met.path, met.first_ping);
    mesh.check_quiet(&[])
}

/// Off, nothing is sent to the router but what goes through it.
#[test]
fn off_sends_nothing() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("port mapping off");
    let mut mesh = mesh(Mapper::ALL)?;
    let count = "table inet count { chain c { type filter hook input priority -5; \
                 iifname \"lan\" meta l4proto { udp, tcp } counter; }; }";
    let output = mesh
        .lab
        .command("home-a.router", "nft")?
        .arg(count)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    mesh.up("home-a", &["--port-mapping", "off"])?;
    mesh.up("home-b", &[])?;
    let met = mesh.met("home-a", "home-b", &relayed(), Instant::now())?;
    std::thread::sleep(Duration::from_secs(3)); // past the grace in which the NAT is found out
    let mut list = mesh.lab.command("home-a.router", "nft")?;
    let output = list.args(["list", "table", "inet", "count"]).output()?;
    let counted = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(counted.contains("packets 0 "), "{counted}");
    table.row("off", met.path, met.first_ping);
    mesh.check_quiet(&[])
}

/// A home behind a carrier: its router maps, and its address outside is a private one.
#[test]
fn two_layers_are_told_and_not_advertised() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("a router behind a carrier's NAT");
    let mut config = LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds([NatKind::Cgnat, NatKind::PortRestricted])
    };
    config.homes[0] = HomeConfig {
        mapper: Some(Mapper::ALL),
        ..HomeConfig::new("home-a", NatKind::Cgnat)
    };
    let mut mesh = Mesh::build(config)?;
    let want = Want::of(NatKind::Cgnat, NatKind::PortRestricted);
    let met = mesh.meet("home-a", "home-b", &want)?;
    let told = wait_for(Duration::from_secs(10), || {
        let status = said(&mesh, "home-a", &["status"])?;
        let told = status.contains("port   ") && !status.contains("is being asked");
        Ok(told.then_some(status))
    })?;
    let told = told.with_context(|| mesh.evidence("home-a", "home-b"))?;
    // miniupnpd refuses where its own address is private; others map, and tell that address.
    let known = told.contains("two layers") || told.contains("refused by");
    ensure!(known, "{told}");
    ensure!(!told.contains(" mapped"), "{told}");
    table.row("cgnat", met.path, met.first_ping);
    mesh.check_quiet(&[])
}

/// By PCP a router opens its IPv6 firewall: the address stays, and anybody gets in at the port.
#[test]
fn a_pinhole_in_an_ipv6_firewall() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("IPv6 firewall with PCP");
    let mut config = LabConfig::of_kinds([NatKind::Symmetric]);
    config.homes[0].mapper = Some(PCP);
    config.homes[0].ipv6 = Ipv6::Firewalled;
    let mut mesh = Mesh::build(config)?;
    mesh.up("home-a", &[])?;
    let start = Instant::now();
    let opened = "port   [2001:db8:2::2]:51821 by PCP on router 2001:db8:2::1\n";
    let told = wait_for(PATIENCE, || {
        let status = said(&mesh, "home-a", &["status"])?;
        Ok(status.contains(opened).then_some(start.elapsed()))
    })?;
    let told = told.with_context(|| mesh.evidence("home-a", "home-a"))?;
    table.row("PCP", "open", told);
    let mut list = mesh.lab.command("home-a.router", "nft")?;
    let output = list
        .args(["list", "chain", "inet", "filter", "miniupnpd"])
        .output()?;
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(rules.contains("51821"), "{rules}");
    ensure!(
        !rules.contains("fe80"),
        "a link-local address needs no pinhole:\n{rules}"
    );
    mesh.check_quiet(&[])
}
