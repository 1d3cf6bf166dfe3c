//! Attached mode's data plane with real WireGuard: nodes in network namespaces, wireguard-go behind
//! their slots, paths found by the real engine.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are not tests to clippy"
)]

#[path = "../common/namespace.rs"]
mod namespace;
#[path = "../../examples/proxybench/node.rs"]
mod node;
mod spoof;
#[path = "../common/transfer.rs"]
mod transfer;
mod unprivileged;
#[path = "../common/wireguard_go.rs"]
mod wireguard_go;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use namespace::{Namespace, two_namespaces};
use node::{AttachedNode, Config};
use wice::core::slots::{SLOT_PORT, slot_of};
use wice_signaling::protocol::{PrivateKey, PublicKey};
use wireguard_go::{LISTEN_PORT, WireGuardGo};

/// Longer than paths and handshakes ever take, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A machine with a node and WireGuard, which knows its peers by their slots.
struct Machine {
    namespace: Namespace,
    node: AttachedNode,
    wireguard: WireGuardGo,
}

fn start(
    runtime: &tokio::runtime::Runtime,
    namespace: &Namespace,
    secret: [u8; 32],
    addresses: &[(&str, &str)],
    inner: &str,
) -> Machine {
    let config = Config {
        secret,
        addresses: addresses
            .iter()
            .map(|(ip, name)| (ip.parse().unwrap(), (*name).to_owned()))
            .collect(),
        slot_port: SLOT_PORT,
        relay: None,
    };
    let handle = runtime.handle().clone();
    let node = namespace.spawn(move || AttachedNode::start(&config, handle).unwrap());
    let node = node.join().unwrap();
    let wireguard = WireGuardGo::start(namespace, secret, inner);
    node.wireguard_port(Some(LISTEN_PORT)).unwrap();
    Machine {
        namespace: namespace.clone(),
        node,
        wireguard,
    }
}

