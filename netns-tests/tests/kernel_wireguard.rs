//! Kernel WireGuard, where the kernel has it: `make uml`. Ignored elsewhere, never passed over there.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use wice::lab::{Lab, LabConfig, NatKind};
use wice_netns_tests::interface::{Implementation, Interface};
use wice_netns_tests::{lab, wait_for};

const PORT: u16 = 51820;
/// Until two that know each other have a session.
const SESSION: Duration = Duration::from_secs(12);

/// A pair of nodes with kernel WireGuard that reach each other.
fn pair() -> Result<(Lab, Interface, Interface)> {
    let lab = lab(LabConfig {
        servers: false,
        ..LabConfig::of_kinds([NatKind::Public; 2])
    })?;
    let make = |node, name, address| {
        Interface::create(&lab, node, Implementation::Kernel, name, PORT, &[address])
    };
    let a = make("home-a", "wg-a", "10.91.0.1/24")?;
    let b = make("home-b", "wg-b", "10.91.0.2/24")?;
    let endpoint =
        |node| Ok::<_, anyhow::Error>(SocketAddr::new(lab.node(node)?.addresses()[0], PORT));
    a.set_peer(b.public_key(), Some(endpoint("home-b")?), "10.91.0.2/32")?;
    b.set_peer(a.public_key(), Some(endpoint("home-a")?), "10.91.0.1/32")?;
    let inner = "10.91.0.2".parse()?;
    let reached = wait_for(SESSION, || Ok(a.reaches(inner)?.then_some(())))?;
    ensure!(reached.is_some(), "no session within {SESSION:?}");
    Ok((lab, a, b))
}

#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn it_is_the_kernels_and_it_carries_packets() -> Result<()> {
    let (_lab, a, b) = pair()?;
    let kind = a.run("ip", &["-details", "link", "show", "dev", a.name()])?;
    assert!(
        kind.contains("wireguard"),
        "another kind of interface: {kind}"
    );
    // wireguard-go's device would have its process's socket here.
    let sockets = a.run("ls", &["-A", "/var/run"])?;
    assert!(
        !sockets.contains("wireguard"),
        "a userspace implementation: {sockets}"
    );
    // The kernel's socket belongs to no process.
    let holders = a.run("ss", &["-Hlunp", &format!("sport = :{PORT}")])?;
    assert!(holders.contains(&format!(":{PORT}")), "{holders}");
    assert!(
        !holders.contains("users:"),
        "a process holds the port: {holders}"
    );
    assert!(a.handshake(b.public_key())? > 0);
    assert!(b.handshake(a.public_key())? > 0);
    Ok(())
}
