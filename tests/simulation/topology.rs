//! Worlds: the smallest by hand, and any by a seed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::network::{Behavior, Dependence, HostId, INTERNET, RealmId};
use crate::random::Random;
use crate::world::{Conditions, World};

const LAN: Duration = Duration::from_micros(300);
const CARRIER: Duration = Duration::from_millis(4);

/// The kinds of RFC 4787's matrix, by the usual names.
pub(crate) const FULL_CONE: Behavior = nat(Dependence::Endpoint, Dependence::Endpoint);
pub(crate) const ADDRESS_RESTRICTED: Behavior = nat(Dependence::Endpoint, Dependence::Address);
pub(crate) const PORT_RESTRICTED: Behavior = nat(Dependence::Endpoint, Dependence::AddressPort);
pub(crate) const ADDRESS_DEPENDENT: Behavior = nat(Dependence::Address, Dependence::AddressPort);
pub(crate) const SYMMETRIC: Behavior = nat(Dependence::AddressPort, Dependence::AddressPort);
pub(crate) const UDP_BLOCKED: Behavior = Behavior {
    udp_blocked: true,
    ..PORT_RESTRICTED
};

const fn nat(mapping: Dependence, filtering: Dependence) -> Behavior {
    Behavior {
        mapping,
        filtering,
        expiry: Duration::from_secs(30),
        preserve: true,
        hairpin: false,
        inbound_refresh: true,
        udp_blocked: false,
    }
}

fn servers(world: &mut World, v6: bool) {
    world.add_stun(SocketAddr::from(([198, 51, 100, 1], 3478)));
    world.add_stun(SocketAddr::from(([198, 51, 100, 2], 3478)));
    let mut turn = vec![IpAddr::from([198, 51, 100, 10])];
    if v6 {
        for last in [1, 2] {
            world.add_stun(SocketAddr::new(v6_address(0xffff, last), 3478));
        }
        turn.push(v6_address(0xffff, 10));
    }
    world.add_turn(&turn);
}

fn v6_address(site: u16, last: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, last).into()
}

/// An internet with two STUN servers and a relay.
pub(crate) fn internet(seed: u64, start: Instant) -> World {
    let mut world = World::new(seed, start);
    servers(&mut world, false);
    world
}

/// A host at a public address of its own.
pub(crate) fn public(world: &mut World) -> HostId {
    let last = u8::try_from(world.hosts.len() + 10).unwrap();
    world.add_host(vec![(INTERNET, vec![IpAddr::from([192, 0, 2, last])])])
}

/// A home behind a NAT of its own, and a host in it.
pub(crate) fn home(world: &mut World, behavior: Behavior) -> HostId {
    let realm = world.network.add_realm(LAN);
    let last = u8::try_from(world.network.routers.len() + 1).unwrap();
    let external = Ipv4Addr::new(203, 0, 113, last);
    world
        .network
        .add_router(realm, INTERNET, Some(external), behavior);
    let inside = u8::try_from(10 + world.hosts.len()).unwrap();
    world.add_host(vec![(realm, vec![IpAddr::from([192, 168, 1, inside])])])
}

/// Draws a world.
pub(crate) fn draw(seed: u64, start: Instant) -> World {
    let mut world = World::new(seed, start);
    let v6_internet = world.random.chance(0.35);
    servers(&mut world, v6_internet);
    world.network.realms[INTERNET].delay = Duration::from_millis(2 + world.random.below(80) as u64);
    draw_conditions(&mut world);
    let count = if world.random.chance(0.1) {
        3 + world.random.below(4)
    } else {
        2
    };
    let mut drawing = Drawing {
        v6_internet,
        homes: Vec::new(),
        carrier: None,
        sites: 0,
    };
    for _ in 0..count {
        drawing.draw_host(&mut world);
    }
    let traffic = [None, Some(300), Some(1000)];
    for id in 0..count {
        world.hosts[id].traffic = world.random.pick(&traffic).map(Duration::from_millis);
        let after = world.random.up_to(Duration::from_secs(2));
        world.start_at(id, after);
    }
    world
}

fn draw_conditions(world: &mut World) {
    let random = &mut world.random;
    world.conditions = Conditions {
        loss: random.pick(&[0.0, 0.0, 0.02, 0.1]),
        duplication: random.pick(&[0.0, 0.0, 0.05]),
        jitter: Duration::from_millis(random.pick(&[0, 0, 2, 30])),
    };
    world.signaling.delay = Duration::from_millis(5 + random.below(100) as u64);
    world.signaling.jitter = Duration::from_millis(random.pick(&[0, 20, 500]));
    world.signaling.late = random.pick(&[0.0, 0.0, 0.2]);
    world.signaling.duplication = random.pick(&[0.0, 0.1]);
}

