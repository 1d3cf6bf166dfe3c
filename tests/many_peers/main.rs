//! One node with a thousand peers in the simulated internet: every path is found, the pacing holds
//! (each host is audited for it), a peer costs little memory, and a timeout touches only what is due.

#![allow(clippy::unwrap_used, reason = "a test's helpers")]
#![allow(
    dead_code,
    reason = "the simulation's modules, of which this uses a part"
)]

#[path = "../simulation/checks.rs"]
mod checks;
#[path = "../simulation/daemon.rs"]
mod daemon;
#[path = "../simulation/host.rs"]
mod host;
#[path = "../simulation/network.rs"]
mod network;
#[path = "../simulation/oracle.rs"]
mod oracle;
#[path = "../simulation/random.rs"]
mod random;
#[path = "../simulation/topology.rs"]
mod topology;
#[path = "../simulation/turn_server.rs"]
mod turn_server;
#[path = "../simulation/wireguard.rs"]
mod wireguard;
#[path = "../simulation/world.rs"]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use network::{Behavior, HostId, INTERNET};
use topology::*;
use world::World;

const PEERS: usize = 1000;
/// How often it is looked at whether all have a path.
const STEP: Duration = Duration::from_millis(500);
const HUB: HostId = 0;
/// Bytes a peer may take of the hub's node.
const MEMORY: usize = 16 * 1024;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is the system allocator's; the counter is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn a_thousand_peers() {
    let mut world = star(Instant::now());
    let (begin, wall) = (world.now, Instant::now());
    let found = world.run_till(Duration::from_secs(120), STEP, |w| paths(w) == PEERS);
    println!("{} paths after {found:?}", paths(&world));
    let settled = world.run_till(Duration::from_secs(120), STEP, World::is_settled);
    println!(
        "as the oracle has it {settled:?} later, {:?} of real time",
        wall.elapsed()
    );
    println!("{:.0} requests a second", requests(&mut world, begin));
    assert!(found.is_some() && settled.is_some(), "{}", odd(&world));

    world.run_for(Duration::from_secs(120));
    let (rest, work) = (world.now, work(&world));
    world.hosts[HUB].requests = 0;
    world.hosts[HUB].timeouts.clear();
    world.run_for(Duration::from_secs(60));
    let rate = requests(&mut world, rest);
    let work = self::work(&world) - work;
    let timeouts = std::mem::take(&mut world.hosts[HUB].timeouts);
    println!("at rest {rate:.0} requests a second, {work} looks at agents in {timeouts:?}");
    assert!(rate <= 100.0, "more than half of what the pacing allows");
    assert!(
        paths(&world) == PEERS && world.is_settled(),
        "{}",
        odd(&world)
    );
    assert!(memory(&mut world) <= MEMORY);
}

/// What a peer costs while all are being checked.
#[test]
fn memory_while_checking() {
    let mut world = star(Instant::now());
    world.run_for(Duration::from_secs(8));
    assert!(memory(&mut world) <= MEMORY);
}

fn requests(world: &mut World, since: Instant) -> f64 {
    let requests = std::mem::take(&mut world.hosts[HUB].requests);
    requests as f64 / (world.now - since).as_secs_f64()
}

fn work(world: &World) -> u64 {
    let node = world.hosts[HUB].node.as_ref().unwrap();
    node.counters().agents_touched
}

fn paths(world: &World) -> usize {
    let peers = world.hosts[HUB].node.as_ref().map(|node| node.paths());
    peers.unwrap_or(0)
}

/// What goes when the hub's node goes, a peer.
fn memory(world: &mut World) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    world.hosts[HUB].node = None;
    let bytes = (before - LIVE.load(Ordering::Relaxed)) / PEERS;
    println!("{bytes} B a peer");
    bytes
}

/// The peers that are not as the oracle has them.
fn odd(world: &World) -> String {
    let all = world.describe();
    let told = all
        .lines()
        .filter(|line| !line.starts_with("router") && !line.starts_with("host"));
    let odd = told.filter(|line| {
        !line.ends_with("agreed Some(Direct), up true") || line.contains("oracle Some(Relayed)")
    });
    let odd = odd.filter(|line| !line.ends_with("Relayed), agreed Some(Relayed), up true"));
    odd.take(60).collect::<Vec<_>>().join("\n")
}

/// A hub behind a port-restricted NAT, and peers behind NATs of all kinds.
fn star(start: Instant) -> World {
    let mut world = internet(1, start);
    world.hub = Some(HUB);
    home(&mut world, PORT_RESTRICTED);
    world.start_at(HUB, Duration::ZERO);
    let kinds = [
        FULL_CONE,
        ADDRESS_RESTRICTED,
        PORT_RESTRICTED,
        ADDRESS_DEPENDENT,
        SYMMETRIC,
        UDP_BLOCKED,
    ];
    for peer in 0..PEERS {
        let id = distant_home(&mut world, peer, kinds[peer % kinds.len()]);
        let after = world.random.up_to(Duration::from_secs(2));
        world.start_at(id, after);
    }
    world
}

fn distant_home(world: &mut World, number: usize, behavior: Behavior) -> HostId {
    let realm = world.network.add_realm(Duration::from_micros(300));
    let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
    let external = Ipv4Addr::new(45, 1, high, low);
    world
        .network
        .add_router(realm, INTERNET, Some(external), behavior);
    let inside = IpAddr::from([192, 168, high, low.max(2)]);
    world.add_host(vec![(realm, vec![inside])])
}
