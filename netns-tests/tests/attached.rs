//! Interfaces that are there already: paths through NATs for them, whichever WireGuard they are.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{RTT, Table, Want, WireGuards, alone, seconds, wait_for};

/// From the first ping to answers both ways, on a busy machine: less than a repeated handshake takes.
const CONNECTED: Duration = Duration::from_secs(3);
/// Overlay pings meanwhile: times are right to this.
const PINGS: Duration = Duration::from_millis(20);
/// What another program's changes may cost.
const OUTAGE: Duration = Duration::from_secs(2);
/// WireGuard repeats a handshake after 5 s and up to a third of a second.
const HANDSHAKE: Duration = Duration::from_millis(5_400);

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
        // A packet for a peer without an endpoint costs wireguard-go the 5 s of a handshake's retry.
        for (first, second, _) in &pairs {
            all.wait_slot(first, second)?;
            all.wait_slot(second, first)?;
        }
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        for (first, second, _) in &pairs {
            slowest = slowest.max(all.first_pings(first, second, Instant::now())?);
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
    let native = |all: &WireGuards, node: &str| -> Result<SocketAddr> {
        Ok((all.mesh.lab.node(node)?.addresses()[0], 51820).into())
    };
    for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
        all.add_peer(node, peer, Some(native(&all, peer)?))?;
        all.attach(node, &[])?;
    }
    // One side starts: of two handshakes that cross WireGuard loses both.
    let pings = all.pings("home-a", "home-b", PINGS)?;
    let first = pings.back_after(Instant::now(), CONNECTED);
    let first = first.with_context(|| all.evidence("home-a", "home-b"))?;
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
    for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
        all.add_peer(node, peer, Some(dead()))?;
        all.attach(node, &[])?;
    }
    let start = Instant::now();
    let first = all.first_pings("home-a", "home-b", start)?;
    all.mesh
        .settle(&[("home-a", "home-b", Want::of(nat, nat))], start)?;
    table.row("port-restricted twice, dead endpoints", "direct", first);
    ensure!(
        first <= HANDSHAKE + OUTAGE,
        "{}",
        all.evidence("home-a", "home-b")
    );
    all.wait_slot("home-a", "home-b")?;
    all.mesh.check_quiet(&[])
}

/// Where nobody answers.
fn dead() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 200], 51820))
}

/// `wice detach` puts back what was there.
#[test]
fn detach_puts_endpoints_back() -> Result<()> {
    let _alone = alone();
    let nat = NatKind::PortRestricted;
    let mut all = WireGuards::build(config(&[nat; 2]), &["home-a", "home-b"])?;
    all.add_peer("home-a", "home-b", Some(dead()))?;
    all.add_peer("home-b", "home-a", None)?;
    for node in ["home-a", "home-b"] {
        all.attach(node, &[])?;
    }
    all.first_pings("home-a", "home-b", Instant::now())?;
    all.wait_slot("home-a", "home-b")?;
    for (node, said) in [
        ("home-a", "1 endpoint put back"),
        ("home-b", "1 peer had none"),
    ] {
        let output = all.mesh.lab.wice(node, &["detach"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && text.contains(said),
            "{node}: {output:?}"
        );
        all.mesh.forget(node);
    }
    let shown = all.shown("home-a", "home-b", "endpoints")?;
    ensure!(shown == Some(dead().to_string()), "{shown:?}");
    all.attach_again("home-a")?;
    all.attach_again("home-b")?;
    all.first_pings("home-a", "home-b", Instant::now())
        .map(drop)
}

/// The interface goes down, goes away, comes back, and moves to another port.
#[test]
fn an_interface_that_goes_and_comes_back() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("the interface");
    let nat = NatKind::PortRestricted;
    let nodes = ["home-a", "home-b"];
    let mut all = WireGuards::build(config(&[nat; 2]), &nodes)?;
    all.join_all()?;
    for node in nodes {
        all.attach(node, &[])?;
    }
    for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
        all.wait_slot(node, peer)?;
    }
    all.first_pings("home-a", "home-b", Instant::now())?;
    let pings = all.pings("home-b", "home-a", PINGS)?;

    all.wg("home-a", &["set", "wg0", "listen-port", "51999"])?;
    let start = Instant::now();
    let back = pings.back_after(start, CONNECTED);
    let back = back.with_context(|| all.evidence("home-a", "home-b"))?;
    table.row("another listen port", "", back);

    all.remove_interface("home-a")?;
    let told = wait_for(Duration::from_secs(5), || {
        let status = all.mesh.lab.wice("home-a", &["status"])?;
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let broken = status.status.code() == Some(2);
        Ok(text.contains("no WireGuard").then_some(broken))
    })?;
    ensure!(
        told == Some(true),
        "nothing is said of it: {}",
        all.evidence("home-a", "home-b")
    );
    all.add_interface("home-a")?;
    all.add_peer("home-a", "home-b", None)?;
    let start = Instant::now();
    all.wait_slot("home-a", "home-b")?;
    let back = pings.back_after(start, Duration::from_secs(25));
    let back = back.with_context(|| all.evidence("home-a", "home-b"))?;
    table.row("gone and made again", "", back);
    all.mesh.check_quiet(&["event=\"interface-lost\""])
}