/// What has been built of a world so far.
struct Drawing {
    v6_internet: bool,
    homes: Vec<(RealmId, u16)>,
    carrier: Option<RealmId>,
    sites: u16,
}

impl Drawing {
    fn draw_host(&mut self, world: &mut World) {
        let mut interfaces = vec![self.draw_interface(world, true)];
        if world.random.chance(0.08) {
            interfaces.push(self.draw_interface(world, false));
        }
        world.add_host(interfaces);
    }

    fn draw_interface(&mut self, world: &mut World, may_join: bool) -> (RealmId, Vec<IpAddr>) {
        if may_join && !self.homes.is_empty() && world.random.chance(0.12) {
            let index = world.random.below(self.homes.len());
            let (realm, site) = self.homes[index];
            return (realm, self.addresses_in(world, realm, site));
        }
        self.sites += 1;
        let site = self.sites;
        let behavior = draw_behavior(&mut world.random);
        let last = u8::try_from(site).unwrap();
        match world.random.below(10) {
            0 => (INTERNET, self.public_addresses(world, site)),
            1 => {
                let realm = world.network.add_realm(LAN);
                let firewall = Behavior {
                    filtering: world
                        .random
                        .pick(&[Dependence::Address, Dependence::AddressPort]),
                    ..behavior
                };
                world.network.add_router(realm, INTERNET, None, firewall);
                (realm, self.public_addresses(world, site))
            }
            2 | 3 => {
                let carrier = self.carrier(world);
                let realm = world.network.add_realm(LAN);
                let external = Ipv4Addr::new(100, 64, 0, last);
                world
                    .network
                    .add_router(realm, carrier, Some(external), behavior);
                self.homes.push((realm, site));
                (realm, self.addresses_in(world, realm, site))
            }
            _ => {
                let realm = world.network.add_realm(LAN);
                let external = Ipv4Addr::new(203, 0, 113, last);
                world
                    .network
                    .add_router(realm, INTERNET, Some(external), behavior);
                self.homes.push((realm, site));
                (realm, self.addresses_in(world, realm, site))
            }
        }
    }

    fn carrier(&mut self, world: &mut World) -> RealmId {
        if let Some(carrier) = self.carrier {
            return carrier;
        }
        let carrier = world.network.add_realm(CARRIER);
        let behavior = Behavior {
            udp_blocked: false,
            ..draw_behavior(&mut world.random)
        };
        let external = Ipv4Addr::new(203, 0, 113, 200);
        world
            .network
            .add_router(carrier, INTERNET, Some(external), behavior);
        self.carrier = Some(carrier);
        carrier
    }

    /// One, two or three addresses' worth of families, the same private ones in every home.
    fn addresses_in(&self, world: &mut World, realm: RealmId, site: u16) -> Vec<IpAddr> {
        let mut last = 2 + u8::try_from(world.random.below(2)).unwrap();
        let free = |last: u8| {
            let at = &world.network.realms[realm].at;
            let v4 = IpAddr::from([192, 168, 1, last]);
            !at.contains_key(&v4) && !at.contains_key(&v6_address(site, last.into()))
        };
        while !free(last) {
            last += 1;
        }
        let v4 = IpAddr::from([192, 168, 1, last]);
        self.families(world, v4, v6_address(site, last.into()))
    }

    fn public_addresses(&self, world: &mut World, site: u16) -> Vec<IpAddr> {
        let v4 = IpAddr::from([192, 0, 2, u8::try_from(site).unwrap()]);
        self.families(world, v4, v6_address(site, 1))
    }

    fn families(&self, world: &mut World, v4: IpAddr, v6: IpAddr) -> Vec<IpAddr> {
        match world.random.below(10) {
            0..4 if self.v6_internet => vec![v6, v4],
            4 if self.v6_internet => vec![v6],
            _ => vec![v4],
        }
    }
}

fn draw_behavior(random: &mut Random) -> Behavior {
    let dependences = [
        Dependence::Endpoint,
        Dependence::Address,
        Dependence::AddressPort,
    ];
    let mapping = if random.chance(0.6) {
        Dependence::Endpoint
    } else {
        random.pick(&dependences)
    };
    Behavior {
        mapping,
        filtering: random.pick(&dependences),
        expiry: Duration::from_secs(random.pick(&[30, 60, 180])),
        preserve: random.chance(0.5),
        hairpin: random.chance(0.4),
        inbound_refresh: random.chance(0.5),
        udp_blocked: random.chance(0.1),
    }
}
