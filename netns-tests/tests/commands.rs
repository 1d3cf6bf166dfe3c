//! What people type on a node and on the admin's machine, and what they are told: with real daemons and a real service.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wice::lab::{LabConfig, NatKind, Process};
use wice_netns_tests::{Mesh, PATIENCE, wait_for, wice_binary};

const HOMES: [NatKind; 2] = [NatKind::PortRestricted, NatKind::PortRestricted];
/// A daemon that cannot start says so at once.
const AT_ONCE: Duration = Duration::from_secs(5);

fn mesh() -> Result<Mesh> {
    let mut mesh = Mesh::build(LabConfig::of_kinds(HOMES))?;
    mesh.up("home-a", &[])?;
    mesh.up("home-b", &[])?;
    let well = wait_for(PATIENCE, || {
        let status = mesh.lab.wice("home-a", &["status"])?;
        Ok((code(&status) == 0 && stdout(&status).contains("1 direct")).then_some(()))
    })?;
    well.with_context(|| mesh.evidence("home-a", "home-b"))?;
    Ok(mesh)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| stderr(output))
}

/// A daemon as the systemd unit starts it: nothing but what is in its state folder.
fn up_bare(mesh: &Mesh, node: &str, more: &[&str]) -> Result<Process> {
    let machine = mesh.lab.node(node)?;
    let binary = mesh.lab.binary()?;
    let (state, run) = (machine.state_dir(), machine.run_dir());
    Ok(mesh.lab.start(node, &format!("{node}-bare"), |ns| {
        let mut command = ns.command(binary);
        command.arg("up").args(more);
        command
            .env("WICE_STATE_DIR", state)
            .env("WICE_RUN_DIR", run);
        command
    })?)
}

#[test]
fn who_is_asked_for_is_found_or_told() -> Result<()> {
    let mesh = mesh()?;
    let key = mesh
        .peer("home-a", "home-b")?
        .context("home-b is a peer")?
        .key;
    for wanted in ["home-b", "HOME-B", &key, &key[..6]] {
        let why = mesh.lab.wice("home-a", &["why", wanted])?;
        ensure!(code(&why) == 0, "{wanted}: {}", stderr(&why));
        ensure!(
            stdout(&why).starts_with("home-b is direct: "),
            "{wanted}: {}",
            stdout(&why)
        );
    }
    for command in ["why", "ping", "status"] {
        let own = mesh.lab.wice("home-a", &[command, "home-a"])?;
        ensure!(code(&own) == 2, "{command}");
        ensure!(
            stderr(&own) == "wice: home-a is this node itself\n  peers are home-b\n",
            "{command}: {}",
            stderr(&own)
        );
    }
    Ok(())
}

#[test]
fn the_log_has_one_line_a_transition() -> Result<()> {
    let mut mesh = mesh()?;
    let log = mesh.daemon("home-a")?.output();
    for line in log.lines() {
        ensure!(
            line.starts_with("20") && line.contains(" event="),
            "no line of its own: {line}"
        );
    }
    let of = |event: &str| {
        let event = format!(" event={event} ");
        log.lines()
            .find(|line| line.contains(&event))
            .map(str::to_owned)
    };
    let started = of("started").with_context(|| log.clone())?;
    ensure!(started.contains(" name=home-a network=lab "), "{started}");
    ensure!(
        log.contains(" event=path peer=home-b kind=direct reason=direct-"),
        "{log}"
    );
    Ok(())
}

#[test]
fn who_reads_that_it_started_may_ask_it() -> Result<()> {
    let mut mesh = Mesh::build(LabConfig::of_kinds([NatKind::Public]))?;
    mesh.up("home-a", &[])?;
    let socket = mesh.lab.node("home-a")?.run_dir().join("wice0.sock");
    let deadline = std::time::Instant::now() + AT_ONCE;
    while !mesh.daemon("home-a")?.output().contains("event=started") {
        let said = mesh.daemon("home-a")?.output();
        ensure!(
            std::time::Instant::now() < deadline,
            "it does not start: {said}"
        );
    }
    ensure!(socket.exists(), "the control socket is there");
    Ok(())
}

