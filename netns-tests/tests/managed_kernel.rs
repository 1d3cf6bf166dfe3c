//! Managed mode with the kernel's WireGuard. What needs it runs on a kernel that has it (`make uml`), and is
//! ignored elsewhere, never passed over; what is said where it cannot be had is tested on every kernel.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{INTERFACE, LabConfig, NatKind, Pings};
use wice_netns_tests::{Mesh, PATIENCE, RTT, Table, Want, alone, seconds, wait_for};

const NODES: [&str; 2] = ["home-a", "home-b"];
const BOTH_WAYS: [(&str, &str); 2] = [("home-a", "home-b"), ("home-b", "home-a")];
/// Overlay pings: times are right to this.
const PINGS: Duration = Duration::from_millis(20);
/// An answer is there after this, on a busy machine.
const ANSWERED: Duration = Duration::from_secs(1);
/// A program that cannot go on, or is told to end, has ended after this.
const END: Duration = Duration::from_secs(5);
/// A revoked node is off the interface after this.
const REVOKED: Duration = Duration::from_secs(5);
/// From in-process to kernel: boringtun's handshakes are dated 27 s ahead of the kernel's (TAI64 with 37 s of leap
/// seconds, and with the 10 s of 1970), and older dates are refused; the kernel tries every 5 s.
const CLOCKS: Duration = Duration::from_secs(27 + 5 + 3);
/// No capability but this one.
const WITHOUT_RAW: &str = "-all,+net_admin";
/// What is announced beyond the overlay, and an address in it.
const ROUTE: &str = "10.98.7.0/24";
const BEYOND: &str = "10.98.7.1";

fn mesh(kinds: &[NatKind]) -> Result<Mesh> {
    Mesh::build(LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds(kinds.iter().copied())
    })
}