/// CAP_NET_ADMIN is enough, with CAP_NET_RAW direct paths begin at WireGuard's own port, and that is all that
/// the systemd unit leaves.
#[test]
fn everything_but_two_capabilities_is_dropped() -> Result<()> {
    let unit = include_str!("../../manifests/systemd/wice-attach@.service");
    ensure!(
        unit.contains("\nCapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW\n"),
        "{unit}"
    );
    let _alone = alone();
    let nat = NatKind::PortRestricted;
    let nodes = ["home-a", "home-b"];
    // Bits 12 and 13 (capability.h).
    for (capabilities, mask) in [
        ("+net_admin", "0000000000001000"),
        ("+net_admin,+net_raw", "0000000000003000"),
    ] {
        let mut all = WireGuards::build(config(&[nat; 2]), &nodes)?;
        all.join_all()?;
        for node in nodes {
            all.attach_with_capabilities(node, capabilities)?;
        }
        for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
            all.wait_endpoint(node, peer)?;
        }
        all.first_pings("home-a", "home-b", Instant::now())?;
        let want = Want::of(nat, nat);
        all.mesh
            .settle(&[("home-a", "home-b", want)], Instant::now())?;
        for (node, peer) in [("home-a", "home-b"), ("home-b", "home-a")] {
            match capabilities {
                "+net_admin" => all.wait_slot(node, peer)?,
                _ => all.wait_native(node, peer).map(drop)?,
            }
            let pid = all.mesh.daemon(node)?.pid();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            for set in ["CapEff:", "CapBnd:"] {
                let have = status.lines().find_map(|line| line.strip_prefix(set));
                ensure!(have.map(str::trim) == Some(mask), "{set} {have:?}");
            }
        }
        all.mesh.check_quiet(&[])?;
    }
    Ok(())
}

