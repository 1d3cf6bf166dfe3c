//! What signaling says of who is there: it is believed where it agrees with silence, and nowhere else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use wice_signaling::protocol::{AdminKey, Presence, PublicKey, RevocationList};

use crate::events::*;
use crate::topology::*;
use crate::world::{Conditions, STEP, World};

const LEFT: Presence = Presence::Left { last_seen_s: 0 };
const LOST: Presence = Presence::Lost { last_seen_s: 5 };

const fn secs(value: u64) -> Duration {
    Duration::from_secs(value)
}

fn last_seen(world: &World) -> Option<Duration> {
    world.hosts[A].view(B, world.now).unwrap().last_seen
}

#[test]
fn a_farewell_ends_the_path_within_two_seconds() {
    for (seed, homes) in (900..).zip(HOMES) {
        for traffic in [None, Some(TRAFFIC)] {
            let mut world = connected(seed, homes, traffic);
            world.presence(B, Presence::Connected);
            assert_eq!(last_seen(&world), Some(Duration::ZERO));
            world.kill(B);
            world.presence(B, LEFT);
            let gone = world.run_till(secs(2), STEP, |w| w.path(A, B).is_none());
            assert!(gone.is_some(), "{homes:?}\n{}", world.describe());
            world.run_for(secs(60));
            let seen = last_seen(&world).unwrap();
            assert!(seen >= secs(60) && seen <= secs(63), "{seen:?}");
            assert!(world.path(A, B).is_none(), "{}", world.describe());
        }
    }
}

#[test]
fn what_signaling_says_breaks_no_path() {
    for (seed, homes) in (1000..).zip(HOMES) {
        for traffic in [None, Some(TRAFFIC)] {
            let mut world = connected(seed, homes, traffic);
            let since = world.now;
            forget_gaps(&mut world);
            for presence in [LEFT, LOST, Presence::Connected, LOST, LEFT, LEFT] {
                world.presence(B, presence);
                world.presence(A, presence);
                world.run_for(secs(11));
            }
            assert_eq!(changes_since(&world, since), 0, "{}", world.describe());
            if traffic.is_some() {
                let gap = gap(&world);
                assert!(gap <= secs(1), "{gap:?} {homes:?}\n{}", world.describe());
            }
        }
    }
}

#[test]
fn what_signaling_says_breaks_no_path_under_loss_either() {
    let mut changes = 0;
    for (seed, homes) in (1100..).zip(HOMES) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        world.conditions = Conditions {
            loss: 0.1,
            ..Conditions::default()
        };
        let since = world.now;
        forget_gaps(&mut world);
        for _ in 0..30 {
            world.presence(B, LEFT);
            world.presence(A, LEFT);
            world.run_for(secs(10));
        }
        changes += changes_since(&world, since);
        let gap = gap(&world);
        assert!(gap <= secs(5), "{gap:?} {homes:?}\n{}", world.describe());
    }
    // 480 false farewells: 770 would cost one change without data that comes in meanwhile.
    assert!(changes <= 8, "{changes}");
}

#[test]
fn a_restart_after_a_farewell_is_as_quick_as_any() {
    for (seed, homes) in (1200..).zip(HOMES) {
        for restarted in [A, B] {
            for pause in [300, 1000, 3000] {
                let mut world = connected(seed, homes, Some(TRAFFIC));
                world.kill(restarted);
                world.presence(restarted, LEFT);
                world.run_for(Duration::from_millis(pause));
                world.start_at(restarted, Duration::ZERO);
                let begin = world.now;
                world.run_for(Duration::from_millis(1));
                // Signaling says so later than the node itself.
                let back =
                    world.run_till(secs(3), STEP, |w| w.is_up(A, B) && received_since(w, begin));
                assert!(back.is_some(), "{homes:?} {pause}\n{}", world.describe());
                world.presence(restarted, Presence::Connected);
                world.settle(secs(60));
            }
        }
    }
}

/// Checks of a peer that is away: few, with traffic for it or without, and none that others wait for.
#[test]
fn a_peer_that_is_away_costs_little_until_it_is_back() {
    for (seed, homes) in (1300..).zip(HOMES) {
        let mut world = connected(seed, homes, None);
        world.kill(B);
        world.kill(A);
        world.start_at(A, Duration::ZERO);
        world.run_for(Duration::from_millis(5));
        world.presence(B, LOST);
        let tunnel = world.hosts[A].tunnels.get_mut(&B).unwrap();
        tunnel.set_traffic(Some(TRAFFIC), world.now);
        world.drain(A);
        let first = world.hosts[A].requests;
        world.run_for(secs(600));
        let requests = world.hosts[A].requests - first;
        // STUN: two servers every 24 s. Checks: the first ones, and a few pairs three times after
        // 20, 40, 80, 160 and 320 s: 64 to 82. Without a word from signaling it is 307 to 453.
        assert!(requests <= 100, "{requests} {homes:?}");
        world.start_at(B, Duration::ZERO);
        world.run_for(Duration::from_millis(40));
        world.presence(B, Presence::Connected);
        let begin = Instant::now();
        let back = world.run_till(secs(5), STEP, |w| w.is_up(A, B));
        assert!(back.is_some(), "{begin:?} {homes:?}\n{}", world.describe());
        world.settle(secs(30));
    }
}

#[test]
fn while_signaling_is_lost_nobody_is_said_to_be_there() {
    let mut world = connected(1400, (FULL_CONE, FULL_CONE), None);
    world.presence(B, Presence::Connected);
    let now = world.now;
    let node = world.hosts[A].node.as_mut().unwrap();
    node.handle_signaling_lost(now);
    assert_eq!(last_seen(&world), None);
}

/// Attached mode: the list puts a peer out, but its WireGuard peer is somebody else's, and stays.
#[test]
fn a_revoked_peer_gets_nothing_and_is_still_told_of() {
    let admin = AdminKey::from_seed(&[7; 32]);
    for (seed, homes) in (1060..).zip(HOMES) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        let key = world.hosts[A].view(B, world.now).unwrap().key;
        let list = |sequence, nodes: &[PublicKey]| {
            let nodes = nodes.iter().copied().collect();
            RevocationList::sign(&admin, sequence, nodes, BTreeSet::new()).unwrap()
        };
        let now = world.now;
        let node = world.hosts[A].node.as_mut().unwrap();
        assert!(node.handle_revocations(list(1, &[key]), now));
        assert!(!node.handle_revocations(list(1, &[]), now), "no news");
        world.drain(A);
        assert!(world.path(A, B).is_none(), "{}", world.describe());
        // Its checks go on, and it publishes once more.
        world.run_for(secs(60));
        let view = world.hosts[A].view(B, world.now).unwrap();
        assert!(view.revoked && view.path.is_none() && view.pairs.is_empty());
        assert!(world.path(B, A).is_none(), "{}", world.describe());
        // Taken out of the interface and put in again it is revoked still.
        let now = world.now;
        let node = world.hosts[A].node.as_mut().unwrap();
        node.remove_peer(&key, now);
        let peer = node.add_peer(key, now).unwrap();
        assert!(node.peer_snapshot(peer, now).unwrap().revoked);
    }
}