/// Runs a program on a node, and gives what it prints.
fn run(mesh: &Mesh, node: &str, line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("no program")?;
    let output = mesh.lab.command(node, program)?.args(words).output()?;
    ensure!(output.status.success(), "{node}: {line}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A column of `wg show INTERFACE COLUMN` for the only peer.
fn shown(mesh: &Mesh, node: &str, column: &str) -> Result<Option<String>> {
    let text = run(mesh, node, &format!("wg show {INTERFACE} {column}"))?;
    let words = text.lines().next().map(str::split_whitespace);
    Ok(words.and_then(|mut words| words.nth(1)).map(str::to_owned))
}

/// Waits until WireGuard sends to the peer itself, and gives where.
fn wait_native(mesh: &Mesh, node: &str, peer: &str) -> Result<SocketAddr> {
    let native = wait_for(PATIENCE, || {
        let address = shown(mesh, node, "endpoints")?.and_then(|shown| shown.parse().ok());
        Ok(address.filter(|address: &SocketAddr| !address.ip().is_loopback()))
    })?;
    native.with_context(|| mesh.evidence(node, peer))
}

/// A daemon says which WireGuard it took, and why.
fn check_kind(mesh: &mut Mesh, node: &str, kind: &str, reason: &str) -> Result<()> {
    let output = mesh.daemon(node)?.output();
    let plain = output.replace('"', "");
    let line = plain
        .lines()
        .rfind(|line| line.contains("event=wireguard "));
    let line = line.with_context(|| format!("{node} does not say which WireGuard:\n{output}"))?;
    ensure!(
        line.contains(&format!("kind={kind}")) && line.contains(reason),
        "{node}: {line}"
    );
    Ok(())
}

/// Every ping that was sent since and could be answered by now was.
fn nothing_lost(pings: &Pings, from: Instant, mesh: &Mesh) -> Result<usize> {
    std::thread::sleep(ANSWERED);
    let to = Instant::now().checked_sub(ANSWERED);
    let to = to.context("the clock is younger than a ping")?;
    let (sent, answered) = pings.answered_between(from, to);
    ensure!(
        sent == answered,
        "{} of {sent} pings lost\n{}",
        sent - answered,
        mesh.evidence("home-a", "home-b")
    );
    Ok(sent)
}

/// Whether the node has the interface.
fn is_there(mesh: &Mesh, node: &str) -> Result<bool> {
    let mut command = mesh.lab.command(node, "ip")?;
    Ok(command
        .args(["link", "show", "dev", INTERFACE])
        .output()?
        .status
        .success())
}

/// Starts a daemon that cannot be, and gives what it says.
fn refused(mesh: &Mesh, node: &str, more: &[&str]) -> Result<String> {
    let token = mesh.token().to_owned();
    let mut daemon = mesh.lab.start_daemon(node, Some(&token), more)?;
    let ended = daemon.wait(END);
    let said = daemon.output();
    ensure!(
        ended.is_some_and(|status| status.code() == Some(2)),
        "{ended:?}: {said}"
    );
    Ok(said)
}

/// Whether the kernel makes WireGuard links.
fn kernel_has_it(mesh: &Mesh) -> Result<bool> {
    let mut command: Command = mesh.lab.command("home-a", "ip")?;
    command.args(["link", "add", "wg-probe", "type", "wireguard"]);
    let has_it = command.output()?.status.success();
    if has_it {
        run(mesh, "home-a", "ip link delete wg-probe")?;
    }
    // Where it is promised it must be: what is below would test something else.
    let promised = std::env::var("WICE_TEST_WIREGUARD").is_ok_and(|kind| kind == "kernel");
    ensure!(has_it || !promised, "this kernel has no WireGuard");
    Ok(has_it)
}

/// Direct paths begin at WireGuard's own port, and need no daemon.
#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn direct_paths_are_native_and_outlive_the_daemons() -> Result<()> {
    use NatKind::{PortRestricted, Public, Symmetric};
    const DEAD: Duration = Duration::from_secs(5);
    let _alone = alone();
    let mut table = Table::new("wice up with kernel WireGuard: no ping lost by kill -9 of both");
    for kinds in [[PortRestricted, PortRestricted], [Public, Symmetric]] {
        let mut mesh = mesh(&kinds)?;
        let want = Want::of(kinds[0], kinds[1]);
        let met = mesh.meet("home-a", "home-b", &want)?;
        let mut before = Vec::new();
        for (node, peer) in BOTH_WAYS {
            check_kind(&mut mesh, node, "kernel", "its port can be shared")?;
            let endpoint = wait_native(&mesh, node, peer)?;
            let status = mesh.peer(node, peer)?.context("no such peer")?;
            let remote = status.path.remote.and_then(|end| end.address);
            ensure!(remote == Some(endpoint), "{node}: {remote:?}, {endpoint}");
            before.push((endpoint, shown(&mesh, node, "latest-handshakes")?));
        }
        let started = Instant::now();
        let pings = [
            mesh.pings("home-a", "home-b", PINGS)?,
            mesh.pings("home-b", "home-a", PINGS)?,
        ];
        std::thread::sleep(ANSWERED);
        for node in NODES {
            mesh.daemon(node)?.kill9();
        }
        std::thread::sleep(DEAD);
        for node in NODES {
            mesh.forget(node);
            mesh.up_again(node)?;
        }
        std::thread::sleep(DEAD);
        mesh.settle(&[("home-a", "home-b", want)], Instant::now())?;
        let mut sent = 0;
        for pings in &pings {
            sent += nothing_lost(pings, started, &mesh)?;
        }
        for (number, (node, peer)) in BOTH_WAYS.into_iter().enumerate() {
            check_kind(&mut mesh, node, "kernel", "with its sessions")?;
            let now = (
                wait_native(&mesh, node, peer)?,
                shown(&mesh, node, "latest-handshakes")?,
            );
            ensure!(
                now == before[number],
                "{node}: {now:?}, not {:?}",
                before[number]
            );
        }
        table.row(met.path, format!("{sent} pings"), met.first_ping);
        mesh.check_quiet(&[])?;
    }
    Ok(())
}

/// What no direct path joins goes by slots, and status knows what the kernel has counted.
#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn symmetric_pairs_are_relayed_by_slots() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("wice up with kernel WireGuard: relayed");
    let nat = NatKind::Symmetric;
    let mut mesh = mesh(&[nat, nat])?;
    let met = mesh.meet("home-a", "home-b", &Want::of(nat, nat))?;
    let mut slots = 0;
    for (node, peer) in BOTH_WAYS {
        check_kind(&mut mesh, node, "kernel", "")?;
        let endpoint = shown(&mesh, node, "endpoints")?.context("no endpoint")?;
        slots += usize::from(endpoint.starts_with("127."));
        let counted = wait_for(PATIENCE, || {
            let text = mesh.lab.wice(node, &["status", "--json"])?.stdout;
            let status: serde_json::Value = serde_json::from_slice(&text)?;
            let counted = &status["peers"][0];
            let is_there = counted["rx_bytes"].as_u64() > Some(0)
                && counted["tx_bytes"].as_u64() > Some(0)
                && counted["handshake_age_s"].is_u64();
            Ok(is_there.then_some(status["mode"] == "managed"))
        })?;
        ensure!(counted == Some(true), "{}", mesh.evidence(node, peer));
        let ping = mesh.lab.wice(node, &["ping", peer, "--count", "1"])?;
        let said = String::from_utf8_lossy(&ping.stdout).into_owned();
        ensure!(said.contains("via relay"), "{node}: {ping:?}");
    }
    // The other's WireGuard may send to the relayed address itself.
    ensure!(slots >= 1, "{}", mesh.evidence("home-a", "home-b"));
    table.row(
        met.path,
        format!("{slots} of 2 by its slot"),
        met.first_ping,
    );
    mesh.check_quiet(&[])
}

