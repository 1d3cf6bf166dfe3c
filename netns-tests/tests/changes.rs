//! Networks that change under a session: reboots, new addresses, pulled wires, cuts, losses.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{LabConfig, NatKind, PeerStatus};
use wice_netns_tests::{Mesh, RTT, Table, Want, alone, seconds, wait_for};

/// Overlay pings meanwhile: times are right to this.
const PINGS: Duration = Duration::from_millis(100);
/// Traffic is back this long after an address or a NAT has changed.
const BACK: Duration = Duration::from_secs(5);
/// Until a better path is found again after what was in its way is gone.
const UPGRADE: Duration = Duration::from_secs(60);

fn mesh(kinds: [NatKind; 2], loss_permille: u16) -> Result<Mesh> {
    Mesh::build(LabConfig {
        rtt: RTT,
        loss_permille,
        ..LabConfig::of_kinds(kinds)
    })
}

/// Homes in which a direct path is lost, or a relayed one.
const PAIRS: [[NatKind; 2]; 4] = [
    [NatKind::PortRestricted, NatKind::PortRestricted],
    [NatKind::FullCone, NatKind::FullCone],
    [NatKind::Symmetric, NatKind::FullCone],
    [NatKind::Symmetric, NatKind::Symmetric],
];

/// Does something to the first home of each pair, and waits until pings pass again and the path is
/// what the NATs allow.
fn disturb(
    title: &str,
    pairs: &[[NatKind; 2]],
    mut change: impl FnMut(&mut Mesh) -> Result<()>,
) -> Result<()> {
    let _alone = alone();
    let mut table = Table::new(title);
    let mut late = Vec::new();
    for &kinds in pairs {
        let name = format!("{} {}", kinds[0], kinds[1]);
        let mut mesh = mesh(kinds, 0)?;
        let want = Want::of(kinds[0], kinds[1]);
        mesh.meet("home-a", "home-b", &want)?;
        let pings = mesh.pings("home-a", "home-b", PINGS)?;
        let back = mesh.pings("home-b", "home-a", PINGS)?;
        std::thread::sleep(Duration::from_secs(1));
        change(&mut mesh)?;
        let start = Instant::now();
        let answers = [&pings, &back].map(|pings| pings.back_after(start, 4 * BACK));
        let [Some(there), Some(back)] = answers else {
            let evidence = mesh.evidence("home-a", "home-b");
            anyhow::bail!("{name}: {answers:?}\n{evidence}");
        };
        let took = there.max(back);
        // The host's and the relay's own remains of the old addresses are gone by then.
        let settled = mesh.settle_within(&[("home-a", "home-b", want)], Instant::now(), UPGRADE)?;
        table.row(&name, format!("as before after {}", seconds(settled)), took);
        if took > BACK {
            late.push(format!("{name}: back after {}", seconds(took)));
        }
        mesh.check_quiet(&["event=signaling-lost"])?;
    }
    ensure!(late.is_empty(), "{}", late.join("\n"));
    Ok(())
}

#[test]
fn a_nat_that_reboots() -> Result<()> {
    disturb("NAT rebooted", &PAIRS, |mesh| {
        Ok(mesh.lab.reboot_nat("home-a")?)
    })
}

#[test]
fn a_wan_that_is_renumbered() -> Result<()> {
    disturb("WAN renumbered", &PAIRS, |mesh| {
        mesh.lab.renumber_wan("home-a").map(drop)?;
        Ok(())
    })
}

#[test]
fn a_wire_that_is_pulled_for_three_seconds() -> Result<()> {
    disturb("wire pulled for 3 s, from the plugging", &PAIRS, |mesh| {
        mesh.lab.set_lan_up("home-a", false)?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(mesh.lab.set_lan_up("home-a", true)?)
    })
}

/// Longer than consent lasts (30 s) and than anything is retransmitted without a break.
#[test]
fn a_wire_that_is_pulled_for_long() -> Result<()> {
    const PULLED: Duration = Duration::from_secs(45);
    let title = "wire pulled for 45 s, from the plugging";
    disturb(title, &[PAIRS[0], PAIRS[3]], |mesh| {
        mesh.lab.set_lan_up("home-a", false)?;
        std::thread::sleep(PULLED);
        Ok(mesh.lab.set_lan_up("home-a", true)?)
    })
}

