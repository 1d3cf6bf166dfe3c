//! Knows what paths there are from the routers alone: the rule of RFC 4787's mapping and filtering
//! for two hosts, extended to chains of routers, common carriers and several interfaces.

use std::net::IpAddr;

use crate::network::{Attached, Dependence, HostId, INTERNET, RealmId, RouterId};
use crate::world::World;

/// What the routers of a chain do together.
#[derive(Clone, Debug)]
struct Chain {
    mapping: Dependence,
    /// Of each router, from the host outwards: how the chain up to it maps, and how it filters.
    levels: Vec<(Dependence, Dependence)>,
    blocked: bool,
}

impl World {
    /// Whether two hosts can talk without a relay.
    pub(crate) fn direct(&self, a: HostId, b: HostId) -> bool {
        let ends = |id: HostId| {
            let of = |i: &crate::host::Interface| {
                let realm = i.realm;
                i.addresses
                    .iter()
                    .map(move |ip| (realm, *ip))
                    .collect::<Vec<_>>()
            };
            self.hosts[id].interfaces.iter().flat_map(of)
        };
        let owns = |id, ip: IpAddr| ends(id).any(|(_, own)| own == ip);
        ends(a).any(|x| {
            ends(b).any(|y| {
                let outside = x.1.is_ipv4() == y.1.is_ipv4() && self.meet_outside(x, y);
                // What one sends to an address of its own never leaves it.
                outside || !owns(a, y.1) && !owns(b, x.1) && self.meet_inside(x, y)
            })
        })
    }

    /// Whether two hosts can talk through a relay.
    pub(crate) fn relayed(&self, a: HostId, b: HostId) -> bool {
        [true, false].into_iter().any(|v4| {
            let allocates = |id| self.allocates(id, v4);
            let sends = |id| allocates(id) || self.sends_out(id, v4);
            (allocates(a) && sends(b)) || (allocates(b) && sends(a))
        })
    }

    /// Whether a host gets a relayed address of a family: of those that it has itself, and IPv4 by
    /// way of IPv6 if it has no other.
    fn allocates(&self, id: HostId, v4: bool) -> bool {
        if !self.has_family(id, true) {
            return v4 && self.has_turn(false);
        }
        self.has_turn(v4) && self.has_family(id, v4)
    }

    fn has_turn(&self, v4: bool) -> bool {
        self.servers.1.iter().any(|s| s.address.is_ipv4() == v4)
    }

    fn has_family(&self, id: HostId, v4: bool) -> bool {
        self.hosts[id]
            .interfaces
            .iter()
            .any(|i| i.addresses.iter().any(|ip| ip.is_ipv4() == v4))
    }

    fn sends_out(&self, id: HostId, v4: bool) -> bool {
        self.hosts[id].interfaces.iter().any(|interface| {
            let family = interface.addresses.iter().any(|ip| ip.is_ipv4() == v4);
            family && !self.compose(interface.realm, INTERNET, v4).blocked
        })
    }

    /// By their own addresses, in one realm or outwards from one into the other's.
    fn meet_inside(&self, x: (RealmId, IpAddr), y: (RealmId, IpAddr)) -> bool {
        if x.1.is_ipv4() != y.1.is_ipv4() {
            return false;
        }
        let v4 = x.1.is_ipv4();
        let leads = |inner: (RealmId, IpAddr), outer: (RealmId, IpAddr)| {
            self.network.chain(inner.0, outer.0).is_some()
                && !self.compose(inner.0, outer.0, v4).blocked
                && !self.shadowed(inner, outer)
        };
        x.0 == y.0 || leads(x, y) || leads(y, x)
    }

    /// By the addresses at which the internet sees them.
    fn meet_outside(&self, x: (RealmId, IpAddr), y: (RealmId, IpAddr)) -> bool {
        let v4 = x.1.is_ipv4();
        let (Some(x_chain), Some(y_chain)) = (
            self.network.chain(x.0, INTERNET),
            self.network.chain(y.0, INTERNET),
        ) else {
            return false;
        };
        let common = x_chain.iter().find(|router| y_chain.contains(router));
        if let Some(first) = common {
            if !v4 {
                // Untranslated: they meet in the realm where their chains join.
                let realm = self.network.routers[*first].inner;
                return self.reach(&self.compose(x.0, realm, v4), &self.compose(y.0, realm, v4));
            }
            let outermost = x_chain.last().copied();
            if !outermost.is_some_and(|router| self.network.routers[router].behavior.hairpin) {
                return false;
            }
        }
        self.reach(
            &self.compose(x.0, INTERNET, v4),
            &self.compose(y.0, INTERNET, v4),
        )
    }

    /// Whether somebody else has `to`'s address on the way out.
    fn shadowed(&self, from: (RealmId, IpAddr), to: (RealmId, IpAddr)) -> bool {
        let mut realm = from.0;
        while realm != to.0 {
            let found = self.network.realms[realm].at.get(&to.1);
            if matches!(found, Some(Attached::Host(..))) {
                return true;
            }
            let Some(router) = self.network.realms[realm].uplink else {
                return true;
            };
            realm = self.network.routers[router].outer;
        }
        false
    }

    fn reach(&self, x: &Chain, y: &Chain) -> bool {
        !x.blocked && !y.blocked && (one_way(x, y) || one_way(y, x))
    }

    fn compose(&self, from: RealmId, to: RealmId, v4: bool) -> Chain {
        let mut chain = Chain {
            mapping: Dependence::Endpoint,
            levels: Vec::new(),
            blocked: false,
        };
        let routers: Vec<RouterId> = self.network.chain(from, to).unwrap_or_default();
        for router in routers {
            let router = &self.network.routers[router];
            let translates = v4 && router.external.is_some();
            if translates {
                chain.mapping = chain.mapping.max(router.behavior.mapping);
            }
            let level = (chain.mapping, router.behavior.filtering);
            chain.levels.push(level);
            chain.blocked |= router.behavior.udp_blocked;
        }
        chain
    }
}

/// Whether x's checks towards where STUN has seen y lead to a path.
fn one_way(x: &Chain, y: &Chain) -> bool {
    let fixed = |mapping: Dependence| mapping == Dependence::Endpoint;
    // They come in where y's own checks towards x have opened the same hole …
    let comes_in = y.levels.iter().all(|(mapping, filtering)| match filtering {
        Dependence::Endpoint => true,
        Dependence::Address => fixed(*mapping),
        Dependence::AddressPort => fixed(*mapping) && fixed(x.mapping),
    });
    // … and what y sends back does, though it may be from another port: then no answer is from where
    // the check went to, and one of them has to keep to one port a remote address.
    let by_port = |level: &(Dependence, Dependence)| level.1 == Dependence::AddressPort;
    let one_keeps = x.mapping.min(y.mapping) != Dependence::AddressPort;
    comes_in && (fixed(y.mapping) || !x.levels.iter().any(by_port) && one_keeps)
}
