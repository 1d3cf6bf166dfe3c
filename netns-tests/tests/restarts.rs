//! What a daemon outlives: its own end, its signaling service, its relay, a second of its kind.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{INTERFACE, LabConfig, NatKind, Process};
use wice_netns_tests::{Mesh, RTT, Table, Want, alone, seconds, wait_for};

/// Overlay pings meanwhile: times are right to this.
const PINGS: Duration = Duration::from_millis(20);
/// A restarted daemon's traffic is back after this, signaling or not.
const RESTART: Duration = Duration::from_secs(3);
/// A program that cannot go on ends after this.
const END: Duration = Duration::from_secs(5);

/// After `wice down` the others say that the peer is away within this: two seconds of probes, and some
/// for a busy machine.
const FAREWELL: Duration = Duration::from_secs(4);
/// After a crash: the service's grace of 5 s, and the probes of a silent path.
const LOST: Duration = Duration::from_secs(15);
/// After the relay's end: a silent path and an unanswered refresh, 5 s each, at once.
const RELAY_GONE: Duration = Duration::from_secs(9);

/// How long after `start` home-a says this of home-b.
fn said(mesh: &Mesh, reason: &str, start: Instant, limit: Duration) -> Result<Duration> {
    let says = || {
        let peer = mesh.peer("home-a", "home-b")?;
        Ok(peer.filter(|peer| peer.reason.as_deref() == Some(reason)))
    };
    let found = wait_for(limit, says)?;
    ensure!(
        found.is_some(),
        "home-a does not say {reason} in {}\n{}",
        seconds(limit),
        mesh.evidence("home-a", "home-b")
    );
    Ok(start.elapsed())
}

fn mesh(kinds: &[NatKind]) -> Result<Mesh> {
    Mesh::build(LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds(kinds.iter().copied())
    })
}

/// SIGKILL, and a restart while the signaling service is down.
#[test]
fn a_crash_while_signaling_is_down() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("kill -9 and restart, signaling down");
    for nat in [NatKind::PortRestricted, NatKind::Symmetric] {
        for end in [["home-a", "home-b"], ["home-b", "home-a"]] {
            let [crashed, other] = end;
            let mut mesh = mesh(&[nat, nat])?;
            let want = Want::of(nat, nat);
            let met = mesh.meet("home-a", "home-b", &want)?;
            // What is kept is written within a second.
            std::thread::sleep(Duration::from_secs(2));
            let pings = mesh.pings(other, crashed, PINGS)?;
            mesh.lab.service("signaling")?.kill9();
            mesh.daemon(crashed)?.kill9();
            std::thread::sleep(Duration::from_secs(1));
            let start = Instant::now();
            mesh.up_again(crashed)?;
            let back = pings.back_after(start, 5 * RESTART);
            let back = back.with_context(|| mesh.evidence(crashed, other))?;
            mesh.settle(&[("home-a", "home-b", want)], Instant::now())?;
            table.row(format!("{nat} twice, {crashed}"), met.path, back);
            ensure!(
                back <= RESTART,
                "{nat}: back after {}\n{}",
                seconds(back),
                mesh.evidence(crashed, other)
            );
            mesh.check_quiet(&["event=signaling-lost"])?;
        }
    }
    Ok(())
}

/// The service may come last.
#[test]
fn signaling_that_comes_late() -> Result<()> {
    const LATE: Duration = Duration::from_secs(4);
    let _alone = alone();
    let mut table = Table::new("signaling is down at the start");
    let nat = NatKind::PortRestricted;
    let mut mesh = mesh(&[nat, nat])?;
    mesh.lab.service("signaling")?.stop();
    mesh.up("home-a", &[])?;
    mesh.up("home-b", &[])?;
    std::thread::sleep(LATE);
    for node in ["home-a", "home-b"] {
        let said = mesh.daemon(node)?.output();
        ensure!(
            said.contains("signaling-lost"),
            "{node} says nothing of it:\n{said}"
        );
        let status = mesh.lab.wice(node, &["status"])?;
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        // No peer is known, and none can come.
        ensure!(
            status.status.code() == Some(2),
            "{node}: {status:?}\n{text}"
        );
    }
    let start = Instant::now();
    mesh.lab.start_signal()?;
    let met = mesh.met("home-a", "home-b", &Want::of(nat, nat), start)?;
    table.row("from the service's start", met.path, met.first_ping);
    mesh.check_quiet(&["event=signaling-lost"])
}

