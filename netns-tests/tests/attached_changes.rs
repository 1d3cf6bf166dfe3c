//! Paths that change under a stream of 10 Mbit/s between attached interfaces: what is better is taken without
//! the loss of a packet, and what is dead is left in time. Through the proxy and from WireGuard's own port.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{RTT, Stream, Table, WireGuards, alone, seconds, wait_for};

const NODES: [&str; 2] = ["home-a", "home-b"];
const BOTH_WAYS: [(&str, &str); 2] = [("home-a", "home-b"), ("home-b", "home-a")];
const KINDS: [NatKind; 2] = [NatKind::PortRestricted, NatKind::FullCone];
/// A path that dies without a word is left after this.
const SILENT: Duration = Duration::from_secs(5);
/// One of which a router, or this machine's kernel, says that it leads nowhere.
const SAID: Duration = Duration::from_secs(1);
/// Until a better path is found again after what was in its way is gone.
const UPGRADE: Duration = Duration::from_secs(60);
/// Lost packets that a failure names.
const TOLD: usize = 8;
/// Packets are there after this, on a busy machine.
const ARRIVED: Duration = Duration::from_secs(1);

fn build(direct: &str, kinds: [NatKind; 2], loss_permille: u16) -> Result<WireGuards> {
    let config = LabConfig {
        rtt: RTT,
        loss_permille,
        ..LabConfig::of_kinds(kinds)
    };
    let mut all = WireGuards::build(config, &NODES)?;
    all.join_all()?;
    for node in NODES {
        all.attach(node, &["--direct", direct])?;
    }
    for (node, peer) in BOTH_WAYS {
        all.wait_endpoint(node, peer)?;
    }
    Ok(all)
}

fn stream(all: &WireGuards) -> Result<Stream> {
    let ns = |node| -> Result<_> { Ok(all.mesh.lab.node(node)?.ns().clone()) };
    Stream::start(&ns("home-a")?, &ns("home-b")?, all.address("home-b")?)
}

/// Where home-b's router is on the internet.
fn far(all: &WireGuards) -> Result<IpAddr> {
    let status = all.mesh.peer("home-a", "home-b")?;
    let remote = status.and_then(|status| status.path.remote);
    let address = remote.and_then(|end| end.address);
    Ok(address.context("no remote end")?.ip())
}

/// What is in the way of UDP between home-a and home-b's router.
enum Cut {
    /// A rule, from `at`'s view: a router forwards, the node itself sends.
    Rule {
        at: &'static str,
        hook: &'static str,
        verdict: &'static str,
    },
    /// home-a has no route there.
    Route,
}

impl Cut {
    fn on(&self, all: &WireGuards, far: IpAddr) -> Result<()> {
        match self {
            Self::Rule { at, hook, verdict } => nft(
                all,
                at,
                &format!(
                    "table ip cut {{ chain c {{ type filter hook {hook} priority -10; \
                     meta l4proto udp ip daddr {far} {verdict}; meta l4proto udp ip saddr {far} drop; }}; }}"
                ),
            ),
            Self::Route => all.ip("home-a", &format!("route add unreachable {far}")),
        }
    }

    fn off(&self, all: &WireGuards, far: IpAddr) -> Result<()> {
        match self {
            Self::Rule { at, .. } => nft(all, at, "delete table ip cut"),
            Self::Route => all.ip("home-a", &format!("route delete unreachable {far}")),
        }
    }
}

fn nft(all: &WireGuards, at: &str, rules: &str) -> Result<()> {
    let output = all.mesh.lab.command(at, "nft")?.arg(rules).output()?;
    ensure!(output.status.success(), "{rules}: {output:?}");
    Ok(())
}

