//! What happens to paths that stand: restarts, routers and relays that fail, cuts, roaming, loss.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::checks::Kind;
use crate::network::{Attached, Behavior, HostId, INTERNET};
use crate::topology::*;
use crate::world::{Conditions, Cut, STEP, World};

pub(crate) const A: HostId = 0;
pub(crate) const B: HostId = 1;
pub(crate) const TRAFFIC: Duration = Duration::from_millis(250);
/// SILENCE and STALL (3.5 s), the check of the path after, and the interval of the traffic.
const RECOVERY: Duration = Duration::from_secs(5);

const fn secs(value: u64) -> Duration {
    Duration::from_secs(value)
}

/// How often what is to be noticed in time happens, each time at another moment.
const MOMENTS: std::ops::Range<u8> = 0..10;

/// Pairs of homes: some meet directly, some do not.
pub(crate) const HOMES: [(Behavior, Behavior); 8] = [
    (FULL_CONE, FULL_CONE),
    (ADDRESS_RESTRICTED, PORT_RESTRICTED),
    (PORT_RESTRICTED, PORT_RESTRICTED),
    (FULL_CONE, SYMMETRIC),
    (SYMMETRIC, PORT_RESTRICTED),
    (SYMMETRIC, SYMMETRIC),
    (UDP_BLOCKED, PORT_RESTRICTED),
    (UDP_BLOCKED, UDP_BLOCKED),
];

/// Two homes whose tunnel carries traffic both ways, settled.
pub(crate) fn connected(
    seed: u64,
    (a, b): (Behavior, Behavior),
    traffic: Option<Duration>,
) -> World {
    let mut world = internet(seed, Instant::now());
    home(&mut world, a);
    home(&mut world, b);
    begin(&mut world, traffic);
    world
}

pub(crate) fn begin(world: &mut World, traffic: Option<Duration>) {
    for id in 0..world.hosts.len() {
        world.hosts[id].traffic = traffic;
        let after = world.random.up_to(secs(1));
        world.start_at(id, after);
    }
    world.run_for(secs(1));
    world.settle(secs(10));
    world.run_for(secs(2));
}

/// Any moment between the checks of paths that stand.
pub(crate) fn pass_some_time(world: &mut World) {
    let time = secs(10) + world.random.up_to(secs(15));
    world.run_for(time);
}

pub(crate) fn forget_gaps(world: &mut World) {
    for host in &mut world.hosts {
        for tunnel in host.tunnels.values_mut() {
            tunnel.longest_gap = Duration::ZERO;
        }
    }
}

/// The longest that one of the two was without data, up to now.
pub(crate) fn gap(world: &World) -> Duration {
    gap_at(world, A).max(gap_at(world, B))
}

/// The same of one.
pub(crate) fn gap_at(world: &World, host: HostId) -> Duration {
    let tunnel = &world.hosts[host].tunnels[&(A + B - host)];
    let last = tunnel.received_data.map_or(secs(3600), |at| world.now - at);
    tunnel.longest_gap.max(last)
}

pub(crate) fn changes_since(world: &World, since: Instant) -> usize {
    let count = |x: HostId, y: HostId| {
        let changes = world.hosts[x].paths_changed.get(&y);
        changes.map_or(0, |c| c.iter().filter(|at| **at > since).count())
    };
    count(A, B).max(count(B, A))
}

#[test]
fn a_daemon_restarts_with_its_state_while_signaling_is_down() {
    for (seed, homes) in (0..).zip(HOMES) {
        for restarted in [A, B] {
            let mut world = connected(seed, homes, Some(TRAFFIC));
            world.signaling.up = false;
            world.kill(restarted);
            world.run_for(Duration::from_millis(700));
            world.start_at(restarted, Duration::ZERO);
            let begin = world.now;
            world.run_for(Duration::from_millis(1));
            let back = world.run_till(secs(3), STEP, |w| w.is_up(A, B) && received_since(w, begin));
            assert!(back.is_some(), "{homes:?}\n{}", world.describe());
            // Both at rest on one path, and what they do not know of each other does not matter.
            world.run_for(secs(60));
            let agreed = world.agreed(A, B);
            assert_eq!(
                agreed,
                world.expected(A, B),
                "{homes:?}\n{}",
                world.describe()
            );
            // Signaling comes back, and changes nothing.
            world.signaling_up();
            world.settle(secs(10));
        }
    }
}

