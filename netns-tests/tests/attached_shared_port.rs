//! Attached interfaces with WireGuard's own port shared: direct paths are native, and need no daemon.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{LabConfig, NatKind, Pings};
use wice_netns_tests::{RTT, Table, Want, WireGuards, alone, seconds};

const NODES: [&str; 2] = ["home-a", "home-b"];
const BOTH_WAYS: [(&str, &str); 2] = [("home-a", "home-b"), ("home-b", "home-a")];
/// Overlay pings: times are right to this.
const PINGS: Duration = Duration::from_millis(20);
/// An answer is there after this, on a busy machine.
const ANSWERED: Duration = Duration::from_secs(1);
/// Without traffic when the port changes and only the other side has something to say: its packets are refused, and
/// the probes that follow are not answered from a port that WireGuard has left.
const MOVED: Duration = Duration::from_secs(2);
/// Every capability that there is, but for these two, is dropped.
const CAPABILITIES: &str = "+net_admin,+net_raw";

/// Two nodes with interfaces that know each other by key alone, attached with these capabilities.
fn two(kinds: [NatKind; 2], capabilities: &str) -> Result<WireGuards> {
    let config = LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds(kinds)
    };
    let mut all = WireGuards::build(config, &NODES)?;
    all.join_all()?;
    for node in NODES {
        all.attach_with_capabilities(node, capabilities)?;
    }
    for (node, peer) in BOTH_WAYS {
        all.wait_endpoint(node, peer)?;
    }
    Ok(all)
}

/// Every ping that was sent in this time and could be answered by now was.
fn nothing_lost(pings: &Pings, from: Instant, all: &WireGuards) -> Result<usize> {
    std::thread::sleep(ANSWERED);
    let Some(to) = Instant::now().checked_sub(ANSWERED) else {
        anyhow::bail!("the clock is younger than a ping");
    };
    let (sent, answered) = pings.answered_between(from, to);
    ensure!(
        sent == answered,
        "{} of {sent} pings lost\n{}",
        sent - answered,
        all.evidence("home-a", "home-b")
    );
    Ok(sent)
}

/// Each node's WireGuard sends to the other itself, where the daemon's status says that the path leads;
/// nothing is lost on the way there, when all daemons die, and when they are back.
#[test]
fn direct_paths_are_native_and_outlive_the_daemons() -> Result<()> {
    const DEAD: Duration = Duration::from_secs(5);
    use NatKind::{PortRestricted, Public, Symmetric};
    let _alone = alone();
    let mut table = Table::new("attached, shared port: no ping lost until native, nor by kill -9");
    for kinds in [
        [PortRestricted, PortRestricted],
        [Public, Symmetric],
        [Public, PortRestricted],
    ] {
        let mut all = two(kinds, CAPABILITIES)?;
        let start = Instant::now();
        let pings = all.pings("home-a", "home-b", PINGS)?;
        let first = pings.back_after(start, wice_netns_tests::PATIENCE);
        let first = first.with_context(|| all.evidence("home-a", "home-b"))?;
        let answered = start + first;
        let mut endpoints = Vec::new();
        for (node, peer) in BOTH_WAYS {
            endpoints.push(all.wait_native(node, peer)?);
        }
        let native = start.elapsed();
        let want = Want::of(kinds[0], kinds[1]);
        all.mesh.settle(&[("home-a", "home-b", want)], start)?;
        for (node, peer) in BOTH_WAYS {
            let status = all.mesh.peer(node, peer)?;
            let remote = status.and_then(|peer| peer.path.remote);
            let remote = remote.and_then(|end| end.address);
            let shown = all.wait_native(node, peer)?;
            ensure!(remote == Some(shown), "{node}: {remote:?}, not {shown}");
        }
        let upgraded = nothing_lost(&pings, answered, &all)?;
        for (node, peer) in BOTH_WAYS {
            endpoints.push(all.wait_native(node, peer)?);
        }

        let killed = Instant::now();
        for node in NODES {
            all.mesh.daemon(node)?.kill9();
        }
        std::thread::sleep(DEAD);
        let without = nothing_lost(&pings, killed, &all)?;
        let again = Instant::now();
        for node in NODES {
            all.mesh.forget(node);
            all.attach_again_by(node, "auto")?;
        }
        std::thread::sleep(DEAD);
        nothing_lost(&pings, again, &all)?;
        for (number, (node, peer)) in BOTH_WAYS.into_iter().enumerate() {
            let now = all.wait_native(node, peer)?;
            ensure!(now == endpoints[2 + number], "{node}: moved to {now}");
        }
        let what = format!(
            "{upgraded} and {without} pings, native after {}",
            seconds(native)
        );
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        table.row(names.join(" "), what, first);
        all.mesh.check_quiet(&[])?;
    }
    Ok(())
}

