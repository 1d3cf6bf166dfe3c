//! A link on the way that carries less than the interface takes in: it is said, with the number to set, and no packet
//! vanishes in silence.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{Mesh, RTT, Want, WireGuards, alone, wait_for};

/// The link between home-a's router and the internet.
const LINK: u32 = 1400;
/// What that leaves for the inside: less IPv4, UDP and WireGuard.
const INNER: u32 = LINK - 20 - 8 - 32;
/// Two looks of the daemon, and a busy machine.
const TOLD: Duration = Duration::from_secs(20);

fn config() -> LabConfig {
    LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds([NatKind::PortRestricted; 2])
    }
}

fn narrow(mesh: &Mesh) -> Result<()> {
    let mut command = mesh.lab.command("home-a.router", "ip")?;
    let link = LINK.to_string();
    let output = command
        .args(["link", "set", "wan", "mtu", &link])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Whether one ping with an inner packet of this size is answered.
fn passes(mesh: &Mesh, to: IpAddr, size: u32) -> Result<bool> {
    // IPv4 and ICMP have 28 bytes.
    let payload = (size - 28).to_string();
    let mut command = mesh.lab.command("home-a", "ping")?;
    command.args([
        "-M", "do", "-c", "2", "-i", "0.3", "-W", "2", "-s", &payload,
    ]);
    Ok(command.arg(to.to_string()).output()?.status.success())
}

fn text(mesh: &Mesh, arguments: &[&str]) -> Result<String> {
    let output = mesh.lab.wice("home-a", arguments)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn says(mesh: &Mesh, arguments: &[&str], is_told: impl Fn(&str) -> bool) -> Result<String> {
    let told = wait_for(TOLD, || {
        let text = text(mesh, arguments)?;
        Ok(is_told(&text).then_some(text))
    })?;
    let last = text(mesh, arguments)?;
    told.with_context(|| format!("{arguments:?} says\n{last}"))
}

#[test]
fn an_interface_that_takes_in_too_much_is_told_what_to_set() -> Result<()> {
    let _alone = alone();
    let mut all = WireGuards::build(config(), &["home-a", "home-b"])?;
    all.join_all()?;
    for node in ["home-a", "home-b"] {
        all.ip(node, "link set wg0 mtu 1420")?;
        all.attach(node, &[])?;
    }
    all.first_pings("home-a", "home-b", Instant::now())?;
    let nat = NatKind::PortRestricted;
    let want = Want::of(nat, nat);
    all.mesh
        .settle(&[("home-a", "home-b", want)], Instant::now())?;
    let quiet = text(&all.mesh, &["status"])?;
    ensure!(!quiet.contains("MTU "), "{quiet}");
    narrow(&all.mesh)?;
    let to = all.address("home-b")?;
    ensure!(!passes(&all.mesh, to, 1420)?, "the link is not narrow");
    let remedy = format!("ip link set wg0 mtu {INNER}");
    let warning = format!("MTU    wg0 has 1420, the path to home-b carries {INNER}: {remedy}\n");
    says(&all.mesh, &["status"], |text| {
        text.contains(&warning) && text.contains(" did not fit its path")
    })?;
    let path = format!("its path carries {INNER} bytes ({LINK} with all headers)");
    says(&all.mesh, &["why", "home-b"], |text| text.contains(&path))?;
    let log = all.mesh.daemon("home-a")?.output();
    ensure!(log.matches(" event=mtu ").count() == 1, "{log}");
    // What is told helps.
    all.ip("home-a", &remedy["ip ".len()..])?;
    ensure!(
        passes(&all.mesh, to, INNER)?,
        "{}",
        all.evidence("home-a", "home-b")
    );
    says(&all.mesh, &["status"], |text| !text.contains("MTU "))?;
    all.mesh.check_quiet(&["event=\"mtu\""])
}

#[test]
fn managed_mode_names_its_own_flag() -> Result<()> {
    let _alone = alone();
    let mut mesh = Mesh::build(config())?;
    narrow(&mesh)?;
    for node in ["home-a", "home-b"] {
        mesh.up(node, &[])?;
    }
    let nat = NatKind::PortRestricted;
    mesh.settle(&[("home-a", "home-b", Want::of(nat, nat))], Instant::now())?;
    let to = mesh.address("home-b")?;
    ensure!(!passes(&mesh, to, 1392)?, "the link is not narrow");
    // Until the interface ends there, WireGuard pads to the next 16.
    ensure!(
        passes(&mesh, to, INNER / 16 * 16)?,
        "{}",
        mesh.evidence("home-a", "home-b")
    );
    let remedy =
        format!("wice0 has 1392, the path to home-b carries {INNER}: wice up --mtu {INNER}");
    says(&mesh, &["status"], |text| text.contains(&remedy))?;
    mesh.check_quiet(&["event=\"mtu\""])
}
