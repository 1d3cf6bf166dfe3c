//! `wice bridge` with a real API server and the rights that its manifests give, and a machine outside of the cluster that reaches
//! pods through NATs.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{NatKind, Pings};
use wice_kube_tests::{Cluster, KubeMesh};

const ADVERT: &str = "wice.riasc.eu/advert";
/// Two Nodes and a machine outside.
const HOMES: [NatKind; 3] = [NatKind::Public, NatKind::Symmetric, NatKind::PortRestricted];
const NODES: [&str; 2] = ["home-a", "home-b"];
const OUTSIDE: &str = "home-c";
/// Its Peer object, which is not called as it calls itself.
const PEER: &str = "lab-box";
const OUTSIDE_ADDRESS: [u8; 4] = [10, 5, 0, 3];
const PING_EVERY: Duration = Duration::from_millis(100);
/// Until a ping is answered both ways, once paths are there.
const ANSWERED: Duration = Duration::from_secs(30);
/// How long paths must go on without a bridge.
const WITHOUT: Duration = Duration::from_secs(15);
/// The longest silence of a path that nothing happens to, on a machine that is busy.
const LONGEST_CUT: Duration = Duration::from_secs(2);

#[test]
fn a_peer_outside_reaches_pods_and_they_it() -> Result<()> {
    let mut mesh = KubeMesh::build(&HOMES)?;
    mesh.cluster.install("bridge")?;
    mesh.lab.start_signal()?;
    let token = mesh.lab.network_token()?;
    for node in NODES {
        mesh.join(node)?;
    }
    mesh.join_outside(OUTSIDE, PEER, &NODES, &token)?;
    mesh.start_bridge(&token)?;
    let began = Instant::now();
    for node in NODES {
        mesh.wait_outside(node, OUTSIDE, PEER)?;
        println!(
            "{node} and {PEER}: {:.1} s until the path is as the NATs allow",
            began.elapsed().as_secs_f64()
        );
    }
    let mut all = Vec::new();
    for node in NODES {
        all.push((format!("{OUTSIDE} to {node}"), mesh.pings(OUTSIDE, node)?));
        let back = Pings::start(
            mesh.lab.node(node)?.ns(),
            IpAddr::from(OUTSIDE_ADDRESS),
            PING_EVERY,
        )?;
        all.push((format!("{node} to {OUTSIDE}"), back));
    }
    let now = Instant::now();
    for (name, pings) in &all {
        let waited = pings.back_after(now, ANSWERED);
        let waited = waited.with_context(|| {
            format!(
                "{name}: no answer\n{}\n{}",
                mesh.evidence(&[OUTSIDE, "home-a"]),
                mesh.bridge_log()
            )
        })?;
        println!(
            "{name}: {:.1} s until a ping is answered",
            waited.as_secs_f64()
        );
    }
    let log = mesh.bridge_log();
    for words in ["event=carrying nodes=2", "event=peer-written peer=lab-box"] {
        ensure!(log.contains(words), "{words} is missing: {log}");
    }
    let nodes = mesh.lab.admin(&["network", "nodes"])?;
    println!("\n{nodes}");
    for node in NODES {
        let is_told = |line: &str| line.starts_with(node) && line.ends_with("carried by a bridge");
        ensure!(nodes.lines().any(is_told), "{node} is not listed: {nodes}");
    }
    // What was heard is enough: without a bridge nothing ends.
    mesh.kill_bridge();
    let since = Instant::now();
    std::thread::sleep(WITHOUT);
    for (name, pings) in &all {
        let gap = pings.longest_gap(since);
        println!(
            "{name}: silent for {:.2} s at most without a bridge",
            gap.as_secs_f64()
        );
        ensure!(gap < LONGEST_CUT, "{name} was silent for {gap:?}");
    }
    let there = mesh.peer(OUTSIDE, "home-b")?.context("no such peer")?;
    ensure!(there.reason.as_deref() != Some("peer-away"), "{there:?}");
    for (machine, name) in [("home-a", PEER), (OUTSIDE, "home-b")] {
        let why = mesh.lab.wice(machine, &["why", name])?;
        println!(
            "\n{machine}$ wice why {name}\n{}",
            String::from_utf8_lossy(&why.stdout)
        );
    }
    mesh.check_mesh_agents()
}

#[test]
fn a_bridges_token_annotates_peers_and_does_nothing_else() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.install("kilo-kubeadm")?;
    cluster.install("bridge")?;
    cluster.node("a", "10.42.1.0/24", &[])?;
    cluster.apply(
        r#"{"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer", "metadata": {"name": "box"},
        "spec": {"publicKey": "x", "allowedIPs": ["10.5.0.1/32"]}}"#,
    )?;
    let token = cluster.account_token("wice-bridge")?;
    let bridge = |arguments: &[&str]| cluster.kubectl_at(cluster.address(), &token, arguments);
    bridge(&["get", "nodes"])?;
    bridge(&["get", "peers.kilo.squat.ai"])?;
    let entry = format!("{ADVERT}=x");
    cluster.wait_for_policy(&token, ["peers.kilo.squat.ai", "box"])?;
    bridge(&["annotate", "peers.kilo.squat.ai", "box", &entry])?;
    let large = format!("{ADVERT}={}", "x".repeat(8193));
    let refused: [(&[&str], &str); 9] = [
        (
            &[
                "patch",
                "peers.kilo.squat.ai",
                "box",
                "--type=merge",
                "-p",
                r#"{"spec":{"allowedIPs":["0.0.0.0/0"]}}"#,
            ],
            "only annotations",
        ),
        (
            &[
                "annotate",
                "peers.kilo.squat.ai",
                "box",
                "kilo.squat.ai/x=y",
            ],
            "foreign annotation",
        ),
        (
            &[
                "annotate",
                "peers.kilo.squat.ai",
                "box",
                &large,
                "--overwrite",
            ],
            "over 8192 characters",
        ),
        (
            &["label", "peers.kilo.squat.ai", "box", "x=y"],
            "only annotations",
        ),
        (
            &["delete", "peers.kilo.squat.ai", "box"],
            "cannot delete resource",
        ),
        (
            &["annotate", "node", "a", &entry],
            "cannot patch resource \"nodes\"",
        ),
        (
            &["get", "secrets", "--namespace", "wice"],
            "cannot list resource \"secrets\"",
        ),
        (
            &["get", "pods", "--namespace", "wice"],
            "cannot list resource \"pods\"",
        ),
        (&["create", "namespace", "x"], "cannot create resource"),
    ];
    for (arguments, words) in refused {
        let Err(error) = bridge(arguments) else {
            anyhow::bail!("{arguments:?} is allowed");
        };
        let error = error.to_string();
        ensure!(error.contains(words), "{arguments:?}: {error}");
    }
    Ok(())
}
