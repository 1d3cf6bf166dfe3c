//! Attached mode: who is a WireGuard peer on one side alone. Such a pair has no path, and checks do not tell why: the
//! side that lacks the peer answers no strangers. So a node publishes whom it seeks in vain, and, of those who seek
//! it, whom its interface lacks. Both lists are empty in a mesh that is configured as it should be.
//!
//! Nothing here changes a path; it informs reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use wice_signaling::protocol::{KeyHash, MAX_SOUGHT, PublicKey, Seeking};

/// Nodes whose records are kept: as many as there are peers.
const MAX_KNOWN: usize = 4096;

/// A peer that is connected and has no path for so long is sought: twice the time that a path through a relay takes
/// where UDP is blocked.
const SOUGHT_AFTER: Duration = Duration::from_secs(5);

/// At most one record in this time.
const PUBLISH_EVERY: Duration = Duration::from_secs(2);

/// A peer of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The peer.
    pub key: PublicKey,
    /// It is connected to signaling, and there is no way to it.
    pub in_vain: bool,
}

/// What a node has said.
#[derive(Clone, Copy, Debug)]
struct Said {
    sequence: u64,
    seeks_us: bool,
    lacks_us: bool,
}

/// What a record of ours holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lists {
    seeks: BTreeSet<KeyHash>,
    lacks: BTreeSet<KeyHash>,
}

/// Who seeks whom.
#[derive(Debug)]
pub struct Seeker {
    own: PublicKey,
    sequence: u64,
    said: BTreeMap<PublicKey, Said>,
    /// Peers of the interface, and since when each is sought in vain.
    peers: BTreeMap<PublicKey, Option<Instant>>,
    published: Lists,
    published_at: Option<Instant>,
}

impl Seeker {
    /// Of the node with this key.
    pub fn new(own: PublicKey) -> Self {
        Self {
            own,
            sequence: 0,
            said: BTreeMap::new(),
            peers: BTreeMap::new(),
            published: Lists::default(),
            published_at: None,
        }
    }

    /// A verified record of the node `from`: one of ours comes back if the service has it.
    pub fn handle_record(&mut self, from: &PublicKey, record: &Seeking) {
        if record.key != *from {
            return;
        }
        if record.key == self.own {
            if record.sequence > self.sequence {
                // Of an earlier life: what it says holds no longer, and the count goes on above it.
                self.sequence = record.sequence;
                self.published = Lists {
                    seeks: record.seeks.iter().copied().collect(),
                    lacks: record.lacks.iter().copied().collect(),
                };
            }
            return;
        }
        let known = self.said.get(&record.key);
        let full = known.is_none() && self.said.len() == MAX_KNOWN;
        if full || known.is_some_and(|known| record.sequence <= known.sequence) {
            return;
        }
        let own = self.own.key_hash();
        let said = Said {
            sequence: record.sequence,
            seeks_us: record.seeks.contains(&own),
            lacks_us: record.lacks.contains(&own),
        };
        self.said.insert(record.key, said);
    }

    /// All peers of the interface, as they are now.
    pub fn handle_peers(&mut self, peers: impl Iterator<Item = Sought>, now: Instant) {
        let before = std::mem::take(&mut self.peers);
        self.peers = peers
            .map(|peer| {
                let since = before.get(&peer.key).copied().flatten().unwrap_or(now);
                (peer.key, peer.in_vain.then_some(since))
            })
            .collect();
    }

    /// What is to be published now, if anything.
    pub fn poll_publish(&mut self, now: Instant) -> Option<Seeking> {
        let early = |at: Instant| now < at + PUBLISH_EVERY;
        if self.published_at.is_some_and(early) {
            return None;
        }
        let seeks = self
            .peers
            .iter()
            .filter(|(_, since)| since.is_some_and(|since| now >= since + SOUGHT_AFTER));
        let lists = Lists {
            seeks: first(seeks.map(|(key, _)| key)),
            lacks: first(self.strangers()),
        };
        if lists == self.published {
            return None;
        }
        self.published = lists.clone();
        self.published_at = Some(now);
        self.sequence += 1;
        Some(Seeking {
            key: self.own,
            sequence: self.sequence,
            seeks: lists.seeks.into_iter().collect(),
            lacks: lists.lacks.into_iter().collect(),
        })
    }

    /// Whether the node says that we are no peer of its interface. It says so of nodes that seek it alone.
    pub fn lacks_us(&self, key: &PublicKey) -> bool {
        self.said.get(key).is_some_and(|said| said.lacks_us)
    }

