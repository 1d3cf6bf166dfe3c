//! Two nodes of in-process WireGuard in two network namespaces: real TUN devices, real sockets,
//! real TCP.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are not tests to clippy"
)]

#[path = "common/namespace.rs"]
mod namespace;
#[path = "../examples/wgbench/node.rs"]
mod node;
#[path = "common/rough_link.rs"]
mod rough_link;
#[path = "common/transfer.rs"]
mod transfer;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wice::wireguard::inprocess::Tunnels;
use wice::wireguard::netlink::{LinkKind, Netlink, NetlinkError, Watch};
use wice::wireguard::tun::{Tun, TunError};

use namespace::{Namespace, two_namespaces};
use rough_link::RoughLink;
use transfer::{bind_when_set_up, ping, transfer};

struct Running {
    stop: Arc<AtomicBool>,
    node: JoinHandle<node::Report>,
}

/// Of node 0 or 1; the first has the second's endpoint, over IPv4 or IPv6 outside.
fn config(i: usize, outer_v6: bool, offload: bool) -> node::Config {
    let keys = [[1; 32], [2; 32]];
    let outer = |host: usize| -> SocketAddr {
        let ip = if outer_v6 {
            format!("2001:db8::{host}")
        } else {
            format!("192.0.2.{host}")
        };
        SocketAddr::new(ip.parse().unwrap(), 51821)
    };
    node::Config {
        interface: "wice0".to_owned(),
        offload,
        mtu: 1420,
        private_key: keys[i],
        peer_key: Tunnels::new(keys[1 - i], 1420, Instant::now())
            .public_key()
            .0,
        allowed_ips: [
            format!("10.9.0.{}/32", 2 - i),
            format!("fd09::{}/128", 2 - i),
        ]
        .map(|p| p.parse().unwrap())
        .to_vec(),
        addresses: vec![
            (format!("10.9.0.{}", 1 + i).parse().unwrap(), 32),
            (format!("fd09::{}", 1 + i).parse().unwrap(), 128),
        ],
        listen: outer(1 + i),
        endpoint: (i == 0).then(|| outer(2)),
        rekey_every: None,
    }
}

fn start(namespaces: &[Namespace; 2], outer_v6: bool, offload: [bool; 2]) -> [Running; 2] {
    run(namespaces, [0, 1].map(|i| config(i, outer_v6, offload[i])))
}

fn run(namespaces: &[Namespace; 2], configs: [node::Config; 2]) -> [Running; 2] {
    let [first, second] = configs;
    [(&namespaces[0], first), (&namespaces[1], second)].map(|(namespace, config)| {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let node = namespace.spawn(move || node::run(config, &seen).unwrap());
        Running { stop, node }
    })
}

fn finish(running: [Running; 2]) -> [node::Report; 2] {
    running
        .iter()
        .for_each(|r| r.stop.store(true, Ordering::Relaxed));
    running.map(|r| r.node.join().unwrap())
}

#[test]
fn pings_and_a_hundred_megabytes_cross_unharmed_over_both_families() {
    for (outer_v6, offload, megabytes) in [
        (false, [true, true], 100),
        (true, [true, true], 30),
        (false, [false, false], 20),
        (false, [true, false], 10),
    ] {
        let Some(namespaces) = two_namespaces() else {
            return;
        };
        let running = start(&namespaces, outer_v6, offload);
        let rtt = ping(&namespaces, "10.9.0.1", "10.9.0.2");
        ping(&namespaces, "fd09::1", "fd09::2");
        let v4 = transfer(&namespaces, "10.9.0.2", megabytes);
        let v6 = transfer(&namespaces, "fd09::2", megabytes);
        let reports = finish(running);
        println!("outer v6 {outer_v6}, offload {offload:?}: {v4:.0} and {v6:.0} Mbit/s, {rtt:?}");
        for (report, offload) in reports.iter().zip(offload) {
            assert_eq!(report.tunnels.unauthenticated, 0);
            assert_eq!(report.tunnels.wrong_source, 0);
            assert_eq!(report.device.refused, 0);
            assert!(report.stats.unwrap().last_handshake.is_some());
            assert!(offload || report.device.writes == report.device.packets);
        }
        // The receiver joined what it wrote, and the sender what it sent.
        if offload == [true, true] {
            assert!(
                reports[1].device.packets > 8 * reports[1].device.writes,
                "{:?}",
                reports[1].device
            );
            assert!(
                reports[0].socket.sent > 8 * reports[0].socket.send_calls,
                "{:?}",
                reports[0].socket
            );
        }
    }
}