/// Two homes that only a relay joins, and it does.
fn two_relayed() -> Result<WireGuards> {
    let nat = NatKind::Symmetric;
    let mut all = two([nat; 2], CAPABILITIES)?;
    all.first_pings("home-a", "home-b", Instant::now())?;
    let want = Want::of(nat, nat);
    all.mesh
        .settle(&[("home-a", "home-b", want)], Instant::now())?;
    Ok(all)
}

/// Where no direct path is possible the relay carries everything. Whose relay it is goes by its slot; the
/// other's WireGuard may send to the relayed address itself.
#[test]
fn symmetric_pairs_are_relayed_by_the_slot_of_whose_relay_it_is() -> Result<()> {
    let _alone = alone();
    let all = two_relayed()?;
    for (node, peer) in BOTH_WAYS {
        let status = all.mesh.peer(node, peer)?.context("no such peer")?;
        let (local, remote) = (status.path.local, status.path.remote);
        let ours = local.is_some_and(|end| end.kind == "relay");
        if ours {
            all.wait_slot(node, peer)?;
        } else {
            let relayed = remote.and_then(|end| end.address);
            let native = all.wait_native(node, peer)?;
            ensure!(relayed == Some(native), "{node}: {native}, not {relayed:?}");
        }
    }
    all.mesh.check_quiet(&[])
}

/// Detached and attached again: where WireGuard had gone along with the path, to an address of a relay that is no more,
/// it is not waited for as for an endpoint of the owner's.
#[test]
fn a_relayed_pair_is_detached_and_attached_again() -> Result<()> {
    const BACK: Duration = Duration::from_secs(2);
    /// What is kept is written within a second.
    const KEPT: Duration = Duration::from_secs(2);
    let _alone = alone();
    let mut table = Table::new("attached, shared port");
    let mut all = two_relayed()?;
    std::thread::sleep(KEPT);
    for node in NODES {
        let output = all.mesh.lab.wice(node, &["detach"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && text.contains("1 peer had none"),
            "{node}: {output:?}"
        );
        all.mesh.forget(node);
    }
    let start = Instant::now();
    for node in NODES {
        all.attach_again_by(node, "auto")?;
    }
    let back = all.first_pings("home-a", "home-b", start)?;
    table.row(
        "relayed, detached and attached again",
        "pings both ways",
        back,
    );
    ensure!(back <= BACK, "{}", all.evidence("home-a", "home-b"));
    all.mesh.check_quiet(&[])
}

/// One side may share its port and the other may not: the proxy's side is at its slot, the other is
/// native, and it says why.
#[test]
fn without_net_raw_the_proxy_does() -> Result<()> {
    let _alone = alone();
    let nat = NatKind::PortRestricted;
    let config = LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds([nat; 2])
    };
    let mut all = WireGuards::build(config, &NODES)?;
    all.join_all()?;
    all.attach_with_capabilities("home-a", CAPABILITIES)?;
    all.attach_with_capabilities("home-b", "+net_admin")?;
    for (node, peer) in BOTH_WAYS {
        all.wait_endpoint(node, peer)?;
    }
    let start = Instant::now();
    all.first_pings("home-a", "home-b", start)?;
    all.mesh
        .settle(&[("home-a", "home-b", Want::of(nat, nat))], start)?;
    all.wait_native("home-a", "home-b")?;
    all.wait_slot("home-b", "home-a")?;
    let pings = all.pings("home-a", "home-b", PINGS)?;
    std::thread::sleep(Duration::from_secs(5));
    nothing_lost(&pings, Instant::now() - Duration::from_secs(4), &all)?;
    let log = all.mesh.daemon("home-b")?.output();
    let why = "no permission for raw sockets";
    ensure!(log.contains(why), "{log}");
    all.mesh.check_quiet(&[])
}