/// What cannot be attached to is told with what to do.
#[test]
fn what_cannot_be_attached_to_is_said() -> Result<()> {
    let _alone = alone();
    let mut all = WireGuards::build(config(&[NatKind::Public; 2]), &["home-a", "home-b"])?;
    all.remove_interface("home-b")?;
    let token = all.mesh.token().to_owned();
    let says = |all: &WireGuards, arguments: &[&str]| -> Result<String> {
        let output = all.mesh.lab.wice("home-a", arguments)?;
        ensure!(!output.status.success(), "{arguments:?}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let text = says(&all, &["attach", "wg9", &token])?;
    ensure!(text.contains("wg9"), "{text}");
    let text = says(&all, &["attach", "wg0"])?;
    ensure!(text.contains("has not joined a network yet"), "{text}");
    let text = says(
        &all,
        &[
            "attach",
            "wg0",
            &token,
            "--private-key-file",
            "/etc/hostname",
        ],
    )?;
    ensure!(
        text.contains("cannot use /etc/hostname as the private key"),
        "{text}"
    );
    let text = says(&all, &["attach", "wg0", &token, "--listen-port", "51820"])?;
    ensure!(text.contains("51820"), "{text}");
    // WireGuard's process here, its interface elsewhere.
    if let Some(text) = all.while_elsewhere("home-a", "home-b", |all| {
        says(all, &["attach", "wg0", &token])
    })? {
        ensure!(text.contains("is not in this network namespace"), "{text}");
    }
    let text = says(&all, &["detach", "wg0", "--state-dir", "/nonexistent"])?;
    ensure!(text.contains("never attached"), "{text}");
    all.attach("home-a", &[])?;
    let running = wait_for(Duration::from_secs(5), || {
        let status = all.mesh.lab.wice("home-a", &["status"])?;
        Ok((status.status.code() != Some(2)).then_some(()))
    })?;
    ensure!(running.is_some(), "does not run");
    let text = says(&all, &["attach", "wg0", &token])?;
    ensure!(text.contains("in use by another wice"), "{text}");
    Ok(())
}

/// A thousand peers on one interface: what the daemon costs at rest, and that it still notices.
#[test]
fn a_thousand_peers_at_rest() -> Result<()> {
    const PEERS: usize = 1000;
    const WATCHED: Duration = Duration::from_secs(20);
    /// Of a release (`make peers`); thrice that with debug assertions.
    const MOST_CPU: f64 = if cfg!(debug_assertions) { 0.06 } else { 0.02 };
    /// In user-mode Linux, where a system call costs many times what it does elsewhere: 5 to 8 % were seen.
    const MOST_CPU_EMULATED: f64 = 0.2;
    const MOST_KIB: u64 = 60 << 10;
    let emulated = std::env::var_os("WICE_UML_JOB").is_some();
    let most_cpu = if emulated {
        MOST_CPU_EMULATED
    } else {
        MOST_CPU
    };
    let _alone = alone();
    let mut table = Table::new("1,000 peers on one interface");
    let nat = NatKind::PortRestricted;
    let nodes = ["home-a", "home-b"];
    let mut all = WireGuards::build(config(&[nat; 2]), &nodes)?;
    all.join_all()?;
    all.add_strangers("home-a", PEERS)?;
    for node in nodes {
        all.attach(node, &[])?;
    }
    all.wait_slot("home-a", "home-b")?;
    all.first_pings("home-a", "home-b", Instant::now())?;
    let pid = all.mesh.daemon("home-a")?.pid();
    let cpu = || -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after = stat.rsplit_once(')').context("no stat")?.1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        // utime and stime, in hundredths of a second (proc(5)).
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
    };
    std::thread::sleep(Duration::from_secs(5));
    let (before, start) = (cpu()?, Instant::now());
    std::thread::sleep(WATCHED);
    let share = (cpu()? - before) / start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|rest| rest.split_whitespace().next());
    let resident: u64 = resident.context("no VmRSS")?.parse()?;
    let _pings = all.pings("home-a", "home-b", PINGS)?;
    let reset = Instant::now();
    all.set_endpoint("home-a", "home-b", dead())?;
    all.wait_slot("home-a", "home-b")?;
    let noticed = reset.elapsed();
    let said = format!(
        "{:.1} % of a core, {} MiB; a reset noticed after",
        share * 100.0,
        resident >> 10
    );
    table.row("at rest", said, noticed);
    ensure!(noticed <= OUTAGE, "noticed after {}", seconds(noticed));
    ensure!(
        share <= most_cpu && resident <= MOST_KIB,
        "{share} of a core, {resident} KiB"
    );
    Ok(())
}