    /// Nodes that seek us and are no peers of our interface, by key.
    pub fn strangers(&self) -> impl Iterator<Item = &PublicKey> {
        let of = |(key, said): (&PublicKey, &Said)| said.seeks_us && !self.peers.contains_key(key);
        self.said
            .iter()
            .filter(move |(key, said)| of((key, said)))
            .map(|(key, _)| key)
    }
}

fn first<'a>(keys: impl Iterator<Item = &'a PublicKey>) -> BTreeSet<KeyHash> {
    keys.take(MAX_SOUGHT).map(PublicKey::key_hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn sought(n: u8) -> Sought {
        Sought {
            key: key(n),
            in_vain: true,
        }
    }

    fn found(n: u8) -> Sought {
        Sought {
            key: key(n),
            in_vain: false,
        }
    }

    /// What two nodes tell each other, second by second; whether the first is told that the second lacks it.
    struct Pair {
        nodes: [Seeker; 2],
        now: Instant,
        records: usize,
    }

    impl Pair {
        fn new() -> Self {
            Self {
                nodes: [Seeker::new(key(1)), Seeker::new(key(2))],
                now: Instant::now(),
                records: 0,
            }
        }

        fn run(&mut self, peers: [&[Sought]; 2], seconds: u32) {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                for (node, other) in [(0, 1), (1, 0)] {
                    self.nodes[node].handle_peers(peers[node].iter().copied(), self.now);
                    if let Some(record) = self.nodes[node].poll_publish(self.now) {
                        self.records += 1;
                        self.nodes[other].handle_record(&record.key.clone(), &record);
                    }
                }
            }
        }
    }

    #[test]
    fn who_is_a_peer_on_one_side_alone_is_told_on_both() {
        let mut pair = Pair::new();
        pair.run([&[sought(2)], &[]], 4);
        assert_eq!(pair.records, 0, "it is soon for that");
        pair.run([&[sought(2)], &[]], 4);
        assert!(pair.nodes[0].lacks_us(&key(2)));
        assert!(pair.nodes[1].strangers().eq([&key(1)]));
        assert_eq!(pair.records, 2);
        pair.run([&[sought(2)], &[]], 600);
        assert_eq!(pair.records, 2, "nothing is said twice");
        // It is added there, and found.
        pair.run([&[sought(2)], &[sought(1)]], 4);
        assert!(!pair.nodes[0].lacks_us(&key(2)));
        pair.run([&[found(2)], &[found(1)]], 4);
        assert_eq!(pair.nodes[1].strangers().count(), 0);
        assert!(!pair.nodes[0].lacks_us(&key(2)));
    }

    #[test]
    fn peers_on_both_sides_say_nothing_that_is_not_so() {
        let mut pair = Pair::new();
        pair.run([&[found(2)], &[found(1)]], 60);
        assert_eq!(pair.records, 0);
        pair.run([&[sought(2)], &[sought(1)]], 60);
        assert!(!pair.nodes[0].lacks_us(&key(2)) && !pair.nodes[1].lacks_us(&key(1)));
        assert_eq!(pair.nodes[1].strangers().count(), 0);
    }

    /// The service has the record of an earlier life: it is taken back, with a count above it.
    #[test]
    fn a_daemon_that_starts_again_goes_on_above_its_last_record() {
        let mut pair = Pair::new();
        pair.run([&[sought(2)], &[]], 10);
        let earlier = Seeking {
            key: key(1),
            sequence: 7,
            seeks: vec![key(2).key_hash()],
            lacks: Vec::new(),
        };
        let mut seeker = Seeker::new(key(1));
        seeker.handle_peers([found(2)].into_iter(), pair.now);
        assert_eq!(seeker.poll_publish(pair.now), None);
        seeker.handle_record(&key(1), &earlier);
        let record = seeker.poll_publish(pair.now).unwrap();
        assert_eq!((record.sequence, record.seeks.len()), (8, 0));
    }

    #[test]
    fn replayed_and_borrowed_records_count_for_nothing_and_lists_are_bounded() {
        let mut seeker = Seeker::new(key(1));
        let record = |n: u8, sequence, lacks: bool| Seeking {
            key: key(n),
            sequence,
            seeks: vec![key(1).key_hash()],
            lacks: if lacks {
                vec![key(1).key_hash()]
            } else {
                Vec::new()
            },
        };
        seeker.handle_record(&key(2), &record(2, 5, false));
        seeker.handle_record(&key(2), &record(2, 4, true));
        seeker.handle_record(&key(2), &record(3, 9, true));
        assert!(!seeker.lacks_us(&key(2)) && !seeker.lacks_us(&key(3)));
        for n in 2..100 {
            seeker.handle_record(&key(n), &record(n, 6, false));
        }
        let published = seeker.poll_publish(Instant::now()).unwrap();
        assert_eq!(published.lacks.len(), MAX_SOUGHT);
    }
}