/// The direct way dies without a word: relayed within 5 s; it comes back: direct within 60 s, and
/// no ping is lost by the change.
#[test]
fn a_direct_path_that_is_cut() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("direct way cut, and open again");
    let kinds = [NatKind::PortRestricted, NatKind::FullCone];
    let mut mesh = mesh(kinds, 0)?;
    let direct = Want::of(kinds[0], kinds[1]);
    mesh.meet("home-a", "home-b", &direct)?;
    let pings = mesh.pings("home-a", "home-b", PINGS)?;
    // The standby through the relay takes a moment, as a user's pair has.
    std::thread::sleep(Duration::from_secs(3));
    let far = remote(&mesh.peer("home-a", "home-b")?.context("no peer")?)?;
    cut(&mesh, "home-a.router", far, true)?;
    let start = Instant::now();
    let back = pings.back_after(start + RTT, 4 * BACK);
    let back = back.with_context(|| mesh.evidence("home-a", "home-b"))?;
    let relayed = |mesh: &Mesh| -> Result<bool> {
        let peer = mesh.peer("home-a", "home-b")?;
        Ok(peer.is_some_and(|peer| peer.path.kind == "relayed"))
    };
    ensure!(
        relayed(&mesh)?,
        "not cut: {}",
        mesh.evidence("home-a", "home-b")
    );
    table.row("cut", "relayed", back);
    std::thread::sleep(Duration::from_secs(20));
    ensure!(relayed(&mesh)?, "{}", mesh.evidence("home-a", "home-b"));

    cut(&mesh, "home-a.router", far, false)?;
    let open = Instant::now();
    let settled = mesh.settle_within(&[("home-a", "home-b", direct)], open, UPGRADE)?;
    table.row("open again", "direct", settled);
    let gap = pings.longest_gap(open);
    table.row("longest gap in the change back", "", gap);
    ensure!(back <= BACK, "relayed after {}", seconds(back));
    ensure!(gap < Duration::from_secs(1), "a gap of {}", seconds(gap));
    mesh.check_quiet(&[])
}

/// One packet of ten is lost each way: the path stays.
#[test]
fn ten_per_cent_loss() -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(45);
    let _alone = alone();
    let mut table = Table::new("10 % loss for 45 s");
    for kinds in [PAIRS[0], PAIRS[3]] {
        let mut mesh = mesh(kinds, 100)?;
        let want = Want::of(kinds[0], kinds[1]);
        let name = format!("{} {}", kinds[0], kinds[1]);
        let met = mesh.meet("home-a", "home-b", &want).context(name.clone())?;
        let pings = mesh.pings("home-a", "home-b", PINGS)?;
        let changes = |mesh: &Mesh| -> Result<u64> {
            let peers = [("home-a", "home-b"), ("home-b", "home-a")];
            let mut most = 0;
            for (node, peer) in peers {
                most = most.max(mesh.peer(node, peer)?.context("no peer")?.path_changes);
            }
            Ok(most)
        };
        let (start, before) = (Instant::now(), changes(&mesh)?);
        std::thread::sleep(WATCHED);
        let changed = changes(&mesh)? - before;
        let (sent, answered) = pings.answered_between(start, Instant::now() - RTT * 4);
        let gap = pings.longest_gap(start);
        let said = format!(
            "{}, {changed} changes, {answered} of {sent} pings, longest gap {}",
            met.path,
            seconds(gap)
        );
        table.row(name, said, met.first_ping);
        ensure!(
            changed <= 1,
            "{changed} changes\n{}",
            mesh.evidence("home-a", "home-b")
        );
        // Each way loses a tenth, a relayed one twice.
        ensure!(answered * 100 >= sent * 55, "{answered} of {sent} answered");
        mesh.check_quiet(&["event=signaling-lost"])?;
    }
    Ok(())
}

fn remote(peer: &PeerStatus) -> Result<IpAddr> {
    let end = peer.path.remote.as_ref().and_then(|end| end.address);
    Ok(end.context("no remote end")?.ip())
}

/// Drops, or no longer drops, all UDP between a router's home and an address, without a word.
fn cut(mesh: &Mesh, router: &str, far: IpAddr, on: bool) -> Result<()> {
    let rules = if on {
        format!(
            "table ip cut {{ chain c {{ type filter hook forward priority -10; \
             meta l4proto udp ip daddr {far} drop; meta l4proto udp ip saddr {far} drop; }}; }}"
        )
    } else {
        "delete table ip cut".into()
    };
    let output = mesh.lab.command(router, "nft")?.arg(rules).output()?;
    ensure!(output.status.success(), "{output:?}");
    let listed = wait_for(Duration::ZERO, || {
        let tables = mesh
            .lab
            .command(router, "nft")?
            .args(["list", "tables"])
            .output()?;
        Ok(Some(
            String::from_utf8_lossy(&tables.stdout).contains("cut"),
        ))
    })?;
    ensure!(listed == Some(on), "the cut is {listed:?}");
    Ok(())
}