/// Waits until the path is of this kind, with endpoints that fit.
fn wait_kind(all: &WireGuards, direct: &str, kind: &str, patience: Duration) -> Result<Duration> {
    let start = Instant::now();
    let came = wait_for(patience, || {
        for (node, peer) in BOTH_WAYS {
            let status = all.mesh.peer(node, peer)?;
            if status.is_none_or(|status| status.path.kind != kind) {
                return Ok(None);
            }
            let shown = all.shown(node, peer, "endpoints")?.unwrap_or_default();
            let native = !shown.starts_with("127.");
            if kind == "direct" && native != (direct == "shared-port") {
                return Ok(None);
            }
        }
        Ok(Some(start.elapsed()))
    })?;
    came.with_context(|| format!("not {kind}\n{}", all.evidence("home-a", "home-b")))
}

/// Datagrams that sockets had no room for, because a busy machine did not let their program read.
fn no_room(all: &WireGuards) -> Result<u64> {
    let mut sum = 0;
    for machine in ["home-a", "home-b", "turn"] {
        let mut command = all.mesh.lab.command(machine, "cat")?;
        let text = String::from_utf8(command.arg("/proc/net/snmp").output()?.stdout)?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            bail!("{machine} tells nothing of UDP: {text}");
        };
        let mut fields = names.split(' ').zip(values.split(' '));
        let found = fields.find(|(name, _)| *name == "RcvbufErrors");
        sum += found.context("no RcvbufErrors")?.1.parse::<u64>()?;
    }
    Ok(sum)
}

/// Nothing that was sent in this time, and could have arrived, is missing, but for what found `no_room`
/// since then.
fn nothing_lost(
    all: &WireGuards,
    stream: &Stream,
    (from, before): (Instant, u64),
) -> Result<usize> {
    std::thread::sleep(2 * ARRIVED);
    let Some(to) = Instant::now().checked_sub(ARRIVED) else {
        bail!("the clock is younger than a packet");
    };
    let (sent, lost) = stream.lost(from, to);
    let (count, no_room) = (lost.len() as u64, no_room(all)? - before);
    ensure!(
        count <= no_room,
        "{count} of {sent} packets lost, no room for {no_room}, at {:?}\n{}",
        &lost[..lost.len().min(TOLD)],
        all.evidence("home-a", "home-b")
    );
    Ok(sent)
}

/// Up to a second, another each time: what comes by chance between two looks and two checks.
fn some_time() -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(Duration::from_nanos(now.subsec_nanos().into()))
}

fn changes(direct: &str) -> Result<()> {
    let _alone = alone();
    let mut table = Table::new(format!(
        "10 Mbit/s while the path changes, --direct {direct}"
    ));
    let mut all = build(direct, KINDS, 0)?;
    all.first_pings("home-a", "home-b", Instant::now())?;
    wait_kind(&all, direct, "direct", UPGRADE)?;
    let far = far(&all)?;
    let stream = stream(&all)?;
    // As a user's pair has it: with a standby.
    std::thread::sleep(3 * ARRIVED);
    let cut = |at, hook, verdict| Cut::Rule { at, hook, verdict };
    let router = "home-a.router";
    let ways = [
        ("silently", cut(router, "forward", "drop"), SILENT),
        (
            "a router says so",
            cut(router, "forward", "reject with icmp host-unreachable"),
            SAID,
        ),
        // Sending fails.
        ("the kernel says so", cut("home-a", "output", "drop"), SAID),
        ("there is no route", Cut::Route, SAID),
    ];
    for (what, cut, limit) in ways {
        std::thread::sleep(some_time()?);
        cut.on(&all, far)?;
        let back = stream.back_after(Instant::now(), 3 * SILENT);
        let back = back.with_context(|| all.evidence("home-a", "home-b"))?;
        table.row(format!("direct to relay, {what}"), "back after", back);
        let evidence = || all.evidence("home-a", "home-b");
        ensure!(back <= limit, "{what}: {}\n{}", seconds(back), evidence());
        // The other side, which sends next to nothing, finds it out by its consent checks.
        wait_kind(&all, direct, "relayed", UPGRADE)?;

        std::thread::sleep(ARRIVED);
        let open = (Instant::now(), no_room(&all)?);
        cut.off(&all, far)?;
        let took = wait_kind(&all, direct, "direct", UPGRADE)?;
        let sent = nothing_lost(&all, &stream, open)?;
        let said = format!("0 of {sent} packets lost");
        table.row("relay to direct", said, took);
        std::thread::sleep(3 * ARRIVED);
    }
    all.mesh.check_alive()?;
    all.mesh.check_quiet(&[])
}