/// One with the kernel's WireGuard and one with wice's own.
#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn kernel_and_in_process_meet() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("wice up: kernel and in-process WireGuard");
    for nat in [NatKind::PortRestricted, NatKind::Symmetric] {
        for kernel in NODES {
            let mut mesh = mesh(&[nat, nat])?;
            for node in NODES {
                let own: &[&str] = &["--wireguard", "in-process"];
                mesh.up(node, if node == kernel { &[] } else { own })?;
            }
            let met = mesh.met("home-a", "home-b", &Want::of(nat, nat), Instant::now())?;
            for node in NODES {
                let kind = if node == kernel {
                    "kernel"
                } else {
                    "in-process"
                };
                check_kind(&mut mesh, node, kind, "")?;
            }
            table.row(format!("{nat}, {kernel} kernel"), met.path, met.first_ping);
            mesh.check_quiet(&[])?;
        }
    }
    Ok(())
}

/// Who is put out is off the interface.
#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn a_revoked_node_is_off_the_interface() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("wice revoke, kernel WireGuard");
    let nat = NatKind::PortRestricted;
    let mut mesh = mesh(&[nat, nat])?;
    mesh.meet("home-a", "home-b", &Want::of(nat, nat))?;
    let peers = |mesh: &Mesh| run(mesh, "home-a", &format!("wg show {INTERFACE} peers"));
    ensure!(peers(&mesh)?.lines().count() == 1);
    let start = Instant::now();
    let revoked = mesh.lab.wice("signal", &["revoke", "home-b"])?;
    ensure!(revoked.status.success(), "{revoked:?}");
    let gone = wait_for(REVOKED, || Ok(peers(&mesh)?.is_empty().then_some(())))?;
    ensure!(gone.is_some(), "{}", mesh.evidence("home-a", "home-b"));
    table.row("wice revoke", "peer off the interface", start.elapsed());
    Ok(())
}