pub(crate) fn received_since(world: &World, since: Instant) -> bool {
    let of = |x: HostId, y: HostId| {
        let tunnel = &world.hosts[x].tunnels[&y];
        tunnel.received_data.is_some_and(|at| at > since)
    };
    of(A, B) && of(B, A)
}

#[test]
fn a_daemon_that_has_lost_its_state_comes_back_as_a_new_session() {
    for (seed, homes) in (100..).zip(HOMES) {
        for restarted in [A, B] {
            let mut world = connected(seed, homes, Some(TRAFFIC));
            world.kill(restarted);
            world.forget(restarted);
            world.start_at(restarted, secs(1));
            world.run_for(secs(1));
            let begin = world.now;
            let back = world.run_till(secs(5), STEP, |w| {
                w.is_settled() && received_since(w, begin)
            });
            assert!(back.is_some(), "{homes:?}\n{}", world.describe());
        }
    }
}

#[test]
fn both_daemons_restart_at_once() {
    for (seed, homes) in (150..).zip(HOMES) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        for host in [A, B] {
            world.kill(host);
            world.forget(host);
            let after = world.random.up_to(secs(1));
            world.start_at(host, after);
        }
        world.run_for(secs(1));
        world.settle(secs(10));
    }
}

#[test]
fn a_router_reboots() {
    for (seed, homes) in (200..).zip(HOMES) {
        for router in [0, 1] {
            let mut world = connected(seed, homes, Some(TRAFFIC));
            forget_gaps(&mut world);
            world.network.routers[router].reboot();
            world.run_for(secs(20));
            let gap = gap(&world);
            assert!(gap <= RECOVERY, "{gap:?} {homes:?}\n{}", world.describe());
            // A port-restricted one is found again once STUN has told of its new port.
            world.settle(secs(60));
        }
    }
}

#[test]
fn a_host_roams() {
    for (seed, homes) in (300..).zip(HOMES) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        forget_gaps(&mut world);
        roam(&mut world, A, homes.0);
        world.run_for(secs(20));
        let gap = gap(&world);
        assert!(gap <= RECOVERY, "{gap:?} {homes:?}\n{}", world.describe());
        world.settle(secs(60));
    }
}

/// The host leaves its home for another one.
fn roam(world: &mut World, id: HostId, behavior: Behavior) {
    let realm = world.network.add_realm(Duration::from_micros(300));
    let external = [203, 0, 113, 150].into();
    world
        .network
        .add_router(realm, INTERNET, Some(external), behavior);
    let address = IpAddr::from([192, 168, 178, 20]);
    let interface = &mut world.hosts[id].interfaces[0];
    let index = interface.index;
    let before = std::mem::replace(&mut interface.addresses, vec![address]);
    interface.realm = realm;
    for gone in before {
        world.network.detach(gone, Attached::Host(id, index));
    }
    world
        .network
        .attach(realm, address, Attached::Host(id, index));
    let (now, addresses) = (world.now, world.hosts[id].addresses());
    let relays: Vec<_> = world.hosts[id].relays.keys().copied().collect();
    let node = world.hosts[id].node.as_mut().unwrap();
    node.handle_addresses(&addresses, now);
    node.handle_network_change(now);
    // Sockets on an address that is gone fail at once.
    for relay in relays {
        node.handle_relay_closed(relay, wice::core::turn::Failure::ConnectionClosed, now);
    }
    world.drain(id);
}