#[test]
fn a_name_is_remembered_and_a_second_daemon_refused() -> Result<()> {
    let mut mesh = mesh()?;
    let token = mesh.token().to_owned();
    let elsewhere = mesh.lab.directory().join("elsewhere");
    let elsewhere = elsewhere.to_str().context("a path")?;
    let mut second = up_bare(
        &mesh,
        "home-a",
        &[
            &token,
            "--interface",
            "wice1",
            "--state-dir",
            elsewhere,
            "--listen-port",
            "0",
        ],
    )?;
    let ended = second.wait(AT_ONCE).context("it runs beside the first")?;
    ensure!(ended.code() == Some(2), "{ended}: {}", second.output());
    let said = second.output();
    ensure!(
        said.contains(
            "another wice runs here: its interface wice0 has the overlay address 100.91."
        ) && said.contains("wice down --interface wice0"),
        "{said}"
    );

    mesh.daemon("home-a")?.stop();
    let mut again = up_bare(&mesh, "home-a", &[])?;
    let name = wait_for(PATIENCE, || {
        let status = mesh.lab.wice("home-a", &["status", "--json"])?;
        Ok(json(&status)?["name"].as_str().map(str::to_owned))
    })?;
    ensure!(
        name.as_deref() == Some("home-a"),
        "{name:?}: {}",
        again.output()
    );
    again.stop();
    let mut renamed = up_bare(&mesh, "home-a", &["--name", "gate"])?;
    let seen = wait_for(PATIENCE, || mesh.peer("home-b", "gate"))?;
    ensure!(seen.is_some(), "{}", renamed.output());
    renamed.stop();
    Ok(())
}

#[test]
fn without_a_network_it_says_so_and_fails() -> Result<()> {
    let mesh = mesh()?;
    mesh.lab.set_lan_up("home-b", false)?;
    let told = wait_for(PATIENCE, || {
        let status = mesh.lab.wice("home-b", &["status"])?;
        let why = mesh.lab.wice("home-b", &["why", "home-a"])?;
        let is_told = stdout(&status).contains("no network: this node has no usable address")
            && stdout(&why).contains("(no-network)");
        Ok((is_told && code(&status) == 2 && code(&why) == 2).then_some(()))
    })?;
    told.with_context(|| mesh.evidence("home-b", "home-a"))
}

#[test]
fn a_revoked_node_comes_back_as_it_is_told_to() -> Result<()> {
    let mut mesh = mesh()?;
    let key = mesh
        .peer("home-a", "home-b")?
        .context("home-b is a peer")?
        .key;
    let running = mesh.lab.wice("home-b", &["leave", "--yes"])?;
    ensure!(
        code(&running) == 2 && stderr(&running).contains("wice down"),
        "{}",
        stderr(&running)
    );
    let revoked = mesh.lab.wice("signal", &["revoke", &key])?;
    ensure!(code(&revoked) == 0, "{}", stderr(&revoked));
    let status = wait_for(PATIENCE, || {
        let status = mesh.lab.wice("home-b", &["status", "--json"])?;
        let json = json(&status)?;
        let is_out = json["signaling"]["refused"] == "revoked" && code(&status) == 2;
        Ok(is_out.then_some(json))
    })?;
    let status = status.with_context(|| mesh.evidence("home-b", "home-a"))?;
    let hint = status["signaling"]["hint"].as_str().unwrap_or_default();
    ensure!(
        hint.contains("wice down; wice leave --yes") && hint.contains("wice up TOKEN"),
        "{status}"
    );
    let text = stdout(&mesh.lab.wice("home-b", &["status"])?);
    ensure!(text.contains(&format!("\n       {hint}\n")), "{text}");
    let log = mesh.daemon("home-b")?.output();
    ensure!(
        log.contains(" event=signaling-refused reason=revoked "),
        "{log}"
    );

    let down = mesh.lab.wice("home-b", &["down"])?;
    ensure!(code(&down) == 0, "{}", stderr(&down));
    let left = mesh.lab.wice("home-b", &["leave", "--yes"])?;
    ensure!(
        stdout(&left).starts_with("this node has left the network lab\n"),
        "{}",
        stderr(&left)
    );
    mesh.up("home-b", &[])?;
    let back = wait_for(PATIENCE, || {
        Ok(mesh
            .peer("home-a", "home-b")?
            .filter(|peer| peer.key != key && peer.path.kind == "direct"))
    })?;
    back.with_context(|| mesh.evidence("home-a", "home-b"))?;
    Ok(())
}