/// `wice down` and Ctrl-C take the interface away, SIGTERM leaves it for the next start; a start with the
/// other kind takes its place.
#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn the_interface_stays_for_a_restart_and_goes_when_told() -> Result<()> {
    let _alone = alone();
    let nat = NatKind::PortRestricted;
    let want = Want::of(nat, nat);
    let mut mesh = mesh(&[nat, nat])?;
    mesh.meet("home-a", "home-b", &want)?;

    let down = mesh.lab.wice("home-b", &["down"])?;
    ensure!(down.status.success(), "{down:?}");
    ensure!(
        !is_there(&mesh, "home-b")?,
        "wice down leaves the interface"
    );
    mesh.forget("home-b");

    mesh.up_again("home-b")?;
    mesh.met("home-a", "home-b", &want, Instant::now())?;
    mesh.daemon("home-b")?.stop();
    ensure!(
        is_there(&mesh, "home-b")?,
        "SIGTERM takes the interface away"
    );
    let down = mesh.lab.wice("home-b", &["down"])?;
    let said = String::from_utf8_lossy(&down.stdout).into_owned();
    ensure!(
        down.status.success() && said.contains(INTERFACE),
        "{down:?}"
    );
    ensure!(
        !is_there(&mesh, "home-b")?,
        "wice down leaves what was left"
    );
    let down = mesh.lab.wice("home-b", &["down"])?;
    ensure!(down.status.code() == Some(2), "nothing runs: {down:?}");

    mesh.forget("home-b");
    mesh.up_again("home-b")?;
    mesh.met("home-a", "home-b", &want, Instant::now())?;
    mesh.daemon("home-b")?.stop();
    mesh.forget("home-b");
    let own = ["--wireguard", "in-process"];
    let daemon = mesh.lab.start_daemon("home-b", None, &own)?;
    mesh.take("home-b", daemon);
    mesh.met("home-a", "home-b", &want, Instant::now())?;
    check_kind(&mut mesh, "home-b", "in-process", "asked for")?;
    mesh.daemon("home-b")?.stop();
    mesh.forget("home-b");
    mesh.up_again("home-b")?;
    let start = Instant::now();
    let pings = mesh.pings("home-b", "home-a", PINGS)?;
    let back = pings.back_after(start, CLOCKS);
    ensure!(back.is_some(), "{}", mesh.evidence("home-a", "home-b"));
    mesh.settle(&[("home-a", "home-b", want)], Instant::now())?;
    check_kind(&mut mesh, "home-b", "kernel", "its port can be shared")?;

    mesh.daemon("home-b")?.signal(libc::SIGINT);
    mesh.daemon("home-b")?.wait(END);
    ensure!(!is_there(&mesh, "home-b")?, "Ctrl-C leaves the interface");
    mesh.forget("home-b");
    mesh.check_quiet(&[])
}

/// What is not wice's stays as it is, and is said; what other programs do to wice's is put right.
#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn the_interface_is_wices_own() -> Result<()> {
    let _alone = alone();
    let nat = NatKind::PortRestricted;
    let want = Want::of(nat, nat);
    let mut mesh = mesh(&[nat, nat])?;
    run(
        &mesh,
        "home-a",
        &format!("ip link add {INTERFACE} type wireguard"),
    )?;
    let said = refused(&mesh, "home-a", &[])?;
    ensure!(
        said.contains("not wice's") && said.contains("--interface"),
        "{said}"
    );
    ensure!(is_there(&mesh, "home-a")?, "another's interface is removed");
    run(&mesh, "home-a", &format!("ip link delete {INTERFACE}"))?;
    run(
        &mesh,
        "home-a",
        &format!("ip link add {INTERFACE} type dummy"),
    )?;
    let said = refused(&mesh, "home-a", &[])?;
    ensure!(said.contains("no WireGuard interface of wice's"), "{said}");
    run(&mesh, "home-a", &format!("ip link delete {INTERFACE}"))?;

    mesh.meet("home-a", "home-b", &want)?;
    let key = mesh.peer("home-a", "home-b")?.context("no peer")?.key;
    let stranger = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    run(
        &mesh,
        "home-a",
        &format!("wg set {INTERFACE} peer {key} remove"),
    )?;
    run(
        &mesh,
        "home-a",
        &format!("wg set {INTERFACE} peer {stranger}"),
    )?;
    let right = wait_for(PATIENCE, || {
        let peers = run(&mesh, "home-a", &format!("wg show {INTERFACE} peers"))?;
        Ok((peers.trim() == key).then_some(()))
    })?;
    ensure!(right.is_some(), "{}", mesh.evidence("home-a", "home-b"));
    mesh.ping_both_ways("home-a", "home-b")?;

    run(&mesh, "home-a", &format!("ip link delete {INTERFACE}"))?;
    let ended = mesh.daemon("home-a")?.wait(END);
    let said = mesh.daemon("home-a")?.output();
    ensure!(ended.is_some_and(|status| !status.success()), "{said}");
    ensure!(said.contains("somebody has removed it"), "{said}");
    mesh.forget("home-a");
    mesh.check_quiet(&[])
}