/// Another listen port is shared instead, and the path begins there.
#[test]
fn another_listen_port_is_followed() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("attached, shared port");
    let nat = NatKind::PortRestricted;
    let all = two([nat; 2], CAPABILITIES)?;
    all.first_pings("home-a", "home-b", Instant::now())?;
    for (node, peer) in BOTH_WAYS {
        all.wait_native(node, peer)?;
    }
    let before = all.wait_native("home-b", "home-a")?;
    let pings = all.pings("home-b", "home-a", PINGS)?;
    all.wg("home-a", &["set", "wg0", "listen-port", "51999"])?;
    let start = Instant::now();
    let back = pings.back_after(start, 10 * MOVED);
    let back = back.with_context(|| all.evidence("home-a", "home-b"))?;
    table.row("another listen port", "", back);
    let moved = wice_netns_tests::wait_for(wice_netns_tests::PATIENCE, || {
        let shown = all.shown("home-b", "home-a", "endpoints")?;
        let address = shown.and_then(|shown| shown.parse::<SocketAddr>().ok());
        let elsewhere = |a: &SocketAddr| !a.ip().is_loopback() && *a != before;
        Ok(address.filter(elsewhere))
    })?;
    ensure!(moved.is_some(), "{}", all.evidence("home-a", "home-b"));
    ensure!(back <= MOVED, "{}", all.evidence("home-a", "home-b"));
    // WireGuard that roams twice in a look is taken for a reset now and then, and put right.
    all.mesh.check_quiet(&["event=\"endpoint-reset\""])
}

/// Both sides begin at once, again and again: of two initiations that cross one wins.
#[test]
fn both_sides_begin_at_once() -> Result<()> {
    const ROUNDS: usize = 3;
    /// Less than the 5 s after which WireGuard repeats a handshake.
    const FIRST: Duration = Duration::from_secs(4);
    /// Until removed peers are forgotten, and until their paths are there again.
    const FORGOTTEN: Duration = Duration::from_secs(2);
    use NatKind::{FullCone, Public, Symmetric};
    let _alone = alone();
    let mut table =
        Table::new("attached, shared port, both sides begin at once: slowest first ping");
    for kinds in [[FullCone, FullCone], [Public, Symmetric]] {
        let all = two(kinds, CAPABILITIES)?;
        let mut slowest = Duration::ZERO;
        for _ in 0..ROUNDS {
            std::thread::sleep(FORGOTTEN);
            slowest = slowest.max(all.first_pings("home-a", "home-b", Instant::now())?);
            for (node, peer) in BOTH_WAYS {
                let key = all.key(peer)?.to_string();
                all.wg(node, &["set", "wg0", "peer", &key, "remove"])?;
            }
            std::thread::sleep(FORGOTTEN);
            for (node, peer) in BOTH_WAYS {
                all.add_peer(node, peer, None)?;
            }
            for (node, peer) in BOTH_WAYS {
                all.wait_endpoint(node, peer)?;
            }
        }
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        table.row(names.join(" "), format!("{ROUNDS} times"), slowest);
        ensure!(slowest <= FIRST, "{}", all.evidence("home-a", "home-b"));
        all.mesh.check_quiet(&[])?;
    }
    Ok(())
}
