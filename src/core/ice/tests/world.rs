//! Translators, sockets, routes and datagrams of the virtual network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::core::ice::BaseId;

/// What a translator's external port or filter depends on (RFC 4787 §4.1, §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depends {
    Endpoint,
    Address,
    AddressAndPort,
}

impl Depends {
    pub(super) const ALL: [Self; 3] = [Self::Endpoint, Self::Address, Self::AddressAndPort];

    fn key(self, to: SocketAddr) -> Option<(IpAddr, u16)> {
        match self {
            Self::Endpoint => None,
            Self::Address => Some((to.ip(), 0)),
            Self::AddressAndPort => Some((to.ip(), to.port())),
        }
    }
}

type MappingKey = (SocketAddr, Option<(IpAddr, u16)>);

#[derive(Debug)]
pub(super) struct Nat {
    pub(super) external: IpAddr,
    mapping: Depends,
    filtering: Depends,
    next_port: u16,
    ports: BTreeMap<MappingKey, u16>,
    inside: BTreeMap<u16, SocketAddr>,
    holes: BTreeSet<(u16, Option<(IpAddr, u16)>)>,
}

impl Nat {
    pub(super) fn new(external: IpAddr, mapping: Depends, filtering: Depends) -> Self {
        Self {
            external,
            mapping,
            filtering,
            next_port: 40_000,
            ports: BTreeMap::new(),
            inside: BTreeMap::new(),
            holes: BTreeSet::new(),
        }
    }

    /// New ports from here on.
    pub(super) fn forget(&mut self) {
        self.ports.clear();
        self.inside.clear();
        self.holes.clear();
    }

    pub(super) fn outbound(&mut self, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        let next = &mut self.next_port;
        let port = *self
            .ports
            .entry((from, self.mapping.key(to)))
            .or_insert_with(|| {
                *next += 1;
                *next
            });
        self.inside.insert(port, from);
        self.holes.insert((port, self.filtering.key(to)));
        SocketAddr::new(self.external, port)
    }

    pub(super) fn inbound(&self, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        let open = self.holes.contains(&(port, self.filtering.key(from)));
        self.inside.get(&port).copied().filter(|_| open)
    }
}

/// Where a base is plugged in.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) agent: usize,
    pub(super) base: BaseId,
    pub(super) address: SocketAddr,
    pub(super) nat: Option<usize>,
    /// A relay lets in only whom it has been sent to.
    pub(super) permitted: Option<BTreeSet<IpAddr>>,
}

/// What happens to datagrams of one direction, by their public addresses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    Blocked,
    /// They arrive with this source instead.
    From(SocketAddr),
}

#[derive(Debug)]
pub(super) struct Packet {
    pub(super) at: Instant,
    pub(super) to: (usize, BaseId),
    pub(super) source: SocketAddr,
    pub(super) bytes: Vec<u8>,
}