#[test]
fn a_direct_path_is_cut_and_comes_back() {
    for (seed, homes) in (400..).zip(HOMES).take(4) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        assert_eq!(world.agreed(A, B), Some(Kind::Direct));
        forget_gaps(&mut world);
        cut(&mut world, false);
        world.run_for(secs(30));
        let gap = gap(&world);
        assert!(gap <= RECOVERY, "{gap:?} {homes:?}\n{}", world.describe());
        assert_eq!(
            world.agreed(A, B),
            Some(Kind::Relayed),
            "{}",
            world.describe()
        );
        world.run_for(secs(100));
        world.cuts.clear();
        world.settle(secs(60));
        assert_eq!(world.agreed(A, B), Some(Kind::Direct));
    }
}

pub(crate) fn cut(world: &mut World, wireguard_only: bool) {
    world.cuts.push(Cut {
        between: (A, B),
        wireguard_only,
    });
}

#[test]
fn a_path_that_passes_checks_but_not_wireguard_is_left() {
    for (seed, homes) in (500..).zip(HOMES).take(4) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        forget_gaps(&mut world);
        cut(&mut world, true);
        world.run_for(secs(60));
        let gap = gap(&world);
        assert!(gap <= secs(30), "{gap:?} {homes:?}\n{}", world.describe());
        assert_eq!(
            world.agreed(A, B),
            Some(Kind::Relayed),
            "{}",
            world.describe()
        );
        forget_gaps(&mut world);
        world.run_for(secs(120));
        assert!(
            crate::events::gap(&world) <= secs(1),
            "{}",
            world.describe()
        );
    }
}

#[test]
fn a_path_that_never_passes_wireguard_is_left() {
    for (seed, homes) in (550..).zip(HOMES).take(4) {
        let mut world = internet(seed, Instant::now());
        home(&mut world, homes.0);
        home(&mut world, homes.1);
        cut(&mut world, true);
        for id in [A, B] {
            world.hosts[id].traffic = Some(TRAFFIC);
            world.start_at(id, Duration::ZERO);
        }
        let up = world.run_till(secs(32), STEP, |w| w.is_up(A, B));
        assert!(up.is_some(), "{}", world.describe());
    }
}

#[test]
fn a_relay_dies() {
    for (seed, homes) in (600..).zip(MOMENTS.flat_map(|_| HOMES)) {
        let mut world = internet(seed, Instant::now());
        world.add_turn(&[IpAddr::from([198, 51, 100, 11])]);
        home(&mut world, homes.0);
        home(&mut world, homes.1);
        begin(&mut world, Some(TRAFFIC));
        pass_some_time(&mut world);
        forget_gaps(&mut world);
        // Whichever of the two carries them.
        let path = world.path(A, B).unwrap().pair;
        let second = IpAddr::from([198, 51, 100, 11]);
        let ends = [path.local.ip(), path.remote.ip()];
        let dead = usize::from(ends.contains(&second));
        world.relays[dead].alive = false;
        world.run_for(secs(30));
        let gap = gap(&world);
        assert!(gap <= RECOVERY, "{gap:?} {homes:?}\n{}", world.describe());
    }
}

#[test]
fn a_relay_restarts_and_knows_nobody() {
    for (seed, homes) in (800..).zip(MOMENTS.flat_map(|_| &HOMES[4..])) {
        let mut world = connected(seed, *homes, Some(TRAFFIC));
        pass_some_time(&mut world);
        forget_gaps(&mut world);
        world.relays[0].server.restart();
        world.run_for(secs(30));
        // The silence is noticed, the server asked, and a new allocation advertised.
        let gap = gap(&world);
        assert!(gap <= RECOVERY, "{gap:?} {homes:?}\n{}", world.describe());
        world.settle(secs(30));
    }
}

/// Both ways, and one way: then every second begins with a probe.
#[test]
fn ten_percent_loss_moves_no_path() {
    let both_ways = [true, false].into_iter();
    let cases = both_ways.flat_map(|both| HOMES.map(|homes| (homes, both)));
    for (seed, (homes, both)) in (700..).zip(cases) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        if !both {
            for tunnel in world.hosts[B].tunnels.values_mut() {
                tunnel.set_traffic(None, world.now);
            }
        }
        world.conditions = Conditions {
            loss: 0.1,
            ..Conditions::default()
        };
        let since = world.now;
        world.run_for(secs(300));
        let changes = changes_since(&world, since);
        assert!(changes <= 1, "{changes} {homes:?}\n{}", world.describe());
    }
}