#[test]
fn paths_change_under_a_stream_proxy() -> Result<()> {
    changes("proxy")
}

#[test]
fn paths_change_under_a_stream_shared_port() -> Result<()> {
    changes("shared-port")
}

/// From the first handshake, which goes by the slot, to WireGuard's own ports: nothing is lost on the way.
#[test]
fn from_the_proxy_to_wireguards_own_ports() -> Result<()> {
    let _alone = alone();
    let mut table = Table::new("10 Mbit/s from slots to WireGuard's own ports");
    let mut all = build("proxy", KINDS, 0)?;
    all.first_pings("home-a", "home-b", Instant::now())?;
    wait_kind(&all, "proxy", "direct", UPGRADE)?;
    let stream = stream(&all)?;
    // One side after the other: between the two ends are of both kinds.
    for node in NODES {
        all.mesh.daemon(node)?.kill9();
        all.attach_again_by(node, "shared-port")?;
        let (begun, before) = (Instant::now(), no_room(&all)?);
        let back = stream.back_after(begun, SILENT);
        let back = back.with_context(|| all.evidence("home-a", "home-b"))?;
        table.row(format!("{node} restarted"), "first packet", back);
        if node == NODES[0] {
            std::thread::sleep(SILENT);
            continue;
        }
        let took = wait_kind(&all, "shared-port", "direct", UPGRADE)?;
        let sent = nothing_lost(&all, &stream, (begun + back, before))?;
        table.row(
            "to WireGuard's own ports",
            format!("0 of {sent} packets lost"),
            took,
        );
    }
    all.mesh.check_quiet(&[])
}

/// One packet of ten is lost each way, for `WICE_LOSS_SECONDS`: at most one change. Five minutes are what is
/// promised (`make loss`); every run has half of one.
#[test]
fn ten_per_cent_loss() -> Result<()> {
    const USUALLY: u64 = 30;
    const LOSS_PERMILLE: u16 = 100;
    let _alone = alone();
    let asked = std::env::var("WICE_LOSS_SECONDS").ok();
    let watched = asked.map_or(Ok(USUALLY), |text| text.parse())?;
    let watched = Duration::from_secs(watched);
    let mut table = Table::new(format!("10 % loss for {} s", watched.as_secs()));
    for direct in ["proxy", "shared-port"] {
        let all = build(direct, KINDS, LOSS_PERMILLE)?;
        all.first_pings("home-a", "home-b", Instant::now())?;
        let took = wait_kind(&all, direct, "direct", UPGRADE)?;
        let stream = stream(&all)?;
        let changes = || -> Result<u64> {
            let mut most = 0;
            for (node, peer) in BOTH_WAYS {
                let peer = all.mesh.peer(node, peer)?.context("no such peer")?;
                most = most.max(peer.path_changes);
            }
            Ok(most)
        };
        let (start, before) = (Instant::now(), changes()?);
        std::thread::sleep(watched);
        let changed = changes()? - before;
        let (sent, lost) = stream.lost(start, Instant::now() - ARRIVED);
        let lost = lost.len();
        let said = format!("{changed} changes, {lost} of {sent} packets lost, direct after");
        table.row(direct, said, took);
        ensure!(
            changed <= 1,
            "{changed} changes\n{}",
            all.evidence("home-a", "home-b")
        );
        // A tenth, and three times what chance adds to it.
        ensure!(lost * 100 <= sent * 13, "{lost} of {sent} packets lost");
        all.mesh.check_quiet(&["event=signaling-lost"])?;
    }
    Ok(())
}
