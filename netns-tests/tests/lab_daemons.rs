//! How the lab starts, asks and ends daemons, shown on a stand-in that has wice's command line.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::lab;

/// It has the address of both nodes, so that its own kernel answers the overlay's pings.
const STAND_IN: &str = r#"#!/bin/sh
case "$1" in
network) echo "network lab is made" ;;
invite) echo "give this to a node:"; echo "wice1-token" ;;
up)
    echo "$@"
    trap 'exit 7' TERM
    ip tuntap add wice0 mode tun
    ip link set wice0 up
    sleep 0.1
    ip addr add 100.91.0.2/32 dev wice0
    sleep 1000 & wait
    ;;
status) echo '{"schema":1,"peers":[{"name":"home-b","path":{"kind":"direct","remote":{"kind":"srflx"}}}]}' ;;
esac
"#;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_daemon_is_started_asked_pinged_stopped_and_killed() -> Result<()> {
    let binary = std::env::temp_dir().join(format!("wice-stand-in.{}", std::process::id()));
    fs::write(&binary, STAND_IN)?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    let kinds = [NatKind::PortRestricted, NatKind::Symmetric];
    let lab = lab(LabConfig {
        servers: false,
        binary: Some(binary.clone()),
        ..LabConfig::of_kinds(kinds)
    })?;

    let token = lab.network_token()?;
    assert_eq!(token, "wice1-token");
    let mut daemon = lab.start_daemon("home-a", Some(&token), &["--verbose"])?;
    let deadline = Instant::now() + PATIENCE;
    let pong = lab.first_overlay_ping("home-a", "home-a", || Instant::now() < deadline)?;
    assert!(pong.context("no answer")?.rtt < Duration::from_millis(100));
    let said = daemon.output();
    assert!(said.starts_with("up wice1-token --state-dir /"), "{said}");
    assert!(
        said.contains("--name home-a --interface wice0 --verbose"),
        "{said}"
    );
    assert_eq!(lab.peers("home-a")?[0].path.kind, "direct");
    assert_eq!(daemon.status(), None);
    assert_eq!(
        daemon.stop().code(),
        Some(7),
        "SIGTERM lets it end in order"
    );

    let mut again = lab.start_daemon("home-b", None, &[])?;
    assert_eq!(again.kill9().signal(), Some(9));
    assert!(lab.node("home-b")?.state_dir().is_dir(), "its state stays");
    fs::remove_file(binary)?;
    Ok(())
}