#[test]
fn idle_paths_stay_and_cost_little() {
    for (seed, homes) in (800..).zip(HOMES) {
        let mut world = connected(seed, homes, None);
        world.run_for(secs(60));
        let (since, before) = (world.now, world.hosts[A].requests);
        world.run_for(secs(600));
        assert_eq!(
            changes_since(&world, since),
            0,
            "{homes:?}\n{}",
            world.describe()
        );
        let a_minute = (world.hosts[A].requests - before) / 10;
        // The selected path, two standbys, and STUN: each every 20 to 24 s, with the other side's.
        assert!(
            a_minute <= 20,
            "{a_minute} requests a minute: {}",
            world.describe()
        );
        for (x, y) in [(A, B), (B, A)] {
            let now = world.now;
            let tunnel = world.hosts[x].tunnels.get_mut(&y).unwrap();
            tunnel.set_traffic(Some(TRAFFIC), now);
            world.drain(x);
        }
        let woken = world.now;
        let flows = world.run_till(secs(1), STEP, |w| received_since(w, woken));
        assert!(flows.is_some(), "{homes:?}\n{}", world.describe());
    }
}

/// The provider gives a home another address while its tunnel is in use: traffic is back as after any
/// loss of a path, and direct as soon as the new address has been told.
#[test]
fn a_home_is_renumbered() {
    for (seed, homes) in (850..).zip(HOMES).take(4) {
        for router in [0, 1] {
            let mut world = connected(seed, homes, Some(TRAFFIC));
            // Publishing is patient with who changes often.
            world.run_for(secs(200));
            forget_gaps(&mut world);
            renumber(&mut world, router);
            let renumbered = world.now;
            let direct = world.run_till(secs(60), STEP, |w| {
                w.now > renumbered + RECOVERY && w.agreed(A, B) == Some(Kind::Direct)
            });
            let gap = gap(&world);
            println!("renumbered {router}: direct after {direct:?}, gap {gap:?}");
            assert!(gap <= secs(8), "{gap:?} {homes:?}\n{}", world.describe());
            assert!(
                direct.is_some_and(|time| time <= secs(10)),
                "{direct:?} {homes:?}\n{}",
                world.describe()
            );
        }
    }
}

fn renumber(world: &mut World, router: usize) {
    let other: std::net::Ipv4Addr = [203, 0, 113, 180].into();
    let before = world.network.routers[router].external.replace(other);
    world.network.routers[router].reboot();
    let internet = &mut world.network.realms[INTERNET].at;
    internet.remove(&IpAddr::from(before.unwrap()));
    internet.insert(other.into(), Attached::Router(router));
}

/// A daemon that restarts without traffic has its session back as soon as its path, whichever side
/// begins handshakes.
#[test]
fn a_daemon_restarts_while_the_tunnel_is_idle() {
    for (seed, homes) in (870..).zip(HOMES) {
        for restarted in [A, B] {
            let mut world = connected(seed, homes, None);
            world.run_for(secs(60));
            world.kill(restarted);
            world.run_for(Duration::from_millis(700));
            world.start_at(restarted, Duration::ZERO);
            let begin = world.now;
            world.run_for(Duration::from_millis(1));
            let role = world.hosts[restarted]
                .view(A + B - restarted, world.now)
                .and_then(|peer| peer.role);
            let other = A + B - restarted;
            let path = world.run_till(secs(5), STEP, |w| w.path(restarted, other).is_some());
            let up = world.run_till(secs(5), STEP, |w| {
                w.hosts[restarted].tunnels[&other].is_up()
            });
            println!("restarted {role:?}: path after {path:?}, up {up:?} later");
            assert!(
                up.is_some_and(|time| time <= Duration::from_millis(200)),
                "{up:?} {:?} {homes:?}\n{}",
                world.now - begin,
                world.describe()
            );
        }
    }
}
