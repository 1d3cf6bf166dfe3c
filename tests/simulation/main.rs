//! The core in a simulated internet, in virtual time: nodes, NATs, servers and signaling drawn from a
//! seed, and an oracle that knows which paths there are.

#![allow(clippy::unwrap_used, reason = "a test's helpers")]

mod checks;
mod daemon;
mod events;
mod host;
mod network;
mod oracle;
mod random;
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
