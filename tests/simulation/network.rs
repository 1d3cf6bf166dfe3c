//! Realms of addresses, and the routers between them: NATs as mapping × filtering × expiry, and
//! stateful firewalls. A datagram is routed in two steps: out to the realm of its destination when it
//! is sent, and in through that realm's routers when it arrives.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::random::Random;

pub(crate) type RealmId = usize;
pub(crate) type RouterId = usize;
pub(crate) type HostId = usize;

/// The realm in which the servers are.
pub(crate) const INTERNET: RealmId = 0;

/// RFC 4787 §4.1 and §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dependence {
    Endpoint,
    Address,
    AddressPort,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Behavior {
    pub(crate) mapping: Dependence,
    pub(crate) filtering: Dependence,
    pub(crate) expiry: Duration,
    /// Whether a mapping keeps the inner port if it is free. (A symmetric NAT that did would not be
    /// one: it never does.)
    pub(crate) preserve: bool,
    pub(crate) hairpin: bool,
    /// Whether inbound packets keep a mapping alive as outbound ones do (RFC 4787 §4.3).
    pub(crate) inbound_refresh: bool,
    pub(crate) udp_blocked: bool,
}

/// Who is at an address of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attached {
    Host(HostId, u32),
    Router(RouterId),
    Stun,
    Turn(usize),
}

pub(crate) struct Realm {
    pub(crate) at: BTreeMap<IpAddr, Attached>,
    pub(crate) uplink: Option<RouterId>,
    pub(crate) delay: Duration,
}

type MapKey = (SocketAddr, Option<IpAddr>, Option<u16>);

struct Mapped {
    external: SocketAddr,
    used: Instant,
}

pub(crate) struct Router {
    pub(crate) inner: RealmId,
    pub(crate) outer: RealmId,
    /// `None`: IPv4 passes untranslated, as IPv6 always does, but filtered.
    pub(crate) external: Option<Ipv4Addr>,
    pub(crate) behavior: Behavior,
    mappings: BTreeMap<MapKey, Mapped>,
    by_external: BTreeMap<SocketAddr, MapKey>,
    holes: BTreeMap<(SocketAddr, SocketAddr), Instant>,
    avoid_preserved: bool,
}

/// Where a datagram comes to in the first step.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    pub(crate) realm: RealmId,
    pub(crate) source: SocketAddr,
    pub(crate) delay: Duration,
}

#[derive(Default)]
pub(crate) struct Network {
    pub(crate) realms: Vec<Realm>,
    pub(crate) routers: Vec<Router>,
}

impl Network {
    pub(crate) fn add_realm(&mut self, delay: Duration) -> RealmId {
        self.realms.push(Realm {
            at: BTreeMap::new(),
            uplink: None,
            delay,
        });
        self.realms.len() - 1
    }

    pub(crate) fn add_router(
        &mut self,
        inner: RealmId,
        outer: RealmId,
        external: Option<Ipv4Addr>,
        behavior: Behavior,
    ) -> RouterId {
        let id = self.routers.len();
        self.routers.push(Router {
            inner,
            outer,
            external,
            behavior,
            mappings: BTreeMap::new(),
            by_external: BTreeMap::new(),
            holes: BTreeMap::new(),
            avoid_preserved: false,
        });
        self.realms[inner].uplink = Some(id);
        if let Some(external) = external {
            self.realms[outer]
                .at
                .insert(external.into(), Attached::Router(id));
        }
        id
    }

    /// Puts somebody at an address, and the routes to it where routers do not translate.
    pub(crate) fn attach(&mut self, realm: RealmId, address: IpAddr, who: Attached) {
        let taken = self.realms[realm].at.insert(address, who);
        assert!(taken.is_none(), "{address} is taken in realm {realm}");
        let mut inner = realm;
        while let Some(router) = self.realms[inner].uplink {
            let outer = self.routers[router].outer;
            if self.routers[router].external.is_some() && address.is_ipv4() {
                return;
            }
            self.realms[outer]
                .at
                .insert(address, Attached::Router(router));
            inner = outer;
        }
    }

    pub(crate) fn detach(&mut self, address: IpAddr, who: Attached) {
        let mut left = Vec::new();
        for (id, realm) in self.realms.iter_mut().enumerate() {
            if realm.at.get(&address) == Some(&who) {
                realm.at.remove(&address);
                left.push(id);
            }
        }
        for realm in left {
            if let Some(router) = self.realms[realm].uplink {
                self.detach(address, Attached::Router(router));
            }
        }
    }

