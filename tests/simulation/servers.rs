//! Servers that go away under the nodes: what is said of it, and how soon.

use std::time::Duration;

use wice::core::node::NodeSnapshot;
use wice::core::reason::{Code, Facts, reason};
use wice_signaling::protocol::{Mapping, RelayTransport};

use crate::checks::Kind;
use crate::events::*;
use crate::network::Attached;
use crate::topology::*;
use crate::turn_server::PASSWORD;
use crate::world::{STEP, World};

const fn secs(value: u64) -> Duration {
    Duration::from_secs(value)
}

fn snapshot(world: &World) -> NodeSnapshot {
    world.hosts[A].node.as_ref().unwrap().snapshot(world.now)
}

/// The reason that A shows for B.
fn code(world: &World) -> Code {
    let node = snapshot(world);
    let peer = world.hosts[A].view(B, world.now).unwrap();
    let facts = Facts {
        node: &node,
        peer: &peer,
        port: 51821,
        relay_only: false,
        native: None,
        port_mapping: None,
        attached: None,
        lacks_us: false,
        checking_for: peer.looking,
        last_seen: peer.last_seen,
        handshake_age: None,
    };
    reason(&facts).code
}

#[test]
fn the_only_relay_dies_and_that_is_what_is_said() {
    for (seed, homes) in (1500..).zip([(SYMMETRIC, SYMMETRIC), (SYMMETRIC, PORT_RESTRICTED)]) {
        let mut world = connected(seed, homes, Some(TRAFFIC));
        world.run_for(secs(30));
        world.relays[0].alive = false;
        let gone = world.run_till(secs(6), STEP, |w| w.path(A, B).is_none());
        assert!(gone.is_some(), "{homes:?}\n{}", world.describe());
        let known = world.run_till(secs(1), STEP, |w| code(w) == Code::RelayUnavailable);
        assert!(known.is_some(), "{:?}\n{}", code(&world), world.describe());
        // It is looked for paths since they are gone, not since the daemon's start.
        let looking = world.hosts[A].view(B, world.now).unwrap().looking;
        assert!(looking.is_some_and(|time| time <= secs(2)), "{looking:?}");
        assert!(snapshot(&world).relays.iter().all(|r| r.relayed.is_none()));
        world.run_for(secs(30));
        assert_eq!(code(&world), Code::RelayUnavailable);
        world.relays[0].alive = true;
        world.settle(secs(60));
    }
}

#[test]
fn a_relay_that_answers_late_is_not_called_dead() {
    let mut world = connected(1510, (SYMMETRIC, SYMMETRIC), Some(TRAFFIC));
    world.conditions.loss = 0.1;
    for _ in 0..600 {
        world.run_for(Duration::from_millis(500));
        let relayed = snapshot(&world).relays.iter().any(|r| r.relayed.is_some());
        assert!(relayed, "{}", world.describe());
    }
}

/// UDP is blocked under a relayed pair: the relay is reached over TCP or TLS instead.
#[test]
fn udp_is_blocked_later() {
    for seed in 1520..1524 {
        let mut world = connected(seed, (SYMMETRIC, SYMMETRIC), Some(TRAFFIC));
        forget_gaps(&mut world);
        world.network.routers[0].behavior = UDP_BLOCKED;
        let begin = world.now;
        let back = world.run_till(secs(15), STEP, |w| {
            w.now > begin + secs(5) && received_since(w, begin + secs(5))
        });
        assert!(back.is_some(), "{}", world.describe());
        println!("back after {back:?}");
        world.run_for(secs(60));
        assert_eq!(
            world.agreed(A, B),
            Some(Kind::Relayed),
            "{}",
            world.describe()
        );
    }
}

