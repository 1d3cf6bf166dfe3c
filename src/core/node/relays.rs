//! The node's allocations: all servers in parallel, over UDP first and over TCP and TLS where UDP
//! does not answer soon, unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wice_signaling::protocol::RelayTransport;

use super::{PeerId, RelayId, RelayServer};
use crate::core::ice::BaseId;
use crate::core::timing::RELAY_SILENT;
use crate::core::turn::{Allocation, AllocationConfig, Credentials, Failure, Family};

/// TCP and TLS are started this long after UDP: five of the usual round trips to a server.
const FALLBACK_AFTER: Duration = Duration::from_millis(250);
/// The most servers that are used, each in up to three ways.
const MAX_SERVERS: usize = 12;
/// First wait after a failure that gives no wait of its own; doubled up to the longest for such failures.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Where credentials are refused somebody is at work on the secret: tried again this often at least,
/// which costs the server one MAC.
const CREDENTIALS_RETRY_MAX: Duration = Duration::from_secs(30);
/// UDP that is blocked is tried again this often at least, for some hundred bytes: everything else is slower than what comes when
/// it is let out.
const BLOCKED_RETRY_MAX: Duration = Duration::from_secs(30);
/// After any other failure a server is tried again this often at least.
const RETRY_MAX: Duration = Duration::from_secs(120);

/// A refused channel is asked for again after this: a number may be free by then.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// A connection to a server and its allocation.
pub(super) struct Relay {
    pub(super) server: RelayServer,
    pub(super) allocation: Allocation,
    /// Set while there is a relayed address.
    pub(super) base: Option<BaseId>,
    /// The server has owed an answer for too long.
    is_silent: bool,
}

/// A server that is configured, and when it is tried next.
struct Candidate {
    server: RelayServer,
    relay: Option<RelayId>,
    /// `None` while there is a connection, and where the credentials cannot be used at all.
    next_try: Option<Instant>,
    failures: u32,
    last_failure: Option<Failure>,
    /// It has no IPv4 for us: its own family is asked for.
    lacks_ipv4: bool,
}

/// All servers and connections.
#[derive(Default)]
pub(super) struct Relays {
    candidates: Vec<Candidate>,
    pub(super) active: BTreeMap<RelayId, Relay>,
    next_id: u32,
    /// For which peers a relay is to let an address through: who is told when it does, and when
    /// nobody wants it any more.
    wishes: BTreeMap<(RelayId, IpAddr), BTreeSet<PeerId>>,
    /// Channels that were refused, and until when they are not asked for.
    refused: BTreeMap<(RelayId, SocketAddr), Instant>,
}

/// What has changed about who answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// A server has gone silent, or answers again.
    pub(super) changed: bool,
    /// One answers again over UDP.
    pub(super) by_udp: bool,
}

/// What is known of one configured server.
pub(super) struct ServerView<'a> {
    pub(super) server: &'a RelayServer,
    pub(super) relay: Option<&'a Relay>,
    pub(super) last_failure: Option<Failure>,
}

impl Relays {
    /// The servers as configured now. A server whose credentials alone have changed keeps its
    /// allocation (which keeps its username for life); the new ones serve the next.
    pub(super) fn set_servers(&mut self, servers: &[RelayServer], now: Instant) -> Vec<RelayId> {
        let mut before = std::mem::take(&mut self.candidates);
        for server in servers.iter().take(MAX_SERVERS) {
            let same = |c: &Candidate| {
                c.server.address == server.address && c.server.transport == server.transport
            };
            let known = before
                .iter()
                .position(same)
                .map(|index| before.remove(index));
            let delay = match server.transport {
                RelayTransport::Udp => Duration::ZERO,
                RelayTransport::Tcp | RelayTransport::Tls => FALLBACK_AFTER,
            };
            self.candidates.push(match known {
                Some(known) => known.configured_again(server, now),
                None => Candidate {
                    server: server.clone(),
                    relay: None,
                    next_try: Some(now + delay),
                    failures: 0,
                    last_failure: None,
                    lacks_ipv4: false,
                },
            });
        }
        before.into_iter().filter_map(|gone| gone.relay).collect()
    }