/// The relay is killed under a relayed pair, and comes back.
#[test]
fn a_relay_that_is_restarted() -> Result<()> {
    const BACK: Duration = Duration::from_secs(30);
    let _alone = alone();
    let mut table = Table::new("relay killed and restarted");
    let nat = NatKind::Symmetric;
    let mut mesh = mesh(&[nat, nat])?;
    mesh.meet("home-a", "home-b", &Want::of(nat, nat))?;
    let pings = mesh.pings("home-a", "home-b", PINGS)?;
    mesh.lab.service("turn")?.kill9();
    let gone = said(&mesh, "relay-unavailable", Instant::now(), RELAY_GONE)?;
    table.row("from the relay's end", "relay-unavailable", gone);
    mesh.lab.restart_turn()?;
    let start = Instant::now();
    let back = pings.back_after(start, BACK);
    let back = back.with_context(|| mesh.evidence("home-a", "home-b"))?;
    table.row("from the relay's restart", "relayed again", back);
    mesh.settle(&[("home-a", "home-b", Want::of(nat, nat))], Instant::now())
        .map(drop)
}

/// A daemon that is killed is said to be away, with a time that is true, and not for the NATs.
#[test]
fn a_daemon_that_dies() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("kill -9");
    let nat = NatKind::Symmetric;
    let mut mesh = mesh(&[nat, nat])?;
    mesh.meet("home-a", "home-b", &Want::of(nat, nat))?;
    mesh.daemon("home-b")?.kill9();
    let away = said(&mesh, "peer-away", Instant::now(), LOST)?;
    table.row("kill -9", "home-a says peer-away", away);
    let start = Instant::now();
    mesh.up_again("home-b")?;
    let met = mesh.met("home-a", "home-b", &Want::of(nat, nat), start)?;
    table.row("wice up", met.path, met.first_ping);
    mesh.check_quiet(&[])
}

/// `wice down` ends the daemon and takes the interface away; the next start needs no token.
#[test]
fn down_and_up_again() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("wice down, wice up without a token");
    let nat = NatKind::FullCone;
    let mut mesh = mesh(&[nat, nat])?;
    mesh.meet("home-a", "home-b", &Want::of(nat, nat))?;
    let start = Instant::now();
    let down = mesh.lab.wice("home-b", &["down"])?;
    ensure!(down.status.success(), "{down:?}");
    let ended = mesh.daemon("home-b")?.wait(END);
    ensure!(ended.is_some_and(|status| status.success()), "{ended:?}");
    table.row("wice down", "ended", start.elapsed());
    let away = said(&mesh, "peer-away", start, FAREWELL)?;
    table.row("wice down", "home-a says peer-away", away);
    ensure!(
        mesh.lab.overlay_address("home-b")?.is_none(),
        "the interface stays"
    );
    let again = mesh.lab.wice("home-b", &["down"])?;
    ensure!(again.status.code() == Some(2), "nothing runs: {again:?}");
    let start = Instant::now();
    mesh.up_again("home-b")?;
    let met = mesh.met("home-a", "home-b", &Want::of(nat, nat), start)?;
    table.row("wice up", met.path, met.first_ping);
    mesh.check_quiet(&[])
}

/// What stands in the way of a start is named, and the running daemon is left in peace.
#[test]
fn starts_that_cannot_be() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("starts that cannot be");
    let nat = NatKind::FullCone;
    let mut mesh = mesh(&[nat, nat, nat])?;
    mesh.meet("home-a", "home-b", &Want::of(nat, nat))?;
    let token = mesh.token().to_string();

    let start = Instant::now();
    let said = refused(&mesh, "home-a", "second", &["--interface", "wice1"])?;
    ensure!(said.contains("in use") && said.contains("state"), "{said}");
    table.row("state folder in use", first_line(&said), start.elapsed());

    let other = ["--interface", "wice1", "--state-dir", "/tmp/none-yet"];
    let said = refused(&mesh, "home-a", "no-token", &other)?;
    ensure!(said.contains("wice up TOKEN"), "{said}");
    table.row("no token", first_line(&said), Duration::ZERO);

    run(
        &mesh,
        "home-c",
        "ip link add wice0 type veth peer name other",
    )?;
    let said = refused(&mesh, "home-c", "taken", &[&token])?;
    ensure!(said.contains(INTERFACE), "{said}");
    table.row("interface name taken", first_line(&said), Duration::ZERO);
    run(&mesh, "home-c", "ip link del wice0")?;

    let port = mesh.lab.node("home-c")?.ns();
    let socket = port.run(|| std::net::UdpSocket::bind("0.0.0.0:51821"))??;
    let said = refused(&mesh, "home-c", "port", &[&token])?;
    ensure!(said.contains("51821"), "{said}");
    table.row("port in use", first_line(&said), Duration::ZERO);
    drop(socket);

    mesh.ping_both_ways("home-a", "home-b")?;
    mesh.check_quiet(&[])
}