    /// First step: out of `realm` towards `to`. `None`: dropped on the way.
    pub(crate) fn depart(
        &mut self,
        realm: RealmId,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
        random: &mut Random,
    ) -> Option<Hop> {
        let mut hop = Hop {
            realm,
            source: from,
            delay: self.realms[realm].delay,
        };
        while !self.realms[hop.realm].at.contains_key(&to.ip()) {
            let router = &mut self.routers[self.realms[hop.realm].uplink?];
            let own = router.external.map(IpAddr::V4) == Some(to.ip());
            if own && !router.behavior.hairpin {
                return None;
            }
            hop.source = router.outbound(hop.source, to, now, random)?;
            hop.realm = router.outer;
            hop.delay += self.realms[hop.realm].delay;
        }
        Some(hop)
    }

    /// Second step: who gets it, in which realm, and to which address it is then sent.
    pub(crate) fn arrive(
        &mut self,
        realm: RealmId,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<(Attached, SocketAddr)> {
        let (mut realm, mut to) = (realm, to);
        loop {
            let who = *self.realms[realm].at.get(&to.ip())?;
            let Attached::Router(router) = who else {
                return Some((who, to));
            };
            let router = &mut self.routers[router];
            to = router.inbound(from, to, now)?;
            realm = router.inner;
        }
    }

    /// The routers between a realm and another one that is further out.
    pub(crate) fn chain(&self, from: RealmId, to: RealmId) -> Option<Vec<RouterId>> {
        let (mut at, mut chain) = (from, Vec::new());
        while at != to {
            let router = self.realms[at].uplink?;
            chain.push(router);
            at = self.routers[router].outer;
        }
        Some(chain)
    }
}

impl Router {
    /// A reboot: everything that was learned is gone, and ports are others than before.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
        self.by_external.clear();
        self.holes.clear();
        self.avoid_preserved = true;
    }

    fn outbound(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
        random: &mut Random,
    ) -> Option<SocketAddr> {
        if self.behavior.udp_blocked {
            return None;
        }
        let external = match self.external {
            Some(external) if from.is_ipv4() => self.translate(from, to, external, now, random),
            Some(_) | None => self.pass(from, now),
        };
        self.holes.insert((external, to), now);
        Some(external)
    }

    fn pass(&mut self, from: SocketAddr, now: Instant) -> SocketAddr {
        let key = (from, None, None);
        self.mappings.insert(
            key,
            Mapped {
                external: from,
                used: now,
            },
        );
        self.by_external.insert(from, key);
        from
    }

    fn translate(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        external: Ipv4Addr,
        now: Instant,
        random: &mut Random,
    ) -> SocketAddr {
        let key = match self.behavior.mapping {
            Dependence::Endpoint => (from, None, None),
            Dependence::Address => (from, Some(to.ip()), None),
            Dependence::AddressPort => (from, Some(to.ip()), Some(to.port())),
        };
        let expiry = self.behavior.expiry;
        if let Some(mapped) = self.mappings.get_mut(&key) {
            if now < mapped.used + expiry {
                mapped.used = now;
                return mapped.external;
            }
            let external = mapped.external;
            self.mappings.remove(&key);
            self.by_external.remove(&external);
            self.holes.retain(|(hole, _), _| *hole != external);
        }
        let keep = self.behavior.preserve
            && !self.avoid_preserved
            && self.behavior.mapping == Dependence::Endpoint;
        let mut port = if keep { from.port() } else { 0 };
        while port == 0
            || self
                .by_external
                .contains_key(&SocketAddr::new(external.into(), port))
        {
            port = 10_000 + u16::try_from(random.below(50_000)).unwrap();
        }
        let external = SocketAddr::new(external.into(), port);
        self.mappings.insert(
            key,
            Mapped {
                external,
                used: now,
            },
        );
        self.by_external.insert(external, key);
        external
    }

    fn inbound(&mut self, from: SocketAddr, to: SocketAddr, now: Instant) -> Option<SocketAddr> {
        if self.behavior.udp_blocked {
            return None;
        }
        let key = *self.by_external.get(&to)?;
        let mapped = self.mappings.get_mut(&key)?;
        let expiry = self.behavior.expiry;
        if now >= mapped.used + expiry {
            return None;
        }
        let open = |at: &Instant| now < *at + expiry;
        let passes = match self.behavior.filtering {
            Dependence::Endpoint => true,
            Dependence::Address => self
                .holes
                .iter()
                .any(|((hole, remote), at)| *hole == to && remote.ip() == from.ip() && open(at)),
            Dependence::AddressPort => self.holes.get(&(to, from)).is_some_and(open),
        };
        if !passes {
            return None;
        }
        if self.behavior.inbound_refresh {
            mapped.used = now;
            self.holes.insert((to, from), now);
        }
        Some(key.0)
    }
}
