//! WireGuard's own packets stay out of the mesh agent's interface, though it routes nodes' private addresses there and gives one of
//! them for an endpoint: else each side's WireGuard finds the other inside of the tunnel.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use wice::lab::{NatKind, NetNs};
use wice_kube_tests::{INTERFACE, KubeMesh, output, wait_until};

const NODES: [&str; 2] = ["home-a", "home-b"];
/// Kilo's port.
const PORT: u16 = 51820;
/// Until the daemon has seen an interface and a port.
const SEEN: Duration = Duration::from_secs(10);
/// How often the trap is set.
const TRIALS: usize = 5;
/// Longer than any packet that waits for a session, so that what it begets shows.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Pings and handshakes of all trials are a hundredth of this; a loop has as much within a second.
const FEW: u64 = 4 << 20;

fn ip(ns: &NetNs, arguments: &str) -> anyhow::Result<String> {
    output(ns.command("ip").args(arguments.split(' ')))
}

/// Where packets of WireGuard's port go.
fn way(ns: &NetNs, to: &str) -> anyhow::Result<String> {
    ip(ns, &format!("route get {to} ipproto udp sport {PORT}"))
}

/// The next hop of a way.
fn router(way: &str) -> &str {
    way.split(" via ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
}

#[test]
fn a_private_address_that_is_routed_into_the_mesh_is_no_way_for_wireguard() {
    let mut mesh = KubeMesh::build(&[NatKind::PortRestricted; 2]).unwrap();
    for node in NODES {
        mesh.join(node).unwrap();
    }
    mesh.wait_paths("home-a", "home-b").unwrap();
    mesh.wait_pods("home-a", "home-b").unwrap();
    // From now on it is this test that does what they do.
    for node in NODES {
        mesh.agents.kill(node);
    }
    let node = mesh.lab.node("home-a").unwrap().ns().clone();
    let addresses = mesh.lab.node("home-b").unwrap().addresses().to_vec();
    let private = addresses.iter().find(|ip| ip.is_ipv4()).unwrap();
    let into = format!("{private}/32 via 10.4.0.2 dev {INTERFACE} onlink");
    ip(&node, &format!("route replace {into}")).unwrap();
    let others = ip(&node, &format!("route get {private}")).unwrap();
    assert!(others.contains(INTERFACE), "{others}");
    wait_until("the rules are there", SEEN, || {
        way(&node, &private.to_string()).is_ok_and(|way| !way.contains(INTERFACE))
    })
    .unwrap();
    let (default, outside) = (way(&node, &private.to_string()), way(&node, "192.0.2.77"));
    let (default, outside) = (default.unwrap(), outside.unwrap());
    assert_eq!(router(&default), router(&outside), "{default} {outside}");
    // Without a default route it leads nowhere.
    ip(&node, "route del default").unwrap();
    wait_until("the copy follows", SEEN, || {
        way(&node, &private.to_string()).is_err()
    })
    .unwrap();
    let route = format!("route add default via {}", router(&default));
    ip(&node, &route).unwrap();
    wait_until("the copy is back", SEEN, || {
        way(&node, &private.to_string()).is_ok()
    })
    .unwrap();

    let interface = mesh.interface("home-a").unwrap();
    let peer = mesh.interface("home-b").unwrap().public_key();
    let allowed = format!("10.4.0.2/32,10.42.2.0/24,{private}/32");
    let key = peer.to_string();
    for _ in 0..TRIALS {
        interface.remove_peer(peer).unwrap();
        let endpoint = Some((*private, PORT).into());
        interface.set_peer(peer, endpoint, &allowed).unwrap();
        let keepalive = ["set", INTERFACE, "peer", &key, "persistent-keepalive", "25"];
        interface.wg(&keepalive).unwrap();
        let took = mesh.wait_pods("home-a", "home-b").unwrap();
        println!("pods answer again after {:.2} s", took.as_secs_f64());
        std::thread::sleep(AFTERWARDS);
        for node in NODES {
            let table = mesh.interface(node).unwrap();
            let endpoints = table.wg(&["show", INTERFACE, "endpoints"]).unwrap();
            assert!(!endpoints.contains("\t10.4."), "{node}: {endpoints}");
            let transfer = table.wg(&["show", INTERFACE, "transfer"]).unwrap();
            let sent: u64 = transfer
                .trim()
                .rsplit('\t')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!(sent < FEW, "{node}: {transfer}");
        }
    }

    // An uninstall leaves nothing behind.
    let rules = || ["-4 rule", "-6 rule"].map(|rules| ip(&node, rules).unwrap());
    for there in rules() {
        assert_eq!(there.matches(&PORT.to_string()).count(), 3, "{there}");
    }
    mesh.lab.wice("home-a", &["detach", INTERFACE]).unwrap();
    for there in rules() {
        assert!(!there.contains(&PORT.to_string()), "{there}");
    }
    let through = way(&node, &private.to_string()).unwrap();
    assert!(through.contains(INTERFACE), "{through}");
}