    /// A server to connect to now; `seed` is for its allocation. The relayed address is of the
    /// family that the server is reached over, but of IPv4 for a node that has none: IPv6 it has
    /// itself, and peers without IPv6 can meet it at the relay alone.
    pub(super) fn poll_open(
        &mut self,
        has_ipv4: bool,
        seed: impl FnOnce() -> [u8; 32],
        now: Instant,
    ) -> Option<(RelayId, RelayServer)> {
        for index in 0..self.candidates.len() {
            let candidate = &self.candidates[index];
            if candidate.next_try.is_none_or(|at| now < at) {
                continue;
            }
            if self.is_served_better(&candidate.server) {
                self.candidates[index].next_try = Some(now + RETRY_MAX);
                continue;
            }
            let candidate = &mut self.candidates[index];
            let server = candidate.server.clone();
            let Ok(credentials) = Credentials::new(&server.username, &server.password) else {
                candidate.next_try = None;
                continue;
            };
            let config = AllocationConfig {
                transport: server.transport,
                credentials,
                family: match has_ipv4 || candidate.lacks_ipv4 {
                    true => Family::of(server.address.ip()),
                    false => Family::V4,
                },
            };
            let id = RelayId(self.next_id);
            self.next_id += 1;
            candidate.relay = Some(id);
            candidate.next_try = None;
            let allocation = Allocation::new(config, seed());
            self.active.insert(
                id,
                Relay {
                    server: server.clone(),
                    allocation,
                    base: None,
                    is_silent: false,
                },
            );
            return Some((id, server));
        }
        None
    }

    /// The allocation is up: failures are forgotten.
    pub(super) fn note_allocated(&mut self, id: RelayId) {
        if let Some(candidate) = self.candidate_of(id) {
            candidate.failures = 0;
            candidate.last_failure = None;
        }
    }

    /// Looks which servers have gone silent or answer again. Where one has gone
    /// silent the other ways to its host are tried now: this one may be blocked since.
    pub(super) fn note_silence(&mut self, now: Instant) -> Heard {
        let mut silenced = Vec::new();
        let mut heard = Heard::default();
        for relay in self.active.values_mut() {
            let silent = relay.base.is_some() && relay.allocation.is_silent(now);
            if std::mem::replace(&mut relay.is_silent, silent) != silent {
                heard.changed = true;
                heard.by_udp |= !silent && relay.server.transport == RelayTransport::Udp;
                silenced.extend(silent.then(|| relay.server.name.clone()));
            }
        }
        for candidate in &mut self.candidates {
            let other_way = candidate.relay.is_none() && silenced.contains(&candidate.server.name);
            if let Some(at) = candidate.next_try.as_mut().filter(|_| other_way) {
                *at = now.min(*at);
            }
        }
        heard
    }

    /// The connection or its allocation is gone.
    pub(super) fn remove(&mut self, id: RelayId, failure: Option<Failure>, now: Instant) {
        self.active.remove(&id);
        self.wishes.retain(|(relay, _), _| *relay != id);
        self.refused.retain(|(relay, _), _| *relay != id);
        let Some(candidate) = self.candidate_of(id) else {
            return;
        };
        candidate.relay = None;
        candidate.last_failure = failure.or(candidate.last_failure);
        let is_udp = candidate.server.transport == RelayTransport::Udp;
        let refuses = matches!(failure, Some(Failure::Family(_)));
        let wait = match failure {
            Some(_) if refuses && !std::mem::replace(&mut candidate.lacks_ipv4, true) => {
                Duration::ZERO
            }
            None => RETRY_MAX,
            Some(failure) => {
                let most = if failure == Failure::WrongCredentials {
                    CREDENTIALS_RETRY_MAX
                } else if is_udp && failure == Failure::NoAnswer {
                    BLOCKED_RETRY_MAX
                } else {
                    RETRY_MAX
                };
                let backoff = RETRY_MIN * (1 << candidate.failures.min(7));
                failure.retry_after().max(backoff.min(most))
            }
        };
        candidate.failures += 1;
        candidate.next_try = Some(now + wait);
    }

    /// Allocations that a better one to the same host has made superfluous.
    pub(super) fn superfluous(&self) -> Vec<RelayId> {
        let served = |relay: &&Relay| self.is_served_better(&relay.server);
        let relays = self.active.iter().filter(|(_, relay)| served(relay));
        relays.map(|(id, _)| *id).collect()
    }

