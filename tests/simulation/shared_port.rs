//! Hosts whose WireGuard shares its port with the node: of paths that are as good, the one with the
//! fewest programs in between.

use std::time::{Duration, Instant};

use crate::checks::Kind;
use crate::secs;
use crate::topology::*;

/// Whether each side's path begins at WireGuard's port, a while after both have started.
fn natives(seed: u64, shares: [bool; 2]) -> [Option<bool>; 2] {
    let mut world = internet(seed, Instant::now());
    let (a, b) = (
        home(&mut world, PORT_RESTRICTED),
        home(&mut world, PORT_RESTRICTED),
    );
    world.hosts[a].shares = shares[0];
    world.hosts[b].shares = shares[1];
    world.start_at(a, Duration::ZERO);
    world.start_at(b, secs(1));
    world.settle(secs(5));
    world.run_for(secs(10));
    assert_eq!(world.agreed(a, b), Some(Kind::Direct));
    [(a, b), (b, a)].map(|(from, to)| world.path(from, to).map(|path| path.native))
}

#[test]
fn a_path_ends_at_every_port_that_is_shared() {
    for seed in 0..10 {
        for shares in [[true, true], [true, false], [false, true], [false, false]] {
            let found = natives(seed, shares);
            assert_eq!(found, shares.map(Some), "seed {seed}");
        }
    }
}
