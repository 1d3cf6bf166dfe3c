//! The tie from a path to the endpoint of a WireGuard peer, where another program owns the interface:
//! which endpoint a peer should have, decided from what the interface says every second and from the
//! paths that the node has found. It touches endpoints alone, and a working one is left as it is.
//!
//! An endpoint is *ours* when it is the peer's slot or what a path was given instead, else it is
//! *theirs*: configured, set by a mesh agent, or found by WireGuard's own roaming. Theirs is left
//! while it carries something; when it does not, and a path is ready, the peer gets ours. Whoever
//! puts theirs back where ours stood is answered within two looks.

mod peer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::PublicKey;

use peer::Peer;

pub use peer::{NATIVE_DEAD, NATIVE_RETRY, NATIVE_RETRY_UNKNOWN, NATIVE_TRIAL, RESET_TRIAL};

/// How often the interface is looked at: WireGuard tells of no change by itself.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often while WireGuard sends from its own port, where its counters alone show whether something comes back: what
/// dies silently there would be noticed up to two looks late.
pub const LOOK_SENDING: Duration = Duration::from_millis(500);

/// What looks tell of when a peer was heard at one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    /// What came last came at any time after this.
    after: Option<Instant>,
}

impl Heard {
    /// Takes in whether something has come between the look at `looked` and the one that is now. Gives since when the peer
    /// may be silent if nothing has.
    pub fn look(&mut self, received: bool, looked: Instant, now: Instant) -> Instant {
        // Not of what came long ago: who sends after a rest has heard nothing for good reason.
        let of_late = self.after.filter(|at| now < *at + 2 * LOOK_EVERY);
        if received {
            self.after = Some(looked);
        }
        of_late.unwrap_or(looked)
    }
}

/// A peer as the interface has it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its name.
    pub key: PublicKey,
    /// Where its packets go.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was, on the interface's own clock; only its changes count.
    pub handshake: Option<Duration>,
    /// How long ago that was; asked once, when the peer is seen first.
    pub handshake_age: Option<Duration>,
    /// Bytes received from it. They may go back: a peer was put there anew.
    pub rx_bytes: u64,
    /// Bytes sent to it, WireGuard's own messages included.
    pub tx_bytes: u64,
}

/// What the node knows of the way to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathState {
    /// It has published an advert: wice runs there.
    pub advert: bool,
    /// A path is ready, and WireGuard uses it by this endpoint: the slot, or another where a path
    /// needs no proxy.
    pub ready: Option<SocketAddr>,
}

/// What a peer's endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has none.
    Unset,
    /// Ours.
    Ours,
    /// Theirs, and whether something has come since it is that.
    Theirs {
        /// The address.
        endpoint: SocketAddr,
        /// Something has come from the peer, and what was sent since is not unanswered for long.
        works: bool,
        /// Nothing is unanswered.
        idle: bool,
    },
}

/// What is to be done, or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The interface has a new peer.
    Added(PublicKey),
    /// The interface no longer has it.
    Removed(PublicKey),
    /// Point it there. Not told again until the interface was looked at.
    SetEndpoint {
        /// Whom.
        key: PublicKey,
        /// Where.
        endpoint: SocketAddr,
        /// What stood there.
        instead_of: Option<SocketAddr>,
        /// Why.
        cause: Cause,
    },
    /// Theirs works where ours stood: it is left.
    Left {
        /// The peer.
        key: PublicKey,
        /// Its endpoint.
        endpoint: SocketAddr,
    },
}

/// Why an endpoint is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It had none.
    Unset,
    /// Nothing comes by the one that it had.
    Failed,
    /// Another program has put something else where ours stood.
    Reset {
        /// How often so far.
        times: u64,
        /// The distance between the last ones, if they are regular: a program that applies its
        /// configuration again and again.
        every: Option<Duration>,
    },
    /// The path has moved.
    Moved,
    /// There has been no path for long: theirs is tried again.
    Retry,
}

/// Binds the peers of one interface.
#[derive(Debug)]
pub struct Binder {
    slot_of: fn(&PublicKey) -> SocketAddr,
    peers: BTreeMap<PublicKey, Peer>,
    /// What the endpoints were in a run before.
    remembered: BTreeMap<PublicKey, SocketAddr>,
    /// What they were given then.
    remembered_given: BTreeMap<PublicKey, SocketAddr>,
    /// Handshakes before this were another key's.
    sessions_since: Option<Instant>,
    changed: bool,
    events: VecDeque<Event>,
}

impl Binder {
    /// Without peers. `remembered` and `given` are what [`Self::originals`] and [`Self::given`] were
    /// when the daemon ran last.
    pub fn new(
        slot_of: fn(&PublicKey) -> SocketAddr,
        remembered: BTreeMap<PublicKey, SocketAddr>,
        given: BTreeMap<PublicKey, SocketAddr>,
    ) -> Self {
        Self {
            slot_of,
            peers: BTreeMap::new(),
            remembered,
            remembered_given: given,
            sessions_since: None,
            changed: false,
            events: VecDeque::new(),
        }
    }