fn slot(key: PublicKey) -> SocketAddr {
    SocketAddr::from((slot_of(&key), SLOT_PORT))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Two machines side by side that know each other.
fn two(runtime: &tokio::runtime::Runtime) -> Option<[Machine; 2]> {
    let [a, b] = two_namespaces()?;
    let mut a = start(runtime, &a, [1; 32], &[("192.0.2.1", "veth-a")], "10.8.0.1");
    let mut b = start(runtime, &b, [2; 32], &[("192.0.2.2", "veth-b")], "10.8.0.2");
    a.node.meet(&[&b.node]).unwrap();
    b.node.meet(&[&a.node]).unwrap();
    a.wireguard
        .peer(b.node.key, Some(slot(b.node.key)), "10.8.0.2");
    b.wireguard
        .peer(a.node.key, Some(slot(a.node.key)), "10.8.0.1");
    a.node.wait_path(b.node.key, false, PATIENCE).unwrap();
    b.node.wait_path(a.node.key, false, PATIENCE).unwrap();
    Some([a, b])
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_quarter_of_a_gigabyte_crosses_unharmed() {
    let runtime = runtime();
    let Some([a, b]) = two(&runtime) else {
        return;
    };
    let both = [a.namespace.clone(), b.namespace.clone()];
    let rtt = transfer::ping(&both, "10.8.0.1", "10.8.0.2");
    let rate = transfer::transfer(&both, "10.8.0.2", 250);
    println!("{rate:.0} Mbit/s, {rtt:?}");
    // WireGuard has not roamed off the slots, and nothing went by another way.
    for (machine, peer) in [(&a, &b), (&b, &a)] {
        let endpoints = machine.wireguard.show("endpoints");
        assert!(
            endpoints.contains(&slot(peer.node.key).to_string()),
            "{endpoints}"
        );
        let stats = machine.node.stats(peer.node.key).unwrap().unwrap();
        assert!(
            stats.rx_bytes > 1 << 20 && stats.tx_bytes > 1 << 20,
            "{stats:?}"
        );
        let counters = machine.node.counters().unwrap();
        assert_eq!(counters.wrong_source, 0);
        assert_eq!(counters.unknown_sender, 0);
    }
    // The path is up by what WireGuard answered on it.
    assert!(a.node.peer(b.node.key).unwrap().unwrap().path.unwrap().up);
}

/// Two secrets whose keys share a slot.
fn sharing() -> [[u8; 32]; 2] {
    let mut seen = BTreeMap::new();
    (0..u64::MAX)
        .find_map(|number| {
            let mut secret = [3; 32];
            secret[8..16].copy_from_slice(&number.to_be_bytes());
            let key = PrivateKey::from_bytes(secret).public_key();
            seen.insert(slot_of(&key), secret)
                .map(|before| [before, secret])
        })
        .unwrap()
}

#[test]
fn two_peers_on_one_slot_both_work() {
    let runtime = runtime();
    let [b_secret, c_secret] = sharing();
    let (Some(a), Some(b), Some(c)) = (Namespace::new(), Namespace::new(), Namespace::new()) else {
        return;
    };
    for (other, ours, theirs) in [(&b, 1, 2), (&c, 5, 6)] {
        let path = other.path();
        a.ip(&format!(
            "link add v{ours} type veth peer name v0 netns {path}"
        ));
        a.ip(&format!("address add 192.0.2.{ours}/30 dev v{ours}"));
        a.ip(&format!("link set v{ours} up"));
        other.ip(&format!("address add 192.0.2.{theirs}/30 dev v0"));
        other.ip("link set v0 up");
    }
    let addresses = [("192.0.2.1", "v1"), ("192.0.2.5", "v5")];
    let mut a = start(&runtime, &a, [1; 32], &addresses, "10.8.0.1");
    let mut b = start(&runtime, &b, b_secret, &[("192.0.2.2", "v0")], "10.8.0.2");
    let mut c = start(&runtime, &c, c_secret, &[("192.0.2.6", "v0")], "10.8.0.3");
    let (b_key, c_key) = (b.node.key, c.node.key);
    assert_eq!(slot(b_key), slot(c_key));
    a.node.meet(&[&b.node, &c.node]).unwrap();
    b.node.meet(&[&a.node]).unwrap();
    c.node.meet(&[&a.node]).unwrap();
    a.wireguard.peer(b_key, Some(slot(b_key)), "10.8.0.2");
    a.wireguard.peer(c_key, Some(slot(c_key)), "10.8.0.3");
    b.wireguard
        .peer(a.node.key, Some(slot(a.node.key)), "10.8.0.1");
    c.wireguard
        .peer(a.node.key, Some(slot(a.node.key)), "10.8.0.1");
    for key in [b_key, c_key] {
        a.node.wait_path(key, false, PATIENCE).unwrap();
    }
    let to_b = [a.namespace.clone(), b.namespace.clone()];
    let to_c = [a.namespace.clone(), c.namespace.clone()];
    // A session that each side has started, and both at once.
    transfer::ping(&to_b, "10.8.0.1", "10.8.0.2");
    let from_c = [c.namespace.clone(), a.namespace.clone()];
    transfer::ping(&from_c, "10.8.0.3", "10.8.0.1");
    let second = std::thread::spawn(move || transfer::transfer(&to_c, "10.8.0.3", 30));
    transfer::transfer(&to_b, "10.8.0.2", 30);
    second.join().unwrap();
    let counters = a.node.counters().unwrap();
    assert_eq!(
        (counters.to_all, counters.unknown_recipient),
        (0, 0),
        "{counters:?}"
    );
    for (key, other) in [(b_key, &b), (c_key, &c)] {
        // The receiver is read first: acknowledgements are still on their way.
        let got = other.node.stats(a.node.key).unwrap().unwrap().rx_bytes;
        let sent = a.node.stats(key).unwrap().unwrap().tx_bytes;
        // What was meant for the other peer did not come here: each got about what it was sent.
        assert!(
            sent > 30 << 20 && got <= sent && got > sent / 2,
            "{sent} sent, {got} came"
        );
    }
}

#[test]
fn nobody_but_wireguard_may_send_through_a_slot() {
    let runtime = runtime();
    let Some([a, b]) = two(&runtime) else {
        return;
    };
    let both = [a.namespace.clone(), b.namespace.clone()];
    transfer::ping(&both, "10.8.0.1", "10.8.0.2");
    let target = slot(b.node.key);
    let before = a.node.stats(b.node.key).unwrap().unwrap().tx_bytes;
    let refused = |expected: u64| {
        wait("nothing was refused", || {
            a.node.counters().unwrap().wrong_source >= expected
        });
    };
    // A local process: another port, another address; WireGuard's own port is WireGuard's.
    let local = a.namespace.spawn(move || {
        for from in [("127.0.0.1", 0), ("127.0.0.1", 40000), ("192.0.2.1", 0)] {
            let socket = UdpSocket::bind(from).unwrap();
            socket.send_to(&spoof::data(), target).unwrap();
        }
        UdpSocket::bind(("127.0.0.1", LISTEN_PORT)).is_err()
    });
    assert!(local.join().unwrap());
    refused(3);
    // The same without privileges, and as root of a user namespace.
    let SocketAddr::V4(v4) = target else {
        unreachable!()
    };
    let unprivileged = a
        .namespace
        .spawn(move || [false, true].map(|as_root| unprivileged::run(v4, &spoof::data(), as_root)));
    assert_eq!(unprivileged.join().unwrap(), [0, 0]);
    refused(3 + 2 * unprivileged::SENDS.len() as u64);
    // A host of the LAN, where loopback addresses are routed and nothing filters: the control shows
    // that its packets come through, with the right source.
    let settings = a.namespace.spawn(|| {
        for (name, value) in [
            ("route_localnet", "1"),
            ("rp_filter", "0"),
            ("accept_local", "1"),
        ] {
            for interface in ["all", "veth-a"] {
                let file = format!("/proc/sys/net/ipv4/conf/{interface}/{name}");
                std::fs::write(file, value).unwrap();
            }
        }
        wice::io::udp::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9999).into()).unwrap()
    });
    let control = settings.join().unwrap();
    let mac = spoof::mac(&a.namespace, "veth-a");
    let seen = a.node.counters().unwrap().wrong_source;
    let sent = b.namespace.spawn(move || {
        spoof::send(
            "veth-b",
            mac,
            (Ipv4Addr::LOCALHOST, LISTEN_PORT),
            ([127, 9, 9, 9].into(), 9999),
        );
        let SocketAddr::V4(target) = target else {
            unreachable!()
        };
        spoof::send(
            "veth-b",
            mac,
            (Ipv4Addr::LOCALHOST, LISTEN_PORT),
            (*target.ip(), target.port()),
        );
    });
    sent.join().unwrap();
    let mut buffers = wice::io::udp::ReceiveBuffers::new();
    wait("the spoofed packet did not even reach the control", || {
        control.receive(&mut buffers).unwrap() > 0
    });
    let arrival = buffers.arrivals().next().unwrap();
    assert_eq!(
        arrival.remote,
        SocketAddr::from((Ipv4Addr::LOCALHOST, LISTEN_PORT))
    );
    assert_ne!(arrival.ifindex, 1);
    std::thread::sleep(Duration::from_millis(200));
    let counters = a.node.counters().unwrap();
    // The kernel has kept it from the socket that is bound to `lo`.
    assert_eq!((counters.wrong_source, counters.no_port), (seen, 0));
    // All of it together moved nothing towards the peer but keepalives.
    let after = a.node.stats(b.node.key).unwrap().unwrap().tx_bytes;
    assert!(after - before < 64, "{before} before, {after} after");
}