#[test]
fn the_admin_sees_who_is_in() -> Result<()> {
    let mut mesh = mesh()?;
    let nodes = json(&mesh.lab.wice("signal", &["network", "nodes", "--json"])?)?;
    ensure!(nodes["schema"] == 1 && nodes["network"] == "lab", "{nodes}");
    let names: Vec<&str> = nodes["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| node["name"].as_str())
        .collect();
    ensure!(names == ["home-a", "home-b"], "{nodes}");
    let key = mesh.peer("home-a", "home-b")?.context("a peer")?.key;
    ensure!(nodes["nodes"][1]["key"] == key.as_str(), "{nodes}");
    let address = mesh.address("home-b")?.to_string();
    ensure!(
        nodes["nodes"][1]["addresses"][0] == address.as_str(),
        "{nodes}"
    );
    // Nobody hears of the visit.
    ensure!(mesh.lab.peers("home-a")?.len() == 1, "the admin is no peer");
    mesh.daemon("home-b")?.stop();
    let away = wait_for(PATIENCE, || {
        let nodes = stdout(&mesh.lab.wice("signal", &["network", "nodes"])?);
        Ok(nodes
            .lines()
            .any(|line| line.starts_with("home-b ") && line.contains(" ago "))
            .then_some(()))
    })?;
    away.context("home-b is away")?;
    let unknown = mesh.lab.wice("signal", &["revoke", "home-z"])?;
    ensure!(
        code(&unknown) == 2 && stderr(&unknown).contains("wice network nodes"),
        "{}",
        stderr(&unknown)
    );
    let revoked = mesh.lab.wice("signal", &["revoke", "home-b"])?;
    ensure!(
        code(&revoked) == 0 && stdout(&revoked).contains(&key),
        "{}",
        stderr(&revoked)
    );
    let shown = stdout(&mesh.lab.wice("signal", &["network", "show"])?);
    ensure!(shown.contains(&format!("\n  revoked {key}\n")), "{shown}");
    let nodes = stdout(&mesh.lab.wice("signal", &["network", "nodes"])?);
    ensure!(!nodes.contains("home-b"), "{nodes}");
    Ok(())
}

#[test]
fn a_lab_tells_all_that_starts_and_the_reason_that_lasts() -> Result<()> {
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(wice_binary()?);
        anyhow::Ok(command.arg("lab").args(arguments).output()?)
    };
    let two = run(&["--nat", "symmetric", "--nat", "symmetric", "--json"])?;
    ensure!(code(&two) == 0, "{}{}", stdout(&two), stderr(&two));
    let lines: Vec<Value> = stdout(&two)
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let of = |event: &'static str| lines.iter().filter(move |line| line["event"] == event);
    let nodes: Vec<&Value> = of("started").map(|line| &line["node"]).collect();
    ensure!(nodes == ["home-a", "home-b"], "{nodes:?}");
    let times: Vec<f64> = of("started")
        .filter_map(|line| line["at_ms"].as_f64())
        .collect();
    ensure!(
        times[0] < 0.0 && times[1] == 0.0,
        "counted from the last: {times:?}"
    );
    let settled = of("settled").next().context("nothing settled")?;
    ensure!(
        settled["reason"] == "both-nats-endpoint-dependent",
        "{settled}"
    );

    let one = run(&["--nat", "symmetric"])?;
    ensure!(code(&one) == 0, "{}", stderr(&one));
    ensure!(
        stdout(&one).contains("nobody is there to meet: give --nat once more"),
        "{}",
        stdout(&one)
    );
    Ok(())
}