    /// The interface has another key than it had: its sessions are gone, though WireGuard still shows their handshakes.
    pub fn forget_sessions(&mut self, now: Instant) {
        self.sessions_since = Some(now);
    }

    /// The interface as it is now. To be called every [`LOOK_EVERY`], after endpoints were set, and when
    /// [`Self::poll_timeout`] says.
    pub fn handle_device(&mut self, sightings: &[Sighting], now: Instant) {
        let seen: BTreeSet<PublicKey> = sightings.iter().map(|sighting| sighting.key).collect();
        let gone = self.peers.keys().filter(|key| !seen.contains(key));
        let gone: Vec<PublicKey> = gone.copied().collect();
        for key in gone {
            self.peers.remove(&key);
            self.changed = true;
            self.events.push_back(Event::Removed(key));
        }
        for sighting in sightings {
            let known = self.peers.get_mut(&sighting.key);
            let left = match known {
                Some(peer) => {
                    let before = (peer.original(), peer.given());
                    let left = peer.observe(sighting, now);
                    self.changed |= (peer.original(), peer.given()) != before;
                    left
                }
                None => {
                    let slot = (self.slot_of)(&sighting.key);
                    let original = self.remembered.remove(&sighting.key);
                    let given = self.remembered_given.remove(&sighting.key);
                    let began = sighting.handshake_age.and_then(|age| now.checked_sub(age));
                    let is_orphan = began < self.sessions_since && sighting.handshake.is_some();
                    let peer = Peer::new(slot, original, given, sighting, is_orphan, now);
                    self.peers.insert(sighting.key, peer);
                    self.changed = true;
                    self.events.push_back(Event::Added(sighting.key));
                    false
                }
            };
            if let (true, Some(endpoint)) = (left, sighting.endpoint) {
                self.events.push_back(Event::Left {
                    key: sighting.key,
                    endpoint,
                });
            }
            self.decide(sighting.key, now);
        }
    }

    /// The way to a peer has changed; one that the interface does not have is passed over.
    pub fn handle_path(&mut self, key: &PublicKey, path: PathState, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        let before = (peer.original(), peer.given());
        if peer.set_path(path, now) {
            self.changed |= (peer.original(), peer.given()) != before;
            self.decide(*key, now);
        }
    }

    /// The addresses from which a peer has reached WireGuard's own port: when paths change, WireGuard may go there by itself.
    pub fn handle_met_at(&mut self, key: &PublicKey, addresses: &[SocketAddr]) {
        if let Some(peer) = self.peers.get_mut(key) {
            peer.set_met_at(addresses);
        }
    }

    /// When the interface is to be looked at, if that is before the next time: where something else stands in
    /// place of ours, or WireGuard sends from its own port, a second is long.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let ends = self.peers.values().filter_map(Peer::next_look);
        ends.filter(|at| *at > now).min()
    }

    /// What is to be done next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What a peer's endpoint is; `None` for one that the interface does not have.
    pub fn standing(&self, key: &PublicKey) -> Option<Standing> {
        Some(self.peers.get(key)?.standing())
    }

    /// How often another program has put something else where ours stood.
    pub fn resets(&self, key: &PublicKey) -> u64 {
        self.peers.get(key).map_or(0, Peer::resets)
    }

    /// The endpoints to go back to, of all peers that had one of theirs: to be kept.
    pub fn originals(&self) -> BTreeMap<PublicKey, SocketAddr> {
        let of = |(key, peer): (&PublicKey, &Peer)| Some((*key, peer.original()?));
        self.peers.iter().filter_map(of).collect()
    }

    /// What peers have instead of their slots: to be kept as well, or a daemon that starts again would
    /// take it for theirs.
    pub fn given(&self) -> BTreeMap<PublicKey, SocketAddr> {
        let of = |(key, peer): (&PublicKey, &Peer)| Some((*key, peer.given()?));
        self.peers.iter().filter_map(of).collect()
    }

    /// Whether [`Self::originals`] or [`Self::given`] has changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What puts the originals back: endpoints of the peers that have ours. Those that had none
    /// cannot be without one again; they are the second part.
    pub fn restore(&self) -> (Vec<(PublicKey, SocketAddr)>, Vec<PublicKey>) {
        let (mut back, mut stay) = (Vec::new(), Vec::new());
        for (key, peer) in &self.peers {
            match (peer.standing(), peer.original()) {
                (Standing::Ours, Some(original)) => back.push((*key, original)),
                (Standing::Ours, None) => stay.push(*key),
                (Standing::Unset | Standing::Theirs { .. }, _) => {}
            }
        }
        (back, stay)
    }

    fn decide(&mut self, key: PublicKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let given = peer.given();
        let decided = peer.decide(now);
        self.changed |= peer.given() != given;
        if let Some((endpoint, cause)) = decided {
            self.events.push_back(Event::SetEndpoint {
                key,
                endpoint,
                instead_of: peer.endpoint(),
                cause,
            });
        }
    }
}