/// Announced routes lead to the interface, and through WireGuard.
#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn routes_are_taken_by_consent() -> Result<()> {
    let _alone = alone();
    let nat = NatKind::PortRestricted;
    let mut mesh = mesh(&[nat, nat])?;
    run(
        &mesh,
        "home-b",
        &format!("ip address add {BEYOND}/32 dev lo"),
    )?;
    mesh.up("home-a", &["--accept-routes", ROUTE])?;
    mesh.up("home-b", &["--advertise-routes", ROUTE])?;
    let start = Instant::now();
    let pings = mesh.pings_to("home-a", BEYOND.parse()?, PINGS)?;
    let back = pings.back_after(start, PATIENCE);
    let back = back.with_context(|| mesh.evidence("home-a", "home-b"))?;
    ensure!(back < PATIENCE, "{}", seconds(back));
    mesh.met("home-a", "home-b", &Want::of(nat, nat), start)?;
    let link = run(&mesh, "home-a", &format!("ip link show dev {INTERFACE}"))?;
    ensure!(link.contains("mtu 1392"), "{link}");

    // A crash and a start lose nothing of it.
    wait_native(&mesh, "home-a", "home-b")?;
    wait_native(&mesh, "home-b", "home-a")?;
    let killed = Instant::now();
    mesh.daemon("home-a")?.kill9();
    std::thread::sleep(ANSWERED);
    let accept = ["--accept-routes", ROUTE];
    let daemon = mesh.lab.start_daemon("home-a", None, &accept)?;
    mesh.take("home-a", daemon);
    std::thread::sleep(3 * ANSWERED);
    nothing_lost(&pings, killed, &mesh)?;

    // Nobody owns it any more at the next start: what was left goes.
    mesh.daemon("home-a")?.stop();
    mesh.forget("home-a");
    let routes = |mesh: &Mesh| run(mesh, "home-a", &format!("ip route show dev {INTERFACE}"));
    ensure!(routes(&mesh)?.contains(ROUTE), "{}", routes(&mesh)?);
    mesh.up_again("home-a")?;
    let gone = wait_for(PATIENCE, || {
        Ok((!routes(&mesh)?.contains(ROUTE)).then_some(()))
    })?;
    ensure!(gone.is_some(), "{}", routes(&mesh)?);
    mesh.check_quiet(&[])
}

/// Without the kernel's WireGuard, or without the right to share its port, `auto` takes wice's own and says
/// why, and `kernel` says what to do.
#[test]
fn what_cannot_be_had_is_said() -> Result<()> {
    let _alone = alone();
    let nat = NatKind::PortRestricted;
    let mut mesh = mesh(&[nat, nat])?;
    let reason = if kernel_has_it(&mesh)? {
        let token = mesh.token().to_owned();
        let binary = mesh.lab.binary()?;
        let machine = mesh.lab.node("home-a")?;
        let (state_dir, run_dir) = (machine.state_dir(), machine.run_dir());
        let authority = mesh.lab.authority();
        let daemon = mesh.lab.start("home-a", "home-a", |ns| {
            let mut command = ns.command("setpriv");
            command.args(["--bounding-set", WITHOUT_RAW, "--inh-caps", WITHOUT_RAW]);
            command
                .arg("--no-new-privs")
                .arg(binary)
                .args(["up", &token]);
            command.args(["--name", "home-a", "--interface", INTERFACE]);
            command.arg("--state-dir").arg(state_dir);
            command.arg("--run-dir").arg(run_dir);
            command.env("WICE_CA_FILE", authority);
            command
        })?;
        mesh.take("home-a", daemon);
        "no permission for raw sockets"
    } else {
        let said = refused(&mesh, "home-a", &["--wireguard", "kernel"])?;
        ensure!(
            said.contains("modprobe wireguard") && said.contains("--wireguard in-process"),
            "{said}"
        );
        mesh.up("home-a", &[])?;
        "this kernel has no WireGuard"
    };
    mesh.up("home-b", &["--wireguard", "in-process"])?;
    mesh.met("home-a", "home-b", &Want::of(nat, nat), Instant::now())?;
    check_kind(&mut mesh, "home-a", "in-process", reason)?;
    check_kind(&mut mesh, "home-b", "in-process", "asked for")?;
    let text = run(
        &mesh,
        "home-a",
        &format!("ip -details link show dev {INTERFACE}"),
    )?;
    ensure!(text.contains("tun type tun"), "{text}");
    mesh.check_quiet(&[])
}