#[test]
fn loss_harms_nothing() {
    let Some(namespaces) = two_namespaces() else {
        return;
    };
    for namespace in &namespaces {
        namespace.run("nft", "add table inet loss");
        namespace.run(
            "nft",
            "add chain inet loss in { type filter hook input priority 0 ; }",
        );
        // What the kernel joined is lost as one.
        namespace.run(
            "nft",
            "add rule inet loss in udp dport 51821 numgen random mod 1000 < 20 drop",
        );
    }
    let running = start(&namespaces, false, [true, true]);
    ping(&namespaces, "10.9.0.1", "10.9.0.2");
    transfer(&namespaces, "10.9.0.2", 10);
    transfer(&namespaces, "fd09::2", 10);
    let reports = finish(running);
    let sent = reports[0].socket.sent;
    // Runs are lost whole, so how many datagrams go depends on how the kernel joined them.
    assert!(
        reports[1].socket.received < sent,
        "nothing was lost: {reports:#?}"
    );
}

/// New sessions begin twice a second, where WireGuard has one in two minutes.
#[test]
fn a_quarter_of_a_gigabyte_crosses_unharmed_by_loss_reordering_and_rekeys() {
    const REKEY_EVERY: Duration = Duration::from_millis(500);
    let Some(namespaces) = two_namespaces() else {
        return;
    };
    let rough = SocketAddr::from(([192, 0, 2, 2], 51822));
    let link = RoughLink::start(&namespaces[1], rough, config(1, false, true).listen);
    let rekeyed = node::Config {
        endpoint: Some(rough),
        rekey_every: Some(REKEY_EVERY),
        ..config(0, false, true)
    };
    let running = run(&namespaces, [rekeyed, config(1, false, true)]);
    let start = Instant::now();
    ping(&namespaces, "10.9.0.1", "10.9.0.2");
    let v4 = transfer(&namespaces, "10.9.0.2", 250);
    let v6 = transfer(&namespaces, "fd09::2", 250);
    let sessions_due = start.elapsed().as_millis() / REKEY_EVERY.as_millis();
    let reports = finish(running);
    link.end();
    let (sessions, replayed) = (reports[0].sessions, reports[1].tunnels.replayed);
    println!("rough link: {v4:.0} and {v6:.0} Mbit/s, {sessions} sessions, {replayed} twice");
    assert!(u128::from(sessions) > sessions_due / 4, "{reports:#?}");
    assert!(replayed > 500, "{reports:#?}");
    // On a machine that stalls, an answer can be late for an initiation that two others have followed.
    for report in &reports {
        let unauthenticated = report.tunnels.unauthenticated;
        assert!(unauthenticated <= u64::from(sessions), "{reports:#?}");
    }
}

/// Datagrams of all sizes, some joined on the way and some not.
#[test]
fn order_is_kept_within_a_flow_while_sessions_change() {
    const DATAGRAMS: u32 = 100_000;
    let Some(namespaces) = two_namespaces() else {
        return;
    };
    let rekeyed = node::Config {
        rekey_every: Some(Duration::from_millis(30)),
        ..config(0, false, true)
    };
    let running = run(&namespaces, [rekeyed, config(1, false, true)]);
    for (from, to) in [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")] {
        ping(&namespaces, from, to);
        let to = SocketAddr::new(to.parse().unwrap(), 7001);
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        let opened = namespaces[1].spawn(move || bind_when_set_up(to.ip(), to.port()));
        let socket = opened.join().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let receiver = std::thread::spawn(move || received(&socket, &has_ended));
        let sender = namespaces[0].spawn(move || {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            for n in 0..DATAGRAMS {
                let mut datagram = vec![0; 4 + (n as usize / 8 * 37) % 1200];
                datagram[..4].copy_from_slice(&n.to_be_bytes());
                socket.send_to(&datagram, to).unwrap();
                if n % 64 == 0 {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        });
        sender.join().unwrap();
        ended.store(true, Ordering::Relaxed);
        let numbers = receiver.join().unwrap();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{to}: out of order");
        assert!(numbers.len() > DATAGRAMS as usize / 10, "{}", numbers.len());
    }
    let reports = finish(running);
    assert!(reports[0].sessions > 5, "{reports:#?}");
}

/// The numbers that datagrams begin with, as they come; until nothing has come for a while after the end.
fn received(socket: &UdpSocket, ended: &AtomicBool) -> Vec<u32> {
    let (mut numbers, mut buffer) = (Vec::new(), [0; 2048]);
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => numbers.push(u32::from_be_bytes(buffer[..4].try_into().unwrap())),
            Err(_) if ended.load(Ordering::Relaxed) => return numbers,
            Err(_) => {}
        }
    }
}

