//! The core in a simulated internet, in virtual time: nodes, NATs, servers and signaling drawn from a
//! seed, and an oracle that knows which paths there are.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are not tests to clippy"
)]

mod checks;
mod daemon;
mod events;
mod host;
mod network;
mod oracle;
mod presence;
mod random;
mod servers;
mod shared_port;
mod signaling;
mod sweep;
mod topology;
mod turn_server;
mod wireguard;
mod world;

use std::time::{Duration, Instant};

use checks::Kind;
use topology::*;

const fn secs(value: u64) -> Duration {
    Duration::from_secs(value)
}

#[test]
fn two_public_hosts_meet() {
    let mut world = internet(1, Instant::now());
    let (a, b) = (public(&mut world), public(&mut world));
    world.start_at(a, Duration::ZERO);
    world.start_at(b, secs(1));
    world.settle(secs(5));
    assert_eq!(world.agreed(a, b), Some(Kind::Direct));
}

#[test]
fn the_matrix() {
    let kinds = [
        FULL_CONE,
        ADDRESS_RESTRICTED,
        PORT_RESTRICTED,
        ADDRESS_DEPENDENT,
        SYMMETRIC,
        UDP_BLOCKED,
    ];
    for (i, first) in kinds.into_iter().enumerate() {
        for (j, second) in kinds.into_iter().enumerate() {
            let mut world = internet((i * 10 + j) as u64, Instant::now());
            let (a, b) = (home(&mut world, first), home(&mut world, second));
            world.start_at(a, Duration::ZERO);
            world.start_at(b, secs(1));
            let took = world.settle(secs(5));
            println!("{i} {j}: {:?} {took:?}", world.agreed(a, b));
            world.run_for(secs(10));
            world.assert_possible();
            assert!(world.is_settled());
        }
    }
}

#[test]
fn a_public_host_behind_a_firewall_meets_everybody_but_the_symmetric() {
    for (seed, kind, expected) in [
        (1, PORT_RESTRICTED, Kind::Direct),
        (2, SYMMETRIC, Kind::Relayed),
        (3, UDP_BLOCKED, Kind::Relayed),
    ] {
        let mut world = internet(seed, Instant::now());
        let (a, b) = (firewalled(&mut world), home(&mut world, kind));
        world.start_at(a, Duration::ZERO);
        world.start_at(b, secs(1));
        world.settle(secs(5));
        assert_eq!(world.agreed(a, b), Some(expected));
    }
}

/// From the second node's start to WireGuard both ways, 40 ms round trip between any two: median and
/// 95th percentile of forty.
fn convergence(a: network::Behavior, b: network::Behavior) -> (Duration, Duration) {
    let mut times: Vec<Duration> = (0..40)
        .map(|seed| {
            let mut world = internet(seed, Instant::now());
            let (a, b) = (home(&mut world, a), home(&mut world, b));
            world.start_at(a, Duration::ZERO);
            let after = secs(1) + world.random.up_to(secs(1));
            world.start_at(b, after);
            world.run_for(after);
            let up = world.run_till(secs(10), Duration::from_millis(1), |w| w.is_up(a, b));
            up.unwrap_or_else(|| panic!("{}", world.describe()))
        })
        .collect();
    times.sort_unstable();
    (times[20], times[38])
}

#[test]
fn connecting_takes_half_a_second() {
    let ms = Duration::from_millis;
    for (name, a, b, median, most) in [
        ("direct", PORT_RESTRICTED, PORT_RESTRICTED, ms(500), secs(1)),
        ("relayed", SYMMETRIC, SYMMETRIC, ms(500), secs(1)),
        ("blocked", UDP_BLOCKED, PORT_RESTRICTED, secs(2), secs(2)),
    ] {
        let took = convergence(a, b);
        println!("{name}: median {:?}, 95 % {:?}", took.0, took.1);
        assert!(took.0 <= median && took.1 <= most, "{name}: {took:?}");
    }
}