/// Somebody removes the interface: the daemon says so, ends, and a restart goes on.
#[test]
fn an_interface_that_is_removed() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("interface removed");
    let nat = NatKind::FullCone;
    let mut mesh = mesh(&[nat, nat])?;
    mesh.meet("home-a", "home-b", &Want::of(nat, nat))?;
    let start = Instant::now();
    run(&mesh, "home-b", "ip link del wice0")?;
    let ended = mesh.daemon("home-b")?.wait(END).context("it goes on")?;
    ensure!(!ended.success(), "{ended}");
    let said = mesh.daemon("home-b")?.output();
    ensure!(said.contains("wice0 is gone"), "{said}");
    table.row("ended", ended.to_string(), start.elapsed());
    let start = Instant::now();
    mesh.up_again("home-b")?;
    let met = mesh.met("home-a", "home-b", &Want::of(nat, nat), start)?;
    table.row("started again", met.path, met.first_ping);
    Ok(())
}

/// A node that is put out is out within seconds: its peers drop it, nothing of it passes, and it
/// cannot come back. The others stay.
#[test]
fn a_node_that_is_revoked() -> Result<()> {
    const OUT: Duration = Duration::from_secs(3);
    let _alone = alone();
    let mut table = Table::new("revoked");
    let nat = NatKind::FullCone;
    let mut mesh = mesh(&[nat, nat, nat])?;
    for node in ["home-a", "home-b", "home-c"] {
        mesh.up(node, &[])?;
    }
    let pairs = [
        ("home-a", "home-b"),
        ("home-a", "home-c"),
        ("home-b", "home-c"),
    ];
    let pairs = pairs.map(|(first, second)| (first, second, Want::of(nat, nat)));
    mesh.settle(&pairs, Instant::now())?;
    let key = mesh.peer("home-a", "home-c")?.context("no such peer")?.key;
    let pings = mesh.pings("home-c", "home-a", PINGS)?;
    let staying = mesh.pings("home-b", "home-a", PINGS)?;
    ensure!(pings.back_after(Instant::now(), END).is_some());
    let start = Instant::now();
    let revoked = mesh.lab.wice("signal", &["revoke", &key])?;
    ensure!(revoked.status.success(), "{revoked:?}");
    for node in ["home-a", "home-b"] {
        let gone = wait_for(OUT, || {
            Ok(mesh.peer(node, "home-c")?.is_none().then_some(()))
        })?;
        ensure!(gone.is_some(), "{node} still has it");
    }
    table.row("peers dropped it", "", start.elapsed());
    let out = Instant::now();
    std::thread::sleep(OUT);
    let (_, answered) = pings.answered_between(out, Instant::now());
    ensure!(
        answered == 0,
        "{answered} pings of the revoked node were answered"
    );
    let last = pings
        .all()
        .into_iter()
        .filter_map(|ping| ping.answered)
        .max();
    let last = last
        .context("it never pinged")?
        .saturating_duration_since(start);
    table.row("last ping of it answered", "", last);
    let gap = staying.longest_gap(start);
    ensure!(
        gap < Duration::from_secs(1),
        "the others felt it: {}",
        seconds(gap)
    );
    ensure!(mesh.address("home-a").is_ok() && mesh.peer("home-a", "home-b")?.is_some());
    Ok(())
}

/// Starts `wice up` where it cannot run, and gives what it says.
fn refused(mesh: &Mesh, node: &str, name: &str, arguments: &[&str]) -> Result<String> {
    let machine = mesh.lab.node(node)?;
    let binary = mesh.lab.binary()?;
    let mut process: Process = mesh.lab.start(node, name, |ns| {
        let mut command: Command = ns.command(binary);
        command.arg("up").args(arguments);
        command.env("WICE_STATE_DIR", machine.state_dir());
        command.env("WICE_RUN_DIR", machine.run_dir());
        command
    })?;
    let status = process.wait(END);
    let said = process.output();
    let status = status.with_context(|| format!("it runs:\n{said}"))?;
    ensure!(status.code() == Some(2), "{status}:\n{said}");
    ensure!(said.contains("wice: "), "no error is told:\n{said}");
    Ok(said)
}