#[test]
fn nothing_passes_while_wireguards_port_is_unbound() {
    let runtime = runtime();
    let Some([mut a, b]) = two(&runtime) else {
        return;
    };
    let both = [a.namespace.clone(), b.namespace.clone()];
    transfer::ping(&both, "10.8.0.1", "10.8.0.2");
    a.wireguard.end();
    // An impostor has the port at once.
    let target = slot(b.node.key);
    let impostor = a.namespace.spawn(move || {
        let bound = UdpSocket::bind(("127.0.0.1", LISTEN_PORT));
        bound.unwrap()
    });
    a.node.wireguard_port(None).unwrap();
    let impostor = impostor.join().unwrap();
    let before = a.node.stats(b.node.key).unwrap().unwrap();
    impostor.send_to(&spoof::data(), target).unwrap();
    wait("not refused", || a.node.counters().unwrap().no_port >= 1);
    assert_eq!(
        a.node.stats(b.node.key).unwrap().unwrap().tx_bytes,
        before.tx_bytes
    );
    drop(impostor);
    // The port is told although nobody is there: what comes in shows it.
    a.node.wireguard_port(Some(LISTEN_PORT)).unwrap();
    let client = b.namespace.spawn(|| {
        let socket = UdpSocket::bind("10.8.0.2:0").unwrap();
        for _ in 0..3 {
            socket.send_to(b"anyone?", "10.8.0.1:7").unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    client.join().unwrap();
    wait("the closed port was not noticed", || {
        a.node.closed_ports.lock().unwrap().contains(&LISTEN_PORT)
    });
}
