//! Our own advert: published when it has changed, at once when that is what connecting waits for,
//! else with patience.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand_core::RngCore as _;
use wice_signaling::protocol::{Advert, Candidate, CandidateKind, NatBehavior};

use super::{Event, Node};
use crate::core::timing::{PUBLISH_DEBOUNCE, PUBLISH_FIRST, PUBLISH_MAX};

/// Without changes for this long the back-off is forgotten.
const CALM: Duration = Duration::from_secs(120);

/// When the advert goes out next.
#[derive(Debug)]
pub(super) struct Publisher {
    sequence: u64,
    published: Option<(Vec<Candidate>, NatBehavior)>,
    due: Option<Instant>,
    wait: Duration,
    last: Option<Instant>,
}

impl Publisher {
    pub(super) fn new(sequence: u64) -> Self {
        Self {
            sequence,
            published: None,
            due: None,
            wait: PUBLISH_DEBOUNCE,
            last: None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Our advert came back from a backend: ours must be newer than whatever is there, or peers take
    /// it for an old one. Published again with the patience of any change: two machines with one key
    /// would else outdo each other without end.
    pub(super) fn read_back(&mut self, sequence: u64, same_session: bool, now: Instant) {
        let ahead = sequence > self.sequence || (sequence == self.sequence && !same_session);
        if ahead {
            self.sequence = sequence;
            self.published = None;
            self.due.get_or_insert(now + self.wait);
        }
    }

    fn note(&mut self, candidates: &[Candidate], nat: NatBehavior, now: Instant) {
        let kinds = |candidates: &[Candidate]| -> BTreeSet<(CandidateKind, bool)> {
            candidates
                .iter()
                .map(|c| (c.kind, c.address.is_ipv4()))
                .collect()
        };
        let due = match &self.published {
            None => now + PUBLISH_FIRST,
            Some((published, known)) if published == candidates && *known == nat => {
                self.due = None;
                return;
            }
            Some((published, _)) if !kinds(candidates).is_subset(&kinds(published)) => {
                now + PUBLISH_FIRST
            }
            Some(_) => now + self.wait,
        };
        self.due = Some(self.due.map_or(due, |set| set.min(due)));
    }

    fn fire(&mut self, candidates: Vec<Candidate>, nat: NatBehavior, now: Instant) -> u64 {
        let calm = self.last.is_none_or(|at| now >= at + CALM);
        self.wait = if calm {
            PUBLISH_DEBOUNCE
        } else {
            (self.wait * 2).min(PUBLISH_MAX)
        };
        self.last = Some(now);
        self.due = None;
        // Read back from our own key: whatever it was, no arithmetic of ours ends on it.
        self.sequence = self.sequence.saturating_add(1);
        self.published = Some((candidates, nat));
        self.sequence
    }
}

impl Node {
    /// Publishes again although nothing has changed: the record was found lost or altered.
    pub fn republish(&mut self, now: Instant) {
        self.now = now;
        self.publisher.published = None;
        self.note_candidates();
    }

    /// Our candidates or our view of the NAT may have changed.
    pub(super) fn note_candidates(&mut self) {
        let candidates = self.local_candidates();
        let nat = self.nat();
        self.publisher.note(&candidates, nat, self.now);
    }

    pub(super) fn publish_if_due(&mut self) {
        if self.publisher.due.is_none_or(|at| self.now < at) {
            return;
        }
        let candidates = self.local_candidates();
        let nat = self.nat();
        let sequence = self.publisher.fire(candidates.clone(), nat, self.now);
        let advert = Advert {
            key: self.own.key,
            session: self.own.session,
            sequence,
            name: self.name.clone(),
            nat,
            candidates,
            membership: self.membership.clone(),
        };
        let mut z = [0; 64];
        self.rng.fill_bytes(&mut z);
        // Fails only for a name or membership that the configuration has checked.
        if let Ok(advert) = advert.encode_signed(&self.key, &z) {
            self.events.push(Event::Publish { advert, sequence });
        }
    }
}

#[cfg(test)]
mod tests {
    use wice_signaling::protocol::{PrivateKey, Session};

    use super::*;
    use crate::core::node::{Admission, HostAddress, NodeConfig};

    fn published(node: &mut Node) -> Vec<u64> {
        let events = std::iter::from_fn(|| node.poll_event());
        let of = |event| match event {
            Event::Publish { sequence, .. } => Some(sequence),
            Event::OpenRelay { .. }
            | Event::CloseRelay(_)
            | Event::PeerAdded { .. }
            | Event::PeerRemoved { .. }
            | Event::Bind { .. }
            | Event::PathChanged { .. }
            | Event::Initiation { .. } => None,
        };
        events.filter_map(of).collect()
    }

    /// A node that has lost its count is not heard by peers that know a higher one.
    #[test]
    fn a_higher_count_that_is_read_back_is_outdone_by_itself() {
        let key = || PrivateKey::from_bytes([1; 32]);
        let mut now = Instant::now();
        let config = NodeConfig {
            key: key(),
            session: Session([2; 16]),
            sequence: 0,
            name: "lab-a".to_owned(),
            admission: Admission::Added,
            membership: Vec::new(),
            seed: [3; 32],
        };
        let mut node = Node::new(config, now);
        let host = HostAddress {
            address: "192.168.1.2:51821".parse().unwrap(),
            interface: 1,
        };
        node.handle_addresses(&[host], now);
        now += PUBLISH_FIRST;
        node.handle_timeout(now);
        assert_eq!(published(&mut node), [1]);
        now += CALM;
        node.handle_timeout(now);
        let read_back = |session, sequence| {
            let advert = Advert {
                key: key().public_key(),
                session: Session([session; 16]),
                sequence,
                name: "lab-a".to_owned(),
                nat: NatBehavior::default(),
                candidates: Vec::new(),
                membership: Vec::new(),
            };
            advert.encode_signed(&key(), &[4; 64]).unwrap()
        };
        for (session, sequence, expected) in [
            (9, 900, Some(901)),
            // Ours, and older ones.
            (2, 901, None),
            (9, 17, None),
            // Another machine with our key.
            (9, 901, Some(902)),
        ] {
            node.handle_advert(&read_back(session, sequence), now)
                .unwrap();
            let due = node.poll_timeout().filter(|(_, why)| *why == "publishing");
            assert_eq!(due.is_some(), expected.is_some(), "{session} {sequence}");
            now += PUBLISH_MAX;
            node.handle_timeout(now);
            assert_eq!(published(&mut node), Vec::from_iter(expected));
        }
    }
}