/// And let out again: the path is back on UDP in half a minute, with nothing lost for it.
#[test]
fn udp_is_let_out_again() {
    for (seed, blocked) in (1530..).zip([secs(60), secs(300), secs(1000)]) {
        let mut world = connected(seed, (SYMMETRIC, SYMMETRIC), Some(TRAFFIC));
        let open = world.network.routers[0].behavior;
        world.network.routers[0].behavior = UDP_BLOCKED;
        world.run_for(blocked);
        let transport = |world: &World| world.path(A, B)?.pair.relay_transport;
        let blocked = transport(&world);
        assert!(blocked.is_some_and(|transport| transport != RelayTransport::Udp));
        forget_gaps(&mut world);
        world.network.routers[0].behavior = open;
        let back = world.run_till(secs(35), STEP, |w| {
            transport(w) == Some(RelayTransport::Udp)
        });
        assert!(back.is_some(), "{}", world.describe());
        println!("on UDP after {back:?}");
        assert!(
            gap(&world) <= secs(1),
            "{:?}\n{}",
            gap(&world),
            world.describe()
        );
    }
}

#[test]
fn stun_that_is_down_is_no_blocked_udp() {
    let without_stun = |seed| {
        let mut world = internet(seed, std::time::Instant::now());
        for server in std::mem::take(&mut world.servers.0) {
            world.network.detach(server.address.ip(), Attached::Stun);
            world.servers.0.push(server);
        }
        world
    };
    let run = |world: &mut World| {
        for id in [A, B] {
            world.hosts[id].traffic = Some(TRAFFIC);
            world.start_at(id, Duration::ZERO);
        }
        world.run_for(secs(60));
    };
    for (seed, (homes, said)) in (1530..).zip([
        ((FULL_CONE, FULL_CONE), Code::StunUnreachable),
        ((SYMMETRIC, SYMMETRIC), Code::StunUnreachable),
        ((UDP_BLOCKED, FULL_CONE), Code::UdpBlockedHere),
    ]) {
        let mut world = without_stun(seed);
        home(&mut world, homes.0);
        home(&mut world, homes.1);
        run(&mut world);
        assert_eq!(code(&world), said, "{homes:?}\n{}", world.describe());
    }
    // No relay either: a peer that answers is witness enough.
    let mut world = without_stun(1540);
    world.servers.1.clear();
    public(&mut world);
    public(&mut world);
    run(&mut world);
    assert_eq!(world.agreed(A, B), Some(Kind::Direct));
    assert_eq!(snapshot(&world).nat.mapping, Mapping::Unknown);
}

/// Two homes that only a relay can join, which refuses their credentials for ten minutes.
fn refused_for_long(seed: u64) -> World {
    let mut world = internet(seed, std::time::Instant::now());
    world.relays[0].server.set_password("another secret");
    for behavior in [SYMMETRIC, SYMMETRIC] {
        let id = home(&mut world, behavior);
        world.hosts[id].traffic = Some(TRAFFIC);
        world.start_at(id, Duration::ZERO);
    }
    world.run_for(secs(600));
    assert!(world.path(A, B).is_none());
    assert_eq!(code(&world), Code::RelayUnavailable);
    world
}

#[test]
fn a_relay_that_refused_the_credentials_comes_back_by_itself() {
    let mut world = refused_for_long(1550);
    world.relays[0].server.set_password(PASSWORD);
    let back = world.run_till(secs(31), STEP, |w| w.path(A, B).is_some());
    assert!(back.is_some(), "{}", world.describe());
    world.settle(secs(30));
}

#[test]
fn other_credentials_are_tried_at_once() {
    let mut world = refused_for_long(1551);
    world.relays[0].server.set_password("a third");
    let mut servers = world.servers.1.clone();
    for server in &mut servers {
        server.password = "a third".into();
    }
    let now = world.now;
    for id in [A, B] {
        let node = world.hosts[id].node.as_mut().unwrap();
        node.handle_relay_servers(&servers, now);
        world.drain(id);
    }
    let back = world.run_till(secs(2), STEP, |w| w.path(A, B).is_some());
    assert!(back.is_some(), "{}", world.describe());
}
