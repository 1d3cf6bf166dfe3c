//! What has to hold between two hosts.

use std::time::Duration;

use wice::core::node::PathView;

use crate::network::HostId;
use crate::world::{STEP, World};

/// What carries a pair's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Direct,
    Relayed,
}

impl World {
    pub(crate) fn path(&self, from: HostId, to: HostId) -> Option<PathView> {
        self.hosts[from].view(to, self.now)?.path
    }

    /// What the oracle says.
    pub(crate) fn expected(&self, a: HostId, b: HostId) -> Option<Kind> {
        if self.direct(a, b) {
            Some(Kind::Direct)
        } else if self.relayed(a, b) {
            Some(Kind::Relayed)
        } else {
            None
        }
    }

    /// The kind of path that both have and agree on.
    pub(crate) fn agreed(&self, a: HostId, b: HostId) -> Option<Kind> {
        let (x, y) = (self.path(a, b)?.pair, self.path(b, a)?.pair);
        let same = x.mapped == Some(y.remote) && y.mapped == Some(x.remote);
        let kind = |relays: u8| {
            if relays == 0 {
                Kind::Direct
            } else {
                Kind::Relayed
            }
        };
        // A peer-reflexive candidate of the other's relay does not look like one before its advert.
        let relays = x.relays.max(y.relays);
        same.then(|| kind(relays))
    }

    /// Whether packets of WireGuard have come through both ways.
    pub(crate) fn is_up(&self, a: HostId, b: HostId) -> bool {
        let up = |x: HostId, y: HostId| self.hosts[x].tunnels.get(&y).is_some_and(|t| t.is_up());
        up(a, b) && up(b, a)
    }

    pub(crate) fn pairs(&self) -> Vec<(HostId, HostId)> {
        let count = self.hosts.len();
        (0..count)
            .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
            .filter(|(a, b)| self.knows(*a, *b))
            .collect()
    }

    /// Whether every pair is where the oracle wants it.
    pub(crate) fn is_settled(&self) -> bool {
        self.pairs()
            .into_iter()
            .all(|(a, b)| self.pair_is_settled(a, b))
    }

    /// No path is better than what can be.
    pub(crate) fn assert_possible(&self) {
        for (a, b) in self.pairs() {
            let expected = self.expected(a, b);
            for (from, to) in [(a, b), (b, a)] {
                let found = self.path(from, to);
                let possible = match (&found, expected) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(path), Some(Kind::Relayed)) => {
                        path.pair.relays > 0 || self.hides(&path.pair)
                    }
                    (Some(_), Some(Kind::Direct)) => true,
                };
                assert!(possible, "{}", self.describe());
            }
        }
    }

    /// A relay's address that has come as peer-reflexive, before the advert that names it.
    fn hides(&self, pair: &wice::core::node::PairView) -> bool {
        let servers = &self.servers.1;
        servers.iter().any(|s| s.address.ip() == pair.remote.ip())
    }

    fn pair_is_settled(&self, a: HostId, b: HostId) -> bool {
        let expected = self.expected(a, b);
        self.agreed(a, b) == expected && (expected.is_none() || self.is_up(a, b))
    }

    /// A world for a failure's message: the pairs that are not settled, or all.
    pub(crate) fn describe(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        let mut odd = self.pairs();
        odd.retain(|(a, b)| !self.pair_is_settled(*a, *b));
        writeln!(out, "at {:?}; {:?}", self.now - self.start, self.conditions).unwrap();
        for (id, router) in self.network.routers.iter().enumerate() {
            let (inner, outer, external) = (router.inner, router.outer, router.external);
            let behavior = router.behavior;
            writeln!(
                out,
                "router {id}: {inner} -> {outer} {external:?} {behavior:?}"
            )
            .unwrap();
        }
        for host in &self.hosts {
            let at: Vec<_> = host
                .interfaces
                .iter()
                .map(|i| (i.realm, &i.addresses))
                .collect();
            writeln!(out, "host {} {:?} at {at:?}", host.id, host.traffic).unwrap();
            let Some(node) = &host.node else { continue };
            let snapshot = node.snapshot(self.now);
            writeln!(out, "  candidates {:?}", snapshot.candidates).unwrap();
            writeln!(out, "  relays {:?}", snapshot.relays).unwrap();
            writeln!(out, "  {:?}", snapshot.counters).unwrap();
            for peer in snapshot.peers {
                let other = host.peers[&peer.id];
                if !odd.is_empty() && !odd.contains(&(host.id.min(other), host.id.max(other))) {
                    continue;
                }
                let path = peer
                    .path
                    .map(|p| (p.pair.local, p.pair.mapped, p.pair.remote, p.up));
                let changes = host.paths_changed.get(&other).into_iter().flatten();
                let changes: Vec<_> = changes.map(|at| *at - self.start).collect();
                writeln!(
                    out,
                    "  to {other} {:?}: {path:?}, {} changes {changes:?}",
                    peer.role, peer.changes
                )
                .unwrap();
                for p in peer.pairs {
                    writeln!(
                        out,
                        "    {:?} {} as {:?} -> {:?} {}: {:?} {:?} held {} checks {:?} rtt {:?}",
                        p.local_kind,
                        p.local,
                        p.mapped,
                        p.remote_kind,
                        p.remote,
                        p.state,
                        p.used,
                        p.held,
                        p.checks,
                        p.rtt
                    )
                    .unwrap();
                }
            }
        }
        for (a, b) in self.pairs() {
            let (expected, agreed, up) = (self.expected(a, b), self.agreed(a, b), self.is_up(a, b));
            writeln!(
                out,
                "{a}-{b}: oracle {expected:?}, agreed {agreed:?}, up {up}"
            )
            .unwrap();
        }
        out
    }

    /// Runs until all is as the oracle has it; panics if it takes longer.
    pub(crate) fn settle(&mut self, limit: Duration) -> Duration {
        match self.run_till(limit, STEP, World::is_settled) {
            Some(took) => took,
            None => panic!("not settled in {limit:?}\n{}", self.describe()),
        }
    }
}