    /// Whether a server answers over UDP, or has until a moment ago.
    pub(super) fn answers_udp(&self) -> bool {
        self.active.values().any(|relay| {
            let udp = relay.server.transport == RelayTransport::Udp;
            udp && relay.base.is_some() && !relay.is_silent
        })
    }

    /// When [`Self::poll_open`] or an allocation has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let opens = self
            .candidates
            .iter()
            .filter_map(|candidate| candidate.next_try);
        let allocations = self
            .active
            .values()
            .filter_map(|relay| relay.allocation.poll_timeout());
        let silences = self.active.values().filter_map(|relay| {
            let at = relay.allocation.unanswered_since()? + RELAY_SILENT;
            (relay.base.is_some() && !relay.is_silent).then_some(at)
        });
        opens.chain(allocations).chain(silences).min()
    }

    /// Every configured server, in order.
    pub(super) fn views(&self) -> impl Iterator<Item = ServerView<'_>> {
        self.candidates.iter().map(|candidate| ServerView {
            server: &candidate.server,
            relay: candidate.relay.and_then(|id| self.active.get(&id)),
            last_failure: candidate.last_failure,
        })
    }

    /// Lets `peer` through the relay; tells whether it is through already.
    pub(super) fn permit(&mut self, id: RelayId, peer: IpAddr, now: Instant) -> bool {
        let Some(relay) = self.active.get_mut(&id) else {
            return false;
        };
        relay.allocation.permit(peer, now);
        relay.allocation.permitted(peer)
    }

    /// The peer wants this address let through.
    pub(super) fn wish(&mut self, relay: RelayId, address: IpAddr, peer: PeerId) {
        self.wishes
            .entry((relay, address))
            .or_default()
            .insert(peer);
    }

    /// The peer no longer wants it; when nobody does, the permission runs out.
    pub(super) fn unwish(&mut self, relay: RelayId, address: IpAddr, peer: PeerId) {
        let Some(wishers) = self.wishes.get_mut(&(relay, address)) else {
            return;
        };
        wishers.remove(&peer);
        if wishers.is_empty() {
            self.wishes.remove(&(relay, address));
            if let Some(relay) = self.active.get_mut(&relay) {
                relay.allocation.forget(address);
            }
        }
    }

    /// The server, or the table of numbers, has no channel to this peer.
    pub(super) fn note_refused(&mut self, relay: RelayId, peer: SocketAddr, now: Instant) {
        self.refused.retain(|_, until| now < *until);
        self.refused.insert((relay, peer), now + REFUSED_WAIT);
    }

    /// Whether a channel to this peer was refused a short while ago.
    pub(super) fn is_refused(&self, relay: RelayId, peer: SocketAddr, now: Instant) -> bool {
        let until = self.refused.get(&(relay, peer));
        until.is_some_and(|until| now < *until)
    }

    /// Who wants this address let through.
    pub(super) fn wishers(&self, relay: RelayId, address: IpAddr) -> Vec<PeerId> {
        let wishers = self.wishes.get(&(relay, address));
        wishers.into_iter().flatten().copied().collect()
    }

    fn candidate_of(&mut self, id: RelayId) -> Option<&mut Candidate> {
        self.candidates
            .iter_mut()
            .find(|candidate| candidate.relay == Some(id))
    }

    fn is_served_better(&self, server: &RelayServer) -> bool {
        self.active.values().any(|relay| {
            relay.base.is_some()
                && !relay.is_silent
                && relay.server.name == server.name
                && relay.server.transport < server.transport
        })
    }
}

impl Candidate {
    /// It is configured as `server` from now on. Other credentials are tried at once: they may be what was
    /// missing.
    fn configured_again(self, server: &RelayServer, now: Instant) -> Self {
        let same =
            |c: &Self| c.server.username == server.username && c.server.password == server.password;
        let (next_try, failures) = match self.relay {
            None if !same(&self) => (Some(now), 0),
            None => (self.next_try, self.failures),
            Some(_) => (None, self.failures),
        };
        Self {
            server: server.clone(),
            next_try,
            failures,
            ..self
        }
    }
}

impl std::fmt::Debug for Relays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relays")
            .field("active", &self.active.len())
            .finish_non_exhaustive()
    }
}