fn first_line(text: &str) -> String {
    let line = text.lines().find(|line| line.starts_with("wice: "));
    line.unwrap_or_default().chars().take(90).collect()
}

fn run(mesh: &Mesh, machine: &str, line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty line")?;
    let output = mesh.lab.command(machine, program)?.args(words).output()?;
    ensure!(output.status.success(), "{line}: {output:?}");
    Ok(())
}

/// Routes of peers are kept as their adverts are: after a crash they are back without signaling.
#[test]
fn routes_outlive_a_crash_while_signaling_is_down() -> Result<()> {
    const ROUTE: &str = "10.98.0.0/16";
    let _alone = alone();
    let mut table = Table::new("routes after kill -9, signaling down");
    let nat = NatKind::FullCone;
    let mut mesh = mesh(&[nat, nat])?;
    let accept = ["--accept-routes", ROUTE];
    mesh.up("home-a", &accept)?;
    mesh.up("home-b", &["--advertise-routes", ROUTE])?;
    let has_route = |mesh: &Mesh| {
        wait_for(END, || {
            let mut ip = mesh.lab.command("home-a", "ip")?;
            let output = ip.args(["-4", "route"]).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text.contains(ROUTE).then_some(()))
        })
    };
    mesh.settle(&[("home-a", "home-b", Want::of(nat, nat))], Instant::now())?;
    ensure!(
        has_route(&mesh)?.is_some(),
        "{}",
        mesh.evidence("home-a", "home-b")
    );
    // What is kept is written within a second.
    std::thread::sleep(Duration::from_secs(2));
    mesh.lab.service("signaling")?.kill9();
    mesh.daemon("home-a")?.kill9();
    let start = Instant::now();
    mesh.up("home-a", &accept)?;
    ensure!(
        has_route(&mesh)?.is_some(),
        "{}",
        mesh.evidence("home-a", "home-b")
    );
    table.row("from the start", "the route is there", start.elapsed());
    mesh.check_quiet(&["event=\"signaling-lost\""])
}

/// A node that announces another's overlay address, or a route that nobody granted, gets neither.
#[test]
fn a_node_that_claims_what_is_not_its() -> Result<()> {
    const CLAIMED: &str = "10.99.0.0/16";
    let _alone = alone();
    let mut table = Table::new("claims");
    let nat = NatKind::FullCone;
    let mut mesh = mesh(&[nat, nat, nat])?;
    mesh.up("home-a", &["--accept-routes", "10.98.0.0/16"])?;
    mesh.up("home-b", &[])?;
    let victim: IpAddr = mesh.address("home-b")?;
    let routes = format!("{victim}/32,{CLAIMED},10.98.0.0/16,0.0.0.0/0");
    mesh.up("home-c", &["--advertise-routes", &routes])?;
    let pairs = [
        ("home-a", "home-b"),
        ("home-a", "home-c"),
        ("home-b", "home-c"),
    ];
    let pairs = pairs.map(|(first, second)| (first, second, Want::of(nat, nat)));
    let start = Instant::now();
    mesh.settle(&pairs, start)?;
    let routes_of = |node: &str| -> Result<String> {
        let output = mesh
            .lab
            .command(node, "ip")?
            .args(["-4", "route"])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let accepted = wait_for(END, || {
        Ok(routes_of("home-a")?.contains("10.98.0.0/16").then_some(()))
    })?;
    ensure!(
        accepted.is_some(),
        "what home-a accepts:\n{}\n{}",
        routes_of("home-a")?,
        mesh.evidence("home-a", "home-c")
    );
    table.row("a route that is accepted", "is taken", start.elapsed());
    for node in ["home-a", "home-b"] {
        let routes = routes_of(node)?;
        let overlay: Vec<&str> = routes.lines().filter(|l| l.contains(INTERFACE)).collect();
        let bad = |line: &&&str| {
            line.contains("10.99.") || line.starts_with("default") || line.contains("/32")
        };
        ensure!(!overlay.iter().any(|line| bad(&line)), "{node}:\n{routes}");
    }
    // The claimant answers for the address, if only it gets the packets.
    run(&mesh, "home-c", &format!("ip addr add {victim}/32 dev lo"))?;
    mesh.ping_both_ways("home-a", "home-b")?;
    mesh.daemon("home-b")?.stop();
    mesh.forget("home-b");
    let pings = mesh.pings_to("home-a", victim, PINGS)?;
    let stolen = pings.back_after(Instant::now(), END);
    ensure!(stolen.is_none(), "home-c answers for home-b");
    table.row("another's address", "is not", Duration::ZERO);
    Ok(())
}
