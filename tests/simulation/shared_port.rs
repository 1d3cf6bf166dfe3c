//! Hosts whose WireGuard shares its port with the node: of paths that are as good, the one with the
//! fewest programs in between.

use std::time::{Duration, Instant};

use wice::core::timing::{LAST_PROBE_WAIT, PROBE_INTERVAL, SILENCE, STALL_MISSES};

use crate::checks::Kind;
use crate::events::{A, B, TRAFFIC, cut, forget_gaps, gap_at, pass_some_time};
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

/// A path that dies without a word is left in time, at whatever moment that is: both ways, and one way, where the other
/// side sends keepalives. At WireGuard's own port counters alone show what passes, twice a second.
#[test]
fn a_direct_path_dies_silently() {
    // The packet with which silence begins, until the path is given up, the first packet by the relay, and its way.
    let probes = PROBE_INTERVAL * (u32::from(STALL_MISSES) - 1) + LAST_PROBE_WAIT;
    let limit = SILENCE + probes + 2 * TRAFFIC + Duration::from_millis(100);
    for seed in 0..100 {
        for (shares, both) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut world = internet(seed, Instant::now());
            for id in [A, B] {
                home(&mut world, PORT_RESTRICTED);
                world.hosts[id].shares = shares;
                world.start_at(id, Duration::ZERO);
            }
            world.hosts[A].traffic = Some(TRAFFIC);
            world.hosts[B].traffic = both.then_some(TRAFFIC);
            world.settle(secs(5));
            pass_some_time(&mut world);
            let native = world.path(A, B).map(|path| path.native);
            assert_eq!(native, Some(shares));
            cut(&mut world, false);
            forget_gaps(&mut world);
            world.run_for(secs(30));
            let receivers = if both { &[A, B][..] } else { &[B] };
            for to in receivers {
                let gap = gap_at(&world, *to);
                let case = format!("seed {seed}, shares {shares}, both ways {both}: {gap:?}");
                assert!(gap <= limit, "{case}\n{}", world.describe());
                assert!(gap >= SILENCE, "{case}: it did not die");
            }
        }
    }
}
