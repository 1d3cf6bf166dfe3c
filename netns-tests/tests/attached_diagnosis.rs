//! What attached mode says where something is configured on one side alone, or not at all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{RTT, WireGuards, alone, wait_for};

/// Until both sides say it: connecting, five seconds in vain, a record each way, and a busy machine.
const TOLD: Duration = Duration::from_secs(30);

/// Two homes whose NATs let a direct path come about, and a relay.
fn homes() -> Result<WireGuards> {
    let config = LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds([NatKind::PortRestricted; 2])
    };
    WireGuards::build(config, &["home-a", "home-b"])
}

fn text(all: &WireGuards, node: &str, arguments: &[&str]) -> Result<String> {
    let output = all.mesh.lab.wice(node, arguments)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until what the command prints has all of `said`.
fn says(all: &WireGuards, node: &str, arguments: &[&str], said: &[&str]) -> Result<()> {
    let told = wait_for(TOLD, || {
        let text = text(all, node, arguments)?;
        Ok(said.iter().all(|said| text.contains(said)).then_some(()))
    })?;
    let last = text(all, node, arguments)?;
    told.with_context(|| format!("{node} does not say {said:?} but\n{last}"))
}

#[test]
fn a_peer_of_one_side_alone_is_told_on_both() -> Result<()> {
    let _alone = alone();
    let mut all = homes()?;
    all.add_peer("home-a", "home-b", None)?;
    for node in ["home-a", "home-b"] {
        all.attach(node, &[])?;
    }
    let (key_a, key_b) = (
        all.key("home-a")?.to_string(),
        all.key("home-b")?.to_string(),
    );
    let remedy = format!("on home-b: wg set INTERFACE peer {key_a} allowed-ips");
    says(
        &all,
        "home-a",
        &["why", &key_b],
        &["(not-a-peer-there)", &remedy],
    )?;
    let remedy = format!(
        "home-a has this node as a peer and looks for it, but is no peer of wg0: wg set wg0 peer {key_a} allowed-ips"
    );
    says(&all, "home-b", &["status"], &[&remedy])?;
    // What was said is done, and nothing of it is left.
    all.add_peer("home-b", "home-a", None)?;
    all.first_pings("home-a", "home-b", Instant::now())?;
    let quiet = wait_for(TOLD, || {
        let text = text(&all, "home-b", &["status"])?;
        Ok((!text.contains("no peer of wg0")).then_some(()))
    })?;
    ensure!(quiet.is_some(), "{}", text(&all, "home-b", &["status"])?);
    says(&all, "home-a", &["why", &key_b], &["is direct", "(direct-"])?;
    all.mesh
        .check_quiet(&["event=\"not-a-peer-there\"", "event=\"not-a-peer-here\""])
}

#[test]
fn a_revoked_node_is_told_of_where_it_is_still_a_peer() -> Result<()> {
    let _alone = alone();
    let mut all = homes()?;
    all.join_all()?;
    for node in ["home-a", "home-b"] {
        all.attach(node, &[])?;
    }
    all.first_pings("home-a", "home-b", Instant::now())?;
    let key = all.key("home-b")?.to_string();
    let revoked = all.mesh.lab.wice("signal", &["revoke", &key])?;
    ensure!(revoked.status.success(), "{revoked:?}");
    let remedy =
        format!("was revoked, and is still a peer of the interface: wg set wg0 peer {key} remove");
    says(&all, "home-a", &["status"], &["1 peer: 1 revoked", &remedy])?;
    says(&all, "home-a", &["why", &key], &["(revoked)"])?;
    let hint = [
        "wice leave --yes --state-dir ",
        "/attached/wg0",
        "wice attach wg0 TOKEN",
    ];
    says(&all, "home-b", &["status"], &hint)?;
    all.wg("home-a", &["set", "wg0", "peer", &key, "remove"])?;
    says(&all, "home-a", &["status"], &["no peers yet"])
}

/// `wice attach` and `wice up` in one namespace: both work, and no command takes one for the other in silence.
#[test]
fn two_daemons_of_one_machine_are_told_apart() -> Result<()> {
    let _alone = alone();
    let mut all = homes()?;
    all.join_all()?;
    for node in ["home-a", "home-b"] {
        all.attach(node, &[])?;
    }
    all.first_pings("home-a", "home-b", Instant::now())?;
    let token = all.mesh.token().to_owned();
    let refused = |arguments: &[&str], said: &str| -> Result<()> {
        let output = all.mesh.lab.wice("home-a", arguments)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && text.contains(said),
            "{arguments:?}: {text}"
        );
        Ok(())
    };
    refused(&["up", &token], "--listen-port 0")?;
    let _up = all
        .mesh
        .lab
        .start_daemon("home-a", Some(&token), &["--listen-port", "0"])?;
    says(
        &all,
        "home-a",
        &["status", "--interface", "wice0"],
        &["connected"],
    )?;
    let which = "several daemons run here, of the interfaces wg0 and wice0";
    for command in [
        &["status"][..],
        &["why", "home-b"],
        &["ping", "home-b"],
        &["detach"],
    ] {
        refused(command, which)?;
    }
    says(
        &all,
        "home-a",
        &["status", "--interface", "wg0"],
        &["1 peer: 1 direct"],
    )?;
    all.first_pings("home-a", "home-b", Instant::now())?;
    let detached = text(&all, "home-a", &["detach", "wg0"])?;
    ensure!(detached.contains("1 peer had none"), "{detached}");
    all.mesh.forget("home-a");
    says(&all, "home-a", &["status"], &["wice0  home-a"])
}