/// The other end is wireguard-go: what is on the wire is WireGuard.
#[test]
fn wireguard_go_understands_it() {
    let Some(namespaces) = two_namespaces() else {
        return;
    };
    let interface = format!("wg{}", std::process::id());
    let spawned = namespaces[1].spawn({
        let interface = interface.clone();
        move || {
            Command::new("wireguard-go")
                .args(["-f", &interface])
                .spawn()
        }
    });
    let Ok(mut other) = spawned.join().unwrap() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "needs wireguard-go and wg"
        );
        eprintln!("NOT RUN: needs wireguard-go and wg");
        return;
    };
    let socket = format!("/var/run/wireguard/{interface}.sock");
    for _ in 0..100 {
        if std::path::Path::new(&socket).exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let keys = [[1u8; 32], [2; 32]];
    let file = std::env::temp_dir().join(format!("{interface}.key"));
    let encode = |key: [u8; 32]| wice_signaling::protocol::PublicKey(key).to_string();
    std::fs::write(&file, encode(keys[1])).unwrap();
    let ours = Tunnels::new(keys[0], 1420, Instant::now()).public_key();
    namespaces[1].run(
        "wg",
        &format!(
            "set {interface} listen-port 51821 private-key {} peer {ours} allowed-ips 10.9.0.1/32,fd09::1/128",
            file.display()
        ),
    );
    std::fs::remove_file(&file).unwrap();
    namespaces[1].ip(&format!("address add 10.9.0.2/32 dev {interface}"));
    namespaces[1].ip(&format!("address add fd09::2/128 dev {interface}"));
    namespaces[1].ip(&format!("link set {interface} mtu 1420 up"));
    namespaces[1].ip(&format!("route add 10.9.0.1/32 dev {interface}"));
    namespaces[1].ip(&format!("route add fd09::1/128 dev {interface}"));
    let config = config(0, false, true);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let node = namespaces[0].spawn(move || node::run(config, &seen).unwrap());
    ping(&namespaces, "10.9.0.1", "10.9.0.2");
    let there = transfer(&namespaces, "10.9.0.2", 20);
    let reversed = [namespaces[1].clone(), namespaces[0].clone()];
    let back = transfer(&reversed, "fd09::1", 20);
    println!("wireguard-go: {there:.0} Mbit/s there, {back:.0} back");
    stop.store(true, Ordering::Relaxed);
    let report = node.join().unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(
        (report.tunnels.unauthenticated, report.tunnels.bad_inner),
        (0, 0)
    );
}

#[test]
fn devices_and_routes_fail_with_a_remedy() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    namespace
        .spawn(|| {
            let tun = Tun::create("wice0", true).unwrap();
            let taken = Tun::create("wice0", true).unwrap_err();
            assert!(matches!(taken, TunError::NameTaken { .. }), "{taken:?}");
            assert!(matches!(
                Tun::create("lo", true),
                Err(TunError::NameTaken { .. } | TunError::System { .. })
            ));
            assert!(matches!(
                Tun::create("no/slash", true),
                Err(TunError::BadName { .. })
            ));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let netlink = Netlink::connect().unwrap();
                let index = netlink.index("wice0").await.unwrap();
                let mut watch = Watch::start().unwrap();
                assert!(
                    tokio::time::timeout(Duration::from_millis(50), watch.changed())
                        .await
                        .is_err()
                );
                let (v4, v6) = ("10.9.0.1".parse().unwrap(), "fd09::1".parse().unwrap());
                for (ip, len) in [(v4, 32), (v6, 128), (v4, 32)] {
                    netlink.add_address(index, ip, len).await.unwrap();
                }
                tokio::time::timeout(Duration::from_secs(2), watch.changed())
                    .await
                    .unwrap()
                    .unwrap();
                netlink.set_up(index).await.unwrap();
                netlink.set_mtu(index, 1380).await.unwrap();
                for prefix in [
                    "10.9.0.2/32",
                    "fd09::2/128",
                    "0.0.0.0/0",
                    "10.9.0.2/32",
                    "::/0",
                ] {
                    netlink
                        .add_route(prefix.parse().unwrap(), index)
                        .await
                        .unwrap();
                }
                let defaults = netlink.default_routes().await.unwrap();
                assert_eq!((defaults.v4, defaults.v6), (Some(index), Some(index)));
                let other = netlink.add_route("10.9.0.2/32".parse().unwrap(), 1).await;
                assert!(
                    matches!(other, Err(NetlinkError::Exists { .. })),
                    "{other:?}"
                );
                netlink
                    .delete_route("10.9.0.2/32".parse().unwrap(), index)
                    .await
                    .unwrap();
                netlink.delete_address(index, v4, 32).await.unwrap();
                let all = netlink.interfaces().await.unwrap();
                let found = all.iter().find(|i| i.name == "wice0").unwrap();
                assert_eq!(
                    (&found.kind, found.mtu, found.running),
                    (&LinkKind::Tun, 1380, true)
                );
                let ips: Vec<IpAddr> = found.addresses.iter().map(|a| a.ip).collect();
                assert!(ips.contains(&v6) && !ips.contains(&v4), "{ips:?}");
                assert!(all.iter().any(|i| i.kind == LinkKind::Loopback));
                let gone = netlink.index("nothing0").await.unwrap_err();
                assert!(
                    matches!(gone, NetlinkError::NoSuchInterface { .. }),
                    "{gone:?}"
                );
            });
            drop(tun);
        })
        .join()
        .unwrap();
}
